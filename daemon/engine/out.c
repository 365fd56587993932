/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * out.c - a job on the way to the device. Runs on the owner's worker.
 *
 * Happy path: out_step() looks at one mapping of the block, out_begin() takes a
 * staging slot and charges the pool, the transit opens, and when the drivers
 * have answered out_proceed() orders the agent to MOVE the pages into the slot
 * and fill the shadow; what it reports becomes D in migrate_out_done(). S pages
 * only have to leave the CPU (DROP); if they will not, they become I first. Without
 * UFFDIO_MOVE, and only where the program promised that nothing pins its pages: protect,
 * fill, zap.
 *
 * A page that can't go gets its reason as its result; the others go.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "engine/breakage.h"
#include "engine/far_bar.h"
#include "engine/fork.h"
#include "engine/job.h"
#include "engine/notice.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

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

/*
 * While drivers answered part of it was unmapped. What is mapped there now is another
 * memory, and MOVE would take it: all of it is looked at anew.
 */
static bool out_is_stale(struct block *block)
{
	struct job *job = block->move.job;

	if (pages_empty(&block->dead) || broken("skip-dead"))
		return false;
	job->again = true;
	transit_restore(block);
	block_recharge(block);
	block_settle_later(block);
	job_block_done(job, -EAGAIN);
	return true;
}

static void out_proceed(struct block *block)
{
	struct owner *owner = block->owner;
	struct job *job = block->move.job;
	unsigned int first = 0, end;
	uint32_t kind = HMM_ORDER_OUT_MOVE;

	if (out_is_stale(block))
		return;
	/*
	 * What windows can see is filled page by page, each appearing with its
	 * bytes; else as one huge page, whose zeros come before the bytes.
	 */
	if (block_in_window(block))
		job->order_flags = HMM_ORDER_VISIBLE;
	if (block->record->transit == HMM_TRANSIT_OUT_ZAP) {
		kind = HMM_ORDER_OUT_ZAP;
		/* The CPU has the pages until they are zapped: no window shows by itself what is filled before that. */
		window_guard(block);
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
	if (out_is_stale(block))
		return;
	order_issue(block->owner, HMM_ORDER_DROP, block, block->record->slot, &block->move.want, 0);
}

static void drop_done(struct block *block, const struct block_order *order,
		      const struct hmm_order *shared)
{
	struct job *job = block->move.job;
	struct pages gone = { 0 };
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
			pages_set(&gone, i);
			moved++;
		} else {
			block_set_state(block, i, i + 1, HMM_PAGE_SHARED);
			pages_set(&job->kept, i);
			job->again = true;
		}
	}
	block->touched = true;
	block_touch(block);
	owner_count(block->owner, COUNTER_PAGES_TO_DEVICE, moved);
	notice_pages(block, HMM_EVENT_KIND_MIGRATE_OUT, &gone);
	slot_release(block->owner, order->slot);
	if (block_has_window(block))
		block_punch_void(block, &block->dead);
	transit_end(block);
	if (block_has_window(block)) {
		block_punch_stale(block);
		window_arrived(block);
		window_wake(block, 0, HMM_BLOCK_PAGES);
	}
	job_block_done(job, 0);
}

/*
 * For how long a job gives its order anew, that ended before it was through: it was taken back, since
 * somebody waited for a page and the agent was late, or the map was changing. Whoever waited is served in between.
 */
#define CUT_SHORT_NS	(1000 * NS_PER_MS)

static bool may_go_on(const struct job *job, const struct worker *worker)
{
	return !job->cut_short || worker->now - job->cut_short < CUT_SHORT_NS;
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
	struct pages gone = { 0 };
	struct mirror *mirror = block_mirror(block);
	bool far = device_is_far(mirror->device);
	struct pages here_now = { 0 };

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
			/* Half-way, where the bytes have to go on to the driver. */
			if (far) {
				pages_set(&here_now, i);
			} else {
				result_set(job, i, HMM_PAGE_RESULT_MOVED);
				pages_set(&gone, i);
			}
			moved++;
		} else {
			enum hmm_page_result result = refused(shared, i);

			block_set_state(block, i, i + 1, HMM_PAGE_INVALID);
			if (is_guard(block, i))
				result = HMM_PAGE_RESULT_SPECIAL;
			if (result == HMM_PAGE_RESULT_CHANGED && may_go_on(job, owner->worker))
				job->again = true;
			else
				result_set(job, i, result);
			if (zap)
				kernel->uffd_protect(owner->uffd, page_addr(block, i), HMM_PAGE_SIZE,
						     false);
			kept++;
		}
	}
	if (job->again && !job->cut_short)
		job->cut_short = owner->worker->now;
	/* What was charged and not used goes back, unless a huge page was filled. */
	if (kept && !pool_is_huge(mirror->device->pool->kind))
		block_uncharge(block, kept);
	if (shared->flags & HMM_ORDER_HUGE_MOVED && moved == HMM_BLOCK_PAGES) {
		block->record->flags |= HMM_BLOCK_HUGE;
		block->went_huge = true;
		owner_count(owner, COUNTER_HUGE_TO_DEVICE, 1);
	}
	block->touched = false;
	block_touch(block);
	owner_count(owner, COUNTER_PAGES_TO_DEVICE, moved);
	notice_pages(block, HMM_EVENT_KIND_MIGRATE_OUT, &gone);
	/* Without MOVE it was only a permit. */
	if (zap)
		slot_put(owner, order->slot);
	else
		slot_release(owner, order->slot);
	if (block_has_window(block))
		block_punch_void(block, &block->dead);
	transit_end(block);
	if (!moved)
		block_settle_later(block);
	if (block_has_window(block)) {
		block_punch_stale(block);
		window_arrived(block);
		window_wake(block, 0, HMM_BLOCK_PAGES);
	}
	if (pages_empty(&here_now))
		job_block_done(job, job->again ? -EAGAIN : 0);
	else
		far_store(block, &here_now, job);
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

/*
 * Its charge failed. -EINPROGRESS: it waits for room. -ENOSPC: there will be none.
 * -EAGAIN: there may be; a touch of a window can't do without and comes again.
 */
static int wait_for_room(struct job *job, uint64_t bytes)
{
	struct migration *migration = job->migration;
	struct owner *owner = migration->owner;
	char text[200];
	int r;

	/* Nothing is brought home from memory that only the driver reaches: it has a free() of its own. */
	if (device_is_far(migration->mirror->device))
		return -ENOSPC;
	r = migration->full ? -ENOSPC : evict_wait(owner, migration->mirror->device, bytes,
						       migration->journey, &job->task, &job->room);

	if (!r)
		return -EINPROGRESS;
	if (r == -EAGAIN && migration->one_result)
		return r;
	if (!migration->full) {
		evict_explain(owner->worker, migration->mirror->device, bytes, text, sizeof(text));
		log_debug("owner %u: nothing more can make way: %s", owner->id, text);
	}
	migration->full = true;
	return -ENOSPC;
}

/* Without MOVE pins can't be seen: only what the program declared. */
static bool may_leave(const struct owner *owner, const struct segment *segment)
{
	return owner->features & HMM_FEATURE_MOVE ||
	       attribute_covers(&owner->attributes, segment->start, segment->end, HMM_ATTRIBUTE_UNPINNED);
}

/*
 * What was unmapped between the look at it and its registration nobody tells of, and what is mapped there next is not registered:
 * MOVE would take its pages all the same, and the CPU would find zeros. From now on a change is told.
 */
static int arm_all(struct block *block, const struct segment *segment)
{
	struct kernel_vma vma;
	int r = block_arm(block, segment->start, segment->end);

	if (!r)
		r = mapping_at(block->owner, segment->start, &vma);
	if (r)
		return r;
	return vma.start <= segment->start && vma.end >= segment->end ? 0 : -EAGAIN;
}

static int out_begin(struct job *job, struct block *block, const struct segment *segment,
		     const struct pages *want)
{
	struct migration *migration = job->migration;
	struct owner *owner = migration->owner;
	struct mirror *mirror = migration->mirror;
	bool move = owner->features & HMM_FEATURE_MOVE;
	bool whole = move && pages_count(want) == HMM_BLOCK_PAGES;
	unsigned int charge = pool_is_huge(mirror->device->pool->kind) ? HMM_BLOCK_PAGES : pages_count(want);
	struct shadow *shadow;
	int r, slot;

	if (!may_leave(owner, segment))
		return -ENOTSUP;
	if (far_bar_is_recalled(mirror))
		return -ENOSPC;
	if (far_bar_is_lost(mirror))
		return -EIO;
	if (device_is_far(mirror->device) && !mirror->ready)
		return -EAGAIN;		/* its driver is not there, or not there again */
	/* Nor may anything lie there that was a copy, whoever held the block last. */
	if (block_mirror(block) != mirror && !block_punch_stale(block))
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
	r = block_charge(block, mirror->device, charge);
	if (r) {
		slot_put(owner, (unsigned int)slot);
		block_settle_later(block);
		/* No other's pages make way for what this one may not have. */
		if (r == -EDQUOT)
			return r;
		return wait_for_room(job, (uint64_t)charge << HMM_PAGE_SHIFT);
	}
	block->brought = migration->journey;
	job->room = (struct room_wait){ 0 };
	r = shadow_reserve(shadow, block->addr);
	if (!r)
		r = arm_all(block, segment);
	if (r) {
		slot_put(owner, (unsigned int)slot);
		block_recharge(block);
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
	case -EDQUOT:
		return HMM_PAGE_RESULT_QUOTA;
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

static struct pages pages_both(const struct pages *one, const struct pages *other)
{
	struct pages both;

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		both.word[w] = one->word[w] & other->word[w];
	return both;
}

/* One mapping's worth. True: under way, the job will be run again. */
static bool out_step(struct job *job, struct block *block)
{
	struct owner *owner = block->owner;
	struct pages want = { 0 }, kept;
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

	/*
	 * First what is S: it only has to leave the CPU. Without MOVE it is made I, which may go. So is what
	 * MOVE would not take: the agent breaks what a child shares, or has shared, only where the CPU may write.
	 */
	if (eligible && may_leave(owner, &segment))
		want = out_wanted(job, block, first, stop, true);
	kept = owner->features & HMM_FEATURE_MOVE ? pages_both(&want, &job->kept) : want;
	if (!pages_empty(&kept)) {
		unshare_begin(block, &kept, HMM_REASON_MIGRATE, job);
		return true;
	}
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
		if (r == -EINPROGRESS)
			return true;
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
			       eligible && page_state(block, i) == HMM_PAGE_SHARED ? HMM_PAGE_RESULT_UNDECLARED :
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
		if (far_fetch(block, &pages, HMM_BLOCK_PAGES, 0, HMM_REASON_MIGRATE, &job->task))
			return true;
		home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, job);
		return true;
	}
	return false;
}

void job_run_out(struct job *job)
{
	struct migration *migration = job->migration;
	struct owner *owner = migration->owner;
	enum hmm_page_result giving_up = HMM_PAGE_RESULT_ERROR;
	struct block *block;

	if (!migration->mirror->leaving && fork_holds(owner, &job->task))
		return;
	block = block_get(owner, job->block);
	if (block && !block_at_rest(block) && !owner->gone) {
		block_park(block, &job->task);
		return;
	}
	if (job->again) {
		job->first = job->begin;
		job->again = false;
	}
	if (block && !owner->gone && !owner->closing && !migration->mirror->leaving) {
		/* What is there already is its, too: it is no room for the rest. */
		if (block->charged_to == migration->mirror) {
			block->brought = migration->journey;
			block_touch(block);
		}
		while (job->rounds++ < ROUNDS_MAX && job->first < job->end)
			if (leave_other(job, block) || far_settle(block, job) || out_step(job, block))
				return;
		giving_up = HMM_PAGE_RESULT_CHANGED;
		if (migration->share && share_block(job, block))
			return;
	}
	result_range(job, job->first, job->end, giving_up);
	if (block)
		block_settle_later(block);
	job_finish(job);
}
