/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * exclusive.c - pages that a device has to itself: what takes them back, what
 * does not, and that nothing comes between a device's read and its write.
 */
#include "driver.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#define DEVICE_MEMORY (64UL << 20)
#define PAGES 64UL
#define TOLD_MAX 64U

/* ---- the mirror that is told ---------------------------------------------------- */

static struct hmm_mirror own, other;
static struct hmm_update told[TOLD_MAX];
static _Atomic unsigned int told_count;

static int note(struct hmm_mirror *me, const struct hmm_update *update)
{
	/* Before anybody is told the mark is gone. */
	CHECK(!hmm_device_exclusive_check(me, update->start, PAGE));
	/* One thread runs the callbacks; who sees the count sees what it counts. */
	told[atomic_load(&told_count) % TOLD_MAX] = *update;
	atomic_fetch_add(&told_count, 1);
	return 0;
}

static const struct hmm_mirror_ops noting = { .size = sizeof(noting),
					      .sync_cpu_device_pagetables = note };
static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

static void open_own(void)
{
	test_open(0, DEVICE_MEMORY);
	own.device = test_device("own", DEVICE_MEMORY);
	own.ops = &noting;
	CHECK_EQ(hmm_mirror_register(&own, hmm), 0);
}

static void close_own(void)
{
	CHECK_EQ(hmm_mirror_unregister(&own), 0);
	hmm_device_put(own.device);
	test_close();
}

static char *begin_all(size_t pages, uint64_t seed)
{
	char *memory = test_map(pages);

	test_fill(memory, pages, seed);
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)memory, pages * PAGE, NULL), pages);
	CHECK(hmm_device_exclusive_check(&own, (unsigned long)memory, pages * PAGE));
	atomic_store(&told_count, 0);
	return memory;
}

static bool marked(const char *page)
{
	return hmm_device_exclusive_check(&own, (unsigned long)page, PAGE);
}

static size_t count_marked(const char *memory, size_t pages)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++)
		n += marked(memory + i * PAGE);
	return n;
}

/* Told of this, last. */
static void check_told(const char *page, size_t pages, enum hmm_update_reason reason)
{
	unsigned int n = atomic_load(&told_count);

	CHECK(n > 0);
	CHECK_EQ(told[(n - 1) % TOLD_MAX].reason, reason);
	CHECK_EQ(told[(n - 1) % TOLD_MAX].start, page);
	CHECK_EQ(told[(n - 1) % TOLD_MAX].end, page + pages * PAGE);
}

/* ---- calls ------------------------------------------------------------------------ */

static void arguments(void)
{
	struct hmm_mirror nobody = { 0 };
	unsigned long addr;
	char *memory;

	CHECK_EQ(hmm_device_exclusive_begin(NULL, 0, PAGE, NULL), -EINVAL);
	CHECK_EQ(hmm_device_exclusive_begin(&nobody, 0, PAGE, NULL), -EINVAL);
	CHECK_EQ(hmm_device_exclusive_end(NULL, 0, PAGE), -EINVAL);
	CHECK_EQ(hmm_device_exclusive_end(&nobody, 0, PAGE), -EINVAL);
	CHECK(!hmm_device_exclusive_check(NULL, 0, PAGE));
	CHECK(!hmm_device_exclusive_check(&nobody, 0, PAGE));
	open_own();
	memory = begin_all(2, 1);
	addr = (unsigned long)memory;
	for (int end = 0; end < 2; end++) {
		static const struct { unsigned long shift, length; } bad[] = {
			{ 0, 0 }, { 1, PAGE }, { 0, PAGE - 1 }, { 0, 1UL << 60 }, { 0, -PAGE },
		};

		for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
			CHECK_EQ(end ? hmm_device_exclusive_end(&own, addr + bad[i].shift, bad[i].length)
				     : hmm_device_exclusive_begin(&own, addr + bad[i].shift, bad[i].length, NULL),
				 -EINVAL);
			CHECK(strlen(hmm_last_error()) > 0);
			CHECK(!hmm_device_exclusive_check(&own, addr + bad[i].shift, bad[i].length));
		}
	}
	CHECK_EQ(count_marked(memory, 2), 2);
	/* Another mirror has none of it, and takes none away. */
	CHECK(!hmm_device_exclusive_check(&mirror, addr, PAGE));
	CHECK_EQ(hmm_device_exclusive_end(&mirror, addr, 2 * PAGE), 0);
	CHECK_EQ(count_marked(memory, 2), 2);
	close_own();
	CHECK_EQ(hmm_device_exclusive_begin(&own, addr, PAGE, NULL), -EINVAL);
	test_check(memory, 2, 1);
}

/* The device's own accesses are no touch; the end leaves the pages where they are. */
static void begin_and_end(void)
{
	uint8_t results[PAGES];
	uint64_t word = 0;
	char *memory;

	open_own();
	memory = test_map(PAGES);
	test_fill(memory, PAGES, 2);
	CHECK_EQ(hmm_migrate(&own, (unsigned long)memory, 8 * PAGE, HMM_DEVICE, 0, NULL, NULL), 8);
	CHECK_EQ(count_marked(memory, PAGES), 0);
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)memory, PAGES * PAGE, results), PAGES);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(results[i], i < 8 ? HMM_ALREADY : HMM_MIGRATED);
	CHECK_EQ(count_marked(memory, PAGES), PAGES);
	CHECK(hmm_mirror_lookup(&own, (unsigned long)memory) & HMM_ENTRY_DEVICE);
	atomic_store(&told_count, 0);
	CHECK_EQ(hmm_device_read(&own, (unsigned long)memory + 9 * PAGE, &word, 8), 8);
	CHECK_EQ(word, test_word(9, 0, 2));
	CHECK_EQ(hmm_device_write(&own, (unsigned long)memory + 9 * PAGE, &word, 8), 8);
	CHECK_EQ(hmm_migrate(&own, (unsigned long)memory, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
	CHECK_EQ(count_marked(memory, PAGES), PAGES);
	CHECK_EQ(atomic_load(&told_count), 0);
	CHECK_EQ(hmm_device_exclusive_end(&own, (unsigned long)memory + PAGE, 3 * PAGE), 3);
	CHECK_EQ(count_marked(memory, PAGES), PAGES - 3);
	CHECK_EQ(hmm_device_exclusive_end(&own, (unsigned long)memory, PAGES * PAGE), PAGES - 3);
	CHECK_EQ(hmm_device_exclusive_end(&own, (unsigned long)memory, PAGES * PAGE), 0);
	CHECK_EQ(count_marked(memory, PAGES), 0);
	for (size_t i = 0; i < PAGES; i++)
		CHECK(hmm_mirror_lookup(&own, (unsigned long)memory + i * PAGE) & HMM_ENTRY_DEVICE);
	CHECK_EQ(atomic_load(&told_count), 0);
	test_check(memory, PAGES, 2);
	close_own();
}

/* More than one request's worth, in huge pages. */
static void large(void)
{
	const size_t blocks = 40;
	char *memory = test_map_huge(blocks);

	test_fill(memory, blocks * 512, 3);
	test_open(0, blocks * BLOCK + DEVICE_MEMORY);
	own.device = test_device("own", blocks * BLOCK + DEVICE_MEMORY);
	own.ops = &noting;
	CHECK_EQ(hmm_mirror_register(&own, hmm), 0);
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)memory, blocks * BLOCK, NULL), blocks * 512);
	CHECK(hmm_device_exclusive_check(&own, (unsigned long)memory, blocks * BLOCK));
	/* A walk brings home what it touches and no more. */
	for (size_t i = 0; i < 600; i++) {
		CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 3));
		CHECK(!marked(memory + i * PAGE));
		CHECK(marked(memory + (i + 1) * PAGE));
	}
	CHECK_EQ(count_marked(memory, blocks * 512), blocks * 512 - 600);
	close_own();
	test_check(memory, blocks * 512, 3);
}

/* Never written, and unmapped: the device gets zeros of the one, and nothing of the other. */
static void holes(void)
{
	uint8_t results[8];
	char *memory;

	open_own();
	memory = test_map_apart(8);
	CHECK_EQ(munmap(memory + 6 * PAGE, 2 * PAGE), 0);
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)memory, 8 * PAGE, results), 6);
	CHECK_EQ(count_marked(memory, 8), 6);
	CHECK_EQ(results[6], HMM_HOLE);
	CHECK_EQ(results[7], HMM_HOLE);
	test_check_zero(memory, 6);
	CHECK_EQ(count_marked(memory, 8), 0);
	close_own();
}

/* What cannot be had for itself says why. */
static void refused(void)
{
	int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	uint8_t results[PAGES];
	void *coherent;
	char *memory, *mapped;

	open_own();
	memory = test_map(PAGES);
	test_fill(memory, PAGES, 4);
	CHECK_EQ(mprotect(memory, 4 * PAGE, PROT_READ), 0);
	/* On the device before it became read-only. */
	CHECK_EQ(hmm_migrate(&own, (unsigned long)memory + 4 * PAGE, 4 * PAGE, HMM_DEVICE, 0, NULL, NULL), 4);
	CHECK_EQ(mprotect(memory + 4 * PAGE, 4 * PAGE, PROT_READ), 0);
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)memory, PAGES * PAGE, results), PAGES - 8);
	for (size_t i = 0; i < PAGES; i++) {
		CHECK_EQ(results[i], i < 8 ? HMM_READONLY : HMM_MIGRATED);
		CHECK_EQ(marked(memory + i * PAGE), i >= 8);
	}
	mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	CHECK(mapped != MAP_FAILED);
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)mapped, PAGE, results), 0);
	CHECK_EQ(results[0], HMM_FILE);
	CHECK_EQ(hmm_alloc(&own, BLOCK, &coherent), 0);
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)coherent, 2 * PAGE, results), 0);
	CHECK_EQ(results[0], HMM_SHARED_MEMORY);
	CHECK_EQ(results[1], HMM_SHARED_MEMORY);
	CHECK(hmm_mirror_lookup(&own, (unsigned long)coherent) & HMM_ENTRY_COHERENT);
	CHECK(!marked(coherent));
	CHECK_EQ(hmm_free(&own, coherent, BLOCK), 0);
	test_check(memory, PAGES, 4);
	close_own();
	close(file);
}

static int ask(struct hmm_mirror *me, const struct hmm_update *update)
{
	if (!atomic_fetch_add(&told_count, 1)) {
		CHECK_EQ(hmm_device_exclusive_begin(me, update->start, PAGE, NULL), -EDEADLK);
		CHECK_EQ(hmm_device_exclusive_end(me, update->start, PAGE), 0);
	}
	return 0;
}

static const struct hmm_mirror_ops asking = { .size = sizeof(asking),
					      .sync_cpu_device_pagetables = ask };

static void inside(void)
{
	char *memory = test_map(1);

	test_fill(memory, 1, 5);
	test_open(0, DEVICE_MEMORY);
	own.device = test_device("own", DEVICE_MEMORY);
	own.ops = &asking;
	CHECK_EQ(hmm_mirror_register(&own, hmm), 0);
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)memory, PAGE, NULL), 1);
	CHECK(atomic_load(&told_count) > 0);
	test_check(memory, 1, 5);
	close_own();
}

/* ---- what takes a page back ------------------------------------------------------- */

static void touched(bool write)
{
	char *memory, *page;

	open_own();
	memory = begin_all(PAGES, 6);
	page = memory + 5 * PAGE;
	if (write)
		*(volatile uint64_t *)page = test_word(5, 0, 6);
	else
		CHECK_EQ(*(volatile uint64_t *)page, test_word(5, 0, 6));
	CHECK_EQ(atomic_load(&told_count), 1);
	check_told(page, 1, HMM_REASON_EXCLUSIVE);
	/* That page alone, and as the CPU's own: its next write tells nobody. */
	CHECK_EQ(hmm_mirror_lookup(&own, (unsigned long)page), 0);
	CHECK_EQ(count_marked(memory, PAGES), PAGES - 1);
	*(volatile uint64_t *)page = test_word(5, 0, 6);
	CHECK_EQ(atomic_load(&told_count), 1);
	test_check(memory, PAGES, 6);
	CHECK_EQ(count_marked(memory, PAGES), 0);
	CHECK_EQ(atomic_load(&told_count), PAGES);
	close_own();
}

static void read_back(void)
{
	touched(false);
}

static void written_back(void)
{
	touched(true);
}

/* A walk over what is not marked stops in front of what is. */
static void walked_up_to(void)
{
	char *memory;

	open_own();
	memory = test_map(PAGES);
	test_fill(memory, PAGES, 7);
	for (int round = 0; round < 4; round++) {
		CHECK_EQ(hmm_migrate(&own, (unsigned long)memory, 32 * PAGE, HMM_DEVICE, 0, NULL, NULL), 32);
		CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)memory + 32 * PAGE, 32 * PAGE, NULL), 32);
		test_check(memory, 32, 7);
		CHECK_EQ(count_marked(memory + 32 * PAGE, 32), 32);
	}
	test_check(memory, PAGES, 7);
	close_own();
}

/* Pages that both sides read belong to the device alone afterwards. */
static void shared_before(void)
{
	char *memory;

	open_own();
	memory = test_map(PAGES);
	test_fill(memory, PAGES, 8);
	CHECK_EQ(hmm_migrate(&own, (unsigned long)memory, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
	test_check(memory, PAGES, 8);
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)memory, PAGES * PAGE, NULL), PAGES);
	for (size_t i = 0; i < PAGES; i++)
		CHECK(hmm_mirror_lookup(&own, (unsigned long)memory + i * PAGE) & HMM_ENTRY_WRITE);
	CHECK_EQ(count_marked(memory, PAGES), PAGES);
	test_check(memory, PAGES, 8);
	close_own();
}

static void by_another_device(void)
{
	uint64_t word = 0;
	char *memory;

	open_own();
	other.device = test_device("other", DEVICE_MEMORY);
	test_mirror(&other, other.device);
	memory = begin_all(PAGES, 9);
	CHECK_EQ(hmm_device_read(&other, (unsigned long)memory + 3 * PAGE, &word, 8), 8);
	CHECK_EQ(word, test_word(3, 0, 9));
	check_told(memory + 3 * PAGE, 1, HMM_REASON_EXCLUSIVE);
	word = test_word(4, 0, 9);
	CHECK_EQ(hmm_device_write(&other, (unsigned long)memory + 4 * PAGE, &word, 8), 8);
	check_told(memory + 4 * PAGE, 1, HMM_REASON_EXCLUSIVE);
	CHECK_EQ(atomic_load(&told_count), 2);
	CHECK_EQ(count_marked(memory, PAGES), PAGES - 2);
	/* It takes the block. */
	CHECK_EQ(hmm_device_exclusive_begin(&other, (unsigned long)memory + 8 * PAGE, PAGE, NULL), 1);
	CHECK(hmm_device_exclusive_check(&other, (unsigned long)memory + 8 * PAGE, PAGE));
	CHECK(!marked(memory + 8 * PAGE));
	CHECK(atomic_load(&told_count) > 2);
	test_check(memory, PAGES, 9);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(other.device);
	close_own();
}

/* Whatever changes the mapping or moves the page home. */
static void by_changes(void)
{
	char *memory, *moved;

	open_own();
	memory = begin_all(PAGES, 10);
	CHECK_EQ(munmap(memory, 2 * PAGE), 0);
	CHECK_EQ(madvise(memory + 2 * PAGE, 2 * PAGE, MADV_DONTNEED), 0);
	moved = mremap(memory + 4 * PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, test_map(2));
	CHECK(moved != MAP_FAILED);
	CHECK_EQ(hmm_migrate(&own, (unsigned long)memory + 6 * PAGE, 2 * PAGE, HMM_SYSTEM, 0, NULL, NULL), 2);
	CHECK_EQ(hmm_exclude(hmm, (unsigned long)memory + 8 * PAGE, PAGE), 0);
	CHECK_EQ(count_marked(memory, 9), 0);
	CHECK_EQ(count_marked(moved, 2), 0);
	CHECK_EQ(count_marked(memory + 9 * PAGE, PAGES - 9), PAGES - 9);
	test_check_zero(memory + 2 * PAGE, 2);
	for (size_t i = 0; i < 2; i++)
		CHECK_EQ(*(volatile uint64_t *)(moved + i * PAGE), test_word(4 + i, 0, 10));
	for (size_t i = 6; i < PAGES; i++)
		CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 10));
	close_own();
}

static void protected(void)
{
	uint64_t word = 1;
	char *memory;

	open_own();
	memory = begin_all(4, 11);
	CHECK_EQ(syscall(SYS_mprotect, memory, 2 * PAGE, PROT_READ), 0);
	/* By itself: no event tells of it, and hmmd sees it when it looks. */
	CHECK_EQ(hmm_device_write(&own, (unsigned long)memory, &word, 8), -EPERM);
	CHECK_EQ(*(volatile uint64_t *)memory, test_word(0, 0, 11));
	CHECK_EQ(count_marked(memory, 4), 3);
	CHECK_EQ(mprotect(memory, 2 * PAGE, PROT_READ | PROT_WRITE), 0);
	CHECK_EQ(count_marked(memory, 4), 3);
	/* Through the library devices follow. */
	CHECK_EQ(mprotect(memory + PAGE, PAGE, PROT_READ), 0);
	CHECK_EQ(count_marked(memory, 4), 2);
	CHECK_EQ(mprotect(memory + PAGE, PAGE, PROT_READ | PROT_WRITE), 0);
	test_check(memory, 4, 11);
	close_own();
}

/* fork() brings all home first; a raw clone gets a copy and the page stays the device's. */
static void forked(void)
{
	char *memory;
	pid_t child;

	open_own();
	memory = begin_all(PAGES, 12);
	child = fork();
	if (!child) {
		test_check(memory, PAGES, 12);
		_exit(0);
	}
	CHECK_EQ(count_marked(memory, PAGES), 0);
	test_reap(child, 0);
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)memory, PAGES * PAGE, NULL), PAGES);
	test_check(memory, PAGES, 12);
	close_own();
}

static void cloned(void)
{
	uint64_t word;
	char *memory;
	pid_t child;

	open_own();
	if (!(hmm_features(hmm) & HMM_HAS_EVENT_FORK))
		test_skip("raw forks are not seen here");
	memory = begin_all(PAGES, 13);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		for (size_t i = 0; i < PAGES; i++)
			if (*(volatile uint64_t *)(memory + i * PAGE) != test_word(i, 0, 13))
				_exit(1);
		_exit(0);
	}
	word = 1;
	CHECK_EQ(hmm_device_write(&own, (unsigned long)memory + PAGE + 8, &word, 8), 8);
	test_reap(child, 0);
	CHECK_EQ(*(volatile uint64_t *)(memory + PAGE + 8), 1);
	close_own();
}

/* A child lives that shares the pages: the owner gets its own first, and nobody sees what the device writes but the owner. */
static void shared_with_a_child(void)
{
	char *memory, byte;
	int go[2], gone[2];
	pid_t child;

	open_own();
	memory = test_map(PAGES);
	test_fill(memory, PAGES, 15);
	CHECK_EQ(pipe(go), 0);
	CHECK_EQ(pipe(gone), 0);
	child = fork();
	if (!child) {
		CHECK_EQ(read(go[0], &byte, 1), 1);
		test_check(memory, PAGES, 15);
		test_fill(memory, PAGES, 16);
		CHECK_EQ(write(gone[1], &byte, 1), 1);
		CHECK_EQ(read(go[0], &byte, 1), 1);
		test_check(memory, PAGES, 16);
		_exit(0);
	}
	CHECK_EQ(hmm_device_exclusive_begin(&own, (unsigned long)memory, PAGES * PAGE, NULL), PAGES);
	for (size_t i = 0; i < PAGES; i++) {
		uint64_t word = test_word(i, 0, 17);

		CHECK_EQ(hmm_device_write(&own, (unsigned long)memory + i * PAGE, &word, 8), 8);
	}
	CHECK_EQ(write(go[1], "r", 1), 1);
	CHECK_EQ(read(gone[0], &byte, 1), 1);
	/* The child has read and written all of it, and that took nothing back. */
	CHECK_EQ(count_marked(memory, PAGES), PAGES);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 17));
	CHECK_EQ(count_marked(memory, PAGES), 0);
	CHECK_EQ(write(go[1], "e", 1), 1);
	test_reap(child, 0);
	close_own();
}

/* What a driver that died had for itself is not the next one's. */
static void orphaned_driver(void)
{
	unsigned long address = test_driver_open(&quiet);

	CHECK_EQ(hmm_device_exclusive_begin(&mirror, address, 4 * PAGE, NULL), 4);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	raise(SIGKILL);
}

static void orphaned(void)
{
	uint64_t entry = HMM_ENTRY_EXCLUSIVE, word;
	struct hmm_mirror next = { 0 };
	char *memory;
	int socket;
	pid_t driver = test_driver_start("orphaned", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map(4);
	test_fill(memory, 4, 14);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	test_reap(driver, SIGKILL);
	next.ops = &quiet;
	next.device = mirror.device;
	CHECK_EQ(hmm_mirror_register(&next, hmm), 0);
	/* hmmd hears of the death a moment later. */
	while (entry & HMM_ENTRY_EXCLUSIVE) {
		usleep(1000);
		entry = hmm_mirror_lookup(&next, (unsigned long)memory);
	}
	test_check(memory, 4, 14);
	CHECK_EQ(hmm_mirror_unregister(&next), 0);
	test_close();
}

/* ---- nothing comes between -------------------------------------------------------- */

/* Of either side, at least. They go on until they have met, and the driver no further than this. */
#define INCREMENTS 100000U
#define MOST (1000 * INCREMENTS)
#define BURST 64U

static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;

static int wait_for_device(struct hmm_mirror *me, const struct hmm_update *update)
{
	pthread_mutex_lock(&device_lock);
	pthread_mutex_unlock(&device_lock);
	return 0;
}

static const struct hmm_mirror_ops locking = { .size = sizeof(locking),
					       .sync_cpu_device_pagetables = wait_for_device };

static volatile uint64_t *driver_window(const struct hmm_mirror_ops *operations, struct hmm_window **window,
					unsigned long *address)
{
	*address = test_driver_open(operations);
	CHECK_EQ(hmm_window_map(&mirror, *address, 4 * PAGE, HMM_WINDOW_OFFSET, window), 0);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	return hmm_window_ptr(*window, *address);
}

static bool is_enough(unsigned int done, unsigned int lost)
{
	return done >= INCREMENTS && (lost || done >= MOST);
}

static void driver_close(struct hmm_window *window, unsigned int done, unsigned int lost)
{
	/* Else the two sides never met. */
	CHECK(lost > 0);
	test_tell(TEST_DRIVER_SOCKET, done, -1);
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

/* Long enough for the CPU to get in between, if it could. */
static void add_slowly(volatile uint64_t *counter)
{
	uint64_t seen = *counter;

	for (volatile int i = 0; i < 1000; i++)
		;
	*counter = seen + 1;
}

/*
 * The device's increments are a load and a store, with nothing but the protocol to keep
 * the CPU out: the page that it has to itself is not taken while it holds the lock.
 */
static void counted_plainly_driver(void)
{
	struct hmm_window *window;
	unsigned long address;
	volatile uint64_t *counter = driver_window(&locking, &window, &address);
	unsigned int done = 0, lost = 0;

	while (!is_enough(done, lost)) {
		if (hmm_device_exclusive_begin(&mirror, address, PAGE, NULL) != 1)
			continue;
		/* Mapped here before the lock is held: under it nothing may wait for hmmd. */
		(void)counter[1];
		counter[1] = 0;
		for (unsigned int i = 0; i < BURST; i++) {
			pthread_mutex_lock(&device_lock);
			if (hmm_device_exclusive_check(&mirror, address, PAGE)) {
				add_slowly(counter);
				done++;
			} else {
				i = BURST;
				lost++;
			}
			pthread_mutex_unlock(&device_lock);
		}
	}
	driver_close(window, done, lost);
}

/* Atomic operations need no lock: a page that leaves takes none away and gives none twice. */
static void counted_driver(void)
{
	struct hmm_window *window;
	unsigned long address;
	volatile uint64_t *counter = driver_window(&quiet, &window, &address);
	unsigned int done = 0, lost = 0;

	while (!is_enough(done, lost)) {
		hmm_device_exclusive_begin(&mirror, address, PAGE, NULL);
		for (unsigned int i = 0; i < BURST; i++, done++)
			__atomic_fetch_add(&counter[0], 1, __ATOMIC_SEQ_CST);
		lost += !hmm_device_exclusive_check(&mirror, address, PAGE);
	}
	driver_close(window, done, lost);
}

static void count_together(const char *name)
{
	uint64_t *counter, word, done = 0;
	int socket;
	pid_t driver = test_driver_start(name, &socket);
	struct pollfd end = { .events = POLLIN };

	test_open(0, DEVICE_MEMORY);
	counter = (uint64_t *)test_map(4);
	counter[0] = 0;
	test_invite(socket, counter);
	CHECK(test_hear(socket, &word, NULL));
	end.fd = socket;
	/* Until the driver has done its part, which it has not before this one came between. */
	while (done < INCREMENTS || !poll(&end, 1, 0)) {
		for (unsigned int i = 0; i < BURST; i++, done++)
			__atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
		/* So that the driver is in the middle of something most times. */
		usleep(400);
	}
	CHECK(test_hear(socket, &word, NULL));
	test_reap(driver, 0);
	CHECK_EQ(__atomic_load_n(counter, __ATOMIC_SEQ_CST), done + word);
	test_close();
}

static void counted(void)
{
	count_together("counted");
}

static void counted_plainly(void)
{
	count_together("counted-plainly");
}

static const struct test_case cases[] = {
	{ "arguments", arguments, false }, { "begin-and-end", begin_and_end, false }, { "large", large, false },
	{ "holes", holes, false }, { "refused", refused, false }, { "inside", inside, false },
	{ "read-back", read_back, false }, { "written-back", written_back, false },
	{ "walked-up-to", walked_up_to, false }, { "shared-before", shared_before, false },
	{ "by-another-device", by_another_device, false }, { "by-changes", by_changes, false },
	{ "protected", protected, false }, { "forked", forked, false }, { "cloned", cloned, false },
	{ "shared-with-a-child", shared_with_a_child, false },
	{ "orphaned", orphaned, false }, { "counted", counted, false },
	{ "counted-plainly", counted_plainly, false }, { NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "orphaned", orphaned_driver, false }, { "counted", counted_driver, false },
	{ "counted-plainly", counted_plainly_driver, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
