/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * clerk.c - the thread that owns the library's private descriptor table.
 *
 * A program may close descriptors it does not know (close_range(3, ~0) before
 * an exec, a daemonising library): ours must survive that, because the last
 * close of a userfaultfd turns migrated memory into zeros. And our threads must
 * not keep the program's pipes open. So the clerk unshares its table as its
 * first act and empties it. Every other library thread is started by the clerk
 * and shares that table; descriptors of the program are fetched one by one with
 * pidfd_getfd(), or where that is forbidden (a container's seccomp filter), by porter.c.
 *
 * The happy path: a program's thread posts a job and sleeps on its futex, the
 * clerk takes the jobs in order. It lives as long as the process; idle it sleeps
 * on a futex. A job may block in sendmsg() when hmmd does not read: later jobs then
 * wait, as their callers would anyway.
 */
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "arena.h"
#include "clerk.h"
#include "error.h"
#include "futex.h"
#include "porter.h"
#include "public.h"

#ifdef __SANITIZE_THREAD__
#define STACK_SIZE	(2UL << 20)	/* of which it wants most */
#else
#define STACK_SIZE	(512UL << 10)
#endif
#define STACK_SIZE_MAX	(16UL << 20)	/* programs with very large thread-local data */

static struct {
	struct futex_lock start_lock;
	struct futex_lock lock;
	struct futex_lock spare_lock;	/* of the call for when the arena is used up */
	uint32_t posted;		/* futex: the clerk sleeps on it */
	struct job *head, *tail;
	struct thread thread;
	uint32_t ready;			/* latch: 1 up, else -errno */
	int pidfd;			/* of this process, in the private table */
	bool wire;			/* keep descriptor 2 for HMMD_DEBUG=wire */
	bool porter;			/* pidfd_getfd() is forbidden */
} clerk LIBRARY_DATA = { .pidfd = -1 };

static __thread bool private __attribute__((tls_model("initial-exec")));

bool hmmc_thread_is_private(void)
{
	return private;
}

static void *thread_main(void *argument)
{
	struct thread *thread = argument;

	private = thread->private;
	prctl(PR_SET_NAME, thread->name);
	thread->main(thread->argument);
	return NULL;
}

static int thread_create(struct thread *thread, size_t stack_size)
{
	pthread_attr_t attr;
	sigset_t all, before;
	int error;

	thread->stack = hmmc_arena_alloc(stack_size);
	if (!thread->stack)
		return -ENOMEM;
	pthread_attr_init(&attr);
	error = pthread_attr_setstack(&attr, thread->stack, stack_size);
	if (!error) {
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		error = pthread_create(&thread->id, &attr, thread_main, thread);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	pthread_attr_destroy(&attr);
	if (error) {
		hmmc_arena_free(thread->stack, stack_size);
		thread->stack = NULL;
	}
	thread->stack_size = stack_size;
	return -error;
}

int hmmc_thread_start(struct thread *thread, const char *name, void (*main)(void *), void *argument)
{
	size_t size = STACK_SIZE;
	int error;

	thread->main = main;
	thread->argument = argument;
	thread->private = private || thread == &clerk.thread;
	snprintf(thread->name, sizeof(thread->name), "%s", name);
	do {
		error = thread_create(thread, size);
	} while (error == -EINVAL && (size *= 4) <= STACK_SIZE_MAX);
	thread->started = error == 0;
	return error;
}

void hmmc_thread_join(struct thread *thread)
{
	if (!thread->started)
		return;
	pthread_join(thread->id, NULL);
	thread->started = false;
	hmmc_arena_free(thread->stack, thread->stack_size);
}

/* An empty table of our own, with something harmless where libc writes its last words. */
static int private_table(void)
{
	int fd, debug = -1;

	if (clerk.wire) {
		/*
		 * The copy of the table is made by close_range() itself, so move stderr up
		 * afterwards.
		 */
		if (syscall(SYS_close_range, 3U, ~0U, 1U << 1))
			return -errno;
		debug = fcntl(2, F_DUPFD_CLOEXEC, 100);
		syscall(SYS_close_range, 0U, 2U, 0U);
	} else if (syscall(SYS_close_range, 0U, ~0U, 1U << 1)) {
		return -errno;
	}
	for (int i = 0; i < 3; i++) {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		if (fd < 0)
			fd = memfd_create("hmm-null", MFD_CLOEXEC);
		if (fd < 0)
			return -errno;
	}
	if (debug >= 0)
		hmm_frame_debug_fd(debug);
	clerk.pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	/* Where it is forbidden, or not known, keys cannot be taken over, and all else can. */
	return clerk.pidfd < 0 && (errno == ENFILE || errno == EMFILE || errno == ENOMEM) ? -errno : 0;
}

/* Asked for what cannot be a descriptor, a kernel that may fetch one says so. */
static bool may_fetch(void)
{
	return clerk.pidfd >= 0 && syscall(SYS_pidfd_getfd, clerk.pidfd, INT_MAX, 0) < 0 && errno == EBADF;
}

static struct job *take(void)
{
	struct job *job;

	futex_lock(&clerk.lock);
	job = clerk.head;
	if (job) {
		clerk.head = job->next;
		if (!clerk.head)
			clerk.tail = NULL;
	}
	futex_unlock(&clerk.lock);
	return job;
}

static void clerk_main(void *argument)
{
	int error = private_table();

	/* Without one that is needed, what takes a descriptor fails, and nothing else. */
	if (!error && !may_fetch())
		clerk.porter = hmmc_porter_receive() == 0;
	futex_latch_set(&clerk.ready, error ? (uint32_t)error : 1);
	if (error)
		return;
	for (;;) {
		uint32_t posted = __atomic_load_n(&clerk.posted, __ATOMIC_ACQUIRE);
		struct job *job = take();

		if (job)
			job->run(job);
		else
			futex_wait(&clerk.posted, posted, NULL);
	}
}

int hmmc_clerk_start(void)
{
	const char *debug;
	uint32_t ready;
	int error = 0;

	futex_lock(&clerk.start_lock);
	if (!clerk.thread.started) {
		debug = getenv("HMMD_DEBUG");
		clerk.wire = debug && strstr(debug, "wire");
		hmm_frame_debug_init("client");
		clerk.ready = 0;
		error = hmmc_thread_start(&clerk.thread, "hmm-clerk", clerk_main, NULL);
		if (!error) {
			ready = futex_latch_wait(&clerk.ready);
			if (ready != 1) {
				error = (int)ready;
				hmmc_thread_join(&clerk.thread);
			} else if (clerk.porter) {
				hmmc_porter_start();
			}
		}
	}
	futex_unlock(&clerk.start_lock);
	if (error)
		return hmmc_fail(error, "cannot start the library's own thread: %s",
				 strerror(-error));
	return 0;
}

void hmmc_clerk_post(struct job *job)
{
	job->next = NULL;
	futex_lock(&clerk.lock);
	if (clerk.tail)
		clerk.tail->next = job;
	else
		clerk.head = job;
	clerk.tail = job;
	futex_unlock(&clerk.lock);
	__atomic_add_fetch(&clerk.posted, 1, __ATOMIC_RELEASE);
	futex_wake(&clerk.posted, 1);
}

struct call {
	struct job job;
	int (*fn)(void *argument);
	void *argument;
	int result;
	uint32_t done;
};

static void run_call(struct job *job)
{
	struct call *call = (struct call *)job;

	call->result = call->fn(call->argument);
	futex_latch_set(&call->done, 1);
}

/*
 * Not on the caller's stack, which may be away. Where the arena is used up there is one more, which is waited for: much of what
 * is called ends something, and who frees it behind a call that was not made frees it under somebody's hands.
 */
int hmmc_clerk_call(int (*fn)(void *argument), void *argument)
{
	static struct call spare LIBRARY_DATA;
	struct call *call;
	int result;

	if (private)
		return fn(argument);
	call = hmmc_arena_alloc(sizeof(*call));
	if (!call) {
		futex_lock(&clerk.spare_lock);
		call = &spare;
		call->done = 0;
	}
	call->job.run = run_call;
	call->fn = fn;
	call->argument = argument;
	hmmc_clerk_post(&call->job);
	futex_latch_wait(&call->done);
	result = call->result;
	if (call == &spare)
		futex_unlock(&clerk.spare_lock);
	else
		hmmc_arena_free(call, sizeof(*call));
	return result;
}

int hmmc_clerk_take_fd(int fd)
{
	int taken;

	if (clerk.porter)
		return hmmc_porter_fetch(fd);
	if (clerk.pidfd < 0)
		return -ENOSYS;
	taken = (int)syscall(SYS_pidfd_getfd, clerk.pidfd, fd, 0);
	return taken < 0 ? -errno : taken;
}

void hmmc_clerk_forget(void)
{
	memset(&clerk, 0, sizeof(clerk));
	hmmc_porter_forget();
	clerk.pidfd = -1;
	private = false;
}
