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
/* "READY=1\n" into *fd, which is closed and becomes -1. */
void notify_ready_fd(int *fd);

#endif
