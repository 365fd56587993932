// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * notify.c - the service manager's datagram protocol (sd_notify(3)), and --ready-fd.
 *
 * What can fail: a NOTIFY_SOCKET that leads nowhere, a reader of the ready
 * descriptor that is gone. Both are logged and change nothing.
 * Thread: control; what is kept, any.
 */
#include "daemon/control/notify.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/log.h"

/* Most descriptors in one message. */
#define FDS_MAX 4

union control {
	char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
	struct cmsghdr header;
};

/* @wait: for room in the manager's queue. 0 or a negative errno; -ENOENT: nobody listens. */
static int tell(const char *state, const int *fds, unsigned int n, bool wait)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t length = path ? strlen(path) : 0;
	struct iovec text = { .iov_base = (void *)state, .iov_len = strlen(state) };
	union control control = { 0 };
	struct msghdr message = { .msg_name = &address, .msg_iov = &text, .msg_iovlen = 1 };
	int fd, r;

	if (!length)
		return -ENOENT;
	if ((*path != '/' && *path != '@') || length >= sizeof(address.sun_path)) {
		log_warn("NOTIFY_SOCKET is '%s', which is no socket address", path);
		return -EINVAL;
	}
	memcpy(address.sun_path, path, length);
	if (*path == '@')
		address.sun_path[0] = '\0';
	message.msg_namelen = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
	if (n) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(n * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, n * sizeof(int));
	}
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	do {
		r = sendmsg(fd, &message, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT)) < 0 ? -errno : 0;
	} while (r == -EINTR);
	close(fd);
	return r;
}

void notify_manager(const char *state)
{
	int r = tell(state, NULL, 0, false);

	if (r < 0 && r != -ENOENT)
		log_warn("the service manager cannot be told '%s': %s", state, strerror(-r));
}

int notify_keep(const char *name, const int *fds, unsigned int n)
{
	char text[128];

	if (n > FDS_MAX)
		return -EINVAL;
	/* Not to be polled: a userfaultfd looks to it as if it had failed, and would be closed. */
	snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	return tell(text, fds, n, false);
}

int notify_drop(const char *name)
{
	char text[128];

	snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
	/* One that is lost would be kept for good. */
	return tell(text, NULL, 0, true);
}

bool notify_is_heard(void)
{
	const char *path = getenv("NOTIFY_SOCKET");

	return path && *path;
}

uint64_t notify_patience_ms(void)
{
	const char *patience = getenv("WATCHDOG_USEC"), *whose = getenv("WATCHDOG_PID");

	if (!patience || (whose && strtol(whose, NULL, 10) != getpid()))
		return 0;
	return strtoull(patience, NULL, 10) / 1000;
}

void notify_ready_fd(int *fd)
{
	static const char ready[] = "READY=1\n";

	if (*fd < 0)
		return;
	if (write(*fd, ready, sizeof(ready) - 1) < 0)
		log_warn("--ready-fd %d cannot be written: %m", *fd);
	close(*fd);
	*fd = -1;
}
