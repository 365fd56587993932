// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * hmmd.c - a benchmark kills the hmmd that bench/run has started, and starts others with the same command line. They end with the
 * benchmark. One thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/rig/rig.h"

#define WORDS_MAX	64

void hmmd_adopt(struct hmmd *hmmd, pid_t pid)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, hmmd->command, sizeof(hmmd->command) - 1);
	if (n <= 0)
		fail("%s: %s", path, strerror(errno));
	close(fd);
	hmmd->length = (size_t)n;
	hmmd->pid = pid;
}

void hmmd_end(struct hmmd *hmmd, int number)
{
	int fd = (int)syscall(SYS_pidfd_open, hmmd->pid, 0);
	struct pollfd wait = { .fd = fd, .events = POLLIN };

	if (fd < 0 || kill(hmmd->pid, number))
		fail("hmmd, pid %d: %s", hmmd->pid, strerror(errno));
	while (poll(&wait, 1, -1) != 1)
		;
	close(fd);
	waitpid(hmmd->pid, NULL, 0);	/* the first is somebody else's child */
	hmmd->pid = 0;
}

double hmmd_start(struct hmmd *hmmd, const char *socket)
{
	char *words[WORDS_MAX], said[16] = "", number[12], *word = hmmd->command;
	unsigned int n = 0;
	double start;
	int ready[2];

	if (pipe2(ready, O_CLOEXEC))
		fail("pipe: %s", strerror(errno));
	snprintf(number, sizeof(number), "%d", ready[1]);
	for (; word < hmmd->command + hmmd->length && n < WORDS_MAX - 1; word += strlen(word) + 1) {
		words[n] = word;
		if (n && !strcmp(words[n - 1], "--ready-fd"))
			words[n] = number;
		if (n && socket && !strcmp(words[n - 1], "--socket"))
			words[n] = (char *)(uintptr_t)socket;
		n++;
	}
	words[n] = NULL;
	start = now();
	hmmd->pid = fork();
	if (hmmd->pid < 0)
		fail("fork: %s", strerror(errno));
	if (!hmmd->pid) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		fcntl(ready[1], F_SETFD, 0);
		execv(words[0], words);
		_exit(127);
	}
	close(ready[1]);
	if (read(ready[0], said, sizeof(said) - 1) <= 0 || strcmp(said, "READY=1\n"))
		fail("hmmd did not start again");
	start = now() - start;
	close(ready[0]);
	return start;
}
