/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * region.c - the table of mapped shadows.
 *
 * The receiver adds what hmmd sends; agent and rescuer look up without a lock.
 * An entry is published with one store after the region is mapped and stays
 * where it is; a region that goes leaves its entry behind with no mapping, and
 * the same key may fill it again.
 *
 * Adding fails when the address space or the table is full; hmmd then waits for
 * an agent that cannot work, so it is also logged.
 */
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

	return region && __atomic_load_n(&region->map, __ATOMIC_ACQUIRE) ? region : NULL;
}

static char *map_shadow(const struct hmm_msg_region *event, int fd)
{
	char *map = hmmc_map(NULL, event->length, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			     event->offset);

	if (!map)
		return NULL;
	madvise(map, event->length, MADV_DONTDUMP);
	madvise(map, event->length, MADV_DONTFORK);
	if (event->kind == HMM_POOL_KIND_MEMFD_HUGE)
		madvise(map, event->length, MADV_HUGEPAGE);
	return map;
}

int hmmc_region_add(struct regions *regions, const struct hmm_msg_region *event, int fd)
{
	uint32_t mirror = event->mirror & 0xff;
	struct region *region;
	unsigned int slot;
	struct stat stat;
	char *map, *old = NULL;
	int error = 0;

	if (fstat(fd, &stat)) {
		error = -errno;
		goto out_close;
	}
	futex_lock(&regions->lock);
	region = find_entry(regions, mirror, event->base, &slot);
	if (region && region->map && region->device == stat.st_dev && region->inode == stat.st_ino)
		goto out_unlock;
	map = map_shadow(event, fd);
	if (!map) {
		error = -errno;
		goto out_unlock;
	}
	if (region) {
		old = region->map;
		/* Whoever looks meanwhile finds none, rather than a mixture. */
		__atomic_store_n(&region->map, NULL, __ATOMIC_RELEASE);
		if (region->fd >= 0)
			close(region->fd);
	} else if (slot < REGIONS_MAX) {
		region = hmmc_arena_alloc(sizeof(*region));
	}
	if (!region) {
		munmap(map, event->length);
		error = -ENOMEM;
		goto out_unlock;
	}
	region->mirror = mirror;
	region->base = event->base;
	region->length = event->length;
	region->offset = event->offset;
	region->kind = event->kind;
	region->fd = fd;
	region->device = stat.st_dev;
	region->inode = stat.st_ino;
	__atomic_store_n(&region->map, map, __ATOMIC_RELEASE);
	__atomic_store_n(&regions->table[slot], region, __ATOMIC_RELEASE);
	if (old)
		munmap(old, event->length);
	fd = -1;
out_unlock:
	futex_unlock(&regions->lock);
out_close:
	if (fd >= 0)
		close(fd);
	if (error)
		hmmc_log(HMMC_LOG_ERROR, "cannot map device memory for 0x%llx: %s",
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
		char *map = region ? region->map : NULL;

		if (!map || (mirror != HMM_NO_MIRROR && region->mirror != (mirror & 0xff)))
			continue;
		__atomic_store_n(&region->map, NULL, __ATOMIC_RELEASE);
		munmap(map, region->length);
		close(region->fd);
		region->fd = -1;
	}
	futex_unlock(&regions->lock);
}
