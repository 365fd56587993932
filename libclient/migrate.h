/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* migrate.h - a range on its way to a device or home, in requests of a piece each. */
#ifndef HMMC_MIGRATE_H
#define HMMC_MIGRATE_H

#include "space.h"

/* What is left of a range. */
struct rest {
	struct hmm_mirror_private *mirror;
	uint64_t addr, end;
	enum hmm_target target;
	uint64_t flags;			/* of the protocol */
	uint64_t piece;			/* bytes at most, whole blocks */
};

/* The most that one request may be about. */
#define HMMC_PIECE_MAX (64UL << 20)

/* All that a program asks for. Return: 0, or what is wrong, with the text. */
int hmmc_migrate_check_target(const struct hmm_mirror *mirror, unsigned long addr, size_t length,
			      enum hmm_target target, uint64_t flags);
/* The request for its next piece. NULL: no memory. */
struct request *hmmc_migrate_next(struct rest *rest);

/*
 * prefetch.c: those of @mirror, or all of the handle, send nothing more; waits until what they
 * sent is answered and they have said so.
 */
void hmmc_prefetch_stop(struct hmm *hmm, const struct hmm_mirror_private *mirror);

#endif
