/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * exclusive.c - a driver's additions to the counters. An atomic one through its
 * window, like any; or a load and a store of a page that the device has to itself, which
 * nobody may come between: under the lock that the callback takes, while the mark is there
 * and the callback was not called since the page was mapped here.
 *
 * A lost addition shows as a counter that is less than what was added. The driver's own
 * thread; addition_stop() is called by its callback.
 */
#include "board.h"
#include "exclusive.h"

#include <pthread.h>

#define BURST 24U
/* A cell of each page of counters that nobody adds to: it holds 0 for ever. */
#define SPARE (PAGE_CELLS / 2)

static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned int told;

void addition_stop(void)
{
	pthread_mutex_lock(&device_lock);
	told++;
	pthread_mutex_unlock(&device_lock);
}

void window_add(struct thread_context *driver, struct hmm_window *window, uint32_t cell)
{
	struct board *board = driver->board;
	uint32_t page = cell / PAGE_CELLS, guard;
	_Atomic uint64_t *here = hmm_window_ptr(window, (unsigned long)board_enter(board, page));
	bool done;

	board_add_begin(board, cell);
	board_begin(board, driver->who, OP_WINDOW_ADD, page, 1, cell, 0);
	guard = board_guard(board, page);
	done = attempt_add(&here[cell % PAGE_CELLS]);
	if (board_admit(board, driver->who, OP_WINDOW_ADD, cell, guard, ACCESS_WRITE, done))
		board_added(board, cell);
	else
		board_retract(board, cell);
	board_done(board, driver->who, OP_WINDOW_ADD, done);
	board_leave(board, page);
}

/* Not atomic, and slow enough for anybody to get in between who can. */
static bool add_slowly(_Atomic uint64_t *cell)
{
	uint64_t value;

	if (!attempt_load(cell, &value))
		return false;
	for (volatile int i = 0; i < 500; i++)
		;
	return attempt_store(cell, value + 1);
}

/* Mapped here and writable before the lock is held: under it nothing may wait for hmmd. */
static bool map_here(_Atomic uint64_t *here)
{
	return attempt_store(&here[SPARE], 0);
}

static unsigned int device_state(void)
{
	unsigned int state;

	pthread_mutex_lock(&device_lock);
	state = told;
	pthread_mutex_unlock(&device_lock);
	return state;
}

void exclusive_add(struct thread_context *driver, struct hmm_mirror *mirror, struct hmm_window *window,
		   uint32_t cell)
{
	struct board *board = driver->board;
	uint32_t page = cell / PAGE_CELLS;
	unsigned long address = (unsigned long)board_enter(board, page);
	_Atomic uint64_t *here = hmm_window_ptr(window, address);
	bool go_on;
	unsigned int state;
	long marked;

	board_begin(board, driver->who, OP_EXCLUSIVE_ADD, page, 1, cell, 0);
	marked = hmm_device_exclusive_begin(mirror, address, PAGE_BYTES, NULL);
	if (marked < 0)
		board_excused(board, driver->who, "hmm_device_exclusive_begin", marked);
	/* Getting there may have called back. From here on a call says that the page may not be mapped here any more. */
	state = device_state();
	go_on = marked == 1 && map_here(here);
	for (uint32_t i = 0; go_on && i < BURST; i++) {
		pthread_mutex_lock(&device_lock);
		go_on = told == state && hmm_device_exclusive_check(mirror, address, PAGE_BYTES);
		if (go_on) {
			board_add_begin(board, cell);
			go_on = add_slowly(&here[cell % PAGE_CELLS]);
			if (go_on)
				board_added(board, cell);
			else
				board_retract(board, cell);
			atomic_fetch_add(&board->tally[OP_EXCLUSIVE_ADD], go_on);
		}
		pthread_mutex_unlock(&device_lock);
	}
	board_done(board, driver->who, OP_EXCLUSIVE_ADD, false);
	board_leave(board, page);
}
