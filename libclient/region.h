/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * region.h - the shadows of this owner, one file per mirror and GiB of address
 * space, mapped for the agent and the rescuer.
 */
#ifndef HMMC_REGION_H
#define HMMC_REGION_H

#include "futex.h"
#include "public.h"

struct region {
	uint32_t mirror;		/* its index */
	uint64_t base, length;
	uint64_t offset;		/* of base in the file */
	enum hmm_pool_kind kind;
	int fd;				/* in the private table */
	char *map;			/* [base, base + length); NULL: gone */
	uint64_t device, inode;
};

#define REGIONS_MAX 8192		/* a power of two */

struct regions {
	struct futex_lock lock;		/* for those who add and remove */
	uint32_t changes;		/* futex: bumped by each addition */
	uint32_t count;
	struct region *table[REGIONS_MAX];	/* open addressing; entries never move */
};

/*
 * Adds and maps a shadow; the descriptor is the table's from then on, whatever is returned.
 * The very same file again is fine.
 */
int hmmc_region_add(struct regions *regions, const struct hmm_msg_region *event, int fd);
/* Lock-free. NULL: not known (yet). */
struct region *hmmc_region_find(struct regions *regions, uint32_t mirror, uint64_t address);
/* Unmaps those of a mirror, or with HMM_NO_MIRROR of all. Nobody may be using them. */
void hmmc_region_drop(struct regions *regions, uint32_t mirror);

static inline char *region_at(const struct region *region, uint64_t address)
{
	return region->map + (address - region->base);
}

#endif
