/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tracer.h - a debugger has attached to somebody, or somebody begins to dump core: the kernel's process
 * connector says so, without a poll and without a wake-up for anything else.
 *
 * Thread: control.
 */
#ifndef HMMD_TRACER_H
#define HMMD_TRACER_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * A socket that becomes readable when a tracer attaches to any process or one is about to dump core, and
 * for nothing else: before Linux 6.6, where events can't be chosen, it never
 * does. -EPERM: hmmd may not listen (CAP_NET_ADMIN).
 */
int tracer_listen(void);

/* The next process that was attached to, or @dumps core; 0: no more news. */
pid_t tracer_next(int fd, bool *dumps);

#endif
