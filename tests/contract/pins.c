// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Pinned memory: written behind userfaultfd's back. What detects a pin, and what does not.
 *
 * A registered io_uring buffer is the pin, vmsplice the plain reference. What can fail: a
 * page that hmmd shares or takes while a device of the owner still writes to it.
 */
#include "contract.h"

#include <liburing.h>

TestSuite(pins, .init = contract_begin);

static char *filled(int value)
{
	void *page = map_pages(1);

	memset(page, value, PAGE);
	return page;
}

/* One pinned page, and a pipe whose bytes io_uring writes through the pin. */
struct pin {
	struct io_uring ring;
	int pipe[2];
	char *mem;
};

static void pin(struct pin *pin, char *mem)
{
	struct iovec iov = { mem, PAGE };
	int result = io_uring_queue_init(8, &pin->ring, 0);

	if (result < 0)
		skip("no io_uring: %s", strerror(-result));
	cr_assert_eq(pipe2(pin->pipe, O_CLOEXEC), 0);
	result = io_uring_register_buffers(&pin->ring, &iov, 1);
	if (result == -ENOMEM)
		skip("RLIMIT_MEMLOCK allows no registered buffer");
	cr_assert_eq(result, 0, "%s", strerror(-result));
	pin->mem = mem;
}

static void write_through(struct pin *pin, int value)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&pin->ring);
	struct __kernel_timespec end = { .tv_sec = deadline_ms() / 1000 };
	struct io_uring_cqe *cqe;
	char bytes[PAGE];

	memset(bytes, value, PAGE);
	cr_assert_eq(write(pin->pipe[1], bytes, PAGE), PAGE);
	io_uring_prep_read_fixed(sqe, pin->pipe[0], pin->mem, PAGE, 0, 0);
	sqe->off = (__u64)-1;
	io_uring_submit(&pin->ring);
	cr_assert_eq(io_uring_wait_cqe_timeout(&pin->ring, &cqe, &end), 0);
	cr_assert_eq(cqe->res, PAGE);
	io_uring_cqe_seen(&pin->ring, cqe);
}

static void unpin(struct pin *pin)
{
	cr_assert_eq(io_uring_unregister_buffers(&pin->ring), 0);
}

Test(pins, pin_before_protection_writes_unseen)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = filled(1);
	struct pin p;

	pin(&p, mem);
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), 0);
	write_through(&p, 9);
	cr_assert(no_event(fd));
	cr_assert_eq(mem[0], 9);
	cr_assert(pagemap(mem) & PM_UFFD_WP, "and the entry still says: not written");
}

/* A pin for writing of a protected page asks like any writer. */
Test(pins, pin_after_protection_asks)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = filled(1);
	struct iovec iov = { mem, PAGE };
	struct io_uring ring;
	struct call call;

	if (io_uring_queue_init(8, &ring, 0) < 0)
		skip("no io_uring");
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), 0);
	CALL(&call, SYS_io_uring_register, ring.ring_fd, IORING_REGISTER_BUFFERS, (long)&iov, 1);
	wait_until(call.done || !no_event(fd));
	/* Linux 6.1 cannot wait there, and refuses. */
	if (no_event(fd)) {
		cr_assert_eq(call_end(&call), -EFAULT);
		return;
	}
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, false), 0);
	cr_assert_eq(call_end(&call), 0);
}

/* Zapped under a pin, the page lives on as an orphan that the program does not see. */
Test(pins, pin_outlives_the_zap)
{
	char *mem = filled(1);
	struct pin p;

	pin(&p, mem);
	cr_assert_eq(madvise(mem, PAGE, MADV_DONTNEED), 0);
	write_through(&p, 77);
	cr_assert_eq(mem[0], 0, "the bytes went nowhere");
}

/* The full tier's detector. */
Test(pins, move_of_a_pinned_page_is_busy)
{
	int fd = uffd_open(UFFD_FEATURE_MOVE);
	char *mem = filled(1), *slot = map_pages(1);
	struct pin p;

	pin(&p, mem);
	cr_assert_eq(uffd_register(fd, slot, PAGE, MISSING), 0);
	cr_assert_eq(uffd_move(fd, slot, mem, PAGE, 0), -EBUSY);
	unpin(&p);
	/* io_uring lets go of the pages a little later. */
	wait_until(uffd_move(fd, slot, mem, PAGE, 0) == 0);
	cr_assert_eq(slot[0], 1);
}

Test(pins, move_of_a_huge_page_with_a_pinned_part_is_busy)
{
	int fd = uffd_open(UFFD_FEATURE_MOVE);
	char *mem = map_huge(1), *slot = map_blocks(1);
	struct uffdio_move part = { .dst = (uintptr_t)slot, .src = (uintptr_t)mem, .len = PAGE };
	struct call call;
	struct pin p;

	madvise(slot, BLOCK, MADV_HUGEPAGE);
	pin(&p, mem + 7 * PAGE);
	cr_assert_eq(uffd_register(fd, slot, BLOCK, MISSING), 0);
	cr_assert_eq(uffd_move(fd, slot, mem, BLOCK, 0), -EBUSY);
	cr_assert_eq(mem[0], 1);
	/* Nor can it be split, so none of its pages can go alone. Linux 6.12 tries for ever, or until the program dies. */
	CALL(&call, SYS_ioctl, fd, UFFDIO_MOVE, (long)&part);
	for (int i = 0; i < 3000 && !call.done; i++)
		usleep(1000);
	if (!call.done)
		skip("this kernel's MOVE of a part of a pinned huge page never ends");
	cr_assert_lt(call_end(&call), 0);
	cr_assert_eq(mem[0], 1);
}

/* What the detector does not see: a plain reference, which reads only, and moves along. */
Test(pins, plain_reference_moves)
{
	int fd = uffd_open(UFFD_FEATURE_MOVE), pipe_fd[2];
	char *mem = filled(1), *slot = map_pages(1), bytes[PAGE];
	struct iovec iov = { mem, PAGE };

	cr_assert_eq(pipe2(pipe_fd, O_CLOEXEC), 0);
	cr_assert_eq(vmsplice(pipe_fd[1], &iov, 1, 0), PAGE);
	cr_assert_eq(uffd_register(fd, slot, PAGE, MISSING), 0);
	cr_assert_eq(uffd_move(fd, slot, mem, PAGE, 0), 0);
	slot[0] = 5;
	/* The pipe still holds that very page. */
	cr_assert_eq(read(pipe_fd[0], bytes, PAGE), PAGE);
	cr_assert_eq(bytes[0], 5);
}

Test(pins, wp_async_tracking_misses_it)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC);
	char *mem = filled(1);
	struct pin p;

	pin(&p, mem);
	cr_assert_eq(uffd_register(fd, mem, PAGE, WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), 0);
	write_through(&p, 9);
	cr_assert_eq(mem[0], 9);
	cr_assert(pagemap(mem) & PM_UFFD_WP, "it counts as clean");
}

static void clear_refs(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);

	cr_assert_eq(write(fd, "4", 1), 1);
	close(fd);
}

/*
 * The base tier's detector of pins: clear_refs leaves a pinned page writable and its
 * soft-dirty bit set. It says nothing about huge pages, nor about plain references.
 */
Test(pins, soft_dirty_shows_a_pinned_page)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = map_pages(4);
	struct pin p;

	memset(mem, 1, 4 * PAGE);
	if (!(pagemap(mem) & PM_SOFT_DIRTY))
		skip("this kernel has no soft-dirty bits");
	pin(&p, mem + 2 * PAGE);
	clear_refs();
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, 4 * PAGE, true), 0);
	for (int i = 0; i < 4; i++)
		cr_assert_eq(!!(pagemap(mem + i * PAGE) & PM_SOFT_DIRTY), i == 2, "page %d", i);
}
