/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * event.h - what becomes of an owner's pages, as it happens: a bounded ring that hmmd
 * fills and the program reads, with a count of what did not fit. For tuning and for
 * tools; a driver that has to let go of pages is told by its mirror's callbacks.
 */
#ifndef HMM_EVENT_H
#define HMM_EVENT_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_mirror;
struct hmm_events;

enum hmm_event_kind {
	HMM_EVENT_CPU_FAULT = 1,	/* the CPU touched what the device has; pages: that come or change with it */
	HMM_EVENT_MIGRATE_OUT = 2,	/* pages went to the device */
	HMM_EVENT_MIGRATE_HOME = 3,	/* pages came home; reason says what for, never EVICT */
	HMM_EVENT_EVICT = 4,		/* the device's pages came home, or its copies were taken, for want of room or of use */
	HMM_EVENT_INVALIDATE = 5,	/* devices had to let go of the range; reason says why */
	HMM_EVENT_WINDOW_FAULT = 6,	/* a driver touched what its window does not show (yet) */
	HMM_EVENT_REVOKED = 7,		/* a window was closed: its driver did not answer in time */
	HMM_EVENT_POISON = 8,		/* a page was closed in a window, or lost by its driver: error says why it cannot be had */
	HMM_EVENT_PIN_BROKEN = 9,	/* the CPU touched a pinned page, which the pool could not share */
	HMM_EVENT_LOST = 10,		/* another hmmd goes on: what happened in between is not known */
};

struct hmm_event {
	uint64_t time;			/* CLOCK_MONOTONIC, nanoseconds */
	uint32_t kind;			/* enum hmm_event_kind */
	uint32_t reason;		/* enum hmm_update_reason, or 0 */
	int32_t error;			/* negative errno, or 0 */
	uint32_t mirror_id;		/* as hmmctl shows it, or 0 */
	struct hmm_mirror *mirror;	/* where it is registered on the same handle, or NULL */
	unsigned long start;		/* inclusive */
	unsigned long end;		/* exclusive */
	uint64_t pages;			/* of 4 KiB, that it is about: at most those of the range */
	uint64_t reserved;		/* 0 */
};

struct hmm_event_options {
	size_t size;		/* sizeof(struct hmm_event_options) */
	uint64_t mask;		/* 1 << kind for each kind that is wanted; 0: all. LOST always comes */
	uint32_t entries;	/* of the ring, 64 to 65536, rounded up to a power of two; 0: 4096 */
	uint32_t reserved;	/* 0 */
};

/*
 * hmm_event_open() - begin to listen to what becomes of this owner's pages.
 * @hmm: the process's own, or another's by its key.
 * @options: NULL for the defaults.
 * @result: give it back with hmm_event_close(); hmm_close() of the last reference does, too.
 * Return: 0; -EINVAL: result is NULL, entries or mask cannot be; -E2BIG: options of
 *	a later library; -EMFILE: no descriptors, or 8 rings on this handle already;
 *	-EDQUOT: the user's share of hmmd is used up; -ENOMEM; -ESTALE: the owner is gone.
 */
int hmm_event_open(struct hmm *hmm, const struct hmm_event_options *options, struct hmm_events **result);

/*
 * hmm_event_fd() - an eventfd that is readable while there is something to read. To
 * be polled only: hmm_event_read() empties it. The same for as long as @events lives,
 * across restarts of hmmd. Return: the descriptor; -EINVAL; -ESTALE.
 */
int hmm_event_fd(const struct hmm_events *events);

/*
 * hmm_event_read() - takes up to @max records out, oldest first. Never waits. Several
 * threads may read; each record goes to one of them.
 * Return: how many, 0: none at present; -EINVAL: an argument is NULL or @max is 0;
 *	-ESTALE: nothing more will come, the owner (or its hmmd) is gone for good, or
 *	this process was forked from the one that listens.
 */
int hmm_event_read(struct hmm_events *events, struct hmm_event *out, unsigned int max);

/*
 * hmm_event_dropped() - how many records were lost since hmm_event_open(): a full
 * ring loses what is new. Each restart of hmmd counts as one, for nobody knows how
 * many. Read from shared memory, no system call. 0 for NULL.
 */
uint64_t hmm_event_dropped(const struct hmm_events *events);

/* Not while another thread reads. NULL is allowed. */
void hmm_event_close(struct hmm_events *events);

#ifdef __cplusplus
}
#endif
#endif
