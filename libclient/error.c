/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * error.c - the text of a thread's last failed call.
 *
 * The text lives in the calling thread; library threads put theirs into the
 * request, from where the caller takes it. Nothing here can fail.
 */
#include <errno.h>
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

int hmmc_take_options(const void *given, void *known, size_t size)
{
	const unsigned char *bytes = given;
	size_t have;

	memset(known, 0, size);
	if (!given)
		return 0;
	memcpy(&have, given, sizeof(have));
	if (have < sizeof(have))
		return hmmc_fail(-EINVAL, "size is not set");
	for (size_t i = size; i < have; i++)
		if (bytes[i])
			return hmmc_fail(-E2BIG, "something is asked for that this library does not know");
	memcpy(known, given, have < size ? have : size);
	return 0;
}

const char *hmm_last_error(void)
{
	return last_error;
}

const char *hmm_version(void)
{
	return HMM_VERSION;
}
