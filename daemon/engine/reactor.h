/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * reactor.h - what a worker waits on: many descriptors and one deadline, by
 * io_uring (multishot poll) or, where that is forbidden, by epoll. Readiness
 * is edge-triggered either way: who is called drains the descriptor.
 *
 * One thread, the worker's, uses a reactor.
 */
#ifndef HMMD_REACTOR_H
#define HMMD_REACTOR_H

#include <stdbool.h>
#include <stdint.h>

struct reactor;

struct source {
	int fd;
	void (*ready)(struct source *source);
	uint32_t slot;		/* the reactor's; 0: not added */
};

int reactor_new(bool no_io_uring, struct reactor **result);
/* Called once by the thread that will wait; others may reactor_add() before it. */
void reactor_start(struct reactor *reactor);
struct reactor *reactor_free(struct reactor *reactor);
bool reactor_is_uring(const struct reactor *reactor);

int reactor_add(struct reactor *reactor, struct source *source, int fd,
		void (*ready)(struct source *source));
/* After it the source may be freed, even from inside a ready(). */
void reactor_remove(struct reactor *reactor, struct source *source);

/*
 * Waits until something is ready or @timeout_ns passed (-1: for ever; 0: only
 * looks), then calls ready() of all that are. Return: how many, or -errno.
 */
int reactor_wait(struct reactor *reactor, int64_t timeout_ns);

#endif
