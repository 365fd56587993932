/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * agent.h - the thread that does in the owner what only the owner may do to its
 * own address space: UFFDIO_MOVE, madvise.
 */
#ifndef HMMC_AGENT_H
#define HMMC_AGENT_H

#include <sys/uio.h>

#include "clerk.h"
#include "policy.h"
#include "region.h"

/*
 * A second thread that empties slots which held 4 KiB pages: giving those back
 * takes a fifth of the time of a move, and the next move need not wait for it.
 */
struct sweeper {
	struct thread thread;
	uint32_t posted;		/* futex: bumped with each slot given to it */
	uint32_t stop;
	uint32_t slots;			/* futex, bits: being emptied or waiting for it */
	struct hmm_order *order[HMM_SLOTS_MAX];	/* by slot; not NULL: waiting */
};

struct agent {
	struct thread thread;
	struct sweeper sweeper;
	uint32_t tid;			/* latch */
	uint32_t attached;		/* latch: what follows is filled in */
	uint32_t stop;
	uint32_t busy;			/* an order is being carried out */
	struct hmm_orders *orders;
	struct regions *regions;
	int uffd, pagemap, mem, eventfd;	/* in the private table; the owner closes them */
	int pipe[2];			/* likewise; empty between two runs of pages */
	char *slots;
	unsigned int slots_count;
	const struct policy *policy;	/* the program's; NULL: none to follow */
	bool full[HMM_SLOTS_MAX]; /* the slot may have pages of the last order's */
	bool thin[HMM_SLOTS_MAX]; /* the slot held 4 KiB pages and has their page table still */
	uint64_t map[HMM_BLOCK_PAGES];	/* pagemap entries */
	struct iovec from[HMM_BLOCK_PAGES], to[HMM_BLOCK_PAGES];	/* of a SYNC */
	_Alignas(4096) char bounce[16 * HMM_PAGE_SIZE];
};

/* Starts the thread, which waits to be attached. From a thread with the private table. */
int hmmc_agent_start(struct agent *agent);
/* From now on it takes orders. */
void hmmc_agent_attach(struct agent *agent);
void hmmc_agent_stop(struct agent *agent);
/* Carries out the oldest order, if there is one. The thread's loop, and tests, call it. */
bool hmmc_agent_step(struct agent *agent);

/* Somebody else may give orders now, or hmmd is gone: nothing new is to begin. */
static inline bool agent_is_retired(struct agent *agent)
{
	return __atomic_load_n(&agent->stop, __ATOMIC_ACQUIRE) ||
	       __atomic_load_n(&agent->orders->incarnation, __ATOMIC_SEQ_CST) ==
		       HMM_INCARNATION_RESCUE;
}

/* Waits until the sweeper has left the slot. */
#define EVERY_SLOT UINT32_MAX
void hmmc_agent_wait_for_sweeper(struct agent *agent, uint32_t slot);

/* order.c: carries out one order that is RUNNING. Return: false when it was taken back. */
bool hmmc_order_run(struct agent *agent, struct hmm_order *order);
/* copy.c: the same of a SYNC, whose shadow is there. */
bool hmmc_order_sync(struct agent *agent, struct hmm_order *order, const struct region *region);

#endif
