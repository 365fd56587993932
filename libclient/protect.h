/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* protect.h - mprotect() and pkey_mprotect() in an owner. */
#ifndef HMMC_PROTECT_H
#define HMMC_PROTECT_H

#include <stddef.h>

#pragma GCC visibility push(default)
/* For whoever interposes them: same arguments, same result, errno set. */
int hmm_internal_mprotect(void *addr, size_t length, int protection);
int hmm_internal_pkey_mprotect(void *addr, size_t length, int protection, int key);
#pragma GCC visibility pop

#endif
