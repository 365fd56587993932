/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dispatch.h - the thread that calls the driver back. */
#ifndef HMMC_DISPATCH_H
#define HMMC_DISPATCH_H

#include "public.h"

struct dispatch;
struct hmm_mirror_private;

/*
 * Starts it if there is none. From a thread of the program, whose descriptors callbacks
 * will see.
 */
int hmmc_dispatch_start(struct hmm *hmm);
void hmmc_dispatch_free(struct dispatch *dispatch);
/* Is this a callback? */
bool hmmc_dispatch_is_current(void);

/* Has run(mirror, a copy of message) called, behind what is queued. False: out of memory, or no thread. */
typedef void (*hmmc_dispatch_fn)(struct hmm_mirror_private *mirror, const void *message);
bool hmmc_dispatch_post(struct hmm_mirror_private *mirror, hmmc_dispatch_fn run, const void *message,
			size_t size);
/* In the receiver: queue a callback. Without a mirror or a thread the answer is given at once. */
void hmmc_dispatch_invalidate(struct hmm *hmm, const struct hmm_msg_invalidate *event);
void hmmc_dispatch_release(struct hmm *hmm);

#endif
