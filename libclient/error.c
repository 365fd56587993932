/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * error.c - the text of a thread's last failed call.
 *
 * The text lives in the calling thread; library threads put theirs into the
 * request, from where the caller takes it. Nothing here can fail.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "public.h"

/* initial-exec: reaching it never allocates, not even in a dlopen()ed library. */
static __thread char last_error[HMMC_ERROR_TEXT] __attribute__((tls_model("initial-exec")));

int hmmc_fail(int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(last_error, sizeof(last_error), format, args);
	va_end(args);
	return error;
}

const char *hmm_last_error(void)
{
	return last_error;
}

const char *hmm_version(void)
{
	return HMM_VERSION;
}
