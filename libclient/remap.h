/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* remap.h - mremap() in an owner. */
#ifndef HMMC_REMAP_H
#define HMMC_REMAP_H

#include <stddef.h>

#pragma GCC visibility push(default)
/* mremap() for whoever interposes it: same arguments, same result, errno set. */
void *hmm_internal_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new);
#pragma GCC visibility pop

#endif
