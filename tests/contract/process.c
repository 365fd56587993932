// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Owners as processes: what their mem descriptor reads, what an exec, a death, a core dump
 * and a debugger make of memory that is on the device.
 *
 * What can fail: hmmd reading another program's memory, hanging on an owner's, or taking an
 * owner for gone that is not.
 */
#include "contract.h"

#include <elf.h>
#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <sys/ptrace.h>
#include <sys/resource.h>

#define MARK	0x500000000000L	/* an address that nobody else takes */

TestSuite(process, .init = contract_begin);

static char *filled(int value)
{
	void *page = map_pages(1);

	memset(page, value, PAGE);
	return page;
}

/* /proc/self/mem does not ask userfaultfd: EIO, where process_vm_readv would wait. */
Test(process, mem_of_a_missing_page_is_eio)
{
	int fd = uffd_open(0), mem_fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	char *mem = map_pages(2), byte = 0;

	memset(mem + PAGE, 7, PAGE);
	cr_assert_eq(uffd_register(fd, mem, 2 * PAGE, MISSING), 0);
	cr_assert_eq(pread(mem_fd, &byte, 1, (off_t)(uintptr_t)mem), -1);
	cr_assert_eq(errno, EIO);
	cr_assert_eq(pwrite(mem_fd, "x", 1, (off_t)(uintptr_t)mem), -1);
	cr_assert_eq(errno, EIO);
	cr_assert_eq(pread(mem_fd, &byte, 1, (off_t)(uintptr_t)(mem + PAGE)), 1);
	cr_assert_eq(byte, 7);
	cr_assert(no_event(fd));
}

/* It ignores protection, which process_vm_readv honours: check the mapping first. */
Test(process, mem_ignores_protection)
{
	int mem_fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	char *mem = filled(7), byte = 0;
	struct iovec local = { &byte, 1 }, remote = { mem, 1 };

	cr_assert_eq(mprotect(mem, PAGE, PROT_NONE), 0);
	cr_assert_eq(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), -1);
	cr_assert_eq(errno, EFAULT);
	cr_assert_eq(pread(mem_fd, &byte, 1, (off_t)(uintptr_t)mem), 1);
	cr_assert_eq(byte, 7);
	cr_assert_eq(mprotect(mem, PAGE, PROT_READ), 0);
	cr_assert_eq(process_vm_writev(getpid(), &local, 1, &remote, 1, 0), -1);
	cr_assert_eq(errno, EFAULT);
	cr_assert_eq(pwrite(mem_fd, "y", 1, (off_t)(uintptr_t)mem), 1);
	cr_assert_eq(mem[0], 'y');
}

/* A mem write to a write-protected page: EIO as well, or it waits; never unseen. */
Test(process, mem_write_to_a_protected_page)
{
	int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	int mem_fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	char *mem = filled(7);

	cr_assert_eq(uffd_register(fd, mem, PAGE, WP), 0);
	cr_assert_eq(uffd_wp(fd, mem, PAGE, true), 0);
	cr_assert_eq(pwrite(mem_fd, "y", 1, (off_t)(uintptr_t)mem), -1);
	cr_assert_eq(errno, EIO);
	cr_assert_eq(mem[0], 7);
	cr_assert(pagemap(mem) & PM_UFFD_WP);
}

/* A debugger reads memory like that too. */
static void debuggee(void *arg)
{
	int *sock = arg;
	int fd = uffd_open(0);
	char *mem = map_pages(1);

	child_check(uffd_register(fd, mem, PAGE, MISSING) == 0);
	send_fd(*sock, fd);
	child_check(write(*sock, &mem, sizeof(mem)) == sizeof(mem));
	pause();
}

Test(process, peek_of_a_missing_page_is_eio)
{
	int sock[2], fd, status;
	char *mem;
	pid_t pid;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	pid = child_start(debuggee, &sock[1]);
	fd = recv_fd(sock[0]);
	cr_assert_eq(recv(sock[0], &mem, sizeof(mem), MSG_WAITALL), sizeof(mem));
	if (ptrace(PTRACE_SEIZE, pid, 0, 0))
		skip("may not trace a child: %s", strerror(errno));
	cr_assert_eq(ptrace(PTRACE_INTERRUPT, pid, 0, 0), 0);
	cr_assert_eq(waitpid(pid, &status, __WALL), pid);
	errno = 0;
	cr_assert_eq(ptrace(PTRACE_PEEKDATA, pid, mem, 0), -1);
	cr_assert_eq(errno, EIO);
	cr_assert(no_event(fd));
	cr_assert_eq(uffd_copy(fd, mem, filled(1), PAGE, 0), 0);
	cr_assert_eq(ptrace(PTRACE_PEEKDATA, pid, mem, 0), 0x0101010101010101L);
	child_kill(pid);
}

/* exec leaves socket and pid in place, and puts another program behind them. */
static void owner_that_execs(void *arg)
{
	int *sock = arg, mem_fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	char *mem = mmap((void *)MARK, PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	char byte;

	child_check(mem != MAP_FAILED);
	memset(mem, 7, PAGE);
	send_fd(*sock, mem_fd);
	child_check(read(*sock, &byte, 1) == 1);
	/* The socket is inherited on purpose; what it is for is over. */
	child_check(fcntl(*sock, F_SETFD, 0) == 0);
	execl("/bin/sleep", "sleep", "1000", NULL);
	_exit(1);
}

Test(process, mem_descriptor_does_not_follow_an_exec)
{
	int sock[2], mem_fd, pidfd;
	char byte = 0, path[64], exe[256];
	struct pollfd pfd;
	pid_t pid;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	pid = child_start(owner_that_execs, &sock[1]);
	close(sock[1]);
	mem_fd = recv_fd(sock[0]);
	pidfd = pidfd_open(pid, 0);
	cr_assert_eq(pread(mem_fd, &byte, 1, MARK), 1);
	cr_assert_eq(byte, 7);
	cr_assert_eq(write(sock[0], "x", 1), 1);
	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	do {
		ssize_t len = readlink(path, exe, sizeof(exe) - 1);

		cr_assert_gt(len, 0);
		exe[len] = '\0';
		usleep(1000);
	} while (!strstr(exe, "sleep"));
	/* Dead to the descriptor, alive to socket and pidfd: pid would read the new program. */
	cr_assert_eq(pread(mem_fd, &byte, 1, MARK), 0);
	pfd = (struct pollfd){ .fd = pidfd, .events = POLLIN };
	cr_assert_eq(poll(&pfd, 1, 0), 0);
	cr_assert_eq(recv(sock[0], &byte, 1, MSG_DONTWAIT), -1);
	cr_assert_eq(errno, EAGAIN, "the socket is not closed");
	child_kill(pid);
}

Test(process, death_is_esrch)
{
	int sock[2], fd;
	char *mem;
	pid_t pid;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	pid = child_start(debuggee, &sock[1]);
	fd = recv_fd(sock[0]);
	cr_assert_eq(recv(sock[0], &mem, sizeof(mem), MSG_WAITALL), sizeof(mem));
	child_kill(pid);
	wait_until(uffd_copy(fd, mem, filled(1), PAGE, 0) == -ESRCH);
	cr_assert_eq(uffd_register(fd, mem, PAGE, MISSING), -ENOMEM, "no address space left");
	cr_assert_eq(uffd_unregister(fd, mem, PAGE), -ENOMEM);
	cr_assert_eq(uffd_wake(fd, mem, PAGE), 0);
}

/* An address space outlives the process that made it, in whoever shares it. */
static volatile char *survivors_page;

static int survivor(void *arg)
{
	int sock = *(int *)arg;
	char byte;

	if (read(sock, &byte, 1) != 1)
		syscall(SYS_exit, 2);
	byte = survivors_page[0];
	if (write(sock, &byte, 1) != 1)
		syscall(SYS_exit, 3);
	syscall(SYS_exit, 0);
	return 0;
}

static void leader_with_a_survivor(void *arg)
{
	static char stack[65536];
	int *sock = arg, fd = uffd_open(0);

	survivors_page = map_pages(1);
	child_check(uffd_register(fd, (void *)survivors_page, PAGE, MISSING) == 0);
	send_fd(*sock, fd);
	child_check(write(*sock, (void *)&survivors_page, sizeof(survivors_page)) ==
		    sizeof(survivors_page));
	child_check(clone(survivor, stack + sizeof(stack) - 64, CLONE_VM | SIGCHLD, sock) > 0);
	_exit(0);
}

Test(process, address_space_outlives_its_leader)
{
	int sock[2], fd;
	char *mem, byte;
	pid_t pid;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	pid = child_start(leader_with_a_survivor, &sock[1]);
	close(sock[1]);
	fd = recv_fd(sock[0]);
	cr_assert_eq(recv(sock[0], &mem, sizeof(mem), MSG_WAITALL), sizeof(mem));
	child_passed(pid);
	/* The pidfd said dead. The memory is in use, and its bytes are still asked for. */
	cr_assert_eq(write(sock[0], "r", 1), 1);
	expect_fault(fd, mem, 0);
	cr_assert_eq(uffd_copy(fd, mem, filled(7), PAGE, 0), 0);
	cr_assert_eq(recv(sock[0], &byte, 1, MSG_WAITALL), 1);
	cr_assert_eq(byte, 7);
	wait_until(uffd_copy(fd, mem, filled(7), PAGE, 0) == -ESRCH);
}

/* A shared pipe for logs is a deadlock: the pipe's lock is held across the fault. */
static void writer_from_a_missing_page(void *arg)
{
	int *fds = arg, fd = uffd_open(0);
	char *mem = map_pages(1);

	child_check(uffd_register(fd, mem, PAGE, MISSING) == 0);
	send_fd(fds[0], fd);
	child_check(write(fds[1], mem, 100) == 100);
}

static void logs_a_line(void *arg)
{
	int pipe_fd = *(int *)arg;

	/* Not even O_NONBLOCK helps, where the owner's write holds the pipe. */
	child_check(fcntl(pipe_fd, F_SETFL, O_NONBLOCK) == 0);
	child_check(write(pipe_fd, "a line\n", 7) == 7);
}

Test(process, pipe_shared_with_an_owner_waits_for_its_fault)
{
	int sock[2], pipe_fd[2], arg[2], fd;
	char text[128];
	pid_t owner, logger;
	struct uffd_msg msg;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
	cr_assert_eq(pipe2(pipe_fd, O_CLOEXEC), 0);
	arg[0] = sock[1];
	arg[1] = pipe_fd[1];
	owner = child_start(writer_from_a_missing_page, arg);
	fd = recv_fd(sock[0]);
	msg = expect_event(fd, UFFD_EVENT_PAGEFAULT);
	logger = child_start(logs_a_line, &pipe_fd[1]);
	usleep(50000);
	cr_assert_eq(waitpid(logger, NULL, WNOHANG), 0, "it got through");
	cr_assert_eq(uffd_zeropage(fd, (void *)(msg.arg.pagefault.address & ~(PAGE - 1)), PAGE), 0);
	child_passed(owner);
	child_passed(logger);
	cr_assert_gt(read(pipe_fd[0], text, sizeof(text)), 0);
}

/* A core dump of memory that is on the device holds zeros, and does not hang. */
struct dump {
	char dir[64], path[128];
	char *mem;
};

static void dumps_core(void *arg)
{
	struct dump *dump = arg;
	int fd = uffd_open(0);
	struct rlimit limit = { 1UL << 30, 1UL << 30 };

	memset(dump->mem + PAGE, 7, PAGE);
	child_check(uffd_register(fd, dump->mem, 2 * PAGE, MISSING) == 0);
	child_check(setrlimit(RLIMIT_CORE, &limit) == 0);
	child_check(chdir(dump->dir) == 0);
	signal(SIGABRT, SIG_DFL);
	raise(SIGABRT);
}

/* The byte at an address of the dumped process, or -1 where the dump has none. */
static int dumped_byte(int fd, uint64_t addr)
{
	Elf64_Ehdr elf;
	Elf64_Phdr segment;
	unsigned char byte;

	cr_assert_eq(pread(fd, &elf, sizeof(elf), 0), sizeof(elf));
	for (int i = 0; i < elf.e_phnum; i++) {
		off_t at = (off_t)(elf.e_phoff + (size_t)i * sizeof(segment));

		cr_assert_eq(pread(fd, &segment, sizeof(segment), at), sizeof(segment));
		if (addr < segment.p_vaddr || addr >= segment.p_vaddr + segment.p_filesz)
			continue;
		at = (off_t)(segment.p_offset + addr - segment.p_vaddr);
		return pread(fd, &byte, 1, at) == 1 ? byte : -1;
	}
	return -1;
}

static int open_core(struct dump *dump, pid_t pid)
{
	int fd;

	snprintf(dump->path, sizeof(dump->path), "%s/core", dump->dir);
	fd = open(dump->path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		snprintf(dump->path, sizeof(dump->path), "%s/core.%d", dump->dir, pid);
		fd = open(dump->path, O_RDONLY | O_CLOEXEC);
	}
	if (fd >= 0)
		unlink(dump->path);
	rmdir(dump->dir);
	return fd;
}

Test(process, core_dump_holds_zeros_and_does_not_wait)
{
	struct dump dump = { .dir = "/tmp/hmm-core-XXXXXX", .mem = map_pages(2) };
	int status, core;
	pid_t pid;

	cr_assert_not_null(mkdtemp(dump.dir));
	/* Nobody reads the descriptor; the dump ends all the same. */
	pid = child_start(dumps_core, &dump);
	status = child_end(pid);
	core = open_core(&dump, pid);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status 0x%x", status);
	if (core < 0)
		skip("core dumps do not go to a file here (kernel.core_pattern)");
	cr_assert_eq(dumped_byte(core, (uintptr_t)dump.mem + PAGE), 7);
	cr_assert_eq(dumped_byte(core, (uintptr_t)dump.mem), 0);
}

/* The kernel can tell that a tracer attached, so that hmmd knows whom it must not wait for. */
static int proc_connector(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = CN_IDX_PROC };
	enum proc_cn_mcast_op op = PROC_CN_MCAST_LISTEN;
	char bytes[NLMSG_SPACE(sizeof(struct cn_msg) + sizeof(op))] __attribute__((aligned(8))) = { 0 };
	struct nlmsghdr *head = (struct nlmsghdr *)bytes;
	struct cn_msg *msg = NLMSG_DATA(head);
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_CONNECTOR);

	if (fd < 0)
		skip("no netlink connector: %s", strerror(errno));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)))
		skip("no process events for this user: %s", strerror(errno));
	*head = (struct nlmsghdr){
		.nlmsg_len = NLMSG_LENGTH(sizeof(*msg) + sizeof(op)), .nlmsg_type = NLMSG_DONE,
	};
	msg->id = (struct cb_id){ CN_IDX_PROC, CN_VAL_PROC };
	msg->len = sizeof(op);
	memcpy(msg->data, &op, sizeof(op));
	if (send(fd, bytes, head->nlmsg_len, 0) < 0)
		skip("no process events: %s", strerror(errno));
	return fd;
}

static void waits(void *arg)
{
	pause();
}

static void attach(pid_t pid)
{
	cr_assert_eq(ptrace(PTRACE_SEIZE, pid, 0, 0), 0);
}

/* Others' events come as well, more than the socket holds perhaps: then ours may be lost, and there has to be another. */
static void attach_again(pid_t pid)
{
	int status;

	cr_assert_eq(ptrace(PTRACE_INTERRUPT, pid, 0, 0), 0);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert_eq(ptrace(PTRACE_DETACH, pid, 0, 0), 0);
	attach(pid);
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static bool traced_event(int fd, pid_t pid, pid_t tracer)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	char bytes[4096] __attribute__((aligned(NLMSG_ALIGNTO)));
	int64_t end = now_ms() + deadline_ms() / 4, left;

	while ((left = end - now_ms()) > 0 && poll(&pfd, 1, (int)left) == 1) {
		ssize_t len = recv(fd, bytes, sizeof(bytes), 0);
		struct nlmsghdr *head = (struct nlmsghdr *)bytes;
		struct proc_event event;

		if (len < 0 && errno == ENOBUFS)
			attach_again(pid);
		if (len < 0 || !NLMSG_OK(head, (size_t)len))
			continue;
		/* A message's payload has an alignment of four, an event wants eight. */
		memcpy(&event, ((struct cn_msg *)NLMSG_DATA(head))->data, sizeof(event));
		if (event.what == PROC_EVENT_PTRACE &&
		    event.event_data.ptrace.process_tgid == pid &&
		    event.event_data.ptrace.tracer_tgid == tracer)
			return true;
	}
	return false;
}

Test(process, connector_tells_of_a_tracer)
{
	int fd;
	pid_t pid;

	require_root();
	fd = proc_connector();
	pid = child_start(waits, NULL);
	attach(pid);
	if (!traced_event(fd, pid, getpid()))
		skip("the kernel sends no process events here");
	child_kill(pid);
}
