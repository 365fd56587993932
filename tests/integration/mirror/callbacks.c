/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * callbacks.c - invalidations and releases, in the library's thread and in the
 * driver's own event loop; and drivers that ask for too much in one, fall over in
 * one, or never run one.
 *
 * These run under a hmmd whose deadline is longer than a test may take: an answer
 * that is missing shows as a test that hangs. The cases about the deadline itself are
 * started by tests of their own.
 */
#include "driver.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>

#define DEVICE_MEMORY (64UL << 20)
#define PAGES 64UL

static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

static bool readable(int fd)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

	CHECK(poll(&poll_fd, 1, 0) >= 0);
	return poll_fd.revents & POLLIN;
}

static void wait_readable(int fd)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

	CHECK_EQ(poll(&poll_fd, 1, -1), 1);
	CHECK_EQ(poll_fd.revents, POLLIN);
}

/* ---- one process: a thread changes things, this one dispatches ---------------- */

static struct hmm_mirror told[3];
static _Atomic unsigned int calls, calls_of[3], running;
static pthread_t caller;
static struct hmm_update last_update;

static int count_call(struct hmm_mirror *me, const struct hmm_update *update)
{
	CHECK_EQ(atomic_fetch_add(&running, 1), 0);
	CHECK(me >= told && me < told + 3);
	CHECK_EQ(update->event, HMM_UPDATE_INVALIDATE);
	caller = pthread_self();
	last_update = *update;
	atomic_fetch_add(&calls, 1);
	atomic_fetch_add(&calls_of[me - told], 1);
	atomic_fetch_sub(&running, 1);
	return 0;
}

static const struct hmm_mirror_ops counting = { .size = sizeof(counting),
						.sync_cpu_device_pagetables = count_call };

static void tell_mirrors(unsigned int n, const struct hmm_mirror_ops *operations)
{
	char name[16];

	for (unsigned int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "told-%u", i);
		told[i].device = test_device(name, DEVICE_MEMORY);
		told[i].ops = operations;
		CHECK_EQ(hmm_mirror_register(&told[i], hmm), 0);
	}
}

static void forget_mirrors(unsigned int n)
{
	for (unsigned int i = 0; i < n; i++) {
		CHECK_EQ(hmm_mirror_unregister(&told[i]), 0);
		hmm_device_put(told[i].device);
	}
}

static char *changed;

/* However often its change has to begin anew. */
static void run_until_joined(pthread_t thread)
{
	while (pthread_tryjoin_np(thread, NULL))
		hmm_dispatch(hmm, 0, 20);
}

static void *migrate_out(void *arg)
{
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
	return NULL;
}

static void *try_out(void *arg)
{
	hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL);
	return NULL;
}

static void *write_all(void *arg)
{
	test_fill(changed, PAGES, 2);
	return NULL;
}

static pthread_t start(void *(*change)(void *))
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, change, NULL), 0);
	return thread;
}

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
	int fd;

	test_open(0, DEVICE_MEMORY);
	fd = hmm_dispatch_fd(hmm);
	CHECK(fd >= 0);
	tell_mirrors(1, &counting);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);

	thread = start(migrate_out);
	wait_readable(fd);
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

	test_open(0, DEVICE_MEMORY);
	CHECK(hmm_dispatch_fd(hmm) >= 0);
	tell_mirrors(2, &counting);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
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
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
	CHECK_EQ(hmm_migrate(&told[1], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
	forget_mirrors(2);
	test_check(changed, PAGES, 2);
	test_close();
}

/* Three mirrors are told of one change: no more run than asked for. */
static void at_most(void)
{
	pthread_t thread;
	int fd;

	test_open(0, DEVICE_MEMORY);
	fd = hmm_dispatch_fd(hmm);
	tell_mirrors(3, &counting);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
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

/* What waits when its mirror goes is answered and never run: nobody else could answer. */
static void dropped(void)
{
	unsigned int before;
	pthread_t thread;
	int fd;

	test_open(0, DEVICE_MEMORY);
	fd = hmm_dispatch_fd(hmm);
	tell_mirrors(3, &counting);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	thread = start(migrate_out);
	wait_readable(fd);
	CHECK_EQ(hmm_mirror_unregister(&told[1]), 0);
	run_until_joined(thread);
	CHECK(!readable(fd));
	CHECK(atomic_load(&calls_of[0]) > 0);
	CHECK_EQ(atomic_load(&calls_of[1]), 0);
	before = atomic_load(&calls_of[2]);
	CHECK(before > 0);
	test_device_check(changed, PAGES, 1);
	hmm_device_put(told[1].device);

	thread = start(write_all);
	wait_readable(fd);
	CHECK_EQ(hmm_mirror_unregister(&told[2]), 0);
	CHECK_EQ(atomic_load(&calls_of[2]), before);
	CHECK_EQ(hmm_mirror_unregister(&told[0]), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK(!readable(fd));
	CHECK_EQ(hmm_dispatch(hmm, 0, 0), 0);
	hmm_device_put(told[0].device);
	hmm_device_put(told[2].device);
	test_check(changed, PAGES, 2);
	test_close();
}

/* A handle that is closed while something waits. */
static void closed(void)
{
	unsigned int before;
	pthread_t thread;

	test_open(0, DEVICE_MEMORY);
	CHECK(hmm_dispatch_fd(hmm) >= 0);
	tell_mirrors(1, &counting);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	CHECK_EQ(hmm_migrate(&mirror, (unsigned long)changed, PAGE, HMM_SYSTEM, 0, NULL, NULL), 1);
	thread = start(migrate_out);
	wait_readable(hmm_dispatch_fd(hmm));
	/* One, or two where the pages lie in two blocks. */
	CHECK(hmm_dispatch(hmm, 0, 0) >= 1);
	run_until_joined(thread);
	before = atomic_load(&calls);
	thread = start(write_all);
	wait_readable(hmm_dispatch_fd(hmm));
	/* All that is left of it goes with it. */
	hmm_close(hmm);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(atomic_load(&calls), before);
	test_check(changed, PAGES, 2);
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
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
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
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
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
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
	CHECK(atomic_load(&calls) > 0);
	forget_mirrors(1);
	test_close();
}

/* A loop that forks while a thread's migration waits for one of its callbacks. */
static void forking_loop(void)
{
	pthread_t thread;
	pid_t child;
	int fd;

	test_open(0, DEVICE_MEMORY);
	fd = hmm_dispatch_fd(hmm);
	tell_mirrors(1, &counting);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	thread = start(try_out);
	wait_readable(fd);
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
	int fd;

	test_open(0, DEVICE_MEMORY);
	fd = hmm_dispatch_fd(hmm);
	tell_mirrors(1, &counting);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
	thread = start(fork_one);
	wait_readable(fd);
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
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
	int fd;

	test_open(0, DEVICE_MEMORY);
	fd = hmm_dispatch_fd(hmm);
	tell_mirrors(1, &counting);
	changed = test_map_in_block(PAGES);
	test_fill(changed, PAGES, 1);
	thread = start(migrate_out);
	wait_readable(fd);
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

/* Nobody but the thread that closes runs the callback that a prefetch waits for. */
static void closed_while_prefetching(void)
{
	test_open(0, DEVICE_MEMORY);
	CHECK(hmm_dispatch_fd(hmm) >= 0);
	tell_mirrors(1, &counting);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	CHECK_EQ(hmm_prefetch(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, -1, NULL), 0);
	hmm_close(hmm);
	CHECK(atomic_load(&calls) > 0);
	test_check(changed, PAGES, 1);
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
	while (pthread_tryjoin_np(thread, NULL))
		if (by_thread)
			usleep(1000);
		else
			hmm_dispatch(hmm, 0, 20);
	CHECK(atomic_load(&asked));
	/* Outside all of it works again. */
	thread = start(write_all);
	while (pthread_tryjoin_np(thread, NULL))
		if (by_thread)
			usleep(1000);
		else
			hmm_dispatch(hmm, 0, 20);
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

/* A callback that runs in another thread is waited for. */
static _Atomic bool entered, leave;

static int linger(struct hmm_mirror *me, const struct hmm_update *update)
{
	atomic_store(&entered, true);
	while (!atomic_load(&leave))
		usleep(1000);
	atomic_fetch_add(&calls, 1);
	return 0;
}

static const struct hmm_mirror_ops lingering = { .size = sizeof(lingering),
						 .sync_cpu_device_pagetables = linger };

static void *dispatch_one(void *arg)
{
	CHECK_EQ(hmm_dispatch(hmm, 1, -1), 1);
	return NULL;
}

static void *let_leave(void *arg)
{
	usleep(100000);
	atomic_store(&leave, true);
	return NULL;
}

static void waited_for(void)
{
	pthread_t changing, dispatching, letting;

	test_open(0, DEVICE_MEMORY);
	CHECK(hmm_dispatch_fd(hmm) >= 0);
	tell_mirrors(1, &lingering);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	dispatching = start(dispatch_one);
	changing = start(try_out);
	while (!atomic_load(&entered))
		usleep(1000);
	letting = start(let_leave);
	/* The pages go out, when the callback has answered, and home before it is done. */
	CHECK_EQ(hmm_mirror_unregister(&told[0]), 0);
	CHECK_EQ(atomic_load(&calls), 1);
	CHECK_EQ(pthread_join(letting, NULL), 0);
	CHECK_EQ(pthread_join(dispatching, NULL), 0);
	CHECK_EQ(pthread_join(changing, NULL), 0);
	hmm_device_put(told[0].device);
	test_check(changed, PAGES, 1);
	test_close();
}

/* ---- while the handle is being closed ------------------------------------------------ */

static _Atomic bool closing, worked;
static char *other;

static void *close_it(void *arg)
{
	atomic_store(&closing, true);
	hmm_close(hmm);
	return NULL;
}

static void await_closer(void)
{
	atomic_store(&entered, true);
	while (!atomic_load(&closing))
		usleep(1000);
	/* Until it waits for this callback, which it says to nobody. */
	usleep(1000000);
}

/* What a program may do at any time, with what lies at @other: two blocks, of which one was on a device. */
static void change_mappings(void)
{
	char *place = test_map(1), *moved;
	pid_t child;

	CHECK_EQ(mprotect(other, PAGE, PROT_READ), 0);
	CHECK_EQ(mprotect(other, PAGE, PROT_READ | PROT_WRITE), 0);
	moved = mremap(other + 3 * BLOCK, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	CHECK(moved == place);
	test_check(moved, 1, 9);
	moved = mremap(other, 2 * BLOCK, 3 * BLOCK, MREMAP_MAYMOVE);
	CHECK(moved != MAP_FAILED);
	test_check(moved, 8, 5);
	/* Else it waits for the deadline, which these have none of. */
	if (hmm_features(hmm) & HMM_HAS_EVENT_FORK) {
		child = fork();
		if (!child) {
			test_check(moved, 8, 5);
			/* What waits for this very callback, too. */
			test_check(changed, PAGES, 1);
			_exit(0);
		}
		test_reap(child, 0);
	}
	CHECK_EQ(munmap(moved, 3 * BLOCK), 0);
}

static int work_while_it_closes(struct hmm_mirror *me, const struct hmm_update *update)
{
	struct hmm *again;

	if (!atomic_load(&asked) || atomic_load(&entered))
		return 0;
	await_closer();
	CHECK_EQ(hmm_open(NULL, &again), -EDEADLK);
	change_mappings();
	atomic_store(&worked, true);
	return 0;
}

static const struct hmm_mirror_ops working = { .size = sizeof(working),
					       .sync_cpu_device_pagetables = work_while_it_closes };

static void *open_again(void *arg)
{
	struct hmm **again = arg;

	CHECK_EQ(hmm_open(NULL, again), 0);
	return NULL;
}

/* hmm_close() waits for a callback, and holds nothing that the callback may want. */
static void work_while_closing(bool by_thread)
{
	pthread_t writer, closer, opener, dispatching = 0;
	struct hmm *again = NULL;

	test_open(0, DEVICE_MEMORY);
	if (!by_thread)
		CHECK(hmm_dispatch_fd(hmm) >= 0);
	other = test_map_huge(4);
	test_fill(other, 8, 5);
	test_fill(other + 3 * BLOCK, 1, 9);
	test_out(other, 8);
	test_home(other, 8);
	changed = test_map(PAGES);
	test_fill(changed, PAGES, 1);
	test_out(changed, PAGES);
	tell_mirrors(1, &working);
	atomic_store(&asked, true);
	writer = start(write_all);
	if (!by_thread)
		dispatching = start(dispatch_one);
	while (!atomic_load(&entered))
		usleep(1000);
	closer = start(close_it);
	while (!atomic_load(&closing))
		usleep(1000);
	usleep(500000);
	/* This process can be opened anew when it has been closed, and not before. */
	CHECK_EQ(pthread_create(&opener, NULL, open_again, &again), 0);
	CHECK_EQ(pthread_join(closer, NULL), 0);
	CHECK(atomic_load(&worked));
	if (!by_thread)
		CHECK_EQ(pthread_join(dispatching, NULL), 0);
	CHECK_EQ(pthread_join(writer, NULL), 0);
	CHECK_EQ(pthread_join(opener, NULL), 0);
	CHECK(again);
	hmm_close(again);
	test_check(changed, PAGES, 2);
}

static void closed_thread(void)
{
	work_while_closing(true);
}

static void closed_loop(void)
{
	work_while_closing(false);
}

/* ---- drivers of their own -------------------------------------------------------- */

static sigjmp_buf fault;

static void jump(int signal)
{
	siglongjmp(fault, signal);
}

/* The signal that a load from there raises, or 0. */
static int touch(const void *address)
{
	int signal = sigsetjmp(fault, 1);

	if (!signal)
		(void)*(const volatile char *)address;
	return signal;
}

static void catch_faults(void)
{
	struct sigaction action = { .sa_handler = jump };

	CHECK_EQ(sigaction(SIGSEGV, &action, NULL), 0);
	CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
}

static _Atomic unsigned int releases;
static const char *seen_in_release;

static void note_release(struct hmm_mirror *me)
{
	char byte;

	/* What is in flight may end; nothing new begins. */
	CHECK_EQ(hmm_device_read(me, (unsigned long)seen_in_release, &byte, 1), -ESTALE);
	if (seen_in_release)
		CHECK_EQ(touch(seen_in_release), 0);
	atomic_fetch_add(&releases, 1);
}

static const struct hmm_mirror_ops releasing = { .size = sizeof(releasing),
						 .release = note_release };

/* With a window, and by the library's thread or the driver's loop. */
static void released_driver(bool by_thread, const struct hmm_mirror_ops *operations)
{
	unsigned long address = test_driver_join();
	struct hmm_window *window;
	const char *bytes;
	char byte;
	int fd = -1;

	catch_faults();
	if (!by_thread)
		fd = hmm_dispatch_fd(hmm);
	mirror.ops = operations;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	CHECK_EQ(hmm_window_map(&mirror, address, 4 * PAGE, HMM_WINDOW_OFFSET, &window), 0);
	bytes = hmm_window_ptr(window, address);
	CHECK_EQ(touch(bytes), 0);
	seen_in_release = bytes;
	CHECK_EQ(hmm_device_read(&mirror, address, &byte, 1), 1);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	if (!by_thread) {
		wait_readable(fd);
		CHECK_EQ(hmm_device_read(&mirror, address, &byte, 1), -ESTALE);
		CHECK_EQ(atomic_load(&releases), 0);
		CHECK_EQ(hmm_dispatch(hmm, 0, 0), 1);
		CHECK(!readable(fd));
	} else if (operations->release) {
		while (!atomic_load(&releases))
			usleep(1000);
	}
	CHECK_EQ(atomic_load(&releases), operations->release ? 1 : 0);
	/* Later ones fault: by its thread a moment later. */
	while (by_thread && !touch(bytes))
		usleep(1000);
	CHECK_EQ(touch(bytes), SIGSEGV);
	CHECK_EQ(touch(bytes + PAGE), SIGSEGV);
	CHECK_EQ(hmm_device_read(&mirror, address, &byte, 1), -ESTALE);
	CHECK_EQ(hmm_device_write(&mirror, address, &byte, 1), -ESTALE);
	CHECK_EQ(hmm_migrate(&mirror, address, PAGE, HMM_DEVICE, 0, NULL, NULL), -ESTALE);
	CHECK_EQ(hmm_mirror_lookup(&mirror, address), 0);
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	CHECK_EQ(atomic_load(&releases), operations->release ? 1 : 0);
}

static void released_loop_driver(void)
{
	released_driver(false, &releasing);
}

static void released_thread_driver(void)
{
	released_driver(true, &releasing);
}

static void release_and_work(struct hmm_mirror *me)
{
	char *place = test_map(2);
	pid_t child;

	await_closer();
	CHECK(mremap(place, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place + PAGE) == place + PAGE);
	child = fork();
	if (!child)
		_exit(0);
	test_reap(child, 0);
	atomic_store(&worked, true);
}

static const struct hmm_mirror_ops releasing_and_working = { .size = sizeof(releasing_and_working),
							     .release = release_and_work };

static void closing_driver(void)
{
	pthread_t closer;

	test_driver_open(&releasing_and_working);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	while (!atomic_load(&entered))
		usleep(1000);
	closer = start(close_it);
	CHECK_EQ(pthread_join(closer, NULL), 0);
	CHECK(atomic_load(&worked));
}

static void unasked_driver(void)
{
	released_driver(true, &quiet);
}

/* The owner ends, or becomes another program, which must not be reached by the old addresses. */
static void released(const char *name, bool execute)
{
	int socket;
	pid_t driver = test_driver_start(name, &socket), owner;
	uint64_t word;

	owner = fork();
	if (!owner) {
		char *memory;

		test_open(0, DEVICE_MEMORY);
		memory = test_map(4);
		test_fill(memory, 4, 3);
		test_out(memory, 4);
		test_invite(socket, memory);
		CHECK(test_hear(socket, &word, NULL));
		if (!execute)
			raise(SIGKILL);
		execlp("sleep", "sleep", "1000", NULL);
		FAIL("execlp: %m");
	}
	close(socket);
	if (!execute)
		test_reap(owner, SIGKILL);
	test_reap(driver, 0);
	if (execute) {
		kill(owner, SIGKILL);
		test_reap(owner, SIGKILL);
	}
}

static void killed_loop(void)
{
	released("killed-loop", false);
}

static void executed_loop(void)
{
	released("executed-loop", true);
}

static void killed_thread(void)
{
	released("killed-thread", false);
}

static void executed_thread(void)
{
	released("executed-thread", true);
}

static void closed_in_release(void)
{
	released("closed-in-release", false);
}

static void unasked(void)
{
	released("unasked", false);
}

static int fall_over(struct hmm_mirror *me, const struct hmm_update *update)
{
	abort();
}

static const struct hmm_mirror_ops falling = { .size = sizeof(falling),
					       .sync_cpu_device_pagetables = fall_over };

static void crashing_driver(bool by_thread)
{
	unsigned long address = test_driver_join();

	if (!by_thread)
		CHECK(hmm_dispatch_fd(hmm) >= 0);
	mirror.ops = &falling;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	CHECK(address);
	CHECK_EQ(setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 }), 0);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	for (;;)
		if (by_thread)
			pause();
		else
			hmm_dispatch(hmm, 0, -1);
}

static void crashing_loop_driver(void)
{
	crashing_driver(false);
}

static void crashing_thread_driver(void)
{
	crashing_driver(true);
}

/* The driver dies in its callback: the owner's write goes on, and finds what was there. */
static void crashing(const char *name)
{
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start(name, &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map(PAGES);
	test_fill(memory, PAGES, 4);
	test_out(memory, PAGES);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	test_check(memory, PAGES, 4);
	test_fill(memory, PAGES, 5);
	test_reap(driver, SIGABRT);
	test_out(memory, PAGES);
	test_check(memory, PAGES, 5);
	test_close();
}

static void crashing_loop(void)
{
	crashing("crashing-loop");
}

static void crashing_thread(void)
{
	crashing("crashing-thread");
}

/* ---- the deadline: under a hmmd that has one ------------------------------------------ */

static int count_for_driver(struct hmm_mirror *me, const struct hmm_update *update)
{
	atomic_fetch_add(&calls, 1);
	return 0;
}

static const struct hmm_mirror_ops late = { .size = sizeof(late),
					    .sync_cpu_device_pagetables = count_for_driver };

/* The touch waits for a callback, so the loop goes on meanwhile. */
static void *touch_alone(void *address)
{
	CHECK_EQ(touch(address), 0);
	return NULL;
}

/* Its loop never gets to it: it has lost its window when it comes. */
static void never_dispatched_driver(void)
{
	unsigned long address = test_driver_join();
	struct hmm_window *window;
	const char *bytes;
	pthread_t thread;
	uint64_t word;
	int fd;

	catch_faults();
	fd = hmm_dispatch_fd(hmm);
	mirror.ops = &late;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	CHECK_EQ(hmm_window_map(&mirror, address, PAGES * PAGE, HMM_WINDOW_OFFSET, &window), 0);
	bytes = hmm_window_ptr(window, address);
	CHECK_EQ(pthread_create(&thread, NULL, touch_alone, (void *)(uintptr_t)bytes), 0);
	run_until_joined(thread);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	CHECK(readable(fd));
	CHECK(touch(bytes) != 0);
	/* Too late, and harmless. */
	CHECK(hmm_dispatch(hmm, 0, 0) > 0);
	CHECK(atomic_load(&calls) > 0);
	CHECK(touch(bytes) != 0);
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void never_dispatched(void)
{
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start("never-dispatched", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map(PAGES);
	test_fill(memory, PAGES, 6);
	test_out(memory, PAGES);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	test_fill(memory, PAGES, 7);
	test_check(memory, PAGES, 7);
	test_tell(socket, 2, -1);
	test_reap(driver, 0);
	test_check(memory, PAGES, 7);
	test_close();
}

static const struct test_case cases[] = {
	{ "arguments", arguments, false }, { "mapped-anew", mapped_anew, false },
	{ "mapped-anew-shared", mapped_anew_shared, false }, { "too-late", too_late, false },
	{ "no-descriptor", no_descriptor, false }, { "loop", loop, false }, { "alone", alone, false },
	{ "at-most", at_most, false }, { "two-handles", two_handles, false },
	{ "many-threads", many_threads, false }, { "forking-loop", forking_loop, false },
	{ "before-the-gate", before_the_gate, false }, { "range-in-loop", range_in_loop, false },
	{ "closed-while-prefetching", closed_while_prefetching, false },
	{ "dropped", dropped, false }, { "closed", closed, false }, { "in-child", in_child, false },
	{ "inside-thread", inside_thread, false }, { "inside-loop", inside_loop, false },
	{ "waited-for", waited_for, false }, { "closed-thread", closed_thread, false },
	{ "closed-loop", closed_loop, false }, { "closed-in-release", closed_in_release, false },
	{ "killed-loop", killed_loop, false },
	{ "executed-loop", executed_loop, false }, { "killed-thread", killed_thread, false },
	{ "executed-thread", executed_thread, false }, { "unasked", unasked, false },
	{ "crashing-loop", crashing_loop, false }, { "crashing-thread", crashing_thread, false },
	{ "never-dispatched", never_dispatched, true }, { NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "killed-loop", released_loop_driver, false }, { "executed-loop", released_loop_driver, false },
	{ "killed-thread", released_thread_driver, false }, { "executed-thread", released_thread_driver, false },
	{ "closed-in-release", closing_driver, false },
	{ "unasked", unasked_driver, false }, { "crashing-loop", crashing_loop_driver, false },
	{ "crashing-thread", crashing_thread_driver, false },
	{ "never-dispatched", never_dispatched_driver, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
