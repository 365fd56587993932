/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fork.h - what has to happen around fork(), and the gate that keeps migrations out meanwhile. */
#ifndef HMMC_FORK_H
#define HMMC_FORK_H

#include <stdbool.h>
#include <stdint.h>

/* Installs the hooks, once. */
void hmmc_fork_watch(void);

/* The numbers of the forks that hmmd was told of,
   or is about to be, and which are not over. How many. */
#define FORKS_MAX 16U
unsigned int hmmc_forks(uint32_t *numbers);

/*
 * Whoever sends pages to a device passes the gate and leaves when it is
 * answered. A fork closes it, waits until all have left and has the pages brought home.
 */
void hmmc_gate_enter(void);
/* As hmmc_gate_enter(); without @wait false where it is closed: for who is inside already. */
bool hmmc_gate_pass(bool wait);
/* Does not wait. Return: false when the gate is closed; then @resume is called when it opens. */
struct gate_waiter {
	struct gate_waiter *next;
	void (*resume)(struct gate_waiter *waiter);
};
bool hmmc_gate_try(struct gate_waiter *waiter);
void hmmc_gate_leave(void);

#endif
