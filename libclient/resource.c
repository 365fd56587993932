/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * resource.c - device memory in something that exists: a memfd, a file of hugetlbfs, a dax device,
 * what a driver can be mapped from. It is mapped here, in the driver; pages are taken
 * from a stack of free ones, and their bytes copied by memcpy().
 *
 * Whatever cannot be mapped whole, and written, is refused with the reason. Huge pages are reserved. What
 * shrinks later, or lies on a full file system, cannot be: SIGBUS in the driver.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "devmem.h"
#include "mapping.h"

#define HUGETLBFS_MAGIC_NUMBER 0x958458f6

/*
 * Of a dax device (/dev/dax0.0): it says how large it is and what its pages are. Its mapping does not: a touch beyond
 * the end is SIGBUS. 0: it is none.
 */
static uint64_t dax_says(int fd, const char *name)
{
	char path[96], text[256];
	uint64_t value = 0;
	struct stat st;
	ssize_t n;

	if (fstat(fd, &st) || !S_ISCHR(st.st_mode))
		return 0;
	snprintf(path, sizeof(path), "/sys/dev/char/%u:%u/subsystem", major(st.st_rdev), minor(st.st_rdev));
	n = readlink(path, text, sizeof(text));
	if (n < 4 || memcmp(text + n - 4, "/dax", 4))
		return 0;
	snprintf(path, sizeof(path), "/sys/dev/char/%u:%u/%s", major(st.st_rdev), minor(st.st_rdev), name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text));
	close(fd);
	for (ssize_t i = 0; i < n && text[i] >= '0' && text[i] <= '9'; i++)
		value = value * 10 + (uint64_t)(text[i] - '0');
	return value;
}

/* The unit that offset and length are multiples of. */
static uint64_t unit_of(int fd)
{
	uint64_t align = dax_says(fd, "align");
	struct statfs st;

	if (align)
		return align;
	return fstatfs(fd, &st) == 0 && st.f_type == HUGETLBFS_MAGIC_NUMBER ? (uint64_t)st.f_bsize : HMM_PAGE_SIZE;
}

static int check(const struct hmm_resource *resource)
{
	int flags = fcntl(resource->fd, F_GETFL);
	uint64_t unit, size;
	struct stat st;

	if (flags < 0 || fstat(resource->fd, &st))
		return hmmc_fail(-EINVAL, "the resource's descriptor is not open");
	if ((flags & O_ACCMODE) != O_RDWR)
		return hmmc_fail(-EINVAL, "the resource is not open for reading and writing");
	unit = unit_of(resource->fd);
	if (!resource->length || resource->length % unit)
		return hmmc_fail(-EINVAL, "the resource's length is 0 or not a multiple of its page, %llu bytes",
				 (unsigned long long)unit);
	if (resource->offset % unit)
		return hmmc_fail(-EINVAL, "the resource's offset is not a multiple of its page, %llu bytes",
				 (unsigned long long)unit);
	if (resource->length > HMM_VA_END || resource->offset > INT64_MAX - resource->length)
		return hmmc_fail(-EINVAL, "the resource ends above what can be mapped");
	/* Another device's size is its own affair: mapping it tells. */
	size = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : dax_says(resource->fd, "size");
	if ((S_ISREG(st.st_mode) || size) && size < resource->offset + resource->length)
		return hmmc_fail(-EINVAL, "the resource has %llu bytes, fewer than offset and length ask for",
				 (unsigned long long)size);
	return 0;
}

int hmmc_resource_map(struct hmm_devmem_private *devmem, const struct hmm_resource *resource)
{
	int error = check(resource);

	if (error)
		return error;
	/* Reserved: a huge page that is not there later is a signal, in the driver, while it copies. */
	devmem->memory = hmmc_map_reserved(NULL, resource->length, PROT_READ | PROT_WRITE, MAP_SHARED, resource->fd,
					   resource->offset);
	if (!devmem->memory && errno == ENOMEM && unit_of(resource->fd) != HMM_PAGE_SIZE)
		return hmmc_fail(-EINVAL, "the resource's huge pages cannot be reserved: too few are free; see /proc/sys/vm/nr_hugepages");
	if (!devmem->memory)
		return hmmc_fail(-EINVAL, "the resource cannot be mapped for writing: %s", strerror(errno));
	devmem->memory_size = resource->length;
	madvise(devmem->memory, resource->length, MADV_DONTFORK);
	madvise(devmem->memory, resource->length, MADV_DONTDUMP);
	return 0;
}

void hmmc_resource_unmap(struct hmm_devmem_private *devmem)
{
	if (devmem->memory)
		munmap(devmem->memory, devmem->memory_size);
}

/* Those that were used before first: the table is touched as far as it has to be. */
static struct hmm_page *take(struct hmm_devmem_private *devmem)
{
	struct hmm_page *page = NULL;

	futex_lock(&devmem->lock);
	if (devmem->free_count)
		page = &devmem->devmem.pages[devmem->free[--devmem->free_count]];
	else if (devmem->fresh < devmem->count)
		page = &devmem->devmem.pages[devmem->fresh++];
	futex_unlock(&devmem->lock);
	return page;
}

void hmmc_resource_free(struct hmm_devmem_private *devmem, const struct hmm_page *page)
{
	futex_lock(&devmem->lock);
	devmem->free[devmem->free_count++] = (uint32_t)(page - devmem->devmem.pages);
	futex_unlock(&devmem->lock);
}

void hmmc_resource_store(struct hmm_devmem_private *devmem, const struct hmm_devmem_move *move)
{
	for (unsigned long i = 0; i < move->pages; i++) {
		if (!move->src[i])
			continue;
		move->dst[i] = take(devmem);
		if (!move->dst[i])
			return;
		memcpy(hmm_devmem_page_address(move->dst[i]), move->src[i], HMM_PAGE_SIZE);
	}
}

int hmmc_resource_fault(struct hmm_devmem_private *devmem, unsigned long addr, const struct hmm_page *page)
{
	void *to = hmm_vma_alloc_locked_page(&devmem->devmem, addr);

	if (!to)
		return HMM_FAULT_OOM;
	memcpy(to, hmm_devmem_page_address(page), HMM_PAGE_SIZE);
	return HMM_FAULT_MINOR;
}
