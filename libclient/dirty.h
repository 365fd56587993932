/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dirty.h - a range of which hmmd notes what is written: for a program that asks for the bits
 * (dirty.c), or with a copy on a tracked mirror's device (sync.c).
 */
#ifndef HMMC_DIRTY_H
#define HMMC_DIRTY_H

#include "space.h"

struct hmm_dirty {
	struct hmm_dirty *next;		/* hmm->dirties */
	struct hmm *hmm;
	uint64_t start, end;
	struct futex_lock lock;		/* one thread begins anew */
	uint64_t track;			/* atomic: hmmd's number, and above it the connection's life that it is good for; 0: none */

	struct hmm_mirror_private *mirror;	/* a tracked one; NULL: the bits are asked for */
	char *room;			/* then: the addresses of this process where the copy is, */
	size_t room_size;
	char *copy;			/* and in it that of start */
};

/* Begins a track of [addr, addr + length), which is checked, and lists it. */
int hmmc_dirty_new(struct hmm *hmm, struct hmm_mirror_private *mirror, unsigned long addr, size_t length,
		   struct hmm_dirty **result);
/* Ends it, and frees it. */
void hmmc_dirty_end(struct hmm_dirty *dirty);
int hmmc_dirty_check_range(unsigned long addr, size_t length);
/*
 * In request->prepare: the number of its track, for the hmmd that it goes to; -ENOENT, with the text: that
 * one knows nothing of it. *@track: what was found.
 */
int hmmc_dirty_number(struct request *request, const struct hmm_dirty *dirty, uint64_t *track, uint32_t *number);
/* That track was found to be void: there is another, or an error. */
int hmmc_dirty_begin_anew(struct hmm_dirty *dirty, uint64_t gone);

/* sync.c: maps the copies of a track that has just begun. */
int hmmc_copy_open(struct hmm_dirty *dirty);
void hmmc_copy_close(struct hmm_dirty *dirty);
/* All of a mirror that is leaving. */
void hmmc_sync_leave(struct hmm_mirror_private *mirror);

#endif
