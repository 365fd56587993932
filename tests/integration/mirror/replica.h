/* SPDX-License-Identifier: GPL-2.0-or-later */
/* replica.h - a tracked mirror of this process with a device of its own, and its copies. */
#ifndef TEST_REPLICA_H
#define TEST_REPLICA_H

#include "mirror.h"

extern const struct hmm_mirror_ops tracked_ops;
extern struct hmm_mirror replica;

/* With a device of @memory bytes; or the case is skipped, because no engine works. */
void open_replica(uint64_t memory);
void close_replica(void);
void track(void *memory, size_t pages);
/* A sync, and its report is one that can be. */
struct hmm_sync_report sync_all(void *memory, size_t pages);
const char *copy_of(const void *memory);
void check_equal(const char *memory, size_t pages);
/* Declared, tracked, copied. */
void begin(char *memory, size_t pages);
/* A replica, and so many pages of which it has that. */
char *open_and_begin(size_t pages);

#endif
