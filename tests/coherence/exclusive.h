/* SPDX-License-Identifier: GPL-2.0-or-later */
/* exclusive.h - what a driver does to the counters. */
#ifndef COHERENCE_EXCLUSIVE_H
#define COHERENCE_EXCLUSIVE_H

#include "board.h"

void window_add(struct thread_context *driver, struct hmm_window *window, uint32_t cell);
void exclusive_add(struct thread_context *driver, struct hmm_mirror *mirror, struct hmm_window *window,
		   uint32_t cell);
/* In the callback: returns when no addition is under way, and ends the series. */
void addition_stop(void);

#endif
