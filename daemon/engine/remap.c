/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remap.c - mremap moved memory whose pages are on the device. A shadow's
 * offset is the address, so the bytes are copied to the shadow of the new
 * address; the pages stay D. Of one that is far only the number moves. Nothing is
 * asked of the owner's map, which may be changing again already.
 *
 * If the block at the new address is still in transit on behalf of what was
 * mapped there before, the page waits (graft.c).
 *
 * Runs on the owner's worker, while events are applied.
 */
#include "engine/remap.h"

#include "engine/graft.h"
#include "engine/owner.h"
#include "engine/protect.h"
#include "uapi.h"

struct move {
	struct owner *owner;
	uint64_t from, to, end;
	bool moved;		/* pages of a device */
	char bounce[HMM_PAGE_SIZE];
};

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

/* It had come home, and went along with its mapping: of what is on the device nothing can be there. */
static bool had_come_home(const struct block *block, unsigned int i, uint64_t to)
{
	uint64_t entry;

	return block->record->page[i] & HMM_PAGE_DOUBTFUL &&
	       kernel->pagemap_read(block->owner->pagemap, to, 1, &entry) == 0 && entry & (PM_PRESENT | PM_SWAP);
}

/* Before the move, whether or not its drivers have answered. */
static bool is_discarded(const struct block *block, unsigned int i)
{
	if (block_at_rest(block))
		return false;
	return pages_test(&block->dead, i) ||
	       (block->record->transit == HMM_TRANSIT_UNSHARING && page_is_pending(block, i));
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
		if ((state == HMM_PAGE_SHARED && !in_drop(block, i)) || had_come_home(block, i, to)) {
			/* It went along, protected; the copy stays behind and goes. */
			kernel->uffd_protect(owner->uffd, to, HMM_PAGE_SIZE, false);
			continue;
		}
		if (state == HMM_PAGE_COHERENT && block_at_rest(block))
			continue;
		if (page_is_far(block, i) && !is_discarded(block, i)) {
			graft_page(owner, to, mirror, block_far_number(block, i), NULL);
			block_forget_far(block, i);
			move->moved = true;
			continue;
		}
		bytes = page_bytes(block, i, move->bounce);
		if (!bytes)
			continue;
		graft_page(owner, to, mirror, HMM_FAR_NONE, bytes);
		move->moved = true;
	}
}

void remap_move(struct owner *owner, uint64_t from, uint64_t to, uint64_t length)
{
	struct move move = { .owner = owner, .from = from, .to = to, .end = from + length };

	move.moved = graft_move(owner, from, to, length);
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
	/* Its caller has gone on when the event was read, and may have protected them before they were here. */
	if (move.moved)
		protect_anew(owner, to, to + length);
}
