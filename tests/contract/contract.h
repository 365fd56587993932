/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the kernel contract tests share: kernel calls that return 0 or a negative
 * errno, threads and processes that wait with a deadline, events of a userfaultfd.
 *
 * A contract test proves one fact about the running kernel that hmmd leans on. It
 * never asserts on time: deadlines (HMM_TEST_SCALE times some seconds) only turn a
 * hang into a failure.
 */
#ifndef HMM_TESTS_CONTRACT_H
#define HMM_TESTS_CONTRACT_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "proto/uapi.h"

#define PAGE		4096UL
#define BLOCK		(2UL << 20)
#define KIB		1024UL

#define MISSING		UFFDIO_REGISTER_MODE_MISSING
#define WP		UFFDIO_REGISTER_MODE_WP
#define MINOR		UFFDIO_REGISTER_MODE_MINOR
#define FAULT_WRITE	UFFD_PAGEFAULT_FLAG_WRITE
#define FAULT_WP	UFFD_PAGEFAULT_FLAG_WP
#define FAULT_MINOR	UFFD_PAGEFAULT_FLAG_MINOR

/* Ends the test, as skipped; tests/skips/ lists for each environment what may be. */
#define skip(...)	cr_skip_test(__VA_ARGS__)

/* Every suite: TestSuite(name, .init = contract_begin), and forked children: turns a hang into a failure. */
void contract_begin(void);

/* ---- waiting ------------------------------------------------------------ */

int deadline_ms(void);

/* Wait until an expression holds that another thread or process makes true. */
#define wait_until(expr)							\
	do {									\
		int left_ = deadline_ms();					\
		while (!(expr)) {						\
			cr_assert(left_-- > 0, "never came true: " #expr);	\
			usleep(1000);						\
		}								\
	} while (0)

/* ---- memory ------------------------------------------------------------- */

void *map_pages(size_t pages);			/* private anonymous, 4 KiB pages only */
void *map_blocks(size_t blocks);		/* ... aligned to BLOCK, huge pages as advised */
void *map_huge(int value);			/* one block that is one huge page of this byte */
int collapse(void *block);
void no_huge_page(long error);
/* A collapse that fails for a want of memory, or because somebody holds a page, is tried for a few seconds. */
#define collapse_or_skip(call)							\
	do {									\
		int left_ = 2000;						\
		long error_;							\
		while ((error_ = (call)) && left_--)				\
			usleep(1000);						\
		if (error_)							\
			no_huge_page(error_);					\
	} while (0)
void *map_shared(size_t bytes);			/* shared with children */
int memfd_new(const char *name, off_t size, unsigned int flags);
void *map_memfd(int fd, size_t bytes, off_t offset);
void *map_memfd_aligned(int fd, size_t bytes, off_t offset);	/* at a block's address */
int punch(int fd, off_t offset, off_t len);
bool file_has(int fd, off_t offset);		/* SEEK_DATA: is there a page? */
long file_kib(int fd);
uint64_t pagemap(const volatile void *addr);
uint64_t pagemap_read(int pagemap_fd, const volatile void *addr);
bool is_huge(const void *addr);			/* smaps: this mapping has a huge page mapped */
long smaps_kib(const void *addr, const char *field);
bool read_setting(const char *path, char *value, size_t size);
bool setting_is(const char *path, const char *selected);	/* "[selected]" or equal */

/* ---- userfaultfd --------------------------------------------------------- */

uint64_t uffd_features(void);			/* of this kernel */
int uffd_new(void);				/* before the UFFDIO_API handshake */
int uffd_api(int fd, uint64_t features);
int uffd_open(uint64_t features);		/* skips the test where the kernel lacks one */
int uffd_register(int fd, void *addr, size_t len, uint64_t mode);
int uffd_unregister(int fd, void *addr, size_t len);
int uffd_copy(int fd, void *dst, const void *src, size_t len, uint64_t mode);
int uffd_copy_done(int fd, void *dst, const void *src, size_t len, uint64_t mode, int64_t *done);
int uffd_zeropage(int fd, void *dst, size_t len);
int uffd_move(int fd, void *dst, const void *src, size_t len, uint64_t mode);
int uffd_move_done(int fd, void *dst, const void *src, size_t len, uint64_t mode, int64_t *done);
int uffd_wp(int fd, void *addr, size_t len, bool protect);
int uffd_wake(int fd, void *addr, size_t len);
int uffd_poison(int fd, void *addr, size_t len);
int uffd_continue(int fd, void *addr, size_t len, uint64_t mode);

struct uffd_msg next_event(int fd);		/* waits; fails the test at the deadline */
bool no_event(int fd);				/* is nothing queued right now? */
struct uffd_msg expect_fault(int fd, const volatile void *addr, uint64_t flags);
struct uffd_msg expect_event(int fd, uint8_t event);

/* ---- threads -------------------------------------------------------------- */

/* One system call, or one load or store, in a thread of its own. */
struct call {
	pthread_t thread;
	long nr;
	long arg[6];
	volatile unsigned char *addr;
	int store;			/* byte to store, or -1 to load */
	unsigned char value;		/* what a load saw */
	long result;			/* of the system call: negative errno on failure */
	atomic_int tid;
	atomic_int done;
};

void call_start(struct call *call, long nr, const long arg[6]);
#define CALL(call, nr, ...)	call_start(call, nr, (const long[6]){ __VA_ARGS__ })
void load_start(struct call *call, volatile void *addr);
void store_start(struct call *call, volatile void *addr, int value);
long call_end(struct call *call);	/* waits for it; result, or the loaded value */
bool still_blocked(struct call *call);	/* gives it a moment to prove the contrary */

/* ---- processes ------------------------------------------------------------ */

pid_t child_start(void (*run)(void *arg), void *arg);
int child_end(pid_t pid);		/* waits for it; the wait status */
void child_kill(pid_t pid);

/* In a child: leave with a message, the parent then sees a status that is not 0. */
#define child_check(expr)							\
	do {									\
		if (!(expr)) {							\
			dprintf(STDERR_FILENO, "%s:%d: %s: %m\n", __FILE__, __LINE__, #expr);	\
			_exit(99);						\
		}								\
	} while (0)
#define child_passed(pid)							\
	do {									\
		int status_ = child_end(pid);					\
		cr_assert_eq(status_, 0, "child: wait status 0x%x", status_);	\
	} while (0)

void send_fd(int sock, int fd);
int recv_fd(int sock);
void become_nobody(void);		/* in a child */
void require_root(void);

#endif
