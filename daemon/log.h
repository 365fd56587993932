/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * log.h - what hmmd says to whoever runs it. Any thread may log; nobody waits
 * for it: lines go into a bounded ring, and one thread writes them to stderr.
 * An owner blocked on the far end of that pipe must never stop its own pager.
 */
#ifndef HMMD_LOG_H
#define HMMD_LOG_H

#include <stdint.h>

enum log_level {
	LOG_LEVEL_ERROR,	/* something is lost or refused for good */
	LOG_LEVEL_WARN,		/* works, but somebody should look */
	LOG_LEVEL_INFO,		/* starts, stops, reloads */
	LOG_LEVEL_DEBUG,
};

/* Starts the log thread. Before, and after log_deinit(), lines go straight to stderr. */
int log_init(enum log_level level);
/* Writes what is queued, for a second at most, and ends the thread. */
void log_deinit(void);
void log_set_level(enum log_level level);
/* Lines that found the ring full since the start. */
uint64_t log_dropped(void);

/* Lines longer than LOG_LINE_MAX bytes are cut. No line ends in a newline; the writer adds it. */
#define LOG_LINE_MAX 480

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
