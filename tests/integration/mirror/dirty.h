/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dirty.h - what programs share that track what is written: dirty_crowd.c. */
#ifndef TEST_DIRTY_H
#define TEST_DIRTY_H

#include "mirror.h"

/* This process, mirrored; or the case is skipped, because no engine works. */
void open_tracked(void);
/* Nothing pins these pages. */
void declare(void *memory, size_t pages);

/* A copy that is brought up to date by what is told. */
struct replica {
	void (*begin)(char *memory, size_t pages);
	void (*update)(void);
	void (*still)(void);		/* nobody writes, and the copy was found equal */
	const char *(*copy)(void);
};
/* Many threads write, one changes the map and one forks: whenever they stand still the copy is equal. */
void crowd_run(const struct replica *replica, int rounds);
/* For an update() that touches the memory itself: no mapping is missing. */
void crowd_lock_map(bool lock);

/* A thread that writes into each of 256 pages, again and again. */
void steady_begin(char *memory);
/* How often it has. */
unsigned long steady_written(void);
/* Each page has been written by then. */
void steady_end(void);

#endif
