/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * home.c - pages on their way back to the CPU: D to I or S by UFFDIO_COPY, and
 * S to I by lifting the protection. Runs on the owner's worker.
 *
 * Happy path of a CPU fault: fault.c picks the pages, home_begin() opens the
 * transit, home_proceed() (at once, or when drivers have answered) freezes
 * what windows map, copies the faulting page, then the rest, and punches what
 * windows must not see any more. Without windows nothing is punched before the
 * CPU goes on: what lingers in the shadow is "stale" and goes when the block
 * settles, or at once where the owner's memory cgroup has no room for both.
 *
 * What can fail: EAGAIN (the map is changing: the fault is retried when the
 * event has been read), ENOENT (unmapped: the event will say so), EEXIST (the
 * CPU has a page: it wins), ESRCH (the owner is gone).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/breakage.h"
#include "engine/notice.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

/* Of a page in a slot, 1 ms apart. One that the hardware has lost can never be read. */
#define READ_TRIES_MAX	2000U

/*
 * Where it does not lie in the slot the read fails, and waits for nobody. Where it does, memory may be short for a moment: whoever asks has no
 * second chance.
 */
static bool read_slot(const struct owner *owner, uint64_t addr, void *bounce)
{
	for (unsigned int tries = 0; tries < READ_TRIES_MAX; tries++) {
		uint64_t entry = 0;
		int r;

		if (kernel->mem_read(owner->mem, addr, bounce, HMM_PAGE_SIZE) == (ssize_t)HMM_PAGE_SIZE)
			return true;
		r = kernel->pagemap_read(owner->pagemap, addr, 1, &entry);
		if (r == -ESRCH || (!r && !(entry & (PM_PRESENT | PM_SWAP))))
			return false;
		usleep(1000);
	}
	log_error("owner %u: a page that is leaving can't be read: it reads zeros where it is wanted", owner->id);
	return false;
}

const void *page_bytes(struct block *block, unsigned int i, void *bounce)
{
	enum hmm_page_state state = page_state(block, i);
	struct owner *owner = block->owner;

	if (!block_at_rest(block)) {
		bool pending = block->record->pending[i / 64] >> (i % 64) & 1;

		/* Discarded, whether or not its drivers have answered. */
		if (pages_test(&block->dead, i) ||
		    (pending && block->record->transit == HMM_TRANSIT_UNSHARING))
			return NULL;
	}
	if (page_is_far(block, i))
		return NULL;
	if (state == HMM_PAGE_DEVICE || state == HMM_PAGE_SHARED || state == HMM_PAGE_COHERENT) {
		const struct shadow *shadow = block_shadow(block);

		return shadow ? shadow_at(shadow, page_addr(block, i)) : NULL;
	}
	if (block->order && block->order->kind == HMM_ORDER_OUT_MOVE &&
	    pages_test(&block->order->want, i)) {
		const struct shadow *shadow = block_shadow(block);

		/* Under a window what is filled may have been written to already. */
		if (block->order->flags & HMM_ORDER_VISIBLE && shadow && !pages_test(&block->stale, i) &&
		    shadow_has_data(shadow, page_addr(block, i), HMM_PAGE_SIZE))
			return shadow_at(shadow, page_addr(block, i));
		if (read_slot(owner, slot_addr(owner, block->order->slot) + (uint64_t)i * HMM_PAGE_SIZE, bounce))
			return bounce;
	}
	return NULL;
}

/* Guard pages raise no event and COPY overwrites them: look first. */
static void drop_guarded(struct block *block, struct pages *pages)
{
	struct owner *owner = block->owner;
	uint64_t entries[HMM_BLOCK_PAGES];
	unsigned int first = 0, end;

	if (!(owner->features & HMM_FEATURE_GUARD))
		return;
	for (; pages_run(pages, &first, &end); first = end) {
		if (kernel->pagemap_read(owner->pagemap, page_addr(block, first), end - first, entries))
			return;
		for (unsigned int i = first; i < end; i++)
			if (entries[i - first] & PM_GUARD) {
				/* Installing it threw the page away. */
				pages_clear(pages, i);
				block_bury(block, i);
			}
	}
}

/*
 * How pages come home. Those that a window maps stay protected until the window
 * has let go of them: else the CPU could write while a driver still reads the copy.
 */
static uint64_t copy_mode(bool share, bool windows)
{
	if (share)
		return broken("skip-wp") ? 0 : UFFDIO_COPY_MODE_WP;
	return windows ? UFFDIO_COPY_MODE_WP | UFFDIO_COPY_MODE_DONTWAKE : 0;
}

/* The windows have let go: the CPU may write, and whoever waits goes on. */
static void release_home(struct block *block, const struct pages *done)
{
	unsigned int first = 0, end;

	for (; pages_run(done, &first, &end); first = end) {
		uint64_t start = page_addr(block, first), length = (uint64_t)(end - first) << HMM_PAGE_SHIFT;

		/* -EAGAIN leaves the protection on a page that is I: its next write fault lifts it. */
		if (kernel->uffd_protect(block->owner->uffd, start, length, false))
			fault_wake(block->owner, start, length);
	}
}

/*
 * Copies pages [first, end) home. Fills @done, and @lost with what nobody can read any more; returns 0, or why it stopped:
 * -EAGAIN, -ESRCH, -ENOMEM...
 */
static int copy_run(struct block *block, struct shadow *shadow, unsigned int first, unsigned int end,
		    uint64_t mode, struct pages *done, struct pages *lost)
{
	struct owner *owner = block->owner;

	while (first < end) {
		uint64_t addr = page_addr(block, first);
		size_t length = (size_t)(end - first) << HMM_PAGE_SHIFT, copied;
		int r;

		if (broken("swap-steps"))
			kernel->punch(shadow->fd, addr - shadow->base, length);
		if (broken("drop-wake"))
			mode |= UFFDIO_COPY_MODE_DONTWAKE;
		owner_policy(owner, true);
		r = kernel->uffd_copy(owner->uffd, addr, shadow_at(shadow, addr), length, mode, &copied);
		owner_policy(owner, false);

		for (; copied; copied -= HMM_PAGE_SIZE)
			pages_set(done, first++);
		if (!r)
			return 0;
		if (first == end)
			return 0;
		switch (r) {
		case -EEXIST:
			/* The CPU has one: it wins, and the copy is void. Nobody was woken by this. */
			block_bury(block, first);
			fault_wake(owner, page_addr(block, first), HMM_PAGE_SIZE);
			pages_set(done, first++);
			break;
		case -ENOENT:
		case -EINVAL:
			/* Unmapped, or a mapping's edge inside the run: page by page. */
			if (end - first > 1) {
				unsigned int middle = first + (end - first) / 2;

				r = copy_run(block, shadow, first, middle, mode, done, lost);
				if (r)
					return r;
				first = middle;
			} else {
				first++;
			}
			break;
		case -EFAULT:
			if (!shadow_is_lost(shadow_at(shadow, page_addr(block, first))))
				return -ENOMEM;	/* to read it: the kernel does not tell */
			pages_set(lost, first++);
			break;
		default:
			return r;
		}
	}
	return 0;
}

/*
 * The device's memory has failed there: SIGBUS for whoever touches it, as for what its driver has lost. At rest, where any page may become E.
 * Where something has begun already it is found once more.
 */
static void lose(struct block *block, const struct pages *lost)
{
	if (pages_empty(lost) || !block_at_rest(block))
		return;
	transit_withdraw(block, lost);
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (pages_test(lost, i) && page_state(block, i) == HMM_PAGE_DEVICE)
			far_lose(block, i);
	log_error("owner %u: %u pages of %#lx are lost, for the memory that they lay in has failed; a touch is SIGBUS", block->owner->id,
		  pages_count(lost), block->addr);
}

/* What stayed on the device may be written there again. */
static void release_device(struct block *block, unsigned int first, unsigned int end)
{
	struct pages device;

	block_pages_in(block, HMM_PAGE_DEVICE, first, end, &device);
	for (first = 0; pages_run(&device, &first, &end); first = end)
		window_protect(block, first, end, false);
}

static enum hmm_page_state state_after(const struct block *block, unsigned int i,
				       const struct pages *done)
{
	if (pages_test(&block->dead, i))
		return HMM_PAGE_INVALID;
	if (!pages_test(done, i))
		return HMM_PAGE_DEVICE;
	return block->move.share ? HMM_PAGE_SHARED : HMM_PAGE_INVALID;
}

static void home_proceed(struct block *block)
{
	struct owner *owner = block->owner;
	struct shadow *shadow = block_shadow(block);
	struct pages want = block->move.want, done = { 0 }, lost = { 0 };
	unsigned int served = block->move.first, first, end;
	bool windows = block_has_window(block), share = block->move.share;
	struct job *job = block->move.job;
	uint64_t mode = copy_mode(share, windows);
	int r = 0;

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		want.word[w] &= ~block->dead.word[w];
	if (windows)
		for (first = 0; !r && pages_run(&want, &first, &end); first = end)
			if (window_protect(block, first, end, true))
				r = -EAGAIN;	/* it may be written meanwhile: nothing is copied */
	if (r)
		want = (struct pages){ 0 };

	if (served < HMM_BLOCK_PAGES && pages_test(&want, served)) {
		r = copy_run(block, shadow, served, served + 1, mode, &done, &lost);
		pages_clear(&want, served);
	}
	if (!r && !pages_empty(&want)) {
		drop_guarded(block, &want);
		for (first = 0; !r && pages_run(&want, &first, &end); first = end)
			r = copy_run(block, shadow, first, end, mode, &done, &lost);
	}

	/* The rest stays where it was; dead pages are nowhere any more. */
	for (first = 0; pages_run(&block->move.want, &first, &end); first = end)
		for (unsigned int i = first; i < end; i++)
			block_set_state(block, i, i + 1, state_after(block, i, &done));
	block->touched = true;
	block->record->flags &= ~HMM_BLOCK_HUGE;
	notice_home(block, &done);
	/* What is in both places is charged to the owner twice. */
	if (windows || owner_near_limit(owner, pages_count(&done)))
		block_punch_stale(block);
	if (windows) {
		if (!share)
			release_home(block, &done);
		for (first = 0; pages_run(&block->move.want, &first, &end); first = end) {
			release_device(block, first, end);
			window_wake(block, first, end);
		}
	}
	owner_count(owner, COUNTER_PAGES_HOME, pages_count(&done));
	attribute_note_left(block, &done);
	if (r == -EAGAIN)
		owner_count(owner, COUNTER_RETRIES, 1);
	if (r == -ESRCH)
		owner->gone = true;
	if (served < HMM_BLOCK_PAGES && !pages_test(&done, served)) {
		if (r == -EAGAIN || r == -ENOMEM)
			fault_later(owner, page_addr(block, served), block->move.fault_flags);
		else
			fault_wake(owner, page_addr(block, served), HMM_PAGE_SIZE);
	}
	if (r && r != -EAGAIN && r != -ESRCH)
		log_warn("owner %u: pages at %#lx could not come home: %s", owner->id, block->addr,
			 strerror(-r));
	transit_end(block);
	lose(block, &lost);
	block_settle_later(block);
	job_came(job, block, &done);
	if (job)
		job_block_done(job, r);
}

void home_begin(struct block *block, const struct pages *pages, unsigned int first, bool share,
		int reason, uint64_t fault_flags, struct job *job)
{
	struct pages here = *pages;

	/* Half of a page is of no use to a device that cannot be kept from writing it. */
	share = share && block_mirror(block) && device_shares(block_mirror(block)->device);
	/* What is far was not fetched, for nobody waits for it. */
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (page_is_far(block, i))
			pages_clear(&here, i);
	block->move.want = here;
	block->move.first = first;
	block->move.share = share;
	block->move.fault_flags = fault_flags;
	block->move.job = job;
	if (job && job_is_cheap(job))
		transit_ask(block, HMM_TRANSIT_HOME_COPY, &here, reason, home_proceed, job_refused);
	else
		transit_begin(block, share ? HMM_TRANSIT_SHARING : HMM_TRANSIT_HOME_COPY, &here, reason,
			      home_proceed);
}

static void unshare_proceed(struct block *block)
{
	struct owner *owner = block->owner;
	struct pages *want = &block->move.want, shared = { 0 };
	struct job *job = block->move.job;
	unsigned int first = 0, end;

	/* The copy goes before the CPU may write: windows are emptied first. */
	for (; pages_run(want, &first, &end); first = end) {
		/* What was R was never on the device: only its entry has gone. */
		for (unsigned int i = first; i < end; i++)
			if (page_state(block, i) == HMM_PAGE_SHARED)
				pages_set(&shared, i);
		block_set_state(block, first, end, HMM_PAGE_INVALID);
	}
	if (block->move.reason == HMM_REASON_EVICT)
		notice_pages(block, HMM_EVENT_KIND_EVICT, &shared);
	if (block_has_window(block))
		block_punch_stale(block);
	for (first = 0; pages_run(want, &first, &end); first = end) {
		/*
		 * -EAGAIN leaves the protection on a page that is I now: the
		 * next write fault finds that and lifts it.
		 */
		if (kernel->uffd_protect(owner->uffd, page_addr(block, first),
					 (size_t)(end - first) << HMM_PAGE_SHIFT, false))
			fault_wake(owner, page_addr(block, first),
				   (uint64_t)(end - first) << HMM_PAGE_SHIFT);
		if (block_has_window(block))
			window_wake(block, first, end);
	}
	attribute_note_left(block, &shared);
	job_came(job, block, want);
	transit_end(block);
	block_settle_later(block);
	if (job)
		job_block_done(job, 0);
}

void unshare_begin(struct block *block, const struct pages *pages, int reason, struct job *job)
{
	block->move.want = *pages;
	block->move.job = job;
	if (job && job_is_cheap(job))
		transit_ask(block, HMM_TRANSIT_UNSHARING, pages, reason, unshare_proceed, job_refused);
	else
		transit_begin(block, HMM_TRANSIT_UNSHARING, pages, reason, unshare_proceed);
}
