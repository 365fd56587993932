/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * region.c - the table of mapped shadows.
 *
 * The receiver adds what hmmd sends; agent and rescuer look up without a lock.
 * An entry is published with one store after the region is mapped and never
 * changes; one of the same key takes its place. A region that goes leaves its entry
 * behind, so that others are found past it.
 *
 * The agent may be carrying out an order that hmmd has taken back, and in the middle of a
 * copy, when the region of that order goes. So a mapping and its descriptor are let go of
 * only when the agent is seen not to be busy, by whoever looks last: the agent, or who dropped it.
 *
 * Without room to map it a shadow is known all the same, and mapped when it is needed and there is room again; until
 * then an order for it fails. Where the library's memory or the table is full it cannot be known: the receiver ends the
 * connection, and hmmd tells of its shadows again.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "arena.h"
#include "log.h"
#include "mapping.h"
#include "region.h"

static unsigned int hash(uint32_t mirror, uint64_t base)
{
	uint64_t key =
		(base >> HMM_REGION_SHIFT) * 0x9e3779b97f4a7c15ULL + mirror * 0xc2b2ae3d27d4eb4fULL;

	return (unsigned int)(key >> 40) & (REGIONS_MAX - 1);
}

static struct region *find_entry(struct regions *regions, uint32_t mirror, uint64_t base,
				 unsigned int *slot)
{
	unsigned int i = hash(mirror, base);

	for (unsigned int n = 0; n < REGIONS_MAX; n++, i = (i + 1) & (REGIONS_MAX - 1)) {
		struct region *region = __atomic_load_n(&regions->table[i], __ATOMIC_ACQUIRE);

		*slot = i;
		if (!region || (region->mirror == mirror && region->base == base))
			return region;
	}
	*slot = REGIONS_MAX;
	return NULL;
}

struct region *hmmc_region_find(struct regions *regions, uint32_t mirror, uint64_t address)
{
	unsigned int slot;
	struct region *region =
		find_entry(regions, mirror & 0xff, address & ~(HMM_REGION_SIZE - 1), &slot);

	return region && !__atomic_load_n(&region->gone, __ATOMIC_SEQ_CST) ? region : NULL;
}

/* ---- leaving: with the lock held -------------------------------------------------------- */

static void let_go(struct region *region)
{
	if (region->map)
		munmap(region->map, region->length);
	if (region->fd >= 0)
		close(region->fd);
	region->map = NULL;
	region->fd = -1;
	if (!region->listed)
		hmmc_arena_free(region, sizeof(*region));
}

static void leave(struct regions *regions, struct region *region)
{
	__atomic_store_n(&region->gone, 1, __ATOMIC_SEQ_CST);
	region->next = regions->leaving;
	__atomic_store_n(&regions->leaving, region, __ATOMIC_SEQ_CST);
}

/* The agent is not busy first and looks for them then; here it is the other way round. */
static void settle(struct regions *regions)
{
	struct region *region;

	if (regions->busy && __atomic_load_n(regions->busy, __ATOMIC_SEQ_CST))
		return;
	while ((region = regions->leaving)) {
		__atomic_store_n(&regions->leaving, region->next, __ATOMIC_SEQ_CST);
		let_go(region);
	}
}

void hmmc_region_settle(struct regions *regions)
{
	if (!__atomic_load_n(&regions->leaving, __ATOMIC_SEQ_CST))
		return;
	futex_lock(&regions->lock);
	settle(regions);
	futex_unlock(&regions->lock);
}

/* ---- coming --------------------------------------------------------------------------- */

static char *map_shadow(const struct region *region)
{
	char *map = hmmc_map(NULL, region->length, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd,
			     region->offset);

	if (!map)
		return NULL;
	madvise(map, region->length, MADV_DONTDUMP);
	madvise(map, region->length, MADV_DONTFORK);
	if (region->kind == HMM_POOL_KIND_MEMFD_HUGE)
		madvise(map, region->length, MADV_HUGEPAGE);
	return map;
}

bool hmmc_region_map(struct regions *regions, struct region *region)
{
	if (__atomic_load_n(&region->map, __ATOMIC_ACQUIRE))
		return true;
	futex_lock(&regions->lock);
	if (!region->map && region->fd >= 0)
		__atomic_store_n(&region->map, map_shadow(region), __ATOMIC_RELEASE);
	futex_unlock(&regions->lock);
	return region->map;
}

static struct region *region_new(const struct hmm_msg_region *event, int fd, const struct stat *stat)
{
	struct region *region = hmmc_arena_alloc(sizeof(*region));

	if (!region)
		return NULL;
	*region = (struct region){
		.mirror = event->mirror & 0xff,
		.base = event->base,
		.length = event->length,
		.offset = event->offset,
		.kind = event->kind,
		.fd = fd,
		.device = stat->st_dev,
		.inode = stat->st_ino,
		.listed = true,
	};
	region->map = map_shadow(region);
	if (!region->map)
		hmmc_log(HMMC_LOG_WARNING, "no room to map device memory for 0x%llx: what needs it is refused until there is",
			 (unsigned long long)event->base);
	return region;
}

/* With the lock held. What had its key may be gone already, and even have left. */
static void publish(struct regions *regions, unsigned int slot, struct region *region)
{
	struct region *old = regions->table[slot];
	bool leaves = old && (!old->gone || old->fd < 0);

	__atomic_store_n(&regions->table[slot], region, __ATOMIC_SEQ_CST);
	if (old)
		old->listed = false;
	if (leaves)
		leave(regions, old);
	settle(regions);
}

int hmmc_region_add(struct regions *regions, const struct hmm_msg_region *event, int fd)
{
	struct region *region;
	unsigned int slot;
	struct stat stat;
	int error = 0;

	if (fstat(fd, &stat)) {
		error = -errno;
		goto out_close;
	}
	futex_lock(&regions->lock);
	region = find_entry(regions, event->mirror & 0xff, event->base, &slot);
	if (region && !region->gone && region->device == stat.st_dev && region->inode == stat.st_ino)
		goto out_unlock;
	region = slot < REGIONS_MAX ? region_new(event, fd, &stat) : NULL;
	if (region) {
		publish(regions, slot, region);
		fd = -1;
	} else {
		error = -ENOMEM;
	}
out_unlock:
	futex_unlock(&regions->lock);
out_close:
	if (fd >= 0)
		close(fd);
	if (error)
		hmmc_log(HMMC_LOG_ERROR, "cannot take device memory for 0x%llx: %s",
			 (unsigned long long)event->base, strerror(-error));
	__atomic_add_fetch(&regions->changes, 1, __ATOMIC_RELEASE);
	futex_wake(&regions->changes, INT32_MAX);
	return error;
}

void hmmc_region_drop(struct regions *regions, uint32_t mirror)
{
	futex_lock(&regions->lock);
	for (unsigned int i = 0; i < REGIONS_MAX; i++) {
		struct region *region = regions->table[i];

		if (region && !region->gone && (mirror == HMM_NO_MIRROR || region->mirror == (mirror & 0xff)))
			leave(regions, region);
	}
	settle(regions);
	futex_unlock(&regions->lock);
}
