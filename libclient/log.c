/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * log.c - lines from library threads to the program's log function.
 *
 * Library threads must not run the program's code: it may touch memory that they
 * have to bring home, and would see their descriptors instead of its own. So they
 * leave lines in a ring, and a thread with the program's descriptors, which exists
 * once a log function is set, calls it. Lines that find the ring full are counted.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "clerk.h"
#include "error.h"
#include "futex.h"
#include "log.h"
#include "public.h"

#define LINES 32

struct line {
	int level;
	char text[HMMC_ERROR_TEXT];
};

static struct {
	struct futex_lock lock;
	hmm_log_fn fn;
	void *data;
	struct thread thread;
	uint32_t written;		/* futex; lines[written % LINES] is the next */
	uint32_t read;
	uint32_t dropped;
	struct line lines[LINES];
} sink LIBRARY_DATA = { .fn = NULL };

/* Return: false when there is no line. */
static bool take(struct line *line, hmm_log_fn *fn, void **data, uint32_t *dropped)
{
	bool any;

	futex_lock(&sink.lock);
	any = sink.read != sink.written;
	if (any)
		*line = sink.lines[sink.read++ % LINES];
	*fn = sink.fn;
	*data = sink.data;
	*dropped = sink.dropped;
	sink.dropped = 0;
	futex_unlock(&sink.lock);
	return any;
}

static void log_main(void *argument)
{
	struct line line;
	char text[64];

	for (;;) {
		uint32_t written = __atomic_load_n(&sink.written, __ATOMIC_ACQUIRE), dropped;
		hmm_log_fn fn;
		void *data;

		if (!take(&line, &fn, &data, &dropped)) {
			futex_wait(&sink.written, written, NULL);
			continue;
		}
		if (fn && dropped) {
			snprintf(text, sizeof(text), "%u lines did not fit before this one",
				 dropped);
			fn(data, HMMC_LOG_WARNING, text);
		}
		if (fn)
			fn(data, line.level, line.text);
	}
}

void hmm_set_log(hmm_log_fn fn, void *data)
{
	futex_lock(&sink.lock);
	sink.fn = fn;
	sink.data = data;
	/* Without the thread there are no lines, and nothing else is lost. */
	if (fn && !sink.thread.started)
		hmmc_thread_start(&sink.thread, "hmm-log", log_main, NULL);
	futex_unlock(&sink.lock);
}

void hmmc_log(int level, const char *format, ...)
{
	struct line *line;
	va_list args;

	futex_lock(&sink.lock);
	if (sink.fn && sink.written - sink.read < LINES) {
		line = &sink.lines[sink.written % LINES];
		line->level = level;
		va_start(args, format);
		vsnprintf(line->text, sizeof(line->text), format, args);
		va_end(args);
		__atomic_add_fetch(&sink.written, 1, __ATOMIC_RELEASE);
		futex_wake(&sink.written, 1);
	} else if (sink.fn) {
		sink.dropped++;
	}
	futex_unlock(&sink.lock);
}

void hmmc_log_forget(void)
{
	memset(&sink, 0, sizeof(sink));
}
