// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * dirty.c - what was written: told exactly where it can be known, and in doubt told rather than
 * missed. The same cases for each engine that hmmd is started with.
 */
#include <fcntl.h>
#include <signal.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "dirty.h"

static struct hmm_dirty *start(void *memory, size_t pages)
{
	struct hmm_dirty *dirty;

	CHECK_EQ(hmm_dirty_start(hmm, (unsigned long)memory, pages * PAGE, 0, &dirty), 0);
	return dirty;
}

/* Memory that is declared, tracked, and of which all was told. */
static struct hmm_dirty *begin(void *memory, size_t pages)
{
	struct hmm_dirty_report report;
	struct hmm_dirty *dirty;

	declare(memory, pages);
	dirty = start(memory, pages);
	CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory, pages * PAGE, HMM_DIRTY_CLEAR, NULL, &report), pages);
	CHECK_EQ(report.pages, pages);
	CHECK_EQ(report.written, pages);
	return dirty;
}

/* Memory with known bytes, of which nothing is to be told. */
static struct hmm_dirty *open_and_begin(char **memory, size_t pages)
{
	open_tracked();
	*memory = test_map_apart(pages);
	test_fill(*memory, pages, 1);
	return begin(*memory, pages);
}

static void stop_and_close(struct hmm_dirty *dirty)
{
	CHECK_EQ(hmm_dirty_stop(dirty), 0);
	test_close();
}

static bool told(const uint64_t *bits, size_t page)
{
	return bits[page / 64] >> (page % 64) & 1;
}

static long take(struct hmm_dirty *dirty, void *memory, size_t pages, uint64_t *bits)
{
	struct hmm_dirty_report report;
	long n, count = 0;

	memset(bits, 0xa5, (pages + 63) / 64 * 8);
	n = hmm_dirty_read(dirty, (unsigned long)memory, pages * PAGE, HMM_DIRTY_CLEAR, bits, &report);
	for (size_t i = 0; i < pages; i++)
		count += told(bits, i);
	CHECK_EQ(count, n);
	CHECK_EQ(report.written, n);
	CHECK(report.presumed <= report.written);
	for (size_t i = pages; i < (pages + 63) / 64 * 64; i++)
		CHECK(!told(bits, i));
	return n;
}

/* These pages and no others; but older engines must presume where no page is. */
static void expect(struct hmm_dirty *dirty, void *memory, size_t pages, const size_t *which, size_t n)
{
	struct hmm_dirty_report report;
	uint64_t bits[1024];

	CHECK(pages <= sizeof(bits) * 8);
	CHECK(hmm_dirty_read(dirty, (unsigned long)memory, pages * PAGE, HMM_DIRTY_CLEAR, bits, &report) >= 0);
	for (size_t i = 0; i < n; i++)
		if (!told(bits, which[i]))
			FAIL("page %zu was written and is not told", which[i]);
	CHECK(report.written - report.presumed <= n);
	if (hmm_features(hmm) & HMM_HAS_TRACK_PAGEMAP_SCAN)
		CHECK_EQ(report.written, n);
}

static void expect_none(struct hmm_dirty *dirty, void *memory, size_t pages)
{
	expect(dirty, memory, pages, NULL, 0);
}

/* ---- one thing at a time ---------------------------------------------------------- */

static void exactly(void)
{
	const size_t which[] = { 0, 3, 4, 63, 64, 65, 199 };
	struct hmm_dirty *dirty;
	char *memory;

	dirty = open_and_begin(&memory, 200);
	expect_none(dirty, memory, 200);
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < 7; i++)
			memory[which[i] * PAGE + 17 * i]++;
		expect(dirty, memory, 200, which, 7);
		expect_none(dirty, memory, 200);
	}
	/* Reading writes nothing. */
	for (size_t i = 0; i < 200; i++)
		CHECK(((volatile char *)memory)[i * PAGE] || true);
	expect_none(dirty, memory, 200);
	CHECK_EQ(hmm_dirty_stop(dirty), 0);
	memory[0]++;
	munmap(memory, 200 * PAGE);
	test_close();
}

static void kept(void)
{
	const size_t which[] = { 5 }, both[] = { 5, 6 };
	struct hmm_dirty *dirty;
	uint64_t bits = 0;
	char *memory;

	dirty = open_and_begin(&memory, 64);
	memory[5 * PAGE] = 1;
	/* Without CLEAR it is told again and again; a part alone, too. */
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory, 64 * PAGE, 0, &bits, NULL), 1);
		CHECK_EQ(bits, 1 << 5);
	}
	CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory + 3 * PAGE, 4 * PAGE, 0, &bits, NULL), 1);
	CHECK_EQ(bits, 1 << 2);
	CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory + 6 * PAGE, 4 * PAGE, HMM_DIRTY_CLEAR, &bits, NULL), 0);
	memory[6 * PAGE] = 1;
	expect(dirty, memory, 64, both, 2);
	memory[5 * PAGE] = 2;
	expect(dirty, memory, 64, which, 1);
	stop_and_close(dirty);
}

static void huge(void)
{
	struct hmm_dirty *dirty;
	uint64_t bits[32];
	char *memory;

	open_tracked();
	memory = test_map_huge(4);
	test_fill(memory, 2048, 3);
	dirty = begin(memory, 2048);
	expect_none(dirty, memory, 2048);
	memory[700 * PAGE] = 1;
	/* As one page, or by itself. */
	CHECK(take(dirty, memory, 2048, bits) <= 512);
	CHECK(told(bits, 700));
	memory[701 * PAGE] = 1;
	memory[1 * PAGE] = 1;
	CHECK(take(dirty, memory, 2048, bits) <= 1024);
	CHECK(told(bits, 701) && told(bits, 1));
	CHECK(!madvise(memory + 2 * BLOCK, BLOCK, MADV_DONTNEED));
	CHECK(take(dirty, memory, 2048, bits) <= 1536);
	for (size_t i = 1024; i < 1536; i++)
		CHECK(told(bits, i));
	expect_none(dirty, memory, 2048);
	/* A part of what was one page. */
	CHECK(!madvise(memory + 3 * BLOCK, 5 * PAGE, MADV_DONTNEED));
	take(dirty, memory, 2048, bits);
	for (size_t i = 1536; i < 1541; i++)
		CHECK(told(bits, i));
	stop_and_close(dirty);
}

static void never_touched(void)
{
	const size_t which[] = { 10, 300 };
	struct hmm_dirty *dirty;
	char *memory;

	open_tracked();
	memory = test_map(600);
	dirty = begin(memory, 600);
	expect_none(dirty, memory, 600);
	memory[10 * PAGE] = 1;
	memory[300 * PAGE] = 1;
	expect(dirty, memory, 600, which, 2);
	stop_and_close(dirty);
}

static void discarded(void)
{
	size_t which[] = { 7, 8, 9 };
	struct hmm_dirty *dirty;
	uint64_t bits[2];
	char *memory;

	dirty = open_and_begin(&memory, 100);
	CHECK(!madvise(memory + 7 * PAGE, 3 * PAGE, MADV_DONTNEED));
	expect(dirty, memory, 100, which, 3);
	expect_none(dirty, memory, 100);
	/* Written and discarded: told, whatever is there. */
	memory[20 * PAGE] = 9;
	CHECK(!madvise(memory + 20 * PAGE, PAGE, MADV_DONTNEED));
	take(dirty, memory, 100, bits);
	CHECK(told(bits, 20));
	stop_and_close(dirty);
}

static void mapped_anew(void)
{
	struct hmm_dirty *dirty;
	uint64_t bits[2];
	char *memory;

	dirty = open_and_begin(&memory, 100);
	CHECK(!munmap(memory + 10 * PAGE, 5 * PAGE));
	CHECK(take(dirty, memory, 100, bits) >= 5);
	CHECK(told(bits, 10) && told(bits, 14));
	expect_none(dirty, memory, 100);
	CHECK(mmap(memory + 10 * PAGE, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
	      MAP_FAILED);
	memory[12 * PAGE] = 4;
	CHECK(take(dirty, memory, 100, bits) >= 5);
	for (size_t i = 10; i < 15; i++)
		CHECK(told(bits, i));
	expect_none(dirty, memory, 100);
	/* Unmapped and mapped between two reads. */
	CHECK(mmap(memory + 30 * PAGE, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
	      MAP_FAILED);
	take(dirty, memory, 100, bits);
	for (size_t i = 30; i < 35; i++)
		CHECK(told(bits, i));
	memory[33 * PAGE] = 4;
	take(dirty, memory, 100, bits);
	CHECK(told(bits, 33));
	stop_and_close(dirty);
}

static void remapped(void)
{
	struct hmm_dirty *dirty;
	uint64_t bits[2];
	char *memory, *other;

	open_tracked();
	memory = test_map_apart(100);
	other = test_map_apart(20);
	test_fill(memory, 100, 1);
	test_fill(other, 20, 2);
	dirty = begin(memory, 100);
	/* Within: both places changed. */
	CHECK(mremap(memory + 10 * PAGE, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 50 * PAGE) ==
	      memory + 50 * PAGE);
	take(dirty, memory, 100, bits);
	for (size_t i = 0; i < 10; i++)
		CHECK(told(bits, 10 + i) && told(bits, 50 + i));
	memory[55 * PAGE] = 1;
	take(dirty, memory, 100, bits);
	CHECK(told(bits, 55));
	/* From outside. */
	CHECK(mremap(other, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 10 * PAGE) == memory + 10 * PAGE);
	take(dirty, memory, 100, bits);
	for (size_t i = 0; i < 10; i++)
		CHECK(told(bits, 10 + i));
	test_check(memory + 10 * PAGE, 10, 2);
	/* Away, and the place stays. */
	CHECK(mremap(memory + 70 * PAGE, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED, other) == other);
	take(dirty, memory, 100, bits);
	for (size_t i = 70; i < 80; i++)
		CHECK(told(bits, i));
	test_check_zero(memory + 70 * PAGE, 10);
	/* What went is its own affair now. */
	memset(other, 1, 10 * PAGE);
	take(dirty, memory, 100, bits);
	expect_none(dirty, memory, 100);
	stop_and_close(dirty);
}

/* Half of one mapping is tracked; mremap() takes one mapping only. */
static void remapped_whole(void)
{
	struct hmm_dirty *dirty;
	uint64_t bits[2];
	char *memory, *room;

	open_tracked();
	memory = test_map_apart(100);
	room = test_map_apart(100);
	test_fill(memory, 100, 5);
	dirty = begin(memory + 50 * PAGE, 50);
	CHECK(mremap(memory, 100 * PAGE, 100 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
	test_check(room, 100, 5);
	CHECK(mremap(room, 100 * PAGE, 100 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory) == memory);
	test_check(memory, 100, 5);
	CHECK_EQ(take(dirty, memory + 50 * PAGE, 50, bits), 50);
	memory[60 * PAGE] = 1;
	take(dirty, memory + 50 * PAGE, 50, bits);
	CHECK(told(bits, 10));
	stop_and_close(dirty);
}

static void forked(void)
{
	const size_t which[] = { 30 };
	struct hmm_dirty *dirty;
	char *memory;
	pid_t child;

	dirty = open_and_begin(&memory, 100);
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		memset(memory, 7, 100 * PAGE);
		_exit(hmm_dirty_stop(dirty) == -ESTALE ? 0 : 1);
	}
	test_reap(child, 0);
	/* Pages that the child had shared are the parent's alone by now, and were not written by it. */
	memory[30 * PAGE] = 1;
	expect(dirty, memory, 100, which, 1);
	child = fork();
	if (!child) {
		pause();
		_exit(0);
	}
	memory[30 * PAGE] = 2;
	expect(dirty, memory, 100, which, 1);
	kill(child, SIGKILL);
	test_reap(child, SIGKILL);
	stop_and_close(dirty);
}

static void overlapping(void)
{
	const size_t in_first[] = { 60 }, in_second[] = { 10 };
	struct hmm_dirty *first, *second;
	char *memory;

	open_tracked();
	memory = test_map(150);
	test_fill(memory, 150, 1);
	first = begin(memory, 100);
	second = begin(memory + 50 * PAGE, 100);
	hmm_dirty_read(first, (unsigned long)memory, 100 * PAGE, HMM_DIRTY_CLEAR, NULL, NULL);
	memory[60 * PAGE] = 1;
	expect(first, memory, 100, in_first, 1);
	/* What one has taken, the other is told all the same. */
	expect(second, memory + 50 * PAGE, 100, in_second, 1);
	CHECK_EQ(hmm_dirty_stop(first), 0);
	memory[60 * PAGE] = 2;
	expect(second, memory + 50 * PAGE, 100, in_second, 1);
	memory[20 * PAGE] = 2;
	expect_none(second, memory + 50 * PAGE, 100);
	CHECK_EQ(hmm_dirty_stop(second), 0);
	test_close();
}

static void presumed_of(struct hmm_dirty *dirty, void *memory, size_t pages)
{
	struct hmm_dirty_report report;

	for (int i = 0; i < 2; i++) {
		CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory, pages * PAGE, HMM_DIRTY_CLEAR, NULL, &report), pages);
		/* New mappings, and what has been moved out of one, have the bit without being written. */
		if (!(hmm_features(hmm) & HMM_HAS_TRACK_SOFT_DIRTY))
			CHECK_EQ(report.presumed, pages);
	}
}

static void unknowable(void)
{
	struct hmm_dirty *dirty;
	char *memory, *shared, *file;
	int fd;

	open_tracked();
	/* Nobody has promised that no I/O is in flight. */
	memory = test_map(10);
	CHECK_EQ(hmm_unadvise(hmm, (unsigned long)memory, 10 * PAGE, HMM_ADVISE_UNPINNED, NULL), 0);
	test_fill(memory, 10, 1);
	dirty = start(memory, 10);
	presumed_of(dirty, memory, 10);
	/* What was not looked at is told once more: what a pin wrote until now has left no trace. */
	declare(memory + 5 * PAGE, 5);
	CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory, 10 * PAGE, HMM_DIRTY_CLEAR, NULL, NULL), 10);
	CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory, 10 * PAGE, HMM_DIRTY_CLEAR, NULL, NULL), 5);
	CHECK_EQ(hmm_dirty_stop(dirty), 0);

	shared = mmap(NULL, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	declare(shared, 10);
	dirty = start(shared, 10);
	presumed_of(dirty, shared, 10);
	CHECK_EQ(hmm_dirty_stop(dirty), 0);

	fd = open("/proc/self/exe", O_RDONLY);
	file = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(file != MAP_FAILED);
	declare(file, 4);
	dirty = start(file, 4);
	presumed_of(dirty, file, 4);
	CHECK_EQ(hmm_dirty_stop(dirty), 0);
	close(fd);

	/* Read-only, and writable again. */
	memory = test_map(10);
	test_fill(memory, 10, 1);
	dirty = begin(memory, 10);
	CHECK(!mprotect(memory, 10 * PAGE, PROT_READ));
	presumed_of(dirty, memory, 10);
	CHECK(!mprotect(memory, 10 * PAGE, PROT_READ | PROT_WRITE));
	hmm_dirty_read(dirty, (unsigned long)memory, 10 * PAGE, HMM_DIRTY_CLEAR, NULL, NULL);
	expect_none(dirty, memory, 10);
	memory[3 * PAGE] = 1;
	expect(dirty, memory, 10, (const size_t[]){ 3 }, 1);
	stop_and_close(dirty);
}

/* The kernel writes for the program. */
static void system_calls(void)
{
	const size_t which[] = { 2, 3, 9 };
	struct hmm_dirty *dirty;
	char *memory;
	int fd;

	dirty = open_and_begin(&memory, 20);
	fd = open("/proc/self/exe", O_RDONLY);
	CHECK_EQ(pread(fd, memory + 3 * PAGE - 8, 16, 0), 16);
	CHECK_EQ(pread(fd, memory + 9 * PAGE, 1, 0), 1);
	close(fd);
	expect(dirty, memory, 20, which, 3);
	/* And hmmd, for a device. */
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 4 * PAGE, "x", 1), 1);
	CHECK_EQ(memory[4 * PAGE], 'x');
	expect(dirty, memory, 20, (const size_t[]){ 4 }, 1);
	stop_and_close(dirty);
}

static void stays_at_home(void)
{
	struct hmm_dirty *dirty;
	char *memory;

	dirty = open_and_begin(&memory, 1024);
	test_refused(memory, 1024, HMM_TRACKED);
	CHECK_EQ(hmm_dirty_stop(dirty), 0);
	test_out(memory, 1024);
	/* What is on the device can't be looked at. */
	declare(memory, 1024);
	dirty = start(memory, 1024);
	presumed_of(dirty, memory, 1024);
	test_check(memory, 1024, 1);
	stop_and_close(dirty);
}

/* To look at what is written hmmd may have to be the owner's tracer: no reason to bring home what it has out elsewhere. */
static void others_stay_out(void)
{
	struct hmm_dirty *dirty;
	char *memory, *other;

	dirty = open_and_begin(&memory, 64);
	other = test_map_apart(1024);
	test_fill(other, 1024, 2);
	test_out(other, 1024);
	for (int i = 0; i < 5; i++) {
		memory[i * PAGE]++;
		CHECK(hmm_dirty_read(dirty, (unsigned long)memory, 64 * PAGE, HMM_DIRTY_CLEAR, NULL, NULL) >= 1);
		/* hmmd hears of debuggers by and by. */
		usleep(50000);
	}
	CHECK_EQ(test_device_pages(other, 1024), 1024);
	test_check(other, 1024, 2);
	stop_and_close(dirty);
}

static void by_a_driver(void)
{
	struct hmm_dirty *dirty;
	struct hmm *peer;
	uint64_t bits;
	char *memory;
	int key;

	open_tracked();
	memory = test_map(64);
	test_fill(memory, 64, 1);
	declare(memory, 64);
	key = hmm_export(hmm);
	CHECK(key >= 0);
	CHECK_EQ(hmm_open_peer(key, NULL, &peer), 0);
	CHECK_EQ(hmm_dirty_start(peer, (unsigned long)memory, 64 * PAGE, 0, &dirty), 0);
	CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory, 64 * PAGE, HMM_DIRTY_CLEAR, &bits, NULL), 64);
	memory[9 * PAGE] = 1;
	CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory, 64 * PAGE, HMM_DIRTY_CLEAR, &bits, NULL), 1);
	CHECK_EQ(bits, 1 << 9);
	/* It goes with its handle, and migrates again. */
	hmm_close(peer);
	test_out(memory, 64);
	close(key);
	test_close();
}

static void refusals(void)
{
	struct hmm_dirty *dirty, *keep;
	unsigned long at;
	char *memory;
	uint64_t bits;

	open_tracked();
	memory = test_map(64);
	at = (unsigned long)memory;
	CHECK_EQ(hmm_dirty_start(NULL, at, PAGE, 0, &dirty), -EINVAL);
	CHECK_EQ(hmm_dirty_start(hmm, at, PAGE, 0, NULL), -EINVAL);
	CHECK_EQ(hmm_dirty_start(hmm, at, PAGE, 1, &dirty), -EINVAL);
	CHECK_EQ(hmm_dirty_start(hmm, at + 1, PAGE, 0, &dirty), -EINVAL);
	CHECK_EQ(hmm_dirty_start(hmm, at, PAGE + 1, 0, &dirty), -EINVAL);
	CHECK_EQ(hmm_dirty_start(hmm, at, 0, 0, &dirty), -EINVAL);
	CHECK_EQ(hmm_dirty_start(hmm, 1UL << 46, 1UL << 47, 0, &dirty), -EINVAL);
	CHECK_EQ(hmm_dirty_start(hmm, -PAGE, 2 * PAGE, 0, &dirty), -EINVAL);
	/* More bits than a user may have. */
	CHECK_EQ(hmm_dirty_start(hmm, 0, 1UL << 46, 0, &dirty), -EDQUOT);
	CHECK_EQ(hmm_dirty_read(NULL, at, PAGE, 0, &bits, NULL), -EINVAL);
	CHECK_EQ(hmm_dirty_stop(NULL), 0);
	dirty = start(memory, 64);
	CHECK_EQ(hmm_dirty_read(dirty, at, PAGE, 2, &bits, NULL), -EINVAL);
	CHECK_EQ(hmm_dirty_read(dirty, at + 1, PAGE, 0, &bits, NULL), -EINVAL);
	CHECK_EQ(hmm_dirty_read(dirty, at, 0, 0, &bits, NULL), -EINVAL);
	CHECK_EQ(hmm_dirty_read(dirty, at, 65 * PAGE, 0, &bits, NULL), -EINVAL);
	CHECK_EQ(hmm_dirty_read(dirty, at - PAGE, PAGE, 0, &bits, NULL), -EINVAL);
	CHECK_EQ(hmm_dirty_read(dirty, -PAGE, 2 * PAGE, 0, &bits, NULL), -EINVAL);
	/* Nothing of that changed anything; and a handle that is left goes with the last reference. */
	CHECK_EQ(hmm_dirty_read(dirty, at, 64 * PAGE, 0, &bits, NULL), 64);
	keep = start(memory, 64);
	CHECK(keep != dirty);
	for (int i = 0; i < 100; i++)
		CHECK_EQ(hmm_dirty_stop(start(memory, 64)), 0);
	test_close();
}

/* ---- everything at once ------------------------------------------------------------------ */

static struct {
	struct hmm_dirty *dirty;
	char *memory, *copy;
	size_t pages;
	unsigned long told;
} crowd;

static void crowd_begin(char *memory, size_t pages)
{
	crowd.memory = memory;
	crowd.pages = pages;
	crowd.copy = test_map(pages);
	crowd.dirty = start(memory, pages);
}

/* What is told is copied. */
static void crowd_update(void)
{
	static uint64_t bits[1024];

	CHECK(crowd.pages <= sizeof(bits) * 8);
	crowd.told += (unsigned long)take(crowd.dirty, crowd.memory, crowd.pages, bits);
	for (size_t i = 0; i < crowd.pages; i++) {
		if (i % 64 == 0)
			crowd_lock_map(true);
		if (told(bits, i))
			memcpy(crowd.copy + i * PAGE, crowd.memory + i * PAGE, PAGE);
		if (i % 64 == 63)
			crowd_lock_map(false);
	}
}

static const char *crowd_copy(void)
{
	return crowd.copy;
}

/* Exact, when it is still: but for zeros that comparing was the first to read. */
static void crowd_still(void)
{
	struct hmm_dirty_report report;

	CHECK(hmm_dirty_read(crowd.dirty, (unsigned long)crowd.memory, crowd.pages * PAGE, HMM_DIRTY_CLEAR, NULL, NULL) >= 0);
	CHECK(hmm_dirty_read(crowd.dirty, (unsigned long)crowd.memory, crowd.pages * PAGE, HMM_DIRTY_CLEAR, NULL, &report) >= 0);
	/* A thread's stack may end where the memory begins: pages around its control block are excluded. */
	CHECK_EQ(report.written - report.presumed, 0);
}

static void many_writers(void)
{
	static const struct replica replica = { crowd_begin, crowd_update, crowd_still, crowd_copy };

	open_tracked();
	crowd_run(&replica, 8);
	CHECK(crowd.told > crowd.pages);
	CHECK_EQ(hmm_dirty_stop(crowd.dirty), 0);
	test_close();
}

/* ---- hmmd dies ------------------------------------------------------------------------- */

/* Its script kills hmmd. Who writes is never kept waiting, and nothing is missed. */
static void outage(void)
{
	struct hmm_dirty_report report;
	struct hmm_dirty *dirty;
	uint64_t bits[4];
	char line[64], *memory, *copy;

	open_tracked();
	memory = test_map(256);
	copy = test_map(256);
	test_fill(memory, 256, 1);
	dirty = begin(memory, 256);
	memcpy(copy, memory, 256 * PAGE);
	steady_begin(memory);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) && !strncmp(line, "more", 4)) {
		CHECK(hmm_dirty_read(dirty, (unsigned long)memory, 256 * PAGE, HMM_DIRTY_CLEAR, bits, &report) >= 0);
		for (size_t i = 0; i < 256; i++)
			if (told(bits, i))
				memcpy(copy + i * PAGE, memory + i * PAGE, PAGE);
		printf("told %lu of which %lu, at %lu\n", (unsigned long)report.written, (unsigned long)report.presumed,
		       steady_written());
		fflush(stdout);
	}
	steady_end();
	CHECK(hmm_dirty_read(dirty, (unsigned long)memory, 256 * PAGE, HMM_DIRTY_CLEAR, bits, &report) >= 0);
	for (size_t i = 0; i < 256; i++) {
		if (told(bits, i))
			memcpy(copy + i * PAGE, memory + i * PAGE, PAGE);
		if (memcmp(copy + i * PAGE, memory + i * PAGE, PAGE))
			FAIL("a write to page %zu was missed", i);
	}
	expect_none(dirty, memory, 256);
	stop_and_close(dirty);
}

/* No hmmd comes back: the program writes on, and its handle says so. */
static void abandoned(void)
{
	struct hmm_dirty *dirty;
	char line[64], *memory;
	unsigned long before;

	dirty = open_and_begin(&memory, 256);
	steady_begin(memory);
	printf("ready\n");
	fflush(stdout);
	CHECK(fgets(line, sizeof(line), stdin));
	while (hmm_dirty_read(dirty, (unsigned long)memory, 256 * PAGE, HMM_DIRTY_CLEAR, NULL, NULL) != -ESTALE)
		usleep(1000);
	before = steady_written();
	while (steady_written() < before + 1000)
		usleep(100);
	steady_end();
	CHECK_EQ(hmm_dirty_stop(dirty), 0);
	hmm_close(hmm);
	hmm = NULL;
}

int main(int argc, char **argv)
{
	static const struct test_case cases[] = {
		{ "exactly", exactly, false },
		{ "kept", kept, false },
		{ "huge", huge, false },
		{ "never-touched", never_touched, false },
		{ "discarded", discarded, false },
		{ "mapped-anew", mapped_anew, false },
		{ "remapped", remapped, false },
		{ "remapped-whole", remapped_whole, false },
		{ "forked", forked, false },
		{ "overlapping", overlapping, false },
		{ "unknowable", unknowable, false },
		{ "system-calls", system_calls, false },
		{ "stays-at-home", stays_at_home, false },
		{ "others-stay-out", others_stay_out, false },
		{ "by-a-driver", by_a_driver, false },
		{ "refusals", refusals, false },
		{ "many-writers", many_writers, false },
		{ "outage", outage, .special = true },
		{ "abandoned", abandoned, .special = true },
		{ NULL, NULL, false },
	};

	return test_main(argc, argv, cases);
}
