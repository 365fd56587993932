/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * prefetch.h - how much to bring home for one CPU fault. Pure: no I/O, no
 * clock, no allocation.
 */
#ifndef HMMD_PREFETCH_H
#define HMMD_PREFETCH_H

#include <stdbool.h>
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

/* What was said of the memory around a touch. Page numbers. */
struct prefetch_hint {
	unsigned int granularity;	/* pages that come together, a power of two; 0: nothing was said */
	bool off;			/* nothing beyond them */
	uint64_t start, end;		/* as far as this holds */
};
#define PREFETCH_NO_HINT ((struct prefetch_hint){ .granularity = 0, .off = false, .start = 0, .end = UINT64_MAX })

/* Pages [start, end) to bring for a touch. */
struct prefetch_span {
	uint64_t start, end;
};

/*
 * Pages worth bringing for a fault on page number @page: 1 for a fault that
 * continues nothing, then doubling up to @max for one that does.
 */
unsigned int prefetch_ask(struct prefetch *prefetch, uint64_t page, unsigned int max);
/*
 * The group that @hint puts @page in, and behind @page as many as @asked, unless
 * that is off: no further than the hint holds, and within [start, end).
 */
struct prefetch_span prefetch_span(uint64_t page, unsigned int asked, const struct prefetch_hint *hint,
				   uint64_t start, uint64_t end);
/* What was brought after all: the walk continues behind @next - 1. */
void prefetch_brought(struct prefetch *prefetch, uint64_t page, uint64_t next, unsigned int asked);

#endif
