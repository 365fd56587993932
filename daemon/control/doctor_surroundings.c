// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * doctor_surroundings.c - what a container, a service manager or a seccomp filter keeps from hmmd.
 *
 * A filter can't be read, so each call is made that hmmd makes, with arguments that change nothing: what is allowed says
 * that they are wrong.
 *
 * Thread: control.
 */
#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/control/doctor.h"
#include "uapi.h"

/* The inode of the machine's own pid namespace: the kernel's PROC_PID_INIT_INO. */
#define FIRST_PID_NAMESPACE "pid:[4026531836]"

static bool is_forbidden(long result)
{
	return result < 0 && (errno == EPERM || errno == ENOSYS || errno == EACCES);
}

static long try_userfaultfd(void)
{
	/* Flags that there are not. */
	return syscall(SYS_userfaultfd, ~0UL);
}

static long try_io_uring(void)
{
	return syscall(SYS_io_uring_setup, 0, NULL);
}

static long try_process_madvise(void)
{
	return syscall(SYS_process_madvise, -1, NULL, 0UL, 0, 0U);
}

static long try_kcmp(void)
{
	return syscall(SYS_kcmp, getpid(), getpid(), -1, 0UL, 0UL);
}

static long try_mbind(void)
{
	return syscall(SYS_mbind, 1UL, 0UL, 0, NULL, 0UL, 0U);
}

static long try_set_mempolicy(void)
{
	return syscall(SYS_set_mempolicy, -1, NULL, 0UL);
}

static const struct {
	const char *name, *without;
	long (*call)(void);
} calls[] = {
	{ "userfaultfd", "where /dev/userfaultfd can't be opened no process can be mirrored", try_userfaultfd },
	{ "io_uring_setup", "the engine runs on epoll and serves faults a little slower", try_io_uring },
	{ "process_madvise", "what was one huge page comes home as 4 KiB pages", try_process_madvise },
	{ "kcmp", "drivers' windows are mapped anew after a restart of hmmd", try_kcmp },
	{ "mbind", "pools can't be placed on memory nodes", try_mbind },
	{ "set_mempolicy", "what comes home is not placed as its program wants it", try_set_mempolicy },
};

bool doctor_is_filtered(void)
{
	return prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 2 && is_forbidden(try_userfaultfd());
}

static void check_filter(struct examination *exam)
{
	if (prctl(PR_GET_SECCOMP, 0, 0, 0, 0) != 2)
		return;
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		if (is_forbidden(calls[i].call()))
			doctor_find(exam, DOCTOR_NOTE, 0, "seccomp", "allow it in the profile of hmmd's service or container",
				    "the seccomp filter that hmmd is under forbids %s(): %s", calls[i].name, calls[i].without);
}

static void check_namespace(struct examination *exam)
{
	char name[64];
	ssize_t n = readlink("/proc/self/ns/pid", name, sizeof(name) - 1);

	if (n < 0)
		return;
	name[n] = '\0';
	if (strcmp(name, FIRST_PID_NAMESPACE))
		doctor_find(exam, DOCTOR_NOTE, 0, "pid namespace",
			    "run hmmd outside of containers, or in one with the host's processes (--pid=host)",
			    "hmmd is in a pid namespace of its own (a container's): it sees, and serves, the processes in it alone");
}

void doctor_surroundings(struct examination *exam)
{
	check_filter(exam);
	check_namespace(exam);
}
