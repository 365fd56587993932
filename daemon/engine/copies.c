/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * copies.c - S on several devices. A block has one holder for its D and S
 * pages; any other mirror may have copies of the S pages. Runs on the owner's
 * worker.
 *
 * Happy path: a window of another mirror reads. A page that is I goes to the
 * holder, a page that is D becomes S, an S page's bytes are stored into the
 * reader's shadow, whose windows were guarded and protected there before: they
 * ask for what lies in it and get it read-only. The table's sharers say so.
 *
 * Every transit of such a page takes its copies first: their bits leave the
 * table together with the entry, the drivers are told, and when they have
 * answered the copies are punched. Only then does the change go on. Freeing may
 * fail while somebody holds a huge page that they lie in; guarded windows do not
 * show what is left, which stays charged until the whole block is punched.
 *
 * A device that is full gives back copies like anything else (evict.c): nothing has
 * to come home for it. For one more copy a window waits until older ones of its mirror have gone.
 *
 * A writer does not get a copy, it takes the block. The ledger knows nothing of
 * copies: a successor punches them all, and the S pages stay protected meanwhile.
 */
#include "engine/copies.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/breakage.h"
#include "engine/worker.h"

/* ---- the table ---------------------------------------------------------------- */

static uint16_t *sharers_of(const struct block *block)
{
	return (uint16_t *)((char *)block->owner->table + HMM_TABLE_SHARERS_OFFSET) +
	       (block->addr >> HMM_PAGE_SHIFT);
}

static void say(const struct copy *copy, const struct pages *pages, bool shared)
{
	uint16_t *sharers = sharers_of(copy->block), bit = (uint16_t)(1U << copy->mirror->index);
	unsigned int first = 0, end;

	for (; pages_run(pages, &first, &end); first = end)
		for (unsigned int i = first; i < end; i++)
			__atomic_store_n(&sharers[i],
					 (uint16_t)(shared ? sharers[i] | bit : sharers[i] & ~bit),
					 __ATOMIC_RELEASE);
}

/* A page of the table holds what is said of several blocks: the last that is silent frees it. */
static void free_silence(const struct block *block)
{
	const uint64_t page = ((uintptr_t)sharers_of(block) - (uintptr_t)block->owner->table) &
			      ~(HMM_PAGE_SIZE - 1);
	static const char zeros[HMM_PAGE_SIZE];

	if (memcmp((char *)block->owner->table + page, zeros, HMM_PAGE_SIZE) == 0)
		kernel->punch(block->owner->table_fd, page, HMM_PAGE_SIZE);
}

/* ---- one mirror's ----------------------------------------------------------------- */

struct copy *copies_find(const struct block *block, const struct mirror *mirror)
{
	struct copy *copy;

	LIST_FOREACH(copy, &block->copies, of_block)
		if (copy->mirror == mirror)
			return copy;
	return NULL;
}

static struct copy *get(struct block *block, struct mirror *mirror)
{
	struct copy *copy = copies_find(block, mirror);

	if (copy)
		return copy;
	copy = calloc(1, sizeof(*copy));
	if (!copy)
		return NULL;
	copy->block = block;
	copy->mirror = mirror;
	LIST_INSERT_HEAD(&block->copies, copy, of_block);
	copy->used = ++mirror->owner->worker->uses;
	TAILQ_INSERT_TAIL(&mirror->copies, copy, of_mirror);
	return copy;
}

unsigned int copies_charged(const struct copy *copy)
{
	return pages_count(&copy->pages) + pages_count(&copy->stale);
}

void copies_touch(struct copy *copy)
{
	struct mirror *mirror = copy->mirror;

	copy->used = ++mirror->owner->worker->uses;
	TAILQ_REMOVE(&mirror->copies, copy, of_mirror);
	TAILQ_INSERT_TAIL(&mirror->copies, copy, of_mirror);
}

static void uncharge(const struct copy *copy, unsigned int pages)
{
	mirror_uncharge(copy->mirror, (uint64_t)pages << HMM_PAGE_SHIFT);
}

static void drop_object(struct copy *copy)
{
	uncharge(copy, copies_charged(copy));
	atomic_fetch_sub_explicit(&copy->mirror->shared_pages, pages_count(&copy->pages),
				  memory_order_relaxed);
	free_silence(copy->block);
	LIST_REMOVE(copy, of_block);
	TAILQ_REMOVE(&copy->mirror->copies, copy, of_mirror);
	free(copy);
}

static void drop_if_empty(struct copy *copy)
{
	if (pages_empty(&copy->pages) && pages_empty(&copy->stale))
		drop_object(copy);
}

/* Frees [first, end) of the mirror's shadow. False: a huge page that somebody holds. */
static bool punch(const struct copy *copy, unsigned int first, unsigned int end)
{
	const struct shadow *shadow = shadow_find(&copy->mirror->shadows, copy->block->addr);
	uint64_t at = page_addr(copy->block, first), length = (uint64_t)(end - first) << HMM_PAGE_SHIFT;

	if (broken("skip-copies"))
		return true;
	kernel->punch(shadow->fd, at - shadow->base, length);
	return !shadow_has_data(shadow, at, length);
}

/* Frees what is stale. */
static void punch_stale(struct copy *copy)
{
	unsigned int first = 0, end;

	for (; pages_run(&copy->stale, &first, &end); first = end) {
		if (!punch(copy, first, end))
			continue;
		for (unsigned int i = first; i < end; i++)
			pages_clear(&copy->stale, i);
		uncharge(copy, end - first);
	}
}

void copies_tidy(struct copy *copy)
{
	assert(pages_empty(&copy->pages) && block_mirror(copy->block) != copy->mirror);
	/* Whole: no huge page has to be split for it. */
	if (pages_empty(&copy->stale) || punch(copy, 0, HMM_BLOCK_PAGES))
		drop_object(copy);
}

/* ---- making ------------------------------------------------------------------------- */

/* Guarded and protected before anything lies there: a window sees neither zeros nor a way to write. */
static int protect(struct block *block, struct mirror *mirror, const struct pages *pages)
{
	unsigned int first = 0, end;
	int r = 0;

	for (; !r && pages_run(pages, &first, &end); first = end)
		r = window_protect_for(block, mirror, first, end, true);
	return r;
}

static int store(const struct copy *copy, const struct shadow *to, const struct pages *pages)
{
	const struct shadow *from = block_shadow(copy->block);
	unsigned int first = 0, end;
	int r = 0;

	for (; pages_run(pages, &first, &end); first = end)
		for (unsigned int i = first; !r && i < end; i++)
			r = shadow_store(to, page_addr(copy->block, i),
					 shadow_at(from, page_addr(copy->block, i)));
	return r;
}

/* Pages of @want that are charged for from now on: all that are not yet. */
static int charge(struct copy *copy, const struct pages *want)
{
	struct pages more = *want;

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		more.word[w] &= ~copy->stale.word[w];
	if (mirror_charge(copy->mirror, (uint64_t)pages_count(&more) << HMM_PAGE_SHIFT))
		return -ENOSPC;
	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		copy->stale.word[w] |= more.word[w];
	return 0;
}

/* S pages, none of them copied yet, to the mirror's shadow. */
static int make(struct block *block, struct mirror *mirror, const struct pages *want)
{
	struct copy *copy = get(block, mirror);
	struct shadow *shadow;
	int r = copy ? mirror_shadow(mirror, block->addr, &shadow) : -ENOMEM;

	if (!r)
		r = charge(copy, want);
	if (!r)
		r = protect(block, mirror, want);
	if (!r)
		r = store(copy, shadow, want);
	if (!r) {
		for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++) {
			copy->stale.word[w] &= ~want->word[w];
			copy->pages.word[w] |= want->word[w];
		}
		say(copy, want, true);
		copies_touch(copy);
		atomic_fetch_add_explicit(&mirror->shared_pages, pages_count(want), memory_order_relaxed);
		owner_count(block->owner, COUNTER_COPIES_MADE, pages_count(want));
	} else if (copy) {
		punch_stale(copy);
		drop_if_empty(copy);
	}
	return r;
}

/* The run of pages from @i on that are like it, at most @ahead long. */
static struct pages run_like(const struct block *block, const struct mirror *mirror, unsigned int i,
			     unsigned int ahead)
{
	enum hmm_page_state state = page_state(block, i);
	struct pages pages = { 0 };

	for (unsigned int end = i + ahead; i < HMM_BLOCK_PAGES && i < end; i++) {
		if (page_state(block, i) != state || copies_have(block, mirror, i) || exclusive_page(block, i))
			break;
		pages_set(&pages, i);
	}
	return pages;
}

static bool has_room(struct device *device, unsigned int pages)
{
	return atomic_load(&device->used) + ((uint64_t)pages << HMM_PAGE_SHIFT) <= device->size;
}

enum copies_answer copies_get(struct block *block, struct mirror *mirror, unsigned int i,
			      unsigned int ahead, struct task *task, uint8_t *result)
{
	struct mirror *holder = block_mirror(block);
	uint64_t first = page_addr(block, i) >> HMM_PAGE_SHIFT;
	struct owner *owner = block->owner;
	enum copies_answer room;
	struct pages pages;

	if (!holder || device_is_far(holder->device) || !device_faults(holder->device) || holder == mirror || holder->leaving || mirror->leaving || mirror->blind || owner->closing ||
	    !block_shadow(block))
		return COPIES_NONE;
	room = copies_make_room(mirror, 1, block, task);
	if (room != COPIES_MADE)
		return room;
	pages = run_like(block, mirror, i, ahead);
	switch (page_state(block, i)) {
	case HMM_PAGE_SHARED:
		if (make(block, mirror, &pages) == 0)
			return COPIES_MADE;
		pages = (struct pages){ 0 };
		pages_set(&pages, i);
		return make(block, mirror, &pages) ? COPIES_NONE : COPIES_MADE;
	case HMM_PAGE_DEVICE:
		/* What a device has to itself is not shared. */
		if (!owner_may_share(owner) || exclusive_page(block, i))
			return COPIES_NONE;
		owner_queue(owner, task);
		home_begin(block, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_MIGRATE, 0, NULL);
		return COPIES_COMING;
	case HMM_PAGE_INVALID:
	case HMM_PAGE_REMOTE:
		if (!owner_may_share(owner) || (!block_count(block, HMM_PAGE_DEVICE) &&
						!block_count(block, HMM_PAGE_SHARED)))
			return COPIES_NONE;
		migrate_for_window(holder, page_addr(block, i),
				   (struct prefetch_span){ first, first + pages_count(&pages) }, task, result);
		return COPIES_COMING;
	default:
		return COPIES_NONE;
	}
}

/* ---- asking ----------------------------------------------------------------------------- */

bool copies_have(const struct block *block, const struct mirror *mirror, unsigned int i)
{
	const struct copy *copy = copies_find(block, mirror);

	return copy && pages_test(&copy->pages, i);
}

bool copies_are_read(const struct block *block)
{
	const struct copy *copy;

	LIST_FOREACH(copy, &block->copies, of_block)
		if (!pages_empty(&copy->pages) && (copy->mirror->flags & HMM_MIRROR_FLAGS_CALLBACKS ||
						   atomic_load(&copy->mirror->windows)))
			return true;
	return false;
}

struct pages copies_on(const struct block *block, const struct device *device)
{
	struct pages pages = { 0 };
	const struct copy *copy;

	LIST_FOREACH(copy, &block->copies, of_block)
		for (unsigned int w = 0; copy->mirror->device == device && w < HMM_BITMAP_WORDS; w++)
			pages.word[w] |= copy->pages.word[w];
	return pages;
}

/* ---- going --------------------------------------------------------------------------------- */

/* Those of @pages that are copied there. */
static struct pages copied(const struct copy *copy, const struct pages *pages)
{
	struct pages both;

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		both.word[w] = copy->pages.word[w] & pages->word[w];
	return both;
}

static void say_all(struct block *block, const struct pages *pages, bool shared)
{
	struct copy *copy;

	LIST_FOREACH(copy, &block->copies, of_block) {
		struct pages these = copied(copy, pages);

		say(copy, &these, shared);
	}
}

void copies_hide(struct block *block, const struct pages *pages)
{
	say_all(block, pages, false);
}

void copies_show(struct block *block, const struct pages *pages)
{
	say_all(block, pages, true);
}

void copies_drop(struct block *block, const struct pages *pages)
{
	struct copy *copy, *next;

	for (copy = LIST_FIRST(&block->copies); copy; copy = next) {
		struct pages going = copied(copy, pages);

		next = LIST_NEXT(copy, of_block);
		if (pages_empty(&going))
			continue;
		for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++) {
			copy->pages.word[w] &= ~going.word[w];
			copy->stale.word[w] |= going.word[w];
		}
		atomic_fetch_sub_explicit(&copy->mirror->shared_pages, pages_count(&going),
					  memory_order_relaxed);
		owner_count(block->owner, COUNTER_COPIES_DROPPED, pages_count(&going));
		punch_stale(copy);
		drop_if_empty(copy);
	}
}

bool copies_clear(struct block *block)
{
	struct copy *copy, *next;
	bool clean = true;

	for (copy = LIST_FIRST(&block->copies); copy; copy = next) {
		next = LIST_NEXT(copy, of_block);
		/* Whole: no huge page has to be split for it. */
		if (punch(copy, 0, HMM_BLOCK_PAGES))
			drop_object(copy);
		else
			clean = false;
	}
	return clean;
}

static void return_proceed(struct block *block)
{
	struct job *job = block->move.job;
	unsigned int first = 0, end;

	for (; pages_run(&block->move.want, &first, &end); first = end)
		for (unsigned int i = first; i < end; i++)
			block_set_state(block, i, i + 1, pages_test(&block->dead, i) ? HMM_PAGE_INVALID :
										       HMM_PAGE_SHARED);
	if (block_has_window(block)) {
		block_punch_stale(block);
		for (first = 0; pages_run(&block->move.want, &first, &end); first = end)
			window_wake(block, first, end);
	}
	job_came(job, block, &block->move.want);
	transit_end(block);
	block_settle_later(block);
	if (job)
		job_block_done(job, 0);
}

void copies_return(struct block *block, const struct pages *pages, int reason, struct job *job)
{
	block->move.want = *pages;
	block->move.job = job;
	if (job && job_is_cheap(job))
		transit_ask(block, HMM_TRANSIT_UNSHARING, pages, reason, return_proceed, job_refused);
	else
		transit_begin(block, HMM_TRANSIT_UNSHARING, pages, reason, return_proceed);
}

void copies_protect(struct block *block)
{
	struct copy *copy;

	/* What is stale and could not be freed is not to be seen at all: guarded, it is asked for. */
	LIST_FOREACH(copy, &block->copies, of_block) {
		struct pages pages = copy->pages;

		for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
			pages.word[w] |= copy->stale.word[w];
		protect(block, copy->mirror, &pages);
	}
}

/* The coldest that may go, or is about to. */
static struct copy *next_to_give(struct mirror *mirror, const struct block *not)
{
	struct copy *copy;

	TAILQ_FOREACH(copy, &mirror->copies, of_mirror)
		if (copy->block != not && !pages_empty(&copy->pages) && !block_is_pinned_to(copy->block, mirror))
			return copy;
	return NULL;
}

enum copies_answer copies_make_room(struct mirror *mirror, unsigned int pages, const struct block *not,
				    struct task *task)
{
	struct copy *copy;

	while (!has_room(mirror->device, pages)) {
		struct block *block;

		copy = next_to_give(mirror, not);
		if (!copy)
			return COPIES_NONE;
		block = copy->block;
		if (block_at_rest(block)) {
			struct pages going = copy->pages;

			copies_return(block, &going, HMM_REASON_EVICT, NULL);
		}
		/* Its drivers have yet to answer, or it is busy with something else: then all is looked at anew. */
		if (!block_at_rest(block)) {
			block_park(block, task);
			return COPIES_COMING;
		}
	}
	return COPIES_MADE;
}

/* ---- restarts, and the end --------------------------------------------------------------------- */

void copies_recover_table(struct owner *owner)
{
	kernel->punch(owner->table_fd, HMM_TABLE_SHARERS_OFFSET, HMM_TABLE_SIZE - HMM_TABLE_SHARERS_OFFSET);
}

void copies_recover(struct block *block)
{
	struct owner *owner = block->owner;

	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		const struct shadow *shadow = owner->mirror[i] && i != block->record->mirror ?
			shadow_find(&owner->mirror[i]->shadows, block->addr) : NULL;

		if (shadow)
			kernel->punch(shadow->fd, block->addr - shadow->base, HMM_BLOCK_SIZE);
	}
}

void copies_forget(struct block *block)
{
	struct copy *copy;

	while ((copy = LIST_FIRST(&block->copies)))
		drop_object(copy);
}

void copies_forget_mirror(struct mirror *mirror)
{
	struct copy *copy;

	while ((copy = TAILQ_FIRST(&mirror->copies)))
		drop_object(copy);
}
