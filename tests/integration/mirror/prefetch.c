/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * prefetch.c - migrations that are followed: how far they are, what became of each page, and how
 * they end before their time. What an outage of hmmd does to them is for ../mirror_outage.py.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "mirror.h"

#define DEVICE_MEMORY	(256UL << 20)
#define LARGE		(96UL << 20)	/* 6 pieces */
#define LARGE_PAGES	(LARGE / PAGE)
#define PIECE_PAGES	((16UL << 20) / PAGE)

static int completion = -1;

/* Return: as its eventfd says. */
static long await(void)
{
	struct pollfd wait = { .fd = completion, .events = POLLIN };
	uint64_t count;

	CHECK_EQ(poll(&wait, 1, test_scaled(30000)), 1);
	CHECK_EQ(read(completion, &count, 8), 8);
	return (long)count - 1;
}

static struct hmm_prefetch *begin(void *memory, size_t pages, enum hmm_target target, uint64_t flags)
{
	struct hmm_prefetch *prefetch = NULL;

	if (completion < 0)
		completion = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK_EQ(hmm_prefetch(&mirror, (unsigned long)memory, pages * PAGE, target, flags, completion,
			      &prefetch), 0);
	CHECK(prefetch);
	return prefetch;
}

static size_t count(const uint8_t *results, size_t pages, enum hmm_migrate_result wanted)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++)
		n += results[i] == wanted;
	return n;
}

/* What it says of each page is where the page is: @memory had no page on the device before. */
static void check_results(struct hmm_prefetch *prefetch, const char *memory, size_t pages, long there)
{
	uint8_t *results = malloc(pages);
	struct hmm_migrate_report report;
	uint64_t asked = 0;

	CHECK_EQ(hmm_prefetch_result(prefetch, results, &report), there);
	CHECK_EQ(report.pages, pages);
	CHECK_EQ(report.moved, there);
	CHECK_EQ(report.failed, pages - there);
	CHECK_EQ(count(results, pages, HMM_MIGRATED), there);
	for (size_t i = 0; i < pages; i++)
		CHECK_EQ(test_on_device(memory + i * PAGE), results[i] == HMM_MIGRATED);
	CHECK_EQ(hmm_prefetch_progress(prefetch, &asked), pages - count(results, pages, HMM_NOT_TRIED));
	CHECK_EQ(asked, pages);
	free(results);
}

static void results(void)
{
	struct hmm_prefetch *prefetch;
	struct hmm_migrate_report report;
	uint8_t said[64];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_in_block(64);
	test_fill(memory, 32, 1);
	CHECK_EQ(mprotect(memory + 8 * PAGE, 8 * PAGE, PROT_READ), 0);
	prefetch = begin(memory, 64, HMM_DEVICE, 0);
	CHECK_EQ(await(), 24);
	check_results(prefetch, memory, 64, 24);
	CHECK_EQ(hmm_prefetch_result(prefetch, said, NULL), 24);
	CHECK_EQ(said[8], HMM_READONLY);
	CHECK_EQ(said[40], HMM_HOLE);
	CHECK_EQ(hmm_prefetch_cancel(prefetch), -EALREADY);
	hmm_prefetch_free(prefetch);
	/* Again: some are there, and holes are zeros now. */
	prefetch = begin(memory, 64, HMM_DEVICE, HMM_MIGRATE_POPULATE);
	CHECK_EQ(await(), 56);
	CHECK_EQ(hmm_prefetch_result(prefetch, said, &report), 56);
	CHECK_EQ(report.already, 24);
	CHECK_EQ(report.moved, 32);
	CHECK_EQ(said[0], HMM_ALREADY);
	CHECK_EQ(said[40], HMM_MIGRATED);
	hmm_prefetch_free(prefetch);
	prefetch = begin(memory, 64, HMM_SYSTEM, 0);
	await();
	CHECK_EQ(test_device_pages(memory, 64), 0);
	hmm_prefetch_free(prefetch);
	test_check(memory, 32, 1);
	test_check_zero(memory + 32 * PAGE, 32);
	test_close();
}

static void bad_input(void)
{
	struct hmm_prefetch *prefetch = NULL;
	unsigned long start;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(4);
	start = (unsigned long)memory;
	test_fill(memory, 4, 2);
	CHECK_EQ(hmm_prefetch(NULL, start, PAGE, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	CHECK_EQ(hmm_prefetch(&mirror, start + 1, PAGE, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	CHECK_EQ(hmm_prefetch(&mirror, start, PAGE + 1, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	CHECK_EQ(hmm_prefetch(&mirror, start, 0, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	CHECK_EQ(hmm_prefetch(&mirror, ~0UL - PAGE + 1, 2 * PAGE, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	CHECK_EQ(hmm_prefetch(&mirror, start, PAGE, (enum hmm_target)2, 0, -1, &prefetch), -EINVAL);
	/* What only the protocol knows is no flag of a program's. */
	CHECK_EQ(hmm_prefetch(&mirror, start, PAGE, HMM_DEVICE, 0x10, -1, &prefetch), -EINVAL);
	CHECK_EQ(hmm_prefetch(&mirror, start, PAGE, HMM_DEVICE, 0, 9999, &prefetch), -EBADF);
	CHECK(!prefetch);
	CHECK_EQ(test_device_pages(memory, 4), 0);
	CHECK_EQ(hmm_prefetch_result(NULL, NULL, NULL), -EINVAL);
	CHECK_EQ(hmm_prefetch_cancel(NULL), -EINVAL);
	CHECK_EQ(hmm_prefetch_progress(NULL, NULL), 0);
	hmm_prefetch_free(NULL);
	test_check(memory, 4, 2);
	test_close();
}

/* ---- ends before its time ---------------------------------------------------------- */

static char *large(void)
{
	char *memory = test_map_huge(LARGE / BLOCK);

	madvise(memory, LARGE, MADV_NOHUGEPAGE);
	test_fill(memory, LARGE_PAGES, 3);
	return memory;
}

static struct hmm_prefetch *running;
static _Atomic int cancelled;

/* While the first piece is under way. */
static int cancel_it(struct hmm_mirror *me, const struct hmm_update *update)
{
	struct hmm_prefetch *it;
	uint64_t pages;

	if (cancelled)
		return 0;
	/* Whoever began it is about to say which it is. */
	while (!(it = __atomic_load_n(&running, __ATOMIC_ACQUIRE)))
		usleep(100);
	CHECK(hmm_prefetch_progress(it, &pages) < pages);
	CHECK_EQ(hmm_prefetch_result(it, NULL, NULL), -EAGAIN);
	CHECK_EQ(hmm_prefetch_cancel(it), 0);
	cancelled = 1;
	return 0;
}

static const struct hmm_mirror_ops cancelling = { .size = sizeof(cancelling),
						  .sync_cpu_device_pagetables = cancel_it };

static void cancel(void)
{
	struct hmm_prefetch *prefetch;
	char *memory;
	long there;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	mirror.ops = &cancelling;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	memory = large();
	prefetch = begin(memory, LARGE_PAGES, HMM_DEVICE, 0);
	__atomic_store_n(&running, prefetch, __ATOMIC_RELEASE);
	there = await();
	CHECK(cancelled);
	CHECK_EQ(hmm_prefetch_progress(prefetch, NULL), PIECE_PAGES);
	check_results(prefetch, memory, LARGE_PAGES, there);
	hmm_prefetch_free(prefetch);
	/* From outside, at any time. */
	test_home(memory, LARGE_PAGES);
	prefetch = begin(memory, LARGE_PAGES, HMM_DEVICE, 0);
	there = hmm_prefetch_cancel(prefetch);
	CHECK(there == 0 || there == -EALREADY);
	there = await();
	check_results(prefetch, memory, LARGE_PAGES, there);
	hmm_prefetch_free(prefetch);
	test_check(memory, LARGE_PAGES, 3);
	test_close();
}

/* When hmm_mirror_unregister() has returned nothing of it goes on, and all is home. */
static void unregistered(void)
{
	struct hmm_device *device;
	struct hmm_prefetch *prefetch;
	struct hmm_migrate_report report;
	struct pollfd wait;
	char *memory;
	long there;

	test_open(0, DEVICE_MEMORY);
	memory = large();
	device = mirror.device;
	for (int i = 0; i < 3; i++) {
		prefetch = begin(memory, LARGE_PAGES, HMM_DEVICE, 0);
		usleep((useconds_t)i * 3000);
		CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
		wait = (struct pollfd){ .fd = completion, .events = POLLIN };
		CHECK_EQ(poll(&wait, 1, 0), 1);
		there = await();
		CHECK_EQ(hmm_prefetch_cancel(prefetch), -EALREADY);
		CHECK_EQ(hmm_prefetch_result(prefetch, NULL, &report), there ? there : -ECANCELED);
		CHECK_EQ(report.pages, LARGE_PAGES);
		hmm_prefetch_free(prefetch);
		test_mirror(&mirror, device);
		CHECK_EQ(test_device_pages(memory, LARGE_PAGES), 0);
		test_check(memory, LARGE_PAGES, 3);
	}
	test_close();
}

/* The last hmm_close() ends what runs; the handle stands alone after that. */
static void closed(void)
{
	struct hmm_prefetch *prefetch;
	uint8_t *said = malloc(LARGE_PAGES);
	uint64_t pages;
	char *memory;
	long there;

	test_open(0, DEVICE_MEMORY);
	memory = large();
	prefetch = begin(memory, LARGE_PAGES, HMM_DEVICE, 0);
	test_close();
	there = await();
	CHECK_EQ(hmm_prefetch_result(prefetch, said, NULL), there ? there : -ECANCELED);
	CHECK_EQ(hmm_prefetch_progress(prefetch, &pages),
		 LARGE_PAGES - count(said, LARGE_PAGES, HMM_NOT_TRIED));
	CHECK_EQ(pages, LARGE_PAGES);
	CHECK_EQ(count(said, LARGE_PAGES, HMM_MIGRATED), there);
	hmm_prefetch_free(prefetch);
	test_check(memory, LARGE_PAGES, 3);
	free(said);
}

/* A fork waits for the piece that is under way; the parent's goes on, the child has no part in it. */
static void forked(void)
{
	struct hmm_prefetch *prefetch;
	char *memory;
	long there;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = large();
	prefetch = begin(memory, LARGE_PAGES, HMM_DEVICE, 0);
	child = fork();
	if (child == 0) {
		if (hmm_prefetch_result(prefetch, NULL, NULL) != -ESTALE ||
		    hmm_prefetch_cancel(prefetch) != -ESTALE)
			_exit(1);
		hmm_prefetch_free(prefetch);
		test_check(memory, LARGE_PAGES, 3);
		_exit(0);
	}
	test_reap(child, 0);
	there = await();
	CHECK(there > 0);
	CHECK_EQ(hmm_prefetch_result(prefetch, NULL, NULL), there);
	CHECK_EQ(hmm_prefetch_progress(prefetch, NULL), LARGE_PAGES);
	hmm_prefetch_free(prefetch);
	test_check(memory, LARGE_PAGES, 3);
	test_close();
}

/* Several at once, over each other, some given back at once: nothing is lost. */
static void many(void)
{
	struct hmm_prefetch *prefetch[8];
	char *memory;
	long ended;

	test_open(0, DEVICE_MEMORY);
	memory = large();
	completion = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
	for (int i = 0; i < 8; i++)
		CHECK_EQ(hmm_prefetch(&mirror, (unsigned long)memory, LARGE,
				      i % 2 ? HMM_SYSTEM : HMM_DEVICE, 0, completion, &prefetch[i]), 0);
	for (int i = 0; i < 8; i += 3)
		hmm_prefetch_free(prefetch[i]);
	ended = hmm_prefetch_cancel(prefetch[4]);
	CHECK(ended == 0 || ended == -EALREADY);
	for (int i = 0; i < 8; i++)
		while (i % 3 && hmm_prefetch_result(prefetch[i], NULL, NULL) == -EAGAIN)
			usleep(1000);
	for (int i = 0; i < 8; i++)
		if (i % 3)
			hmm_prefetch_free(prefetch[i]);
	test_check(memory, LARGE_PAGES, 3);
	test_close();
	test_check(memory, LARGE_PAGES, 3);
}

static const struct test_case cases[] = {
	{ "results", results, false },
	{ "bad-input", bad_input, false },
	{ "cancel", cancel, false },
	{ "unregistered", unregistered, false },
	{ "closed", closed, false },
	{ "forked", forked, false },
	{ "many", many, false },
	{ 0 },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
