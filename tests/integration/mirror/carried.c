/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * carried.c - what was said of a range, each piece of advice by itself, when the memory is
 * forked, moved, grown, cut and unmapped while its pages are on the device: it stays with the bytes.
 */
#include "mirror.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define DEVICE_MEMORY (64UL << 20)
#define PAGES 64UL

static const struct said {
	const char *name;
	enum hmm_advice advice;
	unsigned int value;
	bool of_mirror;
	uint64_t bit;
} all[] = {
	{ "read mostly", HMM_ADVISE_SET_READ_MOSTLY, 0, false, HMM_POLICY_READ_MOSTLY },
	{ "preferred device", HMM_ADVISE_SET_PREFERRED_LOCATION, 0, true, HMM_POLICY_PREFERRED_DEVICE },
	{ "preferred system", HMM_ADVISE_SET_PREFERRED_LOCATION, 0, false, HMM_POLICY_PREFERRED_SYSTEM },
	{ "accessed by", HMM_ADVISE_SET_ACCESSED_BY, 0, true, HMM_POLICY_ACCESSED_BY },
	{ "granularity", HMM_ADVISE_GRANULARITY, 8, false, HMM_POLICY_GRANULARITY },
	{ "prefetch", HMM_ADVISE_PREFETCH, 0, false, HMM_POLICY_NO_PREFETCH },
	{ "pin", HMM_ADVISE_PIN, 0, true, HMM_POLICY_PIN },
	{ "evict priority", HMM_ADVISE_EVICT_PRIORITY, 70, false, HMM_POLICY_EVICT_PRIORITY },
	{ "unpinned", HMM_ADVISE_UNPINNED, 0, false, HMM_POLICY_UNPINNED },
};

static void for_each(void (*run)(const struct said *said))
{
	test_open(0, DEVICE_MEMORY);
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		printf("%s\n", all[i].name);
		run(&all[i]);
	}
	test_close();
}

/* All of it, and nothing else, with what belongs to it. */
static void check_said(const void *memory, size_t pages, const struct said *said)
{
	struct hmm_policy policy = test_policy(memory, pages);

	CHECK_EQ(policy.said, said->bit);
	CHECK_EQ(policy.mixed, 0);
	CHECK_EQ(policy.granularity, said->bit == HMM_POLICY_GRANULARITY ? 8 : 0);
	CHECK_EQ(policy.evict_priority, said->bit == HMM_POLICY_EVICT_PRIORITY ? 70 : 50);
	CHECK_EQ(policy.accessed_by_count, said->bit == HMM_POLICY_ACCESSED_BY);
	CHECK(policy.preferred == (said->bit == HMM_POLICY_PREFERRED_DEVICE ? &mirror : NULL));
	CHECK(policy.pinned == (said->bit == HMM_POLICY_PIN ? &mirror : NULL));
}

static void check_unsaid(const void *memory, size_t pages)
{
	struct hmm_policy policy = test_policy(memory, pages);

	CHECK_EQ(policy.said | policy.mixed, 0);
}

/* While its pages are away: of memory that is all at home nothing is heard. */
static void unmap_all(char *memory, size_t pages)
{
	test_out(memory, pages);
	CHECK_EQ(munmap(memory, pages * PAGE), 0);
	check_unsaid(memory, pages);
}

static char *advised(char *memory, const struct said *said, uint64_t seed)
{
	struct hmm_advise_options options = { .size = sizeof(options), .value = said->value,
					      .mirror = said->of_mirror ? &mirror : NULL };

	test_fill(memory, PAGES, seed);
	CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, PAGES * PAGE, said->advice, &options), 0);
	test_out(memory, PAGES);
	check_said(memory, PAGES, said);
	return memory;
}

/* By fork(), and past libc: the parent's advice stays, the child is nobody's owner. */
static void fork_of(const struct said *said)
{
	struct hmm_policy policy = { .size = sizeof(policy) };
	char *memory = advised(test_map(PAGES), said, 1);
	bool raw = false;

	do {
		pid_t child = raw ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();

		if (!child) {
			test_check(memory, PAGES, 1);
			test_fill(memory, PAGES, 2);
			test_check(memory, PAGES, 2);
			if (!raw)
				CHECK_EQ(hmm_range_get_attribute(hmm, (unsigned long)memory, PAGES * PAGE, &policy),
					 -ESTALE);
			_exit(0);
		}
		test_reap(child, 0);
		check_said(memory, PAGES, said);
		test_check(memory, PAGES, 1);
		test_out(memory, PAGES);
		check_said(memory, PAGES, said);
		CHECK_EQ(test_policy(memory, PAGES).on_device, PAGES);
		raw = !raw;
	} while (raw && hmm_features(hmm) & HMM_HAS_EVENT_FORK);
	test_check(memory, PAGES, 1);
	unmap_all(memory, PAGES);
}

static void forked(void)
{
	for_each(fork_of);
}

static void move_of(const struct said *said)
{
	char *memory = advised(test_map(PAGES), said, 3), *place = test_map(PAGES), *grown;

	CHECK(mremap(memory, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
	check_unsaid(memory, PAGES);
	check_said(place, PAGES, said);
	CHECK_EQ(test_policy(place, PAGES).on_device, PAGES);
	test_check(place, PAGES, 3);

	/* What stays behind is new memory, of which nothing was said. */
	test_out(place, PAGES);
	memory = mremap(place, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	CHECK(memory != MAP_FAILED);
	check_said(memory, PAGES, said);
	check_unsaid(place, PAGES);
	test_check_zero(place, PAGES);
	test_check(memory, PAGES, 3);
	CHECK_EQ(munmap(place, PAGES * PAGE), 0);

	/* So is what it grows by. */
	test_out(memory, PAGES);
	grown = mremap(memory, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE);
	CHECK(grown != MAP_FAILED);
	check_said(grown, PAGES, said);
	check_unsaid(grown + PAGES * PAGE, PAGES);
	test_check(grown, PAGES, 3);
	test_check_zero(grown + PAGES * PAGE, PAGES);
	unmap_all(grown, PAGES);
	CHECK_EQ(munmap(grown + PAGES * PAGE, PAGES * PAGE), 0);
}

static void moved(void)
{
	for_each(move_of);
}

static void cut_of(const struct said *said)
{
	char *memory = advised(test_map_apart(PAGES), said, 4);

	CHECK(mremap(memory, PAGES * PAGE, PAGES / 2 * PAGE, 0) == memory);
	check_said(memory, PAGES / 2, said);
	check_unsaid(memory + PAGES / 2 * PAGE, PAGES / 2);
	test_check(memory, PAGES / 2, 4);
	test_out(memory, PAGES / 2);
	CHECK_EQ(munmap(memory + 8 * PAGE, 8 * PAGE), 0);
	check_unsaid(memory + 8 * PAGE, 8);
	check_said(memory, 8, said);
	check_said(memory + 16 * PAGE, PAGES / 2 - 16, said);
	/* Nor is it said of what is mapped there next. */
	CHECK(mmap(memory + 8 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
		   -1, 0) == memory + 8 * PAGE);
	check_unsaid(memory + 8 * PAGE, 8);
	test_check(memory, 8, 4);
	test_fill(memory + 8 * PAGE, 8, 5);
	unmap_all(memory, PAGES / 2);
}

static void cut(void)
{
	for_each(cut_of);
}

static const struct test_case cases[] = {
	{ "forked", forked, false },
	{ "moved", moved, false },
	{ "cut", cut, false },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
