/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * freeze.h - a process whose threads stand still for a moment. One thread freezes and
 * thaws: it is their tracer.
 */
#ifndef HMMD_FREEZE_H
#define HMMD_FREEZE_H

#include <stdbool.h>
#include <sys/types.h>

enum stopped_state {
	STOPPED_NOT_YET,
	STOPPED_STANDS,
	STOPPED_DEAD,		/* the first one, before others: to be buried with the last of them */
	STOPPED_GONE,		/* buried, or not in our hands any more */
};

struct stopped_thread {
	pid_t tid;
	enum stopped_state state;
	int signal;		/* that came just when it was stopped: to be given when it goes on */
};

struct stopped_threads {
	pid_t pid;
	struct stopped_thread *list;
	unsigned int count, room;
};

/*
 * Return: 0: all stand, until thaw(). Otherwise all go on: -EAGAIN: one has not come to stand yet. Then thaw() must be
 * called until it says true, whatever becomes of who asked: that one will stand, or die, and nobody else can let go of
 * it; -EBUSY: another has them, or one can't be stopped; -ETIMEDOUT: the same, and finding out took long; -EPERM;
 * -ESRCH; -ENOMEM.
 */
int freeze(pid_t pid, struct stopped_threads *threads);
/*
 * True: all go on. False: one has not come to stand yet, so that it can't be let go. While there are any in the list, all the
 * same, this is to be called now and then: a dead one has to be buried.
 */
bool thaw(struct stopped_threads *threads);

#endif
