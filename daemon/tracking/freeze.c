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
 * runs, only when it has come to stand: until then it stays in the list.
 */
#include "tracking/freeze.h"

#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

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
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) == 0) {
		ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
		return 0;
	}
	r = -errno;
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
static void look(struct stopped_thread *thread)
{
	int status;
	pid_t r = waitpid(thread->tid, &status, __WALL | WNOHANG);

	if (r == 0 || (r < 0 && errno == EINTR))
		return;
	/* Ended, or it stands: by our interruption, or right before a signal. */
	thread->stands = true;
	if (r > 0 && WIFSTOPPED(status) && !(status >> 16))
		thread->signal = WSTOPSIG(status);
}

static int await_all(struct stopped_threads *threads, int64_t until)
{
	for (unsigned int i = 0; i < threads->count; i++) {
		struct stopped_thread *thread = &threads->list[i];

		for (look(thread); !thread->stands; look(thread)) {
			if (now() >= until)
				return -EAGAIN;
			nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
		}
	}
	return 0;
}

int freeze(pid_t pid, struct stopped_threads *threads)
{
	int64_t until = now() + PATIENCE_NS;
	int new, r;

	do {
		new = seize_new(threads, pid);
		r = await_all(threads, until);
	} while (new > 0 && !r);
	if (!r && !new)
		return 0;
	/* Whoever has not come to stand is seen to first, whatever else is wrong. */
	return thaw(threads) && new < 0 ? new : -EAGAIN;
}

bool thaw(struct stopped_threads *threads)
{
	unsigned int left = 0;

	for (unsigned int i = 0; i < threads->count; i++) {
		struct stopped_thread thread = threads->list[i];

		if (!thread.stands)
			look(&thread);
		if (thread.stands)
			ptrace(PTRACE_DETACH, thread.tid, NULL, (void *)(uintptr_t)thread.signal);
		else
			threads->list[left++] = thread;
	}
	threads->count = left;
	if (left)
		return false;
	free(threads->list);
	*threads = (struct stopped_threads){ 0 };
	return true;
}
