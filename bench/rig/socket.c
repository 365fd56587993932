// SPDX-License-Identifier: GPL-2.0-or-later
/* socket.c - another process of a benchmark, and one word, perhaps with a descriptor, between the two. Waits; any thread. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench/rig/rig.h"

union control {
	struct cmsghdr header;
	char space[CMSG_SPACE(sizeof(int))];
};

pid_t process_start(void (*run)(int socket, const void *data), const void *data, int *socket)
{
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		fail("socketpair: %s", strerror(errno));
	pid = fork();
	if (pid < 0)
		fail("fork: %s", strerror(errno));
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pair[0]);
		run(pair[1], data);
		_exit(1);
	}
	close(pair[1]);
	*socket = pair[0];
	return pid;
}

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
