/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tracking.h - what was written: who asks (tracks), how it is found (one of three
 * engines, by one table), and for which memory it can be found at all.
 *
 * An owner that is tracked has a second userfaultfd, because the way in which protected pages
 * are handled belongs to a whole descriptor, and coherent memory needs the other way.
 * hmmd alone holds it: when hmmd dies, the kernel lifts every protection, nobody waits, and for
 * the next hmmd every page counts as written.
 *
 * All of it belongs to the owner's worker.
 */
#ifndef HMMD_TRACKING_H
#define HMMD_TRACKING_H

#include "engine/owner.h"
#include "tracking/freeze.h"

struct tracker;

/* What a look at a page has shown. */
enum sight {
	SIGHT_WRITTEN,		/* since the last look */
	SIGHT_PRESUMED,		/* it can't be seen: it may have been */
	SIGHT_CLEAN,
	SIGHT_GAP,		/* nothing is mapped there: told once */
};

struct tracking_ops {
	const char *name;
	uint64_t feature;		/* HMM_FEATURE_TRACK_* */
	bool userfaultfd;		/* one of the owner's is needed, with */
	uint64_t uffd_features;
	uint64_t uffd_optional;		/* asked for where the kernel has them */
	bool kernel_faults;		/* ... and with faults in the kernel, too */
	bool whole;			/* a look begins anew for all of the owner's memory at once */
	/* NULL: this kernel has what it takes. Otherwise what it lacks, in words. */
	const char *(*lacks)(const struct kernel_facts *facts);
	/* Before and after a look. NULL: nothing to do. */
	int (*begin)(struct tracker *tracker);
	int (*end)(struct tracker *tracker);
	/*
	 * Looks at [start, end), within one private anonymous mapping, says what it sees by track_sight(), and
	 * what was written is looked for anew from then on. What it says nothing of is clean.
	 * Return: 0; -EBUSY: somebody else's userfaultfd watches it; -EAGAIN: the map is
	 * changing; -ESRCH: the mm is gone; or another error. With any but 0 all of it is presumed to be written.
	 */
	int (*look)(struct tracker *tracker, uint64_t start, uint64_t end);
	/* A thread waits to write there. */
	void (*fault)(struct tracker *tracker, uint64_t addr);
};
extern const struct tracking_ops tracking_pagemap_scan, tracking_uffd_wp, tracking_soft_dirty;

/* ---- tracks (track.c) -------------------------------------------------------- */

/* A range for which one connection asks what was written. A bit per page each: */
struct track {
	TAILQ_ENTRY(track) link;	/* tracker->tracks */
	uint32_t id;
	uint64_t peer;
	uint64_t start, end;
	uint64_t *written;		/* and not told yet */
	uint64_t *presumed;		/* of these, what nobody saw being written */
	uint64_t *gap;			/* at the last look */
	uint64_t *unseen;		/* at the last look: presumed */
	/* Of a tracked mirror, whose device has a copy of the range: */
	struct mirror *mirror;		/* NULL: somebody asks for the bits themselves */
	uint64_t charged;		/* bytes, to its device */
	unsigned int users;		/* syncs that run, or wait */
	struct sync *syncing;		/* one at a time: what it has taken no other one finds */
	struct task_list waiting;	/* the others */
	bool dropped;			/* in tracker->leaving: it goes with the last of them */
};
TAILQ_HEAD(track_list, track);

struct track *track_new(uint32_t id, uint64_t peer, uint64_t start, uint64_t end);
struct track *track_free(struct track *track);
/* It is written, or counts as such. */
void track_mark(struct track *track, uint64_t start, uint64_t end);
/* For every track that has some of it. */
void track_sight(struct tracker *tracker, uint64_t start, uint64_t end, enum sight sight);
/* The bits of what is presumed of [start, end), as it would be told: in the same places of @bits as by track_tell(). */
void track_presumed(const struct track *track, uint64_t start, uint64_t end, uint64_t *bits, uint64_t at);
/* Stores what of [start, end) is written into @bits, of which @at is the first to be used; how many, and of these presumed. */
uint64_t track_tell(struct track *track, uint64_t start, uint64_t end, bool clear, uint64_t *bits,
		    uint64_t at, uint64_t *presumed);

/* ---- an owner's (tracker.c) ------------------------------------------------------ */

struct tracker {
	LIST_ENTRY(tracker) link;	/* worker->standing */
	struct owner *owner;		/* NULL: it is gone, but a thread of its process is in our hands */
	const struct tracking_ops *ops;
	int uffd;			/* -1: the engine needs none */
	uint64_t features;		/* that it has */
	int clear_refs;			/* the same */
	struct source source;		/* of the userfaultfd */
	struct track_list tracks;
	struct track_list leaving;	/* nobody asks for them any more, but a sync is not over */
	struct stopped_threads stopped;
	int64_t barred;			/* until when it is not tried to stop them */
};

/* TRACK_OPEN, DIRTY_START, _READ, _STOP, _MARK, MIRROR_SYNC, COPY_OPEN. Any may be answered later. */
void tracking_request(struct owner *owner, struct letter *letter);
void tracking_peer_gone(struct owner *owner, uint64_t peer);
void tracking_mirror_gone(const struct mirror *mirror);
void tracking_deinit(struct owner *owner);
/* Threads that have come to stand too late for the look that stopped them go on: the owner's, and those of owners that are gone. */
void tracking_tick(struct owner *owner);
void tracking_thaw(struct worker *worker);
/* The worker's thread has ended, by which the kernel has let all of them go. */
void tracking_forget(struct worker *worker);
/* The program wants this range left alone: it is one mapping again. */
void tracking_let_go(struct owner *owner, uint64_t start, uint64_t end);
/* Whether somebody asks for what is written at @addr, so that it does not migrate; *@end: as far as that goes, at most. */
bool tracking_clip(const struct owner *owner, uint64_t addr, uint64_t *end);
/* hmmd is about to write there. True: it may have been protected and is not any more. */
bool tracking_lift(struct owner *owner, uint64_t addr);
/* All messages that there are: changes of the map first, then who waits to write. */
void tracker_read(struct tracker *tracker);
/* The engine's call on @tracker gave -EAGAIN: when its messages are read it may work. False: it is no use. */
bool tracker_settle(struct tracker *tracker, unsigned int *tries);

/* look.c: 0, or -errno; then nothing is known and nothing lost. */
int tracking_look(struct tracker *tracker, uint64_t start, uint64_t end);
/* Why, in words. */
const char *tracking_look_error(int error);

/* ---- copies (sync.c) ------------------------------------------------------------------ */

/* The tracked mirror of that id, which is the peer's. Or -errno, and the letter says so. */
int copies_check(struct owner *owner, struct letter *letter, uint32_t id, struct mirror **result);
/* Room for them on the mirror's device; the track is not in the list yet. Likewise. */
int copies_begin(struct tracker *tracker, struct letter *letter, struct track *track, struct mirror *mirror);
void copies_end(struct track *track);
/* MIRROR_SYNC. 0: it will be answered. */
int sync_begin(struct owner *owner, struct letter *letter, struct track *track);
/* COPY_OPEN */
int copy_open(struct letter *letter, const struct track *track);
/* The agent is done with an order, or never will be. */
void sync_order_done(const struct block_order *order, const struct hmm_order *shared);

#endif
