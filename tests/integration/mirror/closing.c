/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * closing.c - what ends while callbacks wait or run, in the library's thread and in the
 * driver's own event loop: mirrors and handles that are closed, owners that die or become
 * another program, of which drivers in other processes are told, and drivers that fall over
 * in a callback or never run one.
 *
 * These run under a hmmd whose deadline is longer than a test may take: an answer
 * that is missing shows as a test that hangs. The case about the deadline itself is
 * started by a test of its own.
 */
#include "driver.h"
#include "told.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>

/* ---- something waits, and goes ------------------------------------------------------- */

/* What waits when its mirror goes is answered and never run: nobody else could answer. */
static void dropped(void)
{
	unsigned int before;
	pthread_t thread;
	int fd = begin_loop(3, &counting);

	thread = start_and_hear(migrate_out, fd);
	CHECK_EQ(hmm_mirror_unregister(&told[1]), 0);
	run_until_joined(thread);
	CHECK(!readable(fd));
	CHECK(atomic_load(&calls_of[0]) > 0);
	CHECK_EQ(atomic_load(&calls_of[1]), 0);
	before = atomic_load(&calls_of[2]);
	CHECK(before > 0);
	test_device_check(changed, PAGES, 1);
	hmm_device_put(told[1].device);

	thread = start_and_hear(write_all, fd);
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

	begin_loop(1, &counting);
	CHECK_EQ(hmm_migrate(&mirror, (unsigned long)changed, PAGE, HMM_SYSTEM, 0, NULL, NULL), 1);
	thread = start_and_hear(migrate_out, hmm_dispatch_fd(hmm));
	/* One, or two where the pages lie in two blocks. */
	CHECK(hmm_dispatch(hmm, 0, 0) >= 1);
	run_until_joined(thread);
	before = atomic_load(&calls);
	thread = start_and_hear(write_all, hmm_dispatch_fd(hmm));
	/* All that is left of it goes with it. */
	hmm_close(hmm);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(atomic_load(&calls), before);
	test_check(changed, PAGES, 2);
}

/* Nobody but the thread that closes runs the callback that a prefetch waits for. */
static void closed_while_prefetching(void)
{
	begin_loop(1, &counting);
	CHECK_EQ(hmm_prefetch(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, -1, NULL), 0);
	hmm_close(hmm);
	CHECK(atomic_load(&calls) > 0);
	test_check(changed, PAGES, 1);
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

static void *let_leave(void *arg)
{
	usleep(100000);
	atomic_store(&leave, true);
	return NULL;
}

static void waited_for(void)
{
	pthread_t changing, dispatching, letting;

	begin_loop(1, &lingering);
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

static _Atomic bool asked, both_wait, worked;
static _Atomic pid_t closer_id, opener_id;
static char *other;

static void *close_it(void *arg)
{
	atomic_store(&closer_id, gettid());
	hmm_close(hmm);
	return NULL;
}

static char thread_state(pid_t id)
{
	char path[64], line[256] = "";
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", id);
	file = fopen(path, "re");
	/* Else it has ended and waited for nobody. */
	CHECK(file);
	CHECK(fgets(line, sizeof(line), file) && strrchr(line, ')'));
	fclose(file);
	return strrchr(line, ')')[2];
}

/* Until that thread waits for the callback, which it says to nobody: it does nothing else for so long. */
static void await_waiting(const _Atomic pid_t *id)
{
	for (int asleep = 0; asleep < 100; usleep(1000)) {
		pid_t now = atomic_load(id);

		asleep = now && thread_state(now) == 'S' ? asleep + 1 : 0;
	}
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
	atomic_store(&entered, true);
	while (!atomic_load(&both_wait))
		usleep(1000);
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

	atomic_store(&opener_id, gettid());
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
	await_waiting(&closer_id);
	/* This process can be opened anew when it has been closed, and not before. */
	CHECK_EQ(pthread_create(&opener, NULL, open_again, &again), 0);
	await_waiting(&opener_id);
	atomic_store(&both_wait, true);
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

static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };
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

	atomic_store(&entered, true);
	await_waiting(&closer_id);
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

	owner = fork();
	if (!owner) {
		test_open(0, DEVICE_MEMORY);
		test_lend(socket, 4, 3);
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
	char *memory;
	int socket;
	pid_t driver = test_driver_start(name, &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_lend(socket, PAGES, 4);
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
	char *memory;
	int socket;
	pid_t driver = test_driver_start("never-dispatched", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_lend(socket, PAGES, 6);
	test_fill(memory, PAGES, 7);
	test_check(memory, PAGES, 7);
	test_tell(socket, 2, -1);
	test_reap(driver, 0);
	test_check(memory, PAGES, 7);
	test_close();
}

static const struct test_case cases[] = {
	{ "closed-while-prefetching", closed_while_prefetching, false },
	{ "dropped", dropped, false }, { "closed", closed, false },
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
