/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * invalidate.c - telling drivers to let go of a range, and waiting for their
 * answers without ever making anybody else wait for them.
 *
 * A transit asks every mirror with callbacks, parks in its block, and goes on
 * when the last answer is in. Where the transit can do without (an eviction that
 * may take another block) drivers need not wait for their devices: they may answer
 * -EAGAIN, and one such answer undoes it for all. A driver that does not answer in time loses what
 * its windows map of the range; the transit goes on as if it had answered.
 *
 * A device that cannot fault has stopped when its driver answers, and goes on when it is told that the
 * transit has ended (SETTLED, with the same cookie). It is only told of changes to what it has.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/dma.h"
#include "engine/notice.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"

struct ack {
	TAILQ_ENTRY(ack) link;
	uint64_t cookie;
	uint64_t peer;
	uint64_t start, end;
	struct block *block;	/* NULL: nobody waits */
	bool keeps_windows;	/* what they show does not change, however late he is */
	int64_t deadline;
};

static struct ack *ack_new(struct owner *owner, struct mirror *mirror, struct block *block,
			   uint64_t start, uint64_t end)
{
	struct ack *ack = calloc(1, sizeof(*ack));

	if (!ack)
		return NULL;
	/* The owner's id is in the cookie, so that control can find it. */
	ack->cookie = (uint64_t)owner->id << 48 | ++owner->next_cookie;
	ack->peer = mirror->peer;
	ack->block = block;
	ack->start = start;
	ack->end = end;
	ack->deadline = owner->worker->now +
			owner->worker->engine->options.ack_timeout_ms * NS_PER_MS;
	TAILQ_INSERT_TAIL(&owner->acks, ack, link);
	worker_alarm(owner->worker, ack->deadline);
	return ack;
}

static void ack_free(struct owner *owner, struct ack *ack)
{
	TAILQ_REMOVE(&owner->acks, ack, link);
	free(ack);
}

/*
 * One that cannot be told now would stand for ever: when nothing of it moves any more it is told that all is over, as after a
 * restart.
 */
static void send_settled(struct mirror *mirror, uint64_t cookie)
{
	struct hmm_msg_settled *message;

	if (!mirror->peer)
		return;
	message = malloc(sizeof(*message));
	if (message) {
		HMM_MSG_INIT(*message, HMM_OP_SETTLED, 0);
		message->mirror = mirror->id;
		message->cookie = cookie;
		if (worker_event(mirror->owner->worker, mirror->peer, message, -1))
			return;
	}
	mirror->restarting = mirror->owner->restarting = true;
	worker_alarm(mirror->owner->worker, mirror->owner->worker->now + NS_PER_MS);
}

static void note_stopped(struct block *block, struct mirror *mirror, uint64_t cookie, bool wait)
{
	if (device_faults(mirror->device))
		return;
	owner_count(block->owner, COUNTER_QUIESCES, 1);
	if (wait) {
		block->stopped = mirror->id;
		block->stopped_for = cookie;
	} else {
		send_settled(mirror, cookie);
	}
}

void invalidate_settled(struct block *block)
{
	struct owner *owner = block->owner;
	struct mirror *mirror;

	if (block->stopped_for) {
		mirror = mirror_by_id(owner, block->stopped);
		if (mirror)
			send_settled(mirror, block->stopped_for);
		block->stopped_for = 0;
	}
	if (owner->restarting)
		invalidate_restart(owner);
}

/* Of what other devices have nothing was stopped. */
static bool is_moving(const struct mirror *mirror)
{
	const struct block *block;

	for (uint64_t at = 0; (block = block_next(mirror->owner, at, HMM_VA_END)); at = block->addr + HMM_BLOCK_SIZE)
		if (!block_at_rest(block) && block_mirror(block) == mirror)
			return true;
	return false;
}

void invalidate_restart(struct owner *owner)
{
	if (owner->recovering)
		return;
	owner->restarting = false;
	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		struct mirror *mirror = owner->mirror[i];

		if (!mirror || !mirror->restarting)
			continue;
		if (is_moving(mirror)) {
			owner->restarting = true;
			continue;
		}
		mirror->restarting = false;
		send_settled(mirror, 0);
	}
}

unsigned int invalidate_send(struct block *block, uint64_t start, uint64_t end, int reason, bool wait)
{
	const struct mirror *holder = block_mirror(block);
	struct owner *owner = block->owner;
	unsigned int waiting = 0;

	notice(owner, (struct hmm_notice){
		.kind = HMM_EVENT_KIND_INVALIDATE, .reason = (uint32_t)reason, .mirror = holder ? holder->id : 0,
		.start = start, .end = end, .pages = (end - start) >> HMM_PAGE_SHIFT });
	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		struct mirror *mirror = owner->mirror[i];
		struct hmm_msg_invalidate *message;
		uint64_t from = start, to = end;
		struct ack *ack;

		if (!mirror || !mirror->peer || !(mirror->flags & HMM_MIRROR_FLAGS_CALLBACKS) ||
		    !reach_any(mirror, block, start, end))
			continue;
		dma_widen(mirror, block, &from, &to);
		message = malloc(sizeof(*message));
		ack = message ? ack_new(owner, mirror, wait ? block : NULL, from, to) : NULL;
		if (!ack) {
			free(message);
			/* It can't be told: it must not go on reading. */
			window_revoke(owner, mirror->peer, from, to, -ENOMEM);
			continue;
		}
		HMM_MSG_INIT(*message, HMM_OP_INVALIDATE, 0);
		message->mirror = mirror->id;
		message->reason = (uint32_t)reason;
		message->start = from;
		message->end = to;
		message->cookie = ack->cookie;
		message->blockable = !(wait && block->refused);
		if (!worker_event(owner->worker, mirror->peer, message, -1)) {
			ack_free(owner, ack);
			window_revoke(owner, mirror->peer, from, to, -ENOMEM);
			continue;
		}
		owner_count(owner, COUNTER_INVALIDATIONS, 1);
		note_stopped(block, mirror, ack->cookie, wait);
		waiting += wait;
	}
	return waiting;
}

uint64_t invalidate_all(struct mirror *mirror, int reason)
{
	struct owner *owner = mirror->owner;
	struct hmm_msg_invalidate *message;
	struct ack *ack;

	notice(owner, (struct hmm_notice){
		.kind = HMM_EVENT_KIND_INVALIDATE, .reason = (uint32_t)reason, .mirror = mirror->id, .end = HMM_VA_END });
	if (!mirror->peer || !(mirror->flags & HMM_MIRROR_FLAGS_CALLBACKS))
		return 0;
	message = malloc(sizeof(*message));
	ack = message ? ack_new(owner, mirror, NULL, 0, HMM_VA_END) : NULL;
	/* What windows show does not change. */
	if (!ack) {
		free(message);
		return 0;
	}
	ack->keeps_windows = true;
	HMM_MSG_INIT(*message, HMM_OP_INVALIDATE, 0);
	message->mirror = mirror->id;
	message->reason = (uint32_t)reason;
	message->end = HMM_VA_END;
	message->cookie = ack->cookie;
	message->blockable = 1;
	if (!worker_event(owner->worker, mirror->peer, message, -1)) {
		ack_free(owner, ack);
		return 0;
	}
	owner_count(owner, COUNTER_INVALIDATIONS, 1);
	if (!device_faults(mirror->device))
		owner_count(owner, COUNTER_QUIESCES, 1);
	return ack->cookie;
}

bool invalidate_is_awaited(const struct owner *owner, uint64_t cookie)
{
	const struct ack *ack;

	TAILQ_FOREACH(ack, &owner->acks, link)
		if (ack->cookie == cookie)
			return true;
	return false;
}

void invalidate_all_over(struct mirror *mirror, uint64_t cookie)
{
	if (cookie && !device_faults(mirror->device))
		send_settled(mirror, cookie);
}

static void answered(struct owner *owner, struct ack *ack, bool refusal)
{
	struct block *block = ack->block;

	ack_free(owner, ack);
	if (block)
		transit_answered(block, refusal);
}

void invalidate_ack(struct owner *owner, uint64_t cookie, int status)
{
	struct ack *ack;

	TAILQ_FOREACH(ack, &owner->acks, link) {
		if (ack->cookie != cookie)
			continue;
		answered(owner, ack, status == -EAGAIN);
		return;
	}
	/* Too late (already revoked), or made up: nothing waits for it. */
}

bool invalidate_is_of_fetch(const struct owner *owner, uint64_t cookie)
{
	const struct ack *ack;

	TAILQ_FOREACH(ack, &owner->acks, link)
		if (ack->cookie == cookie)
			return ack->block && ack->block->record->transit == HMM_TRANSIT_FETCH;
	return false;
}

static void give_up(struct owner *owner, struct ack *ack, int error)
{
	if (!ack->keeps_windows)
		window_revoke(owner, ack->peer, ack->start, ack->end, error);
	answered(owner, ack, false);
}

void invalidate_expire(struct owner *owner, int64_t now)
{
	struct ack *ack;

	/* In order of deadline: all have the same timeout. */
	while ((ack = TAILQ_FIRST(&owner->acks)) && ack->deadline <= now) {
		log_warn("owner %u: a driver did not answer an invalidation of %#lx-%#lx in %u ms%s", owner->id, ack->start,
			 ack->end, owner->worker->engine->options.ack_timeout_ms,
			 ack->keeps_windows ? "" : ": its windows there are revoked");
		owner_count(owner, COUNTER_LATE_DRIVERS, 1);
		give_up(owner, ack, -ETIMEDOUT);
	}
}

int64_t invalidate_deadline(const struct owner *owner)
{
	const struct ack *ack = TAILQ_FIRST(&owner->acks);

	return ack ? ack->deadline : INT64_MAX;
}

void invalidate_peer_gone(struct owner *owner, uint64_t peer)
{
	struct ack *ack;
	bool again;

	do {
		again = false;
		TAILQ_FOREACH(ack, &owner->acks, link) {
			if (ack->peer != peer)
				continue;
			/* answered() may send and answer others: start over. */
			answered(owner, ack, false);
			again = true;
			break;
		}
	} while (again);
}

void invalidate_answer_all(struct owner *owner)
{
	struct ack *ack;

	while ((ack = TAILQ_FIRST(&owner->acks)))
		answered(owner, ack, false);
}

void invalidate_deinit(struct owner *owner)
{
	struct ack *ack;

	while ((ack = TAILQ_FIRST(&owner->acks)))
		ack_free(owner, ack);
}
