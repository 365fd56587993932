// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Descriptor tables: the library's threads keep one of their own, and hmmd's are not to be
 * disturbed by whoever holds a dup.
 *
 * What can fail: a program's close_range that closes what keeps its memory alive, or a
 * read(2) of hmmd's that never returns.
 */
#include "contract.h"

#include <linux/close_range.h>

TestSuite(descriptor, .init = contract_begin);

/* A library thread: takes a table of its own, then does as it is told. */
struct library {
	pthread_t thread;
	atomic_int step, done;
	int kept;		/* a descriptor from before the table was unshared */
	int program_fd;		/* a number in the program's table */
	int taken;		/* the same file in the library's */
	bool kept_alive;
	bool program_number_alive;
	int sock;
	int result;
};

static void wait_step(struct library *library, int step)
{
	while (atomic_load(&library->step) < step)
		usleep(1000);
}

static void *library_run(void *arg)
{
	struct library *library = arg;
	int self;

	library->result = unshare(CLONE_FILES);
	atomic_store(&library->done, 1);

	wait_step(library, 2);
	library->kept_alive = fcntl(library->kept, F_GETFD) >= 0;
	library->program_number_alive = fcntl(library->program_fd, F_GETFD) >= 0;
	atomic_store(&library->done, 2);

	/* A pidfd of the process names its main thread's table: the program's. */
	wait_step(library, 3);
	self = pidfd_open(getpid(), 0);
	library->taken = pidfd_getfd(self, library->program_fd, 0);
	close(self);
	atomic_store(&library->done, 3);
	wait_step(library, 4);
	return NULL;
}

static void library_step(struct library *library, int step)
{
	atomic_store(&library->step, step);
	wait_until(atomic_load(&library->done) >= step);
}

static void program_closes_everything(void *arg)
{
	struct library *library = arg;
	int pipe_fd[2];
	char byte;

	library->kept = memfd_new("kept", PAGE, 0);
	child_check(pthread_create(&library->thread, NULL, library_run, library) == 0);
	library_step(library, 1);
	child_check(library->result == 0);
	/* As sudo, daemons and shells do. */
	child_check(close_range(3, ~0U, 0) == 0);
	child_check(fcntl(library->kept, F_GETFD) < 0);
	/* Opened after the split: the library does not have it, and can take it. */
	child_check(pipe2(pipe_fd, O_CLOEXEC) == 0);
	library->program_fd = fcntl(pipe_fd[1], F_DUPFD_CLOEXEC, 200);
	child_check(library->program_fd == 200);
	library_step(library, 2);
	child_check(library->kept_alive);
	child_check(!library->program_number_alive);
	library_step(library, 3);
	child_check(library->taken >= 0);
	close(pipe_fd[1]);
	close(200);
	/* The library's copy keeps the pipe open: nothing is read, and no end of file. */
	child_check(fcntl(pipe_fd[0], F_SETFL, O_NONBLOCK) == 0);
	child_check(read(pipe_fd[0], &byte, 1) == -1 && errno == EAGAIN);
	atomic_store(&library->step, 4);
	child_check(pthread_join(library->thread, NULL) == 0);
	/* With its last thread a private table goes, and all that was in it. */
	wait_until(read(pipe_fd[0], &byte, 1) == 0);
}

Test(descriptor, private_table_survives_close_range)
{
	static struct library library;

	child_passed(child_start(program_closes_everything, &library));
}

/* Threads that a library thread starts share its table, not the program's. */
static void *grandchild_thread(void *arg)
{
	struct library *library = arg;

	library->kept_alive = fcntl(library->kept, F_GETFD) >= 0;
	library->taken = memfd_create("from a grandchild", MFD_CLOEXEC);
	return NULL;
}

static void *parent_thread(void *arg)
{
	struct library *library = arg;
	pthread_t thread;

	library->result = unshare(CLONE_FILES);
	library->kept = fcntl(library->kept, F_DUPFD_CLOEXEC, 300);
	if (pthread_create(&thread, NULL, grandchild_thread, library))
		return NULL;
	pthread_join(thread, NULL);
	library->program_number_alive = fcntl(library->taken, F_GETFD) >= 0;
	return NULL;
}

Test(descriptor, threads_of_a_library_thread_share_its_table)
{
	struct library library = { .kept = memfd_new("kept", PAGE, 0) };
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, parent_thread, &library), 0);
	cr_assert_eq(pthread_join(thread, NULL), 0);
	cr_assert_eq(library.result, 0);
	cr_assert_eq(library.kept, 300);
	cr_assert(library.kept_alive);
	cr_assert(library.program_number_alive);
	cr_assert_lt(fcntl(300, F_GETFD), 0);
}

/* The other way: one end of a socketpair was taken, the program receives by SCM_RIGHTS. */
static void *sender_thread(void *arg)
{
	struct library *library = arg;
	int self = pidfd_open(getpid(), 0);

	if (unshare(CLONE_FILES))
		return NULL;
	library->sock = pidfd_getfd(self, library->program_fd, 0);
	library->kept = memfd_create("library's", MFD_CLOEXEC);
	if (library->kept >= 0 && pwrite(library->kept, "hello", 5, 0) == 5)
		send_fd(library->sock, library->kept);
	return NULL;
}

Test(descriptor, program_receives_from_the_library)
{
	struct library library = { 0 };
	int sock[2], fd;
	pthread_t thread;
	char text[5];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock), 0);
	library.program_fd = sock[1];
	cr_assert_eq(pthread_create(&thread, NULL, sender_thread, &library), 0);
	fd = recv_fd(sock[0]);
	cr_assert_geq(fd, 0);
	cr_assert_eq(pthread_join(thread, NULL), 0);
	cr_assert_eq(pread(fd, text, 5, 0), 5);
	cr_assert_eq(memcmp(text, "hello", 5), 0);
}

/* pidfd_getfd of oneself needs no privilege. */
static void nobody_takes_its_own(void *arg)
{
	int fd = *(int *)arg, self;

	become_nobody();
	self = pidfd_open(getpid(), 0);
	child_check(self >= 0);
	child_check(pidfd_getfd(self, fd, 0) >= 0);
	/* Not even when the program made itself undumpable: it is the same process. */
	child_check(prctl(PR_SET_DUMPABLE, 0) == 0);
	child_check(pidfd_getfd(self, fd, 0) >= 0);
}

Test(descriptor, taking_ones_own_needs_no_privilege)
{
	int fd = memfd_new("own", PAGE, 0);

	require_root();
	child_passed(child_start(nobody_takes_its_own, &fd));
}

/* What a fork child gets is the table of the thread that forked. */
static void *forking_thread(void *arg)
{
	int *fd = arg;
	pid_t pid;

	fd[1] = unshare(CLONE_FILES) ? -1 : memfd_create("only in this thread", MFD_CLOEXEC);
	pid = (pid_t)syscall(SYS_fork);
	if (!pid)
		_exit(fcntl(fd[1], F_GETFD) >= 0 ? 0 : 1);
	fd[0] = pid;
	pause();
	return NULL;
}

Test(descriptor, fork_takes_the_table_of_its_thread)
{
	int fd[2] = { 0, 0 };
	pthread_t thread;
	pid_t pid;

	cr_assert_eq(pthread_create(&thread, NULL, forking_thread, fd), 0);
	wait_until(__atomic_load_n(&fd[0], __ATOMIC_SEQ_CST));
	child_passed(fd[0]);
	/* The program's fork has nothing of the library's. */
	pid = fork();
	if (!pid)
		_exit(fcntl(fd[1], F_GETFD) < 0 ? 0 : 1);
	child_passed(pid);
}

/*
 * O_NONBLOCK belongs to the open file, so a client that holds a dup can clear it. Then
 * poll(2) says POLLERR and not POLLIN, and a plain read(2) blocks: hmmd looks before it reads.
 */
Test(descriptor, cleared_nonblock_shows_as_pollerr)
{
	int fd = uffd_open(0), client = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	struct uffd_msg msg;
	struct call call, load;
	char *mem = map_pages(1);

	cr_assert_eq(poll(&pfd, 1, 0), 0);
	cr_assert_eq(fcntl(client, F_SETFL, 0), 0);
	cr_assert_eq(poll(&pfd, 1, 0), 1);
	cr_assert_eq(pfd.revents, POLLERR);
	CALL(&call, SYS_read, fd, (long)&msg, sizeof(msg));
	cr_assert(still_blocked(&call));
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	load_start(&load, mem);
	cr_assert_eq(call_end(&call), sizeof(msg));
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	call_end(&load);
}

/* preadv2 with RWF_NOWAIT is the cure where the kernel has it: it never sleeps. */
Test(descriptor, rwf_nowait_reads_without_sleeping)
{
	int fd = uffd_open(0);
	struct uffd_msg msg;
	struct iovec iov = { &msg, sizeof(msg) };
	ssize_t got;

	cr_assert_eq(fcntl(fd, F_SETFL, 0), 0);
	got = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
	cr_assert_eq(got, -1);
	if (errno == EOPNOTSUPP)
		skip("RWF_NOWAIT is not for userfaultfd on this kernel");
	cr_assert_eq(errno, EAGAIN);
}

/* A peer's pidfd comes with its socket, free of races with pid reuse. */
Test(descriptor, socket_knows_its_peer)
{
	int sock[2], pidfd = -1;
	socklen_t len = sizeof(pidfd);
	struct ucred cred;
	socklen_t cred_len = sizeof(cred);

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock), 0);
	cr_assert_eq(getsockopt(sock[0], SOL_SOCKET, SO_PEERCRED, &cred, &cred_len), 0);
	cr_assert_eq(cred.pid, getpid());
	if (getsockopt(sock[0], SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len))
		skip("this kernel has no SO_PEERPIDFD");
	cr_assert_geq(pidfd, 0);
}
