/* SPDX-License-Identifier: GPL-2.0-or-later */
/* churn.h - sends random blocks of a device's owners out and home: `run --churn`. */
#ifndef HMMCTL_CHURN_H
#define HMMCTL_CHURN_H

#include "link.h"
#include "move.h"
#include "selection.h"

struct churn_place {
	uint32_t mirror;
	struct address_range range;
	uint64_t blocks;	/* 2 MiB blocks that the range touches */
};

struct churn {
	struct link *link;
	struct selection selection;	/* the device */
	uint64_t random;
	struct churn_place *places;
	size_t n_places;
	uint64_t blocks;		/* in all places */
	unsigned int steps;		/* since the places were looked up */
	uint64_t moves;
	struct tally out, home;
};

void churn_init(struct churn *churn, struct link *link, const char *device, uint64_t seed);
/* Moves one block. Whatever fails is tried again later: the program comes and goes as it likes. */
void churn_step(struct churn *churn);
void churn_deinit(struct churn *churn);

#endif
