// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * passed.c - the receiving half of the service manager's protocol; notify.c is the other.
 *
 * Descriptors lie from 3 on, LISTEN_FDS says how many, LISTEN_PID for whom, LISTEN_FDNAMES how they
 * are called (sd_listen_fds(3)). That is all of it, so libsystemd, which hmmd needs for nothing else,
 * is not linked.
 *
 * What can fail: the environment may be another process's, or nonsense, and then nothing was
 * passed; memory, and then what was passed is left where it is, closed to children.
 * Thread: control.
 */
#include "daemon/control/passed.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/log.h"

#define FIRST_FD 3
/* More than any unit may have the manager keep by default; LISTEN_FDS is not to be believed without bound. */
#define FDS_MAX 4096

static long number_in(const char *name)
{
	const char *text = getenv(name);
	char *end;
	long value;

	if (!text || !*text)
		return -1;
	errno = 0;
	value = strtol(text, &end, 10);
	return errno || *end ? -1 : value;
}

/* @names: "a:b:c", what is left of it; NULL at its end. */
static void take_name(char **names, char *out, size_t room)
{
	const char *name = strsep(names, ":");

	snprintf(out, room, "%s", name ? name : "");
}

void passed_collect(struct passed *passed)
{
	long n = number_in("LISTEN_FDS"), pid = number_in("LISTEN_PID");
	char *names = getenv("LISTEN_FDNAMES"), *copy = names ? strdup(names) : NULL, *rest = copy;
	long i;

	memset(passed, 0, sizeof(*passed));
	if (pid == getpid() && n > 0 && n <= FDS_MAX)
		passed->fds = calloc((size_t)n, sizeof(*passed->fds));
	for (i = 0; passed->fds && i < n; i++) {
		struct passed_fd *to = &passed->fds[passed->n];

		take_name(&rest, to->name, sizeof(to->name));
		to->fd = FIRST_FD + (int)i;
		/* One that is not open was closed on the way here. */
		if (fcntl(to->fd, F_SETFD, FD_CLOEXEC) == 0)
			passed->n++;
	}
	free(copy);
	/* They are for nobody that hmmd starts. */
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
}

static int is_socket(int fd)
{
	int type;
	socklen_t size = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
}

int passed_take_socket(struct passed *passed, int administration)
{
	unsigned int i;

	for (i = 0; i < passed->n; i++) {
		struct passed_fd *from = &passed->fds[i];
		int fd = from->fd;

		if (fd < 0 || !is_socket(fd) || !strcmp(from->name, PASSED_ADMINISTRATION) != !!administration)
			continue;
		from->fd = -1;
		return fd;
	}
	return -1;
}

const char *passed_take_kept(struct passed *passed, int *fd)
{
	unsigned int i;

	for (i = 0; i < passed->n; i++) {
		struct passed_fd *from = &passed->fds[i];

		if (from->fd < 0 || strncmp(from->name, PASSED_KEPT, strlen(PASSED_KEPT)))
			continue;
		*fd = from->fd;
		from->fd = -1;
		return from->name;
	}
	return NULL;
}

int passed_take_named(struct passed *passed, const char *name)
{
	unsigned int i;

	for (i = 0; i < passed->n; i++) {
		struct passed_fd *from = &passed->fds[i];
		int fd = from->fd;

		if (fd < 0 || strcmp(from->name, name))
			continue;
		from->fd = -1;
		return fd;
	}
	return -1;
}

void passed_deinit(struct passed *passed)
{
	unsigned int i;

	for (i = 0; i < passed->n; i++) {
		if (passed->fds[i].fd < 0)
			continue;
		log_warn("the service manager passed descriptor %d, '%s', which hmmd has no use for: it is closed",
			 passed->fds[i].fd, passed->fds[i].name);
		close(passed->fds[i].fd);
	}
	free(passed->fds);
	passed->fds = NULL;
	passed->n = 0;
}
