/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * block.c - blocks: 2 MiB of the owner's addresses, the unit of locking,
 * policy and statistics. Runs on the owner's worker.
 *
 * A block object exists while hmmd has anything to do with its addresses: some
 * page is not I, something lingers in the shadow, or it is registered with the
 * owner's userfaultfd. block_settle() takes that apart again, so that memory
 * which went out and came home costs nothing any more.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/copies.h"
#include "engine/dma.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

/* How long a block that is all home is left alone before it is disarmed. */
#define SETTLE_NS	(50 * NS_PER_MS)
#define SOON_NS		NS_PER_MS

/*
 * madvise() zaps after its REMOVE event was read, and no call says when: a
 * page that left in between would escape the zap. Such pages stay until they
 * were seen absent, or for this long.
 */
#define ZAP_NS		(2000 * NS_PER_MS)

bool pages_run(const struct pages *pages, unsigned int *first, unsigned int *end)
{
	unsigned int i = *first;

	while (i < HMM_BLOCK_PAGES && !pages_test(pages, i)) {
		if (i % 64 == 0 && !pages->word[i / 64])
			i += 64;
		else
			i++;
	}
	if (i >= HMM_BLOCK_PAGES)
		return false;
	*first = i;
	while (i < HMM_BLOCK_PAGES && pages_test(pages, i))
		i++;
	*end = i;
	return true;
}

/* ---- finding ---------------------------------------------------------------- */

static unsigned int span_index(const struct owner *owner, uint64_t base)
{
	unsigned int low = 0, high = owner->span_count;

	while (low < high) {
		unsigned int middle = (low + high) / 2;

		if (owner->spans[middle]->base < base)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static struct block_span *span_find(struct owner *owner, uint64_t addr)
{
	uint64_t base = addr & ~(HMM_REGION_SIZE - 1);
	unsigned int i;

	if (owner->last_span && owner->last_span->base == base)
		return owner->last_span;
	i = span_index(owner, base);
	if (i == owner->span_count || owner->spans[i]->base != base)
		return NULL;
	return owner->last_span = owner->spans[i];
}

static struct block_span *span_get(struct owner *owner, uint64_t addr)
{
	struct block_span *span = span_find(owner, addr), **spans;
	uint64_t base = addr & ~(HMM_REGION_SIZE - 1);
	unsigned int at = span_index(owner, base);

	if (span)
		return span;
	span = calloc(1, sizeof(*span));
	spans = realloc(owner->spans, (owner->span_count + 1) * sizeof(*spans));
	if (spans)
		owner->spans = spans;
	if (!span || !spans) {
		free(span);
		return NULL;
	}
	span->base = base;
	memmove(spans + at + 1, spans + at, (owner->span_count - at) * sizeof(*spans));
	spans[at] = span;
	owner->span_count++;
	return owner->last_span = span;
}

static struct block **span_slot(struct block_span *span, uint64_t addr)
{
	return &span->block[(addr - span->base) >> HMM_BLOCK_SHIFT];
}

struct block *block_find(struct owner *owner, uint64_t addr)
{
	struct block_span *span = span_find(owner, addr);

	return span ? *span_slot(span, addr) : NULL;
}

struct block *block_get(struct owner *owner, uint64_t addr)
{
	struct block_span *span = span_get(owner, addr);
	struct block *block;

	if (!span)
		return NULL;
	block = *span_slot(span, addr);
	if (block)
		return block;
	block = calloc(1, sizeof(*block));
	if (!block)
		return NULL;
	block->owner = owner;
	block->addr = addr & ~(HMM_BLOCK_SIZE - 1);
	block->record = owner->ledger + (addr >> HMM_BLOCK_SHIFT);
	TAILQ_INIT(&block->parked);
	if (block_count(block, HMM_PAGE_INVALID) == HMM_BLOCK_PAGES && block_at_rest(block)) {
		block->record->mirror = HMM_NO_MIRROR;
		block->record->slot = HMM_NO_SLOT;
	}
	*span_slot(span, addr) = block;
	span->used++;
	return block;
}

void block_free(struct block *block)
{
	struct owner *owner = block->owner;
	struct block_span *span = span_find(owner, block->addr);
	unsigned int at;

	if (block->queued)
		TAILQ_REMOVE(&owner->settling, block, settle);
	copies_forget(block);
	*span_slot(span, block->addr) = NULL;
	free(block->dma);
	free(block);
	if (--span->used)
		return;
	at = span_index(owner, span->base);
	memmove(owner->spans + at, owner->spans + at + 1,
		(owner->span_count - at - 1) * sizeof(*owner->spans));
	owner->span_count--;
	owner->last_span = NULL;
	free(span);
}

void block_forget(struct block *block)
{
	uint64_t table_offset = (block->addr >> HMM_PAGE_SHIFT) * sizeof(uint64_t);

	assert(block_at_rest(block) && TAILQ_EMPTY(&block->parked) && !block->charged);
	block_drop_remote(block, NULL);
	memset(block->record, 0, sizeof(*block->record));
	/* A block's entries are exactly one page of the table. */
	kernel->punch(block->owner->table_fd, table_offset, HMM_PAGE_SIZE);
	block_free(block);
}

struct block *block_next(struct owner *owner, uint64_t addr, uint64_t end)
{
	uint64_t at = addr & ~(HMM_BLOCK_SIZE - 1);

	for (unsigned int i = span_index(owner, at & ~(HMM_REGION_SIZE - 1)); i < owner->span_count;
	     i++) {
		struct block_span *span = owner->spans[i];

		if (at < span->base)
			at = span->base;
		for (; at < span->base + HMM_REGION_SIZE; at += HMM_BLOCK_SIZE) {
			if (at >= end)
				return NULL;
			if (*span_slot(span, at))
				return *span_slot(span, at);
		}
	}
	return NULL;
}

void block_for_each(struct owner *owner, uint64_t start, uint64_t end, block_fn fn, void *data)
{
	struct block *block;

	/* Looked up anew each time: fn may forget blocks. */
	while (start < end && (block = block_next(owner, start, end))) {
		start = block->addr + HMM_BLOCK_SIZE;
		fn(block, data);
	}
}

void block_park(struct block *block, struct task *task)
{
	assert(!block_at_rest(block));
	TAILQ_INSERT_TAIL(&block->parked, task, link);
}

/* ---- states ------------------------------------------------------------------- */

struct mirror *block_mirror(const struct block *block)
{
	return block->record->mirror < MIRRORS_MAX ? block->owner->mirror[block->record->mirror] : NULL;
}

struct shadow *block_shadow(const struct block *block)
{
	struct mirror *mirror = block_mirror(block);

	return mirror ? shadow_find(&mirror->shadows, block->addr) : NULL;
}

static uint64_t *table_entries(const struct block *block)
{
	return block->owner->table + (block->addr >> HMM_PAGE_SHIFT);
}

static bool in_shadow(enum hmm_page_state state)
{
	return state == HMM_PAGE_SHARED || state == HMM_PAGE_DEVICE || state == HMM_PAGE_COHERENT;
}

/* A device whose memory only its driver reaches. */
static bool is_far(const struct mirror *mirror)
{
	return mirror && device_is_far(mirror->device);
}

static uint64_t entry_for(const struct block *block, unsigned int i, enum hmm_page_state state)
{
	uint64_t pfn = (block->record->mirror + 1ULL) * HMM_TABLE_DEVICE_PFN +
		       (page_addr(block, i) >> HMM_PAGE_SHIFT);
	uint64_t place = pfn << HMM_TABLE_PFN_SHIFT | HMM_TABLE_DEVICE | HMM_TABLE_VALID;

	/* Only on its way through the shadow: no device can reach it there. */
	if (is_far(block_mirror(block)) && in_shadow(state))
		return 0;
	switch (state) {
	case HMM_PAGE_SHARED:
		return place;
	case HMM_PAGE_DEVICE:
		return place | HMM_TABLE_WRITE;
	case HMM_PAGE_COHERENT:
		return place | HMM_TABLE_WRITE | HMM_TABLE_COHERENT;
	case HMM_PAGE_ERROR:
		return HMM_TABLE_ERROR;
	case HMM_PAGE_INVALID:
	case HMM_PAGE_REMOTE:
		break;
	}
	return 0;
}

/* The page of the driver's memory that a far page is in; the entry keeps it while it is hidden. */
uint32_t block_far_number(const struct block *block, unsigned int i)
{
	return (uint32_t)((table_entries(block)[i] >> HMM_TABLE_PFN_SHIFT) % HMM_TABLE_DEVICE_PFN);
}

static bool lies_in_shadow(const struct block *block, unsigned int i)
{
	return in_shadow(page_state(block, i)) && !page_is_far(block, i);
}

static void count_pages(struct mirror *mirror, int64_t device, int64_t shared, int64_t far)
{
	if (!mirror)
		return;
	atomic_fetch_add_explicit(&mirror->device_pages, (uint64_t)device, memory_order_relaxed);
	atomic_fetch_add_explicit(&mirror->shared_pages, (uint64_t)shared, memory_order_relaxed);
	mirror->far_pages += (uint64_t)far;
}

/* @keep: the driver's page is not free, for its bytes go by another address now. */
static void set_state(struct block *block, unsigned int first, unsigned int end, enum hmm_page_state state,
		      bool keep)
{
	uint64_t *entry = table_entries(block);
	struct mirror *mirror = block_mirror(block);
	int64_t device = 0, shared = 0, far = 0;

	for (unsigned int i = first; i < end; i++) {
		enum hmm_page_state was = page_state(block, i);
		bool was_far = page_is_far(block, i);
		uint32_t number = block_far_number(block, i);
		/* Voided it stays until the transit has ended: a successor has only the ledger's word for that. */
		uint8_t served = block_at_rest(block) ? 0 : block->record->page[i] & HMM_PAGE_SERVED;

		device += (state == HMM_PAGE_DEVICE || state == HMM_PAGE_COHERENT) -
			  (was == HMM_PAGE_DEVICE || was == HMM_PAGE_COHERENT);
		shared += (state == HMM_PAGE_SHARED) - (was == HMM_PAGE_SHARED);
		far -= was_far;
		assert(in_shadow(state) || !block->dma || !pages_test(&block->dma->reached, i));
		if (in_shadow(state))
			pages_clear(&block->stale, i);
		else if (lies_in_shadow(block, i))
			pages_set(&block->stale, i);
		/* One store: state and COMPLETE can't be seen apart after a crash. */
		__atomic_store_n(&block->record->page[i],
				 (uint8_t)(state | served | (in_shadow(state) ? HMM_PAGE_COMPLETE : 0)),
				 __ATOMIC_RELEASE);
		__atomic_store_n(&entry[i], entry_for(block, i, state), __ATOMIC_RELEASE);
		if (was_far && !keep && mirror)
			far_release(mirror, number);
	}
	count_pages(mirror, device, shared, far);
}

void block_set_state(struct block *block, unsigned int first, unsigned int end,
		     enum hmm_page_state state)
{
	set_state(block, first, end, state, false);
}

void block_set_far(struct block *block, unsigned int i, uint32_t number)
{
	uint64_t pfn = (block->record->mirror + 1ULL) * HMM_TABLE_DEVICE_PFN + number;
	uint64_t *entry = &table_entries(block)[i];
	bool was_out = page_state(block, i) == HMM_PAGE_DEVICE, was_far = page_is_far(block, i);

	if (lies_in_shadow(block, i))
		pages_set(&block->stale, i);
	/* The number first: with the ledger's word for it the entry is all that tells it. */
	__atomic_store_n(entry, pfn << HMM_TABLE_PFN_SHIFT, __ATOMIC_RELEASE);
	__atomic_store_n(&block->record->page[i], (uint8_t)(HMM_PAGE_DEVICE | HMM_PAGE_FAR), __ATOMIC_RELEASE);
	__atomic_store_n(entry, pfn << HMM_TABLE_PFN_SHIFT | HMM_TABLE_VALID | HMM_TABLE_WRITE | HMM_TABLE_DEVICE,
			 __ATOMIC_RELEASE);
	count_pages(block_mirror(block), !was_out, 0, !was_far);
}

void block_forget_far(struct block *block, unsigned int i)
{
	set_state(block, i, i + 1, HMM_PAGE_INVALID, true);
}

unsigned int block_pages_in(const struct block *block, enum hmm_page_state state, unsigned int first,
			    unsigned int end, struct pages *pages)
{
	unsigned int n = 0;

	*pages = (struct pages){ 0 };
	for (unsigned int i = first; i < end; i++) {
		if (page_state(block, i) != state)
			continue;
		pages_set(pages, i);
		n++;
	}
	return n;
}

unsigned int block_count(const struct block *block, enum hmm_page_state state)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		n += page_state(block, i) == state;
	return n;
}

bool block_is_coherent(const struct block *block)
{
	static const uint8_t all[HMM_BLOCK_PAGES] = {[0 ... HMM_BLOCK_PAGES - 1] = HMM_PAGE_COHERENT | HMM_PAGE_COMPLETE};

	return memcmp(block->record->page, all, sizeof(all)) == 0;
}

void block_hide(struct block *block, const struct pages *pages)
{
	uint64_t *entry = table_entries(block);
	unsigned int first = 0, end;

	for (; pages_run(pages, &first, &end); first = end)
		for (unsigned int i = first; i < end; i++)
			if (entry[i])
				__atomic_store_n(&entry[i], page_is_far(block, i) ? entry[i] & ~HMM_TABLE_FLAGS : 0,
						 __ATOMIC_RELEASE);
}

bool block_is_remote(const struct block *block, unsigned int i)
{
	return block->remote && page_state(block, i) == HMM_PAGE_INVALID &&
	       table_entries(block)[i] & HMM_TABLE_VALID;
}

bool block_remote_exceeds(const struct block *block, unsigned int i, bool read, bool write)
{
	return block_is_remote(block, i) && (!read || (!write && table_entries(block)[i] & HMM_TABLE_WRITE));
}

void block_set_remote(struct block *block, unsigned int i, bool write)
{
	uint64_t entry = page_addr(block, i) >> HMM_PAGE_SHIFT << HMM_TABLE_PFN_SHIFT | HMM_TABLE_VALID |
			 (write ? HMM_TABLE_WRITE : 0);

	assert(page_state(block, i) == HMM_PAGE_INVALID);
	block->remote = true;
	__atomic_store_n(&table_entries(block)[i], entry, __ATOMIC_RELEASE);
}

void block_drop_remote(struct block *block, const struct pages *pages)
{
	unsigned int first = 0, last = 0, end;
	struct pages remote = { 0 };
	bool told;

	for (unsigned int i = 0; block->remote && i < HMM_BLOCK_PAGES; i++)
		if (block_is_remote(block, i) && (!pages || pages_test(pages, i)))
			pages_set(&remote, i);
	told = !pages_empty(&remote) && range_is_told(block);
	if (!pages)
		block->remote = false;
	if (!pages_run(&remote, &first, &end))
		return;
	for (unsigned int at = first; pages_run(&remote, &at, &end); at = end)
		last = end;
	transit_withdraw(block, &remote);
	/* Nothing of theirs is in a shadow: drivers are told, and nobody waits for them. */
	if (told)
		invalidate_send(block, page_addr(block, first), page_addr(block, last - 1) + HMM_PAGE_SIZE,
				HMM_REASON_MIGRATE, false);
}

/* ---- shadow pages ------------------------------------------------------------------- */

bool block_holds_pages(const struct block *block)
{
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (lies_in_shadow(block, i))
			return true;
	return false;
}

static bool holds_far_pages(const struct block *block)
{
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (page_is_far(block, i))
			return true;
	return false;
}

/* False: a huge page could not be split, for somebody holds it; it reads as zeros there. */
static bool punch_run(struct block *block, const struct shadow *shadow, unsigned int first,
		      unsigned int end)
{
	uint64_t length = (uint64_t)(end - first) << HMM_PAGE_SHIFT;

	if (!block_has_window(block) || shadow_has_data(shadow, page_addr(block, first), length)) {
		window_guard(block);
		kernel->punch(shadow->fd, page_addr(block, first) - shadow->base, length);
		if (shadow_has_data(shadow, page_addr(block, first), length))
			return false;
	}
	for (unsigned int i = first; i < end; i++)
		pages_clear(&block->stale, i);
	return true;
}

void block_recharge(struct block *block)
{
	struct mirror *mirror = block_mirror(block);
	unsigned int held = 0;

	/* A huge page stays charged whole; what is in transit is charged for. */
	if (!mirror || pool_is_huge(mirror->device->pool->kind) || !block_at_rest(block))
		return;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		held += lies_in_shadow(block, i) || pages_test(&block->stale, i);
	if (block->charged <= held)
		return;
	block_uncharge(block, block->charged - held);
}

bool block_punch_stale(struct block *block)
{
	struct shadow *shadow = block_shadow(block);
	unsigned int first = 0, end;
	bool clean = true;

	/* The agent fills it, or is about to. */
	if (block->record->transit == HMM_TRANSIT_OUT_MOVE ||
	    block->record->transit == HMM_TRANSIT_OUT_ZAP)
		return false;
	if (!shadow) {
		block->stale = (struct pages){ 0 };
		block_uncharge(block, block->charged);
		/* A shadow that its library had not got when hmmd died: nothing is left that would be its holder's. */
		if (!block_holds_pages(block) && !holds_far_pages(block))
			block->record->mirror = HMM_NO_MIRROR;
		return copies_clear(block);
	}
	if (!block_holds_pages(block)) {
		kernel->punch(shadow->fd, block->addr - shadow->base, HMM_BLOCK_SIZE);
		/* hugetlbfs frees a whole page for certain, and has no holes to look for. */
		if (block_has_window(block) && shadow->kind != HMM_POOL_KIND_HUGETLB)
			clean = !shadow_has_data(shadow, block->addr, HMM_BLOCK_SIZE);
		clean &= copies_clear(block);
		if (clean) {
			block->stale = (struct pages){ 0 };
			block_uncharge(block, block->charged);
			if (!holds_far_pages(block))
				block->record->mirror = HMM_NO_MIRROR;
		}
		return clean;
	}
	if (shadow->kind == HMM_POOL_KIND_HUGETLB)
		return false;	/* a 4K punch of a hugetlb page zeroes and frees nothing */
	for (; pages_run(&block->stale, &first, &end); first = end)
		clean &= punch_run(block, shadow, first, end);
	block_recharge(block);
	return clean;
}

/* A driver that is not back after a restart, yet or ever, still has its windows. */
static bool has_strayed(const struct block *block)
{
	const struct mirror *mirror = block_mirror(block);

	return mirror && (mirror->strayed || mirror->awaited);
}

bool block_in_window(const struct block *block)
{
	struct window *window;

	if (has_strayed(block))
		return true;
	TAILQ_FOREACH(window, &block->owner->windows, link)
		if (window->start < block->addr + HMM_BLOCK_SIZE && window->end > block->addr)
			return true;
	return false;
}

bool block_has_window(const struct block *block)
{
	struct window *window;

	if (has_strayed(block))
		return true;
	TAILQ_FOREACH(window, &block->owner->windows, link)
		if (window->armed && window->start < block->addr + HMM_BLOCK_SIZE &&
		    window->end > block->addr)
			return true;
	return false;
}

/* ---- going away ------------------------------------------------------------------------ */

void block_settle_later(struct block *block)
{
	struct owner *owner = block->owner;

	/* Whoever excluded it waits to move it, however often a device asks for it meanwhile. */
	if (block->queued && span_set_overlaps(&owner->excluded, block->addr, block->addr + HMM_BLOCK_SIZE))
		return;
	if (block->queued)
		TAILQ_REMOVE(&owner->settling, block, settle);
	block->queued = true;
	block->settle_at = owner->worker->now + SETTLE_NS;
	TAILQ_INSERT_TAIL(&owner->settling, block, settle);
	/* Who needs room takes it first. */
	if (!block_holds_pages(block))
		block_cool(block);
	worker_alarm(owner->worker, block->settle_at);
}

/*
 * Whoever excluded it waits to move it. The moments between the events of a program that discards pages without end
 * are few: one try in seven met one, and 60 in a row met none once in a thousand waits.
 */
static void settle_soon(struct block *block)
{
	struct owner *owner = block->owner;
	struct block *next = TAILQ_FIRST(&owner->settling);

	block->queued = true;
	block->settle_at = owner->worker->now + SOON_NS;
	while (next && next->settle_at <= block->settle_at)
		next = TAILQ_NEXT(next, settle);
	if (next)
		TAILQ_INSERT_BEFORE(next, block, settle);
	else
		TAILQ_INSERT_TAIL(&owner->settling, block, settle);
	worker_alarm(owner->worker, block->settle_at);
}

bool block_device_reads(const struct block *block)
{
	const struct mirror *mirror = block_mirror(block);

	return mirror && !is_far(mirror) && device_shares(mirror->device) &&
	       (mirror->flags & HMM_MIRROR_FLAGS_CALLBACKS || block_has_window(block) || copies_are_read(block)) &&
	       !block->owner->closing;
}

void block_settle(struct block *block)
{
	struct owner *owner = block->owner;
	struct pages shared;
	bool collapse;

	if (block->queued) {
		TAILQ_REMOVE(&owner->settling, block, settle);
		block->queued = false;
	}
	if (!block_at_rest(block))
		return;
	if (block->doubtful && map_is_changing(owner)) {
		settle_soon(block);
		return;
	}
	/* All that was done while no hmmd was there has been read by now. */
	for (unsigned int i = 0; block->doubtful && i < HMM_BLOCK_PAGES; i++)
		block->record->page[i] &= (uint8_t)~HMM_PAGE_DOUBTFUL;
	block->doubtful = false;
	if (!block_disarm_excluded(block)) {
		settle_soon(block);
		return;
	}
	if (far_settle(block, NULL))
		return;
	if (block_count(block, HMM_PAGE_DEVICE) || block_count(block, HMM_PAGE_COHERENT) ||
	    block_count(block, HMM_PAGE_ERROR))
		return;
	if (block_pages_in(block, HMM_PAGE_SHARED, 0, HMM_BLOCK_PAGES, &shared)) {
		if (block_device_reads(block) || attribute_keeps_copies(block))
			return;
		unshare_begin(block, &shared, HMM_REASON_EVICT, NULL);
		return;		/* looked at again when it has ended */
	}
	block_look_for_zap(block);
	if (!pages_empty(&block->zapping) || !block_punch_stale(block)) {
		block_settle_later(block);
		return;
	}
	if (range_holds(block))
		return;
	/* Before it is disarmed: entries that nobody keeps true must not be believed. */
	block_drop_remote(block, NULL);
	collapse = block->went_huge && owner->pidfd >= 0 && owner->worker->engine->facts.collapse;
	if (!block_disarm(block)) {
		block_settle_later(block);
		return;
	}
	if (collapse && kernel->collapse(owner->pidfd, block->addr, HMM_BLOCK_SIZE) == 0)
		owner_count(owner, COUNTER_HUGE_HOME, 1);
	block_forget(block);
}

void block_expect_zap(struct block *block, unsigned int first, unsigned int end)
{
	for (unsigned int i = first; i < end; i++)
		pages_set(&block->zapping, i);
	block->zapping_until = block->owner->worker->now + ZAP_NS;
	block_settle_later(block);
}

void block_look_for_zap(struct block *block)
{
	struct owner *owner = block->owner;
	uint64_t entries[HMM_BLOCK_PAGES];

	if (pages_empty(&block->zapping))
		return;
	if (owner->worker->now >= block->zapping_until) {
		block->zapping = (struct pages){ 0 };
		return;
	}
	if (kernel->pagemap_read(owner->pagemap, block->addr, HMM_BLOCK_PAGES, entries))
		return;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (!(entries[i] & (PM_PRESENT | PM_SWAP)))
			pages_clear(&block->zapping, i);
}

void block_forget_mirror(struct block *block)
{
	block_uncharge(block, block->charged);
	block->stale = (struct pages){ 0 };
	block->record->mirror = HMM_NO_MIRROR;
}

void block_let_go_coherent(struct block *block)
{
	struct pages coherent;
	unsigned int first = 0, end;

	if (!block_at_rest(block) ||
	    !block_pages_in(block, HMM_PAGE_COHERENT, 0, HMM_BLOCK_PAGES, &coherent))
		return;
	transit_withdraw(block, &coherent);
	dma_cut(block, &coherent);
	for (; pages_run(&coherent, &first, &end); first = end)
		block_set_state(block, first, end, HMM_PAGE_INVALID);
	/* The owner maps those very pages: nothing may be punched. */
	block->stale = (struct pages){ 0 };
	block_uncharge(block, block->charged);
	block_forget(block);
}

/* ---- pages that the owner gave up ---------------------------------------------------------- */

void block_bury(struct block *block, unsigned int i)
{
	pages_set(&block->dead, i);
	/* In the ledger, too: a successor must not believe what was moved. */
	block->record->page[i] |= HMM_PAGE_SERVED;
}

void block_punch_void(struct block *block, const struct pages *pages)
{
	unsigned int first = 0, end;

	if (block->record->transit != HMM_TRANSIT_OUT_MOVE && block->record->transit != HMM_TRANSIT_OUT_ZAP) {
		block_punch_stale(block);
		return;
	}
	for (; block_shadow(block) && pages_run(pages, &first, &end); first = end)
		punch_run(block, block_shadow(block), first, end);
}

static void discard_now(struct block *block, const struct pages *pages)
{
	unsigned int first = 0, end;

	dma_cut(block, pages);
	copies_drop(block, pages);
	for (; pages_run(pages, &first, &end); first = end)
		block_set_state(block, first, end, HMM_PAGE_INVALID);
	if (!block_has_window(block))
		return;
	block_punch_void(block, pages);
	for (first = 0; pages_run(pages, &first, &end); first = end)
		window_wake(block, first, end);
}

static void discard_proceed(struct block *block)
{
	discard_now(block, &block->move.want);
	transit_end(block);
	block_settle_later(block);
}

void block_discard(struct block *block, unsigned int first, unsigned int end, int reason)
{
	struct pages gone = { 0 }, remote = { 0 };
	bool busy = !block_at_rest(block);

	for (unsigned int i = first; i < end; i++) {
		enum hmm_page_state state = page_state(block, i);
		bool pending = page_is_pending(block, i);

		if (pending)
			block_bury(block, i);
		else if (state != HMM_PAGE_INVALID)
			pages_set(&gone, i);
		else if (block_is_remote(block, i))
			pages_set(busy ? &gone : &remote, i);
	}
	block->record->flags &= ~HMM_BLOCK_HUGE;
	if (!pages_empty(&remote)) {
		/* Nothing of theirs is in a shadow: drivers are told, and nobody waits for them. */
		transit_withdraw(block, &remote);
		invalidate_send(block, page_addr(block, first), page_addr(block, end), reason, false);
	}
	if (pages_empty(&gone))
		return;
	if (!busy) {
		block->move.want = gone;
		transit_begin(block, HMM_TRANSIT_UNSHARING, &gone, reason, discard_proceed);
		/* Until its drivers have answered a successor must not take it for S still. */
		for (unsigned int i = first; i < end; i++)
			if (page_is_pending(block, i))
				block_bury(block, i);
		return;
	}
	/* The block's number is odd already: nobody trusts these pages now. */
	copies_hide(block, &gone);
	block_hide(block, &gone);
	invalidate_send(block, page_addr(block, first), page_addr(block, end), reason, false);
	discard_now(block, &gone);
}
