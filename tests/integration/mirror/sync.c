// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sync.c - copies of a tracked mirror: after each sync they are what the owner has, whatever became
 * of its mappings, and no more is copied than may have been written. The same cases for each engine that
 * hmmd is started with.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "dirty.h"
#include "driver.h"
#include "look.h"
#include "replica.h"

/* So many pages and no others; but older engines must presume where no page is. */
static void expect(char *memory, size_t pages, size_t n)
{
	struct hmm_sync_report report = sync_all(memory, pages);

	CHECK(report.written >= n);
	CHECK(report.written - report.presumed <= n);
	if (hmm_features(hmm) & HMM_HAS_TRACK_PAGEMAP_SCAN)
		CHECK_EQ(report.written, n);
	check_equal(memory, pages);
}

/* ---- one thing at a time ---------------------------------------------------------------- */

static void exactly(void)
{
	const size_t which[] = { 0, 3, 4, 63, 64, 65, 199, 511, 512, 1023 };
	char *memory = open_and_begin(1024);

	expect(memory, 1024, 0);
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < 10; i++)
			memory[which[i] * PAGE + 17 * i]++;
		expect(memory, 1024, 10);
		expect(memory, 1024, 0);
	}
	/* A part of it: the rest is told when it is asked for. */
	memory[5 * PAGE]++;
	memory[700 * PAGE]++;
	CHECK_EQ(sync_all(memory, 512).copied, 1);
	CHECK(memcmp(copy_of(memory) + 700 * PAGE, memory + 700 * PAGE, PAGE));
	expect(memory, 1024, 1);
	close_replica();
}

/* More runs than an order has room for, and more orders than the agent has at a time. */
static void scattered(void)
{
	char *memory = open_and_begin(8192);

	for (size_t i = 0; i < 8192; i += 3)
		memory[i * PAGE + i % PAGE]++;
	expect(memory, 8192, 2731);
	for (size_t i = 1; i < 8192; i += 2)
		memory[i * PAGE + i % PAGE]++;
	expect(memory, 8192, 4096);
	test_fill(memory, 8192, 9);
	expect(memory, 8192, 8192);
	close_replica();
}

/* Over the edge of a GiB, where another shadow begins. */
static void over_the_edge(void)
{
	char *edge = (char *)0x6b0040000000UL, *memory = edge - 300 * PAGE;

	open_replica(64 * BLOCK);
	CHECK(mmap(memory, 600 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == memory);
	test_fill(memory, 600, 4);
	begin(memory, 600);
	memory[299 * PAGE]++;
	memory[300 * PAGE]++;
	expect(memory, 600, 2);
	close_replica();
}

/* What is looked at in turns, 64 MiB each, and copied after the last look of its GiB: nothing is lost between two. */
static void over_several_looks(void)
{
	const size_t before = 34007, pages = before + 600, look = 16384;
	const size_t which[] = { 0, 1, before - 2 * look - 1, before - 2 * look, before - 2 * look + 1, before - look - 1,
				 before - look, before - look + 1, before - 1, before, before + 1, pages - 1 };
	const size_t n = sizeof(which) / sizeof(*which);
	char *edge = (char *)0x6b0040000000UL, *memory = edge - before * PAGE;

	open_replica(80 * BLOCK);
	CHECK(mmap(memory, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == memory);
	CHECK(!madvise(memory, pages * PAGE, MADV_NOHUGEPAGE));
	declare(memory, pages);
	track(memory, pages);
	for (char round = 1; round <= 3; round++) {
		struct hmm_sync_report report;

		for (size_t i = 0; i < n; i++)
			memset(memory + which[i] * PAGE, round + (char)i, PAGE);
		report = sync_all(memory, pages);
		CHECK(report.copied >= n && report.written - report.presumed <= n);
		for (size_t i = 0; i < n; i++)
			CHECK(!memcmp(copy_of(memory) + which[i] * PAGE, memory + which[i] * PAGE, PAGE));
	}
	close_replica();
}

static void huge(void)
{
	struct hmm_sync_report report;
	char *memory;

	open_replica(64 * BLOCK);
	memory = test_map_huge(4);
	test_fill(memory, 2048, 3);
	begin(memory, 2048);
	memory[700 * PAGE] = 1;
	report = sync_all(memory, 2048);
	CHECK(report.written <= 512);
	check_equal(memory, 2048);
	CHECK(!madvise(memory + 2 * BLOCK, BLOCK, MADV_DONTNEED));
	CHECK(!madvise(memory + 3 * BLOCK, 5 * PAGE, MADV_DONTNEED));
	report = sync_all(memory, 2048);
	CHECK(report.zeroed >= 517);
	check_equal(memory, 2048);
	close_replica();
}

static void never_touched(void)
{
	struct hmm_sync_report report;
	char *memory;

	open_replica(64 * BLOCK);
	memory = test_map(4096);
	declare(memory, 4096);
	track(memory, 4096);
	report = sync_all(memory, 4096);
	CHECK_EQ(report.zeroed, 4096);
	/* Nothing was faulted in for it. */
	report = sync_all(memory, 4096);
	CHECK_EQ(report.copied, 0);
	memory[10 * PAGE] = 1;
	memory[3000 * PAGE] = 1;
	report = sync_all(memory, 4096);
	CHECK_EQ(report.copied, 2);
	check_equal(memory, 4096);
	close_replica();
}

static void discarded(void)
{
	char *memory = open_and_begin(100);

	CHECK(!madvise(memory + 7 * PAGE, 3 * PAGE, MADV_DONTNEED));
	expect(memory, 100, 3);
	test_check_zero(copy_of(memory) + 7 * PAGE, 3);
	/* Written and discarded. */
	memory[20 * PAGE] = 9;
	CHECK(!madvise(memory + 20 * PAGE, PAGE, MADV_DONTNEED));
	sync_all(memory, 100);
	check_equal(memory, 100);
	close_replica();
}

static void mapped_anew(void)
{
	char *memory = open_and_begin(100);

	CHECK(!munmap(memory + 10 * PAGE, 5 * PAGE));
	sync_all(memory, 100);
	test_check_zero(copy_of(memory) + 10 * PAGE, 5);
	CHECK(mmap(memory + 10 * PAGE, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
	      MAP_FAILED);
	memory[12 * PAGE] = 4;
	sync_all(memory, 100);
	check_equal(memory, 100);
	/* Unmapped and mapped between two syncs, and all of it gone in the end. */
	CHECK(mmap(memory + 30 * PAGE, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
	      MAP_FAILED);
	sync_all(memory, 100);
	check_equal(memory, 100);
	CHECK(!munmap(memory, 100 * PAGE));
	sync_all(memory, 100);
	test_check_zero(copy_of(memory), 100);
	close_replica();
}

static void remapped(void)
{
	char *memory = open_and_begin(100), *other = test_map_apart(20);

	test_fill(other, 20, 2);
	CHECK(mremap(memory + 10 * PAGE, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 50 * PAGE) ==
	      memory + 50 * PAGE);
	sync_all(memory, 100);
	test_check_zero(copy_of(memory) + 10 * PAGE, 10);
	CHECK(!memcmp(copy_of(memory) + 50 * PAGE, memory + 50 * PAGE, 10 * PAGE));
	CHECK(mremap(other, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 10 * PAGE) == memory + 10 * PAGE);
	sync_all(memory, 100);
	check_equal(memory, 100);
	CHECK(mremap(memory + 70 * PAGE, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED, other) == other);
	sync_all(memory, 100);
	check_equal(memory, 100);
	close_replica();
}

/* What nobody can know is copied each time; what may not be read shows as zeros, until it may. */
static void unknowable(void)
{
	char *memory, *shared, *file;
	int fd;

	open_replica(64 * BLOCK);
	/* Nobody has promised that no I/O is in flight. */
	memory = test_map(10);
	CHECK_EQ(hmm_unadvise(hmm, (unsigned long)memory, 10 * PAGE, HMM_ADVISE_UNPINNED, NULL), 0);
	test_fill(memory, 10, 1);
	track(memory, 10);
	for (int i = 0; i < 3; i++) {
		memory[3 * PAGE]++;
		CHECK_EQ(sync_all(memory, 10).copied, 10);
		check_equal(memory, 10);
	}
	/* Of shared memory the other side writes what is not mapped here. */
	shared = mmap(NULL, 20 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED);
	test_fill(shared, 10, 6);
	CHECK(!madvise(shared, 10 * PAGE, MADV_DONTNEED));
	declare(shared, 20);
	track(shared, 20);
	CHECK_EQ(sync_all(shared, 20).written, 20);
	test_check(copy_of(shared), 10, 6);
	test_check_zero(copy_of(shared) + 10 * PAGE, 10);
	/* A file, read in by the copying alone, and what lies behind its end. */
	fd = open("/proc/self/exe", O_RDONLY);
	file = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(file != MAP_FAILED);
	close(fd);
	track(file, 4);
	CHECK_EQ(sync_all(file, 4).copied, 4);
	check_equal(file, 4);
	fd = memfd_create("short", 0);
	CHECK(!ftruncate(fd, 2 * PAGE));
	shared = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(shared != MAP_FAILED);
	close(fd);
	test_fill(shared, 2, 8);
	track(shared, 4);
	CHECK_EQ(sync_all(shared, 4).zeroed, 2);
	test_check(copy_of(shared), 2, 8);
	test_check_zero(copy_of(shared) + 2 * PAGE, 2);
	close_replica();
}

static void unreadable(void)
{
	char *memory = open_and_begin(100);

	CHECK(!mprotect(memory + 10 * PAGE, 10 * PAGE, PROT_NONE));
	CHECK(!mprotect(memory + 40 * PAGE, 10 * PAGE, PROT_READ));
	sync_all(memory, 100);
	test_check_zero(copy_of(memory) + 10 * PAGE, 10);
	CHECK(!memcmp(copy_of(memory) + 40 * PAGE, memory + 40 * PAGE, 10 * PAGE));
	CHECK(!mprotect(memory, 100 * PAGE, PROT_READ | PROT_WRITE));
	sync_all(memory, 100);
	check_equal(memory, 100);
	memory[15 * PAGE]++;
	memory[45 * PAGE]++;
	sync_all(memory, 100);
	check_equal(memory, 100);
	close_replica();
}

static void forked(void)
{
	char *memory = open_and_begin(100);
	pid_t child = fork();

	CHECK(child >= 0);
	if (!child) {
		memset(memory, 7, 100 * PAGE);
		_exit(hmm_mirror_sync(&replica, (unsigned long)memory, 100 * PAGE, 0, NULL) == -ESTALE &&
		      !hmm_mirror_copy(&replica, (unsigned long)memory) ? 0 : 1);
	}
	test_reap(child, 0);
	memory[30 * PAGE] = 1;
	expect(memory, 100, 1);
	child = fork();
	if (!child) {
		pause();
		_exit(0);
	}
	memory[31 * PAGE] = 2;
	expect(memory, 100, 1);
	kill(child, SIGKILL);
	test_reap(child, SIGKILL);
	close_replica();
}

/* What lies on another device comes home first; what is tracked does not go. */
static void from_another_device(void)
{
	char *memory;

	open_replica(64 * BLOCK);
	memory = test_map(1024);
	test_fill(memory, 1024, 1);
	test_out(memory, 1024);
	declare(memory, 1024);
	track(memory, 1024);
	sync_all(memory, 1024);
	check_equal(memory, 1024);
	test_check(memory, 1024, 1);
	test_refused(memory, 1024, HMM_TRACKED);
	/* The other device writes in place. */
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 4 * PAGE, "x", 1), 1);
	CHECK_EQ(memory[4 * PAGE], 'x');
	sync_all(memory, 1024);
	check_equal(memory, 1024);
	CHECK_EQ(hmm_mirror_untrack(&replica, (unsigned long)memory, 1024 * PAGE), 0);
	test_out(memory, 1024);
	close_replica();
}

/* What a device says that it wrote is written, for all who ask. */
static void by_a_device(void)
{
	uint64_t daddrs[64];
	struct hmm_range range;
	struct hmm_dirty *dirty;
	char *memory;

	open_replica(64 * BLOCK);
	memory = test_map(64);
	test_fill(memory, 64, 1);
	range = look_at(memory, 64);
	range.default_flags = VALID;
	test_out(memory, 64);
	CHECK(hmm_range_wait_until_valid(&range, 10000));
	CHECK_EQ(hmm_range_dma_map(&range, mirror.device, daddrs, true), 64);
	test_home(memory, 64);
	begin(memory, 64);
	CHECK_EQ(hmm_dirty_start(hmm, (unsigned long)memory, 64 * PAGE, 0, &dirty), 0);
	/* Until it is watched no more by that range. */
	while (sync_all(memory, 64).written)
		usleep(10000);
	CHECK(hmm_dirty_read(dirty, (unsigned long)memory, 64 * PAGE, HMM_DIRTY_CLEAR, NULL, NULL) >= 0);
	while (hmm_dirty_read(dirty, (unsigned long)memory, 64 * PAGE, HMM_DIRTY_CLEAR, NULL, NULL))
		usleep(10000);
	daddrs[0] = daddrs[63] = 0;
	CHECK_EQ(hmm_range_dma_unmap(&range, mirror.device, daddrs, false), 62);
	CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory, 64 * PAGE, 0, NULL, NULL), 0);
	for (int i = 10; i < 30; i++)
		daddrs[i] = (uint64_t)i << 12;
	CHECK_EQ(hmm_range_dma_unmap(&range, mirror.device, daddrs, true), 20);
	CHECK_EQ(hmm_dirty_read(dirty, (unsigned long)memory, 64 * PAGE, 0, NULL, NULL), 20);
	CHECK_EQ(sync_all(memory, 64).copied, 20);
	check_equal(memory, 64);
	CHECK_EQ(hmm_dirty_stop(dirty), 0);
	end(&range);
	close_replica();
}

/* Room is taken when a range is tracked, and given back. */
static void full(void)
{
	struct hmm_sync_report report;
	char *memory;

	open_replica(4 * BLOCK);
	memory = test_map_huge(4);
	test_fill(memory, 2048, 1);
	declare(memory, 2048);
	track(memory, 1024);
	CHECK_EQ(hmm_mirror_track(&replica, (unsigned long)memory + 2 * BLOCK, 3 * BLOCK, 0), -ENOSPC);
	CHECK(strstr(hmm_last_error(), "KiB"));
	CHECK_EQ(hmm_mirror_track(&replica, (unsigned long)memory, 4 * BLOCK, 0), -EEXIST);
	track(memory + 2 * BLOCK, 1024);
	CHECK_EQ(hmm_mirror_track(&replica, (unsigned long)memory + 4 * BLOCK, PAGE, 0), -ENOSPC);
	report = sync_all(memory + 2 * BLOCK, 1024);
	CHECK_EQ(report.copied, 1024);
	check_equal(memory + 2 * BLOCK, 1024);
	CHECK_EQ(hmm_mirror_sync(&replica, (unsigned long)memory, 2048 * PAGE, 0, NULL), -EINVAL);
	CHECK_EQ(hmm_mirror_untrack(&replica, (unsigned long)memory, 2048 * PAGE), -EINVAL);
	for (int i = 0; i < 20; i++) {
		CHECK_EQ(hmm_mirror_untrack(&replica, (unsigned long)memory, 1024 * PAGE), 0);
		CHECK(!hmm_mirror_copy(&replica, (unsigned long)memory));
		track(memory, 1024);
		/* What was there is gone. */
		test_check_zero(copy_of(memory), 1024);
		sync_all(memory, 1024);
	}
	check_equal(memory, 1024);
	check_equal(memory + 2 * BLOCK, 1024);
	close_replica();
}

/* Two at once: of each range a copy in each. */
static void two_replicas(void)
{
	struct hmm_device *other_device;
	struct hmm_mirror other = { .ops = &tracked_ops };
	unsigned long at;
	char *memory;

	memory = open_and_begin(200);
	at = (unsigned long)memory;
	other_device = test_device("other", 8 * BLOCK);
	other.device = other_device;
	CHECK_EQ(hmm_mirror_register(&other, hmm), 0);
	CHECK_EQ(hmm_mirror_track(&other, at, 200 * PAGE, 0), 0);
	memory[60 * PAGE]++;
	sync_all(memory, 200);
	check_equal(memory, 200);
	CHECK_EQ(hmm_mirror_sync(&other, at, 200 * PAGE, 0, NULL), 200);
	memory[61 * PAGE]++;
	/* What one has copied the other does, too. */
	sync_all(memory, 200);
	CHECK(hmm_mirror_sync(&other, at, 200 * PAGE, 0, NULL) >= 1);
	CHECK(!memcmp(hmm_mirror_copy(&other, at), memory, 200 * PAGE));
	check_equal(memory, 200);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(other_device);
	memory[62 * PAGE]++;
	expect(memory, 200, 1);
	close_replica();
}

#define ROUNDS 100

struct together {
	pthread_barrier_t *begin, *end;
	uint64_t *memory;
};

/* Whoever syncs has what was written before he asked, although another one does so at the same time. */
static void *sync_together(void *argument)
{
	const struct together *together = argument;
	const uint64_t *copy = hmm_mirror_copy(&replica, (unsigned long)together->memory);

	for (uint64_t round = 1; round <= ROUNDS; round++) {
		pthread_barrier_wait(together->begin);
		CHECK(hmm_mirror_sync(&replica, (unsigned long)together->memory, 256 * PAGE, 0, NULL) >= 0);
		for (size_t i = 0; i < 256; i++)
			CHECK_EQ(copy[i * PAGE / sizeof(*copy)], round);
		pthread_barrier_wait(together->end);
	}
	return NULL;
}

static void by_several(void)
{
	pthread_barrier_t start, end;
	struct together together = { .begin = &start, .end = &end };
	pthread_t threads[3];

	together.memory = (uint64_t *)(uintptr_t)open_and_begin(256);
	CHECK_EQ(pthread_barrier_init(&start, NULL, 4) | pthread_barrier_init(&end, NULL, 4), 0);
	for (size_t i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, sync_together, &together), 0);
	for (uint64_t round = 1; round <= ROUNDS; round++) {
		for (size_t i = 0; i < 256; i++)
			together.memory[i * PAGE / sizeof(uint64_t)] = round;
		pthread_barrier_wait(&start);
		pthread_barrier_wait(&end);
	}
	for (size_t i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	pthread_barrier_destroy(&start);
	pthread_barrier_destroy(&end);
	close_replica();
}

/* In the owner, another process. */
static void be_an_owner(int socket)
{
	uint64_t word;
	char *memory;

	open_replica(8 * BLOCK);
	memory = test_map(64);
	test_fill(memory, 64, 1);
	declare(memory, 64);
	test_tell(socket, (uint64_t)(uintptr_t)memory, hmm_export(hmm));
	test_hear(socket, &word, NULL);
	_exit(0);
}

/* Its copy is there still, as it was. */
static void owner_ends(void)
{
	struct hmm_mirror its = { .ops = &tracked_ops };
	int sockets[2], key;
	const uint64_t *copy;
	struct hmm *peer;
	uint64_t at;
	pid_t owner;

	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets), 0);
	owner = fork();
	CHECK(owner >= 0);
	if (!owner)
		be_an_owner(sockets[1]);
	close(sockets[1]);
	/* It has said why, if this engine is not to be had. */
	if (!test_hear(sockets[0], &at, &key))
		exit(77);
	CHECK_EQ(hmm_open_peer(key, NULL, &peer), 0);
	CHECK_EQ(hmm_device_open(peer, "replica", &its.device), 0);
	CHECK_EQ(hmm_mirror_register(&its, peer), 0);
	CHECK_EQ(hmm_mirror_track(&its, at, 64 * PAGE, 0), 0);
	CHECK_EQ(hmm_mirror_sync(&its, at, 64 * PAGE, 0, NULL), 64);
	copy = hmm_mirror_copy(&its, at);
	CHECK(copy);
	test_tell(sockets[0], 1, -1);
	test_reap(owner, 0);
	while (hmm_mirror_sync(&its, at, 64 * PAGE, 0, NULL) != -ESTALE)
		usleep(1000);
	for (size_t i = 0; i < 64; i++)
		CHECK_EQ(copy[i * PAGE / sizeof(*copy)], test_word(i, 0, 1));
	hmm_close(peer);
	close(key);
	close(sockets[0]);
}

/* By another handle, as a driver in another process has it; it goes with that handle. */
static void by_a_driver(void)
{
	struct hmm_mirror its = { .ops = &tracked_ops };
	struct hmm_device *its_device;
	const char *copy;
	struct hmm *peer;
	unsigned long at;
	char *memory;
	int key;

	open_replica(8 * BLOCK);
	memory = test_map(64);
	at = (unsigned long)memory;
	test_fill(memory, 64, 1);
	declare(memory, 64);
	key = hmm_export(hmm);
	CHECK(key >= 0);
	CHECK_EQ(hmm_open_peer(key, NULL, &peer), 0);
	CHECK_EQ(hmm_device_open(peer, "replica", &its_device), 0);
	its.device = its_device;
	CHECK_EQ(hmm_mirror_register(&its, peer), 0);
	CHECK_EQ(hmm_mirror_track(&its, at, 64 * PAGE, 0), 0);
	CHECK_EQ(hmm_mirror_sync(&its, at, 64 * PAGE, 0, NULL), 64);
	copy = hmm_mirror_copy(&its, at);
	CHECK(copy && !memcmp(copy, memory, 64 * PAGE));
	memory[9 * PAGE]++;
	CHECK(hmm_mirror_sync(&its, at, 64 * PAGE, 0, NULL) >= 1);
	CHECK(!memcmp(copy, memory, 64 * PAGE));
	hmm_close(peer);
	test_out(memory, 64);
	close(key);
	close_replica();
}

struct leaver {
	struct hmm_mirror mirror;
	unsigned long at, length;
	atomic_int begun;
	long last;
};

static void *sync_on(void *argument)
{
	struct leaver *leaver = argument;

	do {
		leaver->last = hmm_mirror_sync(&leaver->mirror, leaver->at, leaver->length, 0, NULL);
		atomic_fetch_add(&leaver->begun, 1);
	} while (leaver->last >= 0);
	return NULL;
}

/* In a driver's process, which has another's @key: its mirror, of which nothing is tracked yet. */
static struct leaver *leaver_new(int key, char *memory, size_t pages)
{
	static struct leaver leaver;
	struct hmm_device *device;
	struct hmm *peer;

	CHECK_EQ(hmm_open_peer(key, NULL, &peer), 0);
	CHECK_EQ(hmm_device_open(peer, "replica", &device), 0);
	leaver.mirror.ops = &tracked_ops;
	leaver.mirror.device = device;
	leaver.at = (unsigned long)memory;
	leaver.length = pages * PAGE;
	CHECK_EQ(hmm_mirror_register(&leaver.mirror, peer), 0);
	return &leaver;
}

/* A driver that dies in the middle of it: its copies' room is given back, and nobody waits. */
static void leaving(void)
{
	char *memory;
	int status;

	open_replica(64 * BLOCK);
	memory = test_map(16384);
	test_fill(memory, 16384, 1);
	for (int i = 0; i < 6; i++) {
		int key = hmm_export(hmm);
		pid_t child = fork();

		CHECK(child >= 0);
		if (!child) {
			struct leaver *leaver = leaver_new(key, memory, 16384);
			pthread_t thread;

			/* The one before may not be heard of yet. */
			while (hmm_mirror_track(&leaver->mirror, leaver->at, leaver->length, 0) == -ENOSPC)
				usleep(1000);
			CHECK(!pthread_create(&thread, NULL, sync_on, leaver));
			usleep(1000U << i);
			_exit(0);
		}
		close(key);
		CHECK(waitpid(child, &status, 0) == child && !status);
	}
	/* Whatever its agent was told before. */
	while (hmm_mirror_track(&replica, (unsigned long)memory, 16384 * PAGE, 0) == -ENOSPC)
		usleep(1000);
	sync_all(memory, 16384);
	check_equal(memory, 16384);
	close_replica();
}

/* Until whoever has the other end of @fd is gone, and what was seen to then. */
static void await_end(int fd, int more_ms)
{
	char byte;

	while (read(fd, &byte, 1) > 0)
		;
	usleep((useconds_t)more_ms * 1000);
}

/*
 * The same while the owner can't be stopped, being in vfork(): what was begun for that sync must not stop it when
 * nobody waits for it any more.
 */
static void leaving_one_that_cannot_be_stopped(void)
{
	int go[2], gone[2], key;
	pid_t driver, child;
	int status, later;
	char *memory;

	memory = open_and_begin(64);
	CHECK(!pipe(go) && !pipe(gone));
	key = hmm_export(hmm);
	driver = fork();
	CHECK(driver >= 0);
	if (!driver) {
		struct leaver *leaver = leaver_new(key, memory, 64);
		pthread_t thread;
		char byte;

		CHECK_EQ(hmm_mirror_track(&leaver->mirror, leaver->at, leaver->length, 0), 0);
		CHECK_EQ(read(go[0], &byte, 1), 1);
		CHECK(!pthread_create(&thread, NULL, sync_on, leaver));
		usleep((useconds_t)test_scaled(100) * 1000);
		CHECK(leaver->last >= 0);
		_exit(0);
	}
	close(key);
	close(gone[1]);
	later = test_scaled(100);
	child = vfork();
	if (!child) {
		if (write(go[1], "x", 1) != 1)
			_exit(1);
		await_end(gone[0], later);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && !status);
	CHECK(waitpid(driver, &status, 0) == driver && !status);
	close(gone[0]);
	close(go[0]);
	close(go[1]);
	memory[9 * PAGE]++;
	sync_all(memory, 64);
	check_equal(memory, 64);
	close_replica();
}

static void refusals(void)
{
	struct hmm_range range, its_range = prepare(64);
	static const struct hmm_mirror_ops unknown = { .size = sizeof(unknown), .flags = 2 };
	static struct hmm_mirror_ops called;
	struct hmm_mirror other = { .ops = &unknown };
	struct hmm_migrate_report report;
	struct hmm_window *window;
	unsigned long at;
	char *memory, byte = 0;

	memory = open_and_begin(64);
	at = (unsigned long)memory;
	other.device = replica.device;
	CHECK_EQ(hmm_mirror_register(&other, hmm), -EINVAL);
	called = tracked_ops;
	called.quiesce = (int (*)(struct hmm_mirror *, const struct hmm_update *))refusals;
	other.ops = &called;
	CHECK_EQ(hmm_mirror_register(&other, hmm), -EINVAL);

	CHECK_EQ(hmm_mirror_track(NULL, at, PAGE, 0), -EINVAL);
	CHECK_EQ(hmm_mirror_track(&replica, at, PAGE, 1), -EINVAL);
	CHECK_EQ(hmm_mirror_track(&replica, at + 1, PAGE, 0), -EINVAL);
	CHECK_EQ(hmm_mirror_track(&replica, at, 0, 0), -EINVAL);
	CHECK_EQ(hmm_mirror_track(&replica, -PAGE, 2 * PAGE, 0), -EINVAL);
	CHECK_EQ(hmm_mirror_track(&replica, at, PAGE, 0), -EEXIST);
	CHECK_EQ(hmm_mirror_track(&mirror, at, PAGE, 0), -EOPNOTSUPP);
	CHECK_EQ(hmm_mirror_track(&replica, 0, 1UL << 46, 0), -EDQUOT);
	CHECK_EQ(hmm_mirror_sync(NULL, at, PAGE, 0, NULL), -EINVAL);
	CHECK_EQ(hmm_mirror_sync(&replica, at, PAGE, 1, NULL), -EINVAL);
	CHECK_EQ(hmm_mirror_sync(&replica, at + 1, PAGE, 0, NULL), -EINVAL);
	CHECK_EQ(hmm_mirror_sync(&replica, at, 65 * PAGE, 0, NULL), -EINVAL);
	CHECK_EQ(hmm_mirror_sync(&replica, at - PAGE, PAGE, 0, NULL), -EINVAL);
	CHECK_EQ(hmm_mirror_sync(&mirror, at, PAGE, 0, NULL), -EOPNOTSUPP);
	CHECK_EQ(hmm_mirror_untrack(&replica, at, PAGE), -EINVAL);
	CHECK_EQ(hmm_mirror_untrack(&mirror, at, PAGE), -EOPNOTSUPP);
	CHECK(!hmm_mirror_copy(&replica, at - 1));
	CHECK(!hmm_mirror_copy(&replica, at + 64 * PAGE));
	CHECK(!hmm_mirror_copy(&mirror, at));
	CHECK(!hmm_mirror_copy(NULL, at));

	/* It takes no faults, and no page. */
	CHECK_EQ(hmm_migrate(&replica, at, PAGE, HMM_DEVICE, 0, NULL, &report), -EOPNOTSUPP);
	CHECK(strstr(hmm_last_error(), "tracked"));
	CHECK_EQ(hmm_device_read(&replica, at, &byte, 1), -EOPNOTSUPP);
	CHECK_EQ(hmm_device_write(&replica, at, &byte, 1), -EOPNOTSUPP);
	CHECK_EQ(hmm_window_map(&replica, at, PAGE, HMM_WINDOW_OFFSET, &window), -EOPNOTSUPP);
	CHECK_EQ(hmm_share(&replica, test_map_huge(1), BLOCK), -EOPNOTSUPP);
	CHECK_EQ(hmm_advise(hmm, at, 64 * PAGE, HMM_ADVISE_PIN,
			    &(struct hmm_advise_options){ .size = sizeof(struct hmm_advise_options), .mirror = &replica }),
		 -EOPNOTSUPP);
	/* Nor is it told of pages, whether or not another mirror's range has put them into the table. */
	range = look_at(memory, 64);
	CHECK_EQ(hmm_range_register(&its_range, &replica, at, at + 64 * PAGE, 12), 0);
	CHECK_EQ(hmm_range_snapshot(&its_range), -EOPNOTSUPP);
	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), 64);
	CHECK_EQ(hmm_range_snapshot(&its_range), -EOPNOTSUPP);
	CHECK_EQ(hmm_range_fault(&its_range, true), -EOPNOTSUPP);
	end(&its_range);
	end(&range);
	/* Nothing of that changed anything. */
	expect(memory, 64, 0);
	memory[7 * PAGE]++;
	expect(memory, 64, 1);
	close_replica();
}

/* ---- everything at once -------------------------------------------------------------------- */

static struct {
	char *memory;
	size_t pages;
} crowd;

static void crowd_begin(char *memory, size_t pages)
{
	crowd.memory = memory;
	crowd.pages = pages;
	track(memory, pages);
}

static void crowd_update(void)
{
	sync_all(crowd.memory, crowd.pages);
}

static void crowd_still(void)
{
	struct hmm_sync_report report;

	/* But for zeros that comparing was the first to read. */
	sync_all(crowd.memory, crowd.pages);
	report = sync_all(crowd.memory, crowd.pages);
	CHECK_EQ(report.written - report.presumed, 0);
	check_equal(crowd.memory, crowd.pages);
}

static const char *crowd_copy(void)
{
	return copy_of(crowd.memory);
}

static void many_writers(void)
{
	static const struct replica copies = { crowd_begin, crowd_update, crowd_still, crowd_copy };

	open_replica(64 * BLOCK);
	crowd_run(&copies, 8);
	close_replica();
}

int main(int argc, char **argv)
{
	static const struct test_case cases[] = {
		{ "exactly", exactly, false },
		{ "scattered", scattered, false },
		{ "over-the-edge", over_the_edge, false },
		{ "over-several-looks", over_several_looks, false },
		{ "huge", huge, false },
		{ "never-touched", never_touched, false },
		{ "discarded", discarded, false },
		{ "mapped-anew", mapped_anew, false },
		{ "remapped", remapped, false },
		{ "unknowable", unknowable, false },
		{ "unreadable", unreadable, false },
		{ "forked", forked, false },
		{ "from-another-device", from_another_device, false },
		{ "by-a-device", by_a_device, false },
		{ "full", full, false },
		{ "two-replicas", two_replicas, false },
		{ "by-a-driver", by_a_driver, false },
		{ "owner-ends", owner_ends, false }, { "by-several", by_several, false },
		{ "leaving", leaving, false },
		{ "leaving-one-that-cannot-be-stopped", leaving_one_that_cannot_be_stopped, false },
		{ "refusals", refusals, false },
		{ "many-writers", many_writers, false },
		{ NULL, NULL, false },
	};

	return test_main(argc, argv, cases);
}
