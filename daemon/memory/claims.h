/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * claims.h - who has pages in a card's memory, over restarts of hmmd. Pure: no calls, no locks.
 *
 * Each mirror on a BAR has a claim, whose number tags its frames (frames.h) and stands in the
 * owner's journal: never 0, and not given again before a million others of its place were. The
 * list is in memory of the caller's that outlives hmmd; who is here at present is not.
 */
#ifndef HMMD_CLAIMS_H
#define HMMD_CLAIMS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CLAIM_PLACE_BITS 12U
#define CLAIMS_MAX	 (1U << CLAIM_PLACE_BITS) /* of one BAR */

/* As it is stored. */
struct claim {
	uint32_t number; /* the place in the low bits; 0: the place is free */
	int32_t pid;	 /* of the owner: 0, unknown */
	uint32_t last;	 /* number given out here */
	uint32_t reserved;
};

struct claims {
	struct claim *list;	    /* CLAIMS_MAX; the caller's */
	uint32_t pages[CLAIMS_MAX]; /* frames with its tag */
	bool here[CLAIMS_MAX];	    /* a mirror of this hmmd has it */
};

/* A new one, which is here; 0: there are CLAIMS_MAX. */
uint32_t claims_add(struct claims *claims, pid_t pid);
/* How many pages it has; NULL: there is no such claim. */
uint32_t *claims_pages(struct claims *claims, uint32_t number);
/* It is here, again. False: there is none, or it is here already. */
bool claims_take(struct claims *claims, uint32_t number);
/* It is not here, and is kept for whoever takes it. */
void claims_leave(struct claims *claims, uint32_t number);
/* It is no more. */
void claims_drop(struct claims *claims, uint32_t number);

#endif
