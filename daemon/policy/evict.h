/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * evict.h - which blocks leave a device that has no room, and how much has to
 * go. Pure: no I/O, no clock, no allocation.
 */
#ifndef HMMD_EVICT_H
#define HMMD_EVICT_H

#include <stdbool.h>
#include <stdint.h>

/* Uses that count as one moment: within it a copy goes before the only copy. */
#define EVICT_STEP	16U
/* What is freed beyond the need, so that not every block has to ask: blocks, and never more than a share of the device. */
#define EVICT_SPARE_BLOCKS	4U
#define EVICT_SPARE_SHARE	8U

/* A block that is charged to the device. */
struct evict_candidate {
	uint32_t owner;		/* whose and where, for who asked */
	uint32_t mirror;	/* whose copies of it; 0: the block itself */
	uint64_t addr;
	uint64_t used;		/* a count that grows with every use of any block */
	unsigned int priority;	/* 0 to 100: is kept longer */
	bool pinned;		/* is kept in any case */
	bool unused;		/* holds nothing any more */
	bool discarded;		/* what it holds is worth nothing */
	bool copies;		/* all that it holds the CPU has, too */
};

/*
 * Puts those that may go in front, in the order in which they should: unused,
 * discarded, then by priority, and among equals the least recently used.
 * Return: how many those are.
 */
unsigned int evict_choose(struct evict_candidate *candidates, unsigned int count);

/* In percent of a device's size: above @high it is evicted from, down to @low (0: as far as need be, and some). */
struct evict_marks {
	unsigned int high, low;
};

/* Bytes to free so that @wanted fit, with what the marks ask for; 0: there is room. */
uint64_t evict_amount(const struct evict_marks *marks, uint64_t size, uint64_t used, uint64_t wanted);
/* Whether a device that holds @used is above its high mark. */
bool evict_is_high(const struct evict_marks *marks, uint64_t size, uint64_t used);

#endif
