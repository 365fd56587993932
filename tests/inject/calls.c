// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * calls.c - system calls and allocations that fail. The linker puts these functions in the place of
 * libc's (--wrap) where hmmd, or the library, calls them: see CMakeLists.txt, whose list has to be that of calls.h.
 *
 *   HMM_CALLS=CALL:ERROR:N[:TIMES]   the Nth CALL, and the TIMES - 1 behind it, fail with ERROR and do nothing. ERROR "SHORT":
 *                   half of it is done; "LOST": a message comes without its descriptors, as where there is no room for them.
 *   HMM_CALLS=storm:ERROR:PERCENT:SEED   so many of all calls that may answer that do.
 *   HMM_CALLS=list  prints what there is, with what each may answer, and ends.
 *   HMM_CALLS_REPORT=FILE   counts how often each was called, and how many failed, for all processes that have this
 *                   in their environment: the Nth is that of all of them.
 *
 * Counters lie in shared memory of which no test sends anything to a device. Any thread runs this.
 */
#include "calls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "errors.h"
#include "proto/layout.h"
#include "proto/uapi.h"

static const struct {
	const char *name, *errors;
} calls[] = {
#define CALL(name, errors) { #name, errors },
	CALLS(CALL)
#undef CALL
};

/* In the report: a name and a count, in text that is as long as the file from the beginning. */
struct count {
	char name[24];
	_Atomic uint64_t n;
};

static struct count unreported[CALL_COUNT + 1], *counts = unreported;
static struct {
	enum call call;
	int error;
	uint64_t first, times;
	uint64_t percent, seed;		/* of a storm */
	bool may[CALL_COUNT];
} plan = { .call = CALL_COUNT };

static bool blows(uint64_t n, enum call call)
{
	uint64_t z = (n * CALL_COUNT + call) * 0x9e3779b97f4a7c15ULL ^ plan.seed;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return (z ^ z >> 31) % 100 < plan.percent;
}

bool call_fails(enum call call, int *error)
{
	uint64_t n = atomic_fetch_add(&counts[call].n, 1) + 1;

	if (plan.percent ? !plan.may[call] || !blows(n, call)
			 : call != plan.call || n < plan.first || n - plan.first >= plan.times)
		return false;
	atomic_fetch_add(&counts[CALL_COUNT].n, 1);
	*error = plan.error;
	return true;
}

/* ---- the plan --------------------------------------------------------------------------- */

static void bad_plan(const char *text)
{
	fprintf(stderr, "HMM_CALLS: '%s' is neither CALL:ERROR:N[:TIMES] nor storm:ERROR:PERCENT:SEED\n", text);
	_exit(2);
}

static bool may(enum call call, const char *error)
{
	size_t length = strlen(error);

	for (const char *at = strstr(calls[call].errors, error); at; at = strstr(at + 1, error))
		if ((at == calls[call].errors || at[-1] == ' ') && (!at[length] || at[length] == ' '))
			return true;
	return false;
}

static void read_plan(const char *text)
{
	char call[32], error[32];
	unsigned long first, second = 1;
	int n = sscanf(text, "%31[^:]:%31[^:]:%lu:%lu", call, error, &first, &second);

	if (n < 3 || !first || !error_by_name(error, &plan.error))
		bad_plan(text);
	for (unsigned int i = 0; i < CALL_COUNT; i++) {
		plan.may[i] = may((enum call)i, error);
		if (strcmp(call, calls[i].name) == 0 && plan.may[i])
			plan.call = (enum call)i;
	}
	if (strcmp(call, "storm") == 0) {
		plan.percent = first;
		plan.seed = second;
	} else if (plan.call == CALL_COUNT) {
		bad_plan(text);
	}
	plan.first = first;
	plan.times = second;
}

static void open_report(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	void *map = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, sizeof(unreported)) == 0)
		map = mmap(NULL, sizeof(unreported), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		perror(path);
		_exit(2);
	}
	close(fd);
	counts = map;
	for (unsigned int i = 0; i <= CALL_COUNT; i++)
		snprintf(counts[i].name, sizeof(counts[i].name), "%s", i < CALL_COUNT ? calls[i].name : "failed");
}

__attribute__((constructor)) static void begin(void)
{
	const char *text = getenv("HMM_CALLS"), *path = getenv("HMM_CALLS_REPORT");

	if (text && strcmp(text, "list") == 0) {
		for (unsigned int i = 0; i < CALL_COUNT; i++)
			printf("%s %s\n", calls[i].name, calls[i].errors);
		fflush(stdout);
		_exit(0);
	}
	if (path)
		open_report(path);
	if (text && *text)
		read_plan(text);
}

/* ---- libc's -------------------------------------------------------------------------------- */

#define WRAP(type, failed, call, symbol, parameters, arguments)                                    \
	type __real_##symbol parameters;                                                           \
	type __wrap_##symbol parameters;                                                           \
	type __wrap_##symbol parameters                                                            \
	{                                                                                          \
		int error;                                                                         \
                                                                                                   \
		if (!call_fails(CALL_##call, &error))                                              \
			return __real_##symbol arguments;                                          \
		errno = error;                                                                     \
		return failed;                                                                     \
	}

WRAP(void *, NULL, malloc, malloc, (size_t size), (size))
WRAP(void *, NULL, calloc, calloc, (size_t n, size_t size), (n, size))
WRAP(void *, NULL, realloc, realloc, (void *memory, size_t size), (memory, size))
WRAP(char *, NULL, malloc, strdup, (const char *text), (text))
WRAP(FILE *, NULL, malloc, open_memstream, (char **text, size_t *size), (text, size))
WRAP(void *, MAP_FAILED, mmap, mmap64, (void *start, size_t length, int protection, int flags, int fd, off_t offset),
     (start, length, protection, flags, fd, offset))
WRAP(int, -1, munmap, munmap, (void *start, size_t length), (start, length))
WRAP(int, -1, mlock, mlock, (const void *start, size_t length), (start, length))
WRAP(int, -1, mlock, mlock2, (const void *start, size_t length, unsigned int flags), (start, length, flags))
WRAP(int, -1, pipe, pipe2, (int *fds, int flags), (fds, flags))
WRAP(int, -1, eventfd, eventfd, (unsigned int value, int flags), (value, flags))
WRAP(int, -1, memfd, memfd_create, (const char *name, unsigned int flags), (name, flags))
WRAP(int, -1, fallocate, fallocate64, (int fd, int mode, off_t offset, off_t length), (fd, mode, offset, length))
WRAP(int, -1, ftruncate, ftruncate64, (int fd, off_t length), (fd, length))
WRAP(ssize_t, -1, readlink, readlink, (const char *path, char *text, size_t size), (path, text, size))
WRAP(int, -1, socket, socket, (int family, int type, int protocol), (family, type, protocol))
WRAP(int, -1, socket, socketpair, (int family, int type, int protocol, int *fds), (family, type, protocol, fds))
WRAP(int, -1, accept, accept4, (int fd, struct sockaddr *address, socklen_t *size, int flags), (fd, address, size, flags))
WRAP(int, -1, connect, connect, (int fd, const struct sockaddr *address, socklen_t size), (fd, address, size))
WRAP(ssize_t, -1, send, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
WRAP(ssize_t, -1, send, send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags))
WRAP(int, -1, setsockopt, setsockopt, (int fd, int level, int name, const void *value, socklen_t size),
     (fd, level, name, value, size))
WRAP(int, -1, poll, poll, (struct pollfd *fds, nfds_t n, int timeout), (fds, n, timeout))
WRAP(int, -1, nanosleep, nanosleep, (const struct timespec *time, struct timespec *left), (time, left))
WRAP(int, -1, timer, timer_create, (clockid_t clock, struct sigevent *event, timer_t *timer), (clock, event, timer))
WRAP(int, -1, epoll, epoll_wait, (int fd, struct epoll_event *events, int n, int timeout), (fd, events, n, timeout))
WRAP(int, -1, epoll_new, epoll_create1, (int flags), (flags))
WRAP(int, error, thread, pthread_create,
     (pthread_t *id, const pthread_attr_t *attr, void *(*run)(void *), void *data), (id, attr, run, data))

/* What makes a mapping's pages, and what advises: they answer differently. */
int __real_madvise(void *start, size_t length, int advice);
int __wrap_madvise(void *start, size_t length, int advice);
int __wrap_madvise(void *start, size_t length, int advice)
{
	bool populates = advice == MADV_POPULATE_WRITE || advice == MADV_POPULATE_READ;
	int error;

	if (!call_fails(populates ? CALL_populate : CALL_madvise, &error))
		return __real_madvise(start, length, advice);
	errno = error;
	return -1;
}

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
	va_list arguments;
	mode_t mode;
	int error;

	va_start(arguments, flags);
	mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	if (!call_fails(CALL_open, &error))
		return __real_open64(path, flags, mode);
	errno = error;
	return -1;
}

/* A duplicate may fail; what else is asked of a descriptor that is open cannot. */
int __real_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...)
{
	va_list arguments;
	long argument;
	int error;

	va_start(arguments, command);
	argument = va_arg(arguments, long);
	va_end(arguments);
	if (command != F_DUPFD_CLOEXEC || !call_fails(CALL_dup, &error))
		return __real_fcntl64(fd, command, argument);
	errno = error;
	return -1;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

/* Whole pages, or whole words of less than a page. */
static size_t half(size_t length)
{
	size_t unit = length >= 2 * HMM_PAGE_SIZE ? HMM_PAGE_SIZE : 8;

	return length / 2 / unit * unit;
}

/* Of a call that may do less than it is asked: true, it fails; else *@length is what is done of it. */
static bool is_refused(enum call call, size_t *length)
{
	int error;

	if (!call_fails(call, &error))
		return false;
	if (error == ERROR_SHORT) {
		*length = half(*length) ? half(*length) : *length;
		return false;
	}
	errno = error;
	return true;
}

ssize_t __real_read(int fd, void *buffer, size_t length);
ssize_t __wrap_read(int fd, void *buffer, size_t length);
/* Counters are read whole, and what is in a pipe can be had. Files have types, and a userfaultfd none. */
ssize_t __wrap_read(int fd, void *buffer, size_t length)
{
	struct stat stat;

	if (length > 8 && !fstat(fd, &stat) && !S_ISFIFO(stat.st_mode) &&
	    is_refused(stat.st_mode & S_IFMT ? CALL_read : CALL_uffd_read, &length))
		return -1;
	return __real_read(fd, buffer, length);
}

ssize_t __real_preadv64v2(int fd, const struct iovec *iov, int n, off_t offset, int flags);
ssize_t __wrap_preadv64v2(int fd, const struct iovec *iov, int n, off_t offset, int flags);
ssize_t __wrap_preadv64v2(int fd, const struct iovec *iov, int n, off_t offset, int flags)
{
	size_t length = iov->iov_len;

	return is_refused(CALL_uffd_read, &length) ? -1 : __real_preadv64v2(fd, iov, n, offset, flags);
}

ssize_t __real_pread64(int fd, void *buffer, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *buffer, size_t length, off_t offset);
ssize_t __wrap_pread64(int fd, void *buffer, size_t length, off_t offset)
{
	return is_refused(CALL_pread, &length) ? -1 : __real_pread64(fd, buffer, length, offset);
}

ssize_t __real_pwrite64(int fd, const void *buffer, size_t length, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buffer, size_t length, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buffer, size_t length, off_t offset)
{
	size_t whole = length;

	if (is_refused(CALL_pwrite, &length))
		return -1;
	/* Memory takes a page or not. */
	return __real_pwrite64(fd, buffer, whole < 2 * HMM_PAGE_SIZE ? whole : length, offset);
}

ssize_t __real_write(int fd, const void *buffer, size_t length);
ssize_t __wrap_write(int fd, const void *buffer, size_t length);
ssize_t __wrap_write(int fd, const void *buffer, size_t length)
{
	if (length != 8 && is_refused(CALL_write, &length))
		return -1;
	return __real_write(fd, buffer, length);
}

ssize_t __real_splice(int from, off_t *from_offset, int to, off_t *to_offset, size_t length, unsigned int flags);
ssize_t __wrap_splice(int from, off_t *from_offset, int to, off_t *to_offset, size_t length, unsigned int flags);
ssize_t __wrap_splice(int from, off_t *from_offset, int to, off_t *to_offset, size_t length, unsigned int flags)
{
	if (is_refused(CALL_splice, &length))
		return -1;
	return __real_splice(from, from_offset, to, to_offset, length, flags);
}

ssize_t __real_vmsplice(int fd, const struct iovec *iov, size_t n, unsigned int flags);
ssize_t __wrap_vmsplice(int fd, const struct iovec *iov, size_t n, unsigned int flags);
ssize_t __wrap_vmsplice(int fd, const struct iovec *iov, size_t n, unsigned int flags)
{
	struct iovec part = *iov;

	return is_refused(CALL_splice, &part.iov_len) ? -1 : __real_vmsplice(fd, &part, n, flags);
}

typedef ssize_t (*transfer)(pid_t pid, const struct iovec *local, unsigned long locals, const struct iovec *remote,
			    unsigned long remotes, unsigned long flags);
ssize_t __real_process_vm_readv(pid_t pid, const struct iovec *local, unsigned long locals, const struct iovec *remote,
				unsigned long remotes, unsigned long flags);
ssize_t __wrap_process_vm_readv(pid_t pid, const struct iovec *local, unsigned long locals, const struct iovec *remote,
				unsigned long remotes, unsigned long flags);
/* It stops between two pieces, or in one. */
ssize_t __wrap_process_vm_readv(pid_t pid, const struct iovec *local, unsigned long locals, const struct iovec *remote,
				unsigned long remotes, unsigned long flags)
{
	struct iovec part = *remote;
	size_t length = remotes > 1 ? remotes * 16 : part.iov_len;

	if (is_refused(CALL_readv, &length))
		return -1;
	if (remotes > 1)
		return __real_process_vm_readv(pid, local, locals, remote, length / 16, flags);
	part.iov_len = length;
	return __real_process_vm_readv(pid, local, locals, &part, 1, flags);
}

/* ---- messages -------------------------------------------------------------------------------- */

/* As the kernel does where the receiver's table is full. */
static void lose_descriptors(struct msghdr *message)
{
	int fd;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
		for (size_t at = CMSG_LEN(0); at < c->cmsg_len; at += sizeof(fd)) {
			memcpy(&fd, (char *)c + at, sizeof(fd));
			close(fd);
			message->msg_flags |= MSG_CTRUNC;
		}
	message->msg_controllen = 0;
}

ssize_t __real_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
	ssize_t size;
	int error;

	if (!call_fails(CALL_recv, &error))
		return __real_recvmsg(fd, message, flags);
	if (error == ERROR_LOST) {
		size = __real_recvmsg(fd, message, flags);
		if (size > 0 && message->msg_controllen)
			lose_descriptors(message);
		return size;
	}
	errno = error;
	return -1;
}

/* ---- ioctl() and syscall() ---------------------------------------------------------------------- */

static enum call ioctl_call(unsigned long request)
{
	switch (request) {
	case UFFDIO_REGISTER:	    return CALL_uffd_register;
	case UFFDIO_UNREGISTER:	    return CALL_uffd_unregister;
	case UFFDIO_COPY:	    return CALL_uffd_copy;
	case UFFDIO_ZEROPAGE:	    return CALL_uffd_zero;
	case UFFDIO_MOVE:	    return CALL_uffd_move;
	case UFFDIO_WRITEPROTECT:   return CALL_uffd_protect;
	case UFFDIO_CONTINUE:	    return CALL_uffd_continue;
	case UFFDIO_POISON:	    return CALL_uffd_poison;
	case USERFAULTFD_IOC_NEW:   return CALL_userfaultfd;
	case PAGEMAP_SCAN:	    return CALL_pagemap_scan;
	case PROCMAP_QUERY:	    return CALL_procmap_query;
	/* What hmmd may is the same each time. */
	case UFFDIO_API:
	case UFFDIO_WAKE:	    return CALL_COUNT;
	}
	fprintf(stderr, "calls.c knows no ioctl %#lx\n", request);
	abort();
}

/* Where a request says what was asked, and what was done of it. */
struct progress {
	uint64_t *length;
	int64_t *done;
};

static struct progress progress_of(unsigned long request, void *argument)
{
	switch (request) {
	case UFFDIO_COPY: {
		struct uffdio_copy *copy = argument;

		return (struct progress){ (uint64_t *)&copy->len, (int64_t *)&copy->copy };
	}
	case UFFDIO_ZEROPAGE: {
		struct uffdio_zeropage *zero = argument;

		return (struct progress){ (uint64_t *)&zero->range.len, (int64_t *)&zero->zeropage };
	}
	case UFFDIO_MOVE: {
		struct uffdio_move *move = argument;

		return (struct progress){ (uint64_t *)&move->len, (int64_t *)&move->move };
	}
	case UFFDIO_CONTINUE: {
		struct uffdio_continue *go_on = argument;

		return (struct progress){ (uint64_t *)&go_on->range.len, (int64_t *)&go_on->mapped };
	}
	}
	return (struct progress){ NULL, NULL };
}

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

/* Half of it, and EAGAIN. */
static int stop_early(int fd, unsigned long request, void *argument, struct progress progress)
{
	uint64_t length = *progress.length;
	int r;

	*progress.length = length / 2 / HMM_PAGE_SIZE * HMM_PAGE_SIZE;
	if (*progress.length) {
		r = __real_ioctl(fd, request, argument);
	} else {
		*progress.done = -EAGAIN;
		r = 0;
	}
	*progress.length = length;
	if (!r)
		errno = EAGAIN;
	return -1;
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	struct progress progress;
	va_list arguments;
	void *argument;
	enum call call;
	int error;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	call = ioctl_call(request);
	if (call == CALL_COUNT || !call_fails(call, &error))
		return __real_ioctl(fd, request, argument);
	progress = progress_of(request, argument);
	if (error == ERROR_SHORT)
		return stop_early(fd, request, argument, progress);
	if (progress.done)
		*progress.done = -error;
	errno = error;
	return -1;
}

/* The library stands before the program's own mprotect() and mremap(), too, which are not to fail: its mappings lie apart. */
static bool is_apart(long address)
{
	return (unsigned long)address >> 44 == 2;
}

static enum call syscall_call(long number, long a, long b)
{
	switch (number) {
	case SYS_futex:
		return (b & FUTEX_CMD_MASK) == FUTEX_WAIT ? CALL_futex_wait : CALL_COUNT;
	case SYS_futex_waitv:	    return CALL_futex_waitv;
	case SYS_mprotect:
	case SYS_pkey_mprotect:	    return is_apart(a) ? CALL_mprotect : CALL_COUNT;
	case SYS_mremap:	    return is_apart(a) ? CALL_mremap : CALL_COUNT;
	case SYS_userfaultfd:	    return CALL_userfaultfd;
	case SYS_pidfd_open:	    return CALL_pidfd_open;
	case SYS_pidfd_getfd:	    return CALL_pidfd_getfd;
	case SYS_close_range:	    return CALL_close_range;
	case SYS_get_mempolicy:
	case SYS_set_mempolicy:	    return CALL_mempolicy;
	case SYS_process_madvise:   return CALL_process_madvise;
	/* Of what is there, and asks for nothing. */
	case SYS_gettid:
	case SYS_kcmp:
	case SYS_capget:
	case SYS_capset:
	case SYS_get_robust_list:
	case SYS_pidfd_send_signal:
	case SYS_io_uring_register: return CALL_COUNT;
	}
	fprintf(stderr, "calls.c knows no system call %ld\n", number);
	abort();
}

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
	va_list arguments;
	long argument[6];
	enum call call;
	int error;

	va_start(arguments, number);
	for (unsigned int i = 0; i < 6; i++)
		argument[i] = va_arg(arguments, long);
	va_end(arguments);
	call = syscall_call(number, argument[0], argument[1]);
	if (call == CALL_COUNT || !call_fails(call, &error))
		return __real_syscall(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
	errno = error;
	return -1;
}

/* ---- what one of the two has ------------------------------------------------------------------ */

#ifdef CALLS_OF_LIBRARY
WRAP(void *, NULL, arena, hmmc_arena_alloc, (size_t size), (size))
WRAP(void *, NULL, arena, hmmc_arena_alloc_locked, (size_t size), (size))
#else
#include <liburing.h>
#include <uv.h>

WRAP(int, -error, ring_new, io_uring_queue_init, (unsigned int n, struct io_uring *ring, unsigned int flags), (n, ring, flags))
WRAP(int, -error, ring, io_uring_submit, (struct io_uring *ring), (ring))
WRAP(int, -error, ring, io_uring_submit_and_get_events, (struct io_uring *ring), (ring))
WRAP(int, -error, ring, io_uring_submit_and_wait_timeout,
     (struct io_uring *ring, struct io_uring_cqe **cqe, unsigned int n, struct __kernel_timespec *time, sigset_t *mask),
     (ring, cqe, n, time, mask))
WRAP(int, -error, uv_poll, uv_poll_init, (uv_loop_t *loop, uv_poll_t *poll, int fd), (loop, poll, fd))

int __real_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);
int __wrap_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);
int __wrap_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
	int error;

	if (operation != EPOLL_CTL_ADD || !call_fails(CALL_epoll_add, &error))
		return __real_epoll_ctl(epoll, operation, fd, event);
	errno = error;
	return -1;
}
#endif
