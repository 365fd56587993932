/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * evict.h - making room on a device that is full: blocks of it come home, of
 * whichever owner and worker, and what waits for the room goes on.
 */
#ifndef HMMD_ENGINE_EVICT_H
#define HMMD_ENGINE_EVICT_H

#include "engine/owner.h"
#include "policy/evict.h"

/* What waits for room; part of what its task is part of. Zeroed before the first use. */
struct room_wait {
	TAILQ_ENTRY(room_wait) link;	/* owner->room_waiters */
	struct task *task;
	struct device *device;
	uint64_t round;			/* whose end it waits for; 0: for what is busy */
	uint64_t released;		/* to come free, counted in struct room, */
	int64_t due;			/* but not longer than this */
	unsigned int tries, delays;
};

/*
 * @task could not be charged @bytes on @device. Return: 0: it waits, and is run
 * again when there may be room; -ENOSPC: nothing that could make way is left;
 * -EAGAIN: what could has been busy, or the room was others', for too long.
 * What @journey itself has brought is no room for it. The device must stay: a
 * mirror of it is held as long as the task waits.
 */
int evict_wait(struct owner *owner, struct device *device, uint64_t bytes, uint64_t journey,
	       struct task *task, struct room_wait *wait);
/* The same in words, for people: what the device has, and why no more. */
void evict_explain(struct worker *worker, struct device *device, uint64_t wanted, char *text, size_t size);
/* A migration to the device has ended: what it brought may make way, and does above the high mark. */
void evict_released(struct worker *worker, struct device *device);

/* The worker's bell rang: its part in rounds that began, and what waited for those that ended. */
void evict_look(struct worker *worker);
void evict_tick(struct owner *owner, int64_t now);
/* The owner goes: what waits goes on as it is. */
void evict_wait_no_more(struct owner *owner);

#endif
