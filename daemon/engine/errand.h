/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * errand.h - what advise.c and errand.c are to each other: advice that is noted, and
 * advice that sends pages before. Owner's worker only.
 */
#ifndef HMMD_ERRAND_H
#define HMMD_ERRAND_H

#include "engine/owner.h"

struct change {
	uint32_t advice;	/* without its opposites: those have back */
	bool back;
	uint32_t value;
	const struct mirror *mirror;	/* NULL: the system */
};

/* PIN, ACCESSED_BY: 0: it is on its way, and answers; or an error that @letter has. */
int errand_begin(struct owner *owner, struct letter *letter, struct mirror *mirror,
		 const struct change *change);

/* Notes what @letter says of its range. 0, or an error that the letter has. */
int advise_note(struct owner *owner, struct letter *letter, const struct change *change);
/* Answers with the policy that holds in the letter's range. */
void advise_answer(struct owner *owner, struct letter *letter);
/*
 * Pages of [start, end) that are on a device. @only: that one; NULL: any. @alone: of a device that cannot fault not those that
 * the CPU reads as well.
 */
uint64_t advise_pages_on_device(struct owner *owner, uint64_t start, uint64_t end, const struct mirror *only, bool alone);

#endif
