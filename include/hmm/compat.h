/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * compat.h - names that Linux 5.2's HMM kept for drivers which had not moved on, and calls with
 * arguments that only a kernel has. Include it after <hmm/hmm.h>; it is not included by that.
 */
#ifndef HMM_COMPAT_H
#define HMM_COMPAT_H

#include <errno.h>
#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline unsigned long hmm_pfn_to_pfn(const struct hmm_range *range, uint64_t pfn)
{
	return hmm_device_entry_to_pfn(range, pfn);
}

static inline uint64_t hmm_pfn_from_pfn(const struct hmm_range *range, unsigned long pfn)
{
	return hmm_device_entry_from_pfn(range, pfn);
}

static inline struct hmm_page *hmm_pfn_to_page(const struct hmm_range *range, uint64_t pfn)
{
	return hmm_device_entry_to_page(range, pfn);
}

static inline uint64_t hmm_pfn_from_page(const struct hmm_range *range, const struct hmm_page *page)
{
	return hmm_device_entry_from_page(range, page);
}

/* Ends the range. Return: whether it was valid until then. */
static inline bool hmm_vma_range_done(struct hmm_range *range)
{
	bool valid = hmm_range_valid(range);

	hmm_range_unregister(range);
	return valid;
}

/*
 * hmm_vma_fault() - registers [range->start, range->end) and faults it in as each pfns[i] asks.
 * Return: 0: it is registered, and hmm_vma_range_done() ends it; -EAGAIN: it did not become
 * valid; -EBUSY: try again; or as hmm_range_register() and hmm_range_fault(). After an error
 * it is not registered.
 */
static inline int hmm_vma_fault(struct hmm_mirror *mirror, struct hmm_range *range, bool block)
{
	long ret;

	range->default_flags = 0;
	range->pfn_flags_mask = ~(uint64_t)0;
	ret = hmm_range_register(range, mirror, range->start, range->end, 12);
	if (ret)
		return (int)ret;
	if (!hmm_range_wait_until_valid(range, HMM_RANGE_DEFAULT_TIMEOUT)) {
		/* The kernel left it registered here. */
		hmm_range_unregister(range);
		return -EAGAIN;
	}
	ret = hmm_range_fault(range, block);
	if (ret > 0)
		return 0;
	if (ret == -EAGAIN)
		ret = -EBUSY;
	hmm_range_unregister(range);
	return (int)ret;
}

#ifdef __cplusplus
}
#endif

/* The kernel's has a struct vm_area_struct behind the range: five arguments become four. */
#define HMM_COMPAT_UNMAP_4(range, device, daddrs, dirty) hmm_range_dma_unmap(range, device, daddrs, dirty)
#define HMM_COMPAT_UNMAP_5(range, vma, device, daddrs, dirty) \
	((void)(vma), hmm_range_dma_unmap(range, device, daddrs, dirty))
#define HMM_COMPAT_CHOOSE(a, b, c, d, e, name, ...) name
#define hmm_range_dma_unmap(...) \
	HMM_COMPAT_CHOOSE(__VA_ARGS__, HMM_COMPAT_UNMAP_5, HMM_COMPAT_UNMAP_4, 0, 0, 0)(__VA_ARGS__)

#endif
