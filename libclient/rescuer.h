/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rescuer.h - the thread that brings everything home when no hmmd comes back. */
#ifndef HMMC_RESCUER_H
#define HMMC_RESCUER_H

#include "clerk.h"
#include "region.h"
#include "view.h"

struct owner;

#define RESCUER_FAULTS	1024
#define RESCUER_CHILDREN 64
#define RESCUER_NESTED	16		/* children that are being served in the middle of each other: the stack has an end */

struct rescuer {
	struct thread thread;
	struct owner *owner;
	uint32_t wanted;		/* latch: 1 rescue, 2 go away */
	uint32_t done;			/* latch: all is home, nothing is armed */
	uint64_t pages;			/* brought home */
	uint64_t lost;			/* that the device had lost already */
	uint64_t entries[HMM_BLOCK_PAGES];	/* pagemap */
	struct hmm_ledger_block block;		/* a copy */
	uint64_t block_read;			/* whose */
	char page[HMM_PAGE_SIZE];		/* of a graft, a copy */
	struct view own;
	bool settled;			/* the agent has finished: where pages are changes no more */
	struct view *children, **end;	/* that wait, oldest first */
	unsigned int waiting, serving;	/* these and those that are being served; the latter alone */
	uint64_t faults[RESCUER_FAULTS];
	uint32_t faults_count;
};

int hmmc_rescuer_start(struct rescuer *rescuer, struct owner *owner);
void hmmc_rescuer_stop(struct rescuer *rescuer);
/* Calls it and does not wait. */
void hmmc_rescuer_call(struct rescuer *rescuer);

#endif
