/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * choose.c - which engine finds what was written: the one that the configuration names, or the
 * cheapest that this kernel has. By what the kernel can do, never by its version. Pure.
 */
#include "tracking/choose.h"

#include <stdio.h>
#include <string.h>

#include "tracking/tracking.h"

/* The cheapest first; tracking_wish numbers them in this order, from 1. */
static const struct tracking_ops *const engines[TRACKING_ENGINES] = {
	&tracking_pagemap_scan, &tracking_uffd_wp, &tracking_soft_dirty,
};

static bool is_wanted(enum tracking_wish wish, unsigned int i)
{
	return wish == TRACKING_AUTO || (unsigned int)wish == i + 1;
}

void tracking_choose(struct tracking_choice *choice, enum tracking_wish wish, const struct kernel_facts *facts)
{
	memset(choice, 0, sizeof(*choice));
	for (unsigned int i = 0; i < TRACKING_ENGINES && !choice->ops; i++)
		if (is_wanted(wish, i) && !engines[i]->lacks(facts))
			choice->ops = engines[i];
	for (unsigned int i = 0; i < TRACKING_ENGINES; i++) {
		const char *lack = engines[i]->lacks(facts);
		char *why = choice->why[i];
		size_t room = sizeof(choice->why[i]);

		if (engines[i] == choice->ops)
			continue;
		if (lack)
			snprintf(why, room, "%s", lack);
		else if (choice->ops)
			snprintf(why, room, "%s is used; tracking = %s in hmmd.conf forces this one",
				 choice->ops->name, engines[i]->name);
		else
			snprintf(why, room, "tracking = %s is configured, which this kernel lacks",
				 engines[wish - 1]->name);
	}
}

uint64_t tracking_feature(const struct tracking_choice *choice)
{
	return choice->ops ? choice->ops->feature : 0;
}

const char *tracking_why_none(const struct tracking_choice *choice, enum tracking_wish wish)
{
	return choice->ops ? "" : choice->why[wish == TRACKING_AUTO ? 0 : wish - 1];
}

const char *tracking_why_not(const struct tracking_choice *choice, uint64_t feature)
{
	for (unsigned int i = 0; i < TRACKING_ENGINES; i++)
		if (engines[i]->feature == feature)
			return choice->why[i];
	return NULL;
}
