// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * claims.c - who has pages in a card's memory. A claim is noted before its first page is taken,
 * and taken off the list after its last page is free: whoever is killed in between leaves a claim
 * without pages, which means nothing, never pages that could become another's.
 */
#include "memory/claims.h"

#include <stddef.h>

static struct claim *find(const struct claims *claims, uint32_t number)
{
	struct claim *claim = &claims->list[number % CLAIMS_MAX];

	return number && claim->number == number ? claim : NULL;
}

uint32_t claims_add(struct claims *claims, pid_t pid)
{
	for (uint32_t place = 0; place < CLAIMS_MAX; place++) {
		struct claim *claim = &claims->list[place];
		uint32_t number = (claim->last & ~(CLAIMS_MAX - 1)) + CLAIMS_MAX;

		if (claim->number)
			continue;
		/* All of them were given out: from the beginning. */
		if (!number)
			number = CLAIMS_MAX;
		claim->pid = pid;
		claim->last = number | place;
		claims->pages[place] = 0;
		claims->here[place] = true;
		__atomic_store_n(&claim->number, claim->last, __ATOMIC_RELEASE);
		return claim->last;
	}
	return 0;
}

uint32_t *claims_pages(struct claims *claims, uint32_t number)
{
	return find(claims, number) ? &claims->pages[number % CLAIMS_MAX] : NULL;
}

bool claims_take(struct claims *claims, uint32_t number)
{
	bool *here = &claims->here[number % CLAIMS_MAX];

	if (!find(claims, number) || *here)
		return false;
	*here = true;
	return true;
}

void claims_leave(struct claims *claims, uint32_t number)
{
	if (find(claims, number))
		claims->here[number % CLAIMS_MAX] = false;
}

void claims_drop(struct claims *claims, uint32_t number)
{
	struct claim *claim = find(claims, number);

	if (!claim)
		return;
	claims->here[number % CLAIMS_MAX] = false;
	__atomic_store_n(&claim->number, 0, __ATOMIC_RELEASE);
}
