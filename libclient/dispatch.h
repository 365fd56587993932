/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dispatch.h - calling the driver back: in a thread, or when the driver says so. */
#ifndef HMMC_DISPATCH_H
#define HMMC_DISPATCH_H

#include <time.h>

#include "public.h"

struct dispatch;
struct dispatchers;
struct hmm_mirror_private;

/*
 * Starts the thread, unless the driver dispatches or there is one. From a thread of the
 * program, whose descriptors callbacks will see.
 */
int hmmc_dispatch_start(struct hmm *hmm);
void hmmc_dispatch_free(struct dispatch *dispatch);
/* Is this a callback? */
bool hmmc_dispatch_is_current(void);
/*
 * For calls that wait until a page is at rest. Return: 0, or -EDEADLK with the text where
 * this is a callback, for which the page may be waiting.
 */
int hmmc_dispatch_check(void);
/*
 * What waits in the library waits by one of these: a thread that dispatches runs callbacks of its
 * handles meanwhile, for what it waits for may wait for them. With no lock held that a
 * callback could need.
 */
/* As futex_wait(): returns for no reason, too. */
void hmmc_dispatch_pause(const uint32_t *word, uint32_t value, const struct timespec *timeout);
/* Until the latch is set; until there is none any more. */
void hmmc_dispatch_wait(const uint32_t *latch);
void hmmc_dispatch_wait_zero(const uint32_t *count);
/* As nanosleep(), for less than a second. */
void hmmc_dispatch_nap(long ns);

/* For dispatcher.c: whether something is queued; takes and runs the oldest, if there is one; whose it is. */
bool hmmc_dispatch_waits(const struct dispatch *dispatch);
bool hmmc_dispatch_run(struct dispatch *dispatch);
struct dispatchers *hmmc_dispatch_dispatchers(struct dispatch *dispatch);
/*
 * Callbacks of this mirror that have not begun are answered, and never run. Not what was posted
 * (hmmc_dispatch_post()), unless @all: hmmd waits for that while the mirror leaves.
 */
void hmmc_dispatch_drop(struct hmm *hmm, struct hmm_mirror_private *mirror, bool all);

/* Has run(mirror, a copy of message) called, behind what is queued. False: out of memory, or no callbacks. */
typedef void (*hmmc_dispatch_fn)(struct hmm_mirror_private *mirror, const void *message);
bool hmmc_dispatch_post(struct hmm_mirror_private *mirror, hmmc_dispatch_fn run, const void *message,
			size_t size);
/*
 * In the receiver: queue a callback. Without a mirror, or with one that leaves, the answer is
 * given at once.
 */
void hmmc_dispatch_invalidate(struct hmm *hmm, const struct hmm_msg_invalidate *event);
/* ... and the change is over: a device that stopped for it goes on. */
void hmmc_dispatch_settled(struct hmm *hmm, const struct hmm_msg_settled *event);
/* No callback runs or will: what its device had stopped for is forgotten. */
void hmmc_dispatch_forget_changes(struct hmm_mirror_private *mirror);
void hmmc_dispatch_release(struct hmm *hmm);
/*
 * After a restart: the last hmmd may have died between a change and telling of it, so every
 * mirror lets go of everything. The next one waits until they have.
 */
void hmmc_dispatch_anew(struct hmm *hmm);
/* After fork, in the child. */
void hmmc_dispatch_forget(void);

#endif
