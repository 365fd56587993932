/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * futex.h - waiting without malloc, without a descriptor and without pthread's
 * own bookkeeping, so that it works in the agent, in a rescue and across fork.
 */
#ifndef HMMC_FUTEX_H
#define HMMC_FUTEX_H

#include <errno.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Words of this process. The timeout is relative; NULL waits for ever. Spurious returns happen. */
static inline int futex_wait(const uint32_t *word, uint32_t value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, timeout, NULL, 0) ? -errno : 0;
}

static inline void futex_wake(const uint32_t *word, int waiters)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, waiters, NULL, NULL, 0);
}

/* Words that hmmd waits on or wakes, in a shared memfd. */
static inline int futex_wait_shared(const uint32_t *word, uint32_t value,
				    const struct timespec *timeout)
{
	return syscall(SYS_futex, word, FUTEX_WAIT, value, timeout, NULL, 0) ? -errno : 0;
}

static inline void futex_wake_shared(const uint32_t *word, int waiters)
{
	syscall(SYS_futex, word, FUTEX_WAKE, waiters, NULL, NULL, 0);
}

/*
 * A write fault at @word that changes nothing and waits for nobody: the kernel adds no bit to
 * it, and on a fault does not let userfaultfd hold the caller up, as MADV_POPULATE_WRITE does.
 * -EFAULT: the page is missing and watched, protected, or not to be written at all.
 */
static inline int futex_write_fault(uint32_t *word)
{
	static uint32_t nobody;

	return syscall(SYS_futex, &nobody, FUTEX_WAKE_OP_PRIVATE, 0, NULL, word,
		       FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0x5a5)) < 0 ? -errno : 0;
}

/*
 * Until one of the words has another value than it had, or a little longer. The timeout is
 * relative; NULL: for ever.
 */
static inline void futex_wait_either(const uint32_t *first, uint32_t first_value,
				     const uint32_t *second, uint32_t second_value,
				     const struct timespec *timeout)
{
	struct futex_waitv words[] = {
		{ .val = first_value, .uaddr = (uintptr_t)first,
		  .flags = FUTEX_32 | FUTEX_PRIVATE_FLAG },
		{ .val = second_value, .uaddr = (uintptr_t)second,
		  .flags = FUTEX_32 | FUTEX_PRIVATE_FLAG },
	};
	struct timespec end = { 0 };

	if (timeout) {
		clock_gettime(CLOCK_MONOTONIC, &end);
		end.tv_sec += timeout->tv_sec + (end.tv_nsec + timeout->tv_nsec) / 1000000000;
		end.tv_nsec = (end.tv_nsec + timeout->tv_nsec) % 1000000000;
	}
	/* Where a filter of system calls does not know it. */
	if (syscall(SYS_futex_waitv, words, 2, 0, timeout ? &end : NULL, CLOCK_MONOTONIC) < 0 &&
	    errno != EAGAIN && errno != EINTR && errno != ETIMEDOUT)
		futex_wait(first, first_value, &(struct timespec){ .tv_nsec = 1000000 });
}

/* A mutex: 0 free, 1 held, 2 held and waited for. */
struct futex_lock {
	uint32_t word;
};

static inline void futex_lock(struct futex_lock *lock)
{
	uint32_t seen = 0;

	if (__atomic_compare_exchange_n(&lock->word, &seen, 1, false, __ATOMIC_ACQUIRE,
					__ATOMIC_RELAXED))
		return;
	while (__atomic_exchange_n(&lock->word, 2, __ATOMIC_ACQUIRE) != 0)
		futex_wait(&lock->word, 2, NULL);
}

static inline void futex_unlock(struct futex_lock *lock)
{
	if (__atomic_exchange_n(&lock->word, 0, __ATOMIC_RELEASE) == 2)
		futex_wake(&lock->word, 1);
}

/* A word that goes from 0 to something once, and whoever waits for it. */
static inline uint32_t futex_latch_wait(uint32_t *word)
{
	uint32_t value;

	while ((value = __atomic_load_n(word, __ATOMIC_ACQUIRE)) == 0)
		futex_wait(word, 0, NULL);
	return value;
}

static inline void futex_latch_set(uint32_t *word, uint32_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
	futex_wake(word, INT32_MAX);
}

static inline uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static inline uint64_t clock_ms(void)
{
	return clock_ns() / 1000000;
}

#endif
