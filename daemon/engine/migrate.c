/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * migrate.c - migrations: ranges of pages to the device and home, best effort,
 * with a result per page. Runs on the owner's worker.
 *
 * A migration is cut into jobs, one per block; a few run at a time. A job is a
 * task: it looks at its block, does the next thing that can be done (bring S
 * pages home, give one mapping's pages to the agent, copy), and is run again
 * when that is finished, until nothing is left to do.
 *
 * To the device: out_begin() takes a staging slot, opens the transit and, when
 * the drivers have answered, orders the agent to MOVE and fill; what it
 * reports becomes D in migrate_out_done(). Without UFFDIO_MOVE, and only where
 * the program promised that nothing pins its pages: protect, fill, zap.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/breakage.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

/* Jobs of one migration that run at a time; more than slots, so that one is always waiting. */
#define JOBS_AT_A_TIME	10
/* Rounds that a job may take before it is given up: a map that never stops changing. */
#define ROUNDS_MAX	64

struct migration {
	struct owner *owner;
	struct letter *letter;		/* to answer, or NULL */
	struct mirror *mirror;		/* to the device; NULL: home from any */
	const struct device *only;	/* home: pages of this device only; NULL: all */
	uint64_t start, end, next;	/* next: where no job has been yet */
	bool to_device, populate;
	unsigned int running;
	bool finishing;
	uint8_t *results;		/* one per page, or NULL */
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
	bool no_slot;			/* going home by slot failed: copy */
	uint32_t order_flags;
	struct pages reported;		/* have their result */
	struct pages was_out;		/* home: pages that were on the device when it began */
};

/* ---- results ------------------------------------------------------------------ */

static void result_set(struct job *job, unsigned int i, enum hmm_page_result result)
{
	struct migration *migration = job->migration;
	uint64_t addr = job->block + ((uint64_t)i << HMM_PAGE_SHIFT);

	if (pages_test(&job->reported, i))
		return;
	pages_set(&job->reported, i);
	if (migration->results)
		migration->results[(addr - migration->start) >> HMM_PAGE_SHIFT] = (uint8_t)result;
	if (migration->one_result && addr == migration->one_page)
		*migration->one_result = (uint8_t)result;
	if (result == HMM_PAGE_RESULT_MOVED)
		migration->moved++;
	else if (result == HMM_PAGE_RESULT_ALREADY)
		migration->already++;
	else
		migration->failed++;
}

static void result_range(struct job *job, unsigned int first, unsigned int end,
			 enum hmm_page_result result)
{
	for (unsigned int i = first; i < end; i++)
		result_set(job, i, result);
}

/* ---- the migration --------------------------------------------------------------- */

static void migration_start_jobs(struct migration *migration);

static void answer(struct migration *migration)
{
	struct hmm_msg_migrate_reply *reply;
	struct letter *letter = migration->letter;
	uint32_t count = (uint32_t)((migration->end - migration->start) >> HMM_PAGE_SHIFT);

	reply = letter_reply(letter, HMM_OP_MIGRATE_REPLY, sizeof(*reply) + count);
	if (!reply) {
		letter_fail(letter, -ENOMEM, "out of memory for the answer; the pages did move");
	} else {
		reply->pages = count;
		reply->moved = migration->moved;
		reply->already = migration->already;
		reply->failed = migration->failed;
		reply->count = count;
		memcpy(reply->results, migration->results, count);
	}
	worker_reply(migration->owner->worker, letter);
}

static void migration_finish(struct task *task)
{
	struct migration *migration =
		(struct migration *)((char *)task - offsetof(struct migration, finish));
	struct owner *owner = migration->owner;

	owner->jobs--;
	if (migration->to_device)
		migration->mirror->migrations--;
	if (migration->letter)
		answer(migration);
	if (migration->done)
		migration->done(owner, migration->data, migration->moved + migration->already);
	free(migration->results);
	free(migration);
}

static void migration_check(struct migration *migration)
{
	if (migration->running || migration->next < migration->end || migration->finishing)
		return;
	migration->finishing = true;
	migration->finish.run = migration_finish;
	owner_queue(migration->owner, &migration->finish);
}

static void job_finish(struct job *job)
{
	struct migration *migration = job->migration;

	migration->running--;
	free(job);
	migration_start_jobs(migration);
	migration_check(migration);
}

static void job_again(struct job *job)
{
	owner_queue(job->migration->owner, &job->task);
}

/* ---- home ---------------------------------------------------------------------------- */

static bool wanted_home(const struct job *job, const struct block *block)
{
	const struct device *only = job->migration->only;
	const struct mirror *mirror = block_mirror(block);

	return !only || (mirror && mirror->device == only);
}

bool migrate_can_slot(const struct block *block)
{
	const struct owner *owner = block->owner;

	return !owner->agent_stuck && !block->touched && block->record->flags & HMM_BLOCK_HUGE &&
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

	if (!pages_empty(&block->dead) || window_protect(block, 0, HMM_BLOCK_PAGES, true)) {
		/* Part of it went away while drivers answered, or a window can't be frozen: page by page. */
		struct job *job = block->move.job;

		for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
			block_set_state(block, i, i + 1, pages_test(&block->dead, i) ?
					HMM_PAGE_INVALID : HMM_PAGE_DEVICE);
		slot_put(owner, block->record->slot);
		job->no_slot = true;
		window_protect(block, 0, HMM_BLOCK_PAGES, false);
		transit_end(block);
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
	unsigned int moved = 0, first, end;

	/*
	 * What the agent says it moved is home. A page that it did not say so of
	 * may be there all the same (a MOVE that stopped half-way): EEXIST tells.
	 */
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		bool home = shared->state == HMM_ORDER_DONE && shared->moved[i / 64] >> (i % 64) & 1;

		moved += home;
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
	slot_release(owner, order->slot);
	if (block_has_window(block)) {
		struct pages device;

		block_punch_stale(block);
		block_pages_in(block, HMM_PAGE_DEVICE, 0, HMM_BLOCK_PAGES, &device);
		for (first = 0; pages_run(&device, &first, &end); first = end)
			window_protect(block, first, end, false);
		window_wake(block, 0, HMM_BLOCK_PAGES);
	}
	fault_wake(owner, block->addr, HMM_BLOCK_SIZE);
	transit_end(block);
	block_settle_later(block);
	job_block_done(job, 0);
}

/* Does the next thing. True: it is under way and the job will be run again. */
static bool home_step(struct job *job, struct block *block)
{
	struct owner *owner = block->owner;
	struct pages pages;

	if (!wanted_home(job, block))
		return false;
	if (block_pages_in(block, HMM_PAGE_SHARED, job->first, job->end, &pages)) {
		unshare_begin(block, &pages, HMM_REASON_MIGRATE, job);
		return true;
	}
	if (!block_pages_in(block, HMM_PAGE_DEVICE, job->first, job->end, &pages))
		return false;
	if (whole_and_huge(job, block, &pages)) {
		int slot = slot_take(owner);

		if (slot < 0) {
			TAILQ_INSERT_TAIL(&owner->slot_waiters, &job->task, link);
			return true;
		}
		block->move.want = pages;
		block->move.job = job;
		block->record->slot = (uint16_t)slot;
		transit_begin(block, HMM_TRANSIT_HOME_SLOT, &pages, HMM_REASON_MIGRATE,
			      home_slot_proceed);
		return true;
	}
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, job);
	return true;
}

/* Pages that were out when the job began and are not any more have moved. */
static void home_results(struct job *job, struct block *block)
{
	for (unsigned int i = job->first; i < job->end; i++) {
		bool out = block && page_state(block, i) == HMM_PAGE_DEVICE &&
			   wanted_home(job, block);

		if (out)
			result_set(job, i, HMM_PAGE_RESULT_CHANGED);
		else
			result_set(job, i, pages_test(&job->was_out, i) ? HMM_PAGE_RESULT_MOVED :
					   HMM_PAGE_RESULT_ALREADY);
	}
}

static void job_run_home(struct job *job)
{
	struct owner *owner = job->migration->owner;
	struct block *block = block_find(owner, job->block);

	if (block && !owner->gone) {
		if (!block_at_rest(block)) {
			block_park(block, &job->task);
			return;
		}
		if (job->rounds == 0)
			for (unsigned int i = job->first; i < job->end; i++)
				if (page_state(block, i) == HMM_PAGE_DEVICE)
					pages_set(&job->was_out, i);
		if (job->rounds++ < ROUNDS_MAX && home_step(job, block))
			return;
	}
	home_results(job, block);
	if (block)
		block_settle(block);
	job_finish(job);
}

/* ---- to the device ----------------------------------------------------------------------- */

/* The map is changing: everything back as it was, and again when the event has been read. */
static void out_again(struct block *block, struct job *job)
{
	struct owner *owner = block->owner;
	unsigned int first = 0, end;

	for (; pages_run(&block->move.want, &first, &end); first = end) {
		block_set_state(block, first, end, HMM_PAGE_INVALID);
		kernel->uffd_protect(owner->uffd, page_addr(block, first),
				     (size_t)(end - first) << HMM_PAGE_SHIFT, false);
	}
	slot_put(owner, block->record->slot);
	job->again = true;
	transit_end(block);
	block_recharge(block);
	block_settle_later(block);
	job_block_done(job, -EAGAIN);
}

static void out_proceed(struct block *block)
{
	struct owner *owner = block->owner;
	struct job *job = block->move.job;
	unsigned int first = 0, end;
	uint32_t kind = HMM_ORDER_OUT_MOVE;

	/*
	 * What windows can see is filled page by page, each appearing with its
	 * bytes; else as one huge page, whose zeros come before the bytes.
	 */
	if (block_in_window(block))
		job->order_flags = HMM_ORDER_VISIBLE;
	if (block->record->transit == HMM_TRANSIT_OUT_ZAP) {
		kind = HMM_ORDER_OUT_ZAP;
		for (; pages_run(&block->move.want, &first, &end); first = end) {
			int r = kernel->uffd_protect(owner->uffd, page_addr(block, first),
						     (size_t)(end - first) << HMM_PAGE_SHIFT, true);

			if (r) {
				out_again(block, job);
				return;
			}
		}
	}
	order_issue(owner, kind, block, block->record->slot, &block->move.want, job->order_flags);
}

/* S pages: the copy is there, they only have to leave the CPU. */
static void drop_proceed(struct block *block)
{
	order_issue(block->owner, HMM_ORDER_DROP, block, block->record->slot, &block->move.want, 0);
}

static void drop_done(struct block *block, const struct block_order *order,
		      const struct hmm_order *shared)
{
	struct job *job = block->move.job;
	unsigned int moved = 0;

	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		bool left = shared->state == HMM_ORDER_DONE &&
			    ((shared->moved[i / 64] | shared->hole[i / 64]) >> (i % 64) & 1);

		if (!pages_test(&order->want, i))
			continue;
		if (pages_test(&block->dead, i)) {
			block_set_state(block, i, i + 1, HMM_PAGE_INVALID);
			result_set(job, i, HMM_PAGE_RESULT_CHANGED);
		} else if (left) {
			block_set_state(block, i, i + 1, HMM_PAGE_DEVICE);
			window_protect(block, i, i + 1, false);
			result_set(job, i, HMM_PAGE_RESULT_MOVED);
			moved++;
		} else {
			block_set_state(block, i, i + 1, HMM_PAGE_SHARED);
			result_set(job, i, HMM_PAGE_RESULT_PINNED);
		}
	}
	block->touched = true;
	owner_count(block->owner, COUNTER_PAGES_TO_DEVICE, moved);
	slot_release(block->owner, order->slot);
	transit_end(block);
	if (block_has_window(block)) {
		block_punch_stale(block);
		window_wake(block, 0, HMM_BLOCK_PAGES);
	}
	job_block_done(job, 0);
}

static enum hmm_page_result refused(const struct hmm_order *shared, unsigned int i)
{
	if (shared->state == HMM_ORDER_CANCELLED)
		return HMM_PAGE_RESULT_CHANGED;
	if (shared->hole[i / 64] >> (i % 64) & 1)
		return HMM_PAGE_RESULT_HOLE;
	switch (shared->error) {
	case -EAGAIN:
		return HMM_PAGE_RESULT_CHANGED;
	case -EINVAL:
		return HMM_PAGE_RESULT_LOCKED;	/* MOVE into an unlocked slot */
	default:
		return HMM_PAGE_RESULT_PINNED;
	}
}

/* A hole that a device is to have as zeros. It is armed: the CPU can't fill it behind our back. */
static bool populate(const struct job *job, struct block *block, const struct hmm_order *shared,
		     unsigned int i)
{
	static const char zeros[HMM_PAGE_SIZE];

	return job->migration->populate && shared->state == HMM_ORDER_DONE &&
	       shared->hole[i / 64] >> (i % 64) & 1 &&
	       shadow_store(block_shadow(block), page_addr(block, i), zeros) == 0;
}

static bool is_guard(struct block *block, unsigned int i)
{
	struct owner *owner = block->owner;
	uint64_t entry;

	return owner->features & HMM_FEATURE_GUARD &&
	       kernel->pagemap_read(owner->pagemap, page_addr(block, i), 1, &entry) == 0 &&
	       entry & PM_GUARD;
}

void migrate_out_done(struct block *block, struct block_order *order, struct hmm_order *shared)
{
	struct owner *owner = block->owner;
	struct job *job = block->move.job;
	bool whole = shared->flags & HMM_ORDER_WHOLE && job->order_flags & HMM_ORDER_WHOLE &&
		     shared->state == HMM_ORDER_DONE;
	bool zap = order->kind == HMM_ORDER_OUT_ZAP;
	unsigned int moved = 0, kept = 0;
	struct mirror *mirror = block_mirror(block);

	if (shared->error)
		log_debug("owner %u: block %#lx: order %u: %s", owner->id, block->addr, order->kind,
			  strerror(-shared->error));
	if (order->kind == HMM_ORDER_DROP) {
		drop_done(block, order, shared);
		return;
	}
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		uint64_t bit = 1ULL << (i % 64);
		bool here;

		if (!pages_test(&order->want, i))
			continue;
		here = shared->state == HMM_ORDER_DONE &&
		       (shared->moved[i / 64] & bit || (whole && shared->hole[i / 64] & bit));
		if (pages_test(&block->dead, i) && !broken("skip-dead")) {
			/* Unmapped or discarded meanwhile: whatever was moved is nobody's. */
			block_set_state(block, i, i + 1, HMM_PAGE_INVALID);
			pages_set(&block->stale, i);
			result_set(job, i, HMM_PAGE_RESULT_CHANGED);
		} else if (here || populate(job, block, shared, i)) {
			block_set_state(block, i, i + 1, HMM_PAGE_DEVICE);
			result_set(job, i, HMM_PAGE_RESULT_MOVED);
			moved++;
		} else {
			block_set_state(block, i, i + 1, HMM_PAGE_INVALID);
			result_set(job, i, is_guard(block, i) ? HMM_PAGE_RESULT_SPECIAL :
								refused(shared, i));
			if (zap)
				kernel->uffd_protect(owner->uffd, page_addr(block, i), HMM_PAGE_SIZE,
						     false);
			kept++;
		}
	}
	/* What was charged and not used goes back, unless a huge page was filled. */
	if (kept && !pool_is_huge(mirror->device->pool->kind)) {
		device_uncharge(mirror->device, (uint64_t)kept << HMM_PAGE_SHIFT);
		block->charged -= kept;
	}
	if (shared->flags & HMM_ORDER_HUGE_MOVED && moved == HMM_BLOCK_PAGES) {
		block->record->flags |= HMM_BLOCK_HUGE;
		block->went_huge = true;
		owner_count(owner, COUNTER_HUGE_TO_DEVICE, 1);
	}
	block->touched = false;
	owner_count(owner, COUNTER_PAGES_TO_DEVICE, moved);
	/* Without MOVE it was only a permit. */
	if (zap)
		slot_put(owner, order->slot);
	else
		slot_release(owner, order->slot);
	transit_end(block);
	if (!moved)
		block_settle_later(block);
	if (block_has_window(block)) {
		block_punch_stale(block);
		window_wake(block, 0, HMM_BLOCK_PAGES);
	}
	job_block_done(job, 0);
}

/* Why pages of this state stay, or MOVED when they may go. */
static enum hmm_page_result out_result(const struct job *job, const struct block *block,
				       unsigned int i)
{
	switch (page_state(block, i)) {
	case HMM_PAGE_SHARED:
		if (block_mirror(block) == job->migration->mirror)
			break;
		return HMM_PAGE_RESULT_CHANGED;
	case HMM_PAGE_DEVICE:
	case HMM_PAGE_COHERENT:
		return block_mirror(block) == job->migration->mirror ? HMM_PAGE_RESULT_ALREADY :
								       HMM_PAGE_RESULT_CHANGED;
	case HMM_PAGE_ERROR:
		return HMM_PAGE_RESULT_ERROR;
	case HMM_PAGE_INVALID:
	case HMM_PAGE_REMOTE:
		break;
	}
	return HMM_PAGE_RESULT_MOVED;
}

/* S pages of [first, stop) that are to be D. */
static int drop_begin(struct job *job, struct block *block, const struct pages *want)
{
	int slot = slot_take(block->owner);

	if (slot < 0)
		return -EBUSY;
	block->move.want = *want;
	block->move.job = job;
	block->record->slot = (uint16_t)slot;
	transit_begin(block, HMM_TRANSIT_OUT_MOVE, want, HMM_REASON_MIGRATE, drop_proceed);
	return 0;
}

static int out_begin(struct job *job, struct block *block, const struct segment *segment,
		     const struct pages *want)
{
	struct migration *migration = job->migration;
	struct owner *owner = migration->owner;
	struct mirror *mirror = migration->mirror;
	bool move = owner->features & HMM_FEATURE_MOVE;
	bool whole = move && pages_count(want) == HMM_BLOCK_PAGES;
	bool huge = pool_is_huge(mirror->device->pool->kind);
	struct shadow *shadow;
	int r, slot;

	if (!move && !span_set_covers(&owner->unpinned, segment->start, segment->end))
		return -ENOTSUP;
	if (block_mirror(block) && block_mirror(block) != mirror && !block_punch_stale(block))
		return -EAGAIN;
	if (block_mirror(block) && block_mirror(block) != mirror)
		return -EAGAIN;		/* another device holds pages of it */
	r = mirror_shadow(mirror, block->addr, &shadow);
	if (r)
		return r;
	/* A fill never meets what an earlier stay left behind. */
	if (!pages_empty(&block->stale) && !block_punch_stale(block) && whole)
		return -EAGAIN;
	/* The base engine needs none, but as many permits keep the ring from running over. */
	slot = slot_take(owner);
	if (slot < 0)
		return -EBUSY;
	block->record->mirror = (uint16_t)mirror->index;
	r = block_charge(block, mirror->device, huge ? HMM_BLOCK_PAGES : pages_count(want));
	if (!r && shadow->kind == HMM_POOL_KIND_HUGETLB &&
	    fallocate(shadow->fd, 0, (off_t)(block->addr - shadow->base), HMM_BLOCK_SIZE) < 0)
		r = -ENOSPC;
	if (!r)
		r = block_arm(block, segment->start, segment->end);
	if (r) {
		slot_put(owner, (unsigned int)slot);
		block_settle_later(block);
		return r == -EBUSY ? -EEXIST : r;
	}
	job->order_flags = whole ? HMM_ORDER_WHOLE : 0;
	block->move.want = *want;
	block->move.job = job;
	block->record->slot = (uint16_t)slot;
	transit_begin(block, move ? HMM_TRANSIT_OUT_MOVE : HMM_TRANSIT_OUT_ZAP, want,
		      HMM_REASON_MIGRATE, out_proceed);
	return 0;
}

static enum hmm_page_result out_error(int error)
{
	switch (error) {
	case -ENOSPC:
		return HMM_PAGE_RESULT_FULL;
	case -EEXIST:
		return HMM_PAGE_RESULT_ARMED;
	case -EINVAL:
		return HMM_PAGE_RESULT_SPECIAL;
	case -ENOTSUP:
		return HMM_PAGE_RESULT_UNDECLARED;
	case -ENOENT:
	case -EAGAIN:
	case -EINTR:
	case -ENOMEM:
		return HMM_PAGE_RESULT_CHANGED;	/* worth asking again */
	default:
		return HMM_PAGE_RESULT_ERROR;
	}
}

/* The pages of [first, stop) that may leave: those that are S if @shared, else those that are I. */
static struct pages out_wanted(const struct job *job, const struct block *block, unsigned int first,
			       unsigned int stop, bool shared)
{
	struct pages want = { 0 };

	for (unsigned int i = first; i < stop; i++)
		if (out_result(job, block, i) == HMM_PAGE_RESULT_MOVED &&
		    (page_state(block, i) == HMM_PAGE_SHARED) == shared &&
		    !pages_test(&block->zapping, i) && !pages_test(&job->reported, i))
			pages_set(&want, i);
	return want;
}

/* One mapping's worth. True: under way, the job will be run again. */
static bool out_step(struct job *job, struct block *block)
{
	struct owner *owner = block->owner;
	struct pages want = { 0 };
	struct segment segment;
	unsigned int first = job->first, end = job->end, stop;
	bool eligible;
	int r;

	r = segment_at(owner, page_addr(block, first), block->addr + (uint64_t)end * HMM_PAGE_SIZE,
		       &segment);
	if (r) {
		result_range(job, first, end, r == -ESRCH ? HMM_PAGE_RESULT_ERROR : HMM_PAGE_RESULT_CHANGED);
		job->first = end;
		return false;
	}
	block_look_for_zap(block);
	stop = first + (unsigned int)((segment.end - segment.start) >> HMM_PAGE_SHIFT);
	eligible = segment.result == HMM_PAGE_RESULT_MOVED;

	/* First what is S: it only has to leave the CPU. */
	if (eligible && owner->features & HMM_FEATURE_MOVE)
		want = out_wanted(job, block, first, stop, true);
	if (!pages_empty(&want)) {
		if (drop_begin(job, block, &want) == -EBUSY)
			TAILQ_INSERT_TAIL(&owner->slot_waiters, &job->task, link);
		return true;
	}
	if (eligible)
		want = out_wanted(job, block, first, stop, false);
	if (!pages_empty(&want)) {
		r = out_begin(job, block, &segment, &want);
		if (r == -EBUSY) {
			TAILQ_INSERT_TAIL(&owner->slot_waiters, &job->task, link);
			return true;
		}
	}
	for (unsigned int i = first; i < stop; i++) {
		enum hmm_page_result result = out_result(job, block, i);

		if (pages_test(&want, i)) {
			if (r)
				result_set(job, i, out_error(r));
			continue;	/* reported when the order is done */
		}
		if (result == HMM_PAGE_RESULT_MOVED)
			result = pages_test(&block->zapping, i) ? HMM_PAGE_RESULT_CHANGED :
			       page_state(block, i) == HMM_PAGE_SHARED ? HMM_PAGE_RESULT_UNDECLARED :
									 segment.result;
		result_set(job, i, result);
	}
	job->first = stop;
	return !pages_empty(&want) && !r;
}

/* Another device holds pages of it: they come home first. True: under way. */
static bool leave_other(struct job *job, struct block *block)
{
	struct mirror *holder = block_mirror(block);
	struct pages pages;

	if (!holder || holder == job->migration->mirror)
		return false;
	if (block_pages_in(block, HMM_PAGE_SHARED, 0, HMM_BLOCK_PAGES, &pages)) {
		unshare_begin(block, &pages, HMM_REASON_MIGRATE, job);
		return true;
	}
	if (block_pages_in(block, HMM_PAGE_DEVICE, 0, HMM_BLOCK_PAGES, &pages)) {
		home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, job);
		return true;
	}
	return false;
}

static void job_run_out(struct job *job)
{
	struct migration *migration = job->migration;
	struct owner *owner = migration->owner;
	struct block *block = block_get(owner, job->block);
	enum hmm_page_result giving_up = HMM_PAGE_RESULT_ERROR;

	if (block && !block_at_rest(block)) {
		block_park(block, &job->task);
		return;
	}
	if (job->again) {
		job->first = job->begin;
		job->again = false;
	}
	if (block && !owner->gone && !owner->closing && !migration->mirror->leaving) {
		while (job->rounds++ < ROUNDS_MAX && job->first < job->end)
			if (leave_other(job, block) || out_step(job, block))
				return;
		giving_up = HMM_PAGE_RESULT_CHANGED;
	}
	result_range(job, job->first, job->end, giving_up);
	if (block)
		block_settle_later(block);
	job_finish(job);
}

static void job_run(struct task *task)
{
	struct job *job = (struct job *)task;

	if (job->migration->to_device)
		job_run_out(job);
	else
		job_run_home(job);
}

void job_block_done(struct job *job, int result)
{
	struct owner *owner = job->migration->owner;

	if (result != -EAGAIN && result != -ENOMEM) {
		job_again(job);
		return;
	}
	/* When the event has been read, or the owner's cgroup has room again. */
	TAILQ_INSERT_TAIL(&owner->retry, &job->task, link);
	worker_alarm(owner->worker,
		     owner->worker->now + (result == -EAGAIN ? 50 * NS_PER_US : NS_PER_MS));
}

/* ---- beginning ------------------------------------------------------------------------------ */

static int start_job(struct migration *migration, uint64_t block, uint64_t from, uint64_t to)
{
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return -ENOMEM;
	job->task.run = job_run;
	job->migration = migration;
	job->block = block;
	job->first = job->begin = (unsigned int)((from - block) >> HMM_PAGE_SHIFT);
	job->end = (unsigned int)((to - block) >> HMM_PAGE_SHIFT);
	migration->running++;
	owner_queue(migration->owner, &job->task);
	return 0;
}

static void migration_start_jobs(struct migration *migration)
{
	while (migration->running < JOBS_AT_A_TIME && migration->next < migration->end) {
		uint64_t block = migration->next & ~(HMM_BLOCK_SIZE - 1);
		uint64_t to = block + HMM_BLOCK_SIZE;

		if (!migration->results && !migration->to_device) {
			/* All that there is, however far apart. */
			struct block *next = block_next(migration->owner, block, migration->end);

			if (!next) {
				migration->next = migration->end;
				return;
			}
			block = next->addr;
			to = block + HMM_BLOCK_SIZE;
			if (migration->next < block)
				migration->next = block;
		}
		if (to > migration->end)
			to = migration->end;
		if (start_job(migration, block, migration->next, to)) {
			log_error("owner %u: out of memory: a migration ends early", migration->owner->id);
			migration->next = migration->end;
			return;
		}
		migration->next = to;
	}
}

static struct migration *migration_new(struct owner *owner, uint64_t start, uint64_t end, bool results)
{
	struct migration *migration = calloc(1, sizeof(*migration));

	if (!migration)
		return NULL;
	migration->owner = owner;
	migration->start = migration->next = start;
	migration->end = end;
	if (results) {
		size_t pages = (end - start) >> HMM_PAGE_SHIFT;

		migration->results = malloc(pages);
		if (!migration->results) {
			free(migration);
			return NULL;
		}
		memset(migration->results, HMM_PAGE_RESULT_ERROR, pages);
	}
	return migration;
}

static void migration_begin(struct migration *migration)
{
	migration->owner->jobs++;
	if (migration->to_device)
		migration->mirror->migrations++;
	if (migration->to_device)
		vma_refresh_threads(migration->owner, migration->letter ? 0 : NS_PER_MS);
	migration_start_jobs(migration);
	migration_check(migration);
}

void migrate_request(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_migrate *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);
	struct migration *migration;

	if (!mirror) {
		letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
		worker_reply(owner->worker, letter);
		return;
	}
	migration = migration_new(owner, message->addr, message->addr + message->length, true);
	if (!migration) {
		letter_fail(letter, -ENOMEM, "out of memory for a migration of %lu bytes",
			    message->length);
		worker_reply(owner->worker, letter);
		return;
	}
	migration->letter = letter;
	migration->to_device = message->target == HMM_TARGET_DEVICE;
	migration->populate = message->flags & HMM_MIGRATE_FLAGS_POPULATE;
	migration->mirror = mirror;
	migration->only = mirror->device;
	migration_begin(migration);
}

void migrate_home(struct owner *owner, uint64_t start, uint64_t end, const struct device *device,
		  migrate_done done, void *data)
{
	struct migration *migration = migration_new(owner, start, end, false);

	if (!migration) {
		log_error("owner %u: out of memory: its pages stay on the device for now", owner->id);
		done(owner, data, 0);
		return;
	}
	migration->only = device;
	migration->done = done;
	migration->data = data;
	migration_begin(migration);
}

static void window_migrated(struct owner *owner, void *data, uint64_t pages)
{
	(void)pages;
	owner_queue(owner, data);
}

void migrate_for_window(struct block *block, struct mirror *mirror, uint64_t addr, unsigned int pages,
			struct task *task, uint8_t *result)
{
	uint64_t start = addr & ~(HMM_PAGE_SIZE - 1), end = block->addr + HMM_BLOCK_SIZE;
	struct owner *owner = block->owner;
	struct migration *migration;

	*result = HMM_PAGE_RESULT_ERROR;
	if (pages == HMM_BLOCK_PAGES)
		start = block->addr;
	else if (end - start > (uint64_t)pages << HMM_PAGE_SHIFT)
		end = start + ((uint64_t)pages << HMM_PAGE_SHIFT);
	migration = migration_new(owner, start, end, false);
	if (!migration) {
		owner_queue(owner, task);
		return;
	}
	migration->to_device = true;
	migration->populate = true;
	migration->mirror = mirror;
	migration->one_result = result;
	migration->one_page = addr & ~(HMM_PAGE_SIZE - 1);
	migration->done = window_migrated;
	migration->data = task;
	migration_begin(migration);
}
