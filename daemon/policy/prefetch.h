/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * prefetch.h - how much to bring home for one CPU fault. Pure: no I/O, no
 * clock, no allocation.
 */
#ifndef HMMD_PREFETCH_H
#define HMMD_PREFETCH_H

#include <stdint.h>

#define PREFETCH_WALKS 8

/* The last few sequential walks that an owner's faults look like. */
struct prefetch {
	struct {
		uint64_t next;		/* the page that would continue it; 0: unused */
		uint32_t length;	/* pages that its last fault asked for */
		uint32_t age;		/* when it was last continued */
	} walk[PREFETCH_WALKS];
	uint32_t clock;
};

/*
 * Pages worth bringing for a fault on page number @page: 1 for a fault that
 * continues nothing, then doubling up to @max for one that does.
 */
unsigned int prefetch_ask(struct prefetch *prefetch, uint64_t page, unsigned int max);
/* What was brought after all: the walk continues behind @next - 1. */
void prefetch_brought(struct prefetch *prefetch, uint64_t page, uint64_t next, unsigned int asked);

#endif
