// SPDX-License-Identifier: GPL-2.0-or-later
/* message.c - one byte, and perhaps a descriptor, over a socketpair. Any thread; waits. */
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "message.h"

union control {
	struct cmsghdr header;
	char space[CMSG_SPACE(sizeof(int))];
};

bool message_send(int socket, enum message message, int fd)
{
	char byte = (char)message;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	union control control;

	if (fd >= 0) {
		memset(&control, 0, sizeof(control));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(fd));
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	}
	return sendmsg(socket, &msg, MSG_NOSIGNAL) == 1;
}

enum message message_wait(int socket, int *fd)
{
	char byte;
	struct iovec iov = { &byte, 1 };
	union control control;
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = fd ? &control : NULL,
		.msg_controllen = fd ? sizeof(control) : 0,
	};
	struct cmsghdr *header;

	if (fd)
		*fd = -1;
	if (recvmsg(socket, &msg, MSG_CMSG_CLOEXEC) != 1)
		return GONE;
	header = CMSG_FIRSTHDR(&msg);
	if (fd && header && header->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(header), sizeof(*fd));
	return (enum message)byte;
}

bool message_waiting(int socket)
{
	struct pollfd pollfd = { .fd = socket, .events = POLLIN };

	return poll(&pollfd, 1, 0) > 0;
}
