/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * callbacks.c - invalidations, in the library's thread and in the driver's own event
 * loop, of one process; and callbacks that ask for too much, or take their time.
 *
 * These run under a hmmd whose deadline is longer than a test may take: an answer
 * that is missing shows as a test that hangs.
 */
#include <hmm/compat.h>	/* before a mirror is named mirror */

#include "told.h"

#include <poll.h>
#include <sys/resource.h>

/* ---- memory that is mapped anew while a driver takes its time ------------------- */

static _Atomic bool takes_time, was_asked, may_answer;

static int take_time(struct hmm_mirror *me, const struct hmm_update *update)
{
	if (!atomic_load(&takes_time))
		return 0;
	atomic_store(&was_asked, true);
	while (!atomic_load(&may_answer))
		usleep(1000);
	return 0;
}

static const struct hmm_mirror_ops taking_time = { .size = sizeof(taking_time),
						   .sync_cpu_device_pagetables = take_time };

/* What is there now is not what was to go, and stays. */
static void map_anew_meanwhile(bool shared)
{
	char *page;
	pthread_t thread;

	test_open(0, DEVICE_MEMORY);
	changed = test_map_in_block(PAGES);
	test_fill(changed, PAGES, 1);
	page = changed + 3 * PAGE;
	tell_mirrors(1, &taking_time);
	if (shared) {
		migrate_out(NULL);
		test_check(changed, PAGES, 1);
	}
	atomic_store(&takes_time, true);
	thread = start(try_out);
	while (!atomic_load(&was_asked))
		usleep(1000);
	CHECK_EQ(munmap(page, PAGE), 0);
	CHECK(mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page);
	memset(page, 'n', PAGE);
	atomic_store(&may_answer, true);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	for (size_t i = 0; i < PAGE; i++)
		CHECK_EQ(page[i], 'n');
	test_check(changed, 3, 1);
	for (size_t i = 4; i < PAGES; i++)
		for (size_t word = 0; word < PAGE / 8; word++)
			CHECK_EQ(((uint64_t *)(void *)(changed + i * PAGE))[word], test_word(i, word, 1));
	forget_mirrors(1);
	test_close();
}

static void mapped_anew(void)
{
	map_anew_meanwhile(false);
}

static void mapped_anew_shared(void)
{
	map_anew_meanwhile(true);
}

/* ---- a thread changes things, this one dispatches --------------------------------- */

static void arguments(void)
{
	int fd;

	CHECK_EQ(hmm_dispatch_fd(NULL), -EINVAL);
	CHECK_EQ(hmm_dispatch(NULL, 0, 0), -EINVAL);
	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_dispatch(hmm, 0, 0), -EINVAL);
	/* The fixture's mirror has no callbacks: it is not too late. */
	fd = hmm_dispatch_fd(hmm);
	CHECK(fd >= 0);
	CHECK_EQ(hmm_dispatch_fd(hmm), fd);
	CHECK(!readable(fd));
	CHECK_EQ(hmm_dispatch(hmm, 0, 0), 0);
	CHECK_EQ(hmm_dispatch(hmm, 3, 20), 0);
	test_close();
	/* Its descriptor went with it. */
	CHECK_EQ(poll(&(struct pollfd){ .fd = fd, .events = POLLIN }, 1, 0), 1);
}

static void too_late(void)
{
	test_open(0, DEVICE_MEMORY);
	tell_mirrors(1, &counting);
	CHECK_EQ(hmm_dispatch_fd(hmm), -EBUSY);
	CHECK(strlen(hmm_last_error()) > 0);
	CHECK_EQ(hmm_dispatch(hmm, 0, 0), -EINVAL);
	forget_mirrors(1);
	/* For good. */
	CHECK_EQ(hmm_dispatch_fd(hmm), -EBUSY);
	test_close();
}

static void no_descriptor(void)
{
	struct rlimit before, few;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
	few = (struct rlimit){ 3, before.rlim_max };
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
	CHECK_EQ(hmm_dispatch_fd(hmm), -EMFILE);
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
	CHECK(hmm_dispatch_fd(hmm) >= 0);
	test_close();
}

/* What the event loop of a driver does, for migrations out and home. */
static void loop(void)
{
	pthread_t thread;
	int fd = begin_loop(1, &counting);

	thread = start_and_hear(migrate_out, fd);
	/* Level-triggered, and nobody else runs it. */
	CHECK(readable(fd));
	CHECK_EQ(atomic_load(&calls), 0);
	CHECK_EQ(hmm_dispatch(hmm, 0, 0), 1);
	run_until_joined(thread);
	CHECK(pthread_equal(caller, pthread_self()));
	CHECK_EQ(last_update.reason, HMM_REASON_MIGRATE);
	CHECK(last_update.start >= (unsigned long)changed);
	CHECK(last_update.end <= (unsigned long)changed + PAGES * PAGE);
	CHECK(!readable(fd));
	CHECK_EQ(hmm_dispatch(hmm, 0, 0), 0);

	thread = start(write_all);
	CHECK_EQ(hmm_dispatch(hmm, 1, -1), 1);
	CHECK_EQ(last_update.reason, HMM_REASON_CPU_FAULT);
	run_until_joined(thread);
	test_check(changed, PAGES, 2);
	forget_mirrors(1);
	test_close();
}

/* The loop's own calls wait for callbacks that nobody but it can run. */
static void alone(void)
{
	static char copy[PAGE];
	unsigned int before;
	pthread_t thread;

	begin_loop(2, &counting);
	migrate_out(NULL);
	CHECK(atomic_load(&calls) >= 2);
	before = atomic_load(&calls);
	/* A thread's fault is in the way of the read. */
	thread = start(write_all);
	while (!readable(hmm_dispatch_fd(hmm)))
		usleep(1000);
	CHECK_EQ(hmm_device_read(&told[0], (unsigned long)changed, copy, PAGE), PAGE);
	CHECK(atomic_load(&calls) > before);
	run_until_joined(thread);
	CHECK(pthread_equal(caller, pthread_self()));
	migrate_out(NULL);
	CHECK_EQ(hmm_migrate(&told[1], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
	forget_mirrors(2);
	test_check(changed, PAGES, 2);
	test_close();
}

/* Three mirrors are told of one change: no more run than asked for. */
static void at_most(void)
{
	pthread_t thread;
	int fd = begin_loop(3, &counting);

	thread = start(migrate_out);
	for (unsigned int i = 0; i < 3; i++) {
		CHECK_EQ(hmm_dispatch(hmm, 1, -1), 1);
		CHECK_EQ(atomic_load(&calls), i + 1);
	}
	run_until_joined(thread);
	CHECK(!readable(fd));
	test_device_check(changed, PAGES, 1);
	/* Its pages come home, of which the other two are told. */
	thread = start(write_all);
	run_until_joined(thread);
	CHECK(atomic_load(&calls) >= 6);
	CHECK_EQ(hmm_dispatch(hmm, 0, 0), 0);
	forget_mirrors(3);
	test_check(changed, PAGES, 2);
	test_close();
}

static void in_child(void)
{
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	CHECK(hmm_dispatch_fd(hmm) >= 0);
	child = fork();
	if (!child) {
		CHECK_EQ(hmm_dispatch(hmm, 0, 0), -ESTALE);
		CHECK_EQ(hmm_dispatch_fd(hmm), -ESTALE);
		hmm_close(hmm);
		_exit(0);
	}
	test_reap(child, 0);
	CHECK_EQ(hmm_dispatch(hmm, 0, 0), 0);
	test_close();
}

/* ---- a loop that has several things to wait for ---------------------------------- */

static struct hmm *second;

static void *close_second(void *arg)
{
	hmm_close(second);
	return NULL;
}

/* This process by its key, with the owner's device told-1 and a mirror on it. */
static void open_second(void)
{
	int key = hmm_export(hmm);

	CHECK(key >= 0);
	CHECK_EQ(hmm_open_peer(key, NULL, &second), 0);
	close(key);
	told[1] = (struct hmm_mirror){ .ops = &counting };
	CHECK_EQ(hmm_device_open(second, "told-1", &told[1].device), 0);
}

/* One thread dispatches two handles and waits on one: both handles' callbacks are run there. */
static void two_handles(void)
{
	struct hmm_device *device;
	unsigned int before;
	pthread_t thread;

	test_open(0, DEVICE_MEMORY);
	device = test_device("told-1", DEVICE_MEMORY);
	open_second();
	CHECK(hmm_dispatch_fd(second) >= 0);
	CHECK(hmm_dispatch_fd(hmm) >= 0);
	tell_mirrors(1, &counting);
	CHECK_EQ(hmm_mirror_register(&told[1], second), 0);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	migrate_out(NULL);
	CHECK(atomic_load(&calls_of[0]) > 0);
	CHECK(atomic_load(&calls_of[1]) > 0);
	CHECK(pthread_equal(caller, pthread_self()));
	/* Waiting for callbacks of the one it runs the other's, and counts its own alone. */
	before = atomic_load(&calls_of[1]);
	thread = start(write_all);
	while (!readable(hmm_dispatch_fd(hmm)))
		usleep(1000);
	while (atomic_load(&calls_of[1]) == before)
		CHECK_EQ(hmm_dispatch(second, 1, -1), 1);
	run_until_joined(thread);
	test_check(changed, PAGES, 2);
	/* A handle that another thread frees is nobody's duty any more. */
	CHECK_EQ(hmm_mirror_unregister(&told[1]), 0);
	hmm_device_put(told[1].device);
	thread = start(close_second);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	migrate_out(NULL);
	/* And another may come to lie where it was. */
	open_second();
	CHECK(hmm_dispatch_fd(second) >= 0);
	CHECK_EQ(hmm_mirror_register(&told[1], second), 0);
	before = atomic_load(&calls_of[1]);
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_SYSTEM, 0, NULL, NULL), PAGES);
	CHECK(atomic_load(&calls_of[1]) > before);
	CHECK_EQ(hmm_mirror_unregister(&told[1]), 0);
	hmm_device_put(told[1].device);
	hmm_close(second);
	forget_mirrors(1);
	hmm_device_put(device);
	test_check(changed, PAGES, 2);
	test_close();
}

static void *dispatch_and_end(void *arg)
{
	CHECK_EQ(hmm_dispatch(hmm, 0, 0), 0);
	return NULL;
}

/* The duty of a thread ends with it; there may be many, one after the other. */
static void many_threads(void)
{
	pthread_t thread;

	test_open(0, DEVICE_MEMORY);
	CHECK(hmm_dispatch_fd(hmm) >= 0);
	for (unsigned int i = 0; i < 100; i++) {
		thread = start(dispatch_and_end);
		CHECK_EQ(pthread_join(thread, NULL), 0);
	}
	tell_mirrors(1, &counting);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	migrate_out(NULL);
	CHECK(atomic_load(&calls) > 0);
	forget_mirrors(1);
	test_close();
}

/* A loop that forks while a thread's migration waits for one of its callbacks. */
static void forking_loop(void)
{
	pthread_t thread;
	pid_t child;
	int fd = begin_loop(1, &counting);

	thread = start_and_hear(try_out, fd);
	child = fork();
	if (!child) {
		test_check(changed, PAGES, 1);
		_exit(0);
	}
	CHECK(atomic_load(&calls) > 0);
	test_reap(child, 0);
	run_until_joined(thread);
	forget_mirrors(1);
	test_check(changed, PAGES, 1);
	test_close();
}

static void *fork_one(void *arg)
{
	pid_t child = fork();

	if (!child)
		_exit(0);
	test_reap(child, 0);
	return NULL;
}

/* A loop that migrates while a thread's fork waits for one of its callbacks. */
static void before_the_gate(void)
{
	pthread_t thread;
	int fd = begin_loop(1, &counting);

	migrate_out(NULL);
	thread = start_and_hear(fork_one, fd);
	migrate_out(NULL);
	run_until_joined(thread);
	forget_mirrors(1);
	test_check(changed, PAGES, 1);
	test_close();
}

/* A loop that waits until its own callback has made a range valid. */
static void range_in_loop(void)
{
	struct hmm_range range = { 0 };
	pthread_t thread;
	int fd = open_loop(1, &counting);

	changed = test_map_in_block(PAGES);
	test_fill(changed, PAGES, 1);
	thread = start_and_hear(migrate_out, fd);
	CHECK_EQ(hmm_range_register(&range, &told[0], (unsigned long)changed, (unsigned long)changed + PAGES * PAGE,
				    12), 0);
	CHECK(!hmm_range_valid(&range));
	CHECK(hmm_range_wait_until_valid(&range, 30000));
	CHECK(atomic_load(&calls) > 0);
	run_until_joined(thread);
	hmm_range_unregister(&range);
	forget_mirrors(1);
	test_check(changed, PAGES, 1);
	test_close();
}

/* ---- what a callback may call -------------------------------------------------- */

static _Atomic bool asked;

static int ask_for_much(struct hmm_mirror *me, const struct hmm_update *update)
{
	unsigned long page = update->start;
	struct hmm_device *device;
	static char bytes[8];

	if (atomic_exchange(&asked, true))
		return 0;
	/* What waits for pages would wait for this callback. */
	CHECK_EQ(hmm_mirror_unregister(me), -EDEADLK);
	CHECK_EQ(hmm_device_read(me, page, bytes, 8), -EDEADLK);
	CHECK_EQ(hmm_device_write(me, page, bytes, 8), -EDEADLK);
	CHECK_EQ(hmm_migrate(me, page, PAGE, HMM_DEVICE, 0, NULL, NULL), -EDEADLK);
	CHECK_EQ(hmm_migrate(me, page, PAGE, HMM_SYSTEM, 0, NULL, NULL), -EDEADLK);
	CHECK_EQ(hmm_exclude(hmm, page, PAGE), -EDEADLK);
	CHECK_EQ(hmm_drain(me), -EDEADLK);
	CHECK_EQ(hmm_dispatch(hmm, 0, 0), -EDEADLK);
	CHECK(strstr(hmm_last_error(), "callback"));
	/* The last reference stays: its end would wait for this very callback. */
	hmm_close(hmm);
	CHECK(strstr(hmm_last_error(), "callback"));
	/* The rest answers. */
	CHECK_EQ(hmm_mirror_lookup(me, page), 0);
	CHECK(hmm_features(hmm) != 0);
	CHECK_EQ(hmm_device_open(hmm, "nobody", &device), -ENODEV);
	CHECK_EQ(hmm_device_open(hmm, "told-0", &device), 0);
	hmm_device_put(device);
	CHECK_EQ(hmm_prefetch(me, page, PAGE, HMM_DEVICE, 0, -1, NULL), 0);
	return 0;
}

static const struct hmm_mirror_ops asking = { .size = sizeof(asking),
					      .sync_cpu_device_pagetables = ask_for_much };

static void join(pthread_t thread, bool by_thread)
{
	if (by_thread)
		CHECK_EQ(pthread_join(thread, NULL), 0);
	else
		run_until_joined(thread);
}

static void inside(bool by_thread)
{
	pthread_t thread;

	test_open(0, DEVICE_MEMORY);
	if (!by_thread)
		CHECK(hmm_dispatch_fd(hmm) >= 0);
	tell_mirrors(1, &asking);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	thread = start(migrate_out);
	join(thread, by_thread);
	CHECK(atomic_load(&asked));
	/* Outside all of it works again. */
	thread = start(write_all);
	join(thread, by_thread);
	forget_mirrors(1);
	test_check(changed, PAGES, 2);
	test_close();
}

static void inside_thread(void)
{
	inside(true);
}

static void inside_loop(void)
{
	inside(false);
}

/* ---- ranges, while a driver takes its time ------------------------------------------- */

static void *bring_home(void *arg)
{
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_SYSTEM, 0, NULL, NULL), PAGES);
	return arg;
}

/* As long as a callback has not returned its block changes, and whoever waits for that is not kept. */
static void never_valid(void)
{
	static const uint64_t flags[HMM_PFN_FLAG_MAX] = { 1, 2, 4 }, values[HMM_PFN_VALUE_MAX] = { 64, 0, 128 };
	struct hmm_range range = { .flags = flags, .values = values, .pfn_shift = 12 };
	uint64_t pfns[PAGES];
	pthread_t thread;

	test_open(0, DEVICE_MEMORY);
	changed = test_map_in_block(PAGES);
	test_fill(changed, PAGES, 1);
	tell_mirrors(1, &taking_time);
	migrate_out(NULL);
	atomic_store(&takes_time, true);
	thread = start(bring_home);
	while (!atomic_load(&was_asked))
		usleep(1000);
	range.pfns = pfns;
	range.start = (unsigned long)changed;
	range.end = range.start + PAGES * PAGE;
	for (size_t i = 0; i < PAGES; i++)
		pfns[i] = 1;
	CHECK_EQ(hmm_vma_fault(&mirror, &range, true), -EAGAIN);
	/* 5.2 left it registered. */
	CHECK(!range.priv);
	CHECK_EQ(hmm_range_register(&range, &mirror, range.start, range.end, 12), 0);
	CHECK(!hmm_range_wait_until_valid(&range, 0) && !hmm_range_wait_until_valid(&range, 100));
	CHECK(!range.valid && !hmm_range_valid(&range));
	CHECK_EQ(hmm_range_snapshot(&range), -EAGAIN);
	CHECK(hmm_range_fault(&range, false) < 0);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(pfns[i], 1);
	atomic_store(&takes_time, false);
	atomic_store(&may_answer, true);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK(hmm_range_wait_until_valid(&range, 30000));
	hmm_range_unregister(&range);
	while (hmm_vma_fault(&mirror, &range, true) == -EBUSY)
		;
	CHECK(hmm_vma_range_done(&range));
	CHECK_EQ(pfns[5], hmm_device_entry_from_pfn(&range, (unsigned long)changed / PAGE + 5) | 2);
	test_check(changed, PAGES, 1);
	forget_mirrors(1);
	test_close();
}

static const struct test_case cases[] = {
	{ "arguments", arguments, false }, { "mapped-anew", mapped_anew, false },
	{ "mapped-anew-shared", mapped_anew_shared, false }, { "too-late", too_late, false },
	{ "no-descriptor", no_descriptor, false }, { "loop", loop, false }, { "alone", alone, false },
	{ "at-most", at_most, false }, { "two-handles", two_handles, false },
	{ "many-threads", many_threads, false }, { "forking-loop", forking_loop, false },
	{ "before-the-gate", before_the_gate, false }, { "range-in-loop", range_in_loop, false },
	{ "in-child", in_child, false }, { "inside-thread", inside_thread, false },
	{ "inside-loop", inside_loop, false }, { "never-valid", never_valid, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
