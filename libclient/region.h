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
	char *map;			/* [base, base + length); NULL: there was no room to map it, see hmmc_region_map() */
	uint64_t device, inode;
	uint32_t gone;			/* atomic: not to be found any more */
	bool listed;			/* in the table */
	struct region *next;		/* of those that leave */
};

#define REGIONS_MAX 8192		/* a power of two */

struct regions {
	struct futex_lock lock;		/* for those who add and remove */
	uint32_t changes;		/* futex: bumped by each addition */
	const uint32_t *busy;		/* the agent's: it may be using one; NULL: there is no agent */
	struct region *leaving;		/* gone, and to be unmapped when nobody can be using them */
	struct region *table[REGIONS_MAX];	/* open addressing; entries never move */
};

/*
 * Adds a shadow, and maps it if there is room; the descriptor is the table's from then on, whatever is returned.
 * The very same file again is fine. Fails where the library's memory is used up: then it is not known, and has to come again.
 */
int hmmc_region_add(struct regions *regions, const struct hmm_msg_region *event, int fd);
/* Whether it is mapped, by now: one that found no room is tried again. For whoever found it, before he looks into it. */
bool hmmc_region_map(struct regions *regions, struct region *region);
/* Lock-free. NULL: not known (yet). In the agent it stays mapped until the agent is not busy any more. */
struct region *hmmc_region_find(struct regions *regions, uint32_t mirror, uint64_t address);
/*
 * Those of a mirror, or with HMM_NO_MIRROR all, are not found any more, and unmapped as soon as the
 * agent has put down the order that it carries out: one that hmmd took back may still be copying.
 */
void hmmc_region_drop(struct regions *regions, uint32_t mirror);
/* For the agent, when it is not busy any more. */
void hmmc_region_settle(struct regions *regions);

static inline char *region_at(const struct region *region, uint64_t address)
{
	return region->map + (address - region->base);
}

#endif
