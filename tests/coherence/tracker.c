/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tracker.c - the owner's thread that brings the copies of a tracked mirror up to date, and asks
 * which pages were written, while everybody writes there.
 *
 * A copy holds what had been written before its sync began, as any read of the page itself would; and a page to
 * which something was written between two looks is told by the second. A page that is told and was not
 * written is no mistake.
 *
 * It holds the area's lock for reading: what may not be read for a moment is zeros in a copy.
 */
#include "board.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOOKED_AT 24U

struct tracker {
	struct thread_context *me;
	struct area *area;
	struct hmm_dirty *dirty;
	/* By a cell of the area: what had been begun when its page was told last. */
	uint32_t *begun;
};

static uint32_t pick_pages(struct tracker *tracker, uint32_t *pages)
{
	uint32_t offset = draw_below(&tracker->me->random, tracker->area->pages), left = tracker->area->pages - offset;

	*pages = 1 + draw_below(&tracker->me->random, left < LOOKED_AT ? left : LOOKED_AT);
	return tracker->area->first_page + offset;
}

static void sync_pages(struct tracker *tracker, uint32_t page, uint32_t pages)
{
	static struct sight sights[LOOKED_AT * PAGE_CELLS];
	struct thread_context *me = tracker->me;
	struct board *board = me->board;
	unsigned long address = (unsigned long)board_enter(board, page);
	const _Atomic uint64_t *copy;
	long result;

	board_begin(board, me->who, OP_SYNC, page, pages, 0, 0);
	for (uint32_t i = 0; i < pages * PAGE_CELLS; i++)
		sights[i] = board_look(board, page * PAGE_CELLS + i);
	result = hmm_mirror_sync(me->mirror, address, pages * PAGE_BYTES, 0, NULL);
	copy = hmm_mirror_copy(me->mirror, address);
	if (!copy)
		board_fail(board, me->who, "hmm_mirror_copy of page %u: %s", page, hmm_last_error());
	for (uint32_t i = 0; result >= 0 && i < pages * PAGE_CELLS; i++)
		board_judge(board, me->who, OP_SYNC, page * PAGE_CELLS + i, &sights[i], atomic_load(&copy[i]));
	/* Mappings that changed all the time. */
	if (result < 0 && result != -EBUSY)
		board_excused(board, me->who, "hmm_mirror_sync", result);
	board_done(board, me->who, OP_SYNC, result > 0);
	board_leave(board, page);
}

static void look_for_writes(struct tracker *tracker, uint32_t page, uint32_t pages)
{
	static uint32_t known[LOOKED_AT * PAGE_CELLS];
	struct thread_context *me = tracker->me;
	struct board *board = me->board;
	unsigned long address = (unsigned long)board_enter(board, page);
	uint32_t first = page * PAGE_CELLS, *begun = &tracker->begun[(page - tracker->area->first_page) * PAGE_CELLS];
	const struct sight nothing = { 0 };
	uint64_t told[1] = { 0 };
	long result;

	board_begin(board, me->who, OP_DIRTY, page, pages, 0, 0);
	for (uint32_t i = 0; i < pages * PAGE_CELLS; i++)
		known[i] = board_known(board, first + i);
	result = hmm_dirty_read(tracker->dirty, address, pages * PAGE_BYTES, HMM_DIRTY_CLEAR, told, NULL);
	for (uint32_t i = 0; result >= 0 && i < pages * PAGE_CELLS; i++) {
		if (known[i] > begun[i] && !(told[0] >> i / PAGE_CELLS & 1))
			board_violation(board, me->who, OP_DIRTY, first + i, &nothing, known[i],
					"written since the last look, and not told");
		begun[i] = board_begun(board, first + i);
	}
	if (result < 0)
		board_excused(board, me->who, "hmm_dirty_read", result);
	board_done(board, me->who, OP_DIRTY, result > 0);
	board_leave(board, page);
}

void *tracker_thread(void *context)
{
	struct thread_context *me = context;
	struct board *board = me->board;
	struct tracker tracker = { .me = me };
	uint32_t page, pages;
	int error;

	for (uint32_t i = 0; i < board->n_areas; i++)
		if (board->areas[i].kind == AREA_TRACKED)
			tracker.area = &board->areas[i];
	tracker.begun = calloc(tracker.area->pages * PAGE_CELLS, sizeof(*tracker.begun));
	if (!tracker.begun)
		board_fail(board, me->who, "no memory");
	error = hmm_dirty_start(me->hmm, atomic_load(&tracker.area->base), tracker.area->pages * PAGE_BYTES, 0, &tracker.dirty);
	if (error)
		board_fail(board, me->who, "hmm_dirty_start: %s (%s)", strerror(-error), hmm_last_error());
	while (!board_stopped(board)) {
		page = pick_pages(&tracker, &pages);
		if (draw_below(&me->random, 2))
			sync_pages(&tracker, page, pages);
		else
			look_for_writes(&tracker, page, pages);
		pause_us(draw_below(&me->random, 2000));
	}
	for (uint32_t done = 0; done < tracker.area->pages; done += pages) {
		pages = tracker.area->pages - done < LOOKED_AT ? tracker.area->pages - done : LOOKED_AT;
		sync_pages(&tracker, tracker.area->first_page + done, pages);
	}
	hmm_dirty_stop(tracker.dirty);
	free(tracker.begun);
	return NULL;
}
