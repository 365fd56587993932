/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * transition.c - the table of transit states, and how every change begins and
 * ends. hmmctl, logs and the manual print the names from here.
 *
 * The order, always: sequence number odd, entries out of the table, drivers
 * told and their answers in, the CPU side changes, sequence number even,
 * wake-ups. The ledger says {transit, pages, epoch, slot} before the first
 * side effect, so that a successor can settle what a crash left (recover.c).
 */
#include <assert.h>

#include "engine/owner.h"

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
		.owner_has = "not moved: I, punch",
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
		.owner_has_not = "redo: D",
		.from = D,
		.to = I | D | E,
	},
	[HMM_TRANSIT_HOME_SLOT] = {
		.name = "home-slot",
		.owner_has = "the CPU wins: I, punch",
		.owner_has_not = "drop the slot, redo: D",
		.from = D,
		.to = I | D,
	},
	[HMM_TRANSIT_SHARING] = {
		.name = "sharing",
		.owner_has = "the CPU wins: unprotect, I, punch",
		.owner_has_not = "redo: D",
		.from = D,
		.to = S | I | D,
	},
	[HMM_TRANSIT_UNSHARING] = {
		.name = "unsharing",
		.owner_has = "redo: unprotect, I, punch",
		.owner_has_not = "discarded: I, punch",
		.from = S | D | C | E,
		.to = I | S | D,
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

static void sequence_bump(struct block *block, bool odd)
{
	uint64_t *word = block->owner->table + HMM_TABLE_ENTRIES + (block->addr >> HMM_BLOCK_SHIFT);
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

void transit_begin(struct block *block, enum hmm_transit transit, const struct pages *pages,
		   int reason, block_proceed proceed)
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
	block_hide(block, pages);

	pages_run(pages, &first, &end);
	last = end;
	for (unsigned int at = end; pages_run(pages, &at, &end); at = end)
		last = end;
	block->proceed = proceed;
	block->acks = invalidate_send(block, page_addr(block, first), page_addr(block, last), reason, true);
	if (!block->acks)
		proceed(block);
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

	TAILQ_CONCAT(&block->owner->runnable, &block->parked, link);
}

void transit_note(struct block *block)
{
	if (!block_at_rest(block))
		return;		/* odd as it is */
	sequence_bump(block, true);
	sequence_bump(block, false);
}
