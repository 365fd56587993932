/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * charge.c - what a block is charged for, and in which order a mirror's charged
 * blocks were used. Runs on the owner's worker.
 *
 * A charged block is in its mirror's list, the one that was used longest ago in
 * front; a use moves it to the end, which is four stores to memory, however long
 * the list. hmmd sees a use when a block goes out, when a window touches what it
 * has not mapped, when a device reads or writes through hmmd. Coherent memory
 * never leaves and is not in the list.
 */
#include <assert.h>
#include <errno.h>

#include "engine/attribute.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"

/* ---- what its memory cgroup lets it have ---------------------------------------------- */

/* A look takes a tenth of a millisecond. Where there is much room it is far away: a sixteenth of that may move before the next. */
#define LIMIT_PAGES	((16ULL << 20) >> HMM_PAGE_SHIFT)
#define LIMIT_NS	(20 * NS_PER_MS)
#define LIMIT_FAR	(1ULL << 30)
#define LIMIT_FAR_NS	(100 * NS_PER_MS)
/* Beyond the margin that the kernel table keeps: twice what may move before the next look. */
#define LIMIT_NEAR	(32ULL << 20)

bool owner_near_limit(struct owner *owner, unsigned int pages)
{
	int64_t now = owner->worker->now;
	uint64_t room;
	char what[128];

	if (owner->limit_pages > pages && now < owner->limit_due) {
		owner->limit_pages -= pages;
		return owner->near_limit;
	}
	kernel->room(owner->pid, &room, what, sizeof(what));
	owner->limit_pages = (room >> HMM_PAGE_SHIFT) / 16 > LIMIT_PAGES ? (room >> HMM_PAGE_SHIFT) / 16 : LIMIT_PAGES;
	owner->limit_due = now + (room < LIMIT_FAR ? LIMIT_NS : LIMIT_FAR_NS);
	if ((room < LIMIT_NEAR) != owner->near_limit)
		log_debug("owner %u: %s memory cgroup's limit (%s)", owner->id,
			  owner->near_limit ? "no more near its" : "near its", what);
	owner->near_limit = room < LIMIT_NEAR;
	return owner->near_limit;
}

/* ---- on whose account ------------------------------------------------------------- */

static struct quota *quota_of(const struct owner *owner)
{
	return owner->worker->engine->options.quota;
}

/* Once for each time that it begins: a migration asks for many blocks. */
static void say_over_quota(struct owner *owner, const char *why)
{
	if (!owner->over_quota)
		log_warn("owner %u: %s", owner->id, why);
	owner->over_quota = true;
}

int mirror_charge(struct mirror *mirror, uint64_t bytes)
{
	struct owner *owner = mirror->owner;
	struct quota *quota = quota_of(owner);
	char why[200];
	int r;

	r = quota ? quota_charge(quota, owner->uid, QUOTA_MEMORY, bytes, why, sizeof(why)) : 0;
	if (r) {
		say_over_quota(owner, why);
		return r;
	}
	r = device_charge(mirror->device, bytes);
	if (r && quota)
		quota_release(quota, owner->uid, QUOTA_MEMORY, bytes);
	else if (bytes)
		owner->over_quota = false;
	return r;
}

void mirror_overcharge(struct mirror *mirror, uint64_t bytes)
{
	struct quota *quota = quota_of(mirror->owner);

	if (quota)
		quota_charge_anyway(quota, mirror->owner->uid, QUOTA_MEMORY, bytes);
	device_overcharge(mirror->device, bytes);
}

void mirror_uncharge(struct mirror *mirror, uint64_t bytes)
{
	struct quota *quota = quota_of(mirror->owner);

	device_uncharge(mirror->device, bytes);
	if (quota)
		quota_release(quota, mirror->owner->uid, QUOTA_MEMORY, bytes);
}

int owner_ask_quota(struct owner *owner, struct letter *letter, enum quota_kind kind, uint64_t bytes)
{
	struct quota *quota = quota_of(owner);
	char why[200];
	int r = quota ? quota_ask(quota, owner->uid, kind, bytes, why, sizeof(why)) : 0;

	return r ? letter_fail(letter, r, "%s", why) : 0;
}

int owner_promise_pins(struct owner *owner, struct letter *letter, uint64_t bytes, uint64_t *promise)
{
	struct quota *quota = quota_of(owner);
	char why[200];
	int r = quota ? quota_charge(quota, owner->uid, QUOTA_PINNED, bytes, why, sizeof(why)) : 0;

	if (r)
		return letter_fail(letter, r, "%s", why);
	owner->pinned += bytes;
	*promise += bytes;
	return 0;
}

/* What comes of a request was charged when that began, and is its promise's; what nobody asked for can't be refused (recovery, mremap). */
static void count_pinned(struct owner *owner, int64_t more, uint64_t *promise)
{
	struct quota *quota = quota_of(owner);

	if (promise && more > 0) {
		uint64_t kept = *promise < (uint64_t)more ? *promise : (uint64_t)more;

		*promise -= kept;
		more -= (int64_t)kept;
	}
	owner->pinned += (uint64_t)more;
	if (quota && more > 0)
		quota_charge_anyway(quota, owner->uid, QUOTA_PINNED, (uint64_t)more);
	else if (quota)
		quota_release(quota, owner->uid, QUOTA_PINNED, (uint64_t)-more);
}

void owner_break_promise(struct owner *owner, uint64_t *promise)
{
	count_pinned(owner, -(int64_t)*promise, NULL);
	*promise = 0;
}

void owner_count_pins(struct owner *owner, uint64_t *promise)
{
	int64_t more = (int64_t)(owner->attributes.pinned - owner->pinned_said);

	if (!more)
		return;
	owner->pinned_said = owner->attributes.pinned;
	count_pinned(owner, more, promise);
}

void owner_release_pins(struct owner *owner)
{
	count_pinned(owner, -(int64_t)owner->pinned, NULL);
}

/* ---- blocks ------------------------------------------------------------------------ */

static void enlist(struct block *block, struct mirror *mirror)
{
	block->charged_to = mirror;
	block->used = ++mirror->owner->worker->uses;
	TAILQ_INSERT_TAIL(&mirror->use, block, use);
	mirror->used_blocks++;
}

static void unlist(struct block *block)
{
	TAILQ_REMOVE(&block->charged_to->use, block, use);
	block->charged_to->used_blocks--;
}

/* A block is charged for all of its pages at most. */
static unsigned int chargeable(const struct block *block, unsigned int pages)
{
	return block->charged + pages > HMM_BLOCK_PAGES ? HMM_BLOCK_PAGES - block->charged : pages;
}

static void charged(struct block *block, unsigned int pages)
{
	block->charged += pages;
	if (!block->charged)
		return;
	if (!block->charged_to)
		enlist(block, block_mirror(block));
	else
		block_touch(block);
}

int block_charge(struct block *block, struct device *device, unsigned int pages)
{
	int r;

	assert(block_mirror(block) && block_mirror(block)->device == device);
	pages = chargeable(block, pages);
	r = mirror_charge(block_mirror(block), (uint64_t)pages << HMM_PAGE_SHIFT);
	if (!r)
		charged(block, pages);
	return r;
}

void block_overcharge(struct block *block, unsigned int pages)
{
	struct device *device = block_mirror(block)->device;

	if (!block_charge(block, device, pages))
		return;
	log_debug("owner %u: block %#lx exceeds the share of %s for a while", block->owner->id, block->addr,
		  device->name);
	pages = chargeable(block, pages);
	mirror_overcharge(block_mirror(block), (uint64_t)pages << HMM_PAGE_SHIFT);
	charged(block, pages);
}

static void unkeep(struct block *block)
{
	block->charged_to->kept_blocks--;
	count_pinned(block->owner, -(int64_t)HMM_BLOCK_SIZE, NULL);
}

void block_uncharge(struct block *block, unsigned int pages)
{
	struct mirror *mirror = block->charged_to;

	if (!mirror)
		return;
	mirror_uncharge(mirror, (uint64_t)pages << HMM_PAGE_SHIFT);
	block->charged -= pages;
	if (block->charged)
		return;
	if (block->kept)
		unkeep(block);
	else
		unlist(block);
	block->kept = false;
	block->charged_to = NULL;
}

void block_touch(struct block *block)
{
	struct mirror *mirror = block->charged_to;

	if (!mirror || block->kept)
		return;
	block->used = ++mirror->owner->worker->uses;
	TAILQ_REMOVE(&mirror->use, block, use);
	TAILQ_INSERT_TAIL(&mirror->use, block, use);
}

void block_cool(struct block *block)
{
	struct mirror *mirror = block->charged_to;

	if (!mirror)
		return;
	if (block->kept) {
		block->kept = false;
		unkeep(block);
		mirror->used_blocks++;
	} else {
		TAILQ_REMOVE(&mirror->use, block, use);
	}
	block->used = 0;
	TAILQ_INSERT_HEAD(&mirror->use, block, use);
}

void block_keep(struct block *block, uint64_t *promise)
{
	if (!block->charged_to || block->kept)
		return;
	unlist(block);
	block->kept = true;
	block->charged_to->kept_blocks++;
	count_pinned(block->owner, HMM_BLOCK_SIZE, promise);
}
