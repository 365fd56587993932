/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * notify.h - how whoever started hmmd learns how it is doing.
 */
#ifndef HMMD_NOTIFY_H
#define HMMD_NOTIFY_H

/* "READY=1", "STOPPING=1\nSTATUS=...", to the service manager; nothing when there is none. */
void notify_manager(const char *state);
/* "READY=1\n" into *fd, which is closed and becomes -1. */
void notify_ready_fd(int *fd);

#endif
