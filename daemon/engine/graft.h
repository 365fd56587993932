/* SPDX-License-Identifier: GPL-2.0-or-later */
/* graft.h - pages that mremap moved into a block which is in transit. */
#ifndef HMMD_GRAFT_H
#define HMMD_GRAFT_H

#include "engine/owner.h"

/*
 * A page of the mirror with this index goes by @addr now: it becomes D there, at once or
 * when the block's transit ends. @number: of the driver's memory, or HMM_FAR_NONE, and then
 * @bytes are its bytes.
 */
void graft_page(struct owner *owner, uint64_t addr, unsigned int mirror, uint32_t number,
		const void *bytes);
/* The block has come to rest: what waits for it goes in, before anything else looks at it. */
void graft_settle(struct block *block);
/* What waits for [start, end) was unmapped or discarded. */
void graft_drop(struct owner *owner, uint64_t start, uint64_t end);
/* ... or has moved on. Return: whether there were any. */
bool graft_move(struct owner *owner, uint64_t from, uint64_t to, uint64_t length);
/* What waited when another hmmd died. All blocks are at rest. */
void graft_recover(struct owner *owner);
/* All that wait. @bytes NULL: only its driver reaches it. */
typedef void (*graft_fn)(uint64_t addr, const void *bytes, void *data);
void graft_for_each(struct owner *owner, graft_fn fn, void *data);

#endif
