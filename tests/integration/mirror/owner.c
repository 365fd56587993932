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
 *   where       how many pages the device has               "where N"
 *   fork        a child compares everything and ends        "forked"
 *   close       gives the mirror up                         "closed"
 *   crash       as a bug would                              (core)
 *   read        one word by the device; "error -E"          "read N"
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

static long turn(void)
{
	long there = 0;

	for (size_t first = 0; first < pages; first += 512)
		there += migrate_from(first, pages - first < 512 ? pages - first : 512, HMM_DEVICE);
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

static void obey(const char *line)
{
	size_t n = pages;
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
	} else if (!strcmp(line, "where")) {
		printf("where %zu\n", test_device_pages(memory, pages));
	} else if (!strcmp(line, "fork")) {
		check_in_child();
		printf("forked\n");
	} else if (!strcmp(line, "close")) {
		test_close();
		printf("closed\n");
	} else if (!strcmp(line, "crash")) {
		prctl(PR_SET_DUMPABLE, 1);
		abort();
	} else if (!strcmp(line, "read")) {
		got = hmm_device_read(&mirror, (unsigned long)memory, &word, 8);
		printf(got < 0 ? "error %zd\n" : "read %zd\n", got);
	} else {
		FAIL("what is '%s'?", line);
	}
}

int main(int argc, char **argv)
{
	char line[128];
	unsigned long room = 0;
	bool huge = false;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 2)
		return 2;
	pages = strtoul(argv[1], NULL, 0);
	for (int i = 2; i < argc; i++) {
		huge |= !strcmp(argv[i], "huge");
		flags |= strcmp(argv[i], "base") ? 0 : HMM_OPEN_BASE_ENGINE;
		sscanf(argv[i], "room=%lu", &room);
	}
	hmm_set_log(report, NULL);
	device_memory = room ? room * BLOCK : (pages * PAGE + 2 * BLOCK) & ~(BLOCK - 1);
	test_open(flags, device_memory);
	memory = huge ? test_map_huge((pages + 511) / 512) : test_map(pages);
	if (flags)
		CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, pages * PAGE, HMM_ADVISE_UNPINNED), 0);
	test_fill(memory, pages, seed);
	printf("ready %d %#lx %#lx\n", getpid(), (unsigned long)memory, test_word(0, 0, seed));
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		obey(line);
	}
	test_check(memory, pages, seed);
	return 0;
}
