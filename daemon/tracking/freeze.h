/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * freeze.h - a process whose threads stand still for a moment. One thread freezes and
 * thaws: it is their tracer.
 */
#ifndef HMMD_FREEZE_H
#define HMMD_FREEZE_H

#include <stdbool.h>
#include <sys/types.h>

struct stopped_thread {
	pid_t tid;
	bool stands;
	int signal;		/* that came just when it was stopped: to be given when it goes on */
};

struct stopped_threads {
	struct stopped_thread *list;
	unsigned int count, room;
};

/*
 * Return: 0: all stand, until thaw(). Otherwise all go on: -EAGAIN: one has not come to stand yet. Then
 * this must be called again, or thaw() until it says true; -EBUSY: another has
 * them, or one can't be stopped; -EPERM; -ESRCH; -ENOMEM.
 */
int freeze(pid_t pid, struct stopped_threads *threads);
/* True: all go on. False: one has not come to stand yet, so that it can't be let go. */
bool thaw(struct stopped_threads *threads);

#endif
