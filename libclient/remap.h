/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* remap.h - mremap() in an owner. */
#ifndef HMMC_REMAP_H
#define HMMC_REMAP_H

#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

#pragma GCC visibility push(default)
/* mremap() for whoever interposes it: same arguments, same result, errno set. */
void *hmm_internal_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new);
#pragma GCC visibility pop

/* The last argument of mremap(), where there is one. */
static inline void *remap_place(int flags, va_list arguments)
{
	return flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) ? va_arg(arguments, void *) : NULL;
}

#endif
