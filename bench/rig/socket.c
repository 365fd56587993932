// SPDX-License-Identifier: GPL-2.0-or-later
/* socket.c - one word, and perhaps a descriptor, between two processes of a benchmark. Waits; any thread. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench/rig/rig.h"

union control {
	struct cmsghdr header;
	char space[CMSG_SPACE(sizeof(int))];
};

void word_send(int socket, double word, int fd)
{
	struct iovec iov = { &word, sizeof(word) };
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
	if (sendmsg(socket, &msg, MSG_NOSIGNAL) != sizeof(word))
		fail("the other process ended: %s", strerror(errno));
}

double word_wait(int socket, int *fd)
{
	double word = 0;
	struct iovec iov = { &word, sizeof(word) };
	union control control;
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *header;

	if (recvmsg(socket, &msg, MSG_CMSG_CLOEXEC) != sizeof(word))
		fail("the other process ended");
	header = CMSG_FIRSTHDR(&msg);
	if (fd) {
		if (!header || header->cmsg_type != SCM_RIGHTS)
			fail("no descriptor came");
		memcpy(fd, CMSG_DATA(header), sizeof(*fd));
	}
	return word;
}
