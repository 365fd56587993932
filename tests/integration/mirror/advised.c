/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * advised.c - what was said of memory, by its owner and by a driver, and what it means to a driver's window
 * in another process.
 */
#include "driver.h"

#include <signal.h>

#define DEVICE_MEMORY (64UL << 20)

static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

static int advise(const void *memory, size_t pages, enum hmm_advice advice, unsigned int value)
{
	struct hmm_advise_options options = { .size = sizeof(options), .value = value };

	if (advice == HMM_ADVISE_PIN || advice == HMM_ADVISE_SET_ACCESSED_BY)
		options.mirror = &mirror;
	return hmm_advise(hmm, (unsigned long)memory, pages * PAGE, advice, &options);
}

/* Pages that the driver has, as copies (S) or to itself (D); hmmd has done what it was asked before. */
static size_t driver_pages(const char *memory, size_t pages, bool copies)
{
	size_t n = 0;

	test_policy(memory, 1);
	for (size_t i = 0; i < pages; i++) {
		uint64_t entry = hmm_mirror_lookup(&mirror, (unsigned long)memory + i * PAGE);

		n += entry & HMM_ENTRY_DEVICE && !(entry & HMM_ENTRY_WRITE) == copies;
	}
	return n;
}

/* @first is page 0 of @memory's; all 512 are read, as often as it takes: copies that nobody reads are given up. */
static void read_until_copied(const volatile uint64_t *first, const char *memory, size_t page, size_t copies)
{
	size_t seen = 0;

	for (int tries = 0; tries < 500 && seen != copies; tries++) {
		for (size_t i = 0; i < 512; i++)
			CHECK(first[i * 512 + 7] == test_word(page + i, 7, 15));
		seen = driver_pages(memory, 512, true);
		if (seen != copies)
			usleep(10000);
	}
	CHECK_EQ(seen, copies);
}

/* Three blocks: READ_MOSTLY, GRANULARITY, PREFERRED_LOCATION of the system. */
static void advised_driver(void)
{
	const char *memory = (const char *)test_driver_open(&quiet);
	struct hmm_advise_options options = { .size = sizeof(options), .mirror = &mirror };
	struct hmm_window *window = NULL;
	struct hmm_policy policy;
	struct hmm *own = NULL;
	volatile uint64_t *words;

	CHECK_EQ(hmm_window_map(&mirror, (unsigned long)memory, 3 * BLOCK, HMM_WINDOW_OFFSET, &window), 0);
	words = hmm_window_ptr(window, (unsigned long)memory);
	CHECK(words);
	/* A read leaves the owner its pages; a write takes one. */
	CHECK(words[5 * 512] == test_word(5, 0, 15));
	read_until_copied(words, memory, 0, 512);
	words[6 * 512] = test_word(6, 0, 15);
	CHECK_EQ(driver_pages(memory + 6 * PAGE, 1, false), 1);
	read_until_copied(words, memory, 0, 511);
	/* As many at a time as was said, though the CPU has the block to itself. */
	CHECK(words[(512 + 20) * 512] == test_word(512 + 20, 0, 15));
	CHECK_EQ(driver_pages(memory + BLOCK + 16 * PAGE, 8, false), 8);
	CHECK_EQ(driver_pages(memory + BLOCK, 512, false), 8);
	/* What is to stay in the system is copied for a read; the policy says that this is all there is. */
	policy = test_policy(memory + 2 * BLOCK, 512);
	CHECK_EQ(policy.said, HMM_POLICY_PREFERRED_SYSTEM);
	CHECK_EQ(policy.in_force, 0);
	CHECK(strstr(policy.why, "window"));
	CHECK(words[1024 * 512] == test_word(1024, 0, 15));
	read_until_copied(words + 1024 * 512, memory + 2 * BLOCK, 1024, 512);
	/* A driver may say all but what only the owner can know. */
	CHECK_EQ(advise(memory, 512, HMM_ADVISE_UNPINNED, 0), -EPERM);
	CHECK_EQ(advise(memory, 512, HMM_ADVISE_EVICT_PRIORITY, 90), 0);
	CHECK_EQ(advise(memory + BLOCK, 512, HMM_ADVISE_PIN, 0), 0);
	CHECK(test_policy(memory + BLOCK, 512).pinned == &mirror);
	CHECK_EQ(driver_pages(memory + BLOCK, 512, false), 512);
	CHECK_EQ(advise(memory, 512, HMM_ADVISE_SET_ACCESSED_BY, 0), 0);
	CHECK(test_policy(memory, 512).accessed_by[0] == &mirror);
	/* A mirror of one address space says nothing of another. */
	CHECK_EQ(hmm_open(NULL, &own), 0);
	CHECK_EQ(hmm_advise(own, (unsigned long)memory, PAGE, HMM_ADVISE_SET_ACCESSED_BY, &options), -EINVAL);
	CHECK(strstr(hmm_last_error(), "another address space"));
	hmm_close(own);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	raise(SIGKILL);
}

static void advised(void)
{
	struct hmm_policy policy;
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start("by-both", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(3);
	madvise(memory, 3 * BLOCK, MADV_NOHUGEPAGE);
	test_fill(memory, 3 * 512, 15);
	CHECK_EQ(advise(memory, 512, HMM_ADVISE_SET_READ_MOSTLY, 0), 0);
	CHECK_EQ(advise(memory + BLOCK, 512, HMM_ADVISE_GRANULARITY, 8), 0);
	CHECK_EQ(advise(memory + 2 * BLOCK, 512, HMM_ADVISE_SET_PREFERRED_LOCATION, 0), 0);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	test_reap(driver, SIGKILL);
	test_check(memory, 3 * 512, 15);
	/* It was said of this address space: it stays, whoever said it. */
	policy = test_policy(memory, 512);
	CHECK_EQ(policy.said, HMM_POLICY_READ_MOSTLY | HMM_POLICY_EVICT_PRIORITY | HMM_POLICY_ACCESSED_BY);
	CHECK_EQ(policy.evict_priority, 90);
	CHECK_EQ(policy.accessed_by_count, 1);
	CHECK(!policy.accessed_by[0]);
	policy = test_policy(memory + BLOCK, 512);
	CHECK_EQ(policy.said, HMM_POLICY_GRANULARITY | HMM_POLICY_PIN);
	CHECK(!policy.pinned);
	test_close();
	test_check(memory, 3 * 512, 15);
}

static const struct test_case cases[] = {
	{ "by-both", advised, false }, { NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "by-both", advised_driver, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
