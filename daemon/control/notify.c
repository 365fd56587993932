// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * notify.c - the service manager's datagram protocol, and --ready-fd.
 *
 * What can fail: a NOTIFY_SOCKET that leads nowhere, a reader of the ready
 * descriptor that is gone. Both are logged and change nothing.
 * Thread: control.
 */
#include "daemon/control/notify.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/log.h"

void notify_manager(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t length = path ? strlen(path) : 0;
	int fd;

	if (!length)
		return;
	if ((*path != '/' && *path != '@') || length >= sizeof(address.sun_path)) {
		log_warn("NOTIFY_SOCKET is '%s', which is no socket address", path);
		return;
	}
	memcpy(address.sun_path, path, length);
	if (*path == '@')
		address.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (sendto(fd, state, strlen(state), MSG_NOSIGNAL | MSG_DONTWAIT,
		   (struct sockaddr *)&address,
		   offsetof(struct sockaddr_un, sun_path) + length) < 0)
		log_warn("the service manager at %s cannot be told '%s': %m", path, state);
	close(fd);
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
