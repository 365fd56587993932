/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload_protect.c - mprotect() and pkey_mprotect() for programs under `hmmctl run`, as
 * preload_remap.c has mremap(), and weak for its reason.
 */
#include "protect.h"

__attribute__((weak, visibility("default"))) int mprotect(void *addr, size_t length,
							  int protection);
__attribute__((weak, visibility("default"))) int pkey_mprotect(void *addr, size_t length,
							       int protection, int key);

int mprotect(void *addr, size_t length, int protection)
{
	return hmm_internal_mprotect(addr, length, protection);
}

int pkey_mprotect(void *addr, size_t length, int protection, int key)
{
	return hmm_internal_pkey_mprotect(addr, length, protection, key);
}
