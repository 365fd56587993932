/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* mm.h - memory of the owner: coherent memory and what a program says of a range. */
#ifndef HMM_MM_H
#define HMM_MM_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_mirror;

/*
 * hmm_alloc() - coherent memory (state C): CPU and device map the very same
 * pages, nothing is ever copied. Owner only. Zeroed; a multiple of the page size.
 * Return: 0; -ENOSPC: the device is full, and nothing on it can make way; -ENOMEM; -EINVAL;
 * -EPERM: not the owner; -EOPNOTSUPP: only its driver reaches the device's memory
 * (devmem.h), or the mirror is tracked (sync.h).
 */
int hmm_alloc(struct hmm_mirror *mirror, size_t length, void **result);

/* hmm_free() - with the length it was allocated with. */
int hmm_free(struct hmm_mirror *mirror, void *addr, size_t length);

/*
 * hmm_share() - ordinary memory becomes coherent in place: from here on CPU and
 * device map the very same pages, as with hmm_alloc(). Its threads may go on
 * reading and writing it meanwhile; nothing is lost. Owner only; any thread.
 * @addr, @length: bytes; whole blocks of 2 MiB, aligned to 2 MiB, of private
 *	anonymous readable and writable memory. What was never touched is zeros.
 * All of it or nothing: on an error the bytes are what they were, and none of it
 * is coherent; some of it may be on the device, where a touch finds it.
 * Until hmm_unshare() it is shared memory: a fork's child shares it, madvise()
 * does not empty it, and it must not be unmapped, moved or discarded, nor given
 * back to an allocator. What MADV_DONTDUMP, MADV_DONTFORK and MADV_NOHUGEPAGE said of any of
 * a block holds for all of it, there and back; its name, policy and other madvise() flags are gone.
 * Return: 0; -EINVAL: unaligned or empty; -EALREADY: some of it is coherent;
 *	-EFAULT: nothing is mapped there; -EPERM: not the owner, or read-only;
 *	-EOPNOTSUPP: files, shared, locked, excluded memory, stacks, MADV_WIPEONFORK; or of the mirror, as
 *	hmm_alloc(); -EBUSY: pinned,
 *	or its mapping changed, for 3 s; -ENOSPC: the device is full; -ENOMEM;
 *	-ESTALE.
 */
int hmm_share(struct hmm_mirror *mirror, void *addr, size_t length);

/*
 * hmm_unshare() - what hmm_share() made coherent is ordinary memory again, with
 * the bytes that it has. They are on the device; a touch brings them home. Any
 * blocks of 2 MiB that were shared on this mirror; threads may go on using them.
 * What mprotect() took from it has to be given back first.
 * Return: 0; -EINVAL: not such memory; -EPERM: not the owner, or the program has
 *	protected some of it; -EFAULT: something else is mapped there, or nothing;
 *	-EOPNOTSUPP: some of it is locked, which ordinary memory would not be;
 *	-ENOMEM: the process can have no more mappings; -EBUSY: its map was changing, or a page
 *	on its way, for 3 seconds. From where it stays coherent is told by hmm_last_error(): ask
 *	again from there, for what is ordinary is -EINVAL; -ESTALE.
 */
int hmm_unshare(struct hmm_mirror *mirror, void *addr, size_t length);

/* ---- advice ------------------------------------------------------------------ */

/* 1 to 6 mean what CU_MEM_ADVISE_* of the same number do. */
enum hmm_advice {
	HMM_ADVISE_SET_READ_MOSTLY = 1,		/* a read leaves a copy: both sides may have the page */
	HMM_ADVISE_UNSET_READ_MOSTLY = 2,
	HMM_ADVISE_SET_PREFERRED_LOCATION = 3,	/* options.mirror's device; without one the system */
	HMM_ADVISE_UNSET_PREFERRED_LOCATION = 4,
	HMM_ADVISE_SET_ACCESSED_BY = 5,		/* options.mirror's device finds the pages there */
	HMM_ADVISE_UNSET_ACCESSED_BY = 6,
	HMM_ADVISE_UNPINNED = 16,	/* nothing pins these pages, nothing unmaps them during a migration */
	HMM_ADVISE_PINNED = 17,		/* take UNPINNED back */
	HMM_ADVISE_GRANULARITY = 18,	/* options.value: pages that one touch brings, a power of two, 1 to 512 */
	HMM_ADVISE_PREFETCH = 19,	/* options.value: 0, a walk brings no more than that; 1, it may */
	HMM_ADVISE_PIN = 20,		/* on options.mirror's device, and never evicted for space */
	HMM_ADVISE_DISCARD = 21,	/* what is on a device is not needed: dropped, not copied */
	HMM_ADVISE_EVICT_PRIORITY = 22,	/* options.value: 0 goes first, 100 last; 50 where nothing is said */
};

/* What can hold for a range. */
#define HMM_POLICY_READ_MOSTLY		(1ULL << 0)
#define HMM_POLICY_PREFERRED_DEVICE	(1ULL << 1)
#define HMM_POLICY_PREFERRED_SYSTEM	(1ULL << 2)
#define HMM_POLICY_ACCESSED_BY		(1ULL << 3)
#define HMM_POLICY_GRANULARITY		(1ULL << 4)
#define HMM_POLICY_NO_PREFETCH		(1ULL << 5)
#define HMM_POLICY_PIN			(1ULL << 6)
#define HMM_POLICY_EVICT_PRIORITY	(1ULL << 7)
#define HMM_POLICY_UNPINNED		(1ULL << 8)

#define HMM_POLICY_MIRRORS 16

/* The effective policy of a range. */
struct hmm_policy {
	size_t size;			/* sizeof(struct hmm_policy), set by the caller */
	uint64_t said;			/* HMM_POLICY_*: of all of the range */
	uint64_t mixed;			/* of a part of it, or not the same everywhere */
	uint64_t in_force;		/* what of `said` is done as it was said */
	uint64_t pages;			/* of 4 KiB, in the range */
	uint64_t on_device;		/* of these, there now; of a pinned range: on the device it is pinned to */
	unsigned int granularity;	/* pages; 0: nothing is said */
	unsigned int evict_priority;
	unsigned int accessed_by_count;	/* mirrors; those of other processes have no handle here: NULL */
	struct hmm_mirror *accessed_by[HMM_POLICY_MIRRORS];
	struct hmm_mirror *preferred;	/* with PREFERRED_DEVICE; NULL: another process's */
	struct hmm_mirror *pinned;	/* with PIN; NULL: another process's */
	char why[480];			/* why the rest is not in force and what is done instead; "" if all is */
};

struct hmm_advise_options {
	size_t size;			/* sizeof(struct hmm_advise_options) */
	struct hmm_mirror *mirror;	/* of the same address space */
	unsigned int value;
	struct hmm_policy *policy;	/* NULL, or where to put the policy that holds then */
};

/*
 * hmm_advise() - say something of [addr, addr + length); it holds for the
 * address space, whoever says it, until it is taken back or the memory is
 * unmapped. @options: NULL where the advice needs none.
 *
 * PIN brings all of the range to the device first (holes as zeros), or fails with
 * the reason and leaves everything as it was. A read by the CPU then shares a
 * page, where it can; a write takes it, and breaks its pin. On a device without
 * HMM_DEVICE_FAULTS a read does, too, and hmm_unadvise() sends the range home. DISCARD is done when
 * it returns: pages that were on a device read as zeros, those at the CPU as
 * before. All else is a hint; hmm_policy says what becomes of it.
 *
 * Any thread, owner or driver (UNPINNED: the owner only).
 * Return: 0; -EINVAL: unknown advice, a range that is empty, unaligned or ends
 * above user space, a mirror of another address space or none, a value out of
 * range; -ENOSPC: PIN, the device has no room (hmm_last_error() has the figures);
 * or there are too many different ranges already; -EBUSY, -EFAULT, -EPERM,
 * -EOPNOTSUPP: PIN, a page can't be on a device: in use, not mapped, read-only,
 * not of the kind that moves; -EOPNOTSUPP: options.mirror is tracked (sync.h); -EPERM:
 * UNPINNED, not the owner; -ESTALE; -ENOMEM; -E2BIG: options of a later library.
 */
int hmm_advise(struct hmm *hmm, unsigned long addr, size_t length, enum hmm_advice advice,
	       const struct hmm_advise_options *options);

/*
 * hmm_unadvise() - take it back; @advice as it was said. ACCESSED_BY needs its
 * mirror in @options. Where it was not said nothing happens. Return: as
 * hmm_advise(); -EINVAL for DISCARD, and for what takes something back itself.
 */
int hmm_unadvise(struct hmm *hmm, unsigned long addr, size_t length, enum hmm_advice advice,
		 const struct hmm_advise_options *options);

/*
 * hmm_range_get_attribute() - what holds for [addr, addr + length) now.
 * Return: 0; -EINVAL: a bad range, or policy->size is not set; -ESTALE; -ENOMEM.
 */
int hmm_range_get_attribute(struct hmm *hmm, unsigned long addr, size_t length, struct hmm_policy *policy);

/*
 * hmm_exclude() - never mirror [addr, addr + length): what is there comes home
 * now. hmm_include() takes it back. Owner only.
 * Return: 0; -EINVAL: a bad range; -EPERM: not the owner; -ENOMEM; -ESTALE; and of hmm_exclude() -EBUSY:
 * it is excluded, and some pages could not come home in seconds (no memory): ask again.
 */
int hmm_exclude(struct hmm *hmm, unsigned long addr, size_t length);
int hmm_include(struct hmm *hmm, unsigned long addr, size_t length);

#ifdef __cplusplus
}
#endif
#endif
