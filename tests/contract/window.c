// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Windows: a shadow (sparse shmem memfd) mapped into drivers and armed, so that the
 * kernel asks only when something has to change.
 *
 * Here both windows are mappings in one process, with a userfaultfd each: what counts is
 * the file below. A second thread is the driver, the test's main thread is hmmd. What can
 * fail: a window that reads or writes a page which it should not reach.
 */
#include "contract.h"

#define AT	0x7e0000000000L		/* an owner's address, as an offset */
#define SPARSE	(1L << 47)
#define FEATURES (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

TestSuite(window, .init = contract_begin);

static char *filled(int value)
{
	void *page = map_pages(1);

	memset(page, value, PAGE);
	return page;
}

struct window {
	int fd;
	char *mem;
};

/* A window that was write-protected whole while empty. */
static struct window window_open(int shadow, size_t len)
{
	struct window w = {
		.fd = uffd_open(FEATURES), .mem = map_memfd_aligned(shadow, len, AT),
	};

	cr_assert_eq(uffd_register(w.fd, w.mem, len, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(w.fd, w.mem, len, true), 0);
	return w;
}

Test(window, hole_is_missing_and_a_protected_copy_fills_it)
{
	int shadow = memfd_new("shadow", SPARSE, 0);
	struct window a = window_open(shadow, BLOCK), b = window_open(shadow, BLOCK);
	struct call call;
	char byte;

	load_start(&call, a.mem);
	expect_fault(a.fd, a.mem, 0);
	cr_assert_eq(uffd_copy(a.fd, a.mem, filled(7), PAGE, UFFDIO_COPY_MODE_WP), 0);
	cr_assert_eq(call_end(&call), 7);
	/* It is in the file now: the other window maps it read-only, unasked. */
	load_start(&call, b.mem);
	cr_assert_eq(call_end(&call), 7);
	cr_assert(no_event(b.fd));
	cr_assert_eq(pread(shadow, &byte, 1, AT), 1);
	cr_assert_eq(byte, 7);
	/* Either's store asks, and lifting the one lets the other see the store. */
	store_start(&call, b.mem, 99);
	expect_fault(b.fd, b.mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(b.fd, b.mem, PAGE, false), 0);
	call_end(&call);
	load_start(&call, a.mem);
	cr_assert_eq(call_end(&call), 99);
	cr_assert(no_event(a.fd));
	store_start(&call, a.mem, 98);
	expect_fault(a.fd, a.mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(a.fd, a.mem, PAGE, false), 0);
	call_end(&call);
}

Test(window, punching_revokes_everywhere)
{
	int shadow = memfd_new("shadow", SPARSE, 0);
	struct window a = window_open(shadow, BLOCK), b = window_open(shadow, BLOCK);
	char *plain = map_memfd(shadow, PAGE, AT);
	struct call call;

	plain[0] = 7;
	cr_assert_eq(a.mem[0], 7);
	cr_assert_eq(b.mem[0], 7);
	cr_assert_eq(punch(shadow, AT, PAGE), 0);
	cr_assert_not(file_has(shadow, AT));
	load_start(&call, a.mem);
	expect_fault(a.fd, a.mem, 0);
	cr_assert_eq(uffd_copy(a.fd, a.mem, filled(8), PAGE, UFFDIO_COPY_MODE_WP), 0);
	cr_assert_eq(call_end(&call), 8);
	load_start(&call, b.mem);
	cr_assert_eq(call_end(&call), 8);
	cr_assert(no_event(b.fd));
}

/* "Write-protect windows, copy home, punch, wake" loses no write of a driver. */
Test(window, blocked_writer_wakes_into_a_missing_fault)
{
	int shadow = memfd_new("shadow", SPARSE, 0);
	struct window a = window_open(shadow, BLOCK);
	char *plain = map_memfd(shadow, PAGE, AT);
	struct call call;

	plain[0] = 7;
	store_start(&call, a.mem + 1, 99);
	expect_fault(a.fd, a.mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(punch(shadow, AT, PAGE), 0);
	cr_assert(still_blocked(&call));
	cr_assert_eq(uffd_wake(a.fd, a.mem, PAGE), 0);
	expect_fault(a.fd, a.mem, FAULT_WRITE);
	cr_assert_eq(uffd_copy(a.fd, a.mem, filled(8), PAGE, 0), 0);
	call_end(&call);
	cr_assert_eq(plain[0], 8);
	cr_assert_eq(plain[1], 99);
}

/* A marker that was lifted is gone for good, also after a punch: re-arm the page. */
Test(window, lifted_protection_does_not_come_back)
{
	int shadow = memfd_new("shadow", SPARSE, 0);
	struct window a = window_open(shadow, BLOCK);
	char *plain = map_memfd(shadow, PAGE, AT);
	struct call call;

	plain[0] = 7;
	cr_assert_eq(uffd_wp(a.fd, a.mem, PAGE, false), 0);
	store_start(&call, a.mem, 1);
	call_end(&call);
	cr_assert_eq(punch(shadow, AT, PAGE), 0);
	plain[0] = 8;
	store_start(&call, a.mem, 2);
	call_end(&call);
	cr_assert(no_event(a.fd));
	cr_assert_eq(uffd_wp(a.fd, a.mem, PAGE, true), 0);
	store_start(&call, a.mem, 3);
	expect_fault(a.fd, a.mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(a.fd, a.mem, PAGE, false), 0);
	call_end(&call);
}

Test(window, markers_survive_punch_mprotect_and_dontneed)
{
	int shadow = memfd_new("shadow", SPARSE, 0);
	struct window a = window_open(shadow, BLOCK);
	char *plain = map_memfd(shadow, 3 * PAGE, AT);
	struct call call;

	memset(plain, 7, 3 * PAGE);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(a.mem[i * PAGE], 7);
	cr_assert_eq(punch(shadow, AT, PAGE), 0);
	plain[0] = 8;
	cr_assert_eq(mprotect(a.mem + PAGE, PAGE, PROT_NONE), 0);
	cr_assert_eq(mprotect(a.mem + PAGE, PAGE, PROT_READ | PROT_WRITE), 0);
	cr_assert_eq(madvise(a.mem + 2 * PAGE, PAGE, MADV_DONTNEED), 0);
	for (int i = 0; i < 3; i++) {
		store_start(&call, a.mem + i * PAGE, 1);
		expect_fault(a.fd, a.mem + i * PAGE, FAULT_WRITE | FAULT_WP);
		cr_assert_eq(uffd_wp(a.fd, a.mem + i * PAGE, PAGE, false), 0);
		call_end(&call);
	}
}

/* Arming is lazy: again, wider, with more modes, on part of a window. */
Test(window, registering_twice_and_wider)
{
	int shadow = memfd_new("shadow", SPARSE, 0), fd = uffd_open(FEATURES);
	char *mem = map_memfd_aligned(shadow, 4 * BLOCK, AT), *plain = map_memfd(shadow, PAGE, AT);
	struct call call;

	plain[0] = 7;
	cr_assert_eq(uffd_register(fd, mem, 4 * BLOCK, MISSING), 0);
	cr_assert_eq(uffd_register(fd, mem, 4 * BLOCK, MISSING), 0);
	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING | WP), 0);
	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, BLOCK, true), 0);
	cr_assert_eq(uffd_register(fd, mem, 2 * BLOCK, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem + BLOCK, BLOCK, true), 0);
	store_start(&call, mem, 1);
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, false), 0);
	call_end(&call);
	load_start(&call, mem + 3 * BLOCK);
	expect_fault(fd, mem + 3 * BLOCK, 0);
	cr_assert_eq(uffd_copy(fd, mem + 3 * BLOCK, filled(2), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 2);
}

/* Back from MISSING|WP to MISSING alone: are the markers gone? */
Test(window, registering_with_fewer_modes_drops_protection)
{
	int shadow = memfd_new("shadow", SPARSE, 0);
	struct window a = window_open(shadow, BLOCK);
	char *plain = map_memfd(shadow, PAGE, AT);
	struct call call;

	plain[0] = 7;
	cr_assert_eq(uffd_wp(a.fd, a.mem, BLOCK, false), 0);
	cr_assert_eq(uffd_register(a.fd, a.mem, BLOCK, MISSING), 0);
	store_start(&call, a.mem, 2);
	call_end(&call);
	cr_assert(no_event(a.fd));
	cr_assert_eq(plain[0], 2);
}

/* Maps what the file has, to be read only. False: before Linux 6.4 it can be mapped to be written only. */
static bool continue_protected(int fd, char *mem)
{
	int r = uffd_continue(fd, mem, PAGE, UFFDIO_CONTINUE_MODE_WP);

	if (r == -EINVAL) {
		cr_assert_eq(uffd_continue(fd, mem, PAGE, 0), 0);
		return false;
	}
	cr_assert_eq(r, 0);
	return true;
}

/* Guarded: MINOR added later asks for every page that the file has and nobody has mapped. */
Test(window, minor_added_later_asks_for_each_page)
{
	int shadow = memfd_new("shadow", SPARSE, 0);
	int fd = uffd_open(FEATURES | UFFD_FEATURE_MINOR_SHMEM);
	char *mem = map_memfd_aligned(shadow, BLOCK, AT), *plain = map_memfd(shadow, BLOCK, AT);
	struct call call;
	bool protects = false;

	for (unsigned int i = 0; i < 40; i++)
		plain[i * PAGE] = (char)i;
	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING), 0);
	/* Fault-around: one load maps those about it, too. */
	cr_assert_eq(mem[PAGE], 1);
	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING | WP | MINOR), 0);
	cr_assert_eq(mem[PAGE], 1, "what was mapped stays");
	cr_assert_eq(punch(shadow, AT + 2 * PAGE, PAGE), 0);
	plain[2 * PAGE] = 92;
	for (unsigned int i = 30; i < 32; i++) {
		load_start(&call, mem + i * PAGE);
		expect_fault(fd, mem + i * PAGE, FAULT_MINOR);
		protects = continue_protected(fd, mem + i * PAGE);
		cr_assert_eq(call_end(&call), (long)i);
	}
	/* No longer mapped is asked for again. */
	load_start(&call, mem + 2 * PAGE);
	expect_fault(fd, mem + 2 * PAGE, FAULT_MINOR);
	cr_assert_eq(uffd_continue(fd, mem + 2 * PAGE, PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 92);
	store_start(&call, mem + 30 * PAGE, 1);
	if (protects) {
		expect_fault(fd, mem + 30 * PAGE, FAULT_WRITE | FAULT_WP);
		cr_assert_eq(uffd_wp(fd, mem + 30 * PAGE, PAGE, false), 0);
	}
	call_end(&call);
	/* A hole is MISSING as ever, and has nothing to go on with. */
	load_start(&call, mem + 50 * PAGE);
	expect_fault(fd, mem + 50 * PAGE, 0);
	cr_assert_eq(uffd_continue(fd, mem + 50 * PAGE, PAGE, 0), -EFAULT);
	cr_assert_eq(uffd_zeropage(fd, mem + 50 * PAGE, PAGE), 0);
	cr_assert_eq(call_end(&call), 0);
	/* Mapped already. */
	cr_assert_eq(uffd_continue(fd, mem + 31 * PAGE, PAGE, 0), -EEXIST);
}

/*
 * A part of a huge page that somebody holds can't be punched: it is zeroed and stays.
 * An unguarded window reads the zeros, a guarded one asks.
 */
Test(window, held_huge_page_is_zeroed_and_not_freed)
{
	int shadow = memfd_new("shadow", SPARSE, 0), pipe_fd[2];
	int fd = uffd_open(FEATURES | UFFD_FEATURE_MINOR_SHMEM);
	char *plain = map_memfd_aligned(shadow, BLOCK, AT), *bare = map_memfd_aligned(shadow, BLOCK, AT);
	char *mem = map_memfd_aligned(shadow, BLOCK, AT);
	struct iovec iov = { plain + 9 * PAGE, PAGE };
	struct call call;

	memset(plain, 5, BLOCK);
	collapse_or_skip(collapse(plain));
	cr_assert_eq(pipe(pipe_fd), 0);
	cr_assert_eq(vmsplice(pipe_fd[1], &iov, 1, 0), PAGE);
	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING), 0);
	cr_assert_eq(mem[0], 5);
	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING | WP | MINOR), 0);
	cr_assert_eq(punch(shadow, AT + 3 * PAGE, PAGE), 0);
	cr_assert(file_has(shadow, AT + 3 * PAGE), "it was freed although it is held");
	cr_assert_eq(bare[3 * PAGE], 0);
	load_start(&call, mem + 3 * PAGE);
	expect_fault(fd, mem + 3 * PAGE, FAULT_MINOR);
	plain[3 * PAGE] = 6;
	cr_assert_eq(uffd_continue(fd, mem + 3 * PAGE, PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 6);
	close(pipe_fd[0]);
	close(pipe_fd[1]);
	/* Whoever has passed by may hold it for a moment. */
	wait_until(punch(shadow, AT + 4 * PAGE, PAGE) == 0 && !file_has(shadow, AT + 4 * PAGE));
}

/*
 * A page that was closed by POISON opens again by a DONTNEED of the driver's, who need
 * not be able to touch it meanwhile: the next touch asks. Nothing else does that.
 */
Test(window, dontneed_takes_poison_away)
{
	static const uint64_t modes[] = { MISSING, MISSING | WP | MINOR };

	for (int i = 0; i < 2; i++) {
		int fd = uffd_open(FEATURES | UFFD_FEATURE_POISON | UFFD_FEATURE_MINOR_SHMEM);
		int shadow = memfd_new("shadow", SPARSE, 0), null = memfd_new("null", 0, 0);
		char *mem = map_memfd_aligned(shadow, BLOCK, AT);
		struct call call;

		cr_assert_eq(uffd_register(fd, mem, BLOCK, modes[i]), 0);
		load_start(&call, mem + PAGE);
		expect_fault(fd, mem + PAGE, 0);
		cr_assert_eq(uffd_copy(fd, mem + PAGE, filled(7), PAGE, 0), 0);
		call_end(&call);
		cr_assert_eq(uffd_poison(fd, mem, PAGE), 0);
		cr_assert_eq(write(null, mem, 1), -1);
		cr_assert_eq(punch(shadow, AT, PAGE), 0);
		cr_assert_eq(mprotect(mem, PAGE, PROT_NONE), 0);
		cr_assert_eq(mprotect(mem, PAGE, PROT_READ | PROT_WRITE), 0);
		cr_assert_eq(write(null, mem, 1), -1, "it is still closed");
		cr_assert_eq(mprotect(mem, PAGE, PROT_NONE), 0);
		cr_assert_eq(madvise(mem, PAGE, MADV_DONTNEED), 0);
		cr_assert_eq(mprotect(mem, PAGE, PROT_READ | PROT_WRITE), 0);
		cr_assert(no_event(fd));
		load_start(&call, mem);
		expect_fault(fd, mem, 0);
		cr_assert_eq(uffd_copy(fd, mem, filled(8), PAGE, 0), 0);
		cr_assert_eq(call_end(&call), 8);
		load_start(&call, mem + PAGE);
		cr_assert_eq(call_end(&call), 7);
		close(fd);
	}
}

static void *splice_in(void *argument)
{
	struct iovec iov = { .iov_len = PAGE };
	loff_t at = AT + PAGE;
	int pipe_fd[2];
	void **call = argument;

	iov.iov_base = call[0];
	if (pipe(pipe_fd) || vmsplice(pipe_fd[1], &iov, 1, 0) != (ssize_t)PAGE ||
	    splice(pipe_fd[0], NULL, *(int *)call[1], &at, PAGE, 0) != (ssize_t)PAGE)
		return argument;
	return NULL;
}

/*
 * A write(2) whose source is absent for a moment may show a page of zeros before its
 * bytes (seen on 6.18). What is spliced appears with its bytes.
 */
Test(window, spliced_page_appears_with_its_bytes)
{
	int shadow = memfd_new("shadow", SPARSE, 0), fd = uffd_open(0);
	char *source = map_pages(1), *written = map_pages(1), *plain = map_memfd(shadow, 2 * PAGE, AT);
	void *arguments[] = { source, &shadow }, *failed;
	unsigned char there[2];
	struct call call;
	pthread_t thread;

	cr_assert_eq(uffd_register(fd, source, PAGE, MISSING), 0);
	cr_assert_eq(uffd_register(fd, written, PAGE, MISSING), 0);
	CALL(&call, SYS_pwrite64, shadow, (long)written, PAGE, AT);
	expect_fault(fd, written, 0);
	cr_assert_eq(mincore(plain, PAGE, there), 0);
	if (there[0] & 1)
		cr_log_info("a write shows zeros first on this kernel: %d", plain[0]);
	cr_assert_eq(uffd_copy(fd, written, filled(3), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), PAGE);
	cr_assert_eq(plain[0], 3);

	cr_assert_eq(pthread_create(&thread, NULL, splice_in, arguments), 0);
	expect_fault(fd, source, 0);
	cr_assert_eq(mincore(plain, 2 * PAGE, there), 0);
	cr_assert_not(there[1] & 1, "it is there before its bytes are");
	cr_assert_eq(uffd_copy(fd, source, filled(4), PAGE, 0), 0);
	cr_assert_eq(pthread_join(thread, &failed), 0);
	cr_assert_null(failed);
	cr_assert_eq(plain[PAGE], 4);
}

/*
 * A copy for a guarded window may be written in any way: while its bytes are yet to
 * come the window asks, and what it is given then it cannot write.
 */
Test(window, copy_behind_a_guard_is_asked_for)
{
	int shadow = memfd_new("shadow", SPARSE, 0), source_fd = uffd_open(0);
	int fd = uffd_open(FEATURES | UFFD_FEATURE_MINOR_SHMEM);
	char *mem = map_memfd_aligned(shadow, BLOCK, AT), *source = map_pages(1);
	char *plain = map_memfd(shadow, PAGE, AT);
	struct call call, load;
	unsigned char there;
	bool protects;

	cr_assert_eq(uffd_register(fd, mem, BLOCK, MISSING | WP | MINOR), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), 0);
	load_start(&load, mem);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_register(source_fd, source, PAGE, MISSING), 0);
	CALL(&call, SYS_pwrite64, shadow, (long)source, PAGE, AT);
	expect_fault(source_fd, source, 0);
	/* Woken too early it asks again, whether the page is there as zeros or is not. */
	cr_assert_eq(uffd_wake(fd, mem, PAGE), 0);
	cr_assert_eq(mincore(plain, PAGE, &there), 0);
	expect_fault(fd, mem, there & 1 ? FAULT_MINOR : 0);
	cr_assert_eq(uffd_copy(source_fd, source, filled(3), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), PAGE);
	cr_assert(still_blocked(&load));
	protects = continue_protected(fd, mem);
	cr_assert_eq(call_end(&load), 3);
	if (!protects)
		return;
	store_start(&call, mem, 9);
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	/* Taken away again, the writer finds a hole. */
	cr_assert_eq(punch(shadow, AT, PAGE), 0);
	cr_assert_eq(uffd_wake(fd, mem, PAGE), 0);
	expect_fault(fd, mem, FAULT_WRITE);
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	call_end(&call);
}

/* Freezing stops the window, not a plain mapping of the same file (hmmd's, or DMA). */
Test(window, protection_is_the_windows_own)
{
	int shadow = memfd_new("shadow", SPARSE, 0);
	struct window a = window_open(shadow, BLOCK);
	char *plain = map_memfd(shadow, PAGE, AT);

	plain[0] = 7;
	plain[0] = 8;
	cr_assert_eq(a.mem[0], 8);
	cr_assert_eq(pwrite(shadow, "9", 1, AT), 1);
	cr_assert_eq(a.mem[0], '9');
	cr_assert(no_event(a.fd));
}

/* What brings zeros into a shadow: a driver's fork child, which is not armed. */
Test(window, forked_child_of_a_driver_fills_holes_with_zeros)
{
	int shadow = memfd_new("shadow", SPARSE, 0);
	struct window a = window_open(shadow, BLOCK);
	struct call call;
	pid_t pid = fork();

	if (!pid) {
		child_check(((volatile char *)a.mem)[0] == 0);
		_exit(0);
	}
	child_passed(pid);
	cr_assert(file_has(shadow, AT), "the child's read left a page of zeros");
	load_start(&call, a.mem);
	cr_assert_eq(call_end(&call), 0, "and the driver's window shows it, unasked");
	cr_assert(no_event(a.fd));
}

/* So windows are MADV_DONTFORK. */
Test(window, dontfork_keeps_the_child_out)
{
	int shadow = memfd_new("shadow", SPARSE, 0), status;
	struct window a = window_open(shadow, BLOCK);
	pid_t pid;

	cr_assert_eq(madvise(a.mem, BLOCK, MADV_DONTFORK), 0);
	pid = fork();
	if (!pid) {
		/* Criterion's handler would report the expected signal as the test's own. */
		signal(SIGSEGV, SIG_DFL);
		(void)((volatile char *)a.mem)[0];
		_exit(0);
	}
	status = child_end(pid);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	cr_assert_not(file_has(shadow, AT));
}

Test(window, touch_after_unregister_leaves_zeros)
{
	int shadow = memfd_new("shadow", SPARSE, 0);
	struct window a = window_open(shadow, BLOCK);

	cr_assert_eq(uffd_unregister(a.fd, a.mem, BLOCK), 0);
	cr_assert_eq(((volatile char *)a.mem)[0], 0);
	cr_assert(file_has(shadow, AT));
}

/* A window and the file under it are independent of the driver that mapped it first. */
static void driver(void *arg)
{
	int *sock = arg, shadow = sock[1];
	struct window w = window_open(shadow, BLOCK);
	char byte;

	send_fd(sock[0], w.fd);
	child_check(write(sock[0], &w.mem, sizeof(w.mem)) == sizeof(w.mem));
	child_check(read(sock[0], &byte, 1) == 1);
	w.mem[0] = 99;
}

/* hmmd serves a driver's window with the driver's descriptor; bytes come by address. */
Test(window, served_for_another_process)
{
	int sock[2], arg[2], fd, shadow = memfd_new("shadow", SPARSE, 0);
	char *mem, byte;
	pid_t pid;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	arg[0] = sock[1];
	arg[1] = shadow;
	pid = child_start(driver, arg);
	fd = recv_fd(sock[0]);
	cr_assert_eq(recv(sock[0], &mem, sizeof(mem), MSG_WAITALL), sizeof(mem));
	cr_assert_eq(write(sock[0], "g", 1), 1);
	expect_fault(fd, mem, FAULT_WRITE);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, 0), 0);
	child_passed(pid);
	cr_assert_eq(pread(shadow, &byte, 1, AT), 1);
	cr_assert_eq(byte, 99);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, 0), -ESRCH);
}
