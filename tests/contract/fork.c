// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Fork of an owner: who may ask for the event, what the child sees, and what hmmd can do
 * for the child through the descriptor that comes with the event.
 *
 * An owner in a child process forks; the test serves owner and grandchild through their
 * descriptors. What can fail: a grandchild that reads zeros, or sleeps for ever.
 */
#include "contract.h"

TestSuite(fork, .init = contract_begin);

#define FORK	UFFD_FEATURE_EVENT_FORK
#define FEATURES (FORK | UFFD_FEATURE_PAGEFAULT_FLAG_WP)

static char *filled(int value)
{
	void *page = map_pages(1);

	memset(page, value, PAGE);
	return page;
}

/* The owner forks in a thread: fork(2) sleeps there until its event has been read. */
struct forker {
	pthread_t thread;
	void (*child)(void);
	pid_t pid;
};

static void *forker_run(void *arg)
{
	struct forker *forker = arg;

	forker->pid = (pid_t)syscall(SYS_fork);
	if (!forker->pid)
		forker->child();
	return NULL;
}

/* Fork a child that runs this; returns its userfaultfd, taken from the event. */
static int fork_event(struct forker *forker, int fd, void (*child)(void))
{
	struct uffd_msg msg;

	forker->child = child;
	cr_assert_eq(pthread_create(&forker->thread, NULL, forker_run, forker), 0);
	msg = expect_event(fd, UFFD_EVENT_FORK);
	cr_assert_eq(pthread_join(forker->thread, NULL), 0);
	cr_assert_gt(forker->pid, 0);
	return (int)msg.arg.fork.ufd;
}

static char *mem;	/* the owner's memory, for the children below */

static void child_reads_seven_and_eight(void)
{
	contract_begin();
	_exit(mem[0] == 7 && mem[PAGE] == 8 ? 0 : 1);
}

Test(fork, child_is_served_through_the_events_descriptor)
{
	int fd = uffd_open(FORK), child_fd;
	struct forker forker;

	mem = map_pages(2);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	child_fd = fork_event(&forker, fd, child_reads_seven_and_eight);
	cr_assert(fcntl(child_fd, F_GETFL) & O_NONBLOCK, "inherits the parent's flags");
	cr_assert(fcntl(child_fd, F_GETFD) & FD_CLOEXEC);
	expect_fault(child_fd, mem, 0);
	cr_assert_eq(uffd_copy(child_fd, mem, filled(7), PAGE, 0), 0);
	expect_fault(child_fd, mem + PAGE, 0);
	cr_assert_eq(uffd_copy(child_fd, mem + PAGE, filled(8), PAGE, 0), 0);
	child_passed(forker.pid);
	cr_assert(no_event(fd), "the parent's own memory is another matter");
	cr_assert_eq(uffd_copy(child_fd, mem, filled(7), PAGE, 0), -ESRCH);
}

static atomic_int *go;

static void child_waits_and_reads(void)
{
	contract_begin();
	while (!atomic_load(go))
		usleep(1000);
	if (mem[0] != 7 || mem[PAGE] != 1)
		_exit(1);
	mem[0] = 70;	/* nobody watches any more */
	mem[PAGE] = 70;
	_exit(mem[2 * PAGE] == 0 ? 0 : 2);
}

/* What hmmd does: COPY every D page into the child, then let go of it altogether. */
Test(fork, child_is_filled_and_let_go)
{
	int fd = uffd_open(FEATURES), child_fd;
	struct forker forker;

	mem = map_pages(3);
	go = map_shared(PAGE);
	memset(mem + PAGE, 1, PAGE);
	cr_assert_eq(uffd_register(fd, mem, 3 * PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem + PAGE, PAGE, true), 0);	/* an S page */
	child_fd = fork_event(&forker, fd, child_waits_and_reads);
	cr_assert_eq(uffd_copy(child_fd, mem, filled(7), PAGE, 0), 0);
	cr_assert_eq(uffd_unregister(child_fd, mem, 3 * PAGE), 0);
	cr_assert_eq(uffd_wake(child_fd, mem, 3 * PAGE), 0);
	close(child_fd);
	atomic_store(go, 1);
	child_passed(forker.pid);
	/* The parent's protection outlives the fork, and so does the copy it protects. */
	cr_assert(pagemap(mem + PAGE) & PM_UFFD_WP);
	cr_assert_eq(mem[PAGE], 1);
}

static void child_stores_to_page_one(void)
{
	contract_begin();
	mem[PAGE] = 70;
	_exit(0);
}

/* With the event the child inherits protection, and waits in it like the parent would. */
Test(fork, child_inherits_protection)
{
	int fd = uffd_open(FEATURES), child_fd;
	struct forker forker;

	mem = map_pages(2);
	memset(mem, 1, 2 * PAGE);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, 2 * PAGE, true), 0);
	child_fd = fork_event(&forker, fd, child_stores_to_page_one);
	expect_fault(child_fd, mem + PAGE, FAULT_WRITE | FAULT_WP);
	cr_assert_eq(uffd_unregister(child_fd, mem, 2 * PAGE), 0);
	cr_assert_eq(uffd_wake(child_fd, mem, 2 * PAGE), 0);
	close(child_fd);
	child_passed(forker.pid);
	cr_assert_eq(mem[PAGE], 1);
}

static void child_reads_page_zero(void)
{
	contract_begin();
	_exit(mem[0] == 0 ? 0 : 1);
}

/* Closing the child's descriptor unserved: zeros, the silent loss. */
Test(fork, closing_the_childs_descriptor_gives_it_zeros)
{
	int fd = uffd_open(FORK), child_fd;
	struct forker forker;

	mem = map_pages(1);
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	child_fd = fork_event(&forker, fd, child_reads_page_zero);
	expect_fault(child_fd, mem, 0);
	close(child_fd);
	child_passed(forker.pid);
}

/* Without the feature the child is not armed at all. */
Test(fork, without_the_event_the_child_reads_zeros)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	pid_t pid;

	mem = map_pages(2);
	memset(mem + PAGE, 1, PAGE);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING | WP), 0);
	cr_assert_eq(uffd_wp(fd, mem + PAGE, PAGE, true), 0);
	pid = fork();
	if (!pid) {
		child_check(mem[0] == 0);
		mem[PAGE] = 5;	/* unprotected */
		_exit(0);
	}
	child_passed(pid);
	cr_assert(no_event(fd));
	cr_assert(pagemap(mem + PAGE) & PM_UFFD_WP, "the parent keeps its own");
}

/*
 * Nothing of it can be made loud. A poisoned page is one in the child as well, event or none; but the
 * parent's touch is then SIGBUS, too, and never a fault that somebody could serve.
 */
static void touch_poison(void *arg)
{
	contract_begin();
	/* A sanitizer has handlers of its own. */
	signal(SIGBUS, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	_exit(*(volatile char *)arg);
}

Test(fork, poison_is_inherited_but_faults_in_nobody)
{
	int fd = uffd_open(UFFD_FEATURE_POISON);
	pid_t pid;

	mem = map_pages(1);
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	cr_assert_eq(uffd_poison(fd, mem, PAGE), 0);
	cr_assert_eq(child_end(child_start(touch_poison, mem)), SIGBUS, "by a fork that nobody saw");
	/* In a process that shares the memory, as a thread of the parent's does. */
	pid = vfork();
	if (!pid)
		touch_poison(mem);
	cr_assert_eq(child_end(pid), SIGBUS);
	cr_assert(no_event(fd));
}

/*
 * Memory that a child is not to have at all is its SIGSEGV. That holds of a mapping, so it takes what
 * is at home from the child as well; and it has to be undone for each fork that is seen.
 */
Test(fork, dontfork_is_loud_for_what_is_at_home_as_well)
{
	int fd = uffd_open(UFFD_FEATURE_MISSING_SHMEM);

	mem = map_pages(2);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	cr_assert_eq(uffd_copy(fd, mem + PAGE, filled(7), PAGE, 0), 0);
	cr_assert_eq(child_end(child_start(touch_poison, mem)), 0, "zeros");
	cr_assert_eq(madvise(mem, 2 * PAGE, MADV_DONTFORK), 0);
	cr_assert_eq(child_end(child_start(touch_poison, mem)), SIGSEGV);
	cr_assert_eq(child_end(child_start(touch_poison, mem + PAGE)), SIGSEGV, "and here the parent has a page");
	cr_assert_eq(madvise(mem, 2 * PAGE, MADV_DOFORK), 0);
	cr_assert_eq(WEXITSTATUS(child_end(child_start(touch_poison, mem + PAGE))), 7);
}

static void forked_again(void)
{
	contract_begin();
	pid_t pid = (pid_t)syscall(SYS_fork);
	int status;

	if (!pid)
		_exit(mem[0] == 7 ? 0 : 1);
	_exit(waitpid(pid, &status, 0) == pid && !status ? 0 : 2);
}

/* While a child is armed, its own fork asks in turn. */
Test(fork, child_of_a_child)
{
	int fd = uffd_open(FORK), child_fd, grandchild_fd;
	struct forker forker;

	mem = map_pages(1);
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), 0);
	child_fd = fork_event(&forker, fd, forked_again);
	grandchild_fd = (int)expect_event(child_fd, UFFD_EVENT_FORK).arg.fork.ufd;
	expect_fault(grandchild_fd, mem, 0);
	cr_assert_eq(uffd_copy(grandchild_fd, mem, filled(7), PAGE, 0), 0);
	child_passed(forker.pid);
}

static void child_touches_wiped_memory(void)
{
	contract_begin();
	_exit(mem[0] == 0 ? 0 : 1);
}

/*
 * WIPEONFORK memory is armed in the child like any other, so a COPY of what the parent
 * has on the device would succeed and be wrong: look at the mapping's flags first.
 * DONTFORK memory is not there.
 */
Test(fork, wipeonfork_and_dontfork_memory)
{
	int fd = uffd_open(FORK), child_fd;
	struct forker forker;
	char *absent = map_pages(1);

	mem = map_pages(2);
	memset(mem, 1, PAGE);
	cr_assert_eq(madvise(mem, 2 * PAGE, MADV_WIPEONFORK), 0);
	cr_assert_eq(madvise(absent, PAGE, MADV_DONTFORK), 0);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	cr_assert_eq(uffd_register(fd, absent, PAGE, MISSING), 0);
	child_fd = fork_event(&forker, fd, child_touches_wiped_memory);
	expect_fault(child_fd, mem, 0);
	cr_assert_eq(uffd_copy(child_fd, mem + PAGE, filled(7), PAGE, 0), 0);
	cr_assert_eq(uffd_copy(child_fd, absent, filled(7), PAGE, 0), -ENOENT);
	cr_assert_eq(uffd_zeropage(child_fd, mem, PAGE), 0);
	child_passed(forker.pid);
}

/* An owner without privilege makes the descriptor, hmmd does the handshake. */
static void unprivileged_owner(void *arg)
{
	int sock = ((int *)arg)[0], dev = ((int *)arg)[1];
	pid_t pid;
	int fd, status;
	char byte;

	become_nobody();
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	child_check(fd >= 0);
	child_check(uffd_api(fd, FORK) == -EPERM);
	close(fd);
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	child_check(fd >= 0);
	send_fd(sock, fd);
	child_check(read(sock, &byte, 1) == 1);
	child_check(uffd_register(fd, mem, PAGE, MISSING) == 0);
	pid = fork();
	if (!pid)
		_exit(mem[0] == 7 ? 0 : 1);
	child_check(waitpid(pid, &status, 0) == pid && !status);
}

Test(fork, handshake_by_a_privileged_process_is_enough)
{
	int arg[2], sock[2], fd, child_fd;
	pid_t pid;

	require_root();
	arg[1] = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (arg[1] < 0)
		skip("no /dev/userfaultfd");
	mem = map_pages(1);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	arg[0] = sock[1];
	pid = child_start(unprivileged_owner, arg);
	fd = recv_fd(sock[0]);
	cr_assert_geq(fd, 0);
	cr_assert_eq(uffd_api(fd, FORK), 0);
	cr_assert_eq(write(sock[0], "g", 1), 1);
	child_fd = (int)expect_event(fd, UFFD_EVENT_FORK).arg.fork.ufd;
	expect_fault(child_fd, mem, 0);
	cr_assert_eq(uffd_copy(child_fd, mem, filled(7), PAGE, 0), 0);
	child_passed(pid);
}

/*
 * Why the child's own atfork handler is too late to bring pages home: glibc touches its
 * own memory (the locks of open streams) in the child before it.
 */
static atomic_int *handler_ran;

static void note_handler(void)
{
	atomic_store(handler_ran, 1);
}

static void *idle_thread(void *arg)
{
	pause();
	return NULL;
}

static void owner_of_a_migrated_stream(void *arg)
{
	int sock = *(int *)arg, fd = uffd_open(FORK), status;
	pthread_t thread;
	void *around;
	char *page;
	char byte;
	pid_t pid;
	FILE *file;

	pthread_atfork(NULL, NULL, note_handler);
	child_check(pthread_create(&thread, NULL, idle_thread, NULL) == 0);
	around = malloc(5 * PAGE);
	file = fopen("/dev/null", "re");
	child_check(around && file && malloc(5 * PAGE));
	page = (char *)((uintptr_t)file & ~(PAGE - 1));
	child_check(uffd_register(fd, page, 2 * PAGE, MISSING) == 0);
	send_fd(sock, fd);
	child_check(write(sock, &page, sizeof(page)) == sizeof(page));
	/* The device has both pages' bytes from here on; nothing of stdio is used after it. */
	child_check(write(sock, page, 2 * PAGE) == 2 * PAGE);
	child_check(read(sock, &byte, 1) == 1);
	child_check(madvise(page, 2 * PAGE, MADV_DONTNEED) == 0);
	pid = fork();
	if (!pid)
		_exit(0);
	child_check(waitpid(pid, &status, 0) == pid);
	_exit(status ? 1 : 0);
}

Test(fork, glibc_touches_memory_before_the_child_handler)
{
	int sock[2], fd, child_fd = -1, owner_done;
	char *base, *page, bytes[2 * PAGE];
	bool touched_before = false;
	struct pollfd pfd[3];
	pid_t pid;

#ifdef __SANITIZE_ADDRESS__
	skip("AddressSanitizer's allocator keeps its own data in the pages of a stream");
#endif
	handler_ran = map_shared(PAGE);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	pid = child_start(owner_of_a_migrated_stream, &sock[1]);
	fd = recv_fd(sock[0]);
	cr_assert_geq(fd, 0);
	cr_assert_eq(recv(sock[0], &base, sizeof(base), MSG_WAITALL), sizeof(base));
	cr_assert_eq(recv(sock[0], bytes, sizeof(bytes), MSG_WAITALL), sizeof(bytes));
	cr_assert_eq(write(sock[0], "g", 1), 1);
	owner_done = pidfd_open(pid, 0);
	for (;;) {
		struct uffd_msg msg;
		int from;

		pfd[0] = (struct pollfd){ .fd = owner_done, .events = POLLIN };
		pfd[1] = (struct pollfd){ .fd = fd, .events = POLLIN };
		pfd[2] = (struct pollfd){ .fd = child_fd, .events = POLLIN };
		cr_assert_gt(poll(pfd, 3, deadline_ms()), 0);
		if (pfd[0].revents)
			break;
		from = pfd[1].revents & POLLIN ? fd : child_fd;
		if (read(from, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		if (msg.event == UFFD_EVENT_FORK) {
			child_fd = (int)msg.arg.fork.ufd;
			continue;
		}
		cr_assert_eq(msg.event, UFFD_EVENT_PAGEFAULT);
		page = (char *)(msg.arg.pagefault.address & ~(PAGE - 1));
		if (from == child_fd && !atomic_load(handler_ran))
			touched_before = true;
		uffd_copy(from, page, bytes + (page - base), PAGE, 0);
	}
	child_passed(pid);
	cr_assert(atomic_load(handler_ran));
	cr_assert(touched_before);
}
