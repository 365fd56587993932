/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * worker.h - an engine thread: its reactor, its mailbox, its owners, its clock.
 */
#ifndef HMMD_WORKER_H
#define HMMD_WORKER_H

#include "engine/engine.h"
#include "engine/fdstore.h"
#include "engine/owner.h"
#include "tracking/choose.h"

struct worker {
	struct engine *engine;
	unsigned int index;
	pthread_t thread;
	struct reactor *reactor;
	struct mailbox inbox;
	struct source inbox_source;
	struct letter *held;	/* to be taken before what is in the inbox */
	TAILQ_HEAD(, owner) owners;
	LIST_HEAD(, tracker) standing;	/* of owners that are gone */
	int64_t now;		/* CLOCK_MONOTONIC, ns, read once per turn */
	int64_t alarm;		/* when to wake up at the latest; INT64_MAX: never */
	int64_t merging_seen;	/* when it was looked whether ksmd runs */
	bool merging;
	uint64_t uses;		/* of blocks by their devices, counted */
	uint64_t passes;	/* of evictions over its blocks */
	struct {		/* its part of a drain of everything, of which one runs at a time */
		unsigned int owners;
		uint64_t pages;
	} drain;
	atomic_bool rung;	/* evict_look() has something to see */
	bool going;		/* SHUTDOWN: everything comes home */
	bool refused;		/* an owner of another release: said once */
	bool stopped;		/* ... and that was answered */
	bool handing_over;	/* HAND_OVER: nothing is begun any more, until then at the latest: */
	int64_t hand_over_until;
	bool stop;
	_Atomic uint64_t turns;	/* of its loop, and steps of what keeps it from the next one for long */
	uint64_t turns_seen;	/* by control */
};

/* It is at work, though it does not come round: say so at each step, or it counts as stuck. */
static inline void worker_gets_on(struct worker *worker)
{
	atomic_fetch_add_explicit(&worker->turns, 1, memory_order_relaxed);
}

struct engine {
	struct engine_options options;
	struct kernel_facts facts;
	uint64_t features;
	struct tracking_choice tracking;
	uint64_t incarnation;
	struct mailbox *outbox;
	struct devices devices;
	struct worker *workers;
	unsigned int started;

	pthread_mutex_t lock;		/* the lists below, which control reads */
	TAILQ_HEAD(, owner) owners;
	uint32_t next_owner;
	unsigned int shutting_down;	/* workers that have not answered yet */
	struct letter *shutdown;	/* SHUTDOWN, or HAND_OVER */
	unsigned int draining;		/* the same for a drain of everything */
	struct letter *drain;
	uint64_t drain_pages;
	struct kept_list kept;		/* what an earlier hmmd left with the service manager */
	int64_t began;
};

/*
 * For who must not let anything else go on (fork.c): for 1 ms at most only what drivers answer who bring
 * far pages of this owner is heard; the rest is held. False: the connection of one of them has ended.
 */
bool worker_hear_drivers(struct owner *owner);
/* The worker wants to be awake at @when. */
static inline void worker_alarm(struct worker *worker, int64_t when)
{
	if (when < worker->alarm)
		worker->alarm = when;
}

/* To control: the letter's answer, or an event for a peer. */
void worker_reply(struct worker *worker, struct letter *letter);
/* False: there was no memory for it, and nobody hears of it. The message and the descriptor are gone in any case. */
bool worker_event(struct worker *worker, uint64_t peer, void *message, int fd);
int64_t clock_now(void);

#endif
