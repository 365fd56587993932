/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * settle.c - where an owner's pages are when their hmmd is dead: each block that was in transit by its rule (transition.c), the owner's pagemap
 * being the judge. Runs on the owner's worker, while the agent does nothing and before any event is applied.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "engine/copies.h"
#include "engine/owner.h"
#include "log.h"
#include "uapi.h"

/* The finished order that this very transit gave, if it got that far. */
static const struct hmm_order *order_of(const struct block *block)
{
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++) {
		const struct hmm_order *order = &block->owner->orders->ring[i];

		if (order->state == HMM_ORDER_DONE && order->addr == block->addr &&
		    order->epoch == block->record->epoch)
			return order;
	}
	return NULL;
}

static bool was_moved(const struct hmm_order *order, unsigned int i)
{
	return order && order->moved[i / 64] >> (i % 64) & 1;
}

static bool went_out(const struct hmm_order *order, unsigned int i)
{
	if (was_moved(order, i))
		return true;
	/* Nothing was there: zeros in a block that was filled whole, or left S as it was. */
	return order && order->hole[i / 64] >> (i % 64) & 1 &&
	       (order->flags & HMM_ORDER_WHOLE || order->kind == HMM_ORDER_DROP);
}

/*
 * What was noted as I had come home, and its copy may be punched, the block be nobody's: if the owner has not got it, it has been discarded or
 * unmapped since, and the event of that is unread.
 */
static enum hmm_page_state came_home(enum hmm_page_state was, bool owner_has)
{
	return owner_has || was == HMM_PAGE_INVALID ? HMM_PAGE_INVALID : HMM_PAGE_DEVICE;
}

static enum hmm_page_state settled_state(struct block *block, unsigned int i, uint64_t entry,
					 const struct hmm_order *order)
{
	bool owner_has = entry & (PM_PRESENT | PM_SWAP);
	enum hmm_page_state was = page_state(block, i);

	/*
	 * By the order alone: of the block's pages some may have been noted already. Its own
	 * event may have voided what it took away.
	 */
	if (block->record->transit == HMM_TRANSIT_COHERING && went_out(order, i) &&
	    order->kind == HMM_ORDER_COHERE)
		return HMM_PAGE_COHERENT;
	if (block->record->page[i] & HMM_PAGE_SERVED)
		return HMM_PAGE_INVALID;
	switch (block->record->transit) {
	case HMM_TRANSIT_OUT_MOVE:
	case HMM_TRANSIT_OUT_ZAP:
		/* Armed and moved, nobody but hmmd could have put a page there. */
		if (went_out(order, i) && !owner_has)
			return HMM_PAGE_DEVICE;
		return was == HMM_PAGE_SHARED && owner_has ? HMM_PAGE_SHARED : HMM_PAGE_INVALID;
	case HMM_TRANSIT_SHARING:
		/* Noted as S it was whole, and a driver may have taken its entry: its number was even before the block was at rest. */
		if (was == HMM_PAGE_SHARED && owner_has && entry & PM_UFFD_WP)
			return HMM_PAGE_SHARED;
		return came_home(was, owner_has);
	case HMM_TRANSIT_HOME_SLOT:
		/* And was moved on since by mremap(), perhaps, of which nobody has read. */
		if (was_moved(order, i))
			return HMM_PAGE_INVALID;
		return came_home(was, owner_has);
	case HMM_TRANSIT_HOME_COPY:
		return came_home(was, owner_has);
	case HMM_TRANSIT_COHERING:
		return went_out(order, i) ? HMM_PAGE_DEVICE : was;
	case HMM_TRANSIT_UNSHARING:
		/*
		 * Its drivers have not answered all, or it would be noted as I: a device may be reading the copy, which stays, and
		 * so does the protection. Whoever wanted to write is woken, and comes again. What was discarded is SERVED.
		 */
		return was == HMM_PAGE_SHARED && owner_has && entry & PM_UFFD_WP ? HMM_PAGE_SHARED : HMM_PAGE_INVALID;
	case HMM_TRANSIT_STORE:
	case HMM_TRANSIT_FETCH:
		/* Where its bytes are is noted before the other copy goes. */
		return was;
	default:
		return HMM_PAGE_INVALID;
	}
}

/*
 * hmmd itself copies such a page home, and what it had done when it died is noted nowhere: who then had it moved on, before anybody could look,
 * has it there. The event of that is unread, and tells (remap.c).
 */
static bool is_doubtful(const struct block *block, unsigned int i, enum hmm_page_state state, bool owner_has)
{
	uint32_t transit = block->record->transit;

	return (transit == HMM_TRANSIT_HOME_COPY || transit == HMM_TRANSIT_SHARING) && state == HMM_PAGE_DEVICE && !owner_has &&
	       !page_is_far(block, i);
}

/* A far page stays where it is: its number is in the entry. */
static void set_settled(struct block *block, unsigned int i, enum hmm_page_state state)
{
	if (state == HMM_PAGE_DEVICE && page_is_far(block, i))
		block_set_far(block, i, block_far_number(block, i));
	else
		block_set_state(block, i, i + 1, state);
}

/*
 * Where its pages are nobody else knows, and nobody may go on without it: asked until there is an answer. Only of an mm that
 * is gone there is none.
 */
static bool look_surely(const struct block *block, uint64_t *entries)
{
	int r;

	do
		r = kernel->pagemap_read(block->owner->pagemap, block->addr, HMM_BLOCK_PAGES, entries);
	while (r && r != -ESRCH && !owner_mm_is_gone(block->owner));
	return !r;
}

static uint64_t settle_transit(struct block *block)
{
	struct owner *owner = block->owner;
	const struct hmm_order *order = order_of(block);
	uint64_t entries[HMM_BLOCK_PAGES], pages = 0;
	struct pages protected = { 0 };
	unsigned int first = 0, end;

	if (!look_surely(block, entries)) {
		owner->gone = true;
		return 0;
	}
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		bool has = entries[i] & (PM_PRESENT | PM_SWAP), doubtful;
		enum hmm_page_state state;

		if (!(block->record->pending[i / 64] >> (i % 64) & 1))
			continue;
		state = settled_state(block, i, entries[i], order);
		doubtful = is_doubtful(block, i, state, has);
		set_settled(block, i, state);
		if (doubtful)
			block->record->page[i] |= HMM_PAGE_DOUBTFUL;
		/* Noted as I before the crash, perhaps, and not punched yet: nothing else tells. */
		if (state == HMM_PAGE_INVALID)
			pages_set(&block->stale, i);
		if (state == HMM_PAGE_INVALID && has && entries[i] & PM_UFFD_WP)
			pages_set(&protected, i);
		pages++;
	}
	log_debug("owner %u: block %#lx: %s settled", owner->id, block->addr,
		  transit_name(block->record->transit));
	block->record->transit = HMM_TRANSIT_REST;
	block->record->slot = HMM_NO_SLOT;
	/* The copy goes before the CPU may write: a window may show it, known here or not. */
	block_punch_stale(block);
	for (; pages_run(&protected, &first, &end); first = end)
		kernel->uffd_protect(owner->uffd, page_addr(block, first),
				     (size_t)(end - first) << HMM_PAGE_SHIFT, false);
	return pages;
}

static void settle_block(struct owner *owner, uint64_t addr, void *data)
{
	uint64_t *settled = data;
	uint64_t *sequence = owner->table + HMM_TABLE_ENTRIES + (addr >> HMM_BLOCK_SHIFT);
	struct block *block = block_get(owner, addr);
	struct mirror *mirror;
	unsigned int held = 0;
	struct pages far;

	if (!block) {
		log_error("owner %u: out of memory: block %#lx waits", owner->id, addr);
		owner->unsettled = true;
		return;
	}
	/* The counts of a new mirror begin at nothing: what rests is counted now. */
	mirror = block_mirror(block);
	if (mirror) {
		atomic_fetch_add(&mirror->device_pages, block_count(block, HMM_PAGE_DEVICE) +
				 block_count(block, HMM_PAGE_COHERENT));
		atomic_fetch_add(&mirror->shared_pages, block_count(block, HMM_PAGE_SHARED));
		mirror->far_pages += block_far_pages(block, &far);
	}
	if (owner->next_epoch < block->record->epoch)
		owner->next_epoch = block->record->epoch;
	if (block->record->flags & HMM_BLOCK_ARMED) {
		block->record->flags &= ~HMM_BLOCK_ARMED;
		block_note_armed(block, 0, HMM_BLOCK_PAGES);
	}
	/* S pages are protected still: before that can end. */
	copies_recover(block);
	if (!block_at_rest(block))
		*settled += settle_transit(block);
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		uint8_t doubtful = block->record->page[i] & HMM_PAGE_DOUBTFUL;

		/* The table follows the ledger, whatever was between them. */
		set_settled(block, i, page_state(block, i));
		block->record->page[i] |= doubtful;
		block->doubtful |= doubtful != 0;
		if (block->record->page[i] & HMM_PAGE_COMPLETE)
			held++;
		else
			pages_set(&block->stale, i);
	}
	/* What it gave up and had not punched yet a window shows still. */
	if (block_has_window(block))
		block_punch_stale(block);
	block->touched = true;
	block->record->flags &= ~HMM_BLOCK_HUGE;
	if (block_count(block, HMM_PAGE_COHERENT))
		block_note_disarmed(block);
	/* What was settled may have left nothing on it. */
	mirror = block_mirror(block);
	if (mirror) {
		unsigned int pages = pool_is_huge(mirror->device->pool->kind) ? HMM_BLOCK_PAGES : held;

		/* What only the driver reaches takes no room in the pool. */
		if (!held && device_is_far(mirror->device))
			pages = 0;
		if (pages)
			block_overcharge(block, pages);
		if (block_count(block, HMM_PAGE_COHERENT))
			block_keep(block, NULL);
	}
	/* Even, and another number than before: what was settled may have changed. */
	__atomic_add_fetch(sequence, __atomic_load_n(sequence, __ATOMIC_RELAXED) & 1 ? 1 : 2,
			   __ATOMIC_SEQ_CST);
	block_settle_later(block);
}

typedef void (*record_fn)(struct owner *owner, uint64_t addr, void *data);

/* Those that say something; where the ledger is empty it has holes. */
static void for_each_record(struct owner *owner, record_fn fn, void *data)
{
	const off_t end = (off_t)HMM_JOURNAL_OFFSET;
	const size_t record = sizeof(struct hmm_ledger_block);
	struct hmm_ledger_block none = { 0 };
	off_t at = 0;

	while ((at = lseek(owner->ledger_fd, at, SEEK_DATA)) >= 0 && at < end) {
		off_t stop = lseek(owner->ledger_fd, at, SEEK_HOLE);

		if (stop < 0 || stop > end)
			stop = end;
		for (; at < stop; at += (off_t)record) {
			uint64_t n = (uint64_t)at / record;

			if (memcmp(&owner->ledger[n], &none, record) != 0)
				fn(owner, n << HMM_BLOCK_SHIFT, data);
		}
	}
}

uint64_t settle_ledger(struct owner *owner)
{
	uint64_t settled = 0;

	for_each_record(owner, settle_block, &settled);
	return settled;
}

/* What is coherent is not armed; and while it becomes so, or ceases to be, the agent exchanges its mapping. */
static bool is_exchanged(const struct hmm_ledger_block *record)
{
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if ((record->page[i] & HMM_PAGE_STATE_MASK) == HMM_PAGE_COHERENT)
			return true;
	return record->transit == HMM_TRANSIT_COHERING;
}

static void arm_block(struct owner *owner, uint64_t addr, void *data)
{
	const struct hmm_ledger_block *record = &owner->ledger[addr >> HMM_BLOCK_SHIFT];

	(void)data;
	if (record->flags & HMM_BLOCK_ARMED && !is_exchanged(record))
		register_again(owner, addr, addr + HMM_BLOCK_SIZE);
}

void settle_registrations(struct owner *owner)
{
	if (!map_is_changing(owner))
		return;
	split_begin(owner);
	for_each_record(owner, arm_block, NULL);
	split_end(owner);
}
