/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * events.c - what a program is told of its pages: a story that it makes itself, event
 * by event; what does not fit; and every way to ask wrongly.
 */
#include "driver.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define DEVICE_MEMORY (64UL << 20)
#define MASK(kind) (1ULL << (kind))

static struct hmm_events *events;
/* Whose events they are: NULL when it is registered on another handle than the one that listens. */
static struct hmm_mirror *expected_mirror = &mirror;

static void open_events(uint64_t mask, uint32_t entries)
{
	struct hmm_event_options options = { .size = sizeof(options), .mask = mask, .entries = entries };

	CHECK_EQ(hmm_event_open(hmm, &options, &events), 0);
}

static bool is_readable(void)
{
	struct pollfd poll_fd = { .fd = hmm_event_fd(events), .events = POLLIN };

	CHECK(poll_fd.fd >= 0);
	return poll(&poll_fd, 1, 0) == 1;
}

static void wait_readable(void)
{
	struct pollfd poll_fd = { .fd = hmm_event_fd(events), .events = POLLIN };

	CHECK_EQ(poll(&poll_fd, 1, test_scaled(30000)), 1);
}

/* The next one, whenever it comes. */
static struct hmm_event next_event(void)
{
	struct hmm_event event;
	int n;

	while ((n = hmm_event_read(events, &event, 1)) == 0)
		wait_readable();
	CHECK_EQ(n, 1);
	return event;
}

static void expect(enum hmm_event_kind kind, int reason, int error, const void *start, size_t range_pages, size_t pages)
{
	static uint64_t before;
	struct hmm_event event = next_event();

	if (event.kind != kind || event.reason != (uint32_t)reason || event.error != error ||
	    event.start != (unsigned long)start || event.end != event.start + range_pages * PAGE ||
	    event.pages != pages)
		FAIL("event %u, reason %u, error %d, %#lx-%#lx, %lu pages instead of %d, %d, %d, %#lx-%#lx, %zu", event.kind,
		     event.reason, event.error, event.start, event.end, event.pages, kind, reason, error,
		     (unsigned long)start, (unsigned long)start + range_pages * PAGE, pages);
	CHECK(event.time >= before);
	CHECK_EQ(event.reserved, 0);
	before = event.time;
	if (kind != HMM_EVENT_REVOKED && kind != HMM_EVENT_INVALIDATE) {
		CHECK(event.mirror == expected_mirror);
		CHECK(event.mirror_id != 0);
	}
}

static void expect_none(void)
{
	struct hmm_event event;

	/* Whatever the requests before have caused is in the ring when they are answered. */
	CHECK_EQ(hmm_event_read(events, &event, 1), 0);
}

/* ---- the owner listens ---------------------------------------------------------------- */

static void story(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_event_open(hmm, NULL, &events), 0);
	memory = test_map_in_block(64);
	test_fill(memory, 64, 1);
	expect_none();
	test_out(memory, 64);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_MIGRATE, 0, memory, 64, 64);
	expect(HMM_EVENT_MIGRATE_OUT, HMM_REASON_MIGRATE, 0, memory, 64, 64);
	expect_none();
	CHECK_EQ(*(volatile uint64_t *)(memory + 20 * PAGE), test_word(20, 0, 1));
	expect(HMM_EVENT_CPU_FAULT, HMM_REASON_CPU_FAULT, 0, memory + 20 * PAGE, 1, 1);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_CPU_FAULT, 0, memory + 20 * PAGE, 1, 1);
	expect(HMM_EVENT_MIGRATE_HOME, HMM_REASON_CPU_FAULT, 0, memory + 20 * PAGE, 1, 1);
	expect_none();
	/* With a hole in the middle: the range is of 64 pages, and it is about 63. */
	test_home(memory, 64);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_MIGRATE, 0, memory, 64, 64);
	expect(HMM_EVENT_MIGRATE_HOME, HMM_REASON_MIGRATE, 0, memory, 64, 63);
	expect_none();
	test_out(memory + 8 * PAGE, 8);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_MIGRATE, 0, memory + 8 * PAGE, 8, 8);
	expect(HMM_EVENT_MIGRATE_OUT, HMM_REASON_MIGRATE, 0, memory + 8 * PAGE, 8, 8);
	CHECK_EQ(madvise(memory + 8 * PAGE, 2 * PAGE, MADV_DONTNEED), 0);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_DISCARD, 0, memory + 8 * PAGE, 2, 2);
	CHECK_EQ(munmap(memory, 64 * PAGE), 0);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_UNMAP, 0, memory + 10 * PAGE, 6, 6);
	expect_none();
	CHECK_EQ(hmm_event_dropped(events), 0);
	hmm_event_close(events);
	test_close();
}

/* A whole huge page, which goes and comes by other ways. */
static void story_of_a_huge_page(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	open_events(MASK(HMM_EVENT_MIGRATE_OUT) | MASK(HMM_EVENT_MIGRATE_HOME), 0);
	memory = test_map_huge(1);
	test_fill(memory, 512, 2);
	test_out(memory, 512);
	expect(HMM_EVENT_MIGRATE_OUT, HMM_REASON_MIGRATE, 0, memory, 512, 512);
	test_home(memory, 512);
	expect(HMM_EVENT_MIGRATE_HOME, HMM_REASON_MIGRATE, 0, memory, 512, 512);
	expect_none();
	test_check(memory, 512, 2);
	hmm_event_close(events);
	test_close();
}

static int no_matter(struct hmm_mirror *me, const struct hmm_update *update)
{
	return 0;
}

static const struct hmm_mirror_ops patient = { .size = sizeof(patient),
					       .sync_cpu_device_pagetables = no_matter };

/* A device that reads: pages are shared, and a write takes them. */
static void story_of_a_copy(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	mirror.ops = &patient;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	CHECK_EQ(hmm_event_open(hmm, NULL, &events), 0);
	memory = test_map_in_block(16);
	test_fill(memory, 16, 3);
	test_out(memory, 16);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_MIGRATE, 0, memory, 16, 16);
	expect(HMM_EVENT_MIGRATE_OUT, HMM_REASON_MIGRATE, 0, memory, 16, 16);
	CHECK_EQ(*(volatile uint64_t *)(memory + 4 * PAGE), test_word(4, 0, 3));
	expect(HMM_EVENT_CPU_FAULT, HMM_REASON_CPU_FAULT, 0, memory + 4 * PAGE, 1, 1);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_CPU_FAULT, 0, memory + 4 * PAGE, 1, 1);
	expect(HMM_EVENT_MIGRATE_HOME, HMM_REASON_CPU_FAULT, 0, memory + 4 * PAGE, 1, 1);
	*(volatile uint64_t *)(memory + 4 * PAGE) = 5;
	expect(HMM_EVENT_CPU_FAULT, HMM_REASON_CPU_WRITE, 0, memory + 4 * PAGE, 1, 1);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_CPU_WRITE, 0, memory + 4 * PAGE, 1, 1);
	expect_none();
	hmm_event_close(events);
	test_close();
}

/* The CPU reads one page that is pinned, and writes another. */
static void story_of_a_pin(void)
{
	struct hmm_advise_options options = { .size = sizeof(options), .mirror = &mirror };
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_in_block(16);
	test_fill(memory, 16, 4);
	CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, 16 * PAGE, HMM_ADVISE_PIN, &options), 0);
	open_events(MASK(HMM_EVENT_PIN_BROKEN), 0);
	CHECK_EQ(*(volatile uint64_t *)(memory + 2 * PAGE), test_word(2, 0, 4));
	expect_none();
	*(volatile uint64_t *)(memory + 3 * PAGE) = test_word(3, 0, 4);
	expect(HMM_EVENT_PIN_BROKEN, 0, 0, memory + 3 * PAGE, 1, 1);
	expect_none();
	test_check(memory, 16, 4);
	hmm_event_close(events);
	test_close();
}

/* Eight blocks on a device of four: what makes way is told of, whether it comes home page by page or as one. */
static void full_device(bool huge)
{
	size_t evicted = 0, moved = 0;
	char *memory;

	test_open(0, 4 * BLOCK);
	open_events(MASK(HMM_EVENT_EVICT) | MASK(HMM_EVENT_MIGRATE_HOME), 0);
	memory = test_map_huge(8);
	if (!huge)
		madvise(memory, 8 * BLOCK, MADV_NOHUGEPAGE);
	test_fill(memory, 8 * 512, 5);
	for (size_t i = 0; i < 8; i++)
		moved += (size_t)test_migrate(memory + i * BLOCK, 512, HMM_DEVICE, NULL);
	moved -= test_device_pages(memory, 8 * 512);
	CHECK(moved >= 512);
	while (evicted < moved) {
		struct hmm_event event = next_event();

		CHECK_EQ(event.kind, HMM_EVENT_EVICT);
		CHECK_EQ(event.reason, HMM_REASON_EVICT);
		CHECK(event.start >= (unsigned long)memory && event.end <= (unsigned long)memory + 8 * BLOCK);
		CHECK(event.pages && event.mirror == &mirror);
		evicted += event.pages;
	}
	CHECK_EQ(evicted, moved);
	hmm_event_close(events);
	test_check(memory, 8 * 512, 5);
	test_close();
}

static void story_of_a_full_device(void)
{
	full_device(false);
	full_device(true);
}

/* ---- the ring ----------------------------------------------------------------------------- */

static void overflow(void)
{
	struct hmm_event seen[100];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	open_events(MASK(HMM_EVENT_MIGRATE_OUT), 64);
	memory = test_map_in_block(100);
	test_fill(memory, 100, 4);
	for (size_t i = 0; i < 90; i++)
		test_out(memory + i * PAGE, 1);
	CHECK_EQ(hmm_event_dropped(events), 26);
	CHECK_EQ(hmm_event_read(events, seen, 10), 10);
	CHECK(is_readable());
	/* There is room for ten more, and the new ones come behind what was kept. */
	for (size_t i = 90; i < 100; i++)
		test_out(memory + i * PAGE, 1);
	CHECK_EQ(hmm_event_dropped(events), 26);
	CHECK_EQ(hmm_event_read(events, seen + 10, 90), 64);
	for (size_t i = 0; i < 74; i++)
		CHECK_EQ(seen[i].start, (unsigned long)memory + (i < 64 ? i : i + 26) * PAGE);
	CHECK_EQ(hmm_event_read(events, seen, 100), 0);
	CHECK_EQ(hmm_event_dropped(events), 26);
	hmm_event_close(events);
	test_close();
}

static void descriptor(void)
{
	struct hmm_event seen[8];
	char *memory;
	int fd;

	test_open(0, DEVICE_MEMORY);
	open_events(MASK(HMM_EVENT_MIGRATE_OUT), 64);
	fd = hmm_event_fd(events);
	CHECK(!is_readable());
	memory = test_map_in_block(300);
	test_fill(memory, 300, 5);
	for (size_t round = 0; round < 100; round++) {
		for (size_t i = 0; i < 3; i++)
			test_out(memory + (round * 3 + i) * PAGE, 1);
		wait_readable();
		/* As long as something is left it stays readable. */
		CHECK_EQ(hmm_event_read(events, seen, 2), 2);
		CHECK(is_readable());
		CHECK_EQ(hmm_event_read(events, seen, 8), 1);
		/* The message may have come behind the records. */
		while (is_readable())
			CHECK_EQ(hmm_event_read(events, seen, 8), 0);
		CHECK_EQ(hmm_event_fd(events), fd);
	}
	CHECK_EQ(hmm_event_dropped(events), 0);
	hmm_event_close(events);
	test_close();
}

static bool ended;

/* Every record is read once, whoever reads it. */
static void *read_along(void *data)
{
	uint64_t *sum = data;
	struct hmm_event seen[7];
	int n;

	while ((n = hmm_event_read(events, seen, 7)) || !__atomic_load_n(&ended, __ATOMIC_ACQUIRE)) {
		CHECK(n >= 0);
		for (int i = 0; i < n; i++)
			*sum += seen[i].pages;
	}
	return NULL;
}

static void two_readers(void)
{
	uint64_t sums[2] = { 0 };
	pthread_t threads[2];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	open_events(MASK(HMM_EVENT_MIGRATE_OUT) | MASK(HMM_EVENT_MIGRATE_HOME), 65536);
	memory = test_map_in_block(64);
	test_fill(memory, 64, 6);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, read_along, &sums[i]), 0);
	for (int i = 0; i < 200; i++) {
		test_out(memory, 64);
		test_home(memory, 64);
	}
	__atomic_store_n(&ended, true, __ATOMIC_RELEASE);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	/* What came between their last look and the end. */
	read_along(&sums[0]);
	CHECK_EQ(sums[0] + sums[1], 200 * 2 * 64);
	hmm_event_close(events);
	test_close();
}

/* Who reads only when the descriptor says so misses nothing, however close the next record is. */
static void *read_when_told(void *data)
{
	uint64_t *left = data;
	struct hmm_event seen[4];
	int n;

	while (*left) {
		wait_readable();
		n = hmm_event_read(events, seen, 4);
		CHECK(n >= 0);
		*left -= (uint64_t)n;
	}
	return NULL;
}

static void wake_ups(void)
{
	uint64_t left = 2 * 3000;
	pthread_t thread;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	open_events(MASK(HMM_EVENT_MIGRATE_OUT) | MASK(HMM_EVENT_MIGRATE_HOME), 65536);
	memory = test_map_in_block(1);
	test_fill(memory, 1, 6);
	CHECK_EQ(pthread_create(&thread, NULL, read_when_told, &left), 0);
	for (int i = 0; i < 3000; i++) {
		test_out(memory, 1);
		test_home(memory, 1);
	}
	CHECK_EQ(pthread_join(thread, NULL), 0);
	hmm_event_close(events);
	test_close();
}

/* The records are read into memory that is on the device itself, and its fault is among them. */
static void into_migrated_memory(void)
{
	struct hmm_event *out;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	open_events(MASK(HMM_EVENT_MIGRATE_OUT) | MASK(HMM_EVENT_CPU_FAULT), 64);
	memory = test_map_in_block(8);
	test_fill(memory, 8, 7);
	test_out(memory, 8);
	out = (struct hmm_event *)memory;
	CHECK_EQ(hmm_event_read(events, out, 1), 1);
	CHECK_EQ(out->kind, HMM_EVENT_MIGRATE_OUT);
	CHECK_EQ(hmm_event_read(events, out, 8), 1);
	CHECK_EQ(out->kind, HMM_EVENT_CPU_FAULT);
	CHECK_EQ(out->start, (unsigned long)memory);
	hmm_event_close(events);
	test_close();
}

/* ---- wrongly -------------------------------------------------------------------------------- */

static void refuse(struct hmm_event_options options, int error)
{
	struct hmm_events *none = NULL;

	CHECK_EQ(hmm_event_open(hmm, &options, &none), error);
	CHECK(!none);
	CHECK(strlen(hmm_last_error()) > 0);
}

static void arguments(void)
{
	struct { struct hmm_event_options known; uint64_t later; } longer = { { .size = sizeof(longer) }, 0 };
	struct hmm_event_options shorter = { .size = sizeof(shorter.size), .mask = ~0ULL };
	size_t size = sizeof(shorter);
	struct hmm_event seen;

	test_open(0, DEVICE_MEMORY);
	refuse((struct hmm_event_options){ .size = 0 }, -EINVAL);
	refuse((struct hmm_event_options){ .size = size, .entries = 63 }, -EINVAL);
	refuse((struct hmm_event_options){ .size = size, .entries = 65537 }, -EINVAL);
	refuse((struct hmm_event_options){ .size = size, .mask = 1 }, -EINVAL);
	refuse((struct hmm_event_options){ .size = size, .mask = MASK(HMM_EVENT_LOST + 1) }, -EINVAL);
	refuse((struct hmm_event_options){ .size = size, .reserved = 1 }, -EINVAL);
	CHECK_EQ(hmm_event_open(NULL, NULL, &events), -EINVAL);
	CHECK_EQ(hmm_event_open(hmm, NULL, NULL), -EINVAL);
	longer.later = 1;
	CHECK_EQ(hmm_event_open(hmm, &longer.known, &events), -E2BIG);
	longer.later = 0;
	CHECK_EQ(hmm_event_open(hmm, &longer.known, &events), 0);
	hmm_event_close(events);
	/* Of a program that knew less: what lies behind its size is not looked at. */
	CHECK_EQ(hmm_event_open(hmm, &shorter, &events), 0);
	CHECK_EQ(hmm_event_read(events, NULL, 1), -EINVAL);
	CHECK_EQ(hmm_event_read(events, &seen, 0), -EINVAL);
	CHECK_EQ(hmm_event_read(NULL, &seen, 1), -EINVAL);
	CHECK_EQ(hmm_event_fd(NULL), -EINVAL);
	CHECK_EQ(hmm_event_dropped(NULL), 0);
	hmm_event_close(NULL);
	hmm_event_close(events);
	open_events(MASK(HMM_EVENT_LOST), 64);
	hmm_event_close(events);
	test_close();
}

static void too_many(void)
{
	struct hmm_events *many[8];
	struct rlimit limit, before;

	test_open(0, DEVICE_MEMORY);
	for (int i = 0; i < 8; i++)
		CHECK_EQ(hmm_event_open(hmm, NULL, &many[i]), 0);
	CHECK_EQ(hmm_event_open(hmm, NULL, &events), -EMFILE);
	hmm_event_close(many[3]);
	CHECK_EQ(hmm_event_open(hmm, NULL, &many[3]), 0);
	for (int i = 0; i < 8; i++)
		hmm_event_close(many[i]);
	CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
	limit = before;
	limit.rlim_cur = 3;
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
	CHECK_EQ(hmm_event_open(hmm, NULL, &events), -EMFILE);
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
	/* Those that are left open go with the handle. */
	CHECK_EQ(hmm_event_open(hmm, NULL, &events), 0);
	test_close();
}

static void forked(void)
{
	struct hmm_event seen;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_event_open(hmm, NULL, &events), 0);
	child = fork();
	if (!child) {
		CHECK_EQ(hmm_event_read(events, &seen, 1), -ESTALE);
		CHECK_EQ(hmm_event_fd(events), -ESTALE);
		CHECK_EQ(hmm_event_dropped(events), 0);
		CHECK_EQ(hmm_event_open(hmm, NULL, &events), -ESTALE);
		hmm_event_close(events);
		_exit(0);
	}
	test_reap(child, 0);
	expect_none();
	hmm_event_close(events);
	test_close();
}

/* ---- a driver listens -------------------------------------------------------------------------- */

static sigjmp_buf escape;

static void jump(int signal_number)
{
	siglongjmp(escape, signal_number);
}

/* The signal that a read raises, or 0. */
static int touch(volatile uint64_t *word)
{
	int raised = sigsetjmp(escape, 1);

	if (!raised)
		(void)*word;
	return raised;
}

static void window_driver(void)
{
	struct sigaction action = { .sa_handler = jump };
	char *memory = (char *)test_driver_open(&patient);
	struct hmm_window *window;
	uint64_t word;
	bool poison;
	int raised;

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	CHECK_EQ(hmm_window_map(&mirror, (unsigned long)memory, 64 * PAGE, 0, &window), 0);
	CHECK_EQ(hmm_event_open(hmm, NULL, &events), 0);
	/* The block is the CPU's alone: it comes whole. */
	CHECK_EQ(*(volatile uint64_t *)(memory + 7 * PAGE), test_word(7, 0, 8));
	expect(HMM_EVENT_WINDOW_FAULT, 0, 0, memory + 7 * PAGE, 1, 1);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_MIGRATE, 0, memory, 64, 64);
	expect(HMM_EVENT_MIGRATE_OUT, HMM_REASON_MIGRATE, 0, memory, 64, 64);
	expect_none();
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	expect(HMM_EVENT_CPU_FAULT, HMM_REASON_CPU_FAULT, 0, memory + 9 * PAGE, 1, 1);
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_CPU_FAULT, 0, memory + 9 * PAGE, 1, 1);
	expect(HMM_EVENT_MIGRATE_HOME, HMM_REASON_CPU_FAULT, 0, memory + 9 * PAGE, 1, 1);
	test_tell(TEST_DRIVER_SOCKET, 2, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	expect(HMM_EVENT_INVALIDATE, HMM_REASON_UNMAP, 0, memory + 32 * PAGE, 32, 32);
	/* Woken once, in case that nobody waits any more, and closed when it comes again. */
	poison = hmm_features(hmm) & HMM_HAS_POISON;
	raised = touch((uint64_t *)(memory + 40 * PAGE));
	CHECK_EQ(raised, poison ? SIGBUS : SIGSEGV);
	expect(HMM_EVENT_WINDOW_FAULT, 0, 0, memory + 40 * PAGE, 1, 1);
	expect(HMM_EVENT_WINDOW_FAULT, 0, 0, memory + 40 * PAGE, 1, 1);
	expect(HMM_EVENT_POISON, 0, -EFAULT, memory + 40 * PAGE, 1, 1);
	/* And every time again, which hmmd hears nothing of. */
	for (int i = 0; i < 3; i++) {
		usleep(10000);
		CHECK_EQ(touch((uint64_t *)(memory + 40 * PAGE)), raised);
	}
	expect_none();
	CHECK_EQ(hmm_event_dropped(events), 0);
	hmm_event_close(events);
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void window(void)
{
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start("window", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map_in_block(64);
	test_fill(memory, 64, 8);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	CHECK_EQ(*(volatile uint64_t *)(memory + 9 * PAGE), test_word(9, 0, 8));
	test_tell(socket, 1, -1);
	CHECK(test_hear(socket, &word, NULL));
	CHECK_EQ(munmap(memory + 32 * PAGE, 32 * PAGE), 0);
	test_tell(socket, 2, -1);
	test_reap(driver, 0);
	test_check(memory, 32, 8);
	test_close();
}

static _Atomic int is_silent;

static int never_answer(struct hmm_mirror *me, const struct hmm_update *update)
{
	while (__atomic_load_n(&is_silent, __ATOMIC_ACQUIRE))
		usleep(1000);
	return 0;
}

static const struct hmm_mirror_ops silent_ops = { .size = sizeof(silent_ops),
						  .sync_cpu_device_pagetables = never_answer };

/* Its windows are revoked: the owner is told, too. */
static void revoked_driver(void)
{
	char *memory = (char *)test_driver_open(&silent_ops);
	struct hmm_window *window;
	uint64_t word;

	CHECK_EQ(hmm_window_map(&mirror, (unsigned long)memory, 16 * PAGE, 0, &window), 0);
	CHECK_EQ(*(volatile uint64_t *)memory, test_word(0, 0, 9));
	is_silent = 1;
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	test_hear(TEST_DRIVER_SOCKET, &word, NULL);
	_exit(0);
}

static void revoked(void)
{
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start("revoked", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map_in_block(16);
	test_fill(memory, 16, 9);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	open_events(MASK(HMM_EVENT_REVOKED), 0);
	*(volatile uint64_t *)memory = test_word(0, 0, 9);
	expect(HMM_EVENT_REVOKED, 0, -ETIMEDOUT, memory, 16, 16);
	test_check(memory, 16, 9);
	test_tell(socket, 2, -1);
	test_reap(driver, 0);
	expect_none();
	hmm_event_close(events);
	test_close();
}

/* What the owner did before it died can still be read; then comes the end, which wakes who polls. */
static void orphaned_driver(void)
{
	char *memory = (char *)test_driver_open(&patient);
	struct hmm_event seen[8];
	uint64_t word;
	int n;

	open_events(MASK(HMM_EVENT_MIGRATE_OUT), 0);
	expected_mirror = NULL;
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	test_hear(TEST_DRIVER_SOCKET, &word, NULL);
	expect(HMM_EVENT_MIGRATE_OUT, HMM_REASON_MIGRATE, 0, memory, 4, 4);
	do
		wait_readable();
	while ((n = hmm_event_read(events, seen, 8)) == 0);
	CHECK_EQ(n, -ESTALE);
	CHECK_EQ(hmm_event_read(events, seen, 8), -ESTALE);
	CHECK(is_readable());
	CHECK_EQ(hmm_event_dropped(events), 0);
	CHECK_EQ(hmm_event_open(hmm, NULL, &events), -ESTALE);
	hmm_event_close(events);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void orphaned(void)
{
	int socket;
	pid_t driver = test_driver_start("orphaned", &socket), owner;
	uint64_t word;

	owner = fork();
	if (!owner) {
		char *memory;

		test_open(0, DEVICE_MEMORY);
		memory = test_map_in_block(4);
		test_fill(memory, 4, 10);
		test_invite(socket, memory);
		CHECK(test_hear(socket, &word, NULL));
		test_out(memory, 4);
		raise(SIGKILL);
	}
	close(socket);
	test_reap(owner, SIGKILL);
	test_reap(driver, 0);
}

static const struct test_case cases[] = {
	{ "story", story, false }, { "story-of-a-huge-page", story_of_a_huge_page, false },
	{ "story-of-a-copy", story_of_a_copy, false }, { "story-of-a-pin", story_of_a_pin, false },
	{ "story-of-a-full-device", story_of_a_full_device, false }, { "overflow", overflow, false },
	{ "descriptor", descriptor, false }, { "two-readers", two_readers, false }, { "wake-ups", wake_ups, false },
	{ "into-migrated-memory", into_migrated_memory, false }, { "arguments", arguments, false },
	{ "too-many", too_many, false }, { "forked", forked, false }, { "window", window, false },
	{ "revoked", revoked, false }, { "orphaned", orphaned, false }, { NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "window", window_driver, false }, { "revoked", revoked_driver, false },
	{ "orphaned", orphaned_driver, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
