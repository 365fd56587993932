/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fill.h - bytes on their way into a shadow, and out of it. In the agent. */
#ifndef HMMC_FILL_H
#define HMMC_FILL_H

#include "agent.h"

struct fill {
	struct agent *agent;
	struct region *region;
	bool mapped;		/* through region_at(), where room has been made for the whole block */
	bool visible;		/* each page has to appear with its bytes */
};

/* For the pages that @order has in moved[]. Return: 0, -ENOSPC, another -errno. */
int hmmc_fill_begin(struct fill *fill, struct agent *agent, const struct hmm_order *order,
		    struct region *region);
/* Whole pages. @bytes is the library's own memory, or a slot: present, or at least never waited for. */
int hmmc_fill_run(struct fill *fill, uint64_t address, const char *bytes, size_t length);
int hmmc_fill_read(const struct hmm_order *order, struct region *region, uint64_t address, char *bytes,
		   size_t length);

#endif
