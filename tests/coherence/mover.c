/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mover.c - the owner's thread that sends random ranges to the device and
 * home, in the foreground and by prefetch, and now and then excludes a range
 * and includes it again, makes one coherent and ordinary again, or says
 * something of one. (Not DISCARD, which is for the one thread that
 * discards, nor UNPINNED, which one engine depends on.)
 *
 * It takes no lock: a range may be unmapped or moved under its call, and then
 * its pages are reported as holes or as changed, never damaged.
 */
#include "board.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct journey {
	unsigned long address;
	uint32_t page, pages;
};

static struct journey pick_journey(struct thread_context *me)
{
	struct board *board = me->board;
	uint32_t page = board_pick_page(board, &me->random);
	struct area *area = board_area(board, page);
	uint32_t offset = page - area->first_page, pages;

	switch (draw_below(&me->random, 4)) {
	case 0:		/* one page, or a few */
		pages = 1 + draw_below(&me->random, 4);
		break;
	case 1:		/* part of a block */
		pages = 1 + draw_below(&me->random, 200);
		break;
	case 2:		/* the block around it */
		offset &= ~511U;
		pages = 512;
		break;
	default:	/* much */
		offset = draw_below(&me->random, area->pages);
		pages = 1 + draw_below(&me->random, area->pages);
		break;
	}
	if (pages > area->pages - offset)
		pages = area->pages - offset;
	return (struct journey){
		.address = atomic_load(&area->base) + offset * PAGE_BYTES,
		.page = area->first_page + offset, .pages = pages,
	};
}

static void migrate(struct thread_context *me, enum hmm_target target, uint8_t *results)
{
	enum operation operation = target == HMM_DEVICE ? OP_OUT : OP_HOME;
	struct journey journey = pick_journey(me);
	struct hmm_migrate_report report = { 0 };
	struct board *board = me->board;
	uint64_t flags = target == HMM_DEVICE && !draw_below(&me->random, 4) ? HMM_MIGRATE_POPULATE : 0;
	long there;

	board_begin(board, me->who, operation, journey.page, journey.pages, 0, flags);
	memset(results, 0xff, journey.pages);
	there = hmm_migrate(me->mirror, journey.address, journey.pages * PAGE_BYTES, target, flags,
			    results, &report);
	if (there < 0) {
		board_excused(board, me->who, "hmm_migrate", there);
		board_done(board, me->who, operation, false);
		return;
	}
	if (report.pages != journey.pages || report.moved + report.already != (uint64_t)there ||
	    report.moved + report.already + report.failed != report.pages)
		board_fail(board, me->who, "hmm_migrate of %u pages gave %ld, reports %lu pages, %lu moved, %lu already, %lu failed",
			   journey.pages, there, report.pages, report.moved, report.already, report.failed);
	for (uint32_t i = 0; i < journey.pages; i++) {
		if (area_stays(board_area(board, journey.page)) && target == HMM_DEVICE &&
		    (results[i] == HMM_MIGRATED || results[i] == HMM_ALREADY))
			board_fail(board, me->who, "page %u of an area that stays is on the device", journey.page + i);
		if (results[i] > HMM_MIGRATE_ERROR &&
		    (results[i] != HMM_TRACKED || board_area(board, journey.page)->kind != AREA_TRACKED))
			board_fail(board, me->who, "hmm_migrate: result %u of page %u of %u", results[i], i,
				   journey.pages);
		atomic_fetch_add(&board->results[results[i]], 1);
	}
	board_done(board, me->who, operation, report.moved > 0);
}

/* To the device, for itself: whoever touches a page takes it back. */
static void exclude_cpu(struct thread_context *me, uint8_t *results)
{
	struct journey journey = pick_journey(me);
	struct board *board = me->board;
	uint32_t marked = 0;
	long there, ended;

	board_begin(board, me->who, OP_EXCLUSIVE, journey.page, journey.pages, 0, 0);
	there = hmm_device_exclusive_begin(me->mirror, journey.address, journey.pages * PAGE_BYTES, results);
	if (there < 0) {
		board_excused(board, me->who, "hmm_device_exclusive_begin", there);
		board_done(board, me->who, OP_EXCLUSIVE, false);
		return;
	}
	for (uint32_t i = 0; i < journey.pages; i++)
		marked += results[i] == HMM_MIGRATED || results[i] == HMM_ALREADY;
	if (marked != there)
		board_fail(board, me->who, "hmm_device_exclusive_begin gave %ld and says so of %u pages", there, marked);
	if (draw_below(&me->random, 2)) {
		ended = hmm_device_exclusive_end(me->mirror, journey.address, journey.pages * PAGE_BYTES);
		if (ended < 0)
			board_excused(board, me->who, "hmm_device_exclusive_end", ended);
	}
	board_done(board, me->who, OP_EXCLUSIVE, there > 0);
}

static void prefetch(struct thread_context *me, int completion)
{
	struct journey journey = pick_journey(me);
	struct board *board = me->board;
	struct pollfd wait = { .fd = completion, .events = POLLIN };
	enum hmm_target target = draw_below(&me->random, 2) ? HMM_DEVICE : HMM_SYSTEM;
	bool followed = draw_below(&me->random, 2);
	struct hmm_prefetch *handle = NULL;
	uint64_t count;
	int error;

	board_begin(board, me->who, OP_PREFETCH, journey.page, journey.pages, 0, target);
	error = hmm_prefetch(me->mirror, journey.address, journey.pages * PAGE_BYTES, target, 0,
			     completion, followed ? &handle : NULL);
	if (error) {
		board_excused(board, me->who, "hmm_prefetch", error);
		board_done(board, me->who, OP_PREFETCH, false);
		return;
	}
	if (followed && draw_below(&me->random, 4) == 0)
		hmm_prefetch_cancel(handle);
	hmm_prefetch_free(handle);
	/* A daemon that died owes no completion; otherwise the watchdog finds one that never comes. */
	while (poll(&wait, 1, 100) == 0 && !board_stopped(board))
		if (board->settings.kill_daemon)
			break;
	if (read(completion, &count, sizeof(count)) == sizeof(count) && count > journey.pages + 1UL &&
	    !board->settings.kill_daemon)
		board_fail(board, me->who, "prefetch of %u pages completes with %lu", journey.pages, count - 1);
	board_done(board, me->who, OP_PREFETCH, true);
}

static void exclude(struct thread_context *me)
{
	struct board *board = me->board;
	struct journey journey = pick_journey(me);
	struct area *area = board_area(board, journey.page);
	bool windows = board->settings.windows;
	int error;

	if (journey.pages > 64)
		journey.pages = 64;
	/* A window cannot show what is excluded: a driver that touches it gets SIGBUS. */
	if (windows)
		pthread_rwlock_wrlock(&area->lock);
	board_begin(board, me->who, OP_EXCLUDE, journey.page, journey.pages, 0, 0);
	error = hmm_exclude(me->hmm, journey.address, journey.pages * PAGE_BYTES);
	/* Excluded, though not all of it has come home in time. */
	if (error && error != -EBUSY)
		board_excused(board, me->who, "hmm_exclude", error);
	pause_us(draw_below(&me->random, 500));
	do {
		error = hmm_include(me->hmm, journey.address, journey.pages * PAGE_BYTES);
		if (error)
			board_excused(board, me->who, "hmm_include", error);
	} while (error && !board_stopped(board));
	if (windows)
		pthread_rwlock_unlock(&area->lock);
	board_done(board, me->who, OP_EXCLUDE, !error);
}

/* A device that is smaller than what is wanted on it: a window must find room, so nothing is to stay there. */
static bool is_scarce(const struct board *board)
{
	return board->settings.device < board->settings.mib;
}

/*
 * Some blocks become coherent under everybody's hands, and ordinary again. Not where the
 * address space changes: coherent memory is not to be discarded, moved or forked, and what it allows windows
 * do not follow. Of several movers each has blocks of its own.
 */
static void share(struct thread_context *me)
{
	struct board *board = me->board;
	struct area *area = board_area(board, board_pick_page(board, &me->random));
	uint64_t base = atomic_load(&area->base), end = base + area->pages * PAGE_BYTES;
	uint64_t start = (base + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1), length;
	uint32_t blocks = end > start ? (uint32_t)((end - start) / BLOCK_BYTES) : 0, first;
	int error;

	if (area->kind != AREA_ORDINARY || !blocks || board->settings.events || board->settings.fork ||
	    board->settings.protect || (is_scarce(board) && !board->settings.several))
		return;
	first = draw_below(&me->random, blocks);
	start += first * BLOCK_BYTES;
	length = (1 + draw_below(&me->random, blocks - first)) * BLOCK_BYTES;
	if (board->settings.movers > 1) {
		if (start / BLOCK_BYTES % board->settings.movers != me->writer)
			return;
		length = BLOCK_BYTES;
	}
	board_begin(board, me->who, OP_SHARE, area->first_page + (uint32_t)((start - base) / PAGE_BYTES),
		    (uint32_t)(length / PAGE_BYTES), 0, 0);
	error = hmm_share(me->mirror, (void *)start, length);
	if (error) {
		/* Wanted elsewhere without a pause, no room to be made, or another mover excludes it now: that is an answer. */
		if (error != -EBUSY && error != -ENOSPC && !(board->settings.movers > 1 && error == -EOPNOTSUPP))
			board_excused(board, me->who, "hmm_share", error);
		board_done(board, me->who, OP_SHARE, false);
		return;
	}
	pause_us(draw_below(&me->random, 5000));
	do {
		error = hmm_unshare(me->mirror, (void *)start, length);
		if (error && !(error == -EINVAL && board->settings.end_daemon))
			board_excused(board, me->who, "hmm_unshare", error);
	} while (error && error != -EINVAL && !board_stopped(board));
	board_done(board, me->who, OP_SHARE, !error);
}

/* A pin may find no room, or pages that can't be on a device. */
static bool may_refuse(long error)
{
	return error == -ENOSPC || error == -EBUSY || error == -EFAULT || error == -EPERM || error == -EOPNOTSUPP;
}

/* Where devices are scarce nothing may stay for long: others wait for its room. */
static void pin_for_a_moment(struct thread_context *me)
{
	struct hmm_advise_options options = { .size = sizeof(options), .mirror = me->mirror };
	struct journey journey = pick_journey(me);
	uint32_t pages = journey.pages < 64 ? journey.pages : 64;
	struct board *board = me->board;
	int error;

	board_begin(board, me->who, OP_ADVISE, journey.page, pages, 0, HMM_ADVISE_PIN);
	error = hmm_advise(me->hmm, journey.address, pages * PAGE_BYTES, HMM_ADVISE_PIN, &options);
	if (error && !may_refuse(error))
		board_excused(board, me->who, "hmm_advise: PIN", error);
	pause_us(draw_below(&me->random, 3000));
	/* A call that failed with hmmd may have been heard. */
	do {
		error = hmm_unadvise(me->hmm, journey.address, pages * PAGE_BYTES, HMM_ADVISE_PIN, &options);
		if (error)
			board_excused(board, me->who, "hmm_unadvise: PIN", error);
	} while (error && !board_stopped(board));
	board_done(board, me->who, OP_ADVISE, !error);
}

static void advise(struct thread_context *me)
{
	static const enum hmm_advice advices[] = {
		HMM_ADVISE_SET_READ_MOSTLY, HMM_ADVISE_SET_PREFERRED_LOCATION, HMM_ADVISE_SET_ACCESSED_BY,
		HMM_ADVISE_GRANULARITY, HMM_ADVISE_PREFETCH, HMM_ADVISE_PIN, HMM_ADVISE_EVICT_PRIORITY,
	};
	enum hmm_advice advice = advices[draw_below(&me->random, sizeof(advices) / sizeof(advices[0]))];
	struct hmm_advise_options options = { .size = sizeof(options), .mirror = me->mirror };
	struct journey journey = pick_journey(me);
	size_t length = journey.pages * PAGE_BYTES;
	struct board *board = me->board;
	int error;

	if (advice == HMM_ADVISE_PIN && is_scarce(board)) {
		if (board->settings.several)
			pin_for_a_moment(me);
		return;
	}
	if (advice == HMM_ADVISE_SET_PREFERRED_LOCATION && draw_below(&me->random, 2))
		options.mirror = NULL;
	if (advice == HMM_ADVISE_GRANULARITY)
		options.value = 1U << draw_below(&me->random, 10);
	if (advice == HMM_ADVISE_EVICT_PRIORITY)
		options.value = draw_below(&me->random, 101);
	board_begin(board, me->who, OP_ADVISE, journey.page, journey.pages, 0, advice);
	if (draw_below(&me->random, 3))
		error = hmm_advise(me->hmm, journey.address, length, advice, &options);
	else
		error = hmm_unadvise(me->hmm, journey.address, length, advice, &options);
	if (error && !may_refuse(error))
		board_excused(board, me->who, "hmm_advise", error);
	board_done(board, me->who, OP_ADVISE, !error);
}

void *mover_thread(void *context)
{
	struct thread_context *me = context;
	struct board *board = me->board;
	uint8_t *results = malloc(AREA_STRIDE / PAGE_BYTES);
	int completion = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	if (!results)
		board_fail(board, me->who, "no memory");
	while (!board_stopped(board)) {
		uint32_t choice = draw_below(&me->random, 100);

		/* Where several devices want the same pages, say more and move less. */
		if (board->settings.several && choice < 25)
			choice = 92 + choice / 5;
		if (choice < 45)
			migrate(me, HMM_DEVICE, results);
		else if (choice < 55)
			exclude_cpu(me, results);
		else if (choice < 75)
			migrate(me, HMM_SYSTEM, results);
		else if (choice < 92)
			prefetch(me, completion);
		else if (choice < 95)
			share(me);
		else if (choice < 97)
			advise(me);
		else
			exclude(me);
		if (!draw_below(&me->random, 50))
			atomic_store(&board->hot, draw_below(&me->random, board->n_pages));
		pause_us(draw_below(&me->random, 400));
	}
	close(completion);
	free(results);
	return NULL;
}
