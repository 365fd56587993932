/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * evict.c - the order in which blocks leave a full device, and how many.
 *
 * What holds nothing costs nothing to take, and what was discarded costs nobody
 * anything. Of the rest the priority that the program gave decides first, then how
 * long ago a block was used: in steps, so that among blocks of about the same age
 * those go first that are mere copies and need not be brought home, and before
 * those the copies of what another device holds, which the CPU need not hear of.
 */
#include "policy/evict.h"

#include <stdlib.h>

#include "layout.h"

static int kind(const struct evict_candidate *candidate)
{
	return candidate->unused ? 0 : candidate->discarded ? 1 : 2;
}

/* Of taking it. */
static unsigned int cost(const struct evict_candidate *candidate)
{
	return candidate->mirror ? 0 : candidate->copies ? 1 : 2;
}

static int order(uint64_t a, uint64_t b)
{
	return (a > b) - (a < b);
}

static int compare(const void *first, const void *second)
{
	const struct evict_candidate *a = first, *b = second;
	int r = order(a->pinned, b->pinned);

	if (!r)
		r = kind(a) - kind(b);
	if (!r)
		r = order(a->priority, b->priority);
	if (!r)
		r = order(a->used / EVICT_STEP, b->used / EVICT_STEP);
	if (!r)
		r = order(cost(a), cost(b));
	return r ? r : order(a->used, b->used);
}

unsigned int evict_choose(struct evict_candidate *candidates, unsigned int count)
{
	unsigned int n = 0;

	qsort(candidates, count, sizeof(*candidates), compare);
	while (n < count && !candidates[n].pinned)
		n++;
	return n;
}

static uint64_t mark_bytes(uint64_t size, unsigned int percent)
{
	return size / 100 * percent + size % 100 * percent / 100;
}

static uint64_t spare(uint64_t size)
{
	uint64_t blocks = size / HMM_BLOCK_SIZE / EVICT_SPARE_SHARE;

	return (blocks < EVICT_SPARE_BLOCKS ? blocks : EVICT_SPARE_BLOCKS) * HMM_BLOCK_SIZE;
}

static uint64_t high_bytes(const struct evict_marks *marks, uint64_t size)
{
	return mark_bytes(size, marks->high && marks->high < 100 ? marks->high : 100);
}

bool evict_is_high(const struct evict_marks *marks, uint64_t size, uint64_t used)
{
	return used > high_bytes(marks, size);
}

uint64_t evict_amount(const struct evict_marks *marks, uint64_t size, uint64_t used, uint64_t wanted)
{
	uint64_t high = high_bytes(marks, size), keep, amount;

	if (used + wanted <= size && used <= high)
		return 0;
	/* So much may be in use when what is wanted has come. */
	keep = marks->low ? mark_bytes(size, marks->low) : high - (spare(size) < high ? spare(size) : high);
	amount = used + wanted > keep ? used + wanted - keep : 0;
	return amount < used ? amount : used;
}
