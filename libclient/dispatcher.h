/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dispatcher.h - threads of the program that run callbacks, wherever in the library they wait. */
#ifndef HMMC_DISPATCHER_H
#define HMMC_DISPATCHER_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct dispatch;
struct duty;

/* In each queue of callbacks: whose it is to run them. Under the lock of dispatcher.c. */
struct dispatchers {
	struct duty *first;
	uint32_t looking;		/* futex: threads that look into the queue just now */
};

/* From here on the calling thread sees to this queue. Return: 0 or -ENOMEM. */
int hmmc_dispatcher_join(struct dispatch *dispatch);
/* Nobody sees to it any more, and nobody is about to. */
void hmmc_dispatcher_release(struct dispatch *dispatch);
/* Something was queued: whoever sees to it wakes up. */
void hmmc_dispatcher_post(struct dispatch *dispatch);
/*
 * As futex_wait(), and like that it may return for no reason: where this thread dispatches
 * (and this is no callback) it runs one that waits on any of its handles instead, or one that
 * comes meanwhile. Not those of @except, which may be NULL. The timeout is relative.
 */
void hmmc_dispatcher_wait(const uint32_t *word, uint32_t value, const struct timespec *timeout,
			  const struct dispatch *except);
/* After fork, in the child. */
void hmmc_dispatcher_forget(void);

#endif
