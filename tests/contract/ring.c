// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * io_uring on the descriptors that an engine worker multiplexes: userfaultfds, pidfds,
 * /proc/PID/mem.
 *
 * What can fail: a completion that never comes, or a fault that comes without one.
 */
#include "contract.h"

#include <liburing.h>

TestSuite(ring, .init = contract_begin);

static struct io_uring ring_new(void)
{
	struct io_uring ring;
	int result = io_uring_queue_init(8, &ring, 0);

	if (result < 0)
		skip("no io_uring: %s", strerror(-result));
	return ring;
}

/* The next completion; *more: will there be others of the same request? */
static int completion(struct io_uring *ring, bool *more)
{
	struct __kernel_timespec end = { .tv_sec = deadline_ms() / 1000 };
	struct io_uring_cqe *cqe;
	int result;

	cr_assert_eq(io_uring_wait_cqe_timeout(ring, &cqe, &end), 0, "no completion came");
	result = cqe->res;
	if (more)
		*more = cqe->flags & IORING_CQE_F_MORE;
	io_uring_cqe_seen(ring, cqe);
	return result;
}

static bool no_completion(struct io_uring *ring)
{
	struct io_uring_cqe *cqe;

	return io_uring_peek_cqe(ring, &cqe) != 0;
}

Test(ring, read_of_a_userfaultfd)
{
	struct io_uring ring = ring_new();
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
	int fd = uffd_open(0);
	char *mem = map_pages(1);
	struct uffd_msg msg[4];
	struct call call;
	int result;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	io_uring_prep_read(sqe, fd, msg, sizeof(msg), 0);
	io_uring_submit(&ring);
	load_start(&call, mem);
	result = completion(&ring, NULL);
	if (result == -EAGAIN) {
		/* O_NONBLOCK is honoured by some kernels: read when a poll says so. */
		expect_fault(fd, mem, 0);
	} else {
		cr_assert_eq(result, sizeof(msg[0]));
		cr_assert_eq(msg[0].event, UFFD_EVENT_PAGEFAULT);
	}
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	call_end(&call);
}

/* Poll, drained by read(2): one completion for each time that it becomes readable. */
Test(ring, multishot_poll_of_a_userfaultfd)
{
	struct io_uring ring = ring_new();
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
	int fd = uffd_open(UFFD_FEATURE_EVENT_REMOVE);
	char *mem = map_pages(8);
	struct call call;
	bool more;

	cr_assert_eq(uffd_register(fd, mem, 8 * PAGE, MISSING), 0);
	io_uring_prep_poll_multishot(sqe, fd, POLLIN);
	io_uring_submit(&ring);
	for (int i = 0; i < 8; i++) {
		cr_assert(no_completion(&ring));
		load_start(&call, mem + i * PAGE);
		cr_assert(completion(&ring, &more) & POLLIN);
		cr_assert(more, "the poll is still armed");
		expect_fault(fd, mem + i * PAGE, 0);
		cr_assert_eq(uffd_zeropage(fd, mem + i * PAGE, PAGE), 0);
		call_end(&call);
	}
	CALL(&call, SYS_madvise, (long)mem, PAGE, MADV_DONTNEED);
	cr_assert(completion(&ring, &more) & POLLIN, "events too");
	expect_event(fd, UFFD_EVENT_REMOVE);
	cr_assert_eq(call_end(&call), 0);
}

/* A poll that is armed while messages are queued already completes at once. */
Test(ring, poll_of_what_is_queued_already)
{
	struct io_uring ring = ring_new();
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
	int fd = uffd_open(0);
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	load_start(&call, mem);
	wait_until(!no_event(fd));
	io_uring_prep_poll_multishot(sqe, fd, POLLIN);
	io_uring_submit(&ring);
	cr_assert(completion(&ring, NULL) & POLLIN);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	call_end(&call);
}

static void quits(void *arg)
{
	char byte;

	child_check(read(*(int *)arg, &byte, 1) == 1);
}

Test(ring, poll_of_a_pidfd)
{
	struct io_uring ring = ring_new();
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
	int pipe_fd[2];
	pid_t pid;

	cr_assert_eq(pipe2(pipe_fd, O_CLOEXEC), 0);
	pid = child_start(quits, &pipe_fd[0]);
	io_uring_prep_poll_add(sqe, pidfd_open(pid, 0), POLLIN);
	io_uring_submit(&ring);
	cr_assert(no_completion(&ring));
	cr_assert_eq(write(pipe_fd[1], "q", 1), 1);
	cr_assert(completion(&ring, NULL) & POLLIN);
	child_passed(pid);
}

Test(ring, read_of_a_mem_descriptor)
{
	struct io_uring ring = ring_new();
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
	int mem_fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	char *mem = map_pages(1), into[8];

	memset(mem, 7, PAGE);
	io_uring_prep_read(sqe, mem_fd, into, sizeof(into), (uintptr_t)mem);
	io_uring_submit(&ring);
	cr_assert_eq(completion(&ring, NULL), sizeof(into));
	cr_assert_eq(into[7], 7);
}

/* There is no userfaultfd ioctl through io_uring: COPY and the others are system calls. */
Test(ring, uring_cmd_of_a_userfaultfd_is_refused)
{
	struct io_uring ring = ring_new();
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
	int result;

	io_uring_prep_rw(46 /* IORING_OP_URING_CMD */, sqe, uffd_open(0), NULL, 0, 0);
	io_uring_submit(&ring);
	result = completion(&ring, NULL);
	cr_assert(result == -EOPNOTSUPP || result == -EINVAL, "%d", result);
}
