// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a test may not leave behind: descriptors and memory.
 *
 * leakcheck_begin() notes which descriptors are open before the test, leakcheck_end() names every one
 * that is open and was not, and asks LeakSanitizer (when the build has it) for blocks nobody points to.
 * Either finding ends the process by abort(), which Criterion reports as a crash of that test.
 *
 * Runs in the thread of the test, in Criterion's worker process: one process per test.
 */
#include "tests/leakcheck.h"

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FDS_MAX 4096

/* Absent, and then NULL, without AddressSanitizer. */
extern int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

static bool open_before[FDS_MAX];

/* Calls visit for each open descriptor but the one that lists them. */
static unsigned int each_descriptor(unsigned int (*visit)(int fd))
{
	DIR *directory = opendir("/proc/self/fd");
	struct dirent *entry;
	unsigned int sum = 0;

	if (!directory) {
		perror("leakcheck: /proc/self/fd");
		abort();
	}
	while ((entry = readdir(directory))) {
		int fd = (int)strtol(entry->d_name, NULL, 10);

		if (entry->d_name[0] != '.' && fd != dirfd(directory) && fd < FDS_MAX)
			sum += visit(fd);
	}
	closedir(directory);
	return sum;
}

static unsigned int note(int fd)
{
	open_before[fd] = true;
	return 0;
}

static unsigned int accuse(int fd)
{
	char path[64], target[PATH_MAX];
	ssize_t length;

	if (open_before[fd])
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	length = readlink(path, target, sizeof(target) - 1);
	target[length < 0 ? 0 : length] = '\0';
	fprintf(stderr, "leakcheck: descriptor %d (%s) was left open\n", fd, target);
	return 1;
}

void leakcheck_begin(void)
{
	memset(open_before, 0, sizeof(open_before));
	each_descriptor(note);
}

void leakcheck_end(void)
{
	unsigned int leaked = each_descriptor(accuse);

	if (__lsan_do_recoverable_leak_check && __lsan_do_recoverable_leak_check()) {
		fprintf(stderr, "leakcheck: memory was left allocated\n");
		leaked++;
	}
	if (leaked)
		abort();
}
