/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * job.h - migrations and the jobs, one per block, that they are cut into.
 * migrate.c has the migration, out.c what a job does to the device,
 * homeward.c what it does on the way back. Owner's worker only.
 */
#ifndef HMMD_JOB_H
#define HMMD_JOB_H

#include "engine/evict.h"
#include "engine/owner.h"

/* Rounds that a job may take before it is given up; on the way home more, while the map does not stop changing. */
#define ROUNDS_MAX	64

struct migration {
	TAILQ_ENTRY(migration) link;	/* to a device: owner->outgoing */
	struct owner *owner;
	struct letter *letter;		/* to answer, or NULL */
	struct share *share;		/* what has left becomes coherent, or NULL */
	struct mirror *mirror;		/* to the device; NULL: home from any */
	const struct device *only;	/* home: pages of this device only; NULL: all */
	struct mirror *unless_pinned;	/* home: what is pinned on it by now stays; or NULL */
	uint64_t start, end, next;	/* next: where no job has been yet */
	bool to_device, populate;
	bool copies;			/* home as S: the device keeps its copy */
	uint32_t returns;		/* only the copies that this mirror has; 0: what the device holds */
	bool exclusive;			/* what gets there is marked */
	int reason;			/* enum hmm_reason: why pages leave the device */
	bool cheap;			/* where drivers need not wait: they may refuse */
	bool hurried;			/* home: what an owner that is stopped has in its agent's hands is not waited for */
	uint64_t chosen;		/* to make room: when it was used last; it stays if that was not the last; 0: never */
	uint64_t journey;		/* to a device: requests that go on from each other have one together */
	bool full;			/* the device was found to have no room for more of it */
	unsigned int running;
	bool finishing;
	uint8_t *results;		/* one per page, or NULL */
	bool results_lent;		/* by who asked */
	uint8_t *one_result;		/* of one page, for who asked; or NULL */
	uint64_t one_page;
	uint64_t moved, already, failed;
	migrate_done done;
	void *data;
	struct task finish;
};

struct job {
	struct task task;
	struct migration *migration;
	uint64_t block;			/* address */
	unsigned int first, end;	/* pages that are left to look at */
	unsigned int rounds;
	unsigned int begin;		/* where it began */
	bool again;			/* from the beginning: pages without a result are left */
	int64_t cut_short;		/* when an order ended first before it was through; 0 */
	bool no_slot;			/* going home by slot failed: copy */
	int64_t since;			/* share: a page could not leave, or its mapping not be exchanged;
					 * home: the map was changing; 0 */
	bool refused;			/* by a driver: the block stays */
	struct room_wait room;
	uint32_t order_flags;
	struct pages reported;		/* have their result */
	struct pages kept;		/* S, and would not leave as they are: made I they may */
	struct pages was_out;		/* home: pages that were on the device when it began */
	struct pages came;		/* home: done. What is out again has gone anew, for somebody else */
};

/* @results: one is kept for each page. NULL: out of memory. */
struct migration *migration_new(struct owner *owner, uint64_t start, uint64_t end, bool results);
void migration_begin(struct migration *migration);
/* A page's result, once. */
void result_set(struct job *job, unsigned int i, enum hmm_page_result result);
void result_range(struct job *job, unsigned int first, unsigned int end, enum hmm_page_result result);
/* Runs it again at the next safe point. */
void job_again(struct job *job);
/* Every page has its result: the migration goes on, the job is gone. */
void job_finish(struct job *job);

/* exclusive.c: marks what is on the device now; what can't be has its reason as result. */
void exclusive_grant(struct migration *migration);

void job_run_out(struct job *job);
void job_run_home(struct job *job);
/*
 * share.c: every page of the block has its result. True: more is to be done to it, the job
 * will be run again.
 */
bool share_block(struct job *job, struct block *block);

#endif
