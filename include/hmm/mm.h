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
 * Return: 0; -ENOSPC: the device is full, and nothing on it can make way; -ENOMEM; -EINVAL; -EPERM: not the owner.
 */
int hmm_alloc(struct hmm_mirror *mirror, size_t length, void **result);

/* hmm_free() - with the length it was allocated with. */
int hmm_free(struct hmm_mirror *mirror, void *addr, size_t length);

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
