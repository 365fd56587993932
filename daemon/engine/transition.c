/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * transition.c - the table of transit states, and how every change begins and
 * ends. hmmctl, logs and the manual print the names from here.
 *
 * The order, always: sequence number odd, entries out of the table, drivers
 * told and their answers in, cards' IOMMUs unmapped, copies punched, the CPU side changes,
 * sequence number even, wake-ups. The ledger says {transit, pages, epoch, slot} before the first
 * side effect, so that a successor can settle what a crash left (recover.c).
 */
#include <assert.h>

#include "engine/copies.h"
#include "engine/dma.h"
#include "engine/graft.h"

#define I (1U << HMM_PAGE_INVALID)
#define R (1U << HMM_PAGE_REMOTE)
#define S (1U << HMM_PAGE_SHARED)
#define D (1U << HMM_PAGE_DEVICE)
#define C (1U << HMM_PAGE_COHERENT)
#define E (1U << HMM_PAGE_ERROR)

const struct transit_rule transit_rules[HMM_TRANSIT_MAX] = {
	[HMM_TRANSIT_REST] = {
		.name = "rest",
		.owner_has = "nothing to settle",
		.owner_has_not = "nothing to settle",
		.from = I | R | S | D | C | E,
		.to = I | R | S | D | C | E,
	},
	[HMM_TRANSIT_OUT_MOVE] = {
		.name = "out-move",
		.owner_has = "not moved: I, punch; S stays S",
		.owner_has_not = "complete: D; in the slot: refill, D; else a hole: I",
		.from = I | S,
		.to = D | I | S,
	},
	[HMM_TRANSIT_OUT_ZAP] = {
		.name = "out-zap",
		.owner_has = "the CPU wins: unprotect, I, punch",
		.owner_has_not = "complete: D; else it was discarded: I",
		.from = I,
		.to = D | I,
	},
	[HMM_TRANSIT_HOME_COPY] = {
		.name = "home-copy",
		.owner_has = "the CPU wins: I, punch",
		.owner_has_not = "noted as I: I; else redo: D",
		.from = D,
		.to = I | D | E,
	},
	[HMM_TRANSIT_HOME_SLOT] = {
		.name = "home-slot",
		.owner_has = "the CPU wins: I, punch",
		.owner_has_not = "noted as I, or moved by its order: I; else drop the slot, redo: D",
		.from = D,
		.to = I | D,
	},
	[HMM_TRANSIT_SHARING] = {
		.name = "sharing",
		.owner_has = "noted as S: S; else the CPU wins: unprotect, I, punch",
		.owner_has_not = "noted as I: I; else redo: D",
		.from = D,
		.to = S | I | D,
	},
	[HMM_TRANSIT_UNSHARING] = {
		.name = "unsharing",
		.owner_has = "drivers had not answered: S still; else unprotect, I, punch",
		.owner_has_not = "discarded: I, punch",
		.from = I | S | D | C | E,
		.to = I | S | D,
	},
	[HMM_TRANSIT_COHERING] = {
		.name = "cohering",
		.owner_has = "the order is done: D is C, C is D; else as it was",
		.owner_has_not = "the same; voided: I",
		.from = D | C,
		.to = D | C | I,
	},
	[HMM_TRANSIT_STORE] = {
		.name = "store",
		.owner_has = "cannot be: D",
		.owner_has_not = "far if it was noted, else still in the shadow: D",
		.from = D,
		.to = D | I,
	},
	[HMM_TRANSIT_FETCH] = {
		.name = "fetch",
		.owner_has = "cannot be: D",
		.owner_has_not = "far still: D, redo",
		.from = D,
		.to = D | I | E,
	},
};

const char *transit_name(uint32_t transit)
{
	return transit < HMM_TRANSIT_MAX ? transit_rules[transit].name : "?";
}

static uint64_t *sequence_word(const struct owner *owner, uint64_t addr)
{
	return owner->table + HMM_TABLE_ENTRIES + (addr >> HMM_BLOCK_SHIFT);
}

uint64_t block_sequence(const struct owner *owner, uint64_t addr)
{
	return __atomic_load_n(sequence_word(owner, addr), __ATOMIC_RELAXED);
}

static void sequence_bump(struct block *block, bool odd)
{
	uint64_t *word = sequence_word(block->owner, block->addr);
	uint64_t now = __atomic_load_n(word, __ATOMIC_RELAXED);

	assert((now & 1) != odd);
	__atomic_store_n(word, now + 1, __ATOMIC_SEQ_CST);
}

static void check_pages(const struct block *block, const struct pages *pages, uint32_t allowed)
{
	unsigned int first = 0, end;

	for (; pages_run(pages, &first, &end); first = end)
		for (unsigned int i = first; i < end; i++)
			assert(allowed & 1U << page_state(block, i));
}

static void begin(struct block *block, enum hmm_transit transit, const struct pages *pages, int reason,
		  block_proceed proceed, block_proceed refused)
{
	struct hmm_ledger_block *record = block->record;
	unsigned int first = 0, end = 0, last;

	assert(block_at_rest(block) && transit != HMM_TRANSIT_REST);
	check_pages(block, pages, transit_rules[transit].from);

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		record->pending[w] = pages->word[w];
	block->dead = (struct pages){ 0 };
	block->move.reason = reason;
	/* Never the same twice for an owner: an order of an earlier transit is not this one's. */
	__atomic_store_n(&record->epoch, ++block->owner->next_epoch, __ATOMIC_RELAXED);
	__atomic_store_n(&record->transit, (uint32_t)transit, __ATOMIC_RELEASE);

	sequence_bump(block, true);
	copies_hide(block, pages);
	block_hide(block, pages);

	pages_run(pages, &first, &end);
	last = end;
	for (unsigned int at = end; pages_run(pages, &at, &end); at = end)
		last = end;
	block->proceed = proceed;
	block->refused = refused;
	block->refusal = false;
	block->acks = invalidate_send(block, page_addr(block, first), page_addr(block, last), reason, true);
	if (!block->acks)
		transit_proceed(block);
}

void transit_proceed(struct block *block)
{
	struct pages pages;

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		pages.word[w] = block->record->pending[w];
	dma_cut(block, &pages);
	copies_drop(block, &pages);
	block->proceed(block);
}

void transit_begin(struct block *block, enum hmm_transit transit, const struct pages *pages,
		   int reason, block_proceed proceed)
{
	begin(block, transit, pages, reason, proceed, NULL);
}

void transit_ask(struct block *block, enum hmm_transit transit, const struct pages *pages, int reason,
		 block_proceed proceed, block_proceed refused)
{
	begin(block, transit, pages, reason, proceed, refused);
}

void transit_answered(struct block *block, bool refusal)
{
	if (refusal && block->refused)
		block->refusal = true;
	if (--block->acks)
		return;
	if (!block->refusal) {
		transit_proceed(block);
		return;
	}
	transit_restore(block);
	block->refused(block);
}

void transit_restore(struct block *block)
{
	struct hmm_ledger_block *record = block->record;
	bool lost = !pages_empty(&block->dead);
	struct pages kept;

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		kept.word[w] = record->pending[w] & ~block->dead.word[w];
	dma_cut(block, &block->dead);
	copies_drop(block, &block->dead);
	copies_show(block, &kept);
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (record->pending[i / 64] >> (i % 64) & 1)
			block_set_state(block, i, i + 1, pages_test(&block->dead, i) ? HMM_PAGE_INVALID :
										      page_state(block, i));
	if (record->slot != HMM_NO_SLOT)
		slot_put(block->owner, record->slot);
	if (lost && block_has_window(block)) {
		block_punch_void(block, &block->dead);
		window_wake(block, 0, HMM_BLOCK_PAGES);
	}
	transit_end(block);
	if (lost)
		block_settle_later(block);
}

void transit_end(struct block *block)
{
	struct pages pending;

	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
		pending.word[w] = block->record->pending[w];
	check_pages(block, &pending, transit_rules[block->record->transit].to);

	block->record->slot = HMM_NO_SLOT;
	sequence_bump(block, false);
	__atomic_store_n(&block->record->transit, (uint32_t)HMM_TRANSIT_REST, __ATOMIC_RELEASE);
	/* Its order stays in the ring for a while, and is nobody's any more: what is discarded now its program discards. */
	__atomic_store_n(&block->record->epoch, ++block->owner->next_epoch, __ATOMIC_RELAXED);
	for (unsigned int first = 0, end; pages_run(&pending, &first, &end); first = end)
		for (unsigned int i = first; i < end; i++)
			block->record->page[i] &= (uint8_t)~HMM_PAGE_SERVED;
	invalidate_settled(block);
	graft_settle(block);

	TAILQ_CONCAT(&block->owner->runnable, &block->parked, link);
}

void transit_withdraw(struct block *block, const struct pages *pages)
{
	assert(block_at_rest(block));
	sequence_bump(block, true);
	block_hide(block, pages);
	sequence_bump(block, false);
}

bool transit_note_written(struct owner *owner, uint64_t addr)
{
	uint64_t *number = owner->table + HMM_TABLE_ENTRIES + (addr >> HMM_BLOCK_SHIFT);

	if (__atomic_load_n(number, __ATOMIC_SEQ_CST))
		return false;
	__atomic_add_fetch(number, 2, __ATOMIC_SEQ_CST);
	return true;
}

void transit_note(struct block *block)
{
	if (!block_at_rest(block))
		return;		/* odd as it is */
	sequence_bump(block, true);
	sequence_bump(block, false);
}
