/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * attribute.h - what was said of ranges of an owner's memory (hmm_advise), and
 * what follows from it for a block. Belongs to the owner's worker.
 *
 * The lists lie behind the ledger's journal and outlive hmmd. Looking up is a
 * binary search, and one compare where nothing was said at all.
 */
#ifndef HMMD_ATTRIBUTE_H
#define HMMD_ATTRIBUTE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "layout.h"

#define EVICT_PRIORITY_DEFAULT	50U
#define EVICT_PRIORITY_MAX	100U

struct owner;
struct block;
struct mirror;
struct pages;
struct prefetch_hint;

struct attribute_map {
	struct hmm_attributes *shared;
	const struct hmm_attribute *list;	/* the active one of the two */
	unsigned int count;
	unsigned int pins;			/* intervals with PIN */
	uint64_t pinned;			/* bytes of them */
};

/* A pin that is being made: its pages are on their way and must not be taken meanwhile. */
struct pinning {
	TAILQ_ENTRY(pinning) link;
	uint64_t start, end;
};
TAILQ_HEAD(pinning_list, pinning);

/* ---- the map ---------------------------------------------------------------- */

/* Takes up what lies in @shared. False: it made no sense and was emptied. */
bool attribute_map_open(struct attribute_map *map, struct hmm_attributes *shared);

/* What holds at @addr and as far around it as its start and end say; all else zero: nothing was said. */
struct hmm_attribute attribute_at(const struct attribute_map *map, uint64_t addr);

/* Whether all of [start, end) has @flags. */
bool attribute_covers(const struct attribute_map *map, uint64_t start, uint64_t end, uint32_t flags);

/* Whether one and the same holds in all of [start, end). */
bool attribute_is_uniform(const struct attribute_map *map, uint64_t start, uint64_t end);

typedef void (*attribute_change)(struct hmm_attribute *attribute, const void *data);
/*
 * Has @change look at every piece of [start, end) and say what holds there now.
 * Return: 0; -ENOSPC: more than HMM_ATTRIBUTES_MAX intervals; nothing changed.
 */
int attribute_edit(struct attribute_map *map, uint64_t start, uint64_t end, attribute_change change,
		   const void *data);
/* The range was unmapped. */
void attribute_forget(struct attribute_map *map, uint64_t start, uint64_t end);
/*
 * The range moved, and what was said of it with it. May be done twice: where
 * nothing is said of @from any more, nothing is done.
 */
void attribute_move(struct attribute_map *map, uint64_t from, uint64_t to, uint64_t length);
/* The mirror with this index is gone: what named it is forgotten. */
void attribute_forget_mirror(struct attribute_map *map, unsigned int index);

/* ---- what it means for a block -------------------------------------------------- */

/* Whether any page of it is pinned, or is being pinned: it is not evicted. */
bool block_is_pinned(const struct block *block);
/* Whether any page of it is pinned to this mirror's device, or is being pinned to one. */
bool block_is_pinned_to(const struct block *block, const struct mirror *mirror);

/*
 * 0 to 100, the lowest goes first: the highest of what was said of the pages that
 * it has on a device; where nothing was said a page has 50.
 */
unsigned int block_evict_priority(const struct block *block);

/*
 * Whether nothing of it is needed: its pages were discarded (or came home), and
 * only what lingers in the shadow is still charged for. block_punch_stale() frees
 * it; nothing is copied and no driver has to be told.
 */
bool block_is_discarded(const struct block *block);

/* Whether a read at the CPU leaves a copy of this page on the block's device, as S. */
bool attribute_leaves_copy(const struct block *block, uint64_t addr);
/* Whether the copies (S) of the block are to stay though no driver is there to read them. */
bool attribute_keeps_copies(const struct block *block);
/* Whether a read by a window of @mirror is to leave the page at the CPU, too. */
bool attribute_wants_copy(const struct owner *owner, const struct mirror *mirror, uint64_t addr);
/* How much a touch of @addr brings; @shares: it only copies. */
struct prefetch_hint attribute_hint(const struct owner *owner, uint64_t addr, bool shares);
/* These pages left the device, and not because they were unmapped or discarded: pins may be broken. */
void attribute_note_left(struct block *block, const struct pages *pages);

#endif
