/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * order.c - work for the owner's agent, the thread of libhmmclient that does
 * what only the owner's mm may do. Runs on the owner's worker.
 *
 * Happy path: order_issue() writes the order into the shared ring and rings
 * the doorbell; the agent works through the ring in order and signals an
 * eventfd; order_reap() hands each finished order to whoever asked for it.
 *
 * The danger is a stale order: one that runs after the owner unmapped the
 * addresses and mapped something new there. While an event is unread the
 * kernel refuses MOVE with EAGAIN (slots are registered on the owner's own
 * userfaultfd); so before events are read the hold is raised, which keeps
 * orders out of their critical call, and while it is up the orders that the
 * events made stale are taken back.
 *
 * What the agent writes is never trusted further than the owner's own memory.
 */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/breakage.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"
#include "tracking/tracking.h"

/* How long a reader of events spins for a MOVE (5 us for a huge page) to end. */
#define HOLD_SPINS	2000
/* An agent that takes longer is stopped, or its processor is: faults are served without it. */
#define STUCK_NS	(20 * NS_PER_MS)

static void futex_wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

struct hmm_order *order_shared(struct owner *owner, const struct block_order *order)
{
	return &owner->orders->ring[order->ring % HMM_ORDERS_RING];
}

static uint32_t shared_state(struct owner *owner, const struct block_order *order)
{
	return __atomic_load_n(&order_shared(owner, order)->state, __ATOMIC_SEQ_CST);
}

uint64_t slot_addr(const struct owner *owner, unsigned int slot)
{
	return owner->slots_addr + slot * HMM_BLOCK_SIZE;
}

bool owner_agent_idle(const struct owner *owner)
{
	return owner->produced == owner->reaped;
}

/* The next one of the ring, with nothing said of any block. */
static struct block_order *order_new(struct owner *owner, uint32_t kind, unsigned int slot,
				     const struct pages *want, uint32_t flags)
{
	struct block_order *order;
	struct hmm_order *shared;

	/* Each slot has at most one order and one RELEASE behind it: the ring is never full. */
	assert(owner->produced - owner->reaped < HMM_ORDERS_RING);
	order = &owner->order[owner->produced % HMM_ORDERS_RING];
	*order = (struct block_order){
		.ring = owner->produced,
		.kind = kind,
		.serial = ++owner->next_serial,
		.slot = slot,
		.flags = flags,
		.issued = owner->worker->now,
	};
	shared = order_shared(owner, order);
	shared->kind = kind;
	shared->serial = order->serial;
	shared->addr = shared->epoch = shared->shadow = 0;
	shared->slot = slot;
	shared->flags = flags;
	shared->mirror = 0;
	shared->error = 0;
	shared->runs = 0;
	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++) {
		order->want.word[w] = want ? want->word[w] : 0;
		shared->want[w] = order->want.word[w];
		shared->moved[w] = shared->hole[w] = shared->busy[w] = 0;
	}
	return order;
}

void order_ring(struct owner *owner)
{
	struct hmm_orders *orders = owner->orders;
	bool asleep;

	__atomic_add_fetch(&orders->doorbell, 1, __ATOMIC_SEQ_CST);
	asleep = __atomic_load_n(&orders->asleep, __ATOMIC_SEQ_CST);
	if (asleep && broken("die-at-the-bell"))
		raise(SIGKILL);
	if (asleep)
		futex_wake(&orders->doorbell);
}

static void publish(struct owner *owner, struct block_order *order)
{
	struct hmm_orders *orders = owner->orders;

	__atomic_store_n(&order_shared(owner, order)->state, (uint32_t)HMM_ORDER_QUEUED, __ATOMIC_RELEASE);
	owner->produced++;
	__atomic_store_n(&orders->produced, owner->produced, __ATOMIC_SEQ_CST);
	order_ring(owner);
	worker_alarm(owner->worker, order->issued + STUCK_NS);
	owner_count(owner, COUNTER_ORDERS, 1);
}

struct block_order *order_issue(struct owner *owner, uint32_t kind, struct block *block,
				unsigned int slot, const struct pages *want, uint32_t flags)
{
	struct block_order *order = order_new(owner, kind, slot, want, flags);
	struct hmm_order *shared = order_shared(owner, order);
	const struct shadow *shadow;

	if (block) {
		order->block = block;
		block->order = order;
		shadow = block_shadow(block);
		shared->addr = block->addr;
		shared->epoch = block->record->epoch;
		shared->shadow = shadow ? shadow->inode : 0;
		shared->mirror = block->record->mirror;
	}
	publish(owner, order);
	return order;
}

void order_issue_sync(struct owner *owner, struct sync *sync, const struct mirror *mirror,
		      const struct shadow *shadow, const uint32_t *run, uint32_t runs)
{
	struct pages want = { 0 };
	struct block_order *order;
	struct hmm_order *shared;
	unsigned int n = 0;

	for (uint32_t i = 0; i < runs; i++)
		for (unsigned int k = 0; k < HMM_RUN_PAGES(run[i]); k++)
			pages_set(&want, n++);
	order = order_new(owner, HMM_ORDER_SYNC, HMM_NO_SLOT, &want, 0);
	shared = order_shared(owner, order);
	order->sync = sync;
	order->base = shared->addr = shadow->base;
	order->runs = shared->runs = runs;
	memcpy(order->run, run, runs * sizeof(*run));
	memcpy(shared->run, run, runs * sizeof(*run));
	shared->shadow = shadow->inode;
	shared->mirror = mirror->index;
	publish(owner, order);
}

/* The agent was filling when its order was taken back: what it wrote since must not be seen. */
static void clean_after_zap(struct owner *owner, uint64_t addr)
{
	struct block *block = addr ? block_find(owner, addr) : NULL;

	if (!block || !block_in_window(block) || !block_at_rest(block))
		return;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (!(block->record->page[i] & HMM_PAGE_COMPLETE))
			pages_set(&block->stale, i);
	block_punch_stale(block);
}

static void finish(struct owner *owner, struct block_order *order)
{
	struct hmm_order shared = *order_shared(owner, order);	/* one look: the owner may write it */
	struct block *block = order->block;

	if (order->kind == HMM_ORDER_NONE) {
		clean_after_zap(owner, order->cancelled_zap);
		TAILQ_CONCAT(&owner->runnable, &owner->slot_waiters, link);
		return;
	}
	if (order->kind == HMM_ORDER_RELEASE) {
		slot_put(owner, order->slot);
		return;
	}
	/* Results can only be about pages that were asked for. */
	for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++) {
		shared.moved[w] &= order->want.word[w];
		shared.hole[w] &= order->want.word[w] & ~shared.moved[w];
		shared.busy[w] &= order->want.word[w] & ~shared.moved[w];
	}
	if (order->kind == HMM_ORDER_SYNC) {
		sync_order_done(order, &shared);
		TAILQ_CONCAT(&owner->runnable, &owner->slot_waiters, link);
		return;
	}
	block->order = NULL;
	if (order->kind == HMM_ORDER_HOME_SLOT)
		home_slot_done(block, order, &shared);
	else if (order->kind == HMM_ORDER_COHERE || order->kind == HMM_ORDER_UNCOHERE)
		share_order_done(block, order, &shared);
	else
		migrate_out_done(block, order, &shared);
	/* It had no slot whose release would wake who waits for room in the ring. */
	if (order->slot == HMM_NO_SLOT)
		TAILQ_CONCAT(&owner->runnable, &owner->slot_waiters, link);
}

static bool take_back(struct owner *owner, struct block_order *order, uint32_t state)
{
	struct block_order copy = *order;

	if (!__atomic_compare_exchange_n(&order_shared(owner, order)->state, &state,
					 HMM_ORDER_CANCELLED, false, __ATOMIC_SEQ_CST,
					 __ATOMIC_SEQ_CST))
		return false;
	/* Its place in the ring is reaped when the agent has passed it. */
	if (order->kind == HMM_ORDER_OUT_ZAP)
		order->cancelled_zap = order->block->addr;
	order->kind = HMM_ORDER_NONE;
	order->block = NULL;
	owner_count(owner, COUNTER_ORDERS_CANCELLED, 1);
	finish(owner, &copy);
	return true;
}

bool order_cancel(struct owner *owner, struct block_order *order)
{
	return take_back(owner, order, HMM_ORDER_QUEUED) ||
	       take_back(owner, order, HMM_ORDER_RUNNING);
}

void order_cancel_syncs(struct owner *owner, const struct sync *sync)
{
	for (uint32_t at = owner->reaped; at != owner->produced; at++) {
		struct block_order *order = &owner->order[at % HMM_ORDERS_RING];

		if (order->kind != HMM_ORDER_SYNC)
			continue;
		if (!sync)
			order_cancel(owner, order);
		else if (order->sync == sync)
			take_back(owner, order, HMM_ORDER_QUEUED);
	}
	/* It may wait for room in the ring, which comes when the agent goes on and not before. */
	if (!order_has_room(owner))
		TAILQ_CONCAT(&owner->runnable, &owner->slot_waiters, link);
}

/*
 * Its critical call returns when its own event has been read: the reader must not
 * wait for it, and it counts after that event.
 */
static bool waits_for_reader(uint32_t kind)
{
	return kind == HMM_ORDER_OUT_ZAP || kind == HMM_ORDER_COHERE || kind == HMM_ORDER_UNCOHERE;
}

static void reap(struct owner *owner, bool read)
{
	while (owner->reaped != owner->produced) {
		struct block_order *order = &owner->order[owner->reaped % HMM_ORDERS_RING];
		struct block_order copy = *order;
		uint32_t state = shared_state(owner, order);

		if (state == HMM_ORDER_CANCELLED) {
			/* The agent must be past it before its place is used again. */
			uint32_t consumed = __atomic_load_n(&owner->orders->consumed, __ATOMIC_ACQUIRE);

			if ((int32_t)(consumed - order->ring) <= 0)
				return;
		} else if (state != HMM_ORDER_DONE || (waits_for_reader(copy.kind) && !read)) {
			return;
		}
		owner->reaped++;
		/* It has got past it. */
		owner->agent_stuck = false;
		finish(owner, &copy);
	}
}

void order_reap(struct owner *owner)
{
	reap(owner, true);
}

void order_reap_before_events(struct owner *owner)
{
	reap(owner, false);
}

bool order_commits(const struct owner *owner)
{
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++) {
		const struct hmm_order *order = &owner->orders->ring[i];

		if (__atomic_load_n(&order->state, __ATOMIC_SEQ_CST) == HMM_ORDER_COMMIT && !waits_for_reader(order->kind))
			return true;
	}
	return false;
}

bool order_hold(struct owner *owner)
{
	struct hmm_orders *orders = owner->orders;

	if (owner_agent_idle(owner))
		return true;
	__atomic_store_n(&orders->hold, 1, __ATOMIC_SEQ_CST);
	for (uint32_t at = owner->reaped; at != owner->produced; at++) {
		const struct block_order *order = &owner->order[at % HMM_ORDERS_RING];

		if (waits_for_reader(order->kind) || order->kind == HMM_ORDER_NONE)
			continue;
		for (int spins = 0; shared_state(owner, order) == HMM_ORDER_COMMIT; spins++) {
			if (spins == HOLD_SPINS)
				return false;	/* the hold stays up: no other one can enter */
			__builtin_ia32_pause();
		}
	}
	return true;
}

/*
 * An agent that comes to its critical call is in COMMIT for a moment before it sees the hold and steps back; then
 * the order can't be taken back. Let go of afterwards it would take what is mapped there by now.
 */
static bool is_stale_still(struct owner *owner)
{
	bool any = false;

	for (uint32_t at = owner->reaped; at != owner->produced; at++) {
		struct block_order *order = &owner->order[at % HMM_ORDERS_RING];
		uint32_t state;

		if (!order->voided || order->kind == HMM_ORDER_NONE || waits_for_reader(order->kind) ||
		    order_cancel(owner, order))
			continue;
		state = shared_state(owner, order);
		any |= state == HMM_ORDER_QUEUED || state == HMM_ORDER_RUNNING || state == HMM_ORDER_COMMIT;
	}
	return any;
}

bool order_release_hold(struct owner *owner)
{
	struct hmm_orders *orders = owner->orders;

	if (!__atomic_load_n(&orders->hold, __ATOMIC_RELAXED))
		return true;
	if (is_stale_still(owner))
		return false;
	__atomic_store_n(&orders->hold, 0, __ATOMIC_SEQ_CST);
	futex_wake(&orders->hold);
	return true;
}

bool order_has_room(const struct owner *owner)
{
	/* Each slot may still ask for an order and its RELEASE; cancelled ones keep their place for a while. */
	return owner->produced - owner->reaped < HMM_ORDERS_RING - 2 * owner->slots;
}

static int free_slot(struct owner *owner)
{
	unsigned int used = 0;
	int slot = -EAGAIN;

	if (!order_has_room(owner))
		return -EAGAIN;
	for (unsigned int i = 0; i < owner->slots; i++) {
		used += owner->slot[i] != SLOT_FREE;
		if (owner->slot[i] == SLOT_FREE && slot < 0)
			slot = (int)i;
	}
	/* What lies in one is charged to the owner twice: one block at a time. */
	return used && owner_near_limit(owner, HMM_BLOCK_PAGES) ? -EAGAIN : slot;
}

int slot_take(struct owner *owner)
{
	int slot = free_slot(owner);

	if (slot >= 0)
		owner->slot[slot] = SLOT_BUSY;
	else	/* Should none come: order_unstick() sees to who could do without. */
		worker_alarm(owner->worker, owner->worker->now + STUCK_NS);
	return slot;
}

void slot_put(struct owner *owner, unsigned int slot)
{
	owner->slot[slot] = SLOT_FREE;
	TAILQ_CONCAT(&owner->runnable, &owner->slot_waiters, link);
}

void slot_release(struct owner *owner, unsigned int slot)
{
	owner->slot[slot] = SLOT_RELEASING;
	order_issue(owner, HMM_ORDER_RELEASE, NULL, slot, NULL, 0);
}

void order_abandon(struct owner *owner)
{
	/* Finishing one may issue its slot's RELEASE: until nothing is left. */
	while (owner->reaped != owner->produced) {
		struct block_order copy = owner->order[owner->reaped % HMM_ORDERS_RING];

		__atomic_store_n(&order_shared(owner, &copy)->state, (uint32_t)HMM_ORDER_CANCELLED,
				 __ATOMIC_SEQ_CST);
		owner->reaped++;
		finish(owner, &copy);
	}
}

/* One page of an order whose agent does not get on, out of the slot: what it will say counts no more. */
static void home_from_slot(struct block *block, unsigned int i)
{
	char bounce[HMM_PAGE_SIZE];
	const void *bytes;
	size_t done;

	/* Others of the block are not in the slot: on the device they stay. */
	if (!pages_test(&block->order->want, i))
		return;
	bytes = page_bytes(block, i, bounce);
	owner_policy(block->owner, true);
	if (bytes && !kernel->uffd_copy(block->owner->uffd, page_addr(block, i), bytes, HMM_PAGE_SIZE, 0,
					&done))
		block_bury(block, i);
	owner_policy(block->owner, false);
}

/* Its pages are in the slot and the agent does not get on: whoever waits is served from there. */
static void serve_from_slot(struct block *block)
{
	struct task *task;
	uint64_t addr;

	TAILQ_FOREACH(task, &block->parked, link) {
		if (fault_task_addr(task, &addr)) {
			home_from_slot(block, page_index(addr));
			continue;
		}
		/* A job that wants the block home: all of it, once. */
		for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
			home_from_slot(block, i);
		return;
	}
}

/* It does not get on. Who is on the way home and waits for a slot goes on without: there will be none. */
static void do_without_agent(struct owner *owner)
{
	if (owner->agent_stuck)
		return;
	owner->agent_stuck = true;
	TAILQ_CONCAT(&owner->runnable, &owner->slot_waiters, link);
}

bool order_is_held_up(const struct block *block)
{
	struct owner *owner = block->owner;
	uint32_t state;

	if (!block->order || !owner->agent_stuck)
		return false;
	state = shared_state(owner, block->order);
	return (state == HMM_ORDER_COMMIT || state == HMM_ORDER_FILLING) && process_is_stopped(owner->pid);
}

/*
 * It is done, but one before it is not: slots are emptied by a thread of their own, which may be stopped. What it has to
 * say is taken ahead of its turn, and its place in the ring when that comes.
 */
static bool finish_ahead(struct owner *owner, struct block_order *order)
{
	struct block_order copy = *order;

	if (shared_state(owner, order) != HMM_ORDER_DONE || waits_for_reader(order->kind))
		return false;
	order->kind = HMM_ORDER_NONE;
	order->block = NULL;
	finish(owner, &copy);
	return true;
}

/* A slot that is to be released and is waited for: who is on the way home can do without it. */
static void miss_slot(struct owner *owner, const struct block_order *order, int64_t now)
{
	if (owner->agent_stuck || TAILQ_EMPTY(&owner->slot_waiters))
		return;
	if (now - order->issued < 5 * STUCK_NS) {
		worker_alarm(owner->worker, order->issued + 5 * STUCK_NS);
		return;
	}
	do_without_agent(owner);
}

void order_unstick(struct owner *owner, int64_t now)
{
	for (uint32_t at = owner->reaped; at != owner->produced; at++) {
		struct block_order *order = &owner->order[at % HMM_ORDERS_RING];
		struct block *block = order->block;

		/* Nobody waits for a copy but who asked for it. */
		if (order->kind == HMM_ORDER_SYNC)
			continue;
		if (!block) {
			miss_slot(owner, order, now);
			continue;
		}
		if (now - order->issued < STUCK_NS) {
			worker_alarm(owner->worker, order->issued + STUCK_NS);
			continue;
		}
		worker_alarm(owner->worker, now + STUCK_NS);
		/* On the way home it can be done without the agent: for a debugger, say, that stopped it. */
		if (TAILQ_EMPTY(&block->parked) &&
		    (order->kind != HMM_ORDER_HOME_SLOT || now - order->issued < 5 * STUCK_NS))
			continue;
		if (finish_ahead(owner, order))
			continue;
		do_without_agent(owner);
		if (order_cancel(owner, order))
			continue;
		/* Not under a window: the driver may have written to the copy already. */
		if (order->kind == HMM_ORDER_OUT_MOVE && !(order->flags & HMM_ORDER_VISIBLE) &&
		    shared_state(owner, order) == HMM_ORDER_FILLING)
			serve_from_slot(block);
		/* There are those who wait for no stopped owner. */
		if (order_is_held_up(block))
			TAILQ_CONCAT(&owner->runnable, &block->parked, link);
	}
}
