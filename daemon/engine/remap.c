/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remap.c - mremap moved memory whose pages are on the device. A shadow's
 * offset is the address, so the bytes are copied to the shadow of the new
 * address; the pages stay D. Of one that is far only the number moves. Nothing is
 * asked of the owner's map, which may be changing again already.
 *
 * If the block at the new address is still in transit on behalf of what was
 * mapped there before, the page waits, parked in front of any fault on it.
 *
 * Runs on the owner's worker, while events are applied.
 */
#include "engine/remap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/owner.h"
#include "log.h"
#include "uapi.h"

/* A page on its way to its new address. */
struct graft {
	struct task task;
	struct owner *owner;
	uint64_t addr;
	unsigned int mirror;
	uint32_t number;		/* of the driver's memory: it is far; or HMM_FAR_NONE */
	char bytes[HMM_PAGE_SIZE];
};

struct move {
	struct owner *owner;
	uint64_t from, to, end;
	char bounce[HMM_PAGE_SIZE];
};

static void graft_run(struct task *task);

static int install(struct owner *owner, uint64_t addr, unsigned int mirror_index, const void *bytes)
{
	struct block *block = block_get(owner, addr);
	struct mirror *mirror;
	struct shadow *shadow;
	int r;

	if (!block)
		return -ENOMEM;
	if (block->record->mirror == HMM_NO_MIRROR)
		block->record->mirror = (uint16_t)mirror_index;
	mirror = block_mirror(block);
	r = mirror ? mirror_shadow(mirror, addr, &shadow) : -ENODEV;
	if (r)
		return r;
	/* Over the quota if need be: the bytes exist, the old place is freed right after. */
	if (block_charge(block, mirror->device, 1))
		log_debug("owner %u: a remapped page exceeds the pool for a moment", owner->id);
	/* Zeros may be seen before the bytes are: not by a window. */
	if (block_has_window(block))
		window_guard(block);
	r = shadow_store(shadow, addr, bytes);
	if (r)
		return r;
	block_note_armed(block, page_index(addr), page_index(addr) + 1);
	block_set_state(block, page_index(addr), page_index(addr) + 1, HMM_PAGE_DEVICE);
	block->touched = true;
	return 0;
}

/* A block has one holder: among another device's pages this one can't be known. */
static void install_far(struct owner *owner, uint64_t addr, unsigned int mirror_index, uint32_t number)
{
	struct mirror *mirror = owner->mirror[mirror_index];
	struct block *block = block_get(owner, addr);
	unsigned int i = page_index(addr);

	if (!block)
		return;
	block_note_armed(block, i, i + 1);
	if (block->record->mirror == HMM_NO_MIRROR)
		block->record->mirror = (uint16_t)mirror_index;
	if (mirror && block->record->mirror == mirror_index) {
		block_set_far(block, i, number);
		block->touched = true;
		return;
	}
	log_error("owner %u: page %#lx lost in mremap: it is in memory that only a driver reaches, and its new block is another device's",
		  owner->id, addr);
	if (mirror)
		far_release(mirror, number);
	far_lose(block, i);
}

static void graft(struct owner *owner, uint64_t addr, unsigned int mirror, uint32_t number, const void *bytes)
{
	struct block *block = block_get(owner, addr);
	struct graft *waiting;
	int r;

	/* Only a page that the transit is about has to wait for it. */
	if (block && (block_at_rest(block) || !(block->record->pending[page_index(addr) / 64] >>
						(page_index(addr) % 64) & 1))) {
		if (number != HMM_FAR_NONE) {
			install_far(owner, addr, mirror, number);
			return;
		}
		r = install(owner, addr, mirror, bytes);
		if (r)
			log_error("owner %u: page %#lx lost in mremap: %s", owner->id, addr, strerror(-r));
		return;
	}
	waiting = block ? malloc(sizeof(*waiting)) : NULL;
	if (!waiting) {
		log_error("owner %u: page %#lx lost in mremap: out of memory", owner->id, addr);
		return;
	}
	waiting->task.run = graft_run;
	waiting->owner = owner;
	waiting->addr = addr;
	waiting->mirror = mirror;
	waiting->number = number;
	if (number == HMM_FAR_NONE)
		memcpy(waiting->bytes, bytes, HMM_PAGE_SIZE);
	block_park(block, &waiting->task);
}

static void graft_run(struct task *task)
{
	struct graft *waiting = (struct graft *)task;

	if (!waiting->owner->gone)
		graft(waiting->owner, waiting->addr, waiting->mirror, waiting->number, waiting->bytes);
	free(waiting);
}

/* An S page that is leaving the CPU may lie in the slot already: then it did not go along. */
static bool in_drop(const struct block *block, unsigned int i)
{
	uint64_t entry;

	return block->order && block->order->kind == HMM_ORDER_DROP &&
	       pages_test(&block->order->want, i) &&
	       kernel->pagemap_read(block->owner->pagemap,
				    slot_addr(block->owner, block->order->slot) + (uint64_t)i * HMM_PAGE_SIZE,
				    1, &entry) == 0 &&
	       entry & (PM_PRESENT | PM_SWAP);
}

/* Before the move, whether or not its drivers have answered. */
static bool is_discarded(const struct block *block, unsigned int i)
{
	if (block_at_rest(block))
		return false;
	return pages_test(&block->dead, i) ||
	       (block->record->transit == HMM_TRANSIT_UNSHARING && block->record->pending[i / 64] >> (i % 64) & 1);
}

static void move_block(struct block *block, void *data)
{
	struct move *move = data;
	struct owner *owner = move->owner;
	unsigned int mirror = block->record->mirror;

	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		uint64_t addr = page_addr(block, i), to = addr - move->from + move->to;
		enum hmm_page_state state = page_state(block, i);
		const void *bytes;

		if (addr < move->from || addr >= move->end)
			continue;
		if (state == HMM_PAGE_SHARED && !in_drop(block, i)) {
			/* It went along, protected; the copy stays behind and goes. */
			kernel->uffd_protect(owner->uffd, to, HMM_PAGE_SIZE, false);
			continue;
		}
		if (state == HMM_PAGE_COHERENT && block_at_rest(block))
			continue;
		if (page_is_far(block, i) && !is_discarded(block, i)) {
			graft(owner, to, mirror, block_far_number(block, i), NULL);
			block_forget_far(block, i);
			continue;
		}
		bytes = page_bytes(block, i, move->bounce);
		if (bytes)
			graft(owner, to, mirror, HMM_FAR_NONE, bytes);
	}
}

void remap_move(struct owner *owner, uint64_t from, uint64_t to, uint64_t length)
{
	struct move move = { .owner = owner, .from = from, .to = to, .end = from + length };

	block_for_each(owner, from, from + length, move_block, &move);
	/* Armed along with its mapping, even where nothing was on the device. */
	for (uint64_t at = to & ~(HMM_BLOCK_SIZE - 1); at < to + length; at += HMM_BLOCK_SIZE) {
		struct block *block = block_get(owner, at);

		if (!block)
			continue;
		block_note_armed(block, to > at ? page_index(to) : 0,
				 to + length < at + HMM_BLOCK_SIZE ? page_index(to + length) :
								     HMM_BLOCK_PAGES);
		if (block_at_rest(block))
			block_settle_later(block);
	}
}
