/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * residency.c - where an owner's pages are, for people and for drivers that
 * want windows: layout, exact runs, cells of a map. Runs on the owner's worker
 * and changes nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/owner.h"
#include "engine/worker.h"

#define RANGES_MAX	512
#define CELLS_MAX	1024

/* Which mappings a window can cover: what may be migrated, and coherent memory. */
static int layout(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_layout *message = (const void *)letter->message;
	uint64_t at = message->cursor;
	struct hmm_msg_layout_reply *reply;
	uint32_t n = 0;

	reply = letter_reply(letter, HMM_OP_LAYOUT_REPLY,
			     sizeof(*reply) + RANGES_MAX * sizeof(reply->ranges[0]));
	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	while (n < RANGES_MAX && at < HMM_VA_END) {
		struct segment segment;
		struct block *block;
		bool coherent;

		if (segment_at(owner, at, HMM_VA_END, &segment) || segment.end <= at)
			break;
		block = block_find(owner, at);
		coherent = block && page_state(block, page_index(at)) == HMM_PAGE_COHERENT;
		if (segment.result == HMM_PAGE_RESULT_MOVED || coherent) {
			struct hmm_record_range_info *range = &reply->ranges[n++];

			range->start = segment.start;
			range->end = segment.end;
			range->state = coherent ? HMM_PAGE_COHERENT : HMM_PAGE_INVALID;
			range->mirror = coherent ? block_mirror(block)->id : 0;
			range->pages = (segment.end - segment.start) >> HMM_PAGE_SHIFT;
		}
		at = segment.end;
	}
	reply->count = n;
	reply->more = n == RANGES_MAX;
	reply->header.size = (uint32_t)(sizeof(*reply) + n * sizeof(reply->ranges[0]));
	return 0;
}

/* The ledger says I of it: what is R is in the table alone. */
static enum hmm_page_state shown_state(const struct block *block, unsigned int i)
{
	return block_is_remote(block, i) ? HMM_PAGE_REMOTE : page_state(block, i);
}

static int ranges(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_ranges *message = (const void *)letter->message;
	uint64_t end = message->end && message->end < HMM_VA_END ? message->end : HMM_VA_END;
	uint64_t at = message->cursor;
	struct hmm_msg_ranges_reply *reply;
	struct hmm_record_range_info *last = NULL;
	struct block *block;
	uint32_t n = 0;

	reply = letter_reply(letter, HMM_OP_RANGES_REPLY,
			     sizeof(*reply) + RANGES_MAX * sizeof(reply->items[0]));
	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	while (at < end && (block = block_next(owner, at, end))) {
		if (at < block->addr)
			at = block->addr;
		for (; at < end && at < block->addr + HMM_BLOCK_SIZE; at += HMM_PAGE_SIZE) {
			enum hmm_page_state state = shown_state(block, page_index(at));
			struct mirror *mirror = block_mirror(block);
			uint32_t id = mirror ? mirror->id : 0;

			if (state == HMM_PAGE_INVALID)
				continue;
			if (last && last->end == at && last->state == (uint32_t)state &&
			    last->mirror == id) {
				last->end += HMM_PAGE_SIZE;
				last->pages++;
				continue;
			}
			if (n == RANGES_MAX)
				goto full;
			last = &reply->items[n++];
			last->start = at;
			last->end = at + HMM_PAGE_SIZE;
			last->state = (uint32_t)state;
			last->mirror = id;
			last->pages = 1;
		}
	}
	at = end;
full:
	reply->count = n;
	reply->more = at < end;
	reply->next = at;
	reply->header.size = (uint32_t)(sizeof(*reply) + n * sizeof(reply->items[0]));
	return 0;
}

static void count_page(const struct block *block, unsigned int i, struct hmm_record_run_info *cell)
{
	if (page_is_pending(block, i)) {
		cell->transit++;
		return;
	}
	switch (shown_state(block, i)) {
	case HMM_PAGE_INVALID:
		cell->invalid++;
		break;
	case HMM_PAGE_REMOTE:
		cell->remote++;
		break;
	case HMM_PAGE_SHARED:
		cell->shared++;
		break;
	case HMM_PAGE_DEVICE:
		cell->device++;
		break;
	case HMM_PAGE_COHERENT:
		cell->coherent++;
		break;
	case HMM_PAGE_ERROR:
		cell->error++;
		break;
	}
}

static int cells(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_cells *message = (const void *)letter->message;
	uint64_t pages = message->length >> HMM_PAGE_SHIFT, at = message->addr;
	uint64_t end = message->addr + message->length;
	struct hmm_msg_cells_reply *reply;
	uint32_t count = message->cells;
	struct block *block;

	if (!count || count > CELLS_MAX)
		return letter_fail(letter, -EINVAL, "%u cells: 1 to %u are possible", count, CELLS_MAX);
	if (count > pages)
		count = (uint32_t)pages;
	reply = letter_reply(letter, HMM_OP_CELLS_REPLY, sizeof(*reply) + count * sizeof(reply->items[0]));
	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	reply->count = count;
	for (uint32_t c = 0; c < count; c++)
		reply->items[c].invalid = (uint32_t)(pages * (c + 1) / count - pages * c / count);
	while (at < end && (block = block_next(owner, at, end))) {
		if (at < block->addr)
			at = block->addr;
		for (; at < end && at < block->addr + HMM_BLOCK_SIZE; at += HMM_PAGE_SIZE) {
			uint64_t page = (at - message->addr) >> HMM_PAGE_SHIFT;
			/* The inverse of how the cells were cut. */
			uint64_t c = ((page + 1) * count - 1) / pages;

			reply->items[c].invalid--;
			count_page(block, page_index(at), &reply->items[c]);
		}
	}
	return 0;
}

void residency_request(struct owner *owner, struct letter *letter)
{
	switch (letter->message->opcode) {
	case HMM_OP_LAYOUT:
		layout(owner, letter);
		break;
	case HMM_OP_RANGES:
		ranges(owner, letter);
		break;
	default:
		cells(owner, letter);
	}
	worker_reply(owner->worker, letter);
}
