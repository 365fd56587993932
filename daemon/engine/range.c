/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * range.c - a driver looks at a range of pages and has them as it wants them:
 * there, writable, at home. Runs on the owner's worker.
 *
 * A look goes block by block. Happy path: what is mapped there may be read, and
 * written where that is wanted; what is on another device, or wanted home, is
 * brought by a migration; what the CPU has is faulted in through the owner's own
 * /proc/self/mem. Each page becomes one byte of the answer, and the block's sequence
 * number is added to the sum that the driver compares with later.
 *
 * What is at the CPU gets an entry as R in the table, so that the next look is a
 * load from shared memory, of this range or another. Such an entry stands only
 * where the block is watched (block_watch): unmapped, moved or discarded, it goes,
 * with the block's number and a word to the drivers. Where the kernel can't tell
 * (files on a disk, another userfaultfd, excluded memory), there is no entry, and
 * every look is a message.
 *
 * What keeps a block watched is a *hold*: a range that was looked at and not
 * released. Holds are a matter of economy only: a block that is let go takes
 * its entries back first, number and all. So they need not survive hmmd. Drivers are told
 * of what goes where a hold is; with more ranges than are noted, of all that goes.
 *
 * A device that cannot fault has what is coherent, or pinned on it. Nothing else is brought for
 * it: asked for, it is an error, and a snapshot says that there is nothing.
 *
 * What can fail: what is mapped (the errors of hmm_range_fault(3)), and memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/copies.h"
#include "engine/dma.h"
#include "engine/owner.h"
#include "engine/protect.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

/* Ranges of an owner that are kept watched; more than these are told a moment after each look that it is void. */
#define HOLDS_MAX	4096U
/* How often a block is looked at again before the driver is told to come back. */
#define TRIES_MAX	1000U
/* From here on not at once: its pages can't come home, or the map does not stop changing. */
#define TRIES_AT_ONCE	4U
/* A page that can't be faulted in so often, some of them a millisecond apart, can't be had. */
#define FAILURES_MAX	16U

struct hold {
	TAILQ_ENTRY(hold) link;
	uint64_t peer;
	uint32_t mirror, id;
	uint64_t start, end;
};

struct look {
	struct task task;
	struct owner *owner;
	struct letter *letter;
	struct mirror *mirror;
	uint64_t start, at, end;	/* at: the first page that has no answer yet */
	const uint8_t *wants;		/* one for all pages, or one each */
	bool uniform;
	bool snapshot;
	bool block;
	uint32_t page_shift;
	unsigned int tries;		/* at this block */
	unsigned int failures;		/* ... to fault a page in */
	bool touched;			/* pages were faulted in */
	uint8_t took[HMM_BLOCK_PAGES];	/* what became of pages that were taken back from the CPU, */
	uint64_t took_from;		/* from here on; 0: none yet */
	struct hmm_msg_range_fault_reply *reply;
};

/* Neither an error nor done: the look goes on when something else has. */
#define LOOK_PARKED	1

/* ---- holds -------------------------------------------------------------------- */

bool range_holds(const struct block *block)
{
	const struct owner *owner = block->owner;
	struct hold *hold;

	if (!block->remote || owner->closing)
		return false;
	TAILQ_FOREACH(hold, &owner->holds, link)
		if (hold->start < block->addr + HMM_BLOCK_SIZE && hold->end > block->addr)
			return true;
	return false;
}

bool range_is_told(const struct block *block)
{
	return block->owner->unheld || range_holds(block);
}

static void settle_released(struct block *block, void *data)
{
	(void)data;
	block_settle_later(block);
}

static void release(struct owner *owner, struct hold *hold)
{
	TAILQ_REMOVE(&owner->holds, hold, link);
	owner->n_holds--;
	block_for_each(owner, hold->start, hold->end, settle_released, NULL);
	free(hold);
}

/* @mirror, @id 0: whichever. */
static void release_all(struct owner *owner, uint64_t peer, uint32_t mirror, uint32_t id)
{
	struct hold *hold, *next;

	for (hold = TAILQ_FIRST(&owner->holds); hold; hold = next) {
		next = TAILQ_NEXT(hold, link);
		if ((!peer || hold->peer == peer) && (!mirror || hold->mirror == mirror) &&
		    (!id || hold->id == id))
			release(owner, hold);
	}
}

void range_peer_gone(struct owner *owner, uint64_t peer)
{
	release_all(owner, peer, 0, 0);
}

void range_mirror_gone(struct mirror *mirror)
{
	release_all(mirror->owner, 0, mirror->id, 0);
}

void range_deinit(struct owner *owner)
{
	struct hold *hold;

	while ((hold = TAILQ_FIRST(&owner->holds))) {
		TAILQ_REMOVE(&owner->holds, hold, link);
		free(hold);
	}
}

static void note_hold(struct owner *owner, const struct letter *letter)
{
	const struct hmm_msg_range_fault *message = (const void *)letter->message;
	struct hold *hold;

	if (!message->hold)
		return;
	TAILQ_FOREACH(hold, &owner->holds, link)
		if (hold->peer == letter->peer && hold->id == message->hold)
			return;
	hold = owner->n_holds < HOLDS_MAX ? calloc(1, sizeof(*hold)) : NULL;
	if (!hold) {
		owner->unheld = true;
		return;
	}
	hold->peer = letter->peer;
	hold->mirror = message->mirror;
	hold->id = message->hold;
	hold->start = message->hold_start;
	hold->end = message->hold_end;
	TAILQ_INSERT_TAIL(&owner->holds, hold, link);
	owner->n_holds++;
}

/* ---- one page ------------------------------------------------------------------- */

static uint8_t want_of(const struct look *look, uint64_t addr)
{
	uint8_t want;

	if (look->snapshot)
		return 0;
	want = look->wants[look->uniform ? 0 : (addr - look->start) >> HMM_PAGE_SHIFT];
	return want & HMM_RANGE_WANT_READ ? want : 0;
}

static int stop_at(struct look *look, uint64_t addr, enum hmm_range_stop stop)
{
	look->reply->stop = stop;
	look->reply->count = (uint32_t)((addr - look->start) >> HMM_PAGE_SHIFT);
	return -EFAULT;
}

static void answer_page(struct look *look, uint64_t addr, uint8_t entry)
{
	look->reply->entries[(addr - look->start) >> HMM_PAGE_SHIFT] = entry;
}

/* On the way to or from memory that only a driver reaches: no device can use it. */
static bool is_half_way(const struct block *block, unsigned int i)
{
	const struct mirror *holder = block_mirror(block);

	return holder && device_is_far(holder->device) && page_state(block, i) == HMM_PAGE_DEVICE &&
	       !page_is_far(block, i);
}

/* The page is on the mirror's device, to itself or as a copy. */
static bool is_there(const struct block *block, const struct mirror *mirror, unsigned int i)
{
	return (block_mirror(block) == mirror && !is_half_way(block, i)) || copies_have(block, mirror, i);
}

/*
 * On a device: whose, and what may be done there, where the mapping has it. A copy of the asking mirror's is
 * its own page.
 */
static uint8_t device_entry(const struct look *look, const struct block *block, unsigned int i,
			    const struct view *view)
{
	enum hmm_page_state state = page_state(block, i);
	unsigned int holder = copies_have(block, look->mirror, i) ? look->mirror->index : block->record->mirror;
	uint8_t entry = HMM_RANGE_ENTRY_VALID | HMM_RANGE_ENTRY_DEVICE | (uint8_t)(holder << 4);

	if (is_half_way(block, i))
		return 0;
	if (state != HMM_PAGE_SHARED && view->write)
		entry |= HMM_RANGE_ENTRY_WRITE;
	if (state == HMM_PAGE_COHERENT)
		entry |= HMM_RANGE_ENTRY_COHERENT;
	return entry;
}

/* Whether a page that is on a device has to come home to be as wanted. */
static bool wanted_home(const struct look *look, const struct block *block, uint64_t addr)
{
	enum hmm_page_state state = page_state(block, page_index(addr));
	uint8_t want = want_of(look, addr);

	if (!want || (state != HMM_PAGE_DEVICE && state != HMM_PAGE_SHARED))
		return false;
	return !is_there(block, look->mirror, page_index(addr)) || want & HMM_RANGE_WANT_HOME ||
	       (state == HMM_PAGE_SHARED && want & HMM_RANGE_WANT_WRITE);
}

/* Reads a byte, which faults the page in: a hole as the zero page, or from swap or its file. */
static int touch_page(struct look *look, const struct block *block, uint64_t addr, uint64_t entry)
{
	ssize_t r;
	char byte;

	/* To be read all the same it would have to be thrown away first. */
	if (entry & PM_GUARD)
		return stop_at(look, addr, HMM_RANGE_STOP_ERROR);
	r = access_in_place(look->owner, block, addr, &byte, 1, false);
	/* It may have been thrown away in the middle of this: looked at afresh a few times. */
	if (r == -EAGAIN || (r != 1 && look->block && ++look->failures < FAILURES_MAX))
		return -EAGAIN;
	if (r != 1)
		return stop_at(look, addr, HMM_RANGE_STOP_ERROR);
	look->touched = true;
	return 0;
}

/* ---- one mapping's pages of a block ------------------------------------------------ */

/* When what is under way has ended; or the driver would rather not wait. */
static int again(struct look *look)
{
	struct owner *owner = look->owner;

	if (!look->block)
		return -EAGAIN;
	if (++look->tries > TRIES_MAX)
		return -EBUSY;
	TAILQ_INSERT_TAIL(&owner->retry, &look->task, link);
	worker_alarm(owner->worker, owner->worker->now + (look->tries > TRIES_AT_ONCE ? NS_PER_MS : 0));
	return LOOK_PARKED;
}

static void came_home(struct owner *owner, void *data, uint64_t pages)
{
	struct look *look = data;

	(void)pages;
	/* What could not come home is tried again, but not at once. */
	if (look->tries > TRIES_AT_ONCE) {
		TAILQ_INSERT_TAIL(&owner->retry, &look->task, link);
		worker_alarm(owner->worker, owner->worker->now + NS_PER_MS);
	} else {
		owner_queue(owner, &look->task);
	}
}

/* The first run of [from, end) that has to come home is sent for. */
static int bring_home(struct look *look, const struct block *block, uint64_t from, uint64_t end)
{
	struct mirror *holder = block_mirror(block);
	uint64_t stop;

	while (from < end && !wanted_home(look, block, from))
		from += HMM_PAGE_SIZE;
	if (from == end || !holder)
		return 0;
	for (stop = from; stop < end && wanted_home(look, block, stop);)
		stop += HMM_PAGE_SIZE;
	if (look->block && ++look->tries > TRIES_MAX)
		return -EBUSY;
	migrate_home(look->owner, from, stop, holder->device, look->block ? came_home : NULL, look);
	return look->block ? LOOK_PARKED : -EAGAIN;
}

static bool page_size_fits(const struct look *look, const struct block *block, const struct view *view)
{
	const struct mirror *mirror = block ? block_mirror(block) : NULL;

	if (look->page_shift == HMM_PAGE_SHIFT || view->page_size == 1UL << look->page_shift)
		return true;
	/* A huge page of the device: all of it is there. */
	return mirror && !device_is_far(mirror->device) && look->page_shift == HMM_BLOCK_SHIFT && pool_is_huge(mirror->device->pool->kind) &&
	       block_count(block, HMM_PAGE_DEVICE) + block_count(block, HMM_PAGE_COHERENT) == HMM_BLOCK_PAGES;
}

static int check_wants(const struct look *look, const struct view *view, uint64_t from)
{
	if (!view->read)
		return -EPERM;
	if (view->write || look->snapshot)
		return 0;
	for (; from < view->end; from += HMM_PAGE_SIZE)
		if (want_of(look, from) & HMM_RANGE_WANT_WRITE)
			return -EPERM;
	return 0;
}

static uint8_t cpu_entry(const struct view *view, uint8_t kind)
{
	return HMM_RANGE_ENTRY_VALID | (view->write ? HMM_RANGE_ENTRY_WRITE : 0) |
	       (kind & KERNEL_PAGE_HUGE ? HMM_RANGE_ENTRY_HUGE : 0) |
	       (kind & KERNEL_PAGE_ZERO ? HMM_RANGE_ENTRY_ZERO : 0);
}

/* Pinned there, the CPU has read it since, and now the device is to write it. */
static bool is_to_be_taken(const struct look *look, const struct block *block, uint64_t addr)
{
	return block && want_of(look, addr) & HMM_RANGE_WANT_WRITE &&
	       !reach_page(look->mirror, block, page_index(addr)) &&
	       reach_page_to_read(look->mirror, block, page_index(addr));
}

/* The CPU keeps it, however often it is asked for. */
static bool was_refused(const struct look *look, uint64_t addr)
{
	switch (look->took_from == addr ? look->took[0] : HMM_PAGE_RESULT_MOVED) {
	case HMM_PAGE_RESULT_MOVED:
	case HMM_PAGE_RESULT_ALREADY:
	case HMM_PAGE_RESULT_PINNED:
	case HMM_PAGE_RESULT_CHANGED:
	case HMM_PAGE_RESULT_ERROR:
		return false;
	default:
		return true;
	}
}

static int take_back(struct look *look, const struct block *block, uint64_t from, uint64_t end)
{
	uint64_t stop = from;
	int r;

	if (was_refused(look, from))
		return stop_at(look, from, HMM_RANGE_STOP_ERROR);
	if (look->block && ++look->tries > TRIES_MAX)
		return -EBUSY;
	while (stop < end && is_to_be_taken(look, block, stop))
		stop += HMM_PAGE_SIZE;
	look->took_from = from;
	r = migrate_to(look->mirror, from, stop, false, look->block ? look->took : NULL,
		       migrate_new_journey(look->owner), look->block ? came_home : NULL, look);
	if (!look->block)
		return -EAGAIN;
	return r ? -ENOMEM : LOOK_PARKED;
}

/* Of a device that cannot fault: what is not on it, for good, it cannot have. */
static int answer_reach(struct look *look, uint64_t from, const struct view *view)
{
	const struct block *block = block_find(look->owner, from);

	for (; from < view->end; from += HMM_PAGE_SIZE) {
		uint8_t want = want_of(look, from);
		bool there = block && reach_page_to_read(look->mirror, block, page_index(from));

		if (is_to_be_taken(look, block, from))
			return take_back(look, block, from, view->end);
		if (block && page_state(block, page_index(from)) == HMM_PAGE_ERROR)
			return stop_at(look, from, HMM_RANGE_STOP_ERROR);
		/* Without MOVE what both read goes home on its way there. */
		if (want && !there && migrate_is_sent(look->mirror, from))
			return again(look);
		if (want && (!there || want & HMM_RANGE_WANT_HOME)) {
			owner_count(look->owner, COUNTER_UNREACHABLE, 1);
			return stop_at(look, from, HMM_RANGE_STOP_ERROR);
		}
		answer_page(look, from, there ? device_entry(look, block, page_index(from), view) : 0);
	}
	return 0;
}

/* Pages that the CPU has, or nobody. */
static int look_at_pages(struct look *look, uint64_t from, const struct view *view, bool watched)
{
	struct block *block = block_find(look->owner, from);
	unsigned int n = (unsigned int)((view->end - from) >> HMM_PAGE_SHIFT);
	uint64_t entries[HMM_BLOCK_PAGES];
	uint8_t kinds[HMM_BLOCK_PAGES] = { 0 };
	int r = kernel->pagemap_read(look->owner->pagemap, from, n, entries);

	/* Where the kernel does not tell nothing is said of it. */
	if (!r && look->snapshot && kernel->page_kinds(look->owner->pagemap, from, n, kinds))
		memset(kinds, 0, sizeof(kinds));
	for (unsigned int i = 0; !r && i < n; i++) {
		uint64_t addr = from + ((uint64_t)i << HMM_PAGE_SHIFT);
		enum hmm_page_state state = block ? page_state(block, page_index(addr)) : HMM_PAGE_INVALID;
		bool present = entries[i] & PM_PRESENT;

		if (state == HMM_PAGE_ERROR)
			return stop_at(look, addr, HMM_RANGE_STOP_ERROR);
		if (state != HMM_PAGE_INVALID) {
			answer_page(look, addr, device_entry(look, block, page_index(addr), view));
			continue;
		}
		if (!present && want_of(look, addr)) {
			r = touch_page(look, block, addr, entries[i]);
			present = !r;
		}
		answer_page(look, addr, present ? cpu_entry(view, kinds[i]) : 0);
		if (present && watched)
			block_set_remote(block, page_index(addr), view->write);
	}
	return r;
}

/*
 * Rights have gone, and hmmd is being asked to follow or never will be. Lesser entries in the place of what was shown
 * would hide what there is to take back: other ranges would stay valid with rights that no mapping gives.
 */
static int follow_rights(struct look *look, struct block *block, uint64_t from, const struct view *view)
{
	const unsigned int first = page_index(from), end = page_index(view->end - 1) + 1;

	if ((view->read && view->write) || !block)
		return 0;
	for (unsigned int i = first; i < end; i++) {
		if (!block_remote_exceeds(block, i, view->read, view->write))
			continue;
		protect_follow(block, first, end);
		return again(look);
	}
	return 0;
}

static bool is_coherent(struct owner *owner, uint64_t addr)
{
	const struct block *block = block_find(owner, addr);

	return block && block_count(block, HMM_PAGE_COHERENT);
}

/* The mapping at @from, as far as it goes in the block: until *@from. */
static int look_at_mapping(struct look *look, uint64_t *from, uint64_t end)
{
	struct owner *owner = look->owner;
	struct block *block;
	struct view view;
	bool watched = false;
	int r = view_at(owner, *from, end, &view);

	if (r == -EFAULT)
		return stop_at(look, *from, look->snapshot ? HMM_RANGE_STOP_NONE : HMM_RANGE_STOP_ERROR);
	if (r)
		return r == -EAGAIN ? again(look) : r;
	if (view.special)
		return stop_at(look, *from, HMM_RANGE_STOP_SPECIAL);
	/*
	 * What is coherent changes by hmm_unshare() alone, which tells; and its mapping must
	 * not be registered when that exchanges it.
	 */
	if (device_faults(look->mirror->device) && !view.excluded && !owner->closing && !is_coherent(owner, *from)) {
		r = block_watch(owner, view.watch_start, view.watch_end);
		if (r == -EAGAIN)
			return again(look);
		watched = r == 0;
	}
	if (watched) {
		struct view seen = view;

		/* Only now it is certain that a change is heard of. */
		r = view_at(owner, *from, end, &view);
		if (r || view.end != seen.end || view.read != seen.read || view.write != seen.write)
			return again(look);
	}
	block = block_find(owner, *from);
	r = follow_rights(look, block, *from, &view);
	if (r)
		return r;
	if (!page_size_fits(look, block, &view))
		return -EINVAL;
	r = check_wants(look, &view, *from);
	if (!device_faults(look->mirror->device)) {
		if (!r)
			r = answer_reach(look, *from, &view);
		*from = view.end;
		return r;
	}
	if (!r && block)
		r = bring_home(look, block, *from, view.end);
	if (!r)
		r = look_at_pages(look, *from, &view, watched);
	if (r == -EAGAIN && look->block)
		return again(look);
	*from = view.end;
	return r;
}

/* ---- the look ------------------------------------------------------------------------ */

static int look_at_block(struct look *look)
{
	uint64_t end = (look->at & ~(HMM_BLOCK_SIZE - 1)) + HMM_BLOCK_SIZE, from = look->at;
	struct block *block = block_find(look->owner, from);
	int r = 0;

	if (end > look->end)
		end = look->end;
	if (block && !block_at_rest(block)) {
		if (!look->block)
			return -EAGAIN;
		block_park(block, &look->task);
		return LOOK_PARKED;
	}
	while (!r && from < end)
		r = look_at_mapping(look, &from, end);
	if (r)
		return r;
	look->reply->sequence += block_sequence(look->owner, look->at);
	look->at = end;
	look->tries = look->failures = 0;
	return 0;
}

static void finish(struct look *look, int error)
{
	struct hmm_msg_range_fault_reply *reply = look->reply;

	if (!error)
		reply->count = (uint32_t)((look->end - look->start) >> HMM_PAGE_SHIFT);
	else if (error != -EFAULT)
		reply->count = 0;
	reply->error = error;
	/* No more leaves hmmd than was looked at. */
	reply->header.size = (uint32_t)(sizeof(*reply) + reply->count);
	look->mirror->migrations--;
	worker_reply(look->owner->worker, look->letter);
	free(look);
}

static void look_run(struct task *task)
{
	struct look *look = (struct look *)task;
	struct owner *owner = look->owner;
	int r = 0;

	if (owner->gone)
		r = stop_at(look, look->start, HMM_RANGE_STOP_NONE);
	while (!r && look->at < look->end) {
		look->touched = false;
		r = look_at_block(look);
		if (!r && look->touched && look->at < look->end) {
			/* That took a while; others have waited. */
			TAILQ_INSERT_TAIL(&owner->retry, &look->task, link);
			worker_alarm(owner->worker, owner->worker->now);
			return;
		}
	}
	if (r != LOOK_PARKED)
		finish(look, r);
}

static int check_look(const struct letter *letter)
{
	const struct hmm_msg_range_fault *message = (const void *)letter->message;
	uint64_t pages = message->length >> HMM_PAGE_SHIFT;

	if (message->count != 1 && message->count != pages && !(message->flags & HMM_RANGE_FLAGS_SNAPSHOT))
		return -EINVAL;
	for (uint32_t i = 0; i < message->count; i++)
		if (message->wants[i] &
		    ~(HMM_RANGE_WANT_READ | HMM_RANGE_WANT_WRITE | HMM_RANGE_WANT_HOME))
			return -EINVAL;
	if (message->hold && (message->hold_start > message->addr || message->hold_end > HMM_VA_END ||
			      message->hold_end < message->addr + message->length))
		return -EINVAL;
	return message->page_shift < HMM_PAGE_SHIFT || message->page_shift > HMM_REGION_SHIFT ? -EINVAL : 0;
}

static int look_begin(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_range_fault *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);
	size_t pages = message->length >> HMM_PAGE_SHIFT;
	struct look *look;

	if (!mirror || mirror->leaving)
		return letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
	if (mirror_refuse_tracked(mirror, letter))
		return letter->error;
	if (check_look(letter))
		return letter_fail(letter, -EINVAL,
				   "a range's wants, page size or hold do not go with its %zu pages", pages);
	look = calloc(1, sizeof(*look));
	if (look)
		look->reply = letter_reply(letter, HMM_OP_RANGE_FAULT_REPLY, sizeof(*look->reply) + pages);
	if (!look || !look->reply) {
		free(look);
		return letter_fail(letter, -ENOMEM, "out of memory for a range of %zu pages", pages);
	}
	look->task.run = look_run;
	look->owner = owner;
	look->letter = letter;
	look->mirror = mirror;
	look->start = look->at = message->addr;
	look->end = message->addr + message->length;
	look->wants = message->wants;
	look->uniform = message->count != pages;
	look->snapshot = message->flags & HMM_RANGE_FLAGS_SNAPSHOT;
	look->block = message->flags & HMM_RANGE_FLAGS_BLOCK && !look->snapshot;
	look->page_shift = message->page_shift;
	mirror->migrations++;	/* the mirror stays while it runs */
	note_hold(owner, letter);
	vma_refresh_threads(owner, 100 * NS_PER_MS);
	owner_count(owner, COUNTER_RANGE_LOOKS, 1);
	owner_queue(owner, &look->task);
	return 0;
}

void range_request(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_range_release *message = (const void *)letter->message;

	if (letter->message->opcode == HMM_OP_RANGE_FAULT) {
		if (look_begin(owner, letter))
			worker_reply(owner->worker, letter);
		return;		/* answered when it is done */
	}
	if (message->hold) {
		release_all(owner, letter->peer, message->mirror, message->hold);
		dma_release(owner, letter->peer, message->mirror, message->hold);
	}
	if (!letter_reply(letter, HMM_OP_RANGE_RELEASE_REPLY,
			  sizeof(struct hmm_msg_range_release_reply)))
		letter_fail(letter, -ENOMEM, "out of memory for the answer");
	worker_reply(owner->worker, letter);
}
