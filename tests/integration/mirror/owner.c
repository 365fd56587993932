/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * owner.c - an owner that does what it is told, line by line on standard
 * input, and answers each with one line: for tests that do something to hmmd
 * or to the process in between.
 *
 *   out [N]     the first N pages (all) go to the device    "out N"
 *   turn        all do, one block after the other            "turned N"
 *   home        everything comes home                       "home N"
 *   check       the CPU reads and compares everything       "checked"
 *   device      the device does                             "checked"
 *   change      the CPU writes everything anew              "changed"
 *   touch       one word of every page, written             "touched"
 *   exclusive   all to the device, for itself               "exclusive N"
 *   marked      how many it has for itself                  "marked N"
 *   where       how many pages the device has               "where N"
 *   fork        a child compares everything and ends        "forked"
 *   protect     memory read-only, and back                  "protected"
 *   listen      to what becomes of its pages                "listening"
 *   heard       what it heard, and how much it missed       "heard DROPPED KIND..."
 *   close       gives the mirror up                         "closed"
 *   crash       as a bug would                              (core)
 *   read        one word by the device; "error -E"          "read N"
 *   range       a range over everything, faulted in         "range N"
 *   valid       whether it is as it was then                "valid 0", "valid 1"
 *   discard     one page of it is thrown away               "discarded"
 *   group       of two devices more, with one mirror         "grouped"
 *   halves      each of the two gets half of the pages       "halves N"
 *   whole       a range over both; what both may use         "whole N"
 *   prefetch    all begin to go to the device               "prefetching"
 *   prefetched  when that is over: pages that had their turn, how it
 *               ended, pages that are said to be there       "prefetched N RESULT N"
 *
 * usage: owner PAGES [huge] [base] [room=BLOCKS]   (of the device; else all fit)
 */
#include "mirror.h"

#include <pthread.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static char *memory;
static size_t pages;
static uint64_t seed = 1, flags, device_memory;
static struct hmm_events *events;
static struct hmm_prefetch *prefetch;

static void report(void *data, int level, const char *text)
{
	fprintf(stderr, "library: %d %s\n", level, text);
}

/* After a rescue the handle leads nowhere: closed, and opened anew. */
static void open_anew(void)
{
	struct hmm_device *device = mirror.device;

	hmm_mirror_unregister(&mirror);
	hmm_device_put(device);
	hmm_close(hmm);
	memset(&mirror, 0, sizeof(mirror));
	test_open(flags, device_memory);
}

/* hmmd may just be coming back: what is asked of it is asked again for a while. */
static long migrate_from(size_t first, size_t n, enum hmm_target target)
{
	long there = -EAGAIN;

	for (int tries = 0; tries < 500 && there < 0; tries++) {
		there = hmm_migrate(&mirror, (unsigned long)memory + first * PAGE, n * PAGE, target, 0, NULL,
				    NULL);
		if (there == -ESTALE)
			open_anew();
		if (there < 0)
			usleep(20000);
	}
	if (there < 0)
		FAIL("hmm_migrate: %s", strerror((int)-there));
	return there;
}

static long migrate(size_t n, enum hmm_target target)
{
	return migrate_from(0, n, target);
}

/* A migration is a best effort: on a busy machine a block may have to be asked for again. */
static long turn(void)
{
	long there = 0;

	for (size_t first = 0; first < pages; first += 512) {
		size_t n = pages - first < 512 ? pages - first : 512;
		long got = 0;

		for (int tries = 0; tries < 100 && got < (long)n; tries++)
			got = migrate_from(first, n, HMM_DEVICE);
		there += got;
	}
	return there;
}

static void device_check(void)
{
	static uint64_t copy[512];

	for (size_t page = 0; page < pages; page++) {
		ssize_t got = -EAGAIN;

		for (int tries = 0; tries < 500 && got < 0; tries++) {
			got = hmm_device_read(&mirror, (unsigned long)memory + page * PAGE, copy, PAGE);
			if (got < 0)
				usleep(20000);
		}
		CHECK_EQ(got, PAGE);
		for (size_t i = 0; i < 512; i++)
			if (copy[i] != test_word(page, i, seed))
				FAIL("the device reads %#lx in page %zu, word %zu, instead of %#lx", copy[i], page,
				     i, test_word(page, i, seed));
	}
}

static void touch(void)
{
	for (size_t i = 0; i < pages; i++)
		*(volatile uint64_t *)(memory + i * PAGE) = test_word(i, 0, seed);
}

static void check_in_child(void)
{
	pid_t child = fork();

	if (!child) {
		test_check(memory, pages, seed);
		_exit(0);
	}
	test_reap(child, 0);
}

static struct hmm_range over_one;

static long fault_range(struct hmm_range *range, struct hmm_mirror *of)
{
	static const uint64_t bits[HMM_PFN_FLAG_MAX] = { 1, 2, 4 }, marks[HMM_PFN_VALUE_MAX] = { 8, 0, 16 };
	unsigned long start = (unsigned long)memory;
	long result;

	if (!range->priv) {
		*range = (struct hmm_range){ .flags = bits, .values = marks, .pfn_shift = 12, .default_flags = 1,
					    .pfns = malloc(pages * sizeof(*range->pfns)) };
		CHECK_EQ(hmm_range_register(range, of, start, start + pages * PAGE, 12), 0);
	}
	do {
		result = hmm_range_fault(range, true);
	} while (result == -EBUSY && hmm_range_wait_until_valid(range, 20000));
	return result;
}

static void hear(void)
{
	struct hmm_event seen[16];
	int n;

	printf("heard %lu", hmm_event_dropped(events));
	while ((n = hmm_event_read(events, seen, 16)) > 0)
		for (int i = 0; i < n; i++)
			printf(" %u", seen[i].kind);
	printf("\n");
}

static void print_policy(void)
{
	struct hmm_policy policy = { .size = sizeof(policy) };

	CHECK_EQ(hmm_range_get_attribute(hmm, (unsigned long)memory, pages * PAGE, &policy), 0);
	printf("policy said %#lx in force %#lx granularity %u priority %u there %lu named %d\n", policy.said,
	       policy.in_force, policy.granularity, policy.evict_priority, policy.on_device,
	       (policy.preferred == &mirror) + (policy.pinned == &mirror) +
		       (policy.accessed_by_count == 1 && policy.accessed_by[0] == &mirror));
}

static struct hmm_mirror whole;
static struct hmm_range over_both;

static void make_group(void)
{
	static const struct hmm_mirror_ops no_callbacks = { .size = sizeof(no_callbacks) };
	struct hmm_device *two[2] = { test_device("first-half", 64UL << 20), test_device("second-half", 64UL << 20) };

	CHECK_EQ(hmm_device_group(hmm, two, 2, &whole.device), 0);
	whole.ops = &no_callbacks;
	CHECK_EQ(hmm_mirror_register(&whole, hmm), 0);
}

static long halves(void)
{
	size_t half = pages / 2;
	uintptr_t start = (uintptr_t)memory;

	return hmm_migrate(hmm_mirror_member(&whole, 0), start, half * PAGE, HMM_DEVICE, 0, NULL, NULL) +
	       hmm_migrate(hmm_mirror_member(&whole, 1), start + half * PAGE, (pages - half) * PAGE, HMM_DEVICE, 0,
			   NULL, NULL);
}

static void await_prefetch(void)
{
	uint8_t *results = malloc(pages);
	size_t there = 0;
	long result;

	while ((result = hmm_prefetch_result(prefetch, results, NULL)) == -EAGAIN)
		usleep(1000);
	for (size_t i = 0; i < pages && result > 0; i++)
		there += results[i] == HMM_MIGRATED || results[i] == HMM_ALREADY;
	printf("prefetched %lu %ld %zu\n", hmm_prefetch_progress(prefetch, NULL), result, there);
	hmm_prefetch_free(prefetch);
	free(results);
}

static void obey(const char *line)
{
	struct hmm_advise_options options = { .size = sizeof(options), .mirror = &mirror };
	size_t n = pages;
	int advice;
	uint64_t word = 0;
	ssize_t got;

	if (sscanf(line, "out %zu", &n) == 1 || !strcmp(line, "out")) {
		printf("out %ld\n", migrate(n, HMM_DEVICE));
	} else if (!strcmp(line, "turn")) {
		printf("turned %ld\n", turn());
	} else if (!strcmp(line, "home")) {
		printf("home %ld\n", migrate(pages, HMM_SYSTEM));
	} else if (!strcmp(line, "check")) {
		test_check(memory, pages, seed);
		printf("checked\n");
	} else if (!strcmp(line, "device")) {
		device_check();
		printf("checked\n");
	} else if (!strcmp(line, "change")) {
		test_fill(memory, pages, ++seed);
		printf("changed\n");
	} else if (!strcmp(line, "touch")) {
		touch();
		printf("touched\n");
	} else if (!strcmp(line, "exclusive")) {
		printf("exclusive %ld\n",
		       hmm_device_exclusive_begin(&mirror, (unsigned long)memory, pages * PAGE, NULL));
	} else if (!strcmp(line, "marked")) {
		for (n = 0; word < pages; word++)
			n += hmm_device_exclusive_check(&mirror, (unsigned long)memory + word * PAGE, PAGE);
		printf("marked %zu\n", n);
	} else if (!strcmp(line, "where")) {
		printf("where %zu\n", test_device_pages(memory, pages));
	} else if (!strcmp(line, "fork")) {
		check_in_child();
		printf("forked\n");
	} else if (!strcmp(line, "protect")) {
		CHECK_EQ(mprotect(memory, pages * PAGE, PROT_READ), 0);
		CHECK_EQ(mprotect(memory, pages * PAGE, PROT_READ | PROT_WRITE), 0);
		printf("protected\n");
	} else if (!strcmp(line, "listen")) {
		CHECK_EQ(hmm_event_open(hmm, NULL, &events), 0);
		printf("listening\n");
	} else if (!strcmp(line, "heard")) {
		hear();
	} else if (sscanf(line, "advise %d %u", &advice, &options.value) >= 1) {
		printf("advised %d\n", hmm_advise(hmm, (unsigned long)memory, pages * PAGE,
						  (enum hmm_advice)advice, &options));
	} else if (!strcmp(line, "stripe")) {
		/* Each page has its own. */
		for (size_t i = 0; i < pages; i++) {
			options.value = (unsigned int)i % 101;
			CHECK_EQ(hmm_advise(hmm, (unsigned long)memory + i * PAGE, PAGE, HMM_ADVISE_EVICT_PRIORITY,
					    &options), 0);
		}
		printf("striped\n");
	} else if (!strcmp(line, "policy")) {
		print_policy();
	} else if (!strcmp(line, "close")) {
		test_close();
		printf("closed\n");
	} else if (!strcmp(line, "crash")) {
		prctl(PR_SET_DUMPABLE, 1);
		abort();
	} else if (!strcmp(line, "read")) {
		got = hmm_device_read(&mirror, (unsigned long)memory, &word, 8);
		printf(got < 0 ? "error %zd\n" : "read %zd\n", got);
	} else if (!strcmp(line, "range")) {
		got = fault_range(&over_one, &mirror);
		printf(got < 0 ? "error %zd\n" : "range %zd\n", got);
	} else if (!strcmp(line, "valid")) {
		printf("valid %d\n", hmm_range_valid(&over_one));
	} else if (!strcmp(line, "discard")) {
		CHECK_EQ(madvise(memory, PAGE, MADV_DONTNEED), 0);
		printf("discarded\n");
	} else if (!strcmp(line, "group")) {
		make_group();
		printf("grouped\n");
	} else if (!strcmp(line, "halves")) {
		printf("halves %ld\n", halves());
	} else if (!strcmp(line, "whole")) {
		CHECK_EQ(hmm_device_read(&whole, (unsigned long)memory, &word, 8), 8);
		CHECK_EQ(word, *(volatile uint64_t *)memory);
		printf("whole %ld\n", fault_range(&over_both, &whole));
	} else if (!strcmp(line, "prefetch")) {
		CHECK_EQ(hmm_prefetch(&mirror, (unsigned long)memory, pages * PAGE, HMM_DEVICE, 0, -1,
				      &prefetch), 0);
		printf("prefetching\n");
	} else if (!strcmp(line, "prefetched")) {
		await_prefetch();
	} else {
		FAIL("what is '%s'?", line);
	}
}

int main(int argc, char **argv)
{
	char line[128];
	unsigned long room = 0;
	bool huge = false, across = false;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 2)
		return 2;
	pages = strtoul(argv[1], NULL, 0);
	for (int i = 2; i < argc; i++) {
		huge |= !strcmp(argv[i], "huge");
		across |= !strcmp(argv[i], "across");
		flags |= strcmp(argv[i], "base") ? 0 : HMM_OPEN_BASE_ENGINE;
		sscanf(argv[i], "room=%lu", &room);
	}
	hmm_set_log(report, NULL);
	device_memory = room ? room * BLOCK : (pages * PAGE + 2 * BLOCK) & ~(BLOCK - 1);
	test_open(flags, device_memory);
	/* Few lie in one block: some tests count what becomes of it. */
	memory = huge		? test_map_huge((pages + 511) / 512)
		 : across	? test_map_across(pages)
		 : pages <= 480 ? test_map_in_block(pages)
				: test_map(pages);
	if (flags)
		CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, pages * PAGE, HMM_ADVISE_UNPINNED, NULL), 0);
	test_fill(memory, pages, seed);
	printf("ready %d %#lx %#lx\n", getpid(), (unsigned long)memory, test_word(0, 0, seed));
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		obey(line);
	}
	test_check(memory, pages, seed);
	return 0;
}
