// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mortal.c - hmmd that is killed at a moment of the test's choice. Linked with hmmd's own main.c (and
 * the card of tests/inject) into hmmd_mortal; its definitions stand before libc's.
 *
 *   HMMD_MORTAL=CALL:N    SIGKILL at the Nth moment, where each CALL (ioctl, fallocate, sendmsg, ...: those below) is two: before
 *                         it, and when it is done and its caller does not know yet. "any": each of them counts.
 *   HMMD_MORTAL=cpu:US    SIGKILL when all of its threads together have run for so many microseconds: at any
 *                         instruction, and always at one, while a kill from outside mostly meets an hmmd that waits.
 *
 * Without it this is an hmmd like any other. Processes that it starts hear nothing of it. Any thread runs this; the counter is
 * atomic, and the rest is written before main() begins.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))

static const struct {
	const char *name;
	long number;
} calls[] = {
	{"ioctl", SYS_ioctl},	    {"fallocate", SYS_fallocate}, {"sendmsg", SYS_sendmsg}, {"recvmsg", SYS_recvmsg},
	{"write", SYS_write},	    {"pread", SYS_pread64},	  {"pwrite", SYS_pwrite64}, {"mmap", SYS_mmap},
	{"munmap", SYS_munmap},	    {"ftruncate", SYS_ftruncate}, {"any", -1},
};

static long call;	   /* that counts; -1: any */
static unsigned long last; /* 0: none */
static _Atomic unsigned long moments;

static void moment(long number)
{
	if (last && (call < 0 || call == number) && atomic_fetch_add(&moments, 1) + 1 == last)
		syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
}

/* A call's result, and errno as it left it. */
static long through(long number, long a, long b, long c, long d, long e, long f)
{
	long r;

	moment(number);
	r = syscall(number, a, b, c, d, e, f);
	moment(number);
	return r;
}

EXPORTED int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	long argument;

	va_start(arguments, request);
	argument = (long)va_arg(arguments, void *);
	va_end(arguments);
	return (int)through(SYS_ioctl, fd, (long)request, argument, 0, 0, 0);
}

EXPORTED ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	return through(SYS_sendmsg, fd, (long)message, flags, 0, 0, 0);
}

EXPORTED ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	return through(SYS_recvmsg, fd, (long)message, flags, 0, 0, 0);
}

EXPORTED ssize_t write(int fd, const void *buffer, size_t length)
{
	return through(SYS_write, fd, (long)buffer, (long)length, 0, 0, 0);
}

EXPORTED ssize_t pread(int fd, void *buffer, size_t length, off_t offset)
{
	return through(SYS_pread64, fd, (long)buffer, (long)length, offset, 0, 0);
}

EXPORTED ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset)
{
	return through(SYS_pwrite64, fd, (long)buffer, (long)length, offset, 0, 0);
}

EXPORTED int fallocate(int fd, int mode, off_t offset, off_t length)
{
	return (int)through(SYS_fallocate, fd, mode, offset, length, 0, 0);
}

EXPORTED int ftruncate(int fd, off_t length)
{
	return (int)through(SYS_ftruncate, fd, length, 0, 0, 0, 0);
}

EXPORTED void *mmap(void *start, size_t length, int protection, int flags, int fd, off_t offset)
{
	return (void *)through(SYS_mmap, (long)start, (long)length, protection, flags, fd, offset);
}

EXPORTED int munmap(void *start, size_t length)
{
	return (int)through(SYS_munmap, (long)start, (long)length, 0, 0, 0, 0);
}

static void die_after(unsigned long us)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL };
	struct itimerspec time = { .it_value = { .tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000 } };
	timer_t timer;

	if (timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer) || timer_settime(timer, 0, &time, NULL)) {
		perror("hmmd_mortal: a timer");
		exit(2);
	}
}

__attribute__((constructor)) static void choose(void)
{
	const char *plan = getenv("HMMD_MORTAL");
	size_t length = plan ? strcspn(plan, ":") : 0;
	unsigned long number;

	if (!length)
		return;
	number = strtoul(plan + length + (plan[length] == ':'), NULL, 10);
	if (number && length == 3 && !strncmp(plan, "cpu", length)) {
		die_after(number);
		length = 0;
	}
	for (unsigned int i = 0; length && number && i < sizeof(calls) / sizeof(calls[0]); i++) {
		if (strncmp(plan, calls[i].name, length) || calls[i].name[length])
			continue;
		call = calls[i].number;
		last = number;
		length = 0;
	}
	if (length) {
		fprintf(stderr, "hmmd_mortal: HMMD_MORTAL=%s is neither CALL:N nor cpu:MICROSECONDS\n", plan);
		exit(2);
	}
	unsetenv("HMMD_MORTAL");
}
