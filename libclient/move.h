/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * move.h - pages from one block of the owner's addresses to another by UFFDIO_MOVE, and what an order
 * has to do before it changes anything. In the agent.
 */
#ifndef HMMC_MOVE_H
#define HMMC_MOVE_H

#include "agent.h"

#define PAGES HMM_BLOCK_PAGES

/* ---- a bit for each page of a block ------------------------------------------- */

static inline bool test(const uint64_t *map, unsigned int page)
{
	return map[page / 64] >> (page % 64) & 1;
}

static inline void set(uint64_t *map, unsigned int page)
{
	map[page / 64] |= 1ULL << (page % 64);
}

static inline void clear(uint64_t *map, unsigned int page)
{
	map[page / 64] &= ~(1ULL << (page % 64));
}

/* The first page from @page on whose bit is @value; PAGES: none. */
static inline unsigned int next(const uint64_t *map, unsigned int page, bool value)
{
	while (page < PAGES) {
		uint64_t word = value ? map[page / 64] : ~map[page / 64];

		word >>= page % 64;
		if (word)
			return page + (unsigned int)__builtin_ctzll(word);
		page = (page / 64 + 1) * 64;
	}
	return PAGES;
}

/* Runs of set bits: for (from = 0; next_run(map, &from, &end); from = end) */
static inline bool next_run(const uint64_t *map, unsigned int *from, unsigned int *end)
{
	*from = next(map, *from, true);
	if (*from >= PAGES)
		return false;
	*end = next(map, *from, false);
	return true;
}

static inline uint64_t page_address(uint64_t block, unsigned int page)
{
	return block + ((uint64_t)page << HMM_PAGE_SHIFT);
}

/* ---- where pages are ---------------------------------------------------------- */

static inline bool is_there(uint64_t entry)
{
	return entry & (PM_PRESENT | PM_SWAP);
}

/* Entries of /proc/self/pagemap. 0 or -errno. */
int hmmc_move_look(struct agent *agent, uint64_t address, unsigned int pages, uint64_t *entries);
/* The same, tried until there is an answer: nothing may be lost for want of one. Into agent->map. */
void hmmc_move_look_surely(struct agent *agent, uint64_t address, unsigned int pages);
bool hmmc_move_is_huge(struct agent *agent, uint64_t block);

/* ---- orders --------------------------------------------------------------------- */

/* RUNNING -> COMMIT with no hold. Return: false when the order was taken back. */
bool hmmc_order_commit(struct agent *agent, struct hmm_order *order);
/*
 * Back where hmmd may take the order away, until the hold is over or a moment has
 * passed. Not longer in either case: a hmmd that takes an order back wakes nobody,
 * and one that has just started keeps the hold up until the agent is idle.
 */
void hmmc_order_step_back(struct agent *agent, struct hmm_order *order);

struct move {
	uint64_t to, from;		/* blocks */
	const uint64_t *want;
	bool unshare;			/* break what a fork left shared */
	bool begun;			/* something has moved: no way back */
	bool parted;			/* no huge page lies across what is wanted and what is not */
	uint64_t done[HMM_BITMAP_WORDS];	/* moved, holes of the source included */
	uint64_t busy[HMM_BITMAP_WORDS];
	int error;			/* what could not be moved, or ended it */
};

/* Return: 0, with move filled in, or -ECANCELED with nothing changed. */
int hmmc_move_pages(struct agent *agent, struct hmm_order *order, struct move *move);

#endif
