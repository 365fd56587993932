// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_bar.c - pages in a card's BAR: hmmd's own copying, its pieces, a card that is full, is
 * gone, or has another's pages; and what a successor finds. The card is fake_vfio.c's.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/far_bar.h"
#include "engine_fixture.h"
#include "fake_vfio.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(engine_bar);

#define PAGES 40U /* more than a piece */

static struct fixture fixture;
static struct bar *bar;
static unsigned int woken;

static void note_woken(struct task *task)
{
	(void)task;
	woken++;
}

static struct task waiter = {.run = note_woken};

/* A device that has @share of the BAR's pages. */
static struct block *begin(uint32_t share)
{
	const struct bar_wish wish = {.address = FAKE_CARD, .index = 2};
	char why[240];

	fake_vfio_begin();
	fixture_begin(&fixture, HMM_POOL_KIND_VFIO, POOL);
	cr_assert(eq(int, bar_open(&wish, &bar, why, sizeof(why)), 0), "%s", why);
	fixture.device->bar = bar;
	fixture.device->bar_pages = bar_promise(bar, share);
	fixture.device->far_pages = bar_pages(bar);
	cr_assert(eq(int, far_bar_begin(fixture.mirror), 0));
	woken = 0;
	fixture_out(&fixture, 0, PAGES);
	return fixture_block(&fixture, 0);
}

static void end(void)
{
	fixture_end(&fixture);
	cr_expect(not(fake_vfio.kept));
	fake_vfio_end();
}

static void turn(void)
{
	fixture_later(&fixture, 1);
}

static struct block *begin_far(void)
{
	struct pages pages = pages_from(0, PAGES);
	struct block *block = begin(0);

	far_store(block, &pages, NULL);
	cr_assert(not(block_at_rest(block)), "it goes by pieces");
	turn();
	cr_assert(block_at_rest(block));
	cr_assert(eq(u64, fixture.mirror->far_pages, PAGES));
	return block;
}

static void check_shadow(const struct block *block, unsigned int first, unsigned int last)
{
	char bytes[HMM_PAGE_SIZE];

	for (unsigned int i = first; i < last; i++) {
		fixture_bytes(i, bytes);
		cr_assert(not(memcmp(shadow_at(block_shadow(block), page_addr(block, i)), bytes, sizeof(bytes))),
			  "page %u", i);
	}
}

Test(engine_bar, there_and_back)
{
	struct block *block = begin_far();
	struct pages pages = pages_from(0, PAGES);
	char bytes[HMM_PAGE_SIZE];

	for (unsigned int i = 0; i < PAGES; i++) {
		fixture_bytes(i, bytes);
		cr_expect(not(memcmp(fake_vfio_frame(block_far_number(block, i)), bytes, sizeof(bytes))));
	}
	cr_expect(eq(u64, fixture.device->used, 0), "nothing of it is in hmmd's memory");
	cr_expect(eq(u32, bar_used(bar), PAGES));
	cr_expect(eq(u32, fixture.device->bar_used, PAGES));
	cr_assert(far_fetch(block, &pages, 30, 0, HMM_REASON_CPU_FAULT, &waiter));
	turn();
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, woken, 1));
	cr_expect(eq(u64, fixture.mirror->far_pages, 0));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), PAGES));
	check_shadow(block, 0, PAGES);
	cr_expect(eq(u32, bar_used(bar), 0));
	cr_expect(eq(u32, fixture.device->bar_used, 0));
	cr_expect(not(far_fetch(block, &pages, 0, 0, HMM_REASON_CPU_FAULT, &waiter)), "they are here");
	end();
}

/* One page needs one turn, whatever else lies there. */
Test(engine_bar, a_single_page_at_once)
{
	struct block *block = begin_far();
	struct pages pages = pages_from(7, 8);

	cr_assert(far_fetch(block, &pages, 7, 0, HMM_REASON_CPU_FAULT, &waiter));
	cr_assert(block_at_rest(block));
	owner_run(fixture.owner);
	cr_expect(eq(uint, woken, 1));
	check_shadow(block, 7, 8);
	cr_expect(eq(u64, fixture.mirror->far_pages, PAGES - 1));
	end();
}

Test(engine_bar, a_share_is_full)
{
	struct pages pages = pages_from(0, PAGES);
	struct block *block = begin(25);

	far_store(block, &pages, NULL);
	turn();
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture.mirror->far_pages, 25));
	cr_expect(eq(u32, bar_used(bar), 25));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), PAGES));
	check_shadow(block, 25, PAGES);
	end();
}

Test(engine_bar, discarded_meanwhile)
{
	struct pages pages = pages_from(0, PAGES);
	struct block *block = begin(0);

	far_store(block, &pages, NULL);
	block_discard(block, 4, 6, HMM_REASON_UNMAP);
	block_discard(block, 30, 32, HMM_REASON_UNMAP);
	turn();
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture.mirror->far_pages, PAGES - 4));
	cr_expect(eq(u32, bar_used(bar), PAGES - 4));
	pages = pages_from(0, PAGES);
	cr_assert(far_fetch(block, &pages, 0, 0, HMM_REASON_CPU_FAULT, &waiter));
	block_discard(block, 1, 2, HMM_REASON_UNMAP);
	block_discard(block, 39, 40, HMM_REASON_UNMAP);
	turn();
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), PAGES - 6));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 0));
	cr_expect(eq(u32, bar_used(bar), 0));
	check_shadow(block, 6, 30);
	end();
}

/* What was written there cannot be believed: all is still in the shadow. */
Test(engine_bar, gone_while_storing)
{
	struct pages pages = pages_from(0, PAGES);
	struct block *block = begin(0);

	far_store(block, &pages, NULL);
	fake_vfio.gone = true;
	turn();
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture.mirror->far_pages, 0));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), PAGES));
	check_shadow(block, 0, PAGES);
	cr_expect(eq(u32, bar_used(bar), 0));
	cr_expect(far_bar_is_lost(fixture.mirror));
	end();
}

/* Nobody is given ones for bytes: all that was there is E, and what is elsewhere goes on. */
Test(engine_bar, gone_while_fetching)
{
	struct block *block = begin_far(), *other;
	struct pages pages = pages_from(0, 2);

	fixture_out(&fixture, HMM_BLOCK_PAGES, HMM_BLOCK_PAGES + 3);
	other = fixture_block(&fixture, 1);
	fake_vfio.gone = true;
	cr_assert(far_fetch(block, &pages, 0, 0, HMM_REASON_CPU_FAULT, &waiter));
	cr_assert(block_at_rest(block));
	owner_run(fixture.owner);
	cr_expect(eq(uint, woken, 1));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 2));
	turn();
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), PAGES), "with all others that were there");
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_ERRORS], PAGES));
	cr_expect(eq(u64, fixture.mirror->far_pages, 0));
	cr_expect(eq(uint, block_count(other, HMM_PAGE_DEVICE), 3));
	for (unsigned int i = 0; i < 3; i++) {
		char bytes[HMM_PAGE_SIZE];

		fixture_bytes(HMM_BLOCK_PAGES + i, bytes);
		cr_assert(not(memcmp(shadow_at(block_shadow(other), page_addr(other, i)), bytes, sizeof(bytes))));
	}
	/* It comes back as another, empty one: nothing is put there any more. */
	fake_vfio.gone = false;
	pages = pages_from(0, 3);
	far_store(other, &pages, NULL);
	cr_assert(block_at_rest(other));
	cr_expect(eq(uint, block_count(other, HMM_PAGE_DEVICE), 3));
	cr_expect(eq(u64, fixture.mirror->far_pages, 0));
	end();
}

Test(engine_bar, gone_between_two_pieces)
{
	struct block *block = begin_far();
	struct pages pages = pages_from(0, PAGES);

	cr_assert(far_fetch(block, &pages, 0, 0, HMM_REASON_CPU_FAULT, &waiter));
	cr_assert(not(block_at_rest(block)));
	fake_vfio.gone = true;
	turn();
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, woken, 1));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), PAGES));
	cr_expect(eq(u32, bar_used(bar), 0));
	end();
}

/* It answers, but its memory cannot be reached: what is in it may be there still. */
Test(engine_bar, switched_off)
{
	struct block *block = begin_far();
	struct pages pages = pages_from(0, 2), more = pages_from(0, 3);

	fixture_out(&fixture, HMM_BLOCK_PAGES, HMM_BLOCK_PAGES + 3);
	fake_vfio.off = true;
	cr_assert(far_fetch(block, &pages, 0, 0, HMM_REASON_CPU_FAULT, &waiter));
	cr_assert(not(block_at_rest(block)));
	far_store(fixture_block(&fixture, 1), &more, NULL);
	cr_assert(block_at_rest(fixture_block(&fixture, 1)), "nothing is put there");
	cr_expect(eq(u64, fixture.mirror->far_pages, PAGES));
	fixture_later(&fixture, SECOND);
	fixture_later(&fixture, SECOND);
	cr_assert(not(block_at_rest(block)));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 0));
	fake_vfio.off = false;
	fixture_later(&fixture, SECOND);
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, woken, 1));
	check_shadow(block, 0, 2);
	cr_expect(eq(u64, fixture.mirror->far_pages, PAGES - 2));
	end();
}

/* It answers, and is another: its seal is. */
Test(engine_bar, reset)
{
	struct block *block = begin_far();
	struct pages pages = pages_from(0, 2);

	memset(fake_vfio_frame(bar_pages(bar)), 0, HMM_PAGE_SIZE);
	cr_assert(far_fetch(block, &pages, 0, 0, HMM_REASON_CPU_FAULT, &waiter));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 2));
	turn();
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), PAGES));
	cr_expect(eq(u64, fixture.mirror->far_pages, 0));
	end();
}

/* hmmd's own memory is short: asked again until it is there. */
Test(engine_bar, no_memory_to_come_to)
{
	struct block *block = begin_far();
	struct pages pages = pages_from(3, 4);

	fake_vfio.calls = 0;
	fake_vfio.fail_at = 1;
	fake_vfio.error = -ENOMEM;
	cr_assert(far_fetch(block, &pages, 3, 0, HMM_REASON_CPU_FAULT, &waiter));
	cr_assert(not(block_at_rest(block)));
	fixture_later(&fixture, SECOND);
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, woken, 1));
	check_shadow(block, 3, 4);
	end();
}

/* Where the CPU has it; the block may have been forgotten. */
static void check_home(unsigned int first, unsigned int last)
{
	const struct block *block = fixture_block(&fixture, 0);
	char bytes[HMM_PAGE_SIZE];

	for (unsigned int i = first; i < last; i++) {
		fixture_bytes(i, bytes);
		cr_assert(not(block && page_state(block, i) != HMM_PAGE_INVALID), "page %u", i);
		cr_assert(not(memcmp((const char *)ROOM_START + i * HMM_PAGE_SIZE, bytes, sizeof(bytes))), "page %u", i);
	}
}

/* As control does, and the worker that it wakes. */
static void recall(void)
{
	fake_vfio_recall(FAKE_CARD);
	for (unsigned int k = 0; k < 5 && cards_recall(); k++) {
		bars_recall();
		turn();
		turn();
	}
}

/* The kernel wants the card back: all comes home, then it is given back, and there is no room any more. */
Test(engine_bar, recalled)
{
	struct pages pages = pages_from(0, 3);
	struct block *block;

	begin_far();
	recall();
	cr_expect(eq(u64, fixture.mirror->far_pages, 0));
	cr_expect(not(fake_vfio.kept));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_ERRORS], 0));
	check_home(0, PAGES);
	fixture_out(&fixture, HMM_BLOCK_PAGES, HMM_BLOCK_PAGES + 3);
	block = fixture_block(&fixture, 1);
	far_store(block, &pages, NULL);
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 3), "nothing goes there");
	cr_expect(eq(u64, fixture.mirror->far_pages, 0));
	end();
}

/* Between two pieces: the rest does not go there, and what has gone comes home. */
Test(engine_bar, recalled_while_storing)
{
	struct pages pages = pages_from(0, PAGES);
	struct block *block = begin(0);

	far_store(block, &pages, NULL);
	cr_assert(not(block_at_rest(block)));
	cr_expect(eq(u32, bar_used(bar), 16));
	recall();
	block = fixture_block(&fixture, 0);
	cr_expect(eq(u64, fixture.mirror->far_pages, 0));
	cr_expect(not(fake_vfio.kept));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_ERRORS], 0));
	for (unsigned int i = 0; i < PAGES; i++)
		if (block && page_state(block, i) == HMM_PAGE_DEVICE)
			check_shadow(block, i, i + 1);
		else
			check_home(i, i + 1);
	end();
}

/* What cannot come home at present is no loss: it is waited for. */
Test(engine_bar, recalled_while_switched_off)
{
	begin_far();
	fake_vfio.off = true;
	recall();
	cr_expect(eq(u64, fixture.mirror->far_pages, PAGES));
	cr_expect(fake_vfio.kept);
	fake_vfio.off = false;
	for (unsigned int k = 0; k < 5 && cards_recall(); k++) {
		bars_recall();
		fixture_later(&fixture, SECOND);
		turn();
	}
	cr_expect(not(fake_vfio.kept));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_ERRORS], 0));
	check_home(0, PAGES);
	end();
}

/* A ledger that names a frame which is another's. */
Test(engine_bar, nobody_is_given_anothers)
{
	struct block *block = begin_far();
	struct pages pages = pages_from(5, 6);
	uint32_t number = block_far_number(block, 5), other = bar_claim(bar, fixture.owner->pid);

	/* Of the same process. */
	cr_assert(bar_release(bar, number, fixture.mirror->claim));
	do
		number = bar_take(bar, other);
	while (number != block_far_number(block, 5));
	cr_assert(far_fetch(block, &pages, 5, 0, HMM_REASON_CPU_FAULT, &waiter));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 1));
	cr_expect(bar_has(bar, number, other), "it stays the other's");
	bar_unclaim(bar, other);
	end();
}

/* What the ledger does not know of is free; what is another's is lost. */
Test(engine_bar, a_successor)
{
	struct block *block = begin_far();
	uint32_t claim = fixture.mirror->claim, other = bar_claim(bar, 0);

	cr_expect(eq(u32, fixture.owner->journal->mirror[fixture.mirror->index].token, claim));
	bar_take(bar, claim);
	bar_take(bar, claim);
	bar_take(bar, other);
	atomic_store(&fixture.device->bar_used, 0);
	bar_leave(bar, claim);
	fixture.mirror->claim = 0;
	far_bar_adopt(fixture.mirror);
	cr_expect(eq(u32, fixture.mirror->claim, claim));
	cr_expect(eq(u32, fixture.device->bar_used, PAGES + 2));
	cr_assert(bar_release(bar, block_far_number(block, 9), claim));
	fixture.device->bar_used--;
	far_recover(fixture.owner);
	cr_expect(eq(u32, fixture.device->bar_used, PAGES - 1));
	cr_expect(eq(u32, bar_used(bar), PAGES));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 1));
	cr_expect(eq(u64, fixture.mirror->far_pages, PAGES - 1));
	bar_unclaim(bar, other);
	end();
}

/* A claim that is no more: its pages are not there, whatever the ledger says, and others come into their place. */
Test(engine_bar, a_successor_without_a_claim)
{
	struct block *block = begin_far();
	uint32_t claim = fixture.mirror->claim;

	bar_unclaim(bar, claim);
	atomic_store(&fixture.device->bar_used, 0);
	far_bar_adopt(fixture.mirror);
	cr_expect(ne(u32, fixture.mirror->claim, claim));
	cr_expect(eq(u32, fixture.owner->journal->mirror[fixture.mirror->index].token, fixture.mirror->claim));
	far_recover(fixture.owner);
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), PAGES));
	cr_expect(eq(u64, fixture.mirror->far_pages, 0));
	end();
}

/* Its mirror could not be made again: the next one of that number is given nothing of it. */
Test(engine_bar, nobody_has_it_any_more)
{
	struct block *block = begin_far();
	struct mirror *mirror = fixture.mirror;

	fixture.owner->mirror[mirror->index] = NULL;
	far_recover(fixture.owner);
	fixture.owner->mirror[mirror->index] = mirror;
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), PAGES));
	end();
}

/* Whichever call fails, a page has its bytes, or is E. */
/* Version 8 had one number for the card that a device is and the one whose BAR its memory is. */
Test(engine_bar, a_ledger_of_the_version_before)
{
	struct hmm_journal *journal = aligned_alloc(_Alignof(struct hmm_journal), sizeof(*journal));

	memset(journal, 0, sizeof(*journal));
	journal->mirror[0] = (struct hmm_journal_mirror){.used = 1, .kind = HMM_POOL_KIND_VFIO, .card = 0x400, .bar = 2, .bar_pages = 40};
	journal->mirror[1] = (struct hmm_journal_mirror){.used = 1, .kind = HMM_POOL_KIND_MEMFD, .card = 0x500};
	/* Somebody was killed in the middle of it, after each of its steps. */
	journal->mirror[2] = journal->mirror[0];
	journal->mirror[2].memory_card = 0x400;
	journal->mirror[3] = journal->mirror[2];
	journal->mirror[3].card = 0;
	journal->version = 8;
	for (unsigned int round = 0; round < 2; round++) {
		remake_adapt(journal);
		cr_expect(eq(u32, journal->version, HMM_LEDGER_VERSION));
		for (unsigned int i = 0; i < 4; i++) {
			cr_expect(eq(u32, journal->mirror[i].card, i == 1 ? 0x500 : 0), "mirror %u", i);
			cr_expect(eq(u32, journal->mirror[i].memory_card, i == 1 ? 0 : 0x400), "mirror %u", i);
		}
	}
	/* A device of this version may be a card and have another's BAR. */
	journal->mirror[0].card = 0x700;
	remake_adapt(journal);
	cr_expect(eq(u32, journal->mirror[0].card, 0x700));
	free(journal);
}

Test(engine_bar, each_call_may_fail)
{
	static const int errors[] = {-EFAULT, -EIO, -ENOMEM, -ENOSPC, -ENODEV};
	unsigned int calls;

	begin_far();
	calls = 2 * fake_vfio.calls;
	end();
	for (unsigned int n = 1; n < calls; n++) {
		struct pages pages = pages_from(0, PAGES);
		struct block *block = begin(0);

		fake_vfio.calls = 0;
		fake_vfio.fail_at = n;
		fake_vfio.error = errors[n % 5];
		far_store(block, &pages, NULL);
		turn();
		far_fetch(block, &pages, 0, 0, HMM_REASON_CPU_FAULT, NULL);
		for (unsigned int k = 0; k < 3; k++)
			fixture_later(&fixture, SECOND / 100);
		cr_assert(block_at_rest(block), "call %u", n);
		for (unsigned int i = 0; i < PAGES; i++)
			if (page_state(block, i) == HMM_PAGE_DEVICE && !page_is_far(block, i))
				check_shadow(block, i, i + 1);
			else if (fake_vfio.error == -ENODEV)
				cr_assert(ne(uint, page_state(block, i), HMM_PAGE_INVALID), "call %u, page %u", n, i);
			else
				cr_assert(page_is_far(block, i), "call %u, page %u", n, i);
		cr_assert(eq(u32, bar_used(bar), fixture.mirror->far_pages), "call %u", n);
		end();
	}
}
