/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * calls.h - which calls calls.c can make fail, and what each may answer at any time. Only that is worth injecting: an error
 * that cannot be is a lie that nobody has to survive. What cannot fail, or whose failure says nothing, is in test_calls.py with the reason.
 *
 * write() is meant where it writes text: a counter of 8 bytes takes what it is given. What an ioctl() or syscall() is is told by its number.
 */
#ifndef INJECT_CALLS_H
#define INJECT_CALLS_H

#include <stdbool.h>

/* The library waits in its calls, hmmd does not. */
#ifdef CALLS_OF_LIBRARY
#define UNREADY(errors) errors
#else
#define UNREADY(errors) errors " EAGAIN"
#endif

#define CALLS(CALL)                                                                                \
	/* memory */                                                                               \
	CALL(malloc, "ENOMEM")                                                                     \
	CALL(calloc, "ENOMEM")                                                                     \
	CALL(realloc, "ENOMEM")                                                                    \
	CALL(arena, "ENOMEM")                                                                      \
	CALL(mmap, "ENOMEM")                                                                       \
	CALL(munmap, "ENOMEM")                                                                     \
	CALL(mprotect, "ENOMEM")                                                                   \
	CALL(mremap, "ENOMEM")                                                                     \
	CALL(mlock, "ENOMEM EAGAIN EPERM")                                                         \
	CALL(madvise, "ENOMEM EAGAIN")                                                             \
	CALL(populate, "ENOMEM EFAULT EINTR")                                                      \
	CALL(mempolicy, "ENOMEM")                                                                  \
	/* descriptors */                                                                          \
	CALL(open, "EMFILE ENFILE ENOMEM")                                                         \
	CALL(dup, "EMFILE")                                                                        \
	CALL(pipe, "EMFILE ENFILE")                                                                \
	CALL(eventfd, "EMFILE ENOMEM")                                                             \
	CALL(memfd, "EMFILE ENOMEM")                                                               \
	CALL(userfaultfd, "EMFILE ENOMEM")                                                         \
	CALL(pidfd_open, "EMFILE ENOMEM")                                                          \
	CALL(pidfd_getfd, "EMFILE")                                                                \
	CALL(close_range, "EMFILE ENOMEM")                                                         \
	/* files */                                                                                \
	CALL(read, "SHORT ENOMEM")                                                                 \
	CALL(uffd_read, "EMFILE ENOMEM")                                                           \
	CALL(pread, "SHORT ENOMEM")                                                                \
	CALL(pwrite, "SHORT ENOSPC ENOMEM")                                                        \
	CALL(write, "SHORT EINTR EAGAIN ENOSPC EIO")                                               \
	CALL(splice, "SHORT EAGAIN ENOMEM ENOSPC")                                                 \
	CALL(fallocate, "EINTR ENOMEM")                                                            \
	CALL(ftruncate, "EINTR ENOMEM")                                                            \
	CALL(readlink, "ENOMEM")                                                                   \
	CALL(readv, "SHORT EFAULT ENOMEM EPERM")                                                   \
	/* sockets */                                                                              \
	CALL(socket, "EMFILE ENOBUFS")                                                             \
	CALL(accept, "EMFILE ENFILE ECONNABORTED ENOMEM EINTR")                                    \
	CALL(connect, "EINTR EAGAIN ECONNREFUSED ENOMEM")                                          \
	CALL(send, UNREADY("EINTR ENOBUFS ENOMEM"))                                                \
	CALL(recv, UNREADY("EINTR LOST"))                                                          \
	CALL(setsockopt, "ENOMEM")                                                                 \
	/* waiting, threads */                                                                     \
	CALL(futex_wait, "EINTR EAGAIN")                                                           \
	CALL(futex_waitv, "EINTR EAGAIN ENOSYS")                                                   \
	CALL(poll, "EINTR ENOMEM")                                                                 \
	CALL(nanosleep, "EINTR")                                                                   \
	CALL(timer, "EAGAIN ENOMEM")                                                               \
	CALL(thread, "EAGAIN")                                                                     \
	CALL(ring, "EINTR EAGAIN EBUSY")                                                           \
	CALL(ring_new, "ENOMEM EPERM")                                                             \
	CALL(epoll, "EINTR")                                                                       \
	CALL(epoll_new, "EMFILE ENOMEM")                                                           \
	CALL(epoll_add, "ENOMEM ENOSPC")                                                           \
	CALL(uv_poll, "ENOMEM")                                                                    \
	/* userfaultfd and what belongs to it */                                                   \
	CALL(uffd_register, "ENOMEM EBUSY")                                                        \
	CALL(uffd_unregister, "ENOMEM")                                                            \
	CALL(uffd_copy, "SHORT EAGAIN ENOMEM ENOENT EFAULT")                                       \
	CALL(uffd_zero, "SHORT EAGAIN ENOMEM")                                                     \
	CALL(uffd_move, "SHORT EAGAIN ENOMEM EBUSY")                                               \
	CALL(uffd_protect, "EAGAIN ENOMEM")                                                        \
	CALL(uffd_continue, "SHORT EAGAIN ENOMEM")                                                 \
	CALL(uffd_poison, "EAGAIN ENOMEM")                                                         \
	CALL(pagemap_scan, "ENOMEM")                                                               \
	CALL(procmap_query, "ENOMEM EINTR")                                                        \
	CALL(process_madvise, "ENOMEM EAGAIN")

enum call {
#define CALL(name, errors) CALL_##name,
	CALLS(CALL)
#undef CALL
	CALL_COUNT
};

/* Counts it. True: it shall fail, with *@error (see errors.h). */
bool call_fails(enum call call, int *error);

#endif
