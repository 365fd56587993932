// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Who gets which kind of userfaultfd, and what this kernel's kind can do.
 *
 * Children change their uid; the test itself stays who it is. What can fail: an owner
 * whose system calls fail with EFAULT on memory that is on the device.
 */
#include "contract.h"

TestSuite(privilege, .init = contract_begin);

static char *filled(int value)
{
	void *page = map_pages(1);

	memset(page, value, PAGE);
	return page;
}

/* What Linux 6.1, the oldest supported, has; and what the full tier needs on top. */
Test(privilege, features_of_the_base_tier)
{
	uint64_t base = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_FORK |
			UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
			UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_MISSING_HUGETLBFS |
			UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_THREAD_ID |
			UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EXACT_ADDRESS |
			UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

	cr_assert_eq(uffd_features() & base, base);
}

Test(privilege, features_of_the_full_tier)
{
	uint64_t full = UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_POISON |
			UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_MOVE;

	if (!(uffd_features() & UFFD_FEATURE_MOVE))
		skip("this kernel is of the base tier");
	cr_assert_eq(uffd_features() & full, full);
}

/* A handshake happens once; asking for what is not there fails and can be tried again. */
Test(privilege, handshake)
{
	int fd = uffd_new();
	struct uffdio_api api = { .api = UFFD_API, .features = 1ULL << 63 };

	cr_assert_eq(uffd_register(fd, map_pages(1), PAGE, MISSING), -EINVAL, "before it");
	cr_assert_eq(ioctl(fd, UFFDIO_API, &api), -1);
	cr_assert_eq(errno, EINVAL);
	cr_assert_eq(uffd_api(fd, 0), 0);
	cr_assert_neq(uffd_api(fd, 0), 0);
}

static void nobody_without_a_device(void *arg)
{
	char *mem = map_pages(1), byte = 'x';
	struct uffdio_api api = { .api = UFFD_API };
	int fd, pipe_fd[2];

	become_nobody();
	/* A descriptor from the system call serves faults from user mode alone. */
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	child_check(fd < 0 && errno == EPERM);
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	child_check(fd >= 0);
	child_check(ioctl(fd, UFFDIO_API, &api) == 0);
	child_check(uffd_register(fd, mem, PAGE, MISSING) == 0);
	child_check(pipe(pipe_fd) == 0);
	child_check(write(pipe_fd[1], &byte, 1) == 1);
	child_check(read(pipe_fd[0], mem, 1) == -1 && errno == EFAULT);
	child_check(no_event(fd));
}

Test(privilege, user_mode_only_gives_efault_to_system_calls)
{
	require_root();
	if (!setting_is("/proc/sys/vm/unprivileged_userfaultfd", "0"))
		skip("vm.unprivileged_userfaultfd is not 0");
	child_passed(child_start(nobody_without_a_device, NULL));
}

static void nobody_with_an_open_device(void *arg)
{
	int dev = *(int *)arg, fd, pipe_fd[2], status;
	char *mem = map_pages(1);
	pid_t pid;

	become_nobody();
	child_check(open("/dev/userfaultfd", O_RDWR) < 0);
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	child_check(fd >= 0);
	child_check(uffd_api(fd, 0) == 0);
	child_check(uffd_register(fd, mem, PAGE, MISSING) == 0);
	child_check(pipe(pipe_fd) == 0);
	child_check(write(pipe_fd[1], "x", 1) == 1);
	/* One that serves this process's fault from outside: a child with the descriptor. */
	pid = fork();
	if (!pid) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		struct uffd_msg msg;

		child_check(poll(&pfd, 1, deadline_ms()) == 1);
		child_check(read(fd, &msg, sizeof(msg)) == sizeof(msg));
		child_check(uffd_copy(fd, mem, filled(7), PAGE, 0) == 0);
		_exit(0);
	}
	child_check(read(pipe_fd[0], mem, 1) == 1);
	child_check(mem[0] == 'x' && mem[1] == 7);
	child_check(waitpid(pid, &status, 0) == pid && status == 0);
}

Test(privilege, open_device_gives_a_full_one)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	require_root();
	if (dev < 0)
		skip("no /dev/userfaultfd");
	child_passed(child_start(nobody_with_an_open_device, &dev));
}
