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
 * Return: 0; -ENOSPC: the pool is full; -ENOMEM; -EINVAL; -EPERM: not the owner.
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
 * back to an allocator; the mapping's name, policy and madvise() flags are gone.
 * Return: 0; -EINVAL: unaligned or empty; -EALREADY: some of it is coherent;
 *	-EFAULT: nothing is mapped there; -EPERM: not the owner, or read-only;
 *	-EOPNOTSUPP: files, shared, locked, excluded memory, stacks; -EBUSY: pinned,
 *	or its mapping changed, for 3 s; -ENOSPC: the device is full; -ENOMEM;
 *	-ESTALE.
 */
int hmm_share(struct hmm_mirror *mirror, void *addr, size_t length);

/*
 * hmm_unshare() - what hmm_share() made coherent is ordinary memory again, with
 * the bytes that it has. They are on the device; a touch brings them home. Any
 * blocks of 2 MiB that were shared on this mirror; threads may go on using them.
 * Return: 0; -EINVAL: not such memory; -EPERM: not the owner; -ENOMEM: the process
 *	can have no more mappings: what stays coherent is told by
 *	hmm_last_error(); -ESTALE.
 */
int hmm_unshare(struct hmm_mirror *mirror, void *addr, size_t length);

enum hmm_advice {
	HMM_ADVISE_UNPINNED = 1,	/* nothing pins these pages, nothing unmaps them during a migration */
	HMM_ADVISE_PINNED = 2,		/* take UNPINNED back */
};

/* hmm_advise() - Return: 0; -EINVAL. */
int hmm_advise(struct hmm *hmm, unsigned long addr, size_t length, enum hmm_advice advice);

/*
 * hmm_exclude() - never mirror [addr, addr + length): what is there comes home
 * now. hmm_include() takes it back. Owner only.
 */
int hmm_exclude(struct hmm *hmm, unsigned long addr, size_t length);
int hmm_include(struct hmm *hmm, unsigned long addr, size_t length);

#ifdef __cplusplus
}
#endif
#endif
