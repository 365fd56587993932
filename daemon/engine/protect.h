/* SPDX-License-Identifier: GPL-2.0-or-later */
/* protect.h - what the owner may do less with, its devices may do less with too. */
#ifndef HMMD_PROTECT_H
#define HMMD_PROTECT_H

#include "engine/owner.h"

void protect_request(struct owner *owner, struct letter *letter);	/* PROTECT */
/* Of an owner that is given up, a rescued one say: what was queued or waits is dropped. */
void protect_deinit(struct owner *owner);
/* Devices follow what [start, end) may be used for now: soon, and nobody waits for it. */
void protect_anew(struct owner *owner, uint64_t start, uint64_t end);
/* Whether the page that a window touches has lost rights since it went to the device. */
bool protect_is_due(struct block *block, uint64_t addr);
/*
 * Takes from the device what it may not have any more of pages [first, end): one
 * transit, the block being at rest. Return: 1; 0 when there was nothing to do; or a
 * negative errno when the mappings could not be looked at.
 */
int protect_follow(struct block *block, unsigned int first, unsigned int end);

#endif
