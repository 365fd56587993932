/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * homeward.c - a job on the way home: S pages are unshared, a block that left
 * as one huge page comes back as one (the agent fills a slot and MOVEs it in),
 * everything else by COPY. Whatever fails on the way by slot is copied. Runs on
 * the owner's worker.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/breakage.h"
#include "engine/copies.h"
#include "engine/job.h"
#include "engine/notice.h"
#include "engine/worker.h"
#include "log.h"

/*
 * Between two steps of a job its pages may go out again: the program runs as soon as
 * the agent has moved them, perhaps before hmmd hears of it, and what it sends to
 * the device then is to stay there.
 */
void job_came(struct job *job, const struct block *block, const struct pages *pages)
{
	/* In the place of what was unmapped something may be let in that is out. */
	for (unsigned int w = 0; job && w < HMM_BITMAP_WORDS; w++)
		job->came.word[w] |= pages->word[w] & ~block->dead.word[w];
}

static void drop_those_that_came(const struct job *job, struct pages *pages)
{
	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		pages->word[w] &= ~job->came.word[w];
}

/* Said while the job waited for its turn, too. */
static void drop_pinned(const struct job *job, const struct block *block, struct pages *pages)
{
	const struct mirror *mirror = job->migration->unless_pinned;
	unsigned int first = 0, end;

	for (; mirror && pages_run(pages, &first, &end); first = end)
		for (unsigned int i = first; i < end; i++) {
			struct hmm_attribute here = attribute_at(&block->owner->attributes, page_addr(block, i));

			if (here.flags & HMM_ATTRIBUTE_PIN && here.pinned == mirror->index)
				pages_clear(pages, i);
		}
}

/* Fills @pages with those in @state that the job has yet to see to. False: none. */
static bool left_in(const struct job *job, const struct block *block, enum hmm_page_state state,
		    struct pages *pages)
{
	block_pages_in(block, state, job->first, job->end, pages);
	drop_those_that_came(job, pages);
	drop_pinned(job, block, pages);
	return !pages_empty(pages);
}

static bool wanted_home(const struct job *job, const struct block *block)
{
	const struct device *only = job->migration->only;
	const struct mirror *mirror = block_mirror(block);

	return !job->migration->returns && (!only || (mirror && mirror->device == only));
}

bool migrate_can_slot(const struct block *block)
{
	const struct owner *owner = block->owner;

	/* What MOVE brings home the CPU may write at once: not while a window shows the copy. */
	return !owner->agent_stuck && !block->touched && block->record->flags & HMM_BLOCK_HUGE &&
	       !block_has_window(block) &&
	       owner->features & HMM_FEATURE_MOVE && !owner->gone && owner->peer;
}

static bool whole_and_huge(const struct job *job, const struct block *block,
			   const struct pages *device)
{
	return !job->no_slot && job->first == 0 && job->end == HMM_BLOCK_PAGES &&
	       pages_count(device) == HMM_BLOCK_PAGES && migrate_can_slot(block);
}

static void home_slot_proceed(struct block *block)
{
	struct owner *owner = block->owner;

	if (!pages_empty(&block->dead) || block_has_window(block)) {
		/* While drivers answered part of it went away, or a window came: page by page. */
		struct job *job = block->move.job;

		job->no_slot = true;
		transit_restore(block);
		job_again(job);
		return;
	}
	order_issue(owner, HMM_ORDER_HOME_SLOT, block, block->record->slot, &block->move.want,
		    block_in_window(block) ? HMM_ORDER_VISIBLE : 0);
}

void home_slot_done(struct block *block, struct block_order *order, struct hmm_order *shared)
{
	struct owner *owner = block->owner;
	struct job *job = block->move.job;
	struct pages came = { 0 };
	unsigned int moved = 0;

	/*
	 * What the agent says it moved is home. A page that it did not say so of
	 * may be there all the same (a MOVE that stopped half-way): EEXIST tells.
	 */
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		bool home = broken("skip-moved") || (shared->state == HMM_ORDER_DONE && shared->moved[i / 64] >> (i % 64) & 1);

		moved += home;
		if (home)
			pages_set(&came, i);
		block_set_state(block, i, i + 1, home || pages_test(&block->dead, i) ?
				HMM_PAGE_INVALID : HMM_PAGE_DEVICE);
	}
	if (moved != HMM_BLOCK_PAGES) {
		job->no_slot = true;
		block->touched = true;
		log_debug("owner %u: block %#lx did not come home as one page: %s", owner->id,
			  block->addr, strerror(-shared->error));
	} else {
		owner_count(owner, COUNTER_HUGE_HOME, 1);
		block->went_huge = false;
	}
	block->record->flags &= ~HMM_BLOCK_HUGE;
	owner_count(owner, COUNTER_PAGES_HOME, moved);
	notice_home(block, &came);
	attribute_note_left(block, &block->move.want);
	slot_release(owner, order->slot);
	fault_wake(owner, block->addr, HMM_BLOCK_SIZE);
	job_came(job, block, &came);
	transit_end(block);
	block_settle_later(block);
	job_block_done(job, 0);
}

/* Copies of what is on the device come home; it keeps its own. */
static bool copies_step(struct job *job, struct block *block)
{
	struct pages pages;

	/* A far page has no bytes in the shadow that could be copied. */
	if (!owner_may_share(block->owner) || device_is_far(job->migration->only) ||
	    !left_in(job, block, HMM_PAGE_DEVICE, &pages))
		return false;
	home_begin(block, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_MIGRATE, 0, job);
	return true;
}

static const struct copy *copy_to_return(const struct migration *migration, const struct block *block)
{
	const struct mirror *mirror = mirror_by_id(migration->owner, migration->returns);

	return mirror ? copies_find(block, mirror) : NULL;
}

/* Chosen to make room, it has been waiting for its turn: it may be the last one to go by now. */
static bool was_used_since(const struct job *job, const struct block *block)
{
	const struct migration *migration = job->migration;
	const struct copy *copy;

	if (!migration->chosen)
		return false;
	if (!migration->returns)
		return block->used != migration->chosen;
	copy = copy_to_return(migration, block);
	return copy && copy->used != migration->chosen;
}

/* Of these pages the copies that are to go: the device's, or those of one of its mirrors. */
static struct pages returned(const struct job *job, const struct block *block)
{
	const struct migration *migration = job->migration;
	const struct copy *copy;

	if (!migration->returns)
		return copies_on(block, migration->only);
	copy = copy_to_return(migration, block);
	return copy ? copy->pages : (struct pages){ 0 };
}

/* Does the next thing. True: it is under way and the job will be run again. */
static bool home_step(struct job *job, struct block *block)
{
	struct owner *owner = block->owner;
	struct pages pages;

	if (!wanted_home(job, block)) {
		/* Another device holds the block: this one's copies go, all the same. */
		pages = returned(job, block);
		for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
			if (i < job->first || i >= job->end)
				pages_clear(&pages, i);
		drop_those_that_came(job, &pages);
		if (pages_empty(&pages))
			return false;
		copies_return(block, &pages, job->migration->reason, job);
		return true;
	}
	if (job->migration->copies)
		return copies_step(job, block);
	if (left_in(job, block, HMM_PAGE_SHARED, &pages)) {
		unshare_begin(block, &pages, job->migration->reason, job);
		return true;
	}
	if (!left_in(job, block, HMM_PAGE_DEVICE, &pages))
		return false;
	if (far_fetch(block, &pages, HMM_BLOCK_PAGES, 0, HMM_REASON_MIGRATE, &job->task))
		return true;
	if (whole_and_huge(job, block, &pages)) {
		int slot = slot_take(owner);

		if (slot < 0) {
			TAILQ_INSERT_TAIL(&owner->slot_waiters, &job->task, link);
			return true;
		}
		block->move.want = pages;
		block->move.job = job;
		block->record->slot = (uint16_t)slot;
		if (job_is_cheap(job))
			transit_ask(block, HMM_TRANSIT_HOME_SLOT, &pages, job->migration->reason,
				    home_slot_proceed, job_refused);
		else
			transit_begin(block, HMM_TRANSIT_HOME_SLOT, &pages, job->migration->reason,
				      home_slot_proceed);
		return true;
	}
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, job->migration->reason, 0, job);
	return true;
}

/* Pages that were out when the job began and are not any more have moved. */
static void home_results(struct job *job, struct block *block)
{
	for (unsigned int i = job->first; i < job->end; i++) {
		bool out = block && page_state(block, i) == HMM_PAGE_DEVICE && !pages_test(&job->came, i) &&
			   wanted_home(job, block);

		if (out)
			result_set(job, i, HMM_PAGE_RESULT_CHANGED);
		else if (block && page_state(block, i) == HMM_PAGE_ERROR)
			result_set(job, i, HMM_PAGE_RESULT_ERROR);
		else
			result_set(job, i, pages_test(&job->was_out, i) ? HMM_PAGE_RESULT_MOVED :
					   HMM_PAGE_RESULT_ALREADY);
	}
}

/*
 * For how long it is tried again where the owner's map kept changing: 64 times are over in a few milliseconds, and
 * who excludes memory, or ends a mirror, counts on what was there to be home.
 */
#define PATIENCE_NS	(3000 * NS_PER_MS)

static bool may_go_on(const struct job *job)
{
	return job->rounds < ROUNDS_MAX ||
	       (job->since && job->migration->owner->worker->now - job->since < PATIENCE_NS);
}

void job_run_home(struct job *job)
{
	struct owner *owner = job->migration->owner;
	struct block *block = block_find(owner, job->block);

	if (block && !owner->gone) {
		if (!block_at_rest(block) && job->migration->hurried && order_is_held_up(block)) {
			job_finish(job);
			return;
		}
		if (!block_at_rest(block)) {
			block_park(block, &job->task);
			return;
		}
		if (job->rounds == 0 && was_used_since(job, block))
			job->refused = true;
		if (job->rounds == 0 && wanted_home(job, block))
			block_pages_in(block, HMM_PAGE_DEVICE, job->first, job->end, &job->was_out);
		if (!job->refused && may_go_on(job)) {
			job->rounds++;
			if (home_step(job, block))
				return;
		}
	}
	home_results(job, block);
	/* The holder keeps its pages for now: a block that gave copies back is looked at when it is quiet. */
	if (block && !owner->gone && !job->migration->returns)
		block_settle(block);
	job_finish(job);
}
