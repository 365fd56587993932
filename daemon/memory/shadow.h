/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * shadow.h - a mirror's device memory that the CPU can address: one memfd of
 * 1 GiB per region of the owner's addresses, whose offset is the address
 * within the region. That a page exists in a shadow proves nothing; only the
 * ledger's COMPLETE bit does.
 */
#ifndef HMMD_SHADOW_H
#define HMMD_SHADOW_H

#include "pool.h"

struct shadow {
	uint64_t base;		/* the region's first address */
	int fd;
	char *map;		/* all of it, in hmmd */
	enum hmm_pool_kind kind;	/* what its memfd is made of: no CONFIGURED, no DAX */
	bool bound;		/* its pages come from some nodes, and from nowhere else */
	uint64_t inode;		/* of the memfd: which shadow an order means */
	bool known;		/* to its owner's library */
	uint64_t told;		/* the driver's connection that passes pages through it; 0: none */
};

/* A mirror's shadows, in order of base. */
struct shadows {
	struct shadow **list;
	unsigned int count;
};

/* Pages of a memfd that is mapped at @map shall lie so. 0 or -errno. */
int shadow_place(void *map, uint64_t length, const struct placement *placement);
/* The shadow of @addr, or NULL. */
struct shadow *shadow_find(const struct shadows *shadows, uint64_t addr);
/* The same, made if need be. */
int shadow_get(struct shadows *shadows, const struct pool *pool, uint64_t addr, struct shadow **result);
/* One that the owner kept over a restart; @fd is consumed. */
int shadow_adopt_consume_fd(struct shadows *shadows, const struct pool *pool, uint64_t base, int fd);
void shadows_deinit(struct shadows *shadows);

static inline void *shadow_at(const struct shadow *shadow, uint64_t addr)
{
	return shadow->map + (addr - shadow->base);
}

/*
 * The system may have fewer huge pages than the pool is large, and who touches one that is missing is killed:
 * that of @addr is taken first. Pools of other kinds need no such thing. 0 or -ENOSPC.
 */
int shadow_reserve(const struct shadow *shadow, uint64_t addr);

/*
 * The same for a block that the CPU maps (coherent memory), whose pages nobody is asked about later: those of a pool
 * that is bound to nodes are taken now, while there is room. They hold zeros.
 */
int shadow_commit(const struct shadow *shadow, uint64_t addr);

/* Stores one page, allocating no more than that page (of the pool's size). 0 or -ENOSPC. */
int shadow_store(const struct shadow *shadow, uint64_t addr, const void *bytes);

/*
 * Whether a page of bytes that the kernel could not copy (-EFAULT) never can be: its memory has failed, or the disk that it was
 * swapped to. Else there was no memory to map it, or to swap it in: it is to be tried again.
 */
bool shadow_is_lost(const void *bytes);

/* Whether anything is allocated in [addr, addr + length). */
bool shadow_has_data(const struct shadow *shadow, uint64_t addr, uint64_t length);

#endif
