/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * shadow.c - shadow memfds. Runs on the owner's worker; no locks.
 *
 * Never stores through shadow->map to a page that nothing is charged for: a
 * store allocates, and with huge pages it allocates 2 MiB.
 *
 * A pool's placement is set on the mapping when it is made. Of a memfd it lives
 * in the file: whoever allocates its pages, by whichever mapping or write, gets them
 * there (contract-placement). hugetlb has no such thing, so there hmmd allocates each
 * page itself, through its own mapping, before anybody else may touch it.
 */
#include "shadow.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <numaif.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int find_index(const struct shadows *shadows, uint64_t base, bool *found)
{
	unsigned int low = 0, high = shadows->count;

	while (low < high) {
		unsigned int middle = (low + high) / 2;

		if (shadows->list[middle]->base < base)
			low = middle + 1;
		else
			high = middle;
	}
	*found = low < shadows->count && shadows->list[low]->base == base;
	return (int)low;
}

struct shadow *shadow_find(const struct shadows *shadows, uint64_t addr)
{
	bool found;
	int i = find_index(shadows, addr & ~(HMM_REGION_SIZE - 1), &found);

	return found ? shadows->list[i] : NULL;
}

int shadow_place(void *map, uint64_t length, const struct placement *placement)
{
	uint64_t mask[HMM_NODE_WORDS];
	int policy = MPOL_DEFAULT;

	switch (placement->mode) {
	case HMM_PLACEMENT_ANY:
		return 0;
	case HMM_PLACEMENT_BIND:
		policy = MPOL_BIND;
		break;
	case HMM_PLACEMENT_PREFERRED:
		policy = placement->node < 0 ? MPOL_PREFERRED_MANY : MPOL_PREFERRED;
		break;
	case HMM_PLACEMENT_INTERLEAVE:
		policy = MPOL_INTERLEAVE;
		break;
	}
	placement_mask(placement, mask);
	return kernel->place(map, length, policy, mask);
}

static struct shadow *shadow_free(struct shadow *shadow)
{
	if (!shadow)
		return NULL;
	if (shadow->map)
		munmap(shadow->map, HMM_REGION_SIZE);
	if (shadow->fd >= 0)
		close(shadow->fd);
	free(shadow);
	return NULL;
}

static int insert_consume_fd(struct shadows *shadows, const struct pool *pool, uint64_t base, int fd, bool adopted,
			     struct shadow **result)
{
	struct shadow *shadow, **list;
	struct stat st;
	bool found;
	int at = find_index(shadows, base, &found);
	void *map;
	int r;

	shadow = found ? NULL : calloc(1, sizeof(*shadow));
	if (!shadow) {
		close(fd);
		return found ? -EEXIST : -ENOMEM;
	}
	shadow->base = base;
	shadow->fd = fd;
	shadow->known = adopted;
	/* Memory of a dax device is a node's, and its files are as anybody's. */
	shadow->kind = pool->kind == HMM_POOL_KIND_DAX ? HMM_POOL_KIND_MEMFD_HUGE :
		       pool->kind == HMM_POOL_KIND_VFIO ? HMM_POOL_KIND_MEMFD : pool->kind;
	shadow->bound = pool->placement.mode == HMM_PLACEMENT_BIND;
	if (fstat(fd, &st) == 0)
		shadow->inode = st.st_ino;
	map = mmap(NULL, HMM_REGION_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (map == MAP_FAILED) {
		r = -errno;
		shadow_free(shadow);
		return r;
	}
	shadow->map = map;
	madvise(map, HMM_REGION_SIZE, MADV_DONTDUMP);
	madvise(map, HMM_REGION_SIZE, MADV_DONTFORK);
	if (shadow->kind == HMM_POOL_KIND_MEMFD_HUGE)
		madvise(map, HMM_REGION_SIZE, MADV_HUGEPAGE);
	/* What comes from a former life has pages, and their policy: it is not refused, though a node may be gone. */
	r = shadow_place(map, HMM_REGION_SIZE, &pool->placement);
	if (adopted)
		r = 0;
	list = r ? NULL : realloc(shadows->list, (shadows->count + 1) * sizeof(*list));
	if (!list) {
		shadow_free(shadow);
		return r ? r : -ENOMEM;
	}
	memmove(list + at + 1, list + at, (shadows->count - (unsigned int)at) * sizeof(*list));
	list[at] = shadow;
	shadows->list = list;
	shadows->count++;
	*result = shadow;
	return 0;
}

int shadow_get(struct shadows *shadows, const struct pool *pool, uint64_t addr, struct shadow **result)
{
	uint64_t base = addr & ~(HMM_REGION_SIZE - 1);
	unsigned int flags = pool->kind == HMM_POOL_KIND_HUGETLB ? MFD_HUGETLB | (HMM_BLOCK_SHIFT << MFD_HUGE_SHIFT) : 0;
	int fd;

	*result = shadow_find(shadows, addr);
	if (*result)
		return 0;
	fd = kernel->memfd_new("hmm-shadow", HMM_REGION_SIZE, flags);
	if (fd < 0)
		return fd;
	return insert_consume_fd(shadows, pool, base, fd, false, result);
}

int shadow_adopt_consume_fd(struct shadows *shadows, const struct pool *pool, uint64_t base, int fd)
{
	struct shadow *shadow;

	return insert_consume_fd(shadows, pool, base, fd, true, &shadow);
}

void shadows_deinit(struct shadows *shadows)
{
	for (unsigned int i = 0; i < shadows->count; i++)
		shadow_free(shadows->list[i]);
	free(shadows->list);
	shadows->list = NULL;
	shadows->count = 0;
}

bool shadow_has_data(const struct shadow *shadow, uint64_t addr, uint64_t length)
{
	off_t offset = (off_t)(addr - shadow->base);
	off_t data = lseek(shadow->fd, offset, SEEK_DATA);

	return data >= 0 && (uint64_t)(data - offset) < length;
}

bool shadow_is_lost(const void *bytes)
{
	return madvise((void *)(uintptr_t)bytes, HMM_PAGE_SIZE, MADV_POPULATE_READ) && (errno == EHWPOISON || errno == EFAULT);
}

/* Through the mapping: hugetlb knows the policy of mappings, and none of files; and shmem has its huge pages there. */
static int take(const struct shadow *shadow, uint64_t addr)
{
	return kernel->populate(shadow_at(shadow, addr & ~(HMM_BLOCK_SIZE - 1)), HMM_BLOCK_SIZE) ? -ENOSPC : 0;
}

int shadow_reserve(const struct shadow *shadow, uint64_t addr)
{
	return shadow->kind == HMM_POOL_KIND_HUGETLB ? take(shadow, addr) : 0;
}

int shadow_commit(const struct shadow *shadow, uint64_t addr)
{
	return shadow->bound ? take(shadow, addr) : shadow_reserve(shadow, addr);
}

int shadow_store(const struct shadow *shadow, uint64_t addr, const void *bytes)
{
	off_t offset = (off_t)(addr - shadow->base);

	if (shadow->kind == HMM_POOL_KIND_HUGETLB) {
		if (shadow_reserve(shadow, addr))
			return -ENOSPC;
		memcpy(shadow_at(shadow, addr), bytes, HMM_PAGE_SIZE);
		return 0;
	}
	if (pwrite(shadow->fd, bytes, HMM_PAGE_SIZE, offset) != (ssize_t)HMM_PAGE_SIZE)
		return -ENOSPC;
	return 0;
}
