/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * window.h - what window.c (mapping, arming, taking away), keep.c (drivers that lost
 * their connection) and touch.c (what their drivers touch) share.
 */
#ifndef HMMD_WINDOW_H
#define HMMD_WINDOW_H

#include "engine/owner.h"

struct window *window_by_id(struct owner *owner, uint32_t id);
/*
 * [first, end) of the block as far as the window has it: @start in the driver, and
 * its length in bytes. False: not at all.
 */
bool window_overlap(const struct window *window, const struct block *block, unsigned int first,
		    unsigned int end, uint64_t *start, uint64_t *length);
/* Whether hmmd decides on every page of this block that the window has not mapped. */
bool *window_guarded(struct window *window, const struct block *block);
/* Closes it: its driver's own reference of the userfaultfd keeps touches waiting. */
void window_free(struct window *window);
/* keep.c: it is armed, by the driver from whom one may have been kept: that makes way. */
void window_replace_kept(struct window *window);
/* Its userfaultfd is readable: touches. */
void touch_ready(struct source *source);

#endif
