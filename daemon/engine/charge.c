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

#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"

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
	r = device_charge(device, (uint64_t)pages << HMM_PAGE_SHIFT);
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
	device_overcharge(device, (uint64_t)pages << HMM_PAGE_SHIFT);
	charged(block, pages);
}

void block_uncharge(struct block *block, unsigned int pages)
{
	struct mirror *mirror = block->charged_to;

	if (!mirror)
		return;
	device_uncharge(mirror->device, (uint64_t)pages << HMM_PAGE_SHIFT);
	block->charged -= pages;
	if (block->charged)
		return;
	if (block->kept)
		mirror->kept_blocks--;
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
		mirror->kept_blocks--;
		mirror->used_blocks++;
	} else {
		TAILQ_REMOVE(&mirror->use, block, use);
	}
	block->used = 0;
	TAILQ_INSERT_HEAD(&mirror->use, block, use);
}

void block_keep(struct block *block)
{
	if (!block->charged_to || block->kept)
		return;
	unlist(block);
	block->kept = true;
	block->charged_to->kept_blocks++;
}
