/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * nofault.c - a device that cannot fault: what it may have, what it is refused, and that
 * it is stopped before each change of that and told when the change is over.
 *
 * The device is a flag: it runs, or it is stopped. quiesce() looks whether the change was
 * made before it was asked.
 */
#include "driver.h"

#include <pthread.h>
#include <signal.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#define DEVICE_MEMORY (64UL << 20)
#define PAGES 64UL

static struct hmm_mirror still;
static _Atomic unsigned int stops, resumes, gone, released;
static _Atomic bool stopped, touched, late;
static struct hmm_update last_stop, last_resume;

static int quiesce(struct hmm_mirror *me, const struct hmm_update *update)
{
	CHECK_EQ(update->event, HMM_UPDATE_INVALIDATE);
	CHECK(update->start < update->end);
	/* It takes a while: whoever does not wait for it has touched by then. */
	nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
	if (atomic_load(&touched))
		atomic_store(&late, true);
	last_stop = *update;
	atomic_store(&stopped, true);
	atomic_fetch_add(&stops, 1);
	return 0;
}

static void resume(struct hmm_mirror *me, const struct hmm_update *update)
{
	CHECK(atomic_load(&stopped));
	CHECK(update->event == HMM_UPDATE_RESTORED || update->event == HMM_UPDATE_GONE);
	last_resume = *update;
	if (update->event == HMM_UPDATE_GONE)
		atomic_fetch_add(&gone, 1);
	atomic_fetch_add(&resumes, 1);
	/* Of other addresses, too? Last: who waits for this looks at the rest. */
	if (!update->pending)
		atomic_store(&stopped, false);
}

static void release(struct hmm_mirror *me)
{
	atomic_fetch_add(&released, 1);
}

static const struct hmm_mirror_ops stopping = {
	.size = sizeof(stopping), .release = release, .quiesce = quiesce, .resume = resume,
};

static struct hmm_device *still_device(const char *name, uint64_t caps)
{
	struct hmm_device_options options = { .size = sizeof(options), .name = name, .memory = DEVICE_MEMORY,
					      .node = -1, .caps = caps };
	struct hmm_device *device;

	CHECK_EQ(hmm_device_new(hmm, &options, &device), 0);
	return device;
}

static void begin(void)
{
	test_open(0, DEVICE_MEMORY);
	still.device = still_device("still", 0);
	still.ops = &stopping;
	CHECK_EQ(hmm_mirror_register(&still, hmm), 0);
}

static void end(void)
{
	CHECK_EQ(hmm_mirror_unregister(&still), 0);
	hmm_device_put(still.device);
	test_close();
}

static int pin(void *memory, size_t pages)
{
	struct hmm_advise_options options = { .size = sizeof(options), .mirror = &still };

	return hmm_advise(hmm, (unsigned long)memory, pages * PAGE, HMM_ADVISE_PIN, &options);
}

static size_t reachable(const void *memory, size_t pages)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++)
		n += !!(hmm_mirror_lookup(&still, (unsigned long)memory + i * PAGE) & HMM_ENTRY_VALID);
	return n;
}

static char *pinned(size_t pages, uint64_t seed)
{
	char *memory = test_map_in_block(pages);

	test_fill(memory, pages, seed);
	CHECK_EQ(reachable(memory, pages), 0);
	CHECK_EQ(pin(memory, pages), 0);
	CHECK_EQ(reachable(memory, pages), pages);
	return memory;
}

/* Each stop has had its end. */
static void wait_settled(void)
{
	while (atomic_load(&stopped) || atomic_load(&resumes) == 0)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

/* The last change was about this, and left nothing there. */
static void check_gone(const void *memory, unsigned int before)
{
	wait_settled();
	CHECK(!atomic_load(&late));
	CHECK(atomic_load(&stops) > before);
	CHECK(atomic_load(&gone) > 0);
	CHECK(last_stop.start <= (unsigned long)memory && last_stop.end > (unsigned long)memory);
	CHECK(last_resume.start <= last_stop.start && last_resume.end >= last_stop.end);
}

/* ---- bad input ------------------------------------------------------------------ */

static void bad_input(void)
{
	static const struct hmm_mirror_ops half = { .size = sizeof(half), .quiesce = quiesce };
	static const struct hmm_mirror_ops other_half = { .size = sizeof(other_half), .resume = resume };
	static const struct hmm_mirror_ops deaf = { .size = sizeof(deaf), .release = release };
	struct hmm_device_options options = { .size = sizeof(options), .name = "never", .memory = DEVICE_MEMORY,
					      .node = -1, .caps = HMM_DEVICE_WRITE_PROTECT };
	struct hmm_mirror other = { .ops = &half };
	struct hmm_device *never;

	begin();
	CHECK_EQ(hmm_device_new(hmm, &options, &never), -EINVAL);
	options.caps = HMM_DEVICE_COPY_ENGINE;
	CHECK_EQ(hmm_device_new(hmm, &options, &never), -EOPNOTSUPP);
	other.device = still_device("other", 0);
	CHECK_EQ(hmm_mirror_register(&other, hmm), -EINVAL);
	other.ops = &other_half;
	CHECK_EQ(hmm_mirror_register(&other, hmm), -EINVAL);
	other.ops = &deaf;
	CHECK_EQ(hmm_mirror_register(&other, hmm), -EINVAL);
	hmm_device_put(other.device);
	other.device = mirror.device;
	other.ops = &half;
	CHECK_EQ(hmm_mirror_register(&other, hmm), -EINVAL);
	end();
}

/* ---- what it may have -------------------------------------------------------------- */

enum { VALID = 1, WRITE = 2, PRIVATE = 4 };

static const uint64_t flags[HMM_PFN_FLAG_MAX] = { VALID, WRITE, PRIVATE };
static const uint64_t values[HMM_PFN_VALUE_MAX] = { 0x10, 0, 0x20 };

static int look(char *memory, size_t pages, uint64_t wanted, bool snapshot, uint64_t *pfns)
{
	struct hmm_range range = { .pfns = pfns, .flags = flags, .values = values, .default_flags = wanted,
				   .pfn_shift = 8 };
	long r;

	memset(pfns, 0, pages * sizeof(*pfns));
	CHECK_EQ(hmm_range_register(&range, &still, (unsigned long)memory, (unsigned long)memory + pages * PAGE, 12), 0);
	do
		r = snapshot ? hmm_range_snapshot(&range) : hmm_range_fault(&range, true);
	while (r == -EBUSY || r == -EAGAIN);
	hmm_range_unregister(&range);
	return (int)r;
}

static void rules(void)
{
	uint64_t pfns[PAGES];
	char *memory, byte;

	begin();
	memory = test_map_in_block(PAGES);
	test_fill(memory, PAGES, 1);
	CHECK_EQ(hmm_migrate(&still, (unsigned long)memory, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), -EOPNOTSUPP);
	CHECK_EQ(hmm_device_exclusive_begin(&still, (unsigned long)memory, PAGES * PAGE, NULL), -EOPNOTSUPP);
	CHECK_EQ(look(memory, PAGES, VALID, false, pfns), -EFAULT);
	CHECK_EQ(pfns[0], 0x10);
	CHECK_EQ(pfns[1], 0);
	CHECK_EQ(look(memory, PAGES, VALID, true, pfns), PAGES);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(pfns[i], 0);
	/* The driver that asks is another matter. */
	CHECK_EQ(hmm_device_read(&still, (unsigned long)memory, &byte, 1), 1);
	CHECK_EQ(byte, memory[0]);
	/* The other device's look leaves entries, which are not this one's. */
	CHECK_EQ(reachable(memory, PAGES), 0);
	CHECK_EQ(pin(memory, PAGES / 2), 0);
	CHECK_EQ(look(memory, PAGES / 2, VALID | WRITE, false, pfns), PAGES / 2);
	for (size_t i = 0; i < PAGES / 2; i++)
		CHECK_EQ(pfns[i] & 7, VALID | WRITE | PRIVATE);
	CHECK_EQ(look(memory, PAGES, VALID, false, pfns), -EFAULT);
	CHECK_EQ(pfns[PAGES / 2], 0x10);
	CHECK_EQ(look(memory, PAGES, VALID, true, pfns), PAGES);
	CHECK_EQ(pfns[PAGES / 2 - 1] & 7, VALID | WRITE | PRIVATE);
	CHECK_EQ(pfns[PAGES / 2], 0);
	/* Home is not where it could have it. */
	CHECK_EQ(look(memory, PAGES / 2, VALID | PRIVATE, false, pfns), -EFAULT);
	CHECK_EQ(reachable(memory, PAGES), PAGES / 2);
	/* Nothing that it had was changed so far. */
	CHECK_EQ(atomic_load(&stops), 0);
	test_check(memory, PAGES, 1);
	end();
}

/* ---- changes ------------------------------------------------------------------------ */

static void touch_read(void)
{
	char *memory, byte;
	unsigned int before;

	begin();
	memory = pinned(PAGES, 1);
	before = atomic_load(&stops);
	byte = *(volatile char *)memory;
	atomic_store(&touched, true);
	check_gone(memory, before);
	CHECK_EQ(last_stop.reason, HMM_REASON_CPU_FAULT);
	CHECK_EQ(byte, (char)test_word(0, 0, 1));
	CHECK_EQ(reachable(memory, 1), 0);
	CHECK_EQ(reachable(memory + PAGE, PAGES - 1), PAGES - 1);
	/* The pin is broken, until it is said again. */
	CHECK_EQ(pin(memory, PAGES), 0);
	CHECK_EQ(reachable(memory, PAGES), PAGES);
	atomic_store(&touched, false);
	test_device_check(memory, PAGES, 1);
	test_check(memory, PAGES, 1);
	end();
}

static void touch_write(void)
{
	unsigned int before;
	char *memory;

	begin();
	memory = pinned(PAGES, 2);
	before = atomic_load(&stops);
	*(volatile uint64_t *)(memory + 3 * PAGE) = test_word(3, 0, 2);
	atomic_store(&touched, true);
	check_gone(memory + 3 * PAGE, before);
	CHECK_EQ(reachable(memory, PAGES), PAGES - 1);
	atomic_store(&touched, false);
	test_check(memory, PAGES, 2);
	end();
}

static void unadvised(void)
{
	char *memory;

	begin();
	memory = pinned(PAGES, 3);
	CHECK_EQ(hmm_unadvise(hmm, (unsigned long)memory, PAGES / 2 * PAGE, HMM_ADVISE_PIN, NULL), 0);
	check_gone(memory, 0);
	CHECK_EQ(reachable(memory, PAGES / 2), 0);
	CHECK_EQ(reachable(memory + PAGES / 2 * PAGE, PAGES / 2), PAGES / 2);
	CHECK(!test_on_device(memory));
	test_check(memory, PAGES, 3);
	end();
}

static void unmapped(void)
{
	char *memory;

	begin();
	memory = pinned(PAGES, 4);
	CHECK_EQ(munmap(memory, PAGES * PAGE), 0);
	check_gone(memory, 0);
	CHECK_EQ(last_stop.reason, HMM_REASON_UNMAP);
	CHECK_EQ(reachable(memory, PAGES), 0);
	end();
}

static void discarded(void)
{
	char *memory;

	begin();
	memory = pinned(PAGES, 4);
	CHECK_EQ(madvise(memory, PAGES * PAGE, MADV_DONTNEED), 0);
	check_gone(memory, 0);
	CHECK_EQ(reachable(memory, PAGES), 0);
	test_check_zero(memory, PAGES);
	end();
}

static void moved(void)
{
	char *memory, *to, *there;

	begin();
	memory = pinned(PAGES, 5);
	to = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(to != MAP_FAILED);
	there = mremap(memory, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	CHECK(there == to);
	check_gone(memory, 0);
	CHECK_EQ(reachable(memory, PAGES), 0);
	/* The pin went along. */
	CHECK_EQ(reachable(there, PAGES), PAGES);
	test_device_check(there, PAGES, 5);
	test_check(there, PAGES, 5);
	end();
}

static void protected(void)
{
	char *memory;

	begin();
	memory = pinned(PAGES, 6);
	CHECK_EQ(mprotect(memory, PAGES * PAGE, PROT_READ), 0);
	check_gone(memory, 0);
	CHECK_EQ(last_stop.reason, HMM_REASON_PROTECT);
	CHECK_EQ(reachable(memory, PAGES), 0);
	test_check(memory, PAGES, 6);
	end();
}

static void forked(void)
{
	char *memory;
	pid_t child;

	begin();
	memory = pinned(PAGES, 7);
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		test_check(memory, PAGES, 7);
		_exit(0);
	}
	test_reap(child, 0);
	check_gone(memory, 0);
	CHECK_EQ(reachable(memory, PAGES), 0);
	test_check(memory, PAGES, 7);
	CHECK_EQ(pin(memory, PAGES), 0);
	test_device_check(memory, PAGES, 7);
	end();
}

static void coherent(void)
{
	uint64_t pfns[1];
	char *memory;

	begin();
	memory = test_map_huge(2);
	test_fill(memory, 2 * BLOCK / PAGE, 8);
	CHECK_EQ(hmm_share(&still, memory, 2 * BLOCK), 0);
	wait_settled();
	CHECK_EQ(reachable(memory, 2 * BLOCK / PAGE), 2 * BLOCK / PAGE);
	CHECK_EQ(look(memory, 1, VALID | WRITE, false, pfns), 1);
	/* Touches change nothing. */
	atomic_store(&stops, 0);
	test_check(memory, 2 * BLOCK / PAGE, 8);
	test_fill(memory, 2 * BLOCK / PAGE, 9);
	CHECK_EQ(atomic_load(&stops), 0);
	CHECK_EQ(hmm_unshare(&still, memory, BLOCK), 0);
	check_gone(memory, 0);
	CHECK_EQ(reachable(memory, BLOCK / PAGE), 0);
	CHECK_EQ(reachable(memory + BLOCK, BLOCK / PAGE), BLOCK / PAGE);
	test_check(memory, 2 * BLOCK / PAGE, 9);
	CHECK_EQ(hmm_unshare(&still, memory + BLOCK, BLOCK), 0);
	end();
}

/* Room is never made from what it has. */
static void pressed(void)
{
	const size_t most = DEVICE_MEMORY / BLOCK;
	char *memory, *more;

	begin();
	memory = test_map_huge(most - 1);
	test_fill(memory, (most - 1) * BLOCK / PAGE, 1);
	CHECK_EQ(pin(memory, (most - 1) * BLOCK / PAGE), 0);
	more = test_map_huge(3);
	test_fill(more, 3 * BLOCK / PAGE, 2);
	CHECK_EQ(pin(more, 3 * BLOCK / PAGE), -ENOSPC);
	CHECK_EQ(reachable(memory, (most - 1) * BLOCK / PAGE), (most - 1) * BLOCK / PAGE);
	CHECK_EQ(reachable(more, 3 * BLOCK / PAGE), 0);
	test_check(more, 3 * BLOCK / PAGE, 2);
	test_device_check(memory, 64, 1);
	end();
}

/* ---- a window, in another process ------------------------------------------------------ */

static sigjmp_buf refused;

static void on_refusal(int number)
{
	siglongjmp(refused, number);
}

/* The page's first word, or -1 where the window has nothing. */
static long read_through(unsigned long addr)
{
	if (sigsetjmp(refused, 1))
		return -1;
	return (long)(*(volatile uint64_t *)addr & INT64_MAX);
}

static void windowed_driver(void)
{
	unsigned long memory = test_driver_join();
	struct hmm_window *window;
	uint64_t word;

	signal(SIGBUS, on_refusal);
	signal(SIGSEGV, on_refusal);
	CHECK_EQ(hmm_device_open(hmm, "still", &still.device), 0);
	still.ops = &stopping;
	CHECK_EQ(hmm_mirror_register(&still, hmm), 0);
	CHECK_EQ(hmm_window_map(&still, memory, PAGES * PAGE, 0, &window), 0);
	test_tell(TEST_DRIVER_SOCKET, 0, -1);
	/* Page by page, as the owner says: the answer is what was read. */
	while (test_hear(TEST_DRIVER_SOCKET, &word, NULL))
		test_tell(TEST_DRIVER_SOCKET, (uint64_t)read_through(memory + word * PAGE), -1);
	_exit(0);
}

static long driver_reads(int socket, size_t page)
{
	uint64_t word;

	test_tell(socket, page, -1);
	CHECK(test_hear(socket, &word, NULL));
	return (long)word;
}

static void windowed(void)
{
	struct hmm_event_options poisons = { .size = sizeof(poisons), .mask = 1UL << HMM_EVENT_POISON };
	const size_t first = 4, last = 8;
	struct hmm_events *events;
	struct hmm_event event;
	long told;
	unsigned int reads = 0;
	struct hmm_device *device;
	uint64_t word;
	char *memory;
	pid_t driver;
	int socket;

	test_open(0, DEVICE_MEMORY);
	device = still_device("still", 0);
	memory = test_map_in_block(PAGES);
	test_fill(memory, PAGES, 1);
	driver = test_driver_start("windowed", &socket);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	CHECK_EQ(hmm_event_open(hmm, &poisons, &events), 0);
	CHECK_EQ(driver_reads(socket, first), -1);
	CHECK_EQ(test_device_pages(memory, PAGES), 0);
	/* And not in silence. */
	/* hmmd tells after it has refused. */
	while ((told = hmm_event_read(events, &event, 1)) == 0)
		usleep(1000);
	CHECK_EQ(told, 1);
	CHECK_EQ(event.kind, HMM_EVENT_POISON);
	CHECK_EQ(event.error, -EFAULT);
	CHECK_EQ(event.start, (unsigned long)memory + first * PAGE);
	hmm_event_close(events);
	for (size_t page = first + 1; page < last; page++)
		reads += driver_reads(socket, page) != -1;
	CHECK_EQ(reads, 0);
	test_check(memory, PAGES, 1);
	close(socket);
	test_reap(driver, 0);
	hmm_device_put(device);
	test_close();
}

/* The same with memory that the driver itself has pinned. */
static void pinned_window_driver(void)
{
	unsigned long memory = test_driver_join();
	struct hmm_window *window;
	uint64_t word;

	signal(SIGBUS, on_refusal);
	signal(SIGSEGV, on_refusal);
	CHECK_EQ(hmm_device_open(hmm, "still", &still.device), 0);
	still.ops = &stopping;
	CHECK_EQ(hmm_mirror_register(&still, hmm), 0);
	CHECK_EQ(hmm_window_map(&still, memory, PAGES * PAGE, 0, &window), 0);
	CHECK_EQ(read_through(memory), -1);
	CHECK_EQ(pin((void *)memory, PAGES), 0);
	/* What was refused may be had now. */
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(read_through(memory + i * PAGE), test_word(i, 0, 1) & INT64_MAX);
	test_tell(TEST_DRIVER_SOCKET, 0, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	/* The owner has touched a page: it is gone, for this device. */
	wait_settled();
	CHECK_EQ(atomic_load(&gone), 1);
	CHECK_EQ(read_through(memory + 5 * PAGE), -1);
	CHECK_EQ(read_through(memory + 6 * PAGE), test_word(6, 0, 1) & INT64_MAX);
	test_tell(TEST_DRIVER_SOCKET, 0, -1);
	/* The owner exits. */
	while (!atomic_load(&released))
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	CHECK_EQ(reachable((void *)memory, PAGES), 0);
	_exit(0);
}

static void pinned_window(void)
{
	struct hmm_device *device;
	uint64_t word;
	char *memory;
	pid_t driver, owner;
	int status, socket;

	/* The driver outlives the owner: it is waited for here. */
	CHECK_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	owner = fork();
	CHECK(owner >= 0);
	if (owner) {
		while (waitpid(-1, &status, 0) > 0)
			CHECK_EQ(status, 0);
		return;
	}
	test_open(0, DEVICE_MEMORY);
	device = still_device("still", 0);
	CHECK(device);
	memory = test_map_in_block(PAGES);
	test_fill(memory, PAGES, 1);
	driver = test_driver_start("pinned-window", &socket);
	CHECK(driver > 0);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	CHECK_EQ(*(volatile uint64_t *)(memory + 5 * PAGE), test_word(5, 0, 1));
	test_tell(socket, 0, -1);
	CHECK(test_hear(socket, &word, NULL));
	_exit(0);
}

/* ---- several threads that dispatch ------------------------------------------------------------- */

static _Atomic bool enough;
static _Atomic unsigned int inside;

static int quiesce_alone(struct hmm_mirror *me, const struct hmm_update *update)
{
	CHECK_EQ(atomic_fetch_add(&inside, 1), 0);
	nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
	atomic_fetch_add(&stops, 1);
	atomic_store(&stopped, true);
	CHECK_EQ(atomic_fetch_sub(&inside, 1), 1);
	return 0;
}

static void resume_alone(struct hmm_mirror *me, const struct hmm_update *update)
{
	CHECK_EQ(atomic_fetch_add(&inside, 1), 0);
	resume(me, update);
	CHECK_EQ(atomic_fetch_sub(&inside, 1), 1);
}

static const struct hmm_mirror_ops alone = {
	.size = sizeof(alone), .quiesce = quiesce_alone, .resume = resume_alone,
};

static void *dispatch_until_enough(void *unused)
{
	while (!atomic_load(&enough))
		CHECK(hmm_dispatch(hmm, 1, 10) >= 0);
	return unused;
}

/* However many dispatch, a mirror's stops and their ends come one at a time and in order. */
static void in_order(void)
{
	pthread_t threads[3];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK(hmm_dispatch_fd(hmm) >= 0);
	for (unsigned int i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, dispatch_until_enough, NULL), 0);
	still.device = still_device("still", 0);
	still.ops = &alone;
	CHECK_EQ(hmm_mirror_register(&still, hmm), 0);
	memory = pinned(PAGES, 1);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 1));
	wait_settled();
	CHECK(atomic_load(&stops) >= PAGES);
	CHECK(atomic_load(&resumes) <= atomic_load(&stops));
	CHECK_EQ(reachable(memory, PAGES), 0);
	atomic_store(&enough, true);
	for (unsigned int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	end();
}

/* ---- hmmd is killed while it is stopped ---------------------------------------------------- */

static _Atomic bool announced;

static int quiesce_and_tell(struct hmm_mirror *me, const struct hmm_update *update)
{
	atomic_store(&stopped, true);
	atomic_fetch_add(&stops, 1);
	last_stop = *update;
	if (!atomic_exchange(&announced, true)) {
		puts("stopped");
		fflush(stdout);
		/* hmmd dies meanwhile. */
		while (getchar() != '\n')
			;
	}
	return 0;
}

static const struct hmm_mirror_ops telling = {
	.size = sizeof(telling), .quiesce = quiesce_and_tell, .resume = resume,
};

static void killed_between(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	still.device = still_device("still", 0);
	still.ops = &telling;
	CHECK_EQ(hmm_mirror_register(&still, hmm), 0);
	memory = pinned(PAGES, 1);
	CHECK_EQ(*(volatile uint64_t *)memory, test_word(0, 0, 1));
	while (atomic_load(&stopped) || atomic_load(&resumes) == 0)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	/* The new hmmd stopped it for everything, and let it go on. */
	CHECK(atomic_load(&stops) >= 2);
	CHECK_EQ(last_resume.event == HMM_UPDATE_RESTORED || last_resume.event == HMM_UPDATE_GONE, 1);
	CHECK_EQ(reachable(memory + PAGE, PAGES - 1), PAGES - 1);
	CHECK_EQ(reachable(memory, 1), 0);
	CHECK_EQ(pin(memory, PAGES), 0);
	test_device_check(memory, PAGES, 1);
	test_check(memory, PAGES, 1);
	wait_settled();
	puts("resumed");
	end();
}

static const struct test_case cases[] = {
	{ "bad-input", bad_input, false }, { "rules", rules, false },
	{ "touch-read", touch_read, false }, { "touch-write", touch_write, false },
	{ "unadvised", unadvised, false }, { "unmapped", unmapped, false },
	{ "discarded", discarded, false }, { "moved", moved, false },
	{ "protected", protected, false }, { "forked", forked, false },
	{ "coherent", coherent, false }, { "pressed", pressed, false },
	{ "windowed", windowed, false }, { "pinned-window", pinned_window, false },
	{ "in-order", in_order, false },
	{ "killed-between", killed_between, true }, { NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "windowed", windowed_driver, false }, { "pinned-window", pinned_window_driver, false },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
