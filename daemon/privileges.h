/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * privileges.h - what of root's power hmmd keeps when it has started.
 *
 * Thread: each for itself; threads that are made later have no more.
 */
#ifndef HMMD_PRIVILEGES_H
#define HMMD_PRIVILEGES_H

enum privileges {
	PRIVILEGES_NONE,	/* of the thread that writes the log */
	PRIVILEGES_SERVE,	/* of all others */
};

/*
 * Gives up the rest, also for what this thread will execute. Never more than there is. 0, or a negative
 * errno: then everything is as it was.
 */
int privileges_keep(enum privileges which);

#endif
