// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_block.c - blocks of an owner that is this very process, with a real
 * userfaultfd: found and forgotten across regions; states that ledger, table
 * and counts agree on; transits with and without a driver that answers;
 * discards at rest and on the way; faults; and nothing left in the end.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine_fixture.h"
#include "engine_random.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(block);
LEAKCHECKED_SUITE(transit);
LEAKCHECKED_SUITE(fault);

#define POOL (64UL << 20)
#define SECOND (1000 * NS_PER_MS)

static struct fixture fixture;

static struct pages pages_from(unsigned int first, unsigned int end)
{
	struct pages pages = { 0 };

	for (unsigned int i = first; i < end; i++)
		pages_set(&pages, i);
	return pages;
}

static struct block *room_block(unsigned int n)
{
	return block_find(fixture.owner, ROOM_START + n * HMM_BLOCK_SIZE);
}

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
		unsigned int i = random_below(&random, CANDIDATES), j = random_below(&random, CANDIDATES);
		/* Any address of the block means it. */
		struct block *block = block_find(fixture.owner, candidate(i) + random_below(&random, HMM_BLOCK_SIZE));

		cr_assert(eq(int, block != NULL, model[i]));
		if (!block) {
			block = block_get(fixture.owner, candidate(i) + random_below(&random, HMM_BLOCK_SIZE));
			cr_assert(eq(u64, block->addr, candidate(i)));
			cr_assert(eq(ptr, block->record, &fixture.owner->ledger[candidate(i) / HMM_BLOCK_SIZE]));
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
			check_range(model, candidate(i) + HMM_PAGE_SIZE, candidate(j) + HMM_PAGE_SIZE);
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

/* What a forgotten block leaves in ledger and table: nothing, so that the next one there starts anew. */
Test(block, leaves_nothing_when_forgotten)
{
	struct hmm_ledger_block zero = { 0 };
	struct block *block;

	fixture_begin_faked(&fixture, POOL);
	fixture_out(&fixture, 0, 600);
	fixture_check(&fixture);
	for (unsigned int b = 0; b < 2; b++) {
		block = room_block(b);
		block_set_state(block, 0, HMM_BLOCK_PAGES, HMM_PAGE_INVALID);
		cr_assert(block_punch_stale(block));
		block_forget(block);
	}
	cr_expect(eq(int, memcmp(&fixture.owner->ledger[ROOM_START / HMM_BLOCK_SIZE], &zero, sizeof(zero)), 0));
	for (unsigned int i = 0; i < 2 * HMM_BLOCK_PAGES; i++)
		cr_assert(eq(u64, fixture.owner->table[ROOM_START / HMM_PAGE_SIZE + i], 0));
	cr_expect(eq(u64, fixture.device->used, 0));
	fixture_end(&fixture);
}

/* ---- states ------------------------------------------------------------------------- */

static void give(struct block *block, unsigned int first, unsigned int end, enum hmm_page_state state)
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
		enum hmm_page_state state = block ? page_state(block, page_index(addr)) : HMM_PAGE_INVALID;

		cr_assert(eq(int, state == HMM_PAGE_DEVICE || state == HMM_PAGE_SHARED, out[page]), "page %u", page);
		if (!out[page])
			continue;
		fixture_bytes(page, expected);
		cr_assert(eq(int, memcmp(shadow_at(block_shadow(block), addr), expected, HMM_PAGE_SIZE), 0),
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
					give(block, i, i + 1, random_below(&random, 2) ? HMM_PAGE_SHARED :
											  HMM_PAGE_DEVICE);
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
	block = room_block(0);
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
	block = room_block(0);
	shadow = block_shadow(block);
	block_set_state(block, 10, 40, HMM_PAGE_INVALID);
	cr_expect(eq(uint, pages_count(&block->stale), 30));
	cr_expect(shadow_has_data(shadow, page_addr(block, 10), HMM_PAGE_SIZE), "it lingers");
	cr_assert(block_punch_stale(block));
	cr_expect(pages_empty(&block->stale));
	cr_expect(not(shadow_has_data(shadow, page_addr(block, 10), 30 * HMM_PAGE_SIZE)));
	for (unsigned int i = 0; i < 100; i++)
		cr_assert(eq(int, shadow_has_data(shadow, page_addr(block, i), HMM_PAGE_SIZE), i < 10 || i >= 40));
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
	block = room_block(0);
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
	block = room_block(0);
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
		struct window window = { .uffd = -1, .start = ROOM_START, .end = ROOM_END, .armed = true };
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
		cr_expect(block_punch_stale(block), "pool %d: an empty shadow is not found to be empty", kinds[k]);
		cr_expect(eq(uint, block->charged, 0));
		TAILQ_REMOVE(&fixture.owner->windows, &window, link);
		cr_assert(block_punch_stale(block));
		fixture_end(&fixture);
	}
}

/* ---- transits --------------------------------------------------------------------------- */

Test(transit, every_state_has_a_name_and_rules)
{
	for (unsigned int a = 0; a < HMM_TRANSIT_MAX; a++) {
		const struct transit_rule *rule = &transit_rules[a];

		cr_assert(ne(ptr, (void *)rule->name, NULL), "transit %u", a);
		cr_assert(eq(str, (char *)transit_name(a), (char *)rule->name));
		cr_assert(rule->owner_has && *rule->owner_has);
		cr_assert(rule->owner_has_not && *rule->owner_has_not);
		cr_assert(ne(uint, rule->from, 0));
		cr_assert(ne(uint, rule->to, 0));
		cr_assert(eq(uint, (rule->from | rule->to) >> (HMM_PAGE_ERROR + 1), 0), "states that there are not");
		if (a != HMM_TRANSIT_REST) {
			/* Its page may always be lost to the owner meanwhile: unmapped. */
			cr_assert(rule->to & 1U << HMM_PAGE_INVALID, "%s", rule->name);
			cr_assert(not(rule->from & 1U << HMM_PAGE_REMOTE), "%s", rule->name);
		}
		for (unsigned int b = 0; b < a; b++)
			cr_assert(ne(str, (char *)rule->name, (char *)transit_rules[b].name));
	}
	cr_expect(eq(str, (char *)transit_name(HMM_TRANSIT_MAX), "?"));
	cr_expect(eq(str, (char *)transit_name(UINT32_MAX), "?"));
}

Test(transit, home_without_a_driver_is_at_once)
{
	struct pages pages = pages_from(3, 9);
	char expected[HMM_PAGE_SIZE];
	uint64_t before, epoch;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 20);
	block = room_block(0);
	before = fixture_sequence(block);
	epoch = block->record->epoch;
	cr_assert(eq(u64, before & 1, 0));
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	cr_expect(gt(u64, block->record->epoch, epoch));
	fixture_check(&fixture);
	for (unsigned int i = 0; i < 20; i++)
		cr_assert(eq(int, page_state(block, i), i >= 3 && i < 9 ? HMM_PAGE_INVALID : HMM_PAGE_DEVICE));
	for (unsigned int i = 3; i < 9; i++) {
		fixture_bytes(i, expected);
		cr_assert(eq(int, memcmp((void *)page_addr(block, i), expected, HMM_PAGE_SIZE), 0));
	}
	fixture_end(&fixture);
}

Test(transit, waits_for_the_driver)
{
	struct pages pages = pages_from(0, 10);
	uint64_t before;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, 20);
	block = room_block(0);
	before = fixture_sequence(block);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	cr_assert(not(block_at_rest(block)));
	cr_expect(eq(u64, fixture_sequence(block), before + 1));
	cr_expect(eq(uint, block->acks, 1));
	/* What a successor would find. */
	cr_expect(eq(u32, block->record->transit, HMM_TRANSIT_HOME_COPY));
	cr_expect(eq(u64, block->record->pending[0], 0x3ff));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 20), "nothing is done before the driver has answered");
	fixture_check(&fixture);
	/* A little later: still waiting. */
	fixture_later(&fixture, SECOND / 2);
	cr_assert(not(block_at_rest(block)));
	cr_expect(eq(uint, fixture_answer(&fixture), 1));
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 10));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(transit, a_driver_that_does_not_answer_is_not_waited_for)
{
	struct pages pages = pages_from(0, 10);
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, 10);
	block = room_block(0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	fixture_later(&fixture, 1001 * NS_PER_MS);
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 0));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_LATE_DRIVERS], 1));
	fixture_check(&fixture);
	/* Its answer comes after all. */
	cr_expect(eq(uint, fixture_answer(&fixture), 1));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(transit, a_driver_that_dies_is_not_waited_for)
{
	struct pages pages = pages_from(0, 10);
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, 20);
	block = room_block(0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	/* Another event for it is on its way, too. */
	block_discard(block, 15, 16, HMM_REASON_UNMAP);
	owner_peer_gone(fixture.owner, DRIVER);
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 9));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

struct counted_task {
	struct task task;
	unsigned int runs;
	struct block *block;
};

static void count_run(struct task *task)
{
	struct counted_task *me = (struct counted_task *)task;

	cr_assert(block_at_rest(me->block));
	me->runs++;
}

Test(transit, what_was_parked_goes_on_once_and_in_order)
{
	struct counted_task tasks[5];
	struct pages pages = pages_from(0, 5);
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, 10);
	block = room_block(0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	for (unsigned int i = 0; i < 5; i++) {
		tasks[i] = (struct counted_task){ .task.run = count_run, .block = block };
		block_park(block, &tasks[i].task);
	}
	owner_run(fixture.owner);
	cr_expect(eq(uint, tasks[0].runs, 0));
	fixture_answer(&fixture);
	cr_expect(eq(uint, tasks[0].runs, 0), "not inside of whatever ended the transit");
	cr_expect(eq(ptr, TAILQ_FIRST(&fixture.owner->runnable), &tasks[0].task));
	cr_expect(eq(ptr, TAILQ_LAST(&fixture.owner->runnable, task_list), &tasks[4].task));
	owner_run(fixture.owner);
	fixture_later(&fixture, 0);
	for (unsigned int i = 0; i < 5; i++)
		cr_expect(eq(uint, tasks[i].runs, 1));
	fixture_end(&fixture);
}

Test(transit, discarded_on_the_way)
{
	struct pages pages = pages_from(0, 10);
	struct shadow *shadow;
	struct block *block;
	uint64_t before;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, 20);
	block = room_block(0);
	shadow = block_shadow(block);
	before = fixture_sequence(block);
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	/* Some that are on their way, some that are not. */
	block_discard(block, 7, 13, HMM_REASON_DISCARD);
	cr_assert(not(block_at_rest(block)));
	cr_expect(pages_test(&block->dead, 7) && pages_test(&block->dead, 9) && !pages_test(&block->dead, 6) &&
		  !pages_test(&block->dead, 10));
	cr_expect(eq(int, page_state(block, 8), HMM_PAGE_DEVICE), "what the transit is about is its business");
	cr_expect(eq(int, page_state(block, 11), HMM_PAGE_INVALID), "the others are gone at once");
	fixture_check(&fixture);
	cr_expect(eq(uint, fixture_answer(&fixture), 2), "the driver is told of both");
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	for (unsigned int i = 0; i < 20; i++)
		cr_expect(eq(int, page_state(block, i), i >= 13 ? HMM_PAGE_DEVICE : HMM_PAGE_INVALID), "page %u", i);
	/* Pages that were discarded did not come home: the owner reads zeros there, from the kernel. */
	for (unsigned int i = 0; i < 13; i++) {
		uint64_t entry;

		cr_assert(eq(int, kernel->pagemap_read(fixture.owner->pagemap, page_addr(block, i), 1, &entry), 0));
		cr_expect(eq(int, (entry & PM_PRESENT) != 0, i < 7), "page %u", i);
	}
	cr_assert(block_punch_stale(block));
	cr_expect(not(shadow_has_data(shadow, block->addr, 13 * HMM_PAGE_SIZE)));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(transit, discarded_at_rest)
{
	uint64_t before;
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_callbacks(&fixture);
	fixture_out(&fixture, 0, 20);
	block = room_block(0);
	before = fixture_sequence(block);
	/* Nothing of it is on the device: nobody is asked. */
	block_discard(block, 100, 200, HMM_REASON_UNMAP);
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before));
	block_discard(block, 0, 7, HMM_REASON_UNMAP);
	cr_assert(not(block_at_rest(block)));
	cr_expect(eq(u64, fixture_sequence(block), before + 1));
	fixture_check(&fixture);
	/* Once more while the driver thinks: the same pages, and others. */
	block_discard(block, 5, 12, HMM_REASON_UNMAP);
	fixture_check(&fixture);
	fixture_answer(&fixture);
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 8));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(transit, shared_and_back)
{
	struct pages pages = pages_from(0, 8), some = pages_from(2, 5);
	struct block *block;
	uint64_t before, entry;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 8);
	block = room_block(0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	cr_assert(block_at_rest(block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 8));
	fixture_check(&fixture);
	for (unsigned int i = 0; i < 8; i++) {
		cr_assert(eq(int, kernel->pagemap_read(fixture.owner->pagemap, page_addr(block, i), 1, &entry), 0));
		cr_expect(ne(u64, entry & PM_PRESENT, 0));
		cr_expect(ne(u64, entry & 1ULL << 57, 0), "page %u is S and can be written", i);
	}
	before = fixture_sequence(block);
	unshare_begin(block, &some, HMM_REASON_CPU_WRITE, NULL);
	cr_assert(block_at_rest(block));
	cr_expect(eq(u64, fixture_sequence(block), before + 2));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 5));
	fixture_check(&fixture);
	for (unsigned int i = 0; i < 8; i++) {
		cr_assert(eq(int, kernel->pagemap_read(fixture.owner->pagemap, page_addr(block, i), 1, &entry), 0));
		cr_expect(eq(int, (entry & 1ULL << 57) != 0, i < 2 || i >= 5), "page %u", i);
	}
	fixture_end(&fixture);
}

/* ---- settling ------------------------------------------------------------------------------ */

Test(block, settles_when_all_is_home)
{
	struct pages pages = pages_from(0, 100);
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 100);
	block = room_block(0);
	block_settle_later(block);
	fixture_later(&fixture, SECOND);
	cr_assert(eq(ptr, room_block(0), block), "it holds pages");
	home_begin(block, &pages, HMM_BLOCK_PAGES, false, HMM_REASON_MIGRATE, 0, NULL);
	fixture_check(&fixture);
	cr_assert(eq(ptr, room_block(0), block), "left alone for a while");
	cr_expect(gt(u64, fixture.owner->registered_bytes, 0));
	fixture_later(&fixture, SECOND);
	cr_expect(eq(ptr, room_block(0), NULL));
	cr_expect(eq(u64, fixture.owner->registered_bytes, 0));
	cr_expect(eq(u64, fixture.device->used, 0));
	cr_expect(eq(u64, fixture.owner->table[ROOM_START / HMM_PAGE_SIZE], 0));
	/* Not armed any more: a first touch is the kernel's business alone. Nobody would serve it here. */
	*(volatile char *)(ROOM_START + 300 * HMM_PAGE_SIZE) = 1;
	fixture_end(&fixture);
}

Test(block, does_not_settle_while_the_device_reads)
{
	struct pages pages = pages_from(0, 10);
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 10);
	block = room_block(0);
	home_begin(block, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_CPU_FAULT, 0, NULL);
	fixture_callbacks(&fixture);
	fixture_later(&fixture, SECOND);
	cr_assert(eq(ptr, room_block(0), block));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_SHARED), 10), "a copy that is read is kept");
	/* Its reader is gone: nothing keeps the copies. */
	owner_peer_gone(fixture.owner, DRIVER);
	block_settle(block);
	fixture_later(&fixture, SECOND);
	fixture_later(&fixture, SECOND);
	cr_expect(eq(ptr, room_block(0), NULL));
	cr_expect(eq(u64, fixture.device->used, 0));
	fixture_end(&fixture);
}

/* REMOVE was read and the zap may be yet to come: the block is kept until it has come, or long enough. */
Test(block, expects_the_zap_before_it_settles)
{
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	/* Pages that the kernel has not zapped yet. */
	for (unsigned int i = 0; i < 4; i++)
		*(volatile char *)(ROOM_START + i * HMM_PAGE_SIZE) = 1;
	fixture_out(&fixture, 10, 12);
	block = room_block(0);
	block_discard(block, 0, 12, HMM_REASON_DISCARD);
	block_expect_zap(block, 0, 12);
	block_look_for_zap(block);
	cr_expect(eq(uint, pages_count(&block->zapping), 4), "those that are still there");
	fixture_later(&fixture, SECOND);
	cr_assert(eq(ptr, room_block(0), block));
	fixture_later(&fixture, 2 * SECOND);
	cr_expect(eq(ptr, room_block(0), NULL), "it never came");
	fixture_end(&fixture);
}

/* ---- faults -------------------------------------------------------------------------------- */

struct toucher {
	pthread_t thread;
	struct random random;
	bool shuffled, write;
	unsigned int first, end, wrong;
	int done;
};

static void *touch(void *data)
{
	struct toucher *me = data;
	char expected[HMM_PAGE_SIZE];
	unsigned int n = me->end - me->first;

	for (unsigned int k = 0; k < n; k++) {
		unsigned int page = me->first + (me->shuffled ? random_below(&me->random, n) : k);
		volatile uint64_t *words = (volatile uint64_t *)(ROOM_START + page * HMM_PAGE_SIZE);

		fixture_bytes(page, expected);
		if (me->write)
			words[7] = ((uint64_t *)expected)[7];
		for (unsigned int w = 0; w < HMM_PAGE_SIZE / 8; w += 73)
			me->wrong += words[w] != ((uint64_t *)expected)[w];
	}
	__atomic_store_n(&me->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void touch_and_serve(struct toucher *toucher)
{
	cr_assert(eq(int, pthread_create(&toucher->thread, NULL, touch, toucher), 0));
	fixture_drive(&fixture, &toucher->done);
	pthread_join(toucher->thread, NULL);
	cr_expect(eq(uint, toucher->wrong, 0));
	fixture_check(&fixture);
}

Test(fault, a_walk_over_two_regions)
{
	struct toucher toucher = { .end = ROOM_PAGES };

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, ROOM_PAGES);
	fixture_check(&fixture);
	touch_and_serve(&toucher);
	cr_expect(lt(u64, fixture.owner->counter[COUNTER_FAULTS], 40), "%lu faults for four blocks in a row",
		  fixture.owner->counter[COUNTER_FAULTS]);
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_FAULT_PAGES_HOME], ROOM_PAGES));
	cr_expect(eq(u64, fixture.mirror->device_pages, 0));
	/* Read only: equal copies stay until nobody wants them; then nothing is left. */
	for (unsigned int i = 0; i < 4; i++)
		fixture_later(&fixture, SECOND);
	cr_expect(eq(uint, fixture.owner->span_count, 0));
	cr_expect(eq(u64, fixture.device->used, 0));
	cr_expect(eq(u64, fixture.owner->registered_bytes, 0));
	toucher = (struct toucher){ .end = ROOM_PAGES, .write = true };
	touch(&toucher);
	cr_expect(eq(uint, toucher.wrong, 0), "home for good");
	fixture_end(&fixture);
}

Test(fault, here_and_there_by_two_threads_reading_and_writing)
{
	struct random random = random_begin("fault");
	struct toucher a = { .end = ROOM_PAGES, .shuffled = true };
	struct toucher b = { .end = ROOM_PAGES, .shuffled = true, .write = true };

	a.random.state = random_next(&random);
	b.random.state = random_next(&random);
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, ROOM_PAGES);
	cr_assert(eq(int, pthread_create(&a.thread, NULL, touch, &a), 0));
	touch_and_serve(&b);
	fixture_drive(&fixture, &a.done);
	pthread_join(a.thread, NULL);
	cr_expect(eq(uint, a.wrong, 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

Test(fault, a_driver_that_must_be_asked_first)
{
	struct toucher toucher = { .end = 64, .write = true };
	struct block *block;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, 64);
	mailbox_deinit(&fixture.outbox);
	cr_assert(eq(int, mailbox_init(&fixture.outbox), 0));
	fixture_callbacks(&fixture);
	block = room_block(0);
	cr_assert(eq(int, pthread_create(&toucher.thread, NULL, touch, &toucher), 0));
	while (!__atomic_load_n(&toucher.done, __ATOMIC_ACQUIRE)) {
		cr_assert(ge(int, reactor_wait(fixture.worker.reactor, NS_PER_MS), 0));
		fixture.worker.now = clock_now();
		owner_tick(fixture.owner, fixture.worker.now);
		fixture_check(&fixture);
		fixture_answer(&fixture);
		owner_run(fixture.owner);
	}
	pthread_join(toucher.thread, NULL);
	cr_expect(eq(uint, toucher.wrong, 0));
	cr_expect(gt(u64, fixture.owner->counter[COUNTER_INVALIDATIONS], 0));
	cr_expect(eq(uint, block_count(block, HMM_PAGE_DEVICE), 0));
	fixture_check(&fixture);
	fixture_end(&fixture);
}

/* Never written, and armed by its neighbours: zeros. */
Test(fault, holes_are_zeros)
{
	struct toucher toucher = { .end = 10 };
	uint64_t sum = 0;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture.owner->peer = 1;
	fixture_out(&fixture, 0, 10);
	fixture_out(&fixture, 200, 210);
	/* A hole through our own mem file: answered by an error, not by a wait. */
	cr_expect(lt(int, (int)kernel->mem_read(fixture.owner->mem, ROOM_START + 100 * HMM_PAGE_SIZE, &sum, 8), 0));
	fault_serve(fixture.owner, ROOM_START + 100 * HMM_PAGE_SIZE + 5, 0, 0);
	for (unsigned int i = 100; i < 200; i++)
		sum += *(volatile uint64_t *)(ROOM_START + i * HMM_PAGE_SIZE);
	cr_expect(eq(u64, sum, 0));
	cr_expect(eq(u64, fixture.owner->counter[COUNTER_HOLE_FAULTS], 1));
	cr_expect(eq(uint, block_count(room_block(0), HMM_PAGE_DEVICE), 20));
	touch_and_serve(&toucher);
	fixture_end(&fixture);
}
