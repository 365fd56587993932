// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * dmirror.c - the driver. Three things make it one:
 *
 *   invalidate()  the owner's memory changes: the device lets go of a range
 *   fault()       the device lacks a page: the retry loop of every HMM driver
 *   access()      the device at work: look in its table, fault, look again
 *
 * The lock keeps table and invalidations apart, and nothing else: whoever holds it
 * neither calls hmm functions that wait nor touches the owner's memory, since
 * those may be waiting for invalidate().
 */
#include "dmirror.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "table.h"

#define PAGE_SHIFT	12
#define PAGE_SIZE	(1UL << PAGE_SHIFT)
#define FAULT_PAGES	64	/* that one fault of the device brings at most */

struct dmirror {
	struct hmm_mirror mirror;	/* first: the callbacks' mirror is the dmirror */
	pthread_mutex_t lock;
	struct table table;
};

/* How this device writes its entries. Any layout will do; this one is the library's own. */
static const uint64_t flags[HMM_PFN_FLAG_MAX] = {
	[HMM_PFN_VALID] = 1 << 0,
	[HMM_PFN_WRITE] = 1 << 1,
	[HMM_PFN_DEVICE_PRIVATE] = 1 << 2,
	[HMM_PFN_HUGE] = 1 << 5,
	[HMM_PFN_ZERO] = 1 << 6,
};

static const uint64_t values[HMM_PFN_VALUE_MAX] = {
	[HMM_PFN_NONE] = 0,
	[HMM_PFN_ERROR] = 1 << 3,
	[HMM_PFN_SPECIAL] = 1 << 4,
};

/* ---- the device lets go ------------------------------------------------------ */

static int invalidate(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	struct dmirror *dmirror = (struct dmirror *)mirror;

	if (update->blockable)
		pthread_mutex_lock(&dmirror->lock);
	else if (pthread_mutex_trylock(&dmirror->lock))
		return -EAGAIN;
	table_erase(&dmirror->table, update->start, update->end);
	pthread_mutex_unlock(&dmirror->lock);
	return 0;
}

/* The owner is gone, and all of its memory. */
static void release(struct hmm_mirror *mirror)
{
	struct dmirror *dmirror = (struct dmirror *)mirror;

	pthread_mutex_lock(&dmirror->lock);
	table_erase(&dmirror->table, 0, -1UL);
	pthread_mutex_unlock(&dmirror->lock);
}

static const struct hmm_mirror_ops ops = {
	.size = sizeof(ops),
	.sync_cpu_device_pagetables = invalidate,
	.release = release,
};

/* ---- the device lacks pages -------------------------------------------------- */

/* Into the device's table, unless the range has changed since it was looked at. */
static long install(struct dmirror *dmirror, struct hmm_range *range, long pages)
{
	long ret = 0;

	pthread_mutex_lock(&dmirror->lock);
	if (!hmm_range_valid(range))
		ret = -EBUSY;
	for (long i = 0; i < pages && !ret; i++)
		ret = table_store(&dmirror->table, range->start + ((unsigned long)i << PAGE_SHIFT),
				  range->pfns[i]);
	pthread_mutex_unlock(&dmirror->lock);
	return ret;
}

static int fault(struct dmirror *dmirror, unsigned long start, unsigned long end, bool write)
{
	uint64_t pfns[FAULT_PAGES];
	struct hmm_range range = {
		.pfns = pfns, .flags = flags, .values = values, .pfn_shift = PAGE_SHIFT,
		.default_flags = flags[HMM_PFN_VALID] | (write ? flags[HMM_PFN_WRITE] : 0),
	};
	long ret;

	if (end - start > FAULT_PAGES << PAGE_SHIFT)
		end = start + (FAULT_PAGES << PAGE_SHIFT);
	do {
		ret = hmm_range_register(&range, &dmirror->mirror, start, end, PAGE_SHIFT);
		if (ret)
			return (int)ret;
		if (hmm_range_wait_until_valid(&range, HMM_RANGE_DEFAULT_TIMEOUT))
			ret = hmm_range_fault(&range, true);
		else
			ret = -EBUSY;
		if (ret > 0)
			ret = install(dmirror, &range, ret);
		hmm_range_unregister(&range);
	} while (ret == -EBUSY);
	return (int)ret;
}

/* ---- the device at work -------------------------------------------------------- */

static bool may(struct dmirror *dmirror, unsigned long addr, bool write)
{
	uint64_t wanted = flags[HMM_PFN_VALID] | (write ? flags[HMM_PFN_WRITE] : 0);
	uint64_t entry;

	pthread_mutex_lock(&dmirror->lock);
	entry = table_load(&dmirror->table, addr);
	pthread_mutex_unlock(&dmirror->lock);
	return (entry & wanted) == wanted;
}

static int access_memory(struct dmirror *dmirror, unsigned long addr, char *buffer, size_t size, bool write,
			 struct dmirror_counts *counts)
{
	unsigned long end = addr + size;

	*counts = (struct dmirror_counts){ 0 };
	while (addr < end) {
		unsigned long page = addr & ~(PAGE_SIZE - 1);
		size_t n = page + PAGE_SIZE - addr;
		ssize_t done;
		int error;

		if (n > end - addr)
			n = end - addr;
		if (!may(dmirror, addr, write)) {
			counts->faults++;
			error = fault(dmirror, page, (end + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1), write);
			if (error)
				return error;
			continue;
		}
		/* This device's bus: it reaches a page wherever that is. */
		done = write ? hmm_device_write(&dmirror->mirror, addr, buffer, n)
			     : hmm_device_read(&dmirror->mirror, addr, buffer, n);
		if (done < 0)
			return (int)done;
		counts->pages++;
		addr += (size_t)done;
		buffer += done;
	}
	return 0;
}

int dmirror_read(struct dmirror *dmirror, unsigned long addr, void *buffer, size_t size,
		 struct dmirror_counts *counts)
{
	return access_memory(dmirror, addr, buffer, size, false, counts);
}

int dmirror_write(struct dmirror *dmirror, unsigned long addr, const void *buffer, size_t size,
		  struct dmirror_counts *counts)
{
	return access_memory(dmirror, addr, (char *)buffer, size, true, counts);
}

/* A call that returns pages, or an error. */
static int reached(long pages, struct dmirror_counts *counts)
{
	*counts = (struct dmirror_counts){ .pages = pages > 0 ? (unsigned long)pages : 0 };
	return pages < 0 ? (int)pages : 0;
}

int dmirror_migrate(struct dmirror *dmirror, unsigned long addr, size_t size, enum hmm_target target,
		    struct dmirror_counts *counts)
{
	return reached(hmm_migrate(&dmirror->mirror, addr, size, target, 0, NULL, NULL), counts);
}

int dmirror_evict_all(struct dmirror *dmirror, struct dmirror_counts *counts)
{
	return reached(hmm_drain(&dmirror->mirror), counts);
}

int dmirror_exclusive(struct dmirror *dmirror, unsigned long addr, size_t size,
		      struct dmirror_counts *counts)
{
	return reached(hmm_device_exclusive_begin(&dmirror->mirror, addr, size, NULL), counts);
}

int dmirror_check_exclusive(struct dmirror *dmirror, unsigned long addr, size_t size)
{
	return hmm_device_exclusive_check(&dmirror->mirror, addr, size) ? 0 : -EPERM;
}

int dmirror_alloc(struct dmirror *dmirror, size_t size, void **result)
{
	return hmm_alloc(&dmirror->mirror, size, result);
}

int dmirror_free(struct dmirror *dmirror, void *memory, size_t size)
{
	return hmm_free(&dmirror->mirror, memory, size);
}

/* ---- a look ---------------------------------------------------------------------- */

static unsigned char byte_for(const struct dmirror *dmirror, const struct hmm_range *range,
			      unsigned long addr, uint64_t entry)
{
	unsigned long pfn = hmm_device_entry_to_pfn(range, entry);
	uint64_t own = hmm_mirror_lookup(&dmirror->mirror, addr);
	unsigned char byte;

	if (entry == values[HMM_PFN_ERROR] || entry == values[HMM_PFN_SPECIAL])
		return DMIRROR_ERROR;
	if (pfn == -1UL)
		return DMIRROR_NONE;
	byte = entry & flags[HMM_PFN_WRITE] ? DMIRROR_READ | DMIRROR_WRITE : DMIRROR_READ;
	if (entry & flags[HMM_PFN_HUGE])
		byte |= DMIRROR_HUGE;
	if (entry & flags[HMM_PFN_ZERO])
		byte |= DMIRROR_ZERO;
	if (entry & flags[HMM_PFN_DEVICE_PRIVATE])
		byte |= own & HMM_ENTRY_DEVICE ? DMIRROR_LOCAL : DMIRROR_REMOTE;
	else if (own & HMM_ENTRY_COHERENT)
		byte |= DMIRROR_COHERENT;
	return byte;
}

static long look(struct dmirror *dmirror, struct hmm_range *range, unsigned long start, unsigned long end)
{
	long ret = hmm_range_register(range, &dmirror->mirror, start, end, PAGE_SHIFT);

	if (ret)
		return ret;
	do
		ret = hmm_range_wait_until_valid(range, HMM_RANGE_DEFAULT_TIMEOUT) ? hmm_range_snapshot(range)
										    : -ETIMEDOUT;
	while (ret == -EAGAIN);
	return ret;
}

/* A page that cannot be had hides those behind it: then the halves are looked at. */
int dmirror_snapshot(struct dmirror *dmirror, unsigned long addr, size_t size, unsigned char *bytes)
{
	size_t pages = size >> PAGE_SHIFT, half = pages / 2 << PAGE_SHIFT;
	uint64_t *pfns = calloc(pages, sizeof(*pfns));
	struct hmm_range range = {
		.pfns = pfns, .flags = flags, .values = values, .pfn_shift = PAGE_SHIFT,
	};
	long ret = pfns ? look(dmirror, &range, addr, addr + size) : -ENOMEM;

	if ((ret == -EFAULT || ret == -EPERM) && pages > 1) {
		ret = dmirror_snapshot(dmirror, addr, half, bytes);
		if (!ret)
			ret = dmirror_snapshot(dmirror, addr + half, size - half, bytes + pages / 2);
	} else if (ret > 0 || ret == -EFAULT || ret == -EPERM) {
		for (size_t i = 0; i < pages; i++)
			bytes[i] = byte_for(dmirror, &range, addr + (i << PAGE_SHIFT), pfns[i]);
		ret = 0;
	}
	hmm_range_unregister(&range);
	free(pfns);
	return (int)ret;
}

/* ---- beginning and end ----------------------------------------------------------- */

int dmirror_open(struct hmm *hmm, const char *name, size_t memory, struct dmirror **result)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = name, .memory = memory, .node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};
	struct dmirror *dmirror = calloc(1, sizeof(*dmirror));
	int error;

	if (!dmirror)
		return -ENOMEM;
	pthread_mutex_init(&dmirror->lock, NULL);
	dmirror->mirror.ops = &ops;
	error = hmm_device_new(hmm, &options, &dmirror->mirror.device);
	if (!error)
		error = hmm_mirror_register(&dmirror->mirror, hmm);
	if (error) {
		hmm_device_put(dmirror->mirror.device);
		free(dmirror);
		return error;
	}
	*result = dmirror;
	return 0;
}

int dmirror_close(struct dmirror *dmirror)
{
	int error = hmm_mirror_unregister(&dmirror->mirror);

	if (error)
		return error;
	hmm_device_put(dmirror->mirror.device);
	table_free(&dmirror->table);
	pthread_mutex_destroy(&dmirror->lock);
	free(dmirror);
	return 0;
}
