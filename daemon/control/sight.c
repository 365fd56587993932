// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sight.c - a process may be in a container, or hmmd.
 *
 * The kernel translates the pid of whoever connects into hmmd's namespace; a process that is not in it, nor in one below, has none: 0. Then
 * nothing of it can be looked at, one such process is not told from another, and its end is not noticed. And of an owner hmmd has
 * to know where its threads keep what the kernel writes when they end: such pages never leave, or pthread_join() hangs. That
 * takes /proc/PID/task, and the right to ask of its threads. Without it memory would migrate, and some program stand
 * still one day; so it is refused at the beginning, where somebody reads why.
 */
#include "daemon/control/sight.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int sight_of_driver(pid_t pid, char *why, size_t size)
{
	if (pid > 0)
		return 0;
	snprintf(why, size, "hmmd can't see this process: it, or hmmd, is in a container with a pid namespace of its own; "
		 "run hmmd outside of containers, or the program in hmmd's pid namespace (docker run --pid=host)");
	return -ESRCH;
}

int sight_of_owner(pid_t pid, char *why, size_t size)
{
	char path[32];
	size_t length;
	void *list;
	int fd, r = sight_of_driver(pid, why, size);

	if (r)
		return r;
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	/* Not access(): that leaves the capabilities of a service's own user aside. */
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		r = errno;
		if (syscall(SYS_get_robust_list, pid, &list, &length) < 0 && errno == ESRCH) {
			snprintf(why, size, "pid %d has ended", pid);
			return -ESRCH;
		}
		snprintf(why, size, "hmmd can't read %s (%s): its /proc hides others' processes (hidepid), or is of another pid namespace; "
			 "run hmmd with CAP_SYS_PTRACE, and a /proc of its own namespace", path, strerror(r));
		return -EACCES;
	}
	close(fd);
	/* ESRCH: it ends in this moment. */
	if (syscall(SYS_get_robust_list, pid, &list, &length) < 0 && errno != ESRCH) {
		snprintf(why, size, "hmmd may not ask of the threads of pid %d (get_robust_list: %s); "
			 "run hmmd with CAP_SYS_PTRACE (docker run --cap-add SYS_PTRACE), or the program as hmmd's user, with no more capabilities", pid, strerror(errno));
		return -EACCES;
	}
	return 0;
}
