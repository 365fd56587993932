// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * policy_prefetch.c - how much comes home for one fault: a page for a touch
 * that continues nothing, ever more for a walk, and several walks at once.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "engine_random.h"
#include "layout.h"
#include "policy/prefetch.h"

#define PAGE 0x7f00000000ULL

/* One fault as fault.c serves it: no further than the block. Returns the next page to touch. */
static uint64_t fault(struct prefetch *prefetch, uint64_t page, unsigned int *asked)
{
	uint64_t left = HMM_BLOCK_PAGES - page % HMM_BLOCK_PAGES, next;

	*asked = prefetch_ask(prefetch, page, HMM_BLOCK_PAGES);
	next = page + (*asked < left ? *asked : left);
	prefetch_brought(prefetch, page, next, *asked);
	return next;
}

Test(prefetch, walk_doubles_to_whole_blocks)
{
	struct prefetch prefetch = { 0 };
	unsigned int expected = 1, asked, faults = 0;
	uint64_t page = PAGE;

	while (page < PAGE + 64 * HMM_BLOCK_PAGES) {
		page = fault(&prefetch, page, &asked);
		cr_assert(eq(uint, asked, expected), "fault %u of the walk", faults);
		if (expected < HMM_BLOCK_PAGES)
			expected *= 2;
		faults++;
	}
	/* 10 faults until the doubling has come to whole blocks, then one a block. */
	cr_expect(le(uint, faults, 64 + 10), "%u faults for 64 blocks", faults);
}

Test(prefetch, touches_here_and_there_bring_one_page)
{
	struct prefetch prefetch = { 0 };
	struct random random = random_begin("prefetch");
	unsigned int asked, wrong = 0;

	for (unsigned int i = 0; i < 10000; i++) {
		/* No two are neighbours. */
		uint64_t page = PAGE + 2 * (random_next(&random) % (1 << 24));

		fault(&prefetch, page, &asked);
		wrong += asked != 1;
	}
	cr_expect(eq(uint, wrong, 0));
}

Test(prefetch, as_many_walks_as_it_remembers)
{
	struct prefetch prefetch = { 0 };
	uint64_t page[PREFETCH_WALKS];
	unsigned int asked, expected = 1;

	for (unsigned int w = 0; w < PREFETCH_WALKS; w++)
		page[w] = PAGE + w * 1000000ULL * HMM_BLOCK_PAGES;
	for (unsigned int round = 0; round < 40; round++) {
		for (unsigned int w = 0; w < PREFETCH_WALKS; w++) {
			page[w] = fault(&prefetch, page[w], &asked);
			cr_assert(eq(uint, asked, expected), "walk %u, fault %u", w, round);
		}
		if (expected < HMM_BLOCK_PAGES)
			expected *= 2;
	}
}

Test(prefetch, the_quietest_walk_makes_room)
{
	struct prefetch prefetch = { 0 };
	uint64_t page[PREFETCH_WALKS + 1];
	unsigned int asked;

	for (unsigned int w = 0; w <= PREFETCH_WALKS; w++)
		page[w] = PAGE + w * 1000000ULL * HMM_BLOCK_PAGES;
	for (unsigned int round = 0; round < 5; round++)
		for (unsigned int w = 0; w < PREFETCH_WALKS; w++)
			page[w] = fault(&prefetch, page[w], &asked);
	/* All but walk 2 go on; the ninth takes its place, and only its. */
	for (unsigned int w = 0; w < PREFETCH_WALKS; w++)
		if (w != 2)
			page[w] = fault(&prefetch, page[w], &asked);
	fault(&prefetch, page[PREFETCH_WALKS], &asked);
	cr_expect(eq(uint, asked, 1));
	for (unsigned int w = 0; w < PREFETCH_WALKS; w++) {
		asked = prefetch_ask(&prefetch, page[w], HMM_BLOCK_PAGES);
		if (w == 2)
			cr_expect(eq(uint, asked, 1), "the quiet walk is remembered still");
		else
			cr_expect(eq(uint, asked, 64), "walk %u was forgotten", w);
	}
}

/* What it asks for was not all on the device: the walk goes on behind what came. */
Test(prefetch, a_walk_that_got_less_goes_on)
{
	struct prefetch prefetch = { 0 };
	unsigned int asked;

	asked = prefetch_ask(&prefetch, PAGE, HMM_BLOCK_PAGES);
	prefetch_brought(&prefetch, PAGE, PAGE + 1, asked);
	asked = prefetch_ask(&prefetch, PAGE + 1, HMM_BLOCK_PAGES);
	cr_expect(eq(uint, asked, 2));
	prefetch_brought(&prefetch, PAGE + 1, PAGE + 2, asked);
	cr_expect(eq(uint, prefetch_ask(&prefetch, PAGE + 2, HMM_BLOCK_PAGES), 4));
	cr_expect(eq(uint, prefetch_ask(&prefetch, PAGE + 3, HMM_BLOCK_PAGES), 1));
}

Test(prefetch, never_more_than_allowed)
{
	struct prefetch prefetch = { 0 };
	unsigned int asked;

	for (uint64_t page = PAGE; page < PAGE + 1000;) {
		asked = prefetch_ask(&prefetch, page, 7);
		cr_assert(ge(uint, asked, 1));
		cr_assert(le(uint, asked, 7));
		prefetch_brought(&prefetch, page, page + asked, asked);
		page += asked;
	}
	/* Nothing mapped at zero: an unused walk is no walk to page 0. */
	prefetch = (struct prefetch){ 0 };
	cr_expect(eq(uint, prefetch_ask(&prefetch, 0, HMM_BLOCK_PAGES), 1));
}

Test(prefetch, the_clock_may_wrap)
{
	struct prefetch prefetch = { .clock = UINT32_MAX - 3 };
	unsigned int asked;
	uint64_t page = PAGE, other = PAGE + (1ULL << 30);

	for (unsigned int w = 0; w < PREFETCH_WALKS; w++)
		prefetch.walk[w].age = UINT32_MAX - 20 + w;
	for (int i = 0; i < 8; i++) {
		page = fault(&prefetch, page, &asked);
		other = fault(&prefetch, other, &asked);
	}
	cr_expect(eq(uint, asked, 128), "a walk was lost when the clock wrapped");
}

/* ---- what was said of the memory --------------------------------------------------- */

static void expect_span(uint64_t page, unsigned int asked, struct prefetch_hint hint, uint64_t start, uint64_t end)
{
	struct prefetch_span span = prefetch_span(page, asked, &hint, PAGE, PAGE + HMM_BLOCK_PAGES);

	cr_expect(eq(u64, span.start, start), "page %lu, asked %u", page - PAGE, asked);
	cr_expect(eq(u64, span.end, end), "page %lu, asked %u", page - PAGE, asked);
}

Test(prefetch, a_span_without_a_hint_is_what_was_asked)
{
	expect_span(PAGE, 1, PREFETCH_NO_HINT, PAGE, PAGE + 1);
	expect_span(PAGE + 10, 64, PREFETCH_NO_HINT, PAGE + 10, PAGE + 74);
	expect_span(PAGE + 500, 64, PREFETCH_NO_HINT, PAGE + 500, PAGE + 512);
}

Test(prefetch, a_group_comes_whole_and_a_walk_goes_on_behind_it)
{
	struct prefetch_hint hint = PREFETCH_NO_HINT;

	hint.granularity = 16;
	expect_span(PAGE + 20, 1, hint, PAGE + 16, PAGE + 32);
	expect_span(PAGE + 31, 1, hint, PAGE + 16, PAGE + 32);
	expect_span(PAGE + 16, 64, hint, PAGE + 16, PAGE + 80);
	hint.off = true;
	expect_span(PAGE + 16, 64, hint, PAGE + 16, PAGE + 32);
	hint.granularity = 512;
	expect_span(PAGE + 16, 1, hint, PAGE, PAGE + 512);
	hint.granularity = 0;
	expect_span(PAGE + 16, 64, hint, PAGE + 16, PAGE + 17);
}

Test(prefetch, no_further_than_the_hint_holds)
{
	struct prefetch_hint hint = { .granularity = 32, .start = PAGE + 10, .end = PAGE + 20 };

	expect_span(PAGE + 15, 1, hint, PAGE + 10, PAGE + 20);
	expect_span(PAGE + 15, 100, hint, PAGE + 10, PAGE + 20);
	hint.granularity = 0;
	expect_span(PAGE + 15, 100, hint, PAGE + 15, PAGE + 20);
}

Test(prefetch, a_span_has_its_page_whatever_is_said)
{
	struct random random = random_begin("span");

	for (int i = 0; i < 100000; i++) {
		uint64_t page = PAGE + random_below(&random, HMM_BLOCK_PAGES), start = page, end = page + 1;
		struct prefetch_hint hint = { .off = random_below(&random, 2) };
		struct prefetch_span span;

		if (random_below(&random, 3))
			hint.granularity = 1U << random_below(&random, 10);
		hint.start = start -= random_below(&random, 700);
		hint.end = end += random_below(&random, 700);
		span = prefetch_span(page, 1 + random_below(&random, HMM_BLOCK_PAGES), &hint, PAGE,
				     PAGE + HMM_BLOCK_PAGES);
		cr_assert(span.start <= page && span.end > page);
		cr_assert(span.start >= PAGE && span.end <= PAGE + HMM_BLOCK_PAGES);
		cr_assert(span.start >= start && span.end <= end);
	}
}
