/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * handover.h - a worker that leaves its owners to the next hmmd.
 */
#ifndef HMMD_HANDOVER_H
#define HMMD_HANDOVER_H

#include <stdbool.h>

struct worker;

/* From now on it begins nothing. */
void handover_begin(struct worker *worker);
/* One turn of it. True: what was under way is over, or has had its time; nothing of an owner may be touched any more. */
bool handover_tick(struct worker *worker);

#endif
