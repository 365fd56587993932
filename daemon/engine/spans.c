/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * spans.c - sets of address ranges: excluded, threads' stacks. Sorted, disjoint, merged where they touch. Runs on the owner's worker.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/owner.h"

static int room_for_one_more(struct span_set *set)
{
	void *list = realloc(set->list, (set->count + 1) * sizeof(*set->list));

	if (!list)
		return -ENOMEM;
	set->list = list;
	return 0;
}

/* The first span that ends at or after @addr. */
static unsigned int find(const struct span_set *set, uint64_t addr)
{
	unsigned int i = 0;

	while (i < set->count && set->list[i].end < addr)
		i++;
	return i;
}

static void erase(struct span_set *set, unsigned int at, unsigned int n)
{
	memmove(set->list + at, set->list + at + n, (set->count - at - n) * sizeof(*set->list));
	set->count -= n;
}

int span_set_add(struct span_set *set, uint64_t start, uint64_t end)
{
	unsigned int at = find(set, start), n = 0;
	int r = room_for_one_more(set);

	if (r)
		return r;
	while (at + n < set->count && set->list[at + n].start <= end) {
		if (set->list[at + n].start < start)
			start = set->list[at + n].start;
		if (set->list[at + n].end > end)
			end = set->list[at + n].end;
		n++;
	}
	if (n == 0) {
		memmove(set->list + at + 1, set->list + at, (set->count - at) * sizeof(*set->list));
		set->count++;
	} else {
		erase(set, at + 1, n - 1);
	}
	set->list[at].start = start;
	set->list[at].end = end;
	return 0;
}

int span_set_remove(struct span_set *set, uint64_t start, uint64_t end)
{
	unsigned int at = find(set, start + 1);
	int r = room_for_one_more(set);

	if (r)
		return r;
	while (at < set->count && set->list[at].start < end) {
		uint64_t s = set->list[at].start, e = set->list[at].end;

		if (s < start && e > end) {
			memmove(set->list + at + 1, set->list + at,
				(set->count - at) * sizeof(*set->list));
			set->count++;
			set->list[at].end = start;
			set->list[at + 1].start = end;
			return 0;
		}
		if (s < start) {
			set->list[at++].end = start;
		} else if (e > end) {
			set->list[at].start = end;
			return 0;
		} else {
			erase(set, at, 1);
		}
	}
	return 0;
}

bool span_set_overlaps(const struct span_set *set, uint64_t start, uint64_t end)
{
	unsigned int at = find(set, start + 1);

	return at < set->count && set->list[at].start < end;
}

void span_set_deinit(struct span_set *set)
{
	free(set->list);
	set->list = NULL;
	set->count = 0;
}
