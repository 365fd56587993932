// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * churn.c - keeps the memory of a running program on the move.
 *
 * Every so many steps it looks up which owners have a mirror on the device
 * (the program, and children that it started) and which ranges they have; each
 * step moves one 2 MiB block of those, drawn at random, to the device or home.
 * Processes end and mappings go between the question and the move, and hmmd
 * may be restarted: then the places are looked up again. Main thread.
 */
#include <stdlib.h>
#include <string.h>

#include "churn.h"
#include "proto/layout.h"

#define STEPS_PER_LOOK 32

static uint64_t next_random(struct churn *churn)
{
	uint64_t x = churn->random += 0x9e3779b97f4a7c15ULL;	/* splitmix64 */

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

void churn_init(struct churn *churn, struct link *link, const char *device, uint64_t seed)
{
	memset(churn, 0, sizeof(*churn));
	churn->link = link;
	churn->random = seed;
	selection_add_device(&churn->selection, device);
}

static void forget_places(struct churn *churn)
{
	free(churn->places);
	churn->places = NULL;
	churn->n_places = 0;
	churn->blocks = 0;
	churn->steps = 0;
}

void churn_deinit(struct churn *churn)
{
	forget_places(churn);
}

static uint64_t block_of(uint64_t address)
{
	return address & ~(HMM_BLOCK_SIZE - 1);
}

static void add_places(struct churn *churn, uint32_t mirror, const struct address_range *ranges,
		       size_t n)
{
	struct churn_place *grown;

	grown = reallocarray(churn->places, churn->n_places + n, sizeof(*grown));
	if (!grown)
		return;
	churn->places = grown;
	for (size_t i = 0; i < n; i++) {
		uint64_t blocks = (block_of(ranges[i].end - 1) - block_of(ranges[i].start)) /
				  HMM_BLOCK_SIZE + 1;

		grown[churn->n_places++] = (struct churn_place){ mirror, ranges[i], blocks };
		churn->blocks += blocks;
	}
}

static void look_up_places(struct churn *churn)
{
	struct hmm_record_mirror_info *mirrors;
	struct address_range *ranges;
	long n, n_ranges;

	forget_places(churn);
	if (churn->link->fd < 0 && link_open(churn->link, NULL))
		return;
	n = select_mirrors(&churn->selection, churn->link, &mirrors);
	for (long i = 0; i < n; i++) {
		n_ranges = select_ranges(&churn->selection, churn->link, mirrors[i].owner, &ranges);
		if (n_ranges < 0)
			continue;
		if (n_ranges)
			add_places(churn, mirrors[i].id, ranges, (size_t)n_ranges);
		free(ranges);
	}
	if (n >= 0)
		free(mirrors);
}

/* The block of that number, counted over all places. */
static struct address_range find_block(const struct churn *churn, uint64_t number, uint32_t *mirror)
{
	const struct churn_place *place = churn->places;
	struct address_range block;

	for (; number >= place->blocks; place++)
		number -= place->blocks;
	*mirror = place->mirror;
	block.start = block_of(place->range.start) + number * HMM_BLOCK_SIZE;
	block.end = block.start + HMM_BLOCK_SIZE;
	if (block.start < place->range.start)
		block.start = place->range.start;
	if (block.end > place->range.end)
		block.end = place->range.end;
	return block;
}

void churn_step(struct churn *churn)
{
	struct address_range block;
	uint64_t random;
	uint32_t mirror;
	bool out;

	if (!churn->blocks || churn->steps++ >= STEPS_PER_LOOK)
		look_up_places(churn);
	if (!churn->blocks)
		return;
	random = next_random(churn);
	out = random & 1;
	block = find_block(churn, (random >> 1) % churn->blocks, &mirror);
	if (move_range(churn->link, mirror, &block, out ? HMM_TARGET_DEVICE : HMM_TARGET_SYSTEM, 0,
		       out ? &churn->out : &churn->home))
		forget_places(churn);
	else
		churn->moves++;
}
