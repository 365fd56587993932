/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sight.h - whether hmmd sees a process well enough to serve it.
 *
 * Thread: control.
 */
#ifndef HMMD_SIGHT_H
#define HMMD_SIGHT_H

#include <stddef.h>
#include <sys/types.h>

/* Of whoever is to have windows or memory of others. 0, or -ESRCH and in @why: "what is wrong; what to do". */
int sight_of_driver(pid_t pid, char *why, size_t size);
/* Of whose memory is to be mirrored. 0, or also -EACCES. */
int sight_of_owner(pid_t pid, char *why, size_t size);

#endif
