/* SPDX-License-Identifier: GPL-2.0-or-later */
/* move.h - asks hmmd to move a range, however long it is, and adds up what it says. */
#ifndef HMMCTL_MOVE_H
#define HMMCTL_MOVE_H

#include <stdint.h>

#include "link.h"
#include "selection.h"

struct tally {
	uint64_t pages, moved, already, failed;
	uint64_t result[256];	/* by enum hmm_page_result */
};

/* Return: 0, or a negative errno that is in @link as well. */
int move_range(struct link *link, uint32_t mirror, const struct address_range *range,
	       uint32_t target, uint64_t flags, struct tally *tally);

#endif
