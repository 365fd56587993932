/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a test says that it cannot run here. A Criterion test calls skip() with
 * the reason; it ends there, as skipped. The reason goes to standard error and,
 * when HMM_SKIP_LOG names a file, is appended to it as
 *
 *     SUITE/TEST: REASON
 *
 * so that tests/run can count the skips of all programs and compare them with
 * what tests/skips/ENVIRONMENT.txt allows: a skip that is not in the list is a
 * test that silently stopped running. A plain main() driver calls skip_record()
 * and leaves with status SKIP_STATUS, which ctest knows by SKIP_RETURN_CODE.
 */
#ifndef HMM_TESTS_SKIP_H
#define HMM_TESTS_SKIP_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SKIP_STATUS	77

static inline void skip_record(const char *name, const char *reason)
{
	const char *log = getenv("HMM_SKIP_LOG");
	char line[512];
	int fd;

	snprintf(line, sizeof(line) - 1, "%s: %s", name, reason);
	strcat(line, "\n");
	dprintf(STDERR_FILENO, "SKIP %s", line);
	if (!log || !*log)
		return;
	/* One write(2) with O_APPEND: programs that run in parallel do not mix lines. */
	fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, line, strlen(line)) != (ssize_t)strlen(line)) {
		dprintf(STDERR_FILENO, "cannot record a skip in %s: %m\n", log);
		abort();
	}
	close(fd);
}

#ifdef CRITERION_H_
#define skip(...)								\
	do {									\
		char skip_name_[128], skip_reason_[256];			\
		snprintf(skip_name_, sizeof(skip_name_), "%s/%s",		\
			 criterion_current_test->category, criterion_current_test->name);	\
		snprintf(skip_reason_, sizeof(skip_reason_), __VA_ARGS__);	\
		skip_record(skip_name_, skip_reason_);				\
		cr_skip_test("%s", skip_reason_);				\
	} while (0)
#endif

#endif
