/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* error.h - what went wrong, in words. */
#ifndef HMMC_ERROR_H
#define HMMC_ERROR_H

#define HMMC_ERROR_TEXT 256

/* Sets the calling thread's hmm_last_error() and returns @error. */
int hmmc_fail(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
