/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * event.c - what the owner does to its address space, as its userfaultfd tells
 * it. Runs on the owner's worker.
 *
 * Messages are read straight into the journal (a memfd that outlives hmmd).
 * read() gives queued faults before events, so a batch is read whole, events
 * are applied first and faults served after. The caller of munmap, mremap or
 * fork is blocked until its event is read, and a change is never undone: what
 * is read is applied, whatever else is going on in the block.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "engine/dma.h"
#include "engine/fork.h"
#include "engine/graft.h"
#include "engine/owner.h"
#include "engine/remap.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

#define BATCH	64U

_Static_assert(sizeof(struct uffd_msg) == HMM_JOURNAL_SLOT_SIZE, "a message fills a slot");

struct lost_range {
	uint64_t start, end;
	int reason;
};

/* The zap order that a block's transit gave; after a restart that of the dead hmmd, by its epoch, which a transit that has ended has not. */
static const struct hmm_order *zap_of(const struct block *block)
{
	struct owner *owner = block->owner;

	if (block->order)
		return block->order->kind == HMM_ORDER_OUT_ZAP ? order_shared(owner, block->order) : NULL;
	for (unsigned int i = 0; owner->recovering && i < HMM_ORDERS_RING; i++) {
		const struct hmm_order *order = &owner->orders->ring[i];

		if (order->kind == HMM_ORDER_OUT_ZAP && order->addr == block->addr &&
		    order->epoch == block->record->epoch)
			return order;
	}
	return NULL;
}

/*
 * The agent's own DONTNEED. It goes on the moment that its event is read, so its
 * order may be done by now; it is not reaped before the events are applied.
 */
static bool own_zap(const struct block *block, unsigned int first, unsigned int end)
{
	const struct hmm_order *order = zap_of(block);
	uint32_t state;

	if (!order)
		return false;
	for (unsigned int i = first; i < end; i++)
		if (!(order->want[i / 64] >> (i % 64) & 1))
			return false;
	state = __atomic_load_n(&order->state, __ATOMIC_ACQUIRE);
	return state == HMM_ORDER_COMMIT || state == HMM_ORDER_DONE;
}

static void lose(struct block *block, void *data)
{
	const struct lost_range *lost = data;
	uint64_t start = lost->start > block->addr ? lost->start : block->addr;
	uint64_t block_end = block->addr + HMM_BLOCK_SIZE;
	uint64_t end = lost->end < block_end ? lost->end : block_end;
	unsigned int first = page_index(start);
	unsigned int last = first + (unsigned int)((end - start) >> HMM_PAGE_SHIFT);

	if (lost->reason == HMM_REASON_DISCARD && own_zap(block, first, last))
		return;
	/* It is not armed: the event is of what was mapped there before, and read late. */
	if (block_at_rest(block) && block_count(block, HMM_PAGE_COHERENT))
		return;
	if (!pages_empty(&block->grafted))
		graft_drop(block->owner, start, end);
	/* Voided first; only then is an order taken back, so that what it moved is not believed. */
	block_discard(block, first, last, lost->reason);
	if (lost->reason != HMM_REASON_DISCARD)
		block_note_unmapped(block, first, last);
	if (lost->reason == HMM_REASON_DISCARD)
		block_expect_zap(block, first, last);
	if (block->order && !order_cancel(block->owner, block->order))
		block->order->voided = true;
}

static void lose_range(struct owner *owner, uint64_t start, uint64_t end, int reason)
{
	struct lost_range lost = { .start = start, .end = end, .reason = reason };

	block_for_each(owner, start, end, lose, &lost);
	window_reopen(owner, start, end);
	/* Whoever waits there waits for nothing: unmapped, or to be asked again. */
	fault_wake(owner, start, end - start);
}

/* The mapping was, or is being, exchanged by hmm_share(): the program still has the memory. */
static bool is_shared(const struct block *block)
{
	return block->record->transit == HMM_TRANSIT_COHERING ||
	       (block_at_rest(block) && block_count(block, HMM_PAGE_COHERENT));
}

static void forget_advice(struct owner *owner, uint64_t start, uint64_t end)
{
	struct block *block;

	for (uint64_t at = start; (block = block_next(owner, at, end)); at = block->addr + HMM_BLOCK_SIZE) {
		if (!is_shared(block))
			continue;
		if (start < block->addr)
			attribute_forget(&owner->attributes, start, block->addr);
		start = block->addr + HMM_BLOCK_SIZE;
	}
	if (start < end)
		attribute_forget(&owner->attributes, start, end);
}

static void withdraw(struct block *block, void *data)
{
	dma_withdraw(block, *(const int *)data);
}

static struct uffd_msg *slot_of(struct owner *owner, uint64_t n)
{
	return (struct uffd_msg *)owner->journal->slot[n % HMM_JOURNAL_SLOTS];
}

/* Of position @n of the journal, in a batch that begins at @from. */
static void apply(struct owner *owner, uint64_t from, uint64_t n)
{
	const struct uffd_msg *message = slot_of(owner, n);

	owner_count(owner, COUNTER_EVENTS, 1);
	switch (message->event) {
	case UFFD_EVENT_UNMAP:
		lose_range(owner, message->arg.remove.start, message->arg.remove.end, HMM_REASON_UNMAP);
		forget_advice(owner, message->arg.remove.start, message->arg.remove.end);
		break;
	case UFFD_EVENT_REMOVE:
		lose_range(owner, message->arg.remove.start, message->arg.remove.end,
			   HMM_REASON_DISCARD);
		break;
	case UFFD_EVENT_REMAP:
		owner->moves++;
		/* Its bytes are taken along now. */
		block_for_each(owner, message->arg.remap.from, message->arg.remap.from + message->arg.remap.len,
			       withdraw, &(int){ HMM_REASON_REMAP });
		remap_move(owner, message->arg.remap.from, message->arg.remap.to, message->arg.remap.len);
		window_reopen(owner, message->arg.remap.to, message->arg.remap.to + message->arg.remap.len);
		lose_range(owner, message->arg.remap.from,
			   message->arg.remap.from + message->arg.remap.len, HMM_REASON_REMAP);
		attribute_move(&owner->attributes, message->arg.remap.from, message->arg.remap.to,
			       message->arg.remap.len);
		break;
	case UFFD_EVENT_FORK:
		owner_count(owner, COUNTER_FORKS, 1);
		/* In a replay it is a number of the hmmd that died. */
		fork_child_consume_fd(owner, from, n, n < owner->journal_taken ? -1 : (int)message->arg.fork.ufd);
		break;
	default:
		log_warn("owner %u: unknown userfaultfd event %#x", owner->id, message->event);
	}
}

/* All of the batch: a child waits while what is before it is served. */
static void keep_children(struct owner *owner, uint64_t from, uint64_t to)
{
	for (uint64_t n = from; n < to; n++)
		if (slot_of(owner, n)->event == UFFD_EVENT_FORK)
			fork_keep_child(owner, n, (int)slot_of(owner, n)->arg.fork.ufd);
}

/* To its end, which a fork may move on (event_read_on()). */
static void apply_batch(struct owner *owner, uint64_t from)
{
	/* Results of finished orders count as before the events. */
	order_reap_before_events(owner);
	for (uint64_t n = from; n < owner->journal_read; n++) {
		if (slot_of(owner, n)->event == UFFD_EVENT_PAGEFAULT)
			continue;
		apply(owner, from, n);
		/* One by one: what an mremap brought is not unmapped by an event before it, done twice. */
		__atomic_store_n(&owner->journal->applied, n + 1, __ATOMIC_RELEASE);
	}
}

static void serve_batch(struct owner *owner, uint64_t from, uint64_t to)
{
	for (uint64_t n = from; n < to; n++) {
		const struct uffd_msg *message = slot_of(owner, n);

		if (message->event != UFFD_EVENT_PAGEFAULT)
			continue;
		/* The next hmmd wakes them all. Only the agent has something in its hands that is waited for. */
		if (owner->worker->handing_over && message->arg.pagefault.feat.ptid != owner->orders->agent_tid)
			continue;
		owner_count(owner, COUNTER_FAULTS, 1);
		fault_serve(owner, message->arg.pagefault.address, message->arg.pagefault.flags,
			    message->arg.pagefault.feat.ptid);
	}
}

/* Reads up to @asked messages (a batch, or to the ring's end) into the journal. Return: how many, or -errno. */
static int journal_read(struct owner *owner, int *asked)
{
	uint64_t at = owner->journal_read % HMM_JOURNAL_SLOTS;
	uint64_t room = HMM_JOURNAL_SLOTS - at;
	size_t length;
	ssize_t n;

	*asked = (int)(room < BATCH ? room : BATCH);
	length = (size_t)*asked * HMM_JOURNAL_SLOT_SIZE;

	/* One more than a batch: what the last lap left there must not look unapplied. */
	if (owner->journal_zeroed < owner->journal_read)
		owner->journal_zeroed = owner->journal_read;
	for (; owner->journal_zeroed <= owner->journal_read + BATCH; owner->journal_zeroed++)
		memset(slot_of(owner, owner->journal_zeroed), 0, HMM_JOURNAL_SLOT_SIZE);
	n = kernel->uffd_read(owner->uffd, owner->journal->slot[at], length);
	if (n < 0)
		return (int)n;
	return (int)(n / (ssize_t)HMM_JOURNAL_SLOT_SIZE);
}

/* Return: as journal_read(). */
static int read_batch(struct owner *owner, int *asked)
{
	uint64_t from = owner->journal_read;
	int n = journal_read(owner, asked);

	if (n > 0) {
		owner->journal_read += (unsigned int)n;
		keep_children(owner, from, owner->journal_read);
	}
	return n;
}

static bool journal_has_room(const struct owner *owner)
{
	return owner->journal_read - owner->journal->applied < HMM_JOURNAL_SLOTS - 2 * BATCH;
}

/*
 * Whoever is about to tell of a change is not off the CPU for longer than a driver may be. One that changes its map without end is left
 * to it when the ring is full; where there is no room for a descriptor, the next fork waits for that and all behind it does, too.
 */
void event_read_on(struct owner *owner)
{
	const int64_t end = clock_now() + owner->worker->engine->options.ack_timeout_ms * NS_PER_MS;
	int n, asked;

	while (map_is_changing(owner) && journal_has_room(owner) && clock_now() < end) {
		n = read_batch(owner, &asked);
		if (n < 0 && n != -EAGAIN)
			break;
		if (n <= 0)
			sched_yield();
	}
}

const struct uffd_msg *journal_message(struct owner *owner, uint64_t position)
{
	return slot_of(owner, position);
}

/* The hold stays up. */
static void read_later(struct owner *owner)
{
	owner->deferred_read = true;
	worker_alarm(owner->worker, owner->worker->now + 20 * NS_PER_US);
}

void event_read(struct owner *owner)
{
	int n, asked;

	do {
		uint64_t from = owner->journal_read;

		if (!order_hold(owner)) {
			/* An order is in its critical call: a few microseconds, or as long as a tracer likes. */
			read_later(owner);
			return;
		}
		owner->deferred_read = false;
		n = read_batch(owner, &asked);
		if (n > 0) {
			apply_batch(owner, from);
			/* Now: what goes on from here must not be undone by a replay. Faults need none. */
			__atomic_store_n(&owner->journal->applied, owner->journal_read, __ATOMIC_RELEASE);
		}
		if (!order_release_hold(owner))
			read_later(owner);
		if (n <= 0)
			break;
		/* What the events set free goes on before a fault could find the page empty. */
		owner_run(owner);
		serve_batch(owner, from, owner->journal_read);
	} while (n > 0);	/* behind fewer than asked for may stand a fork that there is no room for */
	/* No room for a child's descriptor: the fork waits in the queue, in front of other events, and nobody is told again. */
	if (n == -EMFILE || n == -ENFILE || n == -ENOMEM) {
		owner->deferred_read = true;
		worker_alarm(owner->worker, owner->worker->now + NS_PER_MS);
	}
}

/* Behind the last message that was read and perhaps not applied. */
static uint64_t journal_end(struct owner *owner)
{
	uint64_t end = owner->journal->applied;

	while (end - owner->journal->applied < HMM_JOURNAL_SLOTS && slot_of(owner, end)->event)
		end++;
	return end;
}

void journal_take_over(struct owner *owner)
{
	owner->journal_read = owner->journal_taken = journal_end(owner);
}

void journal_read_only(struct owner *owner)
{
	int asked;

	owner->journal_read = journal_end(owner);
	if (journal_has_room(owner))
		read_batch(owner, &asked);
}

void journal_replay(struct owner *owner)
{
	uint64_t from = owner->journal->applied;

	owner->journal_read = journal_end(owner);
	for (uint64_t n = from; n < owner->journal_read; n++) {
		if (slot_of(owner, n)->event != UFFD_EVENT_PAGEFAULT)
			apply(owner, from, n);
		__atomic_store_n(&owner->journal->applied, n + 1, __ATOMIC_RELEASE);
	}
	fork_recovered(owner);
}
