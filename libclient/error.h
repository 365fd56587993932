/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* error.h - what went wrong, in words, and what happened behind the program's back. */
#ifndef HMMC_ERROR_H
#define HMMC_ERROR_H

#define HMMC_ERROR_TEXT 256

/* Sets the calling thread's hmm_last_error() and returns @error. */
int hmmc_fail(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

enum { HMMC_LOG_ERROR = 3, HMMC_LOG_WARNING = 4, HMMC_LOG_NOTICE = 5, HMMC_LOG_DEBUG = 7 };
/* To the program's log function, if it set one. */
void hmmc_log(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* After fork, in the child: nobody holds the lock. */
void hmmc_log_forget(void);

#endif
