/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * evict.c - making room on a device that is full. Runs on workers.
 *
 * A device may hold blocks of owners of several workers, and a block is its
 * worker's alone. So room is made in rounds. Who finds no room begins one, or
 * joins the one that runs, and parks: the round's bytes are noted with the device,
 * and every worker's bell is rung. Each worker does its part: it takes blocks from
 * the cold end of its own mirrors, in the order that policy says, brings them home
 * (reason EVICT) or, where they are only copies of what another device holds, gives
 * them back, and stops when the bytes are found or none of its blocks is left. The last
 * part to end ends the round, and whoever waited tries its charge again.
 *
 * First only those blocks go whose drivers need not wait for their devices
 * (blockable is false); when there is no other one left, all are asked once more,
 * and then it is an order.
 *
 * Nobody waits for a lock over anything but a few loads and stores: what a round
 * is about lies in struct room, under the registry's lock. A task that waits has
 * neither a slot nor a block in transit, so two owners that make room for each other can't
 * hold each other up. A migration never evicts what it has brought itself: blocks of
 * journeys that are under way stay, and so does what is in transit. Where only
 * such are left the waiter comes back when a migration has ended, or a little later.
 * It does not come back for ever: what waits has its answer in the end.
 *
 * What can fail: memory for a part, which then counts as one that found nothing.
 */
#include "engine/evict.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "engine/attribute.h"
#include "engine/copies.h"
#include "engine/worker.h"
#include "log.h"

/* Candidates that are looked at together: the coldest ones of each mirror. */
#define LOOK_MAX	256U
/* Blocks that a part brings home at a time: more than slots would only wait for those. */
#define AT_A_TIME	4U
/* How often one waiter asks, and how often it comes back for what was busy: after 1, 2, 4 ... 128 ms. */
#define TRIES_MAX	32U
#define DELAYS_MAX	8U

/* A worker's part in a round. */
struct part {
	struct worker *worker;
	struct device *device;		/* held */
	unsigned int running;
	bool insisting;			/* the second pass: drivers have to wait */
	uint64_t pass;
	uint64_t freed;
	struct obstacles seen;		/* by the last look */
	struct evict_candidate victim[LOOK_MAX];
	unsigned int victims, next;
};

/* A block on its way home, or copies of it that are given back. */
struct eviction {
	struct part *part;
	uint64_t addr;
	uint32_t mirror;		/* that has the copies; 0: the block itself */
	uint64_t claimed;		/* bytes */
	unsigned int charged, pages;	/* when it began */
};

static uint64_t bit_of(const struct worker *worker)
{
	return 1ULL << worker->index;
}

static uint64_t everybody(const struct engine *engine)
{
	return engine->started < 64 ? (1ULL << engine->started) - 1 : UINT64_MAX;
}

static bool round_runs(const struct room *room)
{
	return room->asked || room->busy;
}

/* Never fails: there is nothing to allocate. */
static void ring(struct engine *engine, uint64_t workers)
{
	for (unsigned int i = 0; i < engine->started; i++) {
		if (!(workers >> i & 1))
			continue;
		atomic_store(&engine->workers[i].rung, true);
		eventfd_write(engine->workers[i].inbox.eventfd, 1);
	}
}

static void lock(struct worker *worker)
{
	pthread_mutex_lock(&worker->engine->devices.lock);
}

static void unlock(struct worker *worker)
{
	pthread_mutex_unlock(&worker->engine->devices.lock);
}

/* ---- rounds --------------------------------------------------------------------------- */

static struct evict_marks marks_of(const struct worker *worker)
{
	const struct engine_options *options = &worker->engine->options;

	return (struct evict_marks){ .high = options->evict_high, .low = options->evict_low };
}

/* Under the lock. Return: whose bells have to be rung. */
static uint64_t round_begin(struct worker *worker, struct device *device, uint64_t wanted)
{
	struct evict_marks marks = marks_of(worker);
	struct room *room = &device->room;

	room->round++;
	room->wanted = evict_amount(&marks, device->size, atomic_load(&device->used), wanted);
	/* Some room came in this moment; it may be somebody else's in the next. */
	if (!room->wanted)
		room->wanted = wanted;
	room->freed = 0;
	room->seen = (struct obstacles){ 0 };
	room->asked = everybody(worker->engine);
	return room->asked;
}

static bool is_high(const struct worker *worker, const struct device *device)
{
	struct evict_marks marks = marks_of(worker);

	/* What passes through a shadow to the driver's memory does not stay in the way. */
	return !device_is_far(device) && evict_is_high(&marks, device->size, atomic_load(&device->used));
}

/* ---- a worker's part: choosing -------------------------------------------------------- */

static unsigned int shadow_pages(const struct block *block)
{
	return block_count(block, HMM_PAGE_DEVICE) + block_count(block, HMM_PAGE_SHARED);
}

static void note_journey(struct obstacles *seen, uint64_t journey)
{
	seen->many |= seen->journey && seen->journey != journey;
	seen->journey = journey;
}

static bool is_being_brought(const struct block *block)
{
	return block->brought && migrate_is_under_way(block->owner, block->brought);
}

/* False: it stays, for now or in any case. */
static bool may_go(struct part *part, struct block *block)
{
	struct owner *owner = block->owner;

	if (block_is_pinned(block)) {
		part->seen.pinned += (uint64_t)block->charged << HMM_PAGE_SHIFT;
		return false;
	}
	if (is_being_brought(block)) {
		note_journey(&part->seen, block->brought);
		return false;
	}
	if (!block_at_rest(block) || block->charged_to->leaving || owner->closing) {
		part->seen.passing = true;
		return false;
	}
	/* A driver that would rather not wait may be in the middle of an operation on such a page. */
	if (!part->insisting && exclusive_any(block))
		return false;
	return block->passed != part->pass;
}

/* The same for copies. Whoever brings or holds the block has nothing to do with them. */
static bool may_be_returned(struct part *part, const struct copy *copy)
{
	if (block_is_pinned_to(copy->block, copy->mirror)) {
		part->seen.pinned += (uint64_t)copies_charged(copy) << HMM_PAGE_SHIFT;
		return false;
	}
	if (!block_at_rest(copy->block) || block_mirror(copy->block) == copy->mirror || copy->mirror->leaving ||
	    copy->block->owner->closing) {
		part->seen.passing = true;
		return false;
	}
	return copy->passed != part->pass;
}

/* Return: whether it is one. */
static bool look_at_block(struct part *part, struct block *block)
{
	if (!may_go(part, block)) {
		/* Out of the way of those behind it, next time. What is only busy keeps its place among them. */
		if (block_is_pinned(block) || is_being_brought(block))
			block_touch(block);
		return false;
	}
	part->victim[part->victims++] = (struct evict_candidate){
		.owner = block->owner->id,
		.addr = block->addr,
		.used = block->used,
		.priority = block_evict_priority(block),
		.unused = !block_holds_pages(block),
		.discarded = block_is_discarded(block),
		.copies = !block_count(block, HMM_PAGE_DEVICE),
	};
	return true;
}

static bool look_at_copy(struct part *part, const struct copy *copy)
{
	if (!may_be_returned(part, copy))
		return false;
	part->victim[part->victims++] = (struct evict_candidate){
		.owner = copy->mirror->owner->id,
		.mirror = copy->mirror->id,
		.addr = copy->block->addr,
		.used = copy->used,
		.priority = block_evict_priority(copy->block),
		.unused = pages_empty(&copy->pages),
	};
	return true;
}

/* Both of its lists from the cold end, whichever has the colder one. */
static void look_at_mirror(struct part *part, struct mirror *mirror, unsigned int share)
{
	struct block *block = TAILQ_FIRST(&mirror->use);
	const struct copy *copy = TAILQ_FIRST(&mirror->copies);
	unsigned int left = mirror->used_blocks;

	part->seen.pinned += (uint64_t)mirror->kept_blocks << HMM_BLOCK_SHIFT;
	while (share && part->victims < LOOK_MAX && (left || copy)) {
		if (left && (!copy || block->used <= copy->used)) {
			struct block *next = TAILQ_NEXT(block, use);

			share -= look_at_block(part, block);
			block = next;
			left--;
		} else {
			share -= look_at_copy(part, copy);
			copy = TAILQ_NEXT(copy, of_mirror);
		}
	}
}

/* Every mirror of the device here: counted (@share 0), or looked at. */
static unsigned int look_at_mirrors(struct part *part, unsigned int share)
{
	unsigned int mirrors = 0;
	struct owner *owner;

	TAILQ_FOREACH(owner, &part->worker->owners, link) {
		if (owner->gone || owner->recovering) {
			part->seen.passing |= owner->recovering;
			continue;
		}
		for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
			struct mirror *mirror = owner->mirror[i];

			if (!mirror || mirror->device != part->device)
				continue;
			mirrors++;
			if (share)
				look_at_mirror(part, mirror, share);
		}
	}
	return mirrors;
}

static bool look(struct part *part)
{
	unsigned int mirrors;

	part->seen = (struct obstacles){ 0 };
	mirrors = look_at_mirrors(part, 0);
	part->victims = part->next = 0;
	if (mirrors)
		look_at_mirrors(part, mirrors < LOOK_MAX ? LOOK_MAX / mirrors : 1);
	part->victims = evict_choose(part->victim, part->victims);
	return part->victims;
}

/* ---- a worker's part: taking ------------------------------------------------------------ */

/* Of what the round wants; 0: it wants no more. */
static uint64_t claim(struct part *part, uint64_t bytes)
{
	struct room *room = &part->device->room;

	lock(part->worker);
	if (bytes > room->wanted)
		bytes = room->wanted;
	room->wanted -= bytes;
	unlock(part->worker);
	return bytes;
}

static void give_back(struct part *part, uint64_t bytes)
{
	lock(part->worker);
	part->device->room.wanted += bytes;
	unlock(part->worker);
}

static bool is_wanted(struct part *part)
{
	bool wanted;

	lock(part->worker);
	wanted = part->device->room.wanted;
	unlock(part->worker);
	return wanted;
}

static void go_on(struct part *part);

static struct copy *copy_of(struct owner *owner, const struct block *block, uint32_t mirror_id)
{
	const struct mirror *mirror = mirror_by_id(owner, mirror_id);

	return block && mirror ? copies_find(block, mirror) : NULL;
}

/* What it was charged for and is not any more. */
static void settle_claim(struct part *part, const struct eviction *eviction, unsigned int left)
{
	uint64_t freed = eviction->charged > left ?
			 (uint64_t)(eviction->charged - left) << HMM_PAGE_SHIFT : 0;

	part->freed += freed;
	if (freed < eviction->claimed)
		give_back(part, eviction->claimed - freed);
}

static unsigned int block_charges(const struct block *block)
{
	return block && block->charged_to ? block->charged : 0;
}

static void given_back(struct owner *owner, void *data, uint64_t unused)
{
	struct eviction *eviction = data;
	struct part *part = eviction->part;
	const struct copy *copy = copy_of(owner, block_find(owner, eviction->addr), eviction->mirror);

	(void)unused;
	settle_claim(part, eviction, copy ? copies_charged(copy) : 0);
	free(eviction);
	part->running--;
	go_on(part);
}

static void evicted(struct owner *owner, void *data, uint64_t unused)
{
	struct eviction *eviction = data;
	struct part *part = eviction->part;
	struct block *block = block_find(owner, eviction->addr);
	unsigned int left;

	(void)unused;
	if (block && block_at_rest(block) && !block_holds_pages(block))
		block_punch_stale(block);
	left = block ? shadow_pages(block) : 0;
	if (!left && !owner->gone) {
		owner_count(owner, COUNTER_EVICTIONS, 1);
		owner_count(owner, COUNTER_PAGES_EVICTED, eviction->pages);
		atomic_fetch_add(&part->device->pool->evicted,
				 (uint64_t)eviction->pages << HMM_PAGE_SHIFT);
	}
	/* Refused: its driver uses it. */
	if (left && !owner->gone)
		block_touch(block);
	settle_claim(part, eviction, block_charges(block));
	free(eviction);
	part->running--;
	go_on(part);
}

static void take_unused(struct part *part, struct block *block)
{
	struct eviction none = { .charged = block->charged };

	none.claimed = claim(part, (uint64_t)block->charged << HMM_PAGE_SHIFT);
	block_punch_stale(block);
	settle_claim(part, &none, block_charges(block));
}

static void take_unused_copy(struct part *part, struct copy *copy)
{
	struct eviction none = { .charged = copies_charged(copy) };
	const struct block *block = copy->block;
	uint32_t mirror = copy->mirror->id;

	none.claimed = claim(part, (uint64_t)none.charged << HMM_PAGE_SHIFT);
	copies_tidy(copy);
	copy = copy_of(block->owner, block, mirror);
	settle_claim(part, &none, copy ? copies_charged(copy) : 0);
}

/* NULL: out of memory. What is charged for is claimed. */
static struct eviction *eviction_new(struct part *part, uint64_t addr, unsigned int charged)
{
	struct eviction *eviction = calloc(1, sizeof(*eviction));

	if (!eviction)
		return NULL;
	eviction->part = part;
	eviction->addr = addr;
	eviction->charged = charged;
	eviction->claimed = claim(part, (uint64_t)charged << HMM_PAGE_SHIFT);
	return eviction;
}

/* @began: its job is on its way; else nothing has come of it. */
static void eviction_begun(struct eviction *eviction, bool began)
{
	struct part *part = eviction->part;

	if (!began) {
		give_back(part, eviction->claimed);
		free(eviction);
		return;
	}
	part->running++;
	/* Another owner's turn of this worker may be over. */
	worker_alarm(part->worker, part->worker->now);
}

static void take_copy(struct part *part, struct copy *copy)
{
	struct eviction *eviction;

	copy->passed = part->pass;
	if (pages_empty(&copy->pages)) {
		take_unused_copy(part, copy);
		return;
	}
	eviction = eviction_new(part, copy->block->addr, copies_charged(copy));
	if (!eviction)
		return;
	eviction->mirror = copy->mirror->id;
	eviction_begun(eviction, eviction->claimed &&
					 !migrate_return(copy, !part->insisting, given_back, eviction));
}

static void take_block(struct part *part, struct block *block)
{
	struct eviction *eviction;

	block->passed = part->pass;
	if (!block_holds_pages(block)) {
		take_unused(part, block);
		return;
	}
	eviction = eviction_new(part, block->addr, block->charged);
	if (!eviction)
		return;
	eviction->pages = shadow_pages(block);
	eviction_begun(eviction, eviction->claimed &&
					 !migrate_evict(block, part->device, !part->insisting, evicted, eviction));
}

static void take(struct part *part, const struct evict_candidate *candidate)
{
	struct owner *owner = owner_by_id(part->worker, candidate->owner);
	struct block *block = owner ? block_find(owner, candidate->addr) : NULL;
	struct copy *copy;

	if (!block || owner->gone)
		return;
	if (candidate->mirror) {
		copy = copy_of(owner, block, candidate->mirror);
		if (copy && copy->mirror->device == part->device && may_be_returned(part, copy) &&
		    copy->used == candidate->used)
			take_copy(part, copy);
		return;
	}
	/* Since it was chosen it may have gone, or been used again. */
	if (block->charged_to && block->charged_to->device == part->device && !block->kept &&
	    may_go(part, block) && block->used == candidate->used)
		take_block(part, block);
}

static void merge(struct obstacles *all, const struct obstacles *seen)
{
	all->pinned += seen->pinned;
	all->passing |= seen->passing;
	all->many |= seen->many;
	if (seen->journey)
		note_journey(all, seen->journey);
}

/* The last one ends the round. */
static void end(struct worker *worker, struct device *device, uint64_t freed, const struct obstacles *seen)
{
	struct engine *engine = worker->engine;
	struct room *room = &device->room;
	uint64_t bells = 0;

	lock(worker);
	room->busy &= ~bit_of(worker);
	room->freed += freed;
	merge(&room->seen, seen);
	if (!round_runs(room)) {
		room->ended = room->round;
		bells = room->waiting;
		room->waiting = 0;
		if (room->freed && is_high(worker, device))
			bells |= round_begin(worker, device, 0);
	}
	unlock(worker);
	ring(engine, bells);
	device_unuse(&engine->devices, device);
}

static void go_on(struct part *part)
{
	while (part->running < AT_A_TIME && is_wanted(part)) {
		if (part->next < part->victims) {
			take(part, &part->victim[part->next++]);
		} else if (!look(part)) {
			/* What is under way may be refused yet: then it is another one's turn. */
			if (part->running || part->insisting)
				break;
			part->insisting = true;
			part->pass = ++part->worker->passes;
		}
	}
	if (part->running)
		return;
	end(part->worker, part->device, part->freed, &part->seen);
	free(part);
}

static void begin(struct worker *worker, struct device *device)
{
	const struct obstacles unknown = { .passing = true };
	struct part *part = calloc(1, sizeof(*part));

	if (!part) {
		log_error("out of memory: a worker makes no room on device %s", device->name);
		end(worker, device, 0, &unknown);
		return;
	}
	part->worker = worker;
	part->device = device;
	part->pass = ++worker->passes;
	go_on(part);
}

/* A device that wants this worker's part, held; or NULL. */
static struct device *asked(struct worker *worker)
{
	struct device *device;

	lock(worker);
	TAILQ_FOREACH(device, &worker->engine->devices.list, link) {
		if (!(device->room.asked & bit_of(worker)))
			continue;
		device->room.asked &= ~bit_of(worker);
		device->room.busy |= bit_of(worker);
		device->mirrors++;
		break;
	}
	unlock(worker);
	return device;
}

void evict_released(struct worker *worker, struct device *device)
{
	struct room *room = &device->room;
	uint64_t bells;

	lock(worker);
	room->released++;
	bells = room->later;
	room->later = 0;
	/* A round that runs ends by looking again. */
	if (!round_runs(room) && is_high(worker, device))
		bells |= round_begin(worker, device, 0);
	unlock(worker);
	ring(worker->engine, bells);
}

/* ---- who waits ----------------------------------------------------------------------------------- */

/* What stood in the way of the round that ended may not for long. */
static bool may_pass(const struct obstacles *seen, uint64_t journey)
{
	return seen->passing || seen->many || (seen->journey && seen->journey != journey);
}

static void park(struct owner *owner, struct room_wait *wait)
{
	TAILQ_INSERT_TAIL(&owner->room_waiters, wait, link);
	if (!wait->round)
		worker_alarm(owner->worker, wait->due);
}

int evict_wait(struct owner *owner, struct device *device, uint64_t bytes, uint64_t journey,
	       struct task *task, struct room_wait *wait)
{
	struct worker *worker = owner->worker;
	struct room *room = &device->room;
	bool fruitless, passing;
	uint64_t bells = 0;

	if (bytes > device->size)
		return -ENOSPC;
	if (wait->tries++ == TRIES_MAX)
		return -EAGAIN;
	wait->task = task;
	wait->device = device;
	lock(worker);
	fruitless = wait->round && !room->freed && !round_runs(room);
	passing = may_pass(&room->seen, journey);
	wait->round = 0;
	if (!fruitless) {
		if (!round_runs(room))
			bells = round_begin(worker, device, bytes);
		else
			room->wanted += bytes;
		room->waiting |= bit_of(worker);
		wait->round = room->round;
	} else if (passing && wait->delays < DELAYS_MAX) {
		room->later |= bit_of(worker);
		wait->released = room->released;
	}
	unlock(worker);
	if (fruitless && !passing)
		return -ENOSPC;
	if (fruitless && wait->delays == DELAYS_MAX)
		return -EAGAIN;
	if (fruitless)
		wait->due = worker->now + (NS_PER_MS << wait->delays++);
	park(owner, wait);
	ring(worker->engine, bells);
	return 0;
}

static void go(struct owner *owner, struct room_wait *wait)
{
	TAILQ_REMOVE(&owner->room_waiters, wait, link);
	owner_queue(owner, wait->task);
}

/* What it waits for has come, without its delay being over. */
static bool has_come(struct worker *worker, struct room_wait *wait)
{
	const struct room *room = &wait->device->room;
	bool come;

	lock(worker);
	come = wait->round ? room->ended >= wait->round : room->released != wait->released;
	unlock(worker);
	if (come && !wait->round)
		wait->delays--;
	return come;
}

static void wake(struct owner *owner)
{
	struct room_wait *wait, *next;

	for (wait = TAILQ_FIRST(&owner->room_waiters); wait; wait = next) {
		next = TAILQ_NEXT(wait, link);
		if (has_come(owner->worker, wait))
			go(owner, wait);
	}
}

void evict_look(struct worker *worker)
{
	struct device *device;
	struct owner *owner;

	if (!atomic_exchange(&worker->rung, false))
		return;
	while ((device = asked(worker)))
		begin(worker, device);
	TAILQ_FOREACH(owner, &worker->owners, link)
		wake(owner);
}

void evict_tick(struct owner *owner, int64_t now)
{
	struct room_wait *wait, *next;

	for (wait = TAILQ_FIRST(&owner->room_waiters); wait; wait = next) {
		next = TAILQ_NEXT(wait, link);
		if (wait->round)
			continue;
		if (wait->due <= now)
			go(owner, wait);
		else
			worker_alarm(owner->worker, wait->due);
	}
}

void evict_wait_no_more(struct owner *owner)
{
	struct room_wait *wait;

	while ((wait = TAILQ_FIRST(&owner->room_waiters)))
		go(owner, wait);
}

void evict_explain(struct worker *worker, struct device *device, uint64_t wanted, char *text, size_t size)
{
	uint64_t pinned;

	lock(worker);
	pinned = device->room.seen.pinned;
	unlock(worker);
	snprintf(text, size,
		 "device %s has %lu bytes, of which %lu are in use, %lu of those pinned or coherent; %lu are wanted",
		 device->name, device->size, atomic_load(&device->used), pinned, wanted);
}
