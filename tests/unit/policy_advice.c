// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * policy_advice.c - what of advice is in force, and that nothing is taken away
 * without a word.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "engine_random.h"
#include "policy/advice.h"

#define COPIES (HMM_ADVISED_READ_MOSTLY | HMM_ADVISED_ACCESSED_BY)

static struct advice_facts all_is_well(uint64_t said)
{
	return (struct advice_facts){ .said = said, .move = true, .protects = true, .pages = 8, .on_device = 8 };
}

static void expect(const struct advice_facts *facts, uint64_t in_force, const char *word)
{
	char why[sizeof(((struct hmm_msg_advise_reply *)0)->why)];

	cr_expect(eq(u64, advice_in_force(facts, why, sizeof(why)), in_force));
	if (word)
		cr_expect(strstr(why, word) != NULL, "'%s' says nothing of %s", why, word);
	else
		cr_expect(eq(str, why, ""));
}

Test(advice, all_is_in_force_where_nothing_stands_against_it)
{
	struct advice_facts facts = all_is_well(HMM_ADVISED_MASK & ~HMM_ADVISED_UNPINNED);

	expect(&facts, facts.said, NULL);
}

Test(advice, each_reason_takes_its_own)
{
	struct advice_facts facts = all_is_well(HMM_ADVISED_MASK);

	expect(&facts, HMM_ADVISED_MASK & ~HMM_ADVISED_UNPINNED, "not needed");
	facts = all_is_well(HMM_ADVISED_MASK & ~HMM_ADVISED_UNPINNED);
	facts.merging = true;
	expect(&facts, facts.said & ~(COPIES | HMM_ADVISED_PREFERRED_DEVICE), "ksmd");
	facts.merging = false;
	facts.windows = true;
	expect(&facts, facts.said & ~HMM_ADVISED_PREFERRED_SYSTEM, "window");
	facts.protects = false;
	expect(&facts, facts.said & ~(COPIES | HMM_ADVISED_PREFERRED_SYSTEM), "write-protect");
	facts.windows = false;
	expect(&facts, facts.said, NULL);
	facts.no_memory = true;
	expect(&facts, facts.said & ~(HMM_ADVISED_ACCESSED_BY | HMM_ADVISED_PREFERRED_DEVICE), "no memory");
	facts.no_memory = false;
	facts.no_faults = true;
	expect(&facts, facts.said & ~(HMM_ADVISED_ACCESSED_BY | HMM_ADVISED_PREFERRED_DEVICE), "cannot fault");
	facts.no_faults = false;
	facts.on_device = 3;
	expect(&facts, facts.said & ~HMM_ADVISED_PIN, "3 of 8");
	facts.on_device = 8;
	facts.move = false;
	expect(&facts, facts.said & ~(COPIES | HMM_ADVISED_PREFERRED_DEVICE), "UNPINNED");
	facts.said |= HMM_ADVISED_UNPINNED;
	expect(&facts, facts.said, NULL);
}

/* Whatever the facts: no more than was said, and a word for each loss, within the room. */
Test(advice, never_in_silence)
{
	struct random random = random_begin("advice");

	for (int i = 0; i < 20000; i++) {
		uint64_t bits = random_next(&random);
		struct advice_facts facts = {
			.said = random_next(&random) & HMM_ADVISED_MASK,
			.move = bits & 1, .merging = bits & 2, .protects = bits & 4, .windows = bits & 8,
			.no_memory = bits & 16, .pages = 1ULL << 60, .on_device = bits & 32 ? 1ULL << 60 : 0,
		};
		size_t room = 2 + random_below(&random, 500);
		char why[504];
		uint64_t in_force;

		memset(why, 0x55, sizeof(why));
		in_force = advice_in_force(&facts, why, room);
		cr_assert(eq(u64, in_force & ~facts.said, 0));
		cr_assert(eq(int, in_force == facts.said, !why[0]));
		cr_assert(strnlen(why, room) < room);
		cr_assert(eq(int, why[room], 0x55));
	}
}

/* All reasons at once fit the answer. */
Test(advice, the_longest_reason_fits)
{
	struct advice_facts facts = { .said = HMM_ADVISED_MASK & ~HMM_ADVISED_UNPINNED, .windows = true,
				      .pages = 1ULL << 35, .on_device = 1ULL << 34 };
	char why[sizeof(((struct hmm_msg_advise_reply *)0)->why)];

	advice_in_force(&facts, why, sizeof(why));
	cr_expect(lt(sz, strlen(why), sizeof(why) - 1), "%s", why);
}
