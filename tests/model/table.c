// SPDX-License-Identifier: GPL-2.0-or-later
/* table.c - prints the table of transits as hmmd was built with it, for test_model.py. */
#include <stdio.h>

#include "engine/owner.h"

static void states(const char *what, const char *name, uint32_t set)
{
	static const char letter[] = "IRSDCE";

	for (unsigned int i = 0; letter[i]; i++)
		if (set & 1U << i)
			printf("%s\t%s\t%c\n", what, name, letter[i]);
}

int main(void)
{
	for (unsigned int i = 0; i < HMM_TRANSIT_MAX; i++) {
		const struct transit_rule *rule = &transit_rules[i];

		printf("transit\t%s\t%u\n", rule->name, i);
		states("from", rule->name, rule->from);
		states("to", rule->name, rule->to);
		printf("has\t%s\t%s\n", rule->name, rule->owner_has);
		printf("has-not\t%s\t%s\n", rule->name, rule->owner_has_not);
	}
	return 0;
}
