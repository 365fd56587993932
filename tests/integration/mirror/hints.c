/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * hints.c - advice of ranges: what each does to where pages are, what is
 * answered where it can do nothing, and what becomes of it when the memory changes.
 */
#include "mirror.h"

#include <fcntl.h>
#include <sys/wait.h>

#define DEVICE_MEMORY (64UL << 20)

/* Aligned, so that groups of pages begin where they should; of 4 KiB pages. */
static char *map_aligned(size_t blocks)
{
	char *memory = test_map_huge(blocks);

	madvise(memory, blocks * BLOCK, MADV_NOHUGEPAGE);
	return memory;
}

static int advise(void *memory, size_t pages, enum hmm_advice advice, struct hmm_mirror *which, unsigned int value)
{
	struct hmm_policy policy = { .size = sizeof(policy) }, same;
	struct hmm_advise_options options = { .size = sizeof(options), .mirror = which, .value = value,
					      .policy = &policy };
	int r = hmm_advise(hmm, (unsigned long)memory, pages * PAGE, advice, &options);

	if (!r) {
		same = test_policy(memory, pages);
		CHECK_EQ(policy.said, same.said);
		CHECK_EQ(policy.in_force, same.in_force);
		CHECK(!strcmp(policy.why, same.why));
	}
	return r;
}

static int unadvise(void *memory, size_t pages, enum hmm_advice advice, struct hmm_mirror *which)
{
	struct hmm_advise_options options = { .size = sizeof(options), .mirror = which };

	return hmm_unadvise(hmm, (unsigned long)memory, pages * PAGE, advice, &options);
}

static uint64_t entry(const char *page)
{
	return hmm_mirror_lookup(&mirror, (unsigned long)page);
}

/* S: the device has a copy, and may not write it. */
static bool is_shared(const char *page)
{
	return (entry(page) & (HMM_ENTRY_DEVICE | HMM_ENTRY_WRITE)) == HMM_ENTRY_DEVICE;
}

static bool is_device(const char *page)
{
	return (entry(page) & (HMM_ENTRY_DEVICE | HMM_ENTRY_WRITE)) == (HMM_ENTRY_DEVICE | HMM_ENTRY_WRITE);
}

/* A copy wakes its thread before hmmd notes where the page is: an answer comes when it has. */
static void await_hmmd(const char *memory)
{
	test_policy(memory, 1);
}

static size_t shared_pages(const char *memory, size_t pages)
{
	size_t n = 0;

	await_hmmd(memory);
	for (size_t i = 0; i < pages; i++)
		n += is_shared(memory + i * PAGE);
	return n;
}

static void look(const char *memory, size_t page, uint64_t seed)
{
	CHECK(*(const volatile uint64_t *)(memory + page * PAGE) == test_word(page, 0, seed));
	await_hmmd(memory);
}

static void write_again(char *memory, size_t page, uint64_t seed)
{
	*(volatile uint64_t *)(memory + page * PAGE) = test_word(page, 0, seed);
	await_hmmd(memory);
}

/* Longer than a block that is at rest is left alone. */
static void let_it_settle(void)
{
	usleep(300000);
}

/* ---- what each does -------------------------------------------------------------- */

static void read_mostly(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 1);
	test_out(memory, 64);
	/* Without it, and with no driver to read a copy, a read takes the page. */
	look(memory, 0, 1);
	CHECK(!test_on_device(memory));
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_SET_READ_MOSTLY, NULL, 0), 0);
	CHECK_EQ(test_policy(memory, 64).in_force, HMM_POLICY_READ_MOSTLY);
	look(memory, 10, 1);
	CHECK(is_shared(memory + 10 * PAGE));
	test_check(memory, 64, 1);
	CHECK_EQ(shared_pages(memory, 64), 63);
	let_it_settle();
	CHECK_EQ(shared_pages(memory, 64), 63);
	test_device_check(memory, 64, 1);
	/* A write takes the page. */
	write_again(memory, 10, 1);
	CHECK(!test_on_device(memory + 10 * PAGE));
	CHECK_EQ(unadvise(memory, 64, HMM_ADVISE_SET_READ_MOSTLY, NULL), 0);
	CHECK_EQ(test_policy(memory, 64).said, 0);
	/* Nothing keeps the copies any more. */
	for (int i = 0; i < test_scaled(500) && test_device_pages(memory, 64); i++)
		usleep(10000);
	CHECK_EQ(test_device_pages(memory, 64), 0);
	/* The opposite by its own number. */
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_SET_READ_MOSTLY, NULL, 0), 0);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_UNSET_READ_MOSTLY, NULL, 0), 0);
	CHECK_EQ(test_policy(memory, 64).said, 0);
	test_check(memory, 64, 1);
	test_close();
}

static void preferred_device(void)
{
	struct hmm_policy policy;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = map_aligned(1);
	test_fill(memory, 512, 2);
	test_out(memory, 512);
	CHECK_EQ(advise(memory, 512, HMM_ADVISE_SET_PREFERRED_LOCATION, &mirror, 0), 0);
	policy = test_policy(memory, 512);
	CHECK_EQ(policy.in_force, HMM_POLICY_PREFERRED_DEVICE);
	CHECK(policy.preferred == &mirror);
	look(memory, 100, 2);
	CHECK(is_shared(memory + 100 * PAGE));
	/* Writes that walk take what they write, and no more. */
	for (size_t i = 200; i < 208; i++)
		write_again(memory, i, 2);
	CHECK_EQ(test_device_pages(memory, 512), 504);
	CHECK_EQ(advise(memory, 512, HMM_ADVISE_UNSET_PREFERRED_LOCATION, NULL, 0), 0);
	CHECK_EQ(test_policy(memory, 512).said, 0);
	CHECK(!test_policy(memory, 512).preferred);
	test_check(memory, 512, 2);
	test_close();
}

static void preferred_system(void)
{
	struct hmm_policy policy;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 3);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_SET_PREFERRED_LOCATION, &mirror, 0), 0);
	/* What is said later replaces it. */
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_SET_PREFERRED_LOCATION, NULL, 0), 0);
	policy = test_policy(memory, 64);
	CHECK_EQ(policy.in_force, HMM_POLICY_PREFERRED_SYSTEM);
	CHECK(!policy.preferred);
	test_device_check(memory, 64, 3);
	CHECK_EQ(test_device_pages(memory, 64), 0);
	test_check(memory, 64, 3);
	test_close();
}

static void accessed_by(void)
{
	struct hmm_policy policy;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(100);
	test_fill(memory, 100, 4);
	test_out(memory, 20);
	CHECK_EQ(advise(memory, 100, HMM_ADVISE_SET_ACCESSED_BY, &mirror, 0), 0);
	policy = test_policy(memory, 100);
	CHECK_EQ(policy.in_force, HMM_POLICY_ACCESSED_BY);
	CHECK_EQ(policy.accessed_by_count, 1);
	CHECK(policy.accessed_by[0] == &mirror);
	CHECK_EQ(policy.on_device, 100);
	/* What the CPU had it has still; what was on the device alone is there alone. */
	CHECK_EQ(shared_pages(memory, 20), 0);
	CHECK_EQ(shared_pages(memory + 20 * PAGE, 80), 80);
	let_it_settle();
	CHECK_EQ(shared_pages(memory + 20 * PAGE, 80), 80);
	test_device_check(memory, 100, 4);
	test_check(memory, 100, 4);
	write_again(memory, 50, 4);
	CHECK(!test_on_device(memory + 50 * PAGE));
	CHECK_EQ(unadvise(memory, 100, HMM_ADVISE_SET_ACCESSED_BY, &mirror), 0);
	CHECK_EQ(test_policy(memory, 100).accessed_by_count, 0);
	test_check(memory, 100, 4);
	test_close();
}

/* What can't go is left; a hole is one still. */
static void accessed_by_parts(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = map_aligned(2);
	test_fill(memory + 100 * PAGE, 600, 5);
	CHECK_EQ(mprotect(memory + 200 * PAGE, 10 * PAGE, PROT_READ), 0);
	/* Not whole blocks, whose holes would be zeros of the device, as in any migration. */
	CHECK_EQ(advise(memory, 1000, HMM_ADVISE_SET_ACCESSED_BY, &mirror, 0), 0);
	CHECK_EQ(test_device_pages(memory, 1024), 590);
	CHECK_EQ(shared_pages(memory, 1024), 590);
	test_check(memory + 100 * PAGE, 600, 5);
	test_check_zero(memory, 100);
	CHECK_EQ(mprotect(memory + 200 * PAGE, 10 * PAGE, PROT_READ | PROT_WRITE), 0);
	test_close();
	test_check(memory + 100 * PAGE, 600, 5);
}

static void granularity(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = map_aligned(1);
	test_fill(memory, 512, 6);
	CHECK_EQ(advise(memory, 256, HMM_ADVISE_GRANULARITY, NULL, 16), 0);
	CHECK_EQ(test_policy(memory, 256).granularity, 16);
	CHECK_EQ(test_policy(memory, 256).in_force, HMM_POLICY_GRANULARITY);
	test_out(memory, 512);
	look(memory, 20, 6);
	CHECK_EQ(test_device_pages(memory + 16 * PAGE, 16), 0);
	CHECK_EQ(test_device_pages(memory, 512), 496);
	/* Beyond the range a touch brings what it brought before. */
	look(memory, 300, 6);
	CHECK_EQ(test_device_pages(memory, 512), 495);
	/* A group ends where the range does. */
	CHECK_EQ(advise(memory + 400 * PAGE, 8, HMM_ADVISE_GRANULARITY, NULL, 512), 0);
	look(memory, 404, 6);
	CHECK_EQ(test_device_pages(memory + 400 * PAGE, 8), 0);
	CHECK_EQ(test_device_pages(memory, 512), 487);
	CHECK_EQ(unadvise(memory, 256, HMM_ADVISE_GRANULARITY, NULL), 0);
	look(memory, 100, 6);
	CHECK_EQ(test_device_pages(memory, 512), 486);
	test_check(memory, 512, 6);
	test_close();
}

/* Pages that a walk of four touches brings home. */
static size_t walk(char *memory)
{
	static const size_t touches[] = { 0, 1, 3, 7 };

	test_fill(memory, 512, 7);
	test_out(memory, 512);
	for (size_t i = 0; i < sizeof(touches) / sizeof(touches[0]); i++)
		look(memory, touches[i], 7);
	return 512 - test_device_pages(memory, 512);
}

static void prefetch(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = map_aligned(1);
	CHECK_EQ(walk(memory), 15);
	CHECK_EQ(advise(memory, 512, HMM_ADVISE_PREFETCH, NULL, 0), 0);
	CHECK_EQ(test_policy(memory, 512).in_force, HMM_POLICY_NO_PREFETCH);
	CHECK_EQ(walk(memory), 4);
	CHECK_EQ(advise(memory, 512, HMM_ADVISE_PREFETCH, NULL, 1), 0);
	CHECK_EQ(test_policy(memory, 512).said, 0);
	test_check(memory, 512, 7);
	test_close();
}

static void evict_priority(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	CHECK_EQ(test_policy(memory, 64).evict_priority, 50);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_EVICT_PRIORITY, NULL, 100), 0);
	CHECK_EQ(test_policy(memory, 64).evict_priority, 100);
	CHECK_EQ(advise(memory + 32 * PAGE, 32, HMM_ADVISE_EVICT_PRIORITY, NULL, 0), 0);
	CHECK_EQ(test_policy(memory, 32).evict_priority, 100);
	CHECK_EQ(test_policy(memory + 32 * PAGE, 32).evict_priority, 0);
	CHECK_EQ(test_policy(memory, 64).said, 0);
	CHECK_EQ(test_policy(memory, 64).mixed, HMM_POLICY_EVICT_PRIORITY);
	CHECK_EQ(unadvise(memory, 64, HMM_ADVISE_EVICT_PRIORITY, NULL), 0);
	CHECK_EQ(test_policy(memory, 64).evict_priority, 50);
	test_close();
}

static void discard(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 8);
	test_out(memory, 32);
	CHECK_EQ(advise(memory, 8, HMM_ADVISE_SET_READ_MOSTLY, NULL, 0), 0);
	look(memory, 4, 8);
	CHECK(is_shared(memory + 4 * PAGE));
	CHECK_EQ(advise(memory + 4 * PAGE, 56, HMM_ADVISE_DISCARD, NULL, 0), 0);
	CHECK_EQ(test_device_pages(memory, 64), 4);
	/* The CPU's own are what they were. */
	look(memory, 4, 8);
	test_check_zero(memory + 5 * PAGE, 27);
	for (size_t i = 32; i < 64; i++)
		look(memory, i, 8);
	test_fill(memory, 64, 9);
	test_out(memory, 64);
	/* It was done, and is not remembered: what is written now stays. */
	test_device_check(memory, 64, 9);
	test_check(memory, 64, 9);
	test_close();
}

/* The device finds zeros, as the CPU does. */
static void discard_whole(void)
{
	static uint64_t copy[512];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	test_fill(memory, 1024, 10);
	test_out(memory, 1024);
	CHECK_EQ(advise(memory, 1024, HMM_ADVISE_DISCARD, NULL, 0), 0);
	CHECK_EQ(test_device_pages(memory, 1024), 0);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 700 * PAGE, copy, PAGE), PAGE);
	for (size_t i = 0; i < 512; i++)
		CHECK_EQ(copy[i], 0);
	test_check_zero(memory, 1024);
	test_close();
}

/* ---- PIN --------------------------------------------------------------------------- */

static void pin(void)
{
	struct hmm_policy policy;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 48, 11);
	test_out(memory, 10);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_PIN, &mirror, 0), 0);
	policy = test_policy(memory, 64);
	CHECK_EQ(policy.in_force, HMM_POLICY_PIN);
	CHECK(policy.pinned == &mirror);
	CHECK_EQ(policy.on_device, 64);
	for (size_t i = 0; i < 64; i++)
		CHECK(is_device(memory + i * PAGE));
	/* A read shares: the pin holds. */
	test_check(memory, 48, 11);
	test_check_zero(memory + 48 * PAGE, 16);
	CHECK_EQ(shared_pages(memory, 64), 64);
	let_it_settle();
	CHECK_EQ(shared_pages(memory, 64), 64);
	CHECK_EQ(test_policy(memory, 64).in_force, HMM_POLICY_PIN);
	/* A write takes the page, and it only. */
	write_again(memory, 20, 11);
	CHECK(!test_on_device(memory + 20 * PAGE));
	policy = test_policy(memory, 64);
	CHECK_EQ(policy.said, HMM_POLICY_PIN);
	CHECK_EQ(policy.in_force, 0);
	CHECK_EQ(policy.on_device, 63);
	CHECK(strstr(policy.why, "63 of 64"));
	CHECK_EQ(test_policy(memory + 21 * PAGE, 43).in_force, HMM_POLICY_PIN);
	/* Back on the device it is pinned again. */
	test_out(memory, 64);
	CHECK_EQ(test_policy(memory, 64).in_force, HMM_POLICY_PIN);
	for (size_t i = 30; i < 34; i++)
		write_again(memory, i, 11);
	CHECK_EQ(test_device_pages(memory, 64), 60);
	CHECK_EQ(unadvise(memory, 64, HMM_ADVISE_PIN, NULL), 0);
	CHECK_EQ(test_policy(memory, 64).said, 0);
	test_check(memory, 48, 11);
	test_close();
}

static void pin_what_cant(void)
{
	int file = memfd_create("file", MFD_CLOEXEC);
	char *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK(file >= 0);
	CHECK_EQ(ftruncate(file, 4 * PAGE), 0);
	memory = test_map_apart(64);
	CHECK(mmap(memory + 32 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) ==
	      memory + 32 * PAGE);
	test_fill(memory, 64, 12);
	test_out(memory, 8);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_PIN, &mirror, 0), -EOPNOTSUPP);
	CHECK(strstr(hmm_last_error(), "4 of 64"));
	CHECK(strstr(hmm_last_error(), hmm_migrate_result_name(HMM_FILE)));
	/* All or nothing: where they were before. */
	CHECK_EQ(test_device_pages(memory, 64), 8);
	CHECK_EQ(test_device_pages(memory, 8), 8);
	CHECK_EQ(test_policy(memory, 64).said, 0);
	CHECK_EQ(test_policy(memory, 64).mixed, 0);
	test_check(memory, 64, 12);
	CHECK_EQ(mprotect(memory + 10 * PAGE, PAGE, PROT_READ), 0);
	CHECK_EQ(advise(memory, 32, HMM_ADVISE_PIN, &mirror, 0), -EPERM);
	CHECK(strstr(hmm_last_error(), hmm_migrate_result_name(HMM_READONLY)));
	CHECK_EQ(mprotect(memory + 10 * PAGE, PAGE, PROT_READ | PROT_WRITE), 0);
	CHECK_EQ(munmap(memory + 50 * PAGE, PAGE), 0);
	CHECK_EQ(advise(memory + 40 * PAGE, 20, HMM_ADVISE_PIN, &mirror, 0), -EFAULT);
	CHECK_EQ(test_device_pages(memory + 40 * PAGE, 20), 0);
	test_close();
	test_check(memory, 50, 12);
	close(file);
}

/* The rest of a device that is pinned full is its size. */
static void pin_too_much(void)
{
	uint8_t results[512];
	char *memory, *more;

	test_open(0, 4 * BLOCK);
	memory = test_map_huge(4);
	more = test_map_huge(5);
	test_fill(memory, 4 * 512, 13);
	test_fill(more, 5 * 512, 14);
	CHECK_EQ(advise(more, 5 * 512, HMM_ADVISE_PIN, &mirror, 0), -ENOSPC);
	CHECK(strstr(hmm_last_error(), "8388608"));
	CHECK_EQ(test_device_pages(more, 5 * 512), 0);
	CHECK_EQ(advise(memory, 3 * 512, HMM_ADVISE_PIN, &mirror, 0), 0);
	/* One block finds room, the other does not: neither stays. */
	CHECK_EQ(advise(more, 2 * 512, HMM_ADVISE_PIN, &mirror, 0), -ENOSPC);
	CHECK(strstr(hmm_last_error(), "8388608"));
	CHECK_EQ(test_device_pages(more, 2 * 512), 0);
	CHECK_EQ(test_policy(memory, 3 * 512).in_force, HMM_POLICY_PIN);
	CHECK_EQ(advise(memory, 4 * 512, HMM_ADVISE_PIN, &mirror, 0), 0);
	/* Others find no room; the pins stay. */
	CHECK_EQ(test_migrate(more, 512, HMM_DEVICE, results), 0);
	for (size_t i = 0; i < 512; i++)
		CHECK_EQ(results[i], HMM_POOL_FULL);
	CHECK_EQ(test_policy(memory, 4 * 512).in_force, HMM_POLICY_PIN);
	CHECK_EQ(test_device_pages(memory, 4 * 512), 4 * 512);
	test_check(memory, 4 * 512, 13);
	test_check(more, 5 * 512, 14);
	test_close();
}

/* Longer than what is on its way at a time: all of it all the same, or none, and both have it. */
static void in_pieces(void)
{
	const size_t blocks = 72, all = blocks * 512;
	char *memory, *bad;

	test_open(0, (blocks + 8) * BLOCK);
	memory = test_map_huge(blocks);
	test_fill(memory, all, 16);
	test_out(memory, 100);
	test_out(memory + 40 * BLOCK + 5 * PAGE, 10);
	bad = memory + (blocks - 2) * BLOCK + 7 * PAGE;
	CHECK_EQ(mprotect(bad, PAGE, PROT_READ), 0);
	CHECK_EQ(advise(memory, all, HMM_ADVISE_PIN, &mirror, 0), -EPERM);
	CHECK(strstr(hmm_last_error(), "1 of 36864 pages"));
	/* Those that were there before, and no others. */
	CHECK_EQ(test_device_pages(memory, 100), 100);
	CHECK_EQ(test_device_pages(memory + 40 * BLOCK + 5 * PAGE, 10), 10);
	CHECK_EQ(test_device_pages(memory, all), 110);
	CHECK_EQ(test_policy(memory, all).said, 0);
	CHECK_EQ(mprotect(bad, PAGE, PROT_READ | PROT_WRITE), 0);
	CHECK_EQ(advise(memory, all, HMM_ADVISE_PIN, &mirror, 0), 0);
	CHECK_EQ(test_policy(memory, all).in_force, HMM_POLICY_PIN);
	CHECK_EQ(test_device_pages(memory, all), all);
	CHECK_EQ(unadvise(memory, all, HMM_ADVISE_PIN, NULL), 0);
	test_check(memory, all, 16);
	test_home(memory, all);
	CHECK_EQ(advise(memory, all, HMM_ADVISE_SET_ACCESSED_BY, &mirror, 0), 0);
	CHECK_EQ(shared_pages(memory, all), all);
	test_check(memory, all, 16);
	CHECK_EQ(shared_pages(memory, all), all);
	test_close();
	test_check(memory, all, 16);
}

/* Of a long range of which only little is there, that. */
static void sparse(void)
{
	const size_t length = 64UL << 30;
	char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *far = memory + (48UL << 30) + 3 * PAGE;

	CHECK(memory != MAP_FAILED);
	CHECK_EQ(madvise(memory, length, MADV_NOHUGEPAGE), 0);
	test_open(0, DEVICE_MEMORY);
	test_fill(memory + 9 * PAGE, 20, 17);
	/* As far as the device's size, and not beyond. */
	test_fill(memory + DEVICE_MEMORY - 5 * PAGE, 10, 18);
	test_fill(far, 8, 19);
	CHECK_EQ(advise(memory, length / PAGE, HMM_ADVISE_SET_ACCESSED_BY, &mirror, 0), 0);
	CHECK_EQ(shared_pages(memory + 9 * PAGE, 20), 20);
	CHECK_EQ(shared_pages(memory + DEVICE_MEMORY - 5 * PAGE, 5), 5);
	CHECK_EQ(test_device_pages(memory, 2 * DEVICE_MEMORY / PAGE), 25);
	CHECK_EQ(test_device_pages(far, 8), 0);
	test_check(memory + 9 * PAGE, 20, 17);
	test_check(memory + DEVICE_MEMORY - 5 * PAGE, 10, 18);
	test_check(far, 8, 19);
	test_close();
}

/* ---- where it can do nothing --------------------------------------------------------- */

static void base_engine(void)
{
	struct hmm_policy policy;
	char *memory;

	test_open(HMM_OPEN_BASE_ENGINE, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 15);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_SET_READ_MOSTLY, NULL, 0), 0);
	policy = test_policy(memory, 64);
	CHECK_EQ(policy.said, HMM_POLICY_READ_MOSTLY);
	CHECK_EQ(policy.in_force, 0);
	CHECK(strstr(policy.why, "UNPINNED"));
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_PIN, &mirror, 0), -EOPNOTSUPP);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_UNPINNED, NULL, 0), 0);
	CHECK_EQ(test_policy(memory, 64).in_force, HMM_POLICY_READ_MOSTLY | HMM_POLICY_UNPINNED);
	test_out(memory, 64);
	look(memory, 7, 15);
	CHECK(is_shared(memory + 7 * PAGE));
	test_check(memory, 64, 15);
	write_again(memory, 9, 15);
	test_device_check(memory, 64, 15);
	test_close();
	test_check(memory, 64, 15);
}

static void unpinned_not_needed(void)
{
	struct hmm_policy policy;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(4);
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_UNPINNED, NULL, 0), 0);
	policy = test_policy(memory, 4);
	CHECK_EQ(policy.said, HMM_POLICY_UNPINNED);
	CHECK_EQ(policy.in_force, 0);
	CHECK(strstr(policy.why, "not needed"));
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_PINNED, NULL, 0), 0);
	CHECK_EQ(test_policy(memory, 4).said, 0);
	test_close();
}

static void without_memory(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	struct hmm_policy policy;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	device = test_device("no-memory", 0);
	test_mirror(&other, device);
	memory = test_map(16);
	test_fill(memory, 16, 16);
	CHECK_EQ(advise(memory, 16, HMM_ADVISE_SET_ACCESSED_BY, &other, 0), 0);
	policy = test_policy(memory, 16);
	CHECK_EQ(policy.said, HMM_POLICY_ACCESSED_BY);
	CHECK_EQ(policy.in_force, 0);
	CHECK(strstr(policy.why, "no memory"));
	CHECK_EQ(advise(memory, 16, HMM_ADVISE_PIN, &other, 0), -ENOSPC);
	/* What names a mirror goes with it. */
	CHECK_EQ(advise(memory, 16, HMM_ADVISE_SET_PREFERRED_LOCATION, &other, 0), 0);
	CHECK_EQ(advise(memory, 16, HMM_ADVISE_SET_ACCESSED_BY, &mirror, 0), 0);
	CHECK_EQ(test_policy(memory, 16).accessed_by_count, 2);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	policy = test_policy(memory, 16);
	CHECK_EQ(policy.in_force, HMM_POLICY_ACCESSED_BY);
	CHECK_EQ(policy.accessed_by_count, 1);
	CHECK(policy.accessed_by[0] == &mirror);
	hmm_device_put(device);
	test_check(memory, 16, 16);
	test_close();
}

/* Under a ksmd that runs, which only its own test arranges. */
static void while_ksm_runs(void)
{
	struct hmm_policy policy;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 17);
	test_out(memory, 64);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_SET_READ_MOSTLY, NULL, 0), 0);
	policy = test_policy(memory, 64);
	CHECK_EQ(policy.in_force, 0);
	CHECK(strstr(policy.why, "ksmd"));
	look(memory, 3, 17);
	CHECK(!test_on_device(memory + 3 * PAGE));
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_PIN, &mirror, 0), 0);
	look(memory, 5, 17);
	CHECK(!test_on_device(memory + 5 * PAGE));
	CHECK_EQ(test_policy(memory, 64).in_force, 0);
	test_check(memory, 64, 17);
	test_close();
}

/* ---- the memory changes --------------------------------------------------------------- */

static void forked(void)
{
	struct hmm_policy policy = { .size = sizeof(policy) };
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 18);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_PIN, &mirror, 0), 0);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_EVICT_PRIORITY, NULL, 70), 0);
	child = fork();
	if (!child) {
		/* The child is nobody's owner: it has the bytes and no advice. */
		test_check(memory, 64, 18);
		if (hmm_range_get_attribute(hmm, (unsigned long)memory, 64 * PAGE, &policy) != -ESTALE)
			_exit(2);
		_exit(0);
	}
	test_reap(child, 0);
	/* A fork takes pinned pages, too, and it is said. */
	policy = test_policy(memory, 64);
	CHECK_EQ(policy.said, HMM_POLICY_PIN | HMM_POLICY_EVICT_PRIORITY);
	CHECK_EQ(policy.in_force, HMM_POLICY_EVICT_PRIORITY);
	CHECK_EQ(policy.on_device, 0);
	test_out(memory, 64);
	CHECK_EQ(test_policy(memory, 64).in_force, HMM_POLICY_PIN | HMM_POLICY_EVICT_PRIORITY);
	test_check(memory, 64, 18);
	test_close();
}

static void remapped(void)
{
	char *memory, *place, *there;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	place = test_map(64);
	test_fill(memory, 64, 19);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_PIN, &mirror, 0), 0);
	CHECK_EQ(advise(memory + 8 * PAGE, 8, HMM_ADVISE_GRANULARITY, NULL, 8), 0);
	there = mremap(memory, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	CHECK(there == place);
	CHECK_EQ(test_policy(memory, 64).said | test_policy(memory, 64).mixed, 0);
	CHECK_EQ(test_policy(place, 64).said, HMM_POLICY_PIN);
	CHECK_EQ(test_policy(place, 64).mixed, HMM_POLICY_GRANULARITY);
	CHECK_EQ(test_policy(place, 64).in_force, HMM_POLICY_PIN);
	CHECK_EQ(test_policy(place + 8 * PAGE, 8).granularity, 8);
	CHECK_EQ(test_device_pages(place, 64), 64);
	test_check(place, 64, 19);
	CHECK_EQ(test_policy(place, 64).in_force, HMM_POLICY_PIN);
	test_close();
}

static void unmapped(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_apart(64);
	test_fill(memory, 64, 20);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_PIN, &mirror, 0), 0);
	CHECK_EQ(munmap(memory + 16 * PAGE, 16 * PAGE), 0);
	CHECK_EQ(test_policy(memory + 16 * PAGE, 16).said, 0);
	CHECK_EQ(test_policy(memory, 16).in_force, HMM_POLICY_PIN);
	CHECK_EQ(test_policy(memory + 32 * PAGE, 32).in_force, HMM_POLICY_PIN);
	CHECK(mmap(memory + 16 * PAGE, 16 * PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory + 16 * PAGE);
	CHECK_EQ(test_policy(memory, 64).mixed, HMM_POLICY_PIN);
	test_check(memory, 16, 20);
	test_check_zero(memory + 16 * PAGE, 16);
	test_close();
}

/* Of memory that is not watched hmmd hears nothing: advice stays with the addresses. */
static void unmapped_unseen(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	CHECK_EQ(advise(memory, 16, HMM_ADVISE_EVICT_PRIORITY, NULL, 60), 0);
	CHECK_EQ(munmap(memory, 16 * PAGE), 0);
	CHECK_EQ(test_policy(memory, 16).said, HMM_POLICY_EVICT_PRIORITY);
	test_close();
}

static void thrown_away(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 21);
	CHECK_EQ(advise(memory, 64, HMM_ADVISE_SET_READ_MOSTLY, NULL, 0), 0);
	test_out(memory, 64);
	CHECK_EQ(madvise(memory, 64 * PAGE, MADV_DONTNEED), 0);
	CHECK_EQ(test_policy(memory, 64).in_force, HMM_POLICY_READ_MOSTLY);
	test_check_zero(memory, 64);
	test_close();
}

/* ---- bad input -------------------------------------------------------------------------- */

static void bad_arguments(void)
{
	struct {
		struct hmm_advise_options options;
		char more[8];
	} long_options = { .options = { .size = sizeof(long_options) }, .more = { 1 } };
	struct hmm_advise_options options = { .size = 0 };
	struct hmm_policy policy = { .size = 0 };
	struct hmm_mirror nothing = { 0 };
	unsigned long address;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(4);
	address = (unsigned long)memory;
	CHECK_EQ(hmm_advise(NULL, address, PAGE, HMM_ADVISE_SET_READ_MOSTLY, NULL), -EINVAL);
	CHECK_EQ(hmm_advise(hmm, address + 1, PAGE, HMM_ADVISE_SET_READ_MOSTLY, NULL), -EINVAL);
	CHECK_EQ(hmm_advise(hmm, address, PAGE + 1, HMM_ADVISE_SET_READ_MOSTLY, NULL), -EINVAL);
	CHECK_EQ(hmm_advise(hmm, address, 0, HMM_ADVISE_SET_READ_MOSTLY, NULL), -EINVAL);
	CHECK_EQ(hmm_advise(hmm, (1UL << 47) - PAGE, 2 * PAGE, HMM_ADVISE_SET_READ_MOSTLY, NULL), -EINVAL);
	CHECK_EQ(hmm_advise(hmm, ~0UL - PAGE + 1, 2 * PAGE, HMM_ADVISE_SET_READ_MOSTLY, NULL), -EINVAL);
	for (int advice = -1; advice < 40; advice++)
		if (advice < 1 || (advice > 6 && advice < 16) || advice > 22)
			CHECK_EQ(hmm_advise(hmm, address, PAGE, (enum hmm_advice)advice, NULL), -EINVAL);
	CHECK_EQ(hmm_advise(hmm, address, PAGE, HMM_ADVISE_SET_READ_MOSTLY, &options), -EINVAL);
	CHECK_EQ(hmm_advise(hmm, address, PAGE, HMM_ADVISE_SET_READ_MOSTLY, &long_options.options), -E2BIG);
	options.size = sizeof(options);
	options.policy = &policy;
	CHECK_EQ(hmm_advise(hmm, address, PAGE, HMM_ADVISE_SET_READ_MOSTLY, &options), -EINVAL);
	CHECK_EQ(hmm_range_get_attribute(hmm, address, PAGE, &policy), -EINVAL);
	CHECK_EQ(hmm_range_get_attribute(hmm, address, PAGE, NULL), -EINVAL);
	CHECK_EQ(hmm_range_get_attribute(hmm, address, 1, &policy), -EINVAL);
	CHECK_EQ(hmm_range_get_attribute(NULL, address, PAGE, &policy), -EINVAL);
	/* A mirror that is none, and one that is missing. */
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_SET_ACCESSED_BY, &nothing, 0), -EINVAL);
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_SET_ACCESSED_BY, NULL, 0), -EINVAL);
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_UNSET_ACCESSED_BY, NULL, 0), -EINVAL);
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_PIN, NULL, 0), -EINVAL);
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_GRANULARITY, NULL, 0), -EINVAL);
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_GRANULARITY, NULL, 3), -EINVAL);
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_GRANULARITY, NULL, 1024), -EINVAL);
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_PREFETCH, NULL, 2), -EINVAL);
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_EVICT_PRIORITY, NULL, 101), -EINVAL);
	/* What is done can't be taken back, nor what takes back. */
	CHECK_EQ(unadvise(memory, 4, HMM_ADVISE_DISCARD, NULL), -EINVAL);
	CHECK_EQ(unadvise(memory, 4, HMM_ADVISE_UNSET_READ_MOSTLY, NULL), -EINVAL);
	CHECK_EQ(unadvise(memory, 4, HMM_ADVISE_PINNED, NULL), -EINVAL);
	/* Nothing of all that was noted. */
	CHECK_EQ(test_policy(memory, 4).said | test_policy(memory, 4).mixed, 0);
	test_close();
}

/* A policy of another size: as much as there is room for, zeros behind what is known. */
static void other_sizes(void)
{
	struct {
		struct hmm_policy policy;
		uint64_t more;
	} longer = { .policy = { .size = sizeof(longer) }, .more = 5 };
	struct hmm_policy shorter;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(4);
	CHECK_EQ(advise(memory, 4, HMM_ADVISE_SET_READ_MOSTLY, NULL, 0), 0);
	CHECK_EQ(hmm_range_get_attribute(hmm, (unsigned long)memory, 4 * PAGE, &longer.policy), 0);
	CHECK_EQ(longer.policy.said, HMM_POLICY_READ_MOSTLY);
	CHECK_EQ(longer.policy.size, sizeof(longer));
	CHECK_EQ(longer.more, 0);
	memset(&shorter, 0x55, sizeof(shorter));
	shorter.size = offsetof(struct hmm_policy, mixed);
	CHECK_EQ(hmm_range_get_attribute(hmm, (unsigned long)memory, 4 * PAGE, &shorter), 0);
	CHECK_EQ(shorter.said, HMM_POLICY_READ_MOSTLY);
	CHECK_EQ(shorter.mixed, 0x5555555555555555);
	test_close();
}

static void too_many(void)
{
	size_t pages = 2 * 4097;
	char *memory;
	int r = 0;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(pages);
	for (size_t i = 0; i < 4096; i++)
		CHECK_EQ(hmm_advise(hmm, (unsigned long)memory + 2 * i * PAGE, PAGE, HMM_ADVISE_SET_READ_MOSTLY, NULL), 0);
	r = hmm_advise(hmm, (unsigned long)memory + 2 * 4096 * PAGE, PAGE, HMM_ADVISE_SET_READ_MOSTLY, NULL);
	CHECK_EQ(r, -ENOSPC);
	CHECK(strstr(hmm_last_error(), "4096"));
	CHECK_EQ(test_policy(memory + 2 * 4096 * PAGE, 1).said, 0);
	CHECK_EQ(test_policy(memory + 2 * 4095 * PAGE, 1).said, HMM_POLICY_READ_MOSTLY);
	/* What is said of all makes room. */
	CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, pages * PAGE, HMM_ADVISE_SET_READ_MOSTLY, NULL), 0);
	CHECK_EQ(test_policy(memory, pages).said, HMM_POLICY_READ_MOSTLY);
	CHECK_EQ(unadvise(memory, pages, HMM_ADVISE_SET_READ_MOSTLY, NULL), 0);
	CHECK_EQ(test_policy(memory, pages).said, 0);
	test_close();
}

static const struct test_case cases[] = {
	{ "read-mostly", read_mostly, false }, { "preferred-device", preferred_device, false },
	{ "preferred-system", preferred_system, false }, { "accessed-by", accessed_by, false },
	{ "accessed-by-parts", accessed_by_parts, false }, { "granularity", granularity, false },
	{ "prefetch", prefetch, false }, { "evict-priority", evict_priority, false }, { "discard", discard, false },
	{ "discard-whole", discard_whole, false }, { "pin", pin, false }, { "pin-what-cant", pin_what_cant, false },
	{ "pin-too-much", pin_too_much, false }, { "in-pieces", in_pieces, false }, { "sparse", sparse, false }, { "base-engine", base_engine, false },
	{ "unpinned-not-needed", unpinned_not_needed, false }, { "without-memory", without_memory, false },
	{ "while-ksm-runs", while_ksm_runs, true }, { "forked", forked, false }, { "remapped", remapped, false },
	{ "unmapped", unmapped, false }, { "unmapped-unseen", unmapped_unseen, false },
	{ "thrown-away", thrown_away, false }, { "bad-arguments", bad_arguments, false },
	{ "other-sizes", other_sizes, false }, { "too-many", too_many, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
