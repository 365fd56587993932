// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * private.c - starts and stops an hmmd that serves one `hmmctl run`.
 *
 * Its socket lies in a folder of its own, its pool is a memfd, and it says on a
 * pipe when it serves; the end of that pipe without a word means that it could
 * not, and its own message is on stderr. It dies with hmmctl. Main thread.
 */
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "private.h"

/* Beside this program in a build tree; else wherever the system has it. */
static const char *find_hmmd(char path[PATH_MAX])
{
	ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - 32);
	char *slash;

	if (length > 0) {
		path[length] = 0;
		slash = strrchr(path, '/');
		strcpy(slash + 1, "../daemon/hmmd");
		if (!access(path, X_OK))
			return path;
	}
	return access("/usr/sbin/hmmd", X_OK) ? "hmmd" : "/usr/sbin/hmmd";
}

static void become_hmmd(const struct private_daemon *daemon, uint64_t pool_size, int ready)
{
	char path[PATH_MAX], ready_text[16], size_text[32];
	char *argv[] = {
		"hmmd", "--no-config", "--socket", (char *)daemon->socket, "--pool", "memfd",
		"--pool-size", size_text, "--ready-fd", ready_text, "--log", "error",
		geteuid() ? "--user" : NULL, NULL,
	};

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	setsid();	/* a terminal's interrupt is for the program */
	snprintf(ready_text, sizeof(ready_text), "%d", ready);
	snprintf(size_text, sizeof(size_text), "%lu", pool_size);
	execvp(find_hmmd(path), argv);
	perror("hmmctl: cannot execute hmmd");
	_exit(127);
}

int private_start(struct private_daemon *daemon, uint64_t pool_size)
{
	char said[16] = "";
	int ready[2];

	strcpy(daemon->folder, "/tmp/hmmctl-run.XXXXXX");
	if (!mkdtemp(daemon->folder) || pipe(ready)) {
		perror("hmmctl: cannot prepare an hmmd");
		return -1;
	}
	snprintf(daemon->socket, sizeof(daemon->socket), "%s/hmmd.sock", daemon->folder);
	daemon->pid = fork();
	if (daemon->pid == 0) {
		close(ready[0]);
		become_hmmd(daemon, pool_size, ready[1]);
	}
	close(ready[1]);
	if (daemon->pid < 0 || read(ready[0], said, sizeof(said) - 1) <= 0 ||
	    strncmp(said, "READY=1", 7)) {
		fputs("hmmctl: the private hmmd did not start\n", stderr);
		close(ready[0]);
		private_stop(daemon);
		return -1;
	}
	close(ready[0]);
	return 0;
}

int private_stop(struct private_daemon *daemon)
{
	int status = 0, ret = 0;

	if (daemon->pid > 0) {
		kill(daemon->pid, SIGTERM);
		if (waitpid(daemon->pid, &status, 0) != daemon->pid || status) {
			fputs("hmmctl: the private hmmd did not leave in good order\n", stderr);
			ret = -1;
		}
	}
	unlink(daemon->socket);
	rmdir(daemon->folder);
	daemon->pid = 0;
	return ret;
}
