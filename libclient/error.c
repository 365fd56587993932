/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * error.c - the text of a thread's last failed call, and the program's log function.
 *
 * The text lives in the calling thread; library threads put theirs into the
 * request, from where the caller takes it. Nothing here can fail.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "error.h"
#include "futex.h"
#include "public.h"

/* initial-exec: reaching it never allocates, not even in a dlopen()ed library. */
static __thread char last_error[HMMC_ERROR_TEXT] __attribute__((tls_model("initial-exec")));

static struct {
	struct futex_lock lock;
	hmm_log_fn fn;
	void *data;
} sink LIBRARY_DATA = { .fn = NULL };

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

void hmm_set_log(hmm_log_fn fn, void *data)
{
	futex_lock(&sink.lock);
	sink.fn = fn;
	sink.data = data;
	futex_unlock(&sink.lock);
}

void hmmc_log_forget(void)
{
	sink.lock.word = 0;
}

void hmmc_log(int level, const char *format, ...)
{
	char text[HMMC_ERROR_TEXT];
	hmm_log_fn fn;
	void *data;
	va_list args;

	futex_lock(&sink.lock);
	fn = sink.fn;
	data = sink.data;
	futex_unlock(&sink.lock);
	if (!fn)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fn(data, level, text);
}
