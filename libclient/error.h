/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* error.h - what went wrong, in words; and the check of what programs hand in. */
#ifndef HMMC_ERROR_H
#define HMMC_ERROR_H

#include <stddef.h>

#define HMMC_ERROR_TEXT 256

/* Sets the calling thread's hmm_last_error() and returns @error. */
int hmmc_fail(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * Takes a struct of the program's that begins with its own size into @known, of
 * @size bytes, which is zeroed first. What this library does not know of it must be zero.
 * @given NULL: nothing is taken. Return: 0; -EINVAL: size is not set; -E2BIG.
 */
int hmmc_take_options(const void *given, void *known, size_t size);

#endif
