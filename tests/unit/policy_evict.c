// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * policy_evict.c - who leaves a full device first, and how much has to leave.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "engine_random.h"
#include "layout.h"
#include "policy/evict.h"

#define MIB (1ULL << 20)

/* Chooses among these and checks that those with addresses 1 to @expected are in front, in that order. */
static void expect_order(struct evict_candidate *candidates, unsigned int count, unsigned int expected)
{
	struct random random = random_begin("evict");

	/* However they lie. */
	for (int round = 0; round < 20; round++) {
		for (unsigned int i = count; i > 1; i--) {
			unsigned int other = random_below(&random, i);
			struct evict_candidate swap = candidates[i - 1];

			candidates[i - 1] = candidates[other];
			candidates[other] = swap;
		}
		cr_assert(eq(uint, evict_choose(candidates, count), expected));
		for (unsigned int i = 0; i < expected; i++)
			cr_assert(eq(u64, candidates[i].addr, i + 1), "place %u", i);
	}
}

Test(evict, unused_then_discarded_then_the_coldest)
{
	struct evict_candidate candidates[] = {
		{ .addr = 1, .used = 900, .unused = true, .priority = 100 },
		{ .addr = 2, .used = 901, .unused = true, .priority = 100 },
		{ .addr = 3, .used = 800, .discarded = true, .priority = 50 },
		{ .addr = 4, .used = 801, .discarded = true, .priority = 50 },
		{ .addr = 5, .used = 100, .priority = 50 },
		{ .addr = 6, .used = 200, .priority = 50 },
		{ .addr = 7, .used = 300, .priority = 50 },
	};

	expect_order(candidates, 7, 7);
}

Test(evict, priority_keeps_longer)
{
	struct evict_candidate candidates[] = {
		{ .addr = 1, .used = 999, .priority = 0 },
		{ .addr = 2, .used = 400, .priority = 10 },
		{ .addr = 3, .used = 500, .priority = 10 },
		{ .addr = 4, .used = 1, .priority = 50 },
		{ .addr = 5, .used = 0, .priority = 100 },
	};

	expect_order(candidates, 5, 5);
}

/* Of one age a copy goes before what has to be brought home; an older block goes before both. */
static void expect_copies(uint64_t step)
{
	struct evict_candidate candidates[] = {
		{ .addr = 1, .used = step - 1, .priority = 50 },
		{ .addr = 2, .used = step + 5, .copies = true, .priority = 50 },
		{ .addr = 3, .used = step + 6, .copies = true, .priority = 50 },
		{ .addr = 4, .used = step, .priority = 50 },
		{ .addr = 5, .used = step + 15, .priority = 50 },
		{ .addr = 6, .used = step + EVICT_STEP, .copies = true, .priority = 50 },
	};

	expect_order(candidates, 6, 6);
}

Test(evict, copies_of_the_same_age_first)
{
	expect_copies(EVICT_STEP);
	expect_copies(1000 * EVICT_STEP);
	expect_copies((1ULL << 50) * EVICT_STEP);
}

/* What another device holds goes before what the CPU has, of one age; age and priority count for it, too. */
Test(evict, copies_of_what_is_elsewhere)
{
	struct evict_candidate candidates[] = {
		{ .addr = 1, .used = 900, .unused = true, .mirror = 9, .priority = 50 },
		{ .addr = 2, .used = 999, .mirror = 9, .priority = 10 },
		{ .addr = 3, .used = EVICT_STEP - 1, .priority = 50 },
		{ .addr = 4, .used = EVICT_STEP + 7, .mirror = 9, .priority = 50 },
		{ .addr = 5, .used = EVICT_STEP + 5, .copies = true, .priority = 50 },
		{ .addr = 6, .used = EVICT_STEP, .priority = 50 },
		{ .addr = 7, .used = 2 * EVICT_STEP, .mirror = 9, .priority = 50 },
	};

	expect_order(candidates, 7, 7);
}

Test(evict, never_a_pinned_one)
{
	struct evict_candidate candidates[] = {
		{ .addr = 1, .used = 2, .priority = 50 },
		{ .addr = 2, .used = 3, .priority = 100 },
		{ .addr = 77, .used = 0, .priority = 0, .pinned = true },
		{ .addr = 77, .used = 0, .unused = true, .pinned = true },
		{ .addr = 77, .used = 0, .discarded = true, .copies = true, .pinned = true },
	};

	expect_order(candidates, 5, 2);
	cr_expect(eq(uint, evict_choose(candidates + 2, 3), 0));
	cr_expect(eq(uint, evict_choose(candidates, 0), 0));
}

Test(evict, at_need_what_is_wanted_and_some_blocks)
{
	const struct evict_marks marks = { .high = 100 };

	/* There is room. */
	cr_expect(eq(u64, evict_amount(&marks, 1024 * MIB, 512 * MIB, 2 * MIB), 0));
	cr_expect(eq(u64, evict_amount(&marks, 1024 * MIB, 1022 * MIB, 2 * MIB), 0));
	cr_expect(not(evict_is_high(&marks, 1024 * MIB, 1024 * MIB)));
	/* Four blocks beyond the need of a large device, an eighth of a small one, none of a tiny one. */
	cr_expect(eq(u64, evict_amount(&marks, 1024 * MIB, 1024 * MIB, 2 * MIB), 10 * MIB));
	cr_expect(eq(u64, evict_amount(&marks, 1024 * MIB, 1023 * MIB, 2 * MIB), 9 * MIB));
	cr_expect(eq(u64, evict_amount(&marks, 16 * MIB, 16 * MIB, 2 * MIB), 4 * MIB));
	cr_expect(eq(u64, evict_amount(&marks, 4 * MIB, 4 * MIB, 2 * MIB), 2 * MIB));
	/* No more than there is. */
	cr_expect(eq(u64, evict_amount(&marks, 16 * MIB, 4 * MIB, 16 * MIB), 4 * MIB));
	cr_expect(eq(u64, evict_amount(&marks, 0, 0, 2 * MIB), 0));
}

Test(evict, between_the_marks)
{
	const struct evict_marks marks = { .high = 90, .low = 50 };

	cr_expect(not(evict_is_high(&marks, 1000 * MIB, 900 * MIB)));
	cr_expect(evict_is_high(&marks, 1000 * MIB, 901 * MIB));
	cr_expect(eq(u64, evict_amount(&marks, 1000 * MIB, 900 * MIB, 0), 0));
	cr_expect(eq(u64, evict_amount(&marks, 1000 * MIB, 901 * MIB, 0), 401 * MIB));
	/* At need: with what is wanted it is down to the mark. */
	cr_expect(eq(u64, evict_amount(&marks, 1000 * MIB, 1000 * MIB, 10 * MIB), 510 * MIB));
	cr_expect(eq(u64, evict_amount(&marks, 1000 * MIB, 1000 * MIB, 700 * MIB), 1000 * MIB));
}

/* Afterwards what was wanted fits, whatever the figures; and never is more freed than there is. */
Test(evict, always_enough)
{
	struct random random = random_begin("amount");

	for (int round = 0; round < 100000; round++) {
		struct evict_marks marks = { .high = 1 + random_below(&random, 100) };
		uint64_t size = (1ULL + random_below(&random, 1 << 20)) * HMM_PAGE_SIZE;
		uint64_t used = random_below(&random, (unsigned int)(size / HMM_PAGE_SIZE) + 1) * HMM_PAGE_SIZE;
		uint64_t wanted = random_below(&random, (unsigned int)(size / HMM_PAGE_SIZE) + 1) * HMM_PAGE_SIZE;
		uint64_t amount;

		marks.low = random_below(&random, marks.high + 1);
		amount = evict_amount(&marks, size, used, wanted);
		cr_assert(le(u64, amount, used));
		cr_assert(le(u64, used - amount + wanted, size), "%lu of %lu in use, %lu wanted: %lu", used, size,
			  wanted, amount);
		if (!amount && used)
			cr_assert(not(evict_is_high(&marks, size, used)));
	}
}
