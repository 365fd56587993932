// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_sets.c - runs of a block's pages and sets of address ranges, each
 * against a plain array of booleans that says the same.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "engine/owner.h"
#include "engine_random.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(pages);
LEAKCHECKED_SUITE(spans);

static void check_runs(const struct pages *pages, const bool *model)
{
	unsigned int first = 0, end, at = 0, n = 0;

	for (; pages_run(pages, &first, &end); first = end) {
		cr_assert(first < end && end <= HMM_BLOCK_PAGES, "run %u..%u", first, end);
		for (; at < first; at++)
			cr_assert(not(model[at]), "page %u was passed over", at);
		for (; at < end; at++)
			cr_assert(model[at], "page %u is in a run", at);
		cr_assert(end == HMM_BLOCK_PAGES || !model[end], "the run ends early at %u", end);
	}
	for (; at < HMM_BLOCK_PAGES; at++)
		cr_assert(not(model[at]), "page %u is in no run", at);
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		cr_assert(eq(int, pages_test(pages, i), model[i]));
		n += model[i];
	}
	cr_assert(eq(uint, pages_count(pages), n));
	cr_assert(eq(int, pages_empty(pages), n == 0));
}

Test(pages, edges)
{
	struct pages pages = { 0 };
	bool model[HMM_BLOCK_PAGES] = { 0 };
	static const unsigned int edges[] = { 0, 62, 63, 64, 65, 127, 128, 255, 510, 511 };

	check_runs(&pages, model);
	for (unsigned int i = 0; i < sizeof(edges) / sizeof(edges[0]); i++) {
		pages_set(&pages, edges[i]);
		model[edges[i]] = true;
		check_runs(&pages, model);
	}
	for (unsigned int i = 0; i < sizeof(edges) / sizeof(edges[0]); i++) {
		pages_clear(&pages, edges[i]);
		model[edges[i]] = false;
		check_runs(&pages, model);
	}
	memset(&pages, 0xff, sizeof(pages));
	memset(model, true, sizeof(model));
	check_runs(&pages, model);
}

Test(pages, at_random)
{
	struct random random = random_begin("pages");

	for (int round = 0; round < 2000; round++) {
		/* From almost none to almost all. */
		unsigned int density = random_below(&random, 101);
		bool model[HMM_BLOCK_PAGES] = { 0 };
		struct pages pages = { 0 };

		for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
			model[i] = random_below(&random, 100) < density;
			if (model[i])
				pages_set(&pages, i);
		}
		check_runs(&pages, model);
	}
}

/* A run is looked for from the middle of another, and from the end. */
Test(pages, from_anywhere)
{
	struct pages pages = { 0 };
	unsigned int first, end;

	for (unsigned int i = 100; i < 200; i++)
		pages_set(&pages, i);
	first = 150;
	cr_assert(pages_run(&pages, &first, &end));
	cr_expect(eq(uint, first, 150));
	cr_expect(eq(uint, end, 200));
	first = 200;
	cr_expect(not(pages_run(&pages, &first, &end)));
	first = HMM_BLOCK_PAGES;
	cr_expect(not(pages_run(&pages, &first, &end)));
}

/* ---- spans --------------------------------------------------------------------- */

#define UNITS 256U
/* Far up: what is meant to be 64 bits wide is not less. */
#define BASE 0x7f0000000000ULL

static uint64_t at_unit(unsigned int unit)
{
	return BASE + (uint64_t)unit * HMM_PAGE_SIZE;
}

static void check_set(const struct span_set *set, const bool *model)
{
	unsigned int spans = 0;

	for (unsigned int i = 0; i < UNITS; i++)
		spans += model[i] && (i == 0 || !model[i - 1]);
	cr_assert(eq(uint, set->count, spans), "not merged, or cut up");
	for (unsigned int i = 0; i < set->count; i++) {
		cr_assert(set->list[i].start < set->list[i].end);
		cr_assert(i == 0 || set->list[i - 1].end < set->list[i].start,
			  "out of order, or touching");
		for (uint64_t at = set->list[i].start; at < set->list[i].end; at += HMM_PAGE_SIZE)
			cr_assert(model[(at - BASE) / HMM_PAGE_SIZE]);
	}
}

static void check_questions(const struct span_set *set, const bool *model, struct random *random)
{
	for (int i = 0; i < 20; i++) {
		unsigned int start = random_below(random, UNITS);
		unsigned int end = start + 1 + random_below(random, UNITS - start);
		bool any = false;

		for (unsigned int at = start; at < end; at++)
			any |= model[at];
		cr_assert(eq(int, span_set_overlaps(set, at_unit(start), at_unit(end)), any));
	}
}

Test(spans, at_random)
{
	struct random random = random_begin("spans");

	for (int round = 0; round < 50; round++) {
		struct span_set set = { 0 };
		bool model[UNITS] = { 0 };

		for (int step = 0; step < 200; step++) {
			/* Short ones, that make many; and now and then one that swallows them. */
			unsigned int most = random_below(&random, 10) ? 8 : UNITS;
			unsigned int start = random_below(&random, UNITS);
			unsigned int room = UNITS - start < most ? UNITS - start : most;
			unsigned int end = start + 1 + random_below(&random, room);
			bool add = random_below(&random, 2);
			int r = add ? span_set_add(&set, at_unit(start), at_unit(end))
				    : span_set_remove(&set, at_unit(start), at_unit(end));

			cr_assert(eq(int, r, 0));
			memset(model + start, add, end - start);
			check_set(&set, model);
			check_questions(&set, model, &random);
		}
		span_set_deinit(&set);
		cr_assert(eq(uint, set.count, 0));
		cr_assert(eq(ptr, set.list, NULL));
	}
}

Test(spans, neighbours_merge_and_the_empty_set_has_nothing)
{
	struct span_set set = { 0 };

	cr_expect(not(span_set_overlaps(&set, 0, UINT64_MAX)));
	cr_assert(eq(int, span_set_remove(&set, 0, UINT64_MAX), 0));
	cr_assert(eq(int, span_set_add(&set, 0x1000, 0x2000), 0));
	cr_assert(eq(int, span_set_add(&set, 0x3000, 0x4000), 0));
	cr_expect(eq(uint, set.count, 2));
	cr_expect(not(span_set_overlaps(&set, 0x2000, 0x3000)),
		  "the gap between two is not in the set");
	cr_assert(eq(int, span_set_add(&set, 0x2000, 0x3000), 0));
	cr_expect(eq(uint, set.count, 1));
	cr_assert(eq(int, span_set_add(&set, 0x2000, 0x3000), 0));
	cr_expect(eq(uint, set.count, 1), "what is there already changes nothing");
	cr_assert(eq(int, span_set_remove(&set, 0x2000, 0x3000), 0));
	cr_expect(eq(uint, set.count, 2));
	cr_assert(eq(int, span_set_remove(&set, 0, HMM_VA_END), 0));
	cr_expect(eq(uint, set.count, 0));
	span_set_deinit(&set);
}
