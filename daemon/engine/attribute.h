/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * attribute.h - what a program said of a block's pages, as far as eviction
 * heeds it. Owner's worker only.
 */
#ifndef HMMD_ATTRIBUTE_H
#define HMMD_ATTRIBUTE_H

#include "engine/owner.h"

#define EVICT_PRIORITY_DEFAULT	50U

/* Never leaves the device to make room. */
static inline bool block_is_pinned(const struct block *block)
{
	(void)block;
	return false;
}

/* 0 to 100: higher is kept longer. */
static inline unsigned int block_evict_priority(const struct block *block)
{
	(void)block;
	return EVICT_PRIORITY_DEFAULT;
}

/* What it holds is worth nothing to anybody. */
static inline bool block_is_discarded(const struct block *block)
{
	(void)block;
	return false;
}

#endif
