/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dirty.h - what the two files of mirror-dirty share. */
#ifndef TEST_DIRTY_H
#define TEST_DIRTY_H

#include "mirror.h"

/* This process, mirrored; or the case is skipped, because no engine works. */
void open_tracked(void);
/* Nothing pins these pages. */
void declare(void *memory, size_t pages);
struct hmm_dirty *start(void *memory, size_t pages);
/* Reads and clears; the sums agree. How many. */
long take(struct hmm_dirty *dirty, void *memory, size_t pages, uint64_t *bits);
bool told(const uint64_t *bits, size_t page);

/* dirty_crowd.c */
void many_writers(void);

#endif
