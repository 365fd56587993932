/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* range.h - what a range is in the library: range.c looks at its pages, dma.c has the device's own engine reach them. */
#ifndef HMMC_RANGE_H
#define HMMC_RANGE_H

#include "space.h"

/* What one message may be about. */
#define RANGE_PART_MAX (64UL << 20)
/* So many pages that are alike are compared, or written, together. */
#define RANGE_STRIDE 64UL

/* Two words at a time: every x86-64 can, and without being told compilers do it here, there, and not elsewhere. */
typedef uint64_t hmmc_words __attribute__((vector_size(16), aligned(8), may_alias));

/*
 * Whether each of RANGE_STRIDE words is @step more than the one before it, the first one being @first. Of the table they
 * are read as any memory is: what changes meanwhile changes its block's number, and then none of this is believed.
 */
static inline bool hmmc_range_counts_up(const uint64_t *words, uint64_t first, uint64_t step)
{
	hmmc_words expected = {first, first + step}, other = {0};

#pragma GCC unroll 8
	for (size_t i = 0; i < RANGE_STRIDE; i += 2) {
		other |= *(const hmmc_words *)(words + i) ^ expected;
		expected += 2 * step;
	}
	return !(other[0] | other[1]);
}

static inline void hmmc_range_count_up(uint64_t *words, uint64_t first, uint64_t step)
{
	hmmc_words next = {first, first + step};

#pragma GCC unroll 8
	for (size_t i = 0; i < RANGE_STRIDE; i += 2) {
		*(hmmc_words *)(words + i) = next;
		next += 2 * step;
	}
}

/* Where the message about a range's pages from @at on ends: at a block's end, so that no block is in two. */
static inline uint64_t hmmc_range_part_end(const struct hmm_range *range, uint64_t at)
{
	uint64_t end = (at + RANGE_PART_MAX) & ~(HMM_BLOCK_SIZE - 1);

	return end < range->end ? end : range->end;
}

struct hmm_range_private {
	struct hmm_mirror_private *mirror; /* referenced */
	struct hmm *hmm;		   /* not looked at when the mirror has been unregistered */
	const struct hmm_range *range;
	bool group;	  /* its pages are for all members of a group */
	uint64_t numbers; /* the sum that it was valid at */
	bool stable;	  /* nothing was changing then */
	bool reached;	  /* a card may reach some of it */
	uint32_t hold;	  /* hmmd's name of it; 0: hmmd has not been told */
	uint32_t round;	  /* the connection on which it was told */
};

/* Not any more: only the range knows its mirror, and asks nothing through it. */
static inline bool hmmc_range_is_registered(const struct hmm_range_private *private)
{
	return !__atomic_load_n(&private->mirror->unregistered, __ATOMIC_ACQUIRE);
}

/* Whether the driver's arrays make sense: 0, or -EINVAL with the text. */
int hmmc_range_check_arrays(const struct hmm_range *range);
/* What the driver asks of page @i: HMM_RANGE_WANT_*. */
uint8_t hmmc_range_want(const struct hmm_range *range, size_t i);
/* As hmm_range_fault(). @own: how many of the pages are the mirror's device's. */
long hmmc_range_fault(struct hmm_range *range, bool block, size_t *own);
/* A number by which hmmd knows a range. */
uint32_t hmmc_range_new_hold(struct hmm *hmm);

#endif
