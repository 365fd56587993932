/* SPDX-License-Identifier: GPL-2.0-or-later */
/* churn.h - a thread that has the index's blocks migrated, out and home, at random. */
#ifndef DEMO_CHURN_H
#define DEMO_CHURN_H

#include <pthread.h>
#include <stdatomic.h>

#include "board.h"

struct hmm_mirror;

struct churn {
	pthread_t thread;
	struct hmm_mirror *mirror;
	struct board *board;
	uint64_t random;
	_Atomic int stop;
};

int churn_start(struct churn *churn, struct hmm_mirror *mirror, struct board *board);
/*
 * Stops the thread and sends whatever block was never out, or never home, both
 * ways. Return: 0; -1: a block cannot be moved, and stderr says why.
 */
int churn_finish(struct churn *churn);

#endif
