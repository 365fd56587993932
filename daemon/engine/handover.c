/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * handover.c - hmmd ends and another follows at once: pages stay where they are. Runs on the worker.
 *
 * It is a crash at a good moment: the next hmmd takes over by the same rules as after one (recover.c), and nothing that is
 * not noted in the ledger matters to it. What makes the moment good: nothing new is begun (faults stay unserved, tasks
 * queued, requests unanswered: the next one wakes all that is armed, and libraries ask it again), what others have in their
 * hands is awaited (agents' orders, drivers' answers, far pages), and events are read and applied as ever, since orders
 * wait for that. So is a raw fork's child served to its end before a worker comes here.
 *
 * What can fail: an owner or a driver that is stopped does not get on. It is waited for as long as one that runs could need,
 * and then left in the middle, as by a crash.
 */
#include "engine/handover.h"

#include "engine/far.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"

/* Everybody's faults wait meanwhile. An order takes microseconds, a driver's answer some milliseconds. */
#define PATIENCE_NS	(100 * NS_PER_MS)

/* A driver that is away is not waited for: it comes back to the next hmmd. */
static bool is_asked(const struct owner *owner)
{
	const struct ask *ask;

	TAILQ_FOREACH(ask, &owner->asks, link)
		if (ask->sent || device_has_bar(ask->mirror->device))
			return true;
	return false;
}

/* Of one that is being taken over nothing was begun. */
static bool is_busy(const struct owner *owner)
{
	if (owner->recovering || owner->gone)
		return false;
	return owner->deferred_read || !owner_agent_idle(owner) || !TAILQ_EMPTY(&owner->acks) || is_asked(owner);
}

static void get_on(struct owner *owner, int64_t now)
{
	if (owner->recovering || owner->gone)
		return;
	owner_get_on(owner, now);
	far_tick(owner, now);
}

void handover_begin(struct worker *worker)
{
	worker->handing_over = true;
	worker->hand_over_until = worker->now + PATIENCE_NS;
}

bool handover_tick(struct worker *worker)
{
	struct owner *owner;
	bool busy = false;

	TAILQ_FOREACH(owner, &worker->owners, link) {
		get_on(owner, worker->now);
		busy |= is_busy(owner);
	}
	if (busy && worker->now < worker->hand_over_until) {
		worker_alarm(worker, worker->hand_over_until);
		return false;
	}
	TAILQ_FOREACH(owner, &worker->owners, link)
		if (is_busy(owner))
			log_info("owner %u: %s, pid %d: something is under way still: the next hmmd settles it", owner->id,
				 owner->name, owner->pid);
	return true;
}
