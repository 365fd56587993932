/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * freeze.c - no thread of a process runs for a moment, so that its soft-dirty bits can be read
 * and cleared in one. Runs on the owner's worker, which is their tracer meanwhile.
 *
 * Happy path: each thread is seized and interrupted, until a look at the list of threads shows no
 * new one; then all of them are let go. No signal is sent, their parent sees nothing.
 *
 * What can fail: somebody traces the process already, or it has threads of the kernel's own (io_uring's
 * workers); hmmd may not; a thread waits in the kernel for something that this very worker would have to serve. Then
 * all others are let go after a while and it is tried again. A thread can't be let go while it
 * runs, only when it has come to stand: until then it stays in the list. One that dies is buried by its tracer, or its process
 * stays for ever.
 *
 * execve() keeps whoever attaches waiting until it is over, which may be never: it waits itself, for its file, or
 * for other threads to be buried by their tracers. So that wait, too, is ended by the clock: by a signal.
 */
#include "tracking/freeze.h"

#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Of a worker that others wait for, too. */
#define PATIENCE_NS	20000000LL
#define PAUSE_NS	20000L

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static bool is_noted(const struct stopped_threads *threads, pid_t tid)
{
	for (unsigned int i = 0; i < threads->count; i++)
		if (threads->list[i].tid == tid)
			return true;
	return false;
}

/* ---- a call that is left when time is up ------------------------------------------------ */

/*
 * So often it is called anew before it is left: a call that does not wait is over before the next bell, even where this
 * thread hardly gets a processor.
 */
#define BELLS	3

/* Volatile: for all that the compiler knows nobody looks at them during those calls. */
static __thread sigjmp_buf *volatile way_out;
static __thread volatile int bells;

/* When this returns the kernel begins the call anew. */
static void ring(int number)
{
	(void)number;
	if (way_out && ++bells == BELLS)
		siglongjmp(*way_out, 1);
}

static void let_ring(int how)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(how, &set, NULL);
}

/* SIGALRM for this thread, again and again; it is blocked but in attach(). */
static int clock_begin(timer_t *timer)
{
	const struct timespec every = { .tv_nsec = PATIENCE_NS / BELLS };
	const struct itimerspec when = { .it_value = every, .it_interval = every };
	const struct sigaction action = { .sa_handler = ring };
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM };

	event._sigev_un._tid = gettid();
	if (sigaction(SIGALRM, &action, NULL) || timer_create(CLOCK_MONOTONIC, &event, timer))
		return -errno;
	timer_settime(*timer, 0, &when, NULL);
	return 0;
}

static void clock_end(timer_t timer)
{
	sigset_t set;

	timer_delete(timer);
	/* It has rung, perhaps. */
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	while (sigtimedwait(&set, NULL, &(struct timespec){ 0 }) > 0)
		;
}

/* -ETIMEDOUT: most likely it has not been done. */
static int attach(pid_t tid)
{
	volatile int r = -ETIMEDOUT;
	sigjmp_buf here;

	if (!sigsetjmp(here, 0)) {
		bells = 0;
		way_out = &here;
		let_ring(SIG_UNBLOCK);
		r = ptrace(PTRACE_SEIZE, tid, NULL, NULL) ? -errno : 0;
		let_ring(SIG_BLOCK);
	}
	way_out = NULL;
	return r;
}

/* ---- threads ----------------------------------------------------------------------------- */

/* It has ended, and only waits to be buried. */
static bool is_dead(pid_t pid, pid_t tid)
{
	char path[64], text[512], *end;
	FILE *file;
	size_t n;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	file = fopen(path, "re");
	if (!file)
		return true;
	n = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[n] = '\0';
	end = strrchr(text, ')');
	return !end || !end[1] || end[2] == 'Z' || end[2] == 'X';
}

static int note(struct stopped_threads *threads, pid_t tid)
{
	struct stopped_thread *list;

	if (threads->count == threads->room) {
		list = realloc(threads->list, (threads->room + 64) * sizeof(*list));
		if (!list)
			return -ENOMEM;
		threads->list = list;
		threads->room += 64;
	}
	threads->list[threads->count++] = (struct stopped_thread){ .tid = tid };
	return 0;
}

/* Noted first: what is seized is let go, whatever becomes of the rest. */
static int seize(struct stopped_threads *threads, pid_t pid, pid_t tid)
{
	int r = note(threads, tid);

	if (r)
		return r;
	r = attach(tid);
	if (!r || r == -ETIMEDOUT) {
		ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
		return r;
	}
	threads->count--;
	if (r == -ESRCH || is_dead(pid, tid))
		return 0;
	/* One error for: not allowed, traced by another, a thread of the kernel's own. */
	return r == -EPERM && !threads->count ? r : -EBUSY;
}

/* Return: how many were new, or -errno. */
static int seize_new(struct stopped_threads *threads, pid_t pid)
{
	unsigned int before = threads->count;
	struct dirent *entry;
	char path[32];
	DIR *dir;
	int r = 0;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return -ESRCH;
	while (!r && (entry = readdir(dir))) {
		pid_t tid = (pid_t)atoi(entry->d_name);

		if (tid > 0 && !is_noted(threads, tid))
			r = seize(threads, pid, tid);
	}
	closedir(dir);
	return r ? r : (int)(threads->count - before);
}

/* What the kernel says of it without a wait. */
static void look(const struct stopped_threads *threads, struct stopped_thread *thread)
{
	int status = 0;
	pid_t r = waitpid(thread->tid, &status, __WALL | WNOHANG);

	/* By its execve() it has the number of the first one, which had ended before. */
	if (r < 0 && errno == ECHILD && !is_noted(threads, threads->pid)) {
		thread->tid = threads->pid;
		r = waitpid(thread->tid, &status, __WALL | WNOHANG);
	}
	if (r > 0 && WIFSTOPPED(status)) {
		/* By our interruption, or right before a signal. */
		thread->state = STOPPED_STANDS;
		if (!(status >> 16))
			thread->signal = WSTOPSIG(status);
	} else if (r > 0 || (r < 0 && errno != EINTR)) {
		thread->state = STOPPED_GONE;
	} else if (thread->tid == threads->pid && is_dead(threads->pid, thread->tid)) {
		/* The kernel tells of the first one's end when it is the last one. */
		thread->state = STOPPED_DEAD;
	}
}

static int await_all(struct stopped_threads *threads, int64_t until)
{
	for (unsigned int i = 0; i < threads->count; i++) {
		struct stopped_thread *thread = &threads->list[i];

		while (thread->state == STOPPED_NOT_YET) {
			look(threads, thread);
			if (thread->state != STOPPED_NOT_YET)
				break;
			if (now() >= until)
				return -EAGAIN;
			nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
		}
	}
	return 0;
}

/* True: it is ours no more. */
static bool let_go(const struct stopped_threads *threads, struct stopped_thread *thread)
{
	if (thread->state != STOPPED_STANDS)
		look(threads, thread);
	if (thread->state == STOPPED_STANDS) {
		if (!ptrace(PTRACE_DETACH, thread->tid, NULL, (void *)(uintptr_t)thread->signal))
			return true;
		/* It was killed where it stood, and has to be buried. */
		thread->state = STOPPED_NOT_YET;
		look(threads, thread);
	}
	return thread->state == STOPPED_GONE;
}

static int freeze_until(pid_t pid, struct stopped_threads *threads, int64_t until)
{
	int new, r;

	threads->pid = pid;
	do {
		new = seize_new(threads, pid);
		r = await_all(threads, until);
	} while (new > 0 && !r);
	if (!r && !new)
		return 0;
	/* Whoever has not come to stand is seen to first, whatever else is wrong. */
	return thaw(threads) && new < 0 ? new : -EAGAIN;
}

int freeze(pid_t pid, struct stopped_threads *threads)
{
	sigset_t mask;
	timer_t timer;
	int r;

	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	let_ring(SIG_BLOCK);
	r = clock_begin(&timer);
	if (!r) {
		r = freeze_until(pid, threads, now() + PATIENCE_NS);
		clock_end(timer);
	}
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	return r;
}

bool thaw(struct stopped_threads *threads)
{
	unsigned int kept = 0;
	bool all = true;

	for (unsigned int i = 0; i < threads->count; i++) {
		struct stopped_thread thread = threads->list[i];

		if (let_go(threads, &thread))
			continue;
		all = all && thread.state == STOPPED_DEAD;
		threads->list[kept++] = thread;
	}
	threads->count = kept;
	if (!kept) {
		free(threads->list);
		*threads = (struct stopped_threads){ 0 };
	}
	return all;
}
