/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * serving.h - the whole hmmd in this process, so that a fuzzer sees which of its code an input reaches: the
 * control thread, a worker, the log thread. It is spoken to through its socket, as by anybody.
 */
#ifndef FUZZ_SERVING_H
#define FUZZ_SERVING_H

/* Starts it once, with strangers to come from; what can't be had ends the process with a line. */
void serving_begin(void);

/* A connection of this very process, to look with; greeted, and never closed. */
int serving_look(void);

/*
 * Waits until hmmd serves nobody but that connection and has nothing left of anybody: no owner, mirror, device,
 * window, byte of its pool, charge, or descriptor. abort() when it has not come to that after a minute.
 */
void serving_expect_nothing_left(void);

#endif
