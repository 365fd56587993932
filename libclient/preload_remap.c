/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload_remap.c - mremap() for programs under `hmmctl run`: the library's own
 * comes behind libc's where the program is not linked with it. Weak, because a
 * module that contains the library has that one already.
 */
#include "remap.h"

__attribute__((weak, visibility("default"))) void *mremap(void *old, size_t old_size,
							  size_t new_size, int flags, ...);

void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
	va_list arguments;
	void *new;

	va_start(arguments, flags);
	new = remap_place(flags, arguments);
	va_end(arguments);
	return hmm_internal_mremap(old, old_size, new_size, flags, new);
}
