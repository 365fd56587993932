/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * notify.h - how whoever started hmmd learns how it is doing.
 */
#ifndef HMMD_NOTIFY_H
#define HMMD_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

/* "READY=1", "STOPPING=1\nSTATUS=...", to the service manager; nothing when there is none. */
void notify_manager(const char *state);
/* There is a service manager that listens. */
bool notify_is_heard(void);
/* How long the service manager may go without hearing "WATCHDOG=1", in ms. 0: for ever. */
uint64_t notify_patience_ms(void);
/*
 * Has the manager keep them under a name for the next hmmd, which is passed them (passed.h), as long as there is one to come; and let go of
 * them. Any thread. 0 or a negative errno; -ENOENT: there is no manager. (One whose unit says no FileDescriptorStoreMax= keeps nothing, and
 * does not say so.)
 */
int notify_keep(const char *name, const int *fds, unsigned int n);
int notify_drop(const char *name);
/* "READY=1\n" into *fd, which is closed and becomes -1. */
void notify_ready_fd(int *fd);

#endif
