// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_block.c - blocks of an owner that is this very process, with a real
 * userfaultfd: found and forgotten across regions; states that ledger, table
 * and counts agree on; stale pages punched; and nothing left in the end.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "engine_fixture.h"
#include "engine_random.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(block);

static struct fixture fixture;

/* ---- finding ----------------------------------------------------------------------- */

#define CANDIDATES 40U

/* Neighbours, region's ends, and places far apart. */
static uint64_t candidate(unsigned int i)
{
	uint64_t region = 0x100000000000ULL + (i / 8) * 7 * HMM_REGION_SIZE;
	static const unsigned int block[8] = { 0, 1, 2, 255, 256, 510, 511, 512 };

	return region + block[i % 8] * HMM_BLOCK_SIZE;
}

struct visit {
	const bool *model;
	uint64_t start, end, last;
	unsigned int seen;
};

static void visit(struct block *block, void *data)
{
	struct visit *visit = data;

	cr_assert(visit->seen == 0 || visit->last < block->addr, "out of order");
	cr_assert(block->addr + HMM_BLOCK_SIZE > visit->start && block->addr < visit->end);
	visit->last = block->addr;
	visit->seen++;
}

static void check_range(const bool *model, uint64_t start, uint64_t end)
{
	struct visit all = { .model = model, .start = start, .end = end };
	uint64_t first = UINT64_MAX;
	unsigned int expected = 0;
	struct block *next;

	for (unsigned int i = 0; i < CANDIDATES; i++) {
		if (!model[i] || candidate(i) + HMM_BLOCK_SIZE <= start || candidate(i) >= end)
			continue;
		expected++;
		if (candidate(i) < first)
			first = candidate(i);
	}
	block_for_each(fixture.owner, start, end, visit, &all);
	cr_assert(eq(uint, all.seen, expected), "%#lx..%#lx", start, end);
	next = block_next(fixture.owner, start, end);
	cr_assert(eq(u64, next ? next->addr : UINT64_MAX, first));
}

Test(block, found_and_forgotten_across_regions)
{
	struct random random = random_begin("block");
	bool model[CANDIDATES] = { 0 };

	fixture_begin_faked(&fixture, POOL);
	for (int step = 0; step < 3000; step++) {
		unsigned int i = random_below(&random, CANDIDATES),
			     j = random_below(&random, CANDIDATES);
		/* Any address of the block means it. */
		struct block *block = block_find(
			fixture.owner, candidate(i) + random_below(&random, HMM_BLOCK_SIZE));

		cr_assert(eq(int, block != NULL, model[i]));
		if (!block) {
			block = block_get(fixture.owner,
					  candidate(i) + random_below(&random, HMM_BLOCK_SIZE));
			cr_assert(eq(u64, block->addr, candidate(i)));
			cr_assert(eq(ptr, block->record,
				     &fixture.owner->ledger[candidate(i) / HMM_BLOCK_SIZE]));
			cr_assert(eq(uint, block->record->mirror, HMM_NO_MIRROR));
			cr_assert(eq(ptr, block_get(fixture.owner, candidate(i)), block));
		} else if (random_below(&random, 3)) {
			block_forget(block);
		} else {
			continue;
		}
		model[i] = !model[i];
		check_range(model, 0, HMM_VA_END);
		if (candidate(i) < candidate(j))
			check_range(model, candidate(i) + HMM_PAGE_SIZE,
				    candidate(j) + HMM_PAGE_SIZE);
		check_range(model, candidate(i), candidate(i) + 1);
	}
	fixture_end(&fixture);
}

static void forget(struct block *block, void *data)
{
	unsigned int *n = data;

	++*n;
	block_forget(block);
}

Test(block, the_visitor_may_forget_it)
{
	unsigned int n = 0;

	fixture_begin_faked(&fixture, POOL);
	for (unsigned int i = 0; i < CANDIDATES; i++)
		block_get(fixture.owner, candidate(i));
	block_for_each(fixture.owner, 0, HMM_VA_END, forget, &n);
	cr_expect(eq(uint, n, CANDIDATES));
	cr_expect(eq(uint, fixture.owner->span_count, 0));
	cr_expect(eq(ptr, block_next(fixture.owner, 0, HMM_VA_END), NULL));
	fixture_end(&fixture);
}

/* A forgotten block leaves nothing in ledger and table: the next one there starts anew. */
Test(block, leaves_nothing_when_forgotten)
{
	struct hmm_ledger_block zero = { 0 };
	struct block *block;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, 600);
	fixture_check(&fixture);
	for (unsigned int b = 0; b < 2; b++) {
		block = fixture_block(&fixture, b);
		block_set_state(block, 0, HMM_BLOCK_PAGES, HMM_PAGE_INVALID);
		cr_assert(block_punch_stale(block));
		block_forget(block);
	}
	cr_expect(
		eq(int,
		   memcmp(&fixture.owner->ledger[ROOM_START / HMM_BLOCK_SIZE], &zero, sizeof(zero)),
		   0));
	for (unsigned int i = 0; i < 2 * HMM_BLOCK_PAGES; i++)
		cr_assert(eq(u64, fixture.owner->table[ROOM_START / HMM_PAGE_SIZE + i], 0));
	cr_expect(eq(u64, fixture.device->used, 0));
	fixture_end(&fixture);
}

/* ---- states ------------------------------------------------------------------------- */

static void give(struct block *block, unsigned int first, unsigned int end,
		 enum hmm_page_state state)
{
	block_set_state(block, first, end, state);
	fixture_check(&fixture);
}

/* A page's bytes must be in the shadow as long as its state says so. */
static void check_bytes(const bool *out)
{
	static char expected[HMM_PAGE_SIZE];

	for (unsigned int page = 0; page < ROOM_PAGES; page++) {
		uint64_t addr = ROOM_START + page * HMM_PAGE_SIZE;
		struct block *block = block_find(fixture.owner, addr);
		enum hmm_page_state state =
			block ? page_state(block, page_index(addr)) : HMM_PAGE_INVALID;

		cr_assert(eq(int, state == HMM_PAGE_DEVICE || state == HMM_PAGE_SHARED, out[page]),
			  "page %u", page);
		if (!out[page])
			continue;
		fixture_bytes(page, expected);
		cr_assert(eq(int,
			     memcmp(shadow_at(block_shadow(block), addr), expected, HMM_PAGE_SIZE),
			     0),
			  "page %u of the shadow is lost", page);
	}
}

Test(block, states_at_random)
{
	struct random random = random_begin("states");
	bool out[ROOM_PAGES] = { 0 };

	fixture_begin_faked(&fixture, POOL);
	for (int step = 0; step < 1500; step++) {
		unsigned int first = random_below(&random, ROOM_PAGES);
		unsigned int end = first + 1 + random_below(&random, 40);
		uint64_t addr = ROOM_START + first * HMM_PAGE_SIZE;
		struct block *block = block_find(fixture.owner, addr);
		unsigned int i = page_index(addr), stop;

		if (end > ROOM_PAGES)
			end = ROOM_PAGES;
		/* What one block has of it. */
		stop = i + end - first;
		if (stop > HMM_BLOCK_PAGES)
			stop = HMM_BLOCK_PAGES;
		switch (random_below(&random, 6)) {
		case 0:
		case 1:
			fixture_out(&fixture, first, end);
			memset(out + first, true, end - first);
			break;
		case 2:
			if (!block)
				break;
			block_discard(block, i, stop, HMM_REASON_DISCARD);
			memset(out + first, false, stop - i);
			break;
		case 3:
			/* D becomes S and S becomes D: both are the same bytes. */
			for (; block && i < stop; i++)
				if (page_state(block, i) != HMM_PAGE_INVALID)
					give(block, i, i + 1,
					     random_below(&random, 2) ? HMM_PAGE_SHARED
								      : HMM_PAGE_DEVICE);
			break;
		case 4:
			if (block)
				cr_assert(block_punch_stale(block));
			break;
		default:
			if (block)
				block_settle(block);
			fixture_later(&fixture, 3 * SECOND);
		}
		fixture_check(&fixture);
		check_bytes(out);
		mailbox_deinit(&fixture.outbox);
		cr_assert(eq(int, mailbox_init(&fixture.outbox), 0));
	}
	fixture_end(&fixture);
}

Test(block, counts_by_state)
{
	struct pages pages;
	struct block *block;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, 300);
	block = fixture_block(&fixture, 0);
	give(block, 100, 200, HMM_PAGE_SHARED);
	give(block, 250, 260, HMM_PAGE_COHERENT);
	give(block, 290, 300, HMM_PAGE_ERROR);
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 180));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 100));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_COHERENT), 10));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_ERROR), 10));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_INVALID), 212));
	cr_expect(eq(uint, block_pages_in(block, HMM_PAGE_SHARED, 150, 400, &pages), 50));
	cr_expect(eq(uint, pages_count(&pages), 50));
	cr_expect(pages_test(&pages, 150) && pages_test(&pages, 199) && !pages_test(&pages, 200));
	cr_expect(eq(u64, fixture.mirror->device_pages, 190));
	cr_expect(eq(u64, fixture.mirror->shared_pages, 100));
	/* An error's page is in no shadow any more: what is there is stale. */
	cr_expect(pages_test(&block->stale, 295));
	give(block, 0, HMM_BLOCK_PAGES, HMM_PAGE_INVALID);
	fixture_end(&fixture);
}

/* ---- stale pages ---------------------------------------------------------------------- */

Test(block, stale_pages_are_punched_and_no_other)
{
	struct shadow *shadow;
	struct block *block;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, 100);
	block = fixture_block(&fixture, 0);
	shadow = block_shadow(block);
	block_set_state(block, 10, 40, HMM_PAGE_INVALID);
	cr_expect(eq(uint, pages_count(&block->stale), 30));
	cr_expect(shadow_has_data(shadow, page_addr(block, 10), HMM_PAGE_SIZE), "it lingers");
	cr_assert(block_punch_stale(block));
	cr_expect(pages_empty(&block->stale));
	cr_expect(not(shadow_has_data(shadow, page_addr(block, 10), 30 * HMM_PAGE_SIZE)));
	for (unsigned int i = 0; i < 100; i++)
		cr_assert(eq(int, shadow_has_data(shadow, page_addr(block, i), HMM_PAGE_SIZE),
			     i < 10 || i >= 40));
	/* Filled again before it was punched: not stale any more. */
	block_set_state(block, 50, 60, HMM_PAGE_INVALID);
	fixture_out(&fixture, 50, 60);
	cr_expect(pages_empty(&block->stale));
	/* The last ones take all with them, and the block's ties to the mirror. */
	block_set_state(block, 0, HMM_BLOCK_PAGES, HMM_PAGE_INVALID);
	cr_assert(block_punch_stale(block));
	cr_expect(not(shadow_has_data(shadow, block->addr, HMM_BLOCK_SIZE)));
	cr_expect(eq(uint, block->charged, 0));
	cr_expect(eq(u64, fixture.device->used, 0));
	cr_expect(eq(uint, block->record->mirror, HMM_NO_MIRROR));
	fixture_end(&fixture);
}

/* One page stays on the device and the others come and go: what is free again is free again. */
Test(block, what_is_punched_is_not_charged_for)
{
	struct block *block;

	fixture_begin_faked(&fixture, 64 * HMM_PAGE_SIZE);
	fixture_out(&fixture, 0, 1);
	block = fixture_block(&fixture, 0);
	for (unsigned int round = 1; round <= 10; round++) {
		fixture_out(&fixture, round * 40, round * 40 + 40);
		block_set_state(block, round * 40, round * 40 + 40, HMM_PAGE_INVALID);
		cr_assert(block_punch_stale(block));
		fixture_check(&fixture);
	}
	cr_expect(eq(uint, block->charged, 1));
	fixture_end(&fixture);
}

Test(block, a_block_of_huge_pages_is_charged_whole)
{
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD_HUGE, POOL);
	fixture_out(&fixture, 0, 3);
	block = fixture_block(&fixture, 0);
	cr_expect(eq(uint, block->charged, HMM_BLOCK_PAGES));
	fixture_out(&fixture, 3, 500);
	cr_expect(eq(uint, block->charged, HMM_BLOCK_PAGES), "once");
	fixture_check(&fixture);
	block_set_state(block, 0, HMM_BLOCK_PAGES, HMM_PAGE_INVALID);
	cr_assert(block_punch_stale(block));
	cr_expect(eq(u64, fixture.device->used, 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* A window must not see old bytes: the block is clean only when the shadow has a hole. */
Test(block, a_block_under_a_window_can_be_cleaned)
{
	static const enum hmm_pool_kind kinds[] = {
		HMM_POOL_KIND_MEMFD, HMM_POOL_KIND_MEMFD_HUGE, HMM_POOL_KIND_HUGETLB,
	};

	for (unsigned int k = 0; k < 3; k++) {
		struct window window = {
			.uffd = -1, .start = ROOM_START, .end = ROOM_END, .armed = true};
		struct shadow *shadow;
		struct block *block;

		fixture_begin(&fixture, kinds[k], POOL);
		TAILQ_INSERT_TAIL(&fixture.owner->windows, &window, link);
		block = block_get(fixture.owner, ROOM_START);
		cr_assert(eq(int, mirror_shadow(fixture.mirror, ROOM_START, &shadow), 0));
		block->record->mirror = 0;
		cr_expect(block_has_window(block));
		cr_assert(eq(int, block_charge(block, fixture.device, HMM_BLOCK_PAGES), 0));
		pages_set(&block->stale, 5);
		cr_expect(block_punch_stale(block),
			  "pool %d: an empty shadow is not found to be empty", kinds[k]);
		cr_expect(eq(uint, block->charged, 0));
		TAILQ_REMOVE(&fixture.owner->windows, &window, link);
		cr_assert(block_punch_stale(block));
		fixture_end(&fixture);
	}
}

/* ---- settling ------------------------------------------------------------------------------ */

Test(block, settles_when_all_is_home)
{
	struct pages pages = pages_from(0, 100);
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 100);
	block = fixture_block(&fixture, 0);
	block_settle_later(block);
	fixture_later(&fixture, SECOND);
	cr_assert(eq(ptr, fixture_block(&fixture, 0), block), "it holds pages");
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	fixture_check(&fixture);
	cr_assert(eq(ptr, fixture_block(&fixture, 0), block), "left alone for a while");
	cr_expect(lt(u64, 0, fixture.owner->registered_bytes));
	fixture_later(&fixture, SECOND);
	cr_expect(eq(ptr, fixture_block(&fixture, 0), NULL));
	cr_expect(eq(u64, fixture.owner->registered_bytes, 0));
	cr_expect(eq(u64, fixture.device->used, 0));
	cr_expect(eq(u64, fixture.owner->table[ROOM_START / HMM_PAGE_SIZE], 0));
	/* Not armed any more: nobody would serve a first touch here but the kernel. */
	*(volatile char *)(ROOM_START + 300 * HMM_PAGE_SIZE) = 1;
	fixture_end(&fixture);
}

/* What asks for it puts off the settling of any other block, and can't that of one that its program wants left alone. */
static bool settles_while_it_is_asked_for(bool excluded)
{
	struct pages pages = pages_from(0, 100);
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 100);
	block = fixture_block(&fixture, 0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	if (excluded)
		cr_assert(eq(int, span_set_add(&fixture.owner->excluded, ROOM_START,
					       ROOM_START + HMM_PAGE_SIZE), 0));
	for (int i = 0; i < 50 && (block = fixture_block(&fixture, 0)); i++) {
		block_settle_later(block);
		fixture_later(&fixture, 20 * NS_PER_MS);
	}
	excluded = !fixture_block(&fixture, 0);
	fixture_end(&fixture);
	return excluded;
}

Test(block, settles_in_time_what_is_excluded)
{
	cr_expect(settles_while_it_is_asked_for(true));
	cr_expect(not(settles_while_it_is_asked_for(false)));
}

Test(block, does_not_settle_while_the_device_reads)
{
	struct pages pages = pages_from(0, 10);
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 10);
	block = fixture_block(&fixture, 0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	fixture_callbacks(&fixture);
	fixture_later(&fixture, SECOND);
	cr_assert(eq(ptr, fixture_block(&fixture, 0), block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 10), "a copy that is read is kept");
	/* Its reader is gone: nothing keeps the copies. */
	owner_peer_gone(fixture.owner, DRIVER);
	block_settle(block);
	fixture_later(&fixture, SECOND);
	fixture_later(&fixture, SECOND);
	cr_expect(eq(ptr, fixture_block(&fixture, 0), NULL));
	cr_expect(eq(u64, fixture.device->used, 0));
	fixture_end(&fixture);
}

/* REMOVE was read and the zap may be yet to come: until then, or for long enough, it is kept. */
Test(block, expects_the_zap_before_it_settles)
{
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	/* Pages that the kernel has not zapped yet. */
	for (unsigned int i = 0; i < 4; i++)
		*(volatile char *)(ROOM_START + i * HMM_PAGE_SIZE) = 1;
	fixture_out(&fixture, 10, 12);
	block = fixture_block(&fixture, 0);
	block_discard(block, 0, 12, HMM_REASON_DISCARD);
	block_expect_zap(block, 0, 12);
	block_look_for_zap(block);
	cr_expect(eq(uint, pages_count(&block->zapping), 4), "those that are still there");
	fixture_later(&fixture, SECOND);
	cr_assert(eq(ptr, fixture_block(&fixture, 0), block));
	fixture_later(&fixture, 2 * SECOND);
	cr_expect(eq(ptr, fixture_block(&fixture, 0), NULL), "it never came");
	fixture_end(&fixture);
}
