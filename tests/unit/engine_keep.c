// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_keep.c - windows of drivers that have lost their connection: whose is whose, where hmmd cannot see their
 * pids, too, and who is stopped.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/window.h"
#include "engine_fixture.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(keep);

static struct fixture fixture;

/* Over the room, and at the same addresses in each driver. @peer 0: kept. */
static struct window *window(uint64_t peer, pid_t driver, int uffd)
{
	struct window *window = calloc(1, sizeof(*window));

	cr_assert(ne(ptr, window, NULL));
	window->guarded = calloc(((ROOM_END - ROOM_START) >> HMM_BLOCK_SHIFT) + 2, sizeof(*window->guarded));
	window->id = fixture.owner->id << 16 | ++fixture.owner->next_window;
	window->mirror = fixture.mirror;
	window->peer = peer;
	window->driver = driver;
	window->uffd = uffd;
	window->source.fd = -1;
	window->start = window->at = ROOM_START;
	window->end = ROOM_END;
	window->armed = true;
	TAILQ_INSERT_TAIL(&fixture.owner->windows, window, link);
	fixture.mirror->windows++;
	return window;
}

static unsigned int windows(void)
{
	struct window *window;
	unsigned int n = 0;

	TAILQ_FOREACH(window, &fixture.owner->windows, link)
		n++;
	return n;
}

static int uffd(void)
{
	int fd = kernel_uffd_new();

	cr_assert(ge(int, fd, 0));
	return fd;
}

/* Two drivers in containers of their own, say: what one arms is nothing to what is kept of the other. */
Test(keep, drivers_without_pids_are_not_one)
{
	struct window *kept, *other, *back;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	kept = window(0, 0, uffd());
	other = window(DRIVER, 0, uffd());
	window_replace_kept(other);
	cr_expect(eq(uint, windows(), 2));
	/* It comes back with what it has. */
	back = window(DRIVER + 1, 0, fcntl(kept->uffd, F_DUPFD_CLOEXEC, 3));
	kept->guarded[1] = true;
	window_replace_kept(back);
	cr_expect(eq(uint, windows(), 2));
	cr_expect(back->guarded[1]);
	cr_expect(not(other->guarded[1]));
	fixture_end(&fixture);
}

Test(keep, a_driver_with_a_pid_comes_back)
{
	struct window *back;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	window(0, 100, uffd());
	window(0, 101, uffd());
	back = window(DRIVER, 100, uffd());
	window_replace_kept(back);
	cr_expect(eq(uint, windows(), 2));
	cr_expect(eq(int, TAILQ_FIRST(&fixture.owner->windows)->driver, 101));
	fixture_end(&fixture);
}

/* A window that can't be guarded is closed: no other one is, of whoever else is not connected, either. */
Test(keep, one_is_revoked)
{
	struct window *broken, *other;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	fixture_out(&fixture, 0, 4);
	broken = window(0, 100, open("/dev/null", O_RDONLY | O_CLOEXEC));
	other = window(0, 101, uffd());
	*window_guarded(other, fixture_block(&fixture, 0)) = true;
	window_guard(fixture_block(&fixture, 0));
	cr_expect(broken->revoked);
	cr_expect(not(other->revoked));
	fixture_end(&fixture);
}

/* What a driver was told by an earlier hmmd counts, and an hour whatever the journal says. */
Test(keep, grace_is_the_longest_told)
{
	struct owner *owner;

	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	owner = fixture.owner;
	owner->worker->engine->options.grace_ms = 100;
	owner->journal->grace_ms = 0;
	owner_note_grace(owner);
	cr_expect(eq(long, owner_grace_ns(owner), 100 * NS_PER_MS));
	owner->journal->grace_ms = 60000;
	owner_note_grace(owner);
	cr_expect(eq(long, owner_grace_ns(owner), 60000 * NS_PER_MS));
	owner->journal->grace_ms = UINT64_MAX;
	cr_expect(eq(long, owner_grace_ns(owner), ENGINE_GRACE_MAX_MS * NS_PER_MS));
	fixture_end(&fixture);
}

/* A process with a userfaultfd, which it hands over, and no window. Return: its pid. */
static pid_t whose_uffd(int *uffd, int *end)
{
	int pipefd[2], pidfd;
	pid_t child;

	cr_assert(eq(int, pipe(pipefd), 0));
	child = fork();
	if (!child) {
		int fd = kernel_uffd_new();

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (fd < 0 || kernel_uffd_api(fd, 0, NULL) || dup2(fd, 200) != 200 || write(pipefd[1], "", 1) != 1)
			_exit(1);
		close(pipefd[1]);
		for (;;)
			pause();
	}
	*end = pipefd[0];
	close(pipefd[1]);
	cr_assert(eq(long, read(*end, &(char){ 0 }, 1), 1));
	pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	*uffd = (int)syscall(SYS_pidfd_getfd, pidfd, 200, 0);
	cr_assert(ge(int, *uffd, 0));
	close(pidfd);
	return child;
}

/* A driver that lives keeps its window, whose pages are left alone; of one that is gone nothing is kept. */
Test(keep, until_the_memory_is_gone)
{
	int fd, end;
	pid_t child;

	/* Before: the fixture's own process would wait in fork() for somebody to read of it. */
	child = whose_uffd(&fd, &end);
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, POOL);
	window(DRIVER, child, fd);
	fixture.owner->journal->grace_ms = 60000;
	fixture.owner->worker->now = 1;
	window_peer_gone(fixture.owner, DRIVER);
	window_tick(fixture.owner, 2);
	cr_expect(eq(uint, windows(), 1));
	cr_assert(eq(int, kill(child, SIGKILL), 0));
	cr_assert(eq(int, waitpid(child, NULL, 0), child));
	window_tick(fixture.owner, 3);
	cr_expect(eq(uint, windows(), 0));
	close(end);
	fixture_end(&fixture);
}

static void *stays(void *nothing)
{
	for (;;)
		pause();
	return nothing;
}

static pid_t whose_first_thread_has_ended(void)
{
	pid_t child = fork();
	pthread_t thread;

	if (child)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (pthread_create(&thread, NULL, stays, NULL))
		_exit(1);
	pthread_exit(NULL);
}

static char state_of_first(pid_t pid)
{
	char path[32], state = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "re");
	cr_assert(ne(ptr, file, NULL));
	cr_assert(eq(int, fscanf(file, "%*d (%*[^)]) %c", &state), 1));
	fclose(file);
	return state;
}

Test(keep, stopped_whatever_the_first_thread_does, .timeout = 60)
{
	pid_t child = whose_first_thread_has_ended();

	while (state_of_first(child) != 'Z')
		usleep(1000);
	cr_expect(process_is_alive(child));
	cr_expect(not(process_is_stopped(child)));
	cr_assert(eq(int, kill(child, SIGSTOP), 0));
	while (!process_is_stopped(child))
		usleep(1000);
	cr_assert(eq(int, kill(child, SIGCONT), 0));
	while (process_is_stopped(child))
		usleep(1000);
	cr_assert(eq(int, kill(child, SIGKILL), 0));
	cr_assert(eq(int, waitpid(child, NULL, 0), child));
	cr_expect(not(process_is_stopped(0)));
}
