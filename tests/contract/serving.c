// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Serving faults: what COPY, WAKE, POISON and UNREGISTER do for the one who waits, and
 * how a waiter can be forgotten.
 *
 * A second thread touches armed memory, the test's main thread serves it. What can
 * fail: a waiter that hmmd believes awake and that is not, or a byte served twice.
 */
#include "contract.h"

#include <setjmp.h>
#include <sys/epoll.h>

TestSuite(serving, .init = contract_begin);

static void *filled(int value)
{
	void *page = map_pages(1);

	memset(page, value, PAGE);
	return page;
}

Test(serving, fault_flags_and_exact_page)
{
	int fd = uffd_open(0);
	char *mem = map_pages(2);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	load_start(&call, mem + 100);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 7);
	store_start(&call, mem + PAGE + 8, 1);
	expect_fault(fd, mem + PAGE, FAULT_WRITE);
	cr_assert_eq(uffd_copy(fd, mem + PAGE, filled(7), PAGE, 0), 0);
	call_end(&call);
	cr_assert_eq(mem[PAGE + 8], 1);
	cr_assert_eq(mem[PAGE + 9], 7);
}

Test(serving, thread_id_names_the_toucher)
{
	int fd = uffd_open(UFFD_FEATURE_THREAD_ID);
	char *mem = map_pages(1);
	struct uffd_msg msg;
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	load_start(&call, mem);
	msg = expect_fault(fd, mem, 0);
	cr_assert_eq((int)msg.arg.pagefault.feat.ptid, atomic_load(&call.tid));
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	call_end(&call);
}

Test(serving, exact_address_tells_the_byte)
{
	int fd = uffd_open(UFFD_FEATURE_EXACT_ADDRESS);
	char *mem = map_pages(1);
	struct uffd_msg msg;
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	load_start(&call, mem + 1234);
	msg = expect_fault(fd, mem, 0);
	cr_assert_eq(msg.arg.pagefault.address, (uintptr_t)(mem + 1234));
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	call_end(&call);
}

Test(serving, copy_onto_a_present_page_wakes_nobody)
{
	int fd = uffd_open(0);
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	load_start(&call, mem);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, UFFDIO_COPY_MODE_DONTWAKE), 0);
	cr_assert_eq(uffd_copy(fd, mem, filled(8), PAGE, 0), -EEXIST);
	cr_assert(still_blocked(&call), "EEXIST is no wake-up");
	cr_assert_eq(uffd_wake(fd, mem, PAGE), 0);
	cr_assert_eq(call_end(&call), 7);
}

Test(serving, partial_copy_says_how_far_it_came)
{
	int fd = uffd_open(0);
	char *mem = map_pages(4), *bytes = map_pages(4);
	int64_t done;

	memset(bytes, 7, 4 * PAGE);
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING), 0);
	cr_assert_eq(uffd_copy(fd, mem + 2 * PAGE, bytes, PAGE, 0), 0);
	cr_assert_eq(uffd_copy_done(fd, mem, bytes, 4 * PAGE, 0, &done), -EAGAIN);
	cr_assert_eq(done, 2 * PAGE);
	cr_assert_eq(uffd_copy_done(fd, mem + 2 * PAGE, bytes, 2 * PAGE, 0, &done), -EEXIST);
	cr_assert_eq(done, -EEXIST);
	cr_assert_eq(uffd_copy_done(fd, mem + 3 * PAGE, bytes, PAGE, 0, &done), 0);
	cr_assert_eq(done, PAGE);
}

/* COPY sees the mapping, not its protection: so look at the mapping first. */
Test(serving, copy_ignores_protection)
{
	int fd = uffd_open(0);
	char *mem = map_pages(2);

	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	cr_assert_eq(mprotect(mem, PAGE, PROT_READ), 0);
	cr_assert_eq(mprotect(mem + PAGE, PAGE, PROT_NONE), 0);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, 0), 0);
	cr_assert_eq(uffd_copy(fd, mem + PAGE, filled(7), PAGE, 0), 0);
	cr_assert_eq(mem[0], 7);
	cr_assert_eq(mprotect(mem + PAGE, PAGE, PROT_READ), 0);
	cr_assert_eq(mem[PAGE], 7);
}

Test(serving, copy_is_clipped_to_one_mapping)
{
	int fd = uffd_open(0);
	char *mem = map_pages(4), *bytes = map_pages(4);
	int64_t done;

	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	cr_assert_eq(uffd_copy_done(fd, mem, bytes, 4 * PAGE, 0, &done), -ENOENT,
		     "half of it is not registered");
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING), 0);
	cr_assert_eq(mprotect(mem + 2 * PAGE, PAGE, PROT_READ), 0);
	cr_assert_eq(uffd_copy_done(fd, mem, bytes, 4 * PAGE, 0, &done), -ENOENT,
		     "mprotect split the mapping");
	cr_assert_eq(uffd_copy(fd, mem, bytes, 2 * PAGE, 0), 0);
	cr_assert_eq(munmap(mem + 3 * PAGE, PAGE), 0);
	cr_assert_eq(uffd_copy(fd, mem + 3 * PAGE, bytes, PAGE, 0), -ENOENT);
}

/* A daemon read the fault and died: its successor hears of it only after a WAKE. */
Test(serving, read_fault_is_not_delivered_again_until_wake)
{
	int fd = uffd_open(0);
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	load_start(&call, mem);
	expect_fault(fd, mem, 0);
	cr_assert(still_blocked(&call));
	cr_assert(no_event(fd));
	cr_assert_eq(uffd_wake(fd, mem, PAGE), 0);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	cr_assert_eq(call_end(&call), 0);
}

/* WAKE of a whole range that holds waiters and pages nobody waits for. */
Test(serving, wake_covers_any_range)
{
	int fd = uffd_open(0);
	char *mem = map_blocks(2);
	struct call call[2];

	cr_assert_eq(uffd_register(fd, mem, 2 * BLOCK, MISSING), 0);
	load_start(&call[0], mem + PAGE);
	expect_fault(fd, mem + PAGE, 0);
	load_start(&call[1], mem + BLOCK);
	expect_fault(fd, mem + BLOCK, 0);
	cr_assert_eq(uffd_zeropage(fd, mem + BLOCK, PAGE), 0);
	cr_assert_eq(uffd_wake(fd, mem, 2 * BLOCK), 0);
	cr_assert_eq(call_end(&call[1]), 0);
	expect_fault(fd, mem + PAGE, 0);
	cr_assert_eq(uffd_zeropage(fd, mem + PAGE, PAGE), 0);
	cr_assert_eq(call_end(&call[0]), 0);
}

/* The fact that makes daemon death dangerous, and the dup that takes the danger away. */
static void reader_of_a_missing_page(void *arg)
{
	int *sock = arg;
	int fd = uffd_open(0), dup;
	volatile char *mem = map_pages(2);

	memset((char *)mem, 7, 2 * PAGE);
	child_check(uffd_register(fd, (char *)mem, 2 * PAGE, MISSING) == 0);
	child_check(madvise((char *)mem, 2 * PAGE, MADV_DONTNEED) == 0);
	send_fd(*sock, fd);
	child_check(read(*sock, &dup, 1) == 1);
	close(fd);
	/* The last reference is in the parent now, which closes it while this waits. */
	_exit(mem[0] == 0 && mem[PAGE] == 0 ? 0 : 1);
}

Test(serving, last_close_gives_zeros)
{
	int sock[2], fd;
	pid_t pid;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	pid = child_start(reader_of_a_missing_page, &sock[1]);
	fd = recv_fd(sock[0]);
	cr_assert_eq(write(sock[0], "g", 1), 1);
	expect_event(fd, UFFD_EVENT_PAGEFAULT);
	close(fd);
	child_passed(pid);
}

Test(serving, any_dup_keeps_the_waiter_waiting)
{
	int fd = uffd_open(0), kept = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	load_start(&call, mem);
	expect_fault(fd, mem, 0);
	close(fd);
	cr_assert(still_blocked(&call));
	cr_assert_eq(uffd_copy(kept, mem, filled(7), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 7);
}

static sigjmp_buf after_signal;

static void on_bus(int sig)
{
	siglongjmp(after_signal, sig);
}

Test(serving, poison_is_sigbus_and_a_copy_heals_it)
{
	int fd = uffd_open(UFFD_FEATURE_POISON), pipe_fd[2];
	volatile char *mem = map_pages(2);
	int sig;

	cr_assert_eq(uffd_register(fd, (char *)mem, 2 * PAGE, MISSING), 0);
	cr_assert_eq(uffd_poison(fd, (char *)mem, PAGE), 0);
	signal(SIGBUS, on_bus);
	sig = sigsetjmp(after_signal, 1);
	if (!sig) {
		(void)mem[0];
		cr_assert_fail("a poisoned page was read");
	}
	cr_assert_eq(sig, SIGBUS);
	cr_assert_eq(pipe(pipe_fd), 0);
	cr_assert_eq(write(pipe_fd[1], (char *)mem, PAGE), -1);
	cr_assert_eq(errno, EFAULT);
	cr_assert(no_event(fd), "poison asks nobody");
	/* A present page is not poisoned: that is for pages that the device lost. */
	cr_assert_eq(uffd_zeropage(fd, (char *)mem + PAGE, PAGE), 0);
	cr_assert_eq(uffd_poison(fd, (char *)mem + PAGE, PAGE), -EEXIST);
	cr_assert_eq(uffd_copy(fd, (char *)mem, filled(7), PAGE, 0), 0);
	cr_assert_eq(mem[0], 7);
}

/* One userfaultfd per mapping: what a program armed itself is not to be had. */
Test(serving, second_userfaultfd_is_refused)
{
	int fd = uffd_open(0), other = uffd_open(0);
	char *mem = map_pages(2);

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	cr_assert_eq(uffd_register(other, mem, 2 * PAGE, MISSING), -EBUSY);
	cr_assert_eq(uffd_register(other, mem + PAGE, PAGE, MISSING), 0);
	cr_assert_eq(uffd_unregister(fd, mem, PAGE), 0);
	cr_assert_eq(uffd_register(other, mem, PAGE, MISSING), 0);
}

Test(serving, unregister_wakes_a_missing_fault_with_zeros)
{
	int fd = uffd_open(0);
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	load_start(&call, mem);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_unregister(fd, mem, PAGE), 0);
	cr_assert_eq(call_end(&call), 0);
}

/* A thread that serves faults must never read or write armed memory this way. */
Test(serving, remote_access_to_a_missing_page_blocks)
{
	int fd = uffd_open(0);
	char *mem = map_pages(1), *into = map_pages(1);
	struct iovec local = { into, 8 }, remote = { mem, 8 };
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	CALL(&call, SYS_process_vm_readv, getpid(), (long)&local, 1, (long)&remote, 1, 0);
	expect_fault(fd, mem, 0);
	cr_assert(still_blocked(&call));
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 8);
	cr_assert_eq(into[0], 7);
}

Test(serving, remote_write_to_a_protected_page_blocks)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = filled(1), *from = filled(9);
	struct iovec local = { from, 8 }, remote = { mem, 8 };
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), 0);
	CALL(&call, SYS_process_vm_writev, getpid(), (long)&local, 1, (long)&remote, 1, 0);
	expect_fault(fd, mem, FAULT_WRITE | FAULT_WP);
	cr_assert(still_blocked(&call));
	cr_assert_eq(uffd_wp(fd, mem, PAGE, false), 0);
	cr_assert_eq(call_end(&call), 8);
	cr_assert_eq(mem[0], 9);
}

/* COPY from armed memory sleeps like any other reader of it. */
Test(serving, copy_from_an_armed_source_sleeps)
{
	int fd = uffd_open(0);
	char *mem = map_pages(1), *source = map_pages(1);
	struct uffdio_copy copy = {
		.dst = (uintptr_t)mem, .src = (uintptr_t)source, .len = PAGE,
	};
	struct call call;

	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	cr_assert_eq(uffd_register(fd, source, PAGE, MISSING), 0);
	CALL(&call, SYS_ioctl, fd, (long)UFFDIO_COPY, (long)&copy);
	expect_fault(fd, source, 0);
	cr_assert(still_blocked(&call));
	cr_assert_eq(uffd_copy(fd, source, filled(3), PAGE, 0), 0);
	cr_assert_eq(call_end(&call), 0);
	cr_assert_eq(mem[0], 3);
}

/* Every poller of one userfaultfd is woken by one fault; EPOLLEXCLUSIVE wakes one. */
Test(serving, epoll_exclusive_is_allowed)
{
	int fd = uffd_open(0), epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = { .events = EPOLLIN | EPOLLEXCLUSIVE };
	char *mem = map_pages(1);
	struct call call;

	cr_assert_eq(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	load_start(&call, mem);
	cr_assert_eq(epoll_wait(epoll, &event, 1, deadline_ms()), 1);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_zeropage(fd, mem, PAGE), 0);
	call_end(&call);
}

/* A private file mapping that is armed MISSING alone is refilled behind hmmd's back. */
Test(serving, private_memfd_mapping_needs_minor_too)
{
	int fd = uffd_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM);
	int memfd = memfd_new("private", 2 * PAGE, 0);
	char *mem = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, memfd, 0);
	struct call call;

	cr_assert_neq(mem, MAP_FAILED);
	cr_assert_eq(pwrite(memfd, "abc", 3, 0), 3);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	mem[0] = 'X';
	cr_assert_eq(madvise(mem, PAGE, MADV_DONTNEED), 0);
	load_start(&call, mem);
	cr_assert_eq(call_end(&call), 'a', "the page cache, and nobody was asked");
	cr_assert(no_event(fd));
	cr_assert_eq(madvise(mem, PAGE, MADV_DONTNEED), 0);
	if (uffd_register(fd, mem, 2 * PAGE, MISSING | MINOR) == -EINVAL)
		skip("this kernel has no MINOR for private mappings");
	load_start(&call, mem);
	expect_fault(fd, mem, UFFD_PAGEFAULT_FLAG_MINOR);
	cr_assert_eq(uffd_unregister(fd, mem, 2 * PAGE), 0);
	call_end(&call);
}

/* Registration splits mappings, so it goes by runs of blocks, not by pages. */
Test(serving, registration_splits_and_merges_mappings)
{
	int fd = uffd_open(0);
	char *mem = map_pages(9);
	char first[32], line[512];
	int pieces = 0;
	FILE *maps;

	cr_assert_eq(uffd_register(fd, mem + 4 * PAGE, PAGE, MISSING), 0);
	maps = fopen("/proc/self/maps", "re");
	while (fgets(line, sizeof(line), maps)) {
		unsigned long start = strtoul(line, NULL, 16);

		pieces += start >= (uintptr_t)mem && start < (uintptr_t)mem + 9 * PAGE;
	}
	fclose(maps);
	cr_assert_eq(pieces, 3);
	cr_assert_eq(uffd_unregister(fd, mem + 4 * PAGE, PAGE), 0);
	snprintf(first, sizeof(first), "%lx-%lx ", (unsigned long)mem, (unsigned long)mem + 9 * PAGE);
	maps = fopen("/proc/self/maps", "re");
	pieces = 0;
	while (fgets(line, sizeof(line), maps))
		pieces += !strncmp(line, first, strlen(first));
	fclose(maps);
	cr_assert_eq(pieces, 1);
}

/* Arming again, or wider, is no error: arming is lazy, by runs of blocks. */
Test(serving, registering_twice_and_wider)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	char *mem = map_pages(4);

	memset(mem, 1, 4 * PAGE);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	cr_assert_eq(uffd_register(fd, mem, 4 * PAGE, MISSING), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), -ENOENT, "not registered for WP");
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), 0);
	cr_assert(pagemap(mem) & PM_UFFD_WP);
	/* Registering once more, or with fewer modes, keeps or drops the protection: */
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING | WP), 0);
	cr_assert(pagemap(mem) & PM_UFFD_WP);
}

/* hmmd did the handshake and holds the descriptor: it registers and serves for the owner. */
struct armed_by_other {
	int sock;
	char *mem;
};

static void owner_that_does_no_ioctl(void *arg)
{
	struct armed_by_other *owner = arg;
	char byte;

	send_fd(owner->sock, uffd_new());
	child_check(read(owner->sock, &byte, 1) == 1);
	for (int i = 0; i < 4; i++)
		child_check(owner->mem[i * PAGE] == 7);
}

Test(serving, another_process_does_every_ioctl)
{
	struct armed_by_other owner = { .mem = map_pages(4) };
	int sock[2], fd;
	pid_t pid;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	owner.sock = sock[1];
	pid = child_start(owner_that_does_no_ioctl, &owner);
	fd = recv_fd(sock[0]);
	cr_assert_eq(uffd_api(fd, 0), 0);
	cr_assert_eq(uffd_register(fd, owner.mem, 4 * PAGE, MISSING), 0);
	cr_assert_eq(write(sock[0], "g", 1), 1);
	expect_fault(fd, owner.mem, 0);
	for (int i = 0; i < 4; i++)
		cr_assert_eq(uffd_copy(fd, owner.mem + i * PAGE, filled(7), PAGE, 0), 0);
	child_passed(pid);
}
