/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload.h - what the preload module needs of the library beyond the public
 * headers. Exported, but for nobody else: it may change with any release.
 */
#ifndef HMMC_PRELOAD_H
#define HMMC_PRELOAD_H

#include <stdbool.h>

struct hmm;

#pragma GCC visibility push(default)
/* Is the calling thread one of the library's own? */
bool hmm_internal_is_library_thread(void);
/* Excludes the calling thread's stack and control block. */
int hmm_internal_exclude_thread(struct hmm *hmm);
#pragma GCC visibility pop

/* The address space of this process, or NULL while it is being opened or could not be. */
struct hmm *preload_space(void);

#endif
