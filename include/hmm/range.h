/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * range.h - ranges: a driver looks at the owner's pages, has them faulted in, and
 * is told by one look at shared memory whether what it saw is still so.
 *
 * The names, the retry loop and the error numbers are those of Linux 5.2's HMM, so
 * that a driver written for it is at home here:
 *
 *	hmm_range_register(&range, &mirror, start, end, 12);
 *	range.pfns = ...; range.flags = ...; range.values = ...;
 * again:
 *	if (!hmm_range_wait_until_valid(&range, HMM_RANGE_DEFAULT_TIMEOUT))
 *		give up;
 *	ret = hmm_range_fault(&range, true);
 *	if (ret == -EAGAIN || ret == -EBUSY)
 *		goto again;
 *	take the lock that sync_cpu_device_pagetables() takes;
 *	if (!hmm_range_valid(&range)) {
 *		drop the lock;
 *		goto again;
 *	}
 *	put range.pfns into the device's page table; drop the lock;
 *	hmm_range_unregister(&range);
 *
 * A "pfn" names a page. One space for all: a page of the owner's memory has its
 * virtual page number, pages of devices are numbered above all of those. The device
 * reaches a page of its own in its own memory, and a page of the owner's by
 * hmm_device_read() and hmm_device_write(), which look at the mapping each time.
 *
 * Different ranges may be used by different threads at once. One range is for one
 * thread at a time. None of these calls may be made by a callback of the mirror.
 */
#ifndef HMM_RANGE_H
#define HMM_RANGE_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_device;
struct hmm_mirror;
struct hmm_page;		/* devmem.h */
struct hmm_range_private;

/* Index into flags[]: the driver's own bits for them. */
enum hmm_pfn_flag_e {
	HMM_PFN_VALID = 0,	/* the page is there and may be read */
	HMM_PFN_WRITE,		/* ... and written: its mapping allows it */
	HMM_PFN_DEVICE_PRIVATE,	/* it lies in the memory of a device, where the CPU cannot reach it */
	HMM_PFN_HUGE,		/* a part of one huge page of the owner's memory: see hmm_range_snapshot() */
	HMM_PFN_ZERO,		/* the page of zeros, which all share that wrote nothing: the same */
	HMM_PFN_FLAG_MAX
};

/* Index into values[]: the driver's own entries for what is no page. */
enum hmm_pfn_value_e {
	HMM_PFN_ERROR,		/* it cannot be had, or a device lost it */
	HMM_PFN_NONE,		/* nothing is there */
	HMM_PFN_SPECIAL,	/* what is mapped there is not memory */
	HMM_PFN_VALUE_MAX
};

/*
 * The driver sets pfns, flags, values, default_flags, pfn_flags_mask and pfn_shift,
 * before or after registering; the rest is set by hmm_range_register(). Zero it first.
 *
 * An entry is flags | pfn << pfn_shift, or one of values. flags[HMM_PFN_VALID] is at
 * least one bit, and no value has any of it: else a page that was lost would read as one that is
 * there. values[HMM_PFN_NONE] is neither ERROR nor SPECIAL, which may be the same; no flag lies in the 40 bits of the pfn; pfn_shift is at most 12.
 * All other flags may be 0: the driver does not want to know.
 */
struct hmm_range {
	struct hmm *hmm;
	unsigned long start;		/* inclusive */
	unsigned long end;		/* exclusive */
	uint64_t *pfns;			/* one entry per 4 KiB, whatever page_shift is */
	const uint64_t *flags;		/* HMM_PFN_FLAG_MAX of them */
	const uint64_t *values;		/* HMM_PFN_VALUE_MAX of them */
	uint64_t default_flags;		/* wanted of every page */
	uint64_t pfn_flags_mask;	/* which bits of pfns[i] are wanted of that page, too */
	uint8_t page_shift;
	uint8_t pfn_shift;
	bool valid;			/* as it was found last; ask hmm_range_valid() */
	struct hmm_range_private *priv;	/* the library's; NULL: not registered */
};

/* How long the kernel's drivers wait, in ms. */
#define HMM_RANGE_DEFAULT_TIMEOUT 1000

/*
 * hmm_range_register() - begin to look at [start, end) of the mirror's owner.
 * @page_shift: 12, or that of the huge pages that all of the range consists of: hugetlb, or
 *	huge pages of the mirror's device. start and end are multiples of such a page.
 * No message is sent. The range is valid when it returns, unless something changes there.
 * The mirror may be unregistered, also in another thread and also while a call on the range is under
 * way: then the range is invalid for good and hmm_range_snapshot(), hmm_range_fault() give -EFAULT. It
 * is unregistered itself by whoever uses it, before that or after.
 * Return: 0; -EINVAL: a NULL range or mirror, a range that is registered already (one that was never set is not,
 *	whatever its priv holds), start >= end, misaligned, above user space, an impossible page_shift,
 *	or the mirror is not registered; -EFAULT: the owner is gone; -ENOMEM.
 */
int hmm_range_register(struct hmm_range *range, struct hmm_mirror *mirror, unsigned long start,
		       unsigned long end, unsigned int page_shift);

/* Ends it. NULL, or a range that is not registered, is allowed. */
void hmm_range_unregister(struct hmm_range *range);

/*
 * hmm_range_valid() - whether nothing was unmapped, discarded, moved or migrated in the range
 * since hmm_range_register(), hmm_range_wait_until_valid(), hmm_range_read_begin(), hmm_range_snapshot()
 * or hmm_range_fault() looked last. A few loads from shared memory, one per 2 MiB. Blocks of 2 MiB
 * are told apart, not pages: it may say false for a neighbour's sake. False for good when the owner,
 * the mirror or hmmd is gone.
 */
bool hmm_range_valid(struct hmm_range *range);

/*
 * hmm_range_wait_until_valid() - until nothing is changing in the range; from
 * there on changes count. @timeout: in ms; 0: do not wait.
 * Return: true; false: it was changing all the time, or the owner is gone.
 */
bool hmm_range_wait_until_valid(struct hmm_range *range, unsigned long timeout);

/*
 * hmm_range_snapshot() - fill pfns[] with what is there. Faults nothing in. A driver with a
 * flag for HUGE or ZERO is told of them, too, where the kernel tells (Linux 6.7); that always asks hmmd.
 * What was poisoned in the owner's memory looks as if it were in swap: NONE; hmm_range_fault() tells.
 * Return: how many pages, all of the range; or
 *	-EAGAIN: the range is not valid: wait until it is, and ask again. pfns[] is as it was;
 *	-EFAULT: nothing is mapped, a device lost the page (ERROR), or it is not memory
 *		(SPECIAL). What lies before it is filled in, what comes after it is NONE;
 *	-EPERM: some mapping may not be read: all NONE;
 *	-EINVAL: page_shift is not that of the pages, or the driver's arrays are
 *		missing or ambiguous. pfns[] is as it was;
 *	-EOPNOTSUPP: the mirror is tracked (sync.h). pfns[] is as it was;
 *	-ENOMEM.
 */
long hmm_range_snapshot(struct hmm_range *range);

/*
 * hmm_range_fault() - have each page as it is wanted, and fill pfns[].
 * Wanted of page i: (pfns[i] & pfn_flags_mask) | default_flags. Without VALID nothing is. VALID: it
 * is there, read from swap or its file if need be. WRITE: its mapping allows writing.
 * DEVICE_PRIVATE: not on a device; without this flag a page on the mirror's own device stays
 * there. What another device has comes home in any case, and for a group of devices all does.
 * @block: false: whatever has to be waited for gives -EAGAIN. It goes on meanwhile; ask again.
 * What is as wanted already costs a load per page; else all of the range goes to hmmd at once
 * (64 MiB at a time).
 * Return: how many pages, all of the range; or
 *	-EAGAIN: it would have to wait;
 *	-EBUSY: the range was, or became, invalid: wait until it is valid, and ask again.
 *		After both pfns[] is as it was;
 *	-EPERM: a page is wanted for writing and its mapping is read-only, or some
 *		mapping may not be read: all NONE;
 *	-EFAULT: a page cannot be had. Its entry is ERROR (SPECIAL: not memory), what lies before it is
 *		filled in, what comes after it is NONE;
 *	-EINVAL, -EOPNOTSUPP, -ENOMEM: as above.
 */
long hmm_range_fault(struct hmm_range *range, bool block);

/*
 * hmm_range_read_begin(), hmm_range_read_retry() - the loop of newer drivers (the kernel's
 * mmu_interval_read_begin) over the same numbers:
 *
 *	do {
 *		number = hmm_range_read_begin(&range);
 *		ret = hmm_range_fault(&range, true);
 *		if (ret == -EBUSY) continue;
 *		take the lock;
 *	} while (hmm_range_read_retry(&range, number));
 *
 * read_begin waits until nothing is changing; read_retry is true if anything changed
 * since, also by that fault itself, or if the owner is gone: ask hmm_range_fault() for -EFAULT.
 */
unsigned long hmm_range_read_begin(struct hmm_range *range);
bool hmm_range_read_retry(struct hmm_range *range, unsigned long number);

/*
 * hmm_range_dma_map() - hmm_range_fault(), and an address for each page at which the device's own
 * engine finds it. @device: the mirror's. @daddrs: one per page of 4 KiB; 0 where pfns[i] is no page.
 *
 * Of a device that is a card (options.bus of hmm_device_new()) addresses are the owner's own: what
 * of the range is coherent, or pinned on it, goes into the card's IOMMU, as far as the owner may
 * read and write it. It is there until hmm_range_dma_unmap(), or until anything changes in one of
 * the range's blocks of 2 MiB: then the range is not valid any more, the card reaches nothing of
 * that block, and the driver maps anew. Before that it is asked (quiesce()), and after the deadline
 * it is not waited for. Blocks go as a whole: one stays mapped as long as another range of the
 * mirror's that is mapped has a part of it. All ranges go with their connection, or hmmd; and when
 * the connection goes that had something mapped last, the card stops until the next call succeeds.
 * A new driver resets the card before that.
 * Of other devices addresses are those of device memory, pfn << 12.
 *
 * Return: pages mapped; -EBUSY: none, or the range became invalid; -EFAULT: a page has no address,
 *	or the IOMMU or the limit of locked memory refuses, and hmm_last_error() says which limit:
 *	none is mapped, and what was is not any more; -ENODEV: the card is being unplugged or unbound;
 *	-EINVAL: NULL, or another device; and as
 *	hmm_range_fault(): -EPERM, where a page is wanted for writing and the owner may not write
 *	it, also of coherent memory.
 */
long hmm_range_dma_map(struct hmm_range *range, struct hmm_device *device, uint64_t *daddrs, bool block);
/*
 * hmm_range_dma_unmap() - takes the addresses back: entries of pfns[] become NONE, those of
 * daddrs 0. @dirty: the device wrote the pages: hmm_dirty_read() tells of them, and the next hmm_mirror_sync()
 * copies them (all between the first and the last). Also from inside a callback.
 * Return: pages unmapped; -EINVAL; -ENOMEM, -ESTALE: nothing is unmapped, and only with @dirty or
 *	of a card. pfns[] and daddrs[] are as they were.
 */
long hmm_range_dma_unmap(struct hmm_range *range, struct hmm_device *device, uint64_t *daddrs, bool dirty);

static inline unsigned int hmm_range_page_shift(const struct hmm_range *range)
{
	return range->page_shift;
}

static inline unsigned long hmm_range_page_size(const struct hmm_range *range)
{
	return 1UL << hmm_range_page_shift(range);
}

/*
 * hmm_device_entry_to_pfn() - the number of the page in an entry; -1UL for NONE, ERROR,
 * SPECIAL and whatever has not the driver's VALID.
 */
static inline unsigned long hmm_device_entry_to_pfn(const struct hmm_range *range, uint64_t entry)
{
	if (entry == range->values[HMM_PFN_NONE] || entry == range->values[HMM_PFN_ERROR] ||
	    entry == range->values[HMM_PFN_SPECIAL] || !(entry & range->flags[HMM_PFN_VALID]))
		return -1UL;
	return (unsigned long)(entry >> range->pfn_shift) & ((1UL << 40) - 1);
}

/* hmm_device_entry_from_pfn() - a valid entry for the page of that number. */
static inline uint64_t hmm_device_entry_from_pfn(const struct hmm_range *range, unsigned long pfn)
{
	return (uint64_t)pfn << range->pfn_shift | range->flags[HMM_PFN_VALID];
}

/*
 * hmm_range_page() - the page of a number in the entries of a range, if it is one of the memory that
 * the driver brought for the range's mirror; else NULL, and so for a group of devices.
 * hmm_range_page_pfn() - its number there; -1UL
 * for a page of other memory. Any thread; no message is sent.
 */
struct hmm_page *hmm_range_page(const struct hmm_range *range, unsigned long pfn);
unsigned long hmm_range_page_pfn(const struct hmm_range *range, const struct hmm_page *page);

/* The page in an entry; NULL: NONE, ERROR, SPECIAL, not VALID, or not of this memory, as a system page is. */
static inline struct hmm_page *hmm_device_entry_to_page(const struct hmm_range *range, uint64_t entry)
{
	return hmm_range_page(range, hmm_device_entry_to_pfn(range, entry));
}

/* A valid entry for a page of this memory. */
static inline uint64_t hmm_device_entry_from_page(const struct hmm_range *range, const struct hmm_page *page)
{
	return hmm_device_entry_from_pfn(range, hmm_range_page_pfn(range, page));
}

#ifdef __cplusplus
}
#endif
#endif
