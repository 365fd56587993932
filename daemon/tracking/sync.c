/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sync.c - the copies that a tracked mirror's device has: a track with room on the device, and
 * how a copy is brought up to date. Runs on the owner's worker.
 *
 * Happy path: a range is charged when it begins to be tracked, whole, so that a sync never finds the
 * device full. A sync goes through its range in pieces: what of it is on a device comes home; the
 * look, which marks the track and has the kernel note writes anew; the marks are taken. When the pieces of a
 * region are through the owner's agent is given orders for what the marks say, some at a time, each a list of runs of
 * pages: a look while it copies would interrupt it for each page table that has marks (twice the time). A
 * write that comes after the look is found by the next one, whether or not the agent has copied it. What
 * an order did not copy is marked again, so that nothing is lost, whatever the agent, its
 * process or the driver does. Another sync of the range waits for the first to end: it would find nothing
 * marked, and answer before the bytes are there.
 *
 * When the driver takes the range back, or is gone, what the agent has not begun is taken back from it, so
 * that an owner that is stopped keeps nobody; the one order that it is at is waited for, with the track and its
 * room, since it may write to the shadow. Of an owner that closes that one, too: nobody uses the room anew.
 *
 * A restarted hmmd has the mirror and its shadows, and knows of no range: what was written meanwhile nobody can tell it,
 * so it keeps no track over its death, and the charge is a track's. It is made when the library begins the range
 * anew, with the next sync; whoever has taken the room by then keeps it (-ENOSPC), and the copy stays as it was.
 *
 * The shadow holds the copy and nothing else: no page of such a mirror is in the ledger. It is never
 * written by hmmd. Where the owner has no page the copy has a hole, which reads as zeros.
 *
 * What can fail: memory; the look; pages that can't be read however often they are tried. Then
 * the answer is an error, and what was not copied counts as written.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/worker.h"
#include "log.h"
#include "tracking/tracking.h"
#include "uapi.h"

/* Looked at in one turn. */
#define PIECE		(64UL << 20)
/* In the agent's hands at a time: it need not wait for us, and others' orders need not wait for long. */
#define ORDERS_MAX	8U
/* How often what could not be copied, or does not come home, is tried again, a millisecond apart. */
#define TRIES_MAX	16U

_Static_assert(HMM_REGION_SIZE % PIECE == 0,
	       "a piece that begins at a multiple lies in one region");
_Static_assert(HMM_REGION_SIZE >> HMM_PAGE_SHIFT == 1UL << HMM_RUN_PAGE_BITS,
	       "a run names any page of a region");

struct sync {
	struct task task;
	struct owner *owner;
	struct letter *letter;
	struct track *track;		/* it stays while this runs */
	struct hmm_msg_mirror_sync_reply *reply;
	uint64_t end;
	uint64_t stop;			/* what is looked at before any of it is copied ends here: one region's, at most */
	uint64_t from, at;		/* of it, pieces whose marks were taken: none, if they are equal */
	uint64_t next;			/* in them: no order was given yet from here on */
	uint64_t *bits;			/* the marks, from the page at @from on; no more room than the track's own take */
	uint64_t *presumed;		/* of these, what nobody saw being written */
	size_t words;			/* of either */
	unsigned int orders;		/* in the agent's hands */
	bool listed;			/* the task is in some list, or will be put in one */
	bool looked;			/* at all of the owner at once */
	bool again;			/* what could not be copied is tried once more */
	unsigned int tries;
	unsigned int home_tries;	/* of this piece */
	uint64_t left, left_start, left_end;	/* pages that could not be copied this time, and where */
	int error;
};

/* ---- room ------------------------------------------------------------------------------- */

/* A huge page may be made of any part of it. */
static uint64_t room_for(const struct device *device, uint64_t start, uint64_t end)
{
	if (pool_is_huge(device->pool->kind)) {
		start &= ~(HMM_BLOCK_SIZE - 1);
		end = (end + HMM_BLOCK_SIZE - 1) & ~(HMM_BLOCK_SIZE - 1);
	}
	return end - start;
}

static bool overlaps(const struct track_list *tracks, const struct mirror *mirror, uint64_t start,
		     uint64_t end)
{
	const struct track *track;

	TAILQ_FOREACH(track, tracks, link)
		if (track->mirror == mirror && track->start < end && track->end > start)
			return true;
	return false;
}

int copies_check(struct owner *owner, struct letter *letter, uint32_t id, struct mirror **result)
{
	struct mirror *mirror = mirror_by_id(owner, id);

	if (!mirror || mirror->leaving || mirror->peer != letter->peer)
		return letter_fail(letter, -ENOENT, "no mirror %u", id);
	if (!mirror_is_tracked(mirror))
		return letter_fail(letter, -EOPNOTSUPP,
				   "mirror %u is not tracked: register one with HMM_MIRROR_TRACKED",
				   id);
	*result = mirror;
	return 0;
}

static void refuse_locked(void *data, uint64_t start, uint64_t end, unsigned int told)
{
	struct letter *letter = data;

	(void)end;
	if (told & KERNEL_TOLD_LOCKED && !letter->error)
		letter_fail(letter, -EOPNOTSUPP, "%#lx is locked, and a copy of it on a device may be swapped out: munlock() it first, or leave it out",
			    start);
}

int copies_begin(struct tracker *tracker, struct letter *letter, struct track *track,
		 struct mirror *mirror)
{
	struct device *device = mirror->device;
	uint64_t bytes = room_for(device, track->start, track->end);
	int r = kernel->told(mirror->owner->smaps, track->start, track->end, refuse_locked, letter);

	if (letter->error)
		return letter->error;
	if (r)
		return letter_fail(letter, r, "what the program has locked can't be read (smaps): %s", strerror(-r));
	/* Its end is yet to come, and would take the new copy for the old one. */
	if (overlaps(&tracker->leaving, mirror, track->start, track->end))
		return letter_fail(letter, -EAGAIN,
				   "a copy that was there is not gone yet; ask again");
	if (overlaps(&tracker->tracks, mirror, track->start, track->end))
		return letter_fail(letter, -EEXIST, "mirror %u tracks some of %#lx to %#lx already",
				   mirror->id, track->start, track->end);
	r = mirror_charge(mirror, bytes);
	if (r == -EDQUOT)
		return letter_fail(letter, r, "the copies are %lu KiB, more than 'memory' in [limits] of hmmd.conf leaves this user", bytes >> 10);
	if (r)
		return letter_fail(
			letter, -ENOSPC,
			"%s has no room for the copies: %lu KiB are wanted, %lu of %lu KiB are in use",
			device->name, bytes >> 10, atomic_load(&device->used) >> 10,
			atomic_load(&device->size) >> 10);
	track->mirror = mirror;
	track->charged = bytes;
	return 0;
}

static void punch(const struct mirror *mirror, uint64_t at, uint64_t end)
{
	while (at < end) {
		uint64_t stop = (at & ~(HMM_REGION_SIZE - 1)) + HMM_REGION_SIZE;
		const struct shadow *shadow = shadow_find(&mirror->shadows, at);

		if (stop > end)
			stop = end;
		if (shadow)
			kernel->punch(shadow->fd, at - shadow->base, stop - at);
		at = stop;
	}
}

void copies_end(struct track *track)
{
	const struct owner *owner;

	if (!track->mirror)
		return;
	/* With its owner a copy ends as it is: who looks at it goes on to do so, and the shadow goes with him. */
	owner = track->mirror->owner;
	if (!owner->gone && !owner->closing && !owner->abandoned)
		punch(track->mirror, track->start, track->end);
	mirror_uncharge(track->mirror, track->charged);
	track->mirror = NULL;
}

/* ---- what goes into an order -------------------------------------------------------------- */

/* What is mapped at an address, as far as that goes. */
struct ground {
	uint64_t start, end;
	uint32_t flags;			/* HMM_RUN_* of its pages */
};

/* Anonymous huge pages of hugetlbfs, which has a file behind them: nobody else can have written to it. */
static bool is_private_huge(const struct kernel_vma *vma)
{
	return !vma->shared && strncmp(vma->name, "/anon_hugepage", strlen("/anon_hugepage")) == 0;
}

/*
 * Where a file or another process may have put what this one has not mapped yet, the page is read in
 * any case; private memory is asked for what is there, so that nothing is faulted in for nothing.
 */
static int find_ground(struct owner *owner, uint64_t at, struct ground *ground)
{
	struct kernel_vma vma;
	int r = mapping_at(owner, at, &vma);

	if (r && r != -ENOENT)
		return r;
	ground->start = at;
	ground->flags = HMM_RUN_ZERO;
	if (r || vma.start > at) {
		ground->end = r ? HMM_VA_END : vma.start;
		return 0;
	}
	ground->start = vma.start;
	ground->end = vma.end;
	if (!vma.read || vma_is_special(&vma))
		ground->flags |= HMM_RUN_BARRED;
	else if (vma.shared || (vma.file && !is_private_huge(&vma)))
		ground->flags = HMM_RUN_BACKED;
	else
		ground->flags = 0;
	return 0;
}

/*
 * A page that is missing in an armed block is hmmd's to give, and the agent would wait for it: with hmmd dead
 * nobody could ever take the order back.
 */
static bool is_armed(struct owner *owner, uint64_t at)
{
	const struct block *block = block_find(owner, at & ~(HMM_BLOCK_SIZE - 1));

	return block && block->record->flags & HMM_BLOCK_ARMED;
}

static bool bit_of(const struct sync *sync, const uint64_t *bits, uint64_t at)
{
	uint64_t bit = (at - sync->from) >> HMM_PAGE_SHIFT;

	return bits[bit / 64] >> (bit % 64) & 1;
}

/* The next marked page at or after @at, or the end of what was looked at. */
static uint64_t next_marked(const struct sync *sync, uint64_t at)
{
	uint64_t bit = (at - sync->from) >> HMM_PAGE_SHIFT,
		 end = (sync->at - sync->from) >> HMM_PAGE_SHIFT;

	while (bit < end) {
		uint64_t word = sync->bits[bit / 64] >> (bit % 64);

		if (word) {
			bit += (uint64_t)__builtin_ctzll(word);
			break;
		}
		bit = (bit / 64 + 1) * 64;
	}
	return bit < end ? sync->from + (bit << HMM_PAGE_SHIFT) : sync->at;
}

/* As many runs as an order has room for, from sync->next on, which they pass. 0: there are no more. */
static int gather(struct sync *sync, struct ground *ground, uint32_t *run, uint32_t *runs)
{
	uint64_t pages = 0;

	*runs = 0;
	sync->next = next_marked(sync, sync->next);
	while (sync->next < sync->at && *runs < HMM_ORDER_RUNS && pages < HMM_BLOCK_PAGES) {
		uint64_t first = sync->next, stop = first, n = 0;
		bool presumed = bit_of(sync, sync->presumed, first);
		uint32_t flags;

		if (first < ground->start || first >= ground->end) {
			int r = find_ground(sync->owner, first, ground);

			/* What was gathered is passed already: it is given, and this comes up again. */
			if (r)
				return *runs ? 0 : r;
		}
		while (stop < sync->at && stop < ground->end && pages + n < HMM_BLOCK_PAGES &&
		       bit_of(sync, sync->bits, stop) &&
		       bit_of(sync, sync->presumed, stop) == presumed) {
			stop += HMM_PAGE_SIZE;
			n++;
		}
		flags = ground->flags;
		if (!flags && !presumed && !is_armed(sync->owner, first) &&
		    !is_armed(sync->owner, stop - 1))
			flags = HMM_RUN_SEEN;
		run[(*runs)++] =
			HMM_RUN((first & (HMM_REGION_SIZE - 1)) >> HMM_PAGE_SHIFT, n) | flags;
		pages += n;
		sync->next = next_marked(sync, stop);
	}
	return 0;
}

/* ---- orders ------------------------------------------------------------------------------------ */

static void mark_again(struct sync *sync, uint64_t start, uint64_t end)
{
	track_mark(sync->track, start, end);
	if (!sync->left || start < sync->left_start)
		sync->left_start = start;
	if (!sync->left || end > sync->left_end)
		sync->left_end = end;
	sync->left += (end - start) >> HMM_PAGE_SHIFT;
}

static void go_on(struct sync *sync)
{
	if (sync->listed)
		return;
	sync->listed = true;
	owner_queue(sync->owner, &sync->task);
}

void sync_order_done(const struct block_order *order, const struct hmm_order *shared)
{
	struct sync *sync = order->sync;
	bool done = shared->state == HMM_ORDER_DONE;
	unsigned int n = 0;

	sync->orders--;
	for (uint32_t i = 0; i < order->runs; i++) {
		uint64_t at =
			order->base + ((uint64_t)HMM_RUN_PAGE(order->run[i]) << HMM_PAGE_SHIFT);

		for (unsigned int k = HMM_RUN_PAGES(order->run[i]); k;
		     k--, n++, at += HMM_PAGE_SIZE) {
			if (done && shared->moved[n / 64] >> (n % 64) & 1)
				sync->reply->copied++;
			else if (done && shared->hole[n / 64] >> (n % 64) & 1)
				sync->reply->zeroed++;
			else
				mark_again(sync, at, at + HMM_PAGE_SIZE);
		}
		/* Then it comes to light with bytes that no look tells of. */
		if (order->run[i] & HMM_RUN_BARRED)
			track_mark(sync->track,
				   at - ((uint64_t)HMM_RUN_PAGES(order->run[i]) << HMM_PAGE_SHIFT),
				   at);
	}
	/* Its shadow has no room, or can't be had: trying again is of no use. */
	if (done && shared->error < 0 && shared->error >= -4095 && !sync->error)
		sync->error = shared->error;
	go_on(sync);
}

/* 1: the agent has enough, or will say when it has room; 0: all that was marked is in its hands, or done. */
static int give_orders(struct sync *sync)
{
	const struct shadow *shadow = shadow_find(&sync->track->mirror->shadows, sync->from);
	struct ground ground = { 0 };
	uint32_t run[HMM_ORDER_RUNS], runs;

	if (!shadow)
		return -ENOENT;
	while (sync->next < sync->at) {
		int r;

		if (sync->orders == ORDERS_MAX || (!order_has_room(sync->owner) && sync->orders))
			return 1;
		if (!order_has_room(sync->owner)) {
			sync->listed = true;
			TAILQ_INSERT_TAIL(&sync->owner->slot_waiters, &sync->task, link);
			return 1;
		}
		r = gather(sync, &ground, run, &runs);
		if (r)
			return r;
		if (!runs)
			break;
		sync->orders++;
		order_issue_sync(sync->owner, sync, sync->track->mirror, shadow, run, runs);
	}
	return 0;
}

/* ---- pieces --------------------------------------------------------------------------------------- */

static void later(struct sync *sync, int64_t pause)
{
	sync->listed = true;
	TAILQ_INSERT_TAIL(&sync->owner->retry, &sync->task, link);
	worker_alarm(sync->owner->worker, sync->owner->worker->now + pause);
}

static void came_home(struct owner *owner, void *data, uint64_t pages)
{
	struct sync *sync = data;

	(void)pages;
	/* What could not come is tried again, but not at once. */
	TAILQ_INSERT_TAIL(&owner->retry, &sync->task, link);
	worker_alarm(owner->worker, owner->worker->now + (sync->home_tries > 1 ? NS_PER_MS : 0));
}

/*
 * What of the piece is on a device was there before it was tracked, or was moved in: it comes home. 1: it
 * is waited for. Nothing goes out any more, since a track is there.
 */
static int bring_home(struct sync *sync, uint64_t start, uint64_t end)
{
	struct owner *owner = sync->owner;
	struct block *block;

	for (uint64_t at = start; (block = block_next(owner, at & ~(HMM_BLOCK_SIZE - 1), end));
	     at = block->addr + HMM_BLOCK_SIZE) {
		uint64_t from = block->addr > start ? block->addr : start;
		uint64_t to =
			block->addr + HMM_BLOCK_SIZE < end ? block->addr + HMM_BLOCK_SIZE : end;
		unsigned int last = (unsigned int)((to - block->addr) >> HMM_PAGE_SHIFT);
		struct pages out;

		if (!block_at_rest(block)) {
			sync->listed = true;
			block_park(block, &sync->task);
			return 1;
		}
		if (!block_pages_in(block, HMM_PAGE_DEVICE, page_index(from), last, &out))
			continue;
		if (++sync->home_tries > TRIES_MAX)
			return letter_fail(
				sync->letter, -EBUSY,
				"pages from %#lx on can't come home from another device at present",
				from);
		sync->listed = true;
		migrate_home(owner, start, end, NULL, came_home, sync);
		return 1;
	}
	return 0;
}

static int look_fail(struct sync *sync, int r)
{
	return letter_fail(sync->letter, r, "what is written at %#lx can't be found: %s", sync->at,
			   tracking_look_error(r));
}

/* Marks of the next piece. 1: later; 0: there are some, perhaps; or -errno. */
static int take_piece(struct sync *sync)
{
	struct owner *owner = sync->owner;
	struct tracker *tracker = owner->tracker;
	uint64_t start = sync->at, stop = (start & ~(PIECE - 1)) + PIECE;
	uint64_t written, presumed = 0, first = (start - sync->from) >> HMM_PAGE_SHIFT;
	struct shadow *shadow;
	int r;

	if (stop > sync->stop)
		stop = sync->stop;
	/* A thread that was seized for an earlier try and stands by now. */
	if (!thaw(&tracker->stopped)) {
		later(sync, 0);
		return 1;
	}
	r = bring_home(sync, start, stop);
	if (r)
		return r;
	r = mirror_shadow(sync->track->mirror, start, &shadow);
	if (r)
		return letter_fail(sync->letter, r, "no shadow for %#lx: %s", start, strerror(-r));
	if (tracker->uffd >= 0)
		tracker_read(tracker);
	r = sync->looked ? 0
			 : tracking_look(tracker, start, tracker->ops->whole ? sync->end : stop);
	if (r == -EAGAIN) {
		later(sync, 0);
		return 1;
	}
	if (r)
		return look_fail(sync, r);
	/* One look was at all of the owner: it is stopped once for it. */
	sync->looked = tracker->ops->whole;
	track_presumed(sync->track, start, stop, sync->presumed, first);
	written = track_tell(sync->track, start, stop, true, sync->bits, first, &presumed);
	owner_count(owner, COUNTER_TRACK_WRITTEN, written);
	owner_count(owner, COUNTER_TRACK_PRESUMED, presumed);
	/* What is tried once more was told already. */
	if (!sync->again) {
		sync->reply->written += written;
		sync->reply->presumed += presumed;
	}
	sync->at = stop;
	sync->home_tries = 0;
	return 0;
}

/* From sync->at on, as far as one shadow goes. */
static int begin_stretch(struct sync *sync)
{
	uint64_t end = (sync->at & ~(HMM_REGION_SIZE - 1)) + HMM_REGION_SIZE;

	if (!sync->bits) {
		sync->bits = calloc(2 * sync->words, sizeof(*sync->bits));
		if (!sync->bits)
			return letter_fail(sync->letter, -ENOMEM, "out of memory for the marks");
		sync->presumed = sync->bits + sync->words;
	} else {
		memset(sync->bits, 0, 2 * sync->words * sizeof(*sync->bits));
	}
	sync->from = sync->next = sync->at;
	sync->stop = end < sync->end ? end : sync->end;
	return 0;
}

/* All is copied but what could not be. 1: that is tried once more. */
static int try_again(struct sync *sync)
{
	if (!sync->left)
		return 0;
	if (++sync->tries > TRIES_MAX)
		return letter_fail(
			sync->letter, -EBUSY,
			"%lu pages from %#lx on could not be copied: they are lost, or their mappings keep changing",
			sync->left, sync->left_start);
	sync->from = sync->next = sync->at = sync->stop = sync->left_start;
	sync->end = sync->left_end;
	sync->again = true;
	sync->looked = false;
	sync->left = 0;
	later(sync, NS_PER_MS);
	return 1;
}

static void put_back(struct sync *sync)
{
	for (uint64_t at = next_marked(sync, sync->next); at < sync->at;
	     at = next_marked(sync, at + HMM_PAGE_SIZE))
		track_mark(sync->track, at, at + HMM_PAGE_SIZE);
	sync->from = sync->next = sync->at;
}

static void finish(struct sync *sync)
{
	struct track *track = sync->track;
	struct owner *owner = sync->owner;

	owner_count(owner, COUNTER_SYNC_COPIED, sync->reply->copied);
	owner_count(owner, COUNTER_SYNC_ZEROED, sync->reply->zeroed);
	if (sync->error && !sync->letter->error)
		letter_fail(sync->letter, sync->error, "the copy could not be written: %s",
			    strerror(-sync->error));
	worker_reply(owner->worker, sync->letter);
	track->mirror->migrations--;
	owner->jobs--;
	track->syncing = (struct sync *)TAILQ_FIRST(&track->waiting);
	if (track->syncing) {
		TAILQ_REMOVE(&track->waiting, &track->syncing->task, link);
		go_on(track->syncing);
	}
	if (!--track->users && track->dropped) {
		TAILQ_REMOVE(&owner->tracker->leaving, track, link);
		copies_end(track);
		track_free(track);
	}
	free(sync->bits);
	free(sync);
}

#define AT_ONCE 2

/* AT_ONCE; 1: it goes on later; 0: all is done; or -errno, which the letter may say already. */
static int step(struct sync *sync)
{
	struct owner *owner = sync->owner;
	int r;

	if (owner->gone || owner->closing)
		return letter_fail(sync->letter, -ESTALE, "owner %u is gone", owner->id);
	if (sync->track->dropped)
		return letter_fail(sync->letter, -ENOENT, "the range is tracked no more");
	if (sync->error)
		return sync->error;
	if (sync->at < sync->stop) {
		r = take_piece(sync);
		if (r || sync->at == sync->stop)
			return r ? r : AT_ONCE;
		/* Others have their turn before the next look. */
		later(sync, 0);
		return 1;
	}
	if (sync->next < sync->at) {
		r = give_orders(sync);
		return r ? r : AT_ONCE;
	}
	if (sync->at < sync->end) {
		r = begin_stretch(sync);
		return r ? r : AT_ONCE;
	}
	return sync->orders ? 1 : try_again(sync);
}

static void sync_run(struct task *task)
{
	struct sync *sync = (struct sync *)task;
	int r;

	sync->listed = false;
	do
		r = step(sync);
	while (r == AT_ONCE);
	if (r == 1)
		return;
	if (r < 0) {
		sync->error = r;
		put_back(sync);
	}
	/* The last of its orders brings it back. */
	if (!sync->orders)
		finish(sync);
}

/* ---- requests -------------------------------------------------------------------------------------- */

int sync_begin(struct owner *owner, struct letter *letter, struct track *track)
{
	const struct hmm_msg_mirror_sync *message = (const void *)letter->message;
	struct sync *sync;
	uint64_t bytes;

	if (message->addr < track->start || message->addr + message->length > track->end)
		return letter_fail(letter, -EINVAL,
				   "%#lx to %#lx is not within %#lx to %#lx, which is tracked",
				   message->addr, message->addr + message->length, track->start,
				   track->end);
	sync = calloc(1, sizeof(*sync));
	if (sync)
		sync->reply = letter_reply(letter, HMM_OP_MIRROR_SYNC_REPLY, sizeof(*sync->reply));
	if (!sync || !sync->reply) {
		free(sync);
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	}
	sync->task.run = sync_run;
	sync->owner = owner;
	sync->letter = letter;
	sync->track = track;
	sync->from = sync->next = sync->at = sync->stop = message->addr;
	sync->end = message->addr + message->length;
	bytes = message->length < HMM_REGION_SIZE ? message->length : HMM_REGION_SIZE;
	sync->words = ((bytes >> HMM_PAGE_SHIFT) + 63) / 64;
	track->users++;
	track->mirror->migrations++;	/* it stays while this runs, */
	owner->jobs++;			/* and so does the owner: orders of this are in no list */
	if (track->syncing) {
		TAILQ_INSERT_TAIL(&track->waiting, &sync->task, link);
	} else {
		track->syncing = sync;
		go_on(sync);
	}
	return 0;
}

int copy_open(struct letter *letter, const struct track *track)
{
	const struct hmm_msg_copy_open *message = (const void *)letter->message;
	struct hmm_msg_copy_open_reply *reply;
	struct shadow *shadow;
	int r;

	if (message->addr < track->start || message->addr >= track->end)
		return letter_fail(letter, -EINVAL,
				   "%#lx is not within %#lx to %#lx, which is tracked",
				   message->addr, track->start, track->end);
	r = mirror_shadow(track->mirror, message->addr, &shadow);
	if (r)
		return letter_fail(letter, r, "no shadow for %#lx: %s", message->addr,
				   strerror(-r));
	reply = letter_reply(letter, HMM_OP_COPY_OPEN_REPLY, sizeof(*reply));
	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	/* The driver reads. */
	letter->reply_fds[0] = owner_read_only(shadow->fd);
	letter->n_reply_fds = 1;
	if (letter->reply_fds[0] < 0)
		return letter_fail(letter, -EMFILE, "out of descriptors");
	reply->base = shadow->base;
	reply->length = HMM_REGION_SIZE;
	reply->kind = shadow->kind;
	return 0;
}
