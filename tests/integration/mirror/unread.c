/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * unread.c - hmmd lets go of nothing while it has an event to read, since what mremap() has just moved there must not
 * lose its registration: it tries again later. A thread discards a page of other memory without end here, so that
 * there is an event as often as not. What is let go late works meanwhile as ever, and is let go all the same.
 */
#include "mirror.h"

#include <pthread.h>
#include <stdatomic.h>

#include "look.h"

#define DEVICE_MEMORY (64UL << 20)

#define PAGES (BLOCK / PAGE)

static struct {
	char *out;		/* on the device, but for its last page */
	char *asked;		/* what a device asks for all the time */
	_Atomic bool stop;
	_Atomic unsigned long discards, requests;
	pthread_t discarding, asking;
} owner;

static void *discard(void *unused)
{
	(void)unused;
	while (!atomic_load(&owner.stop)) {
		CHECK_EQ(madvise(owner.out + (PAGES - 1) * PAGE, PAGE, MADV_DONTNEED), 0);
		atomic_fetch_add(&owner.discards, 1);
	}
	return NULL;
}

static void *ask(void *unused)
{
	(void)unused;
	while (!atomic_load(&owner.stop)) {
		CHECK(hmm_migrate(&mirror, (unsigned long)owner.asked, BLOCK, HMM_DEVICE, 0, NULL,
				  NULL) >= 0);
		atomic_fetch_add(&owner.requests, 1);
		usleep(1000);
	}
	return NULL;
}

static void begin(void)
{
	test_open(0, DEVICE_MEMORY);
	owner.out = test_map_huge(1);
	test_fill(owner.out, PAGES, 1);
	test_out(owner.out, PAGES);
	CHECK_EQ(pthread_create(&owner.discarding, NULL, discard, NULL), 0);
}

static void finish(void)
{
	atomic_store(&owner.stop, true);
	CHECK_EQ(pthread_join(owner.discarding, NULL), 0);
	test_check(owner.out, PAGES - 1, 1);
	test_close();
}

/* A range that is held no more is let go 50 ms after it was looked at; if not then, 50 ms later. */
#define HUGE_TURNS 40U
#define LET_GO_US 40000U

static char *map_huge(void *at, size_t size, int fixed)
{
	return mmap(at, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | fixed, -1, 0);
}

static bool reads(const char *word)
{
	uint64_t value;

	return hmm_device_read(&mirror, (unsigned long)word, &value, 8) == 8;
}

/* What is missing of huge pages is the kernel's to give, when they were only watched as when they are not. */
static void huge_pages(void)
{
	char *huge = map_huge(NULL, 2 * BLOCK, 0);
	unsigned int refused = 0;

	if (huge == MAP_FAILED)
		test_skip("the system gives no huge pages");
	begin();
	for (unsigned int turn = 0; turn < HUGE_TURNS; turn++) {
		CHECK(map_huge(huge, BLOCK, MAP_FIXED) == huge);
		snapshot(huge, 8, NONE);
		usleep(LET_GO_US + turn % 8 * 10000);
		refused += !reads(huge + turn * PAGE);
	}
	printf("%u of %u reads were refused, beside %lu discards\n", refused, HUGE_TURNS,
	       atomic_load(&owner.discards));
	CHECK_EQ(refused, 0);
	finish();
}

/* By anybody's userfaultfd: it has none of its own. */
static bool is_watched(const void *memory)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	unsigned long at = (unsigned long)memory, from, to;
	bool here = false, watched = false;
	char line[512];

	CHECK(file);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			here = from < at + BLOCK && to > at;
		else if (here && strncmp(line, "VmFlags:", 8) == 0)
			watched |= strstr(line, " um") || strstr(line, " uw");
	}
	fclose(file);
	return watched;
}

static void wait_until_out(void)
{
	int tries = 0;

	while (!is_watched(owner.asked) || !test_device_pages(owner.asked, PAGES)) {
		CHECK(tries++ < 10000);
		usleep(1000);
	}
}

#define EXCLUDED_TURNS 15

/* While there is an event to read nothing comes home: after many tries that is said, and asked again. */
static int exclude_in_the_end(void *memory)
{
	int error;

	do
		error = hmm_exclude(hmm, (unsigned long)memory, BLOCK);
	while (error == -EBUSY);
	return error;
}

/* Whoever excluded it may move it next, which mremap() does with one mapping: not with what hmmd watches a part of. */
static void excluded(void)
{
	unsigned int late = 0;

	begin();
	owner.asked = test_map_huge(1);
	test_fill(owner.asked, PAGES, 2);
	CHECK_EQ(pthread_create(&owner.asking, NULL, ask, NULL), 0);
	for (int turn = 0; turn < EXCLUDED_TURNS; turn++) {
		wait_until_out();
		CHECK_EQ(exclude_in_the_end(owner.asked), 0);
		CHECK_EQ(test_device_pages(owner.asked, PAGES), 0);
		for (int tries = 0; is_watched(owner.asked); tries++) {
			unsigned long before = atomic_load(&owner.requests);

			if (tries == 300)
				FAIL("turn %d: it is watched still, after %lu requests", turn,
				     atomic_load(&owner.requests));
			late += tries == 0;
			while (atomic_load(&owner.requests) < before + 10)
				usleep(1000);
		}
		CHECK_EQ(hmm_include(hmm, (unsigned long)owner.asked, BLOCK), 0);
	}
	printf("%u of %d times not let go at once, beside %lu discards and %lu requests\n", late,
	       EXCLUDED_TURNS, atomic_load(&owner.discards), atomic_load(&owner.requests));
	atomic_store(&owner.stop, true);
	CHECK_EQ(pthread_join(owner.asking, NULL), 0);
	test_check(owner.asked, PAGES, 2);
	finish();
}

static const struct test_case cases[] = {
	{ "excluded", excluded, false }, { "huge-pages", huge_pages, true }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
