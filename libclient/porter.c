/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * porter.c - descriptors cross from the program's table into the private one by pidfd_getfd(), which the seccomp profiles of some
 * container engines forbid. There a thread that shares the program's table sends them, as one process would to another.
 *
 * Happy path: the clerk has a datagram socket with a name that the kernel chose. It says which descriptor is wanted; the porter opens a
 * socket, sends the descriptor, and closes the socket: for that moment the program has one more. The clerk takes what this
 * process has sent with the number that it asked for, and throws away whatever else has come to that name.
 *
 * What can fail: the wanted descriptor is none; the program has no more of them. Anybody in the same network namespace may fill
 * the queue: it is emptied, and the porter asked once more.
 *
 * One descriptor at a time: the clerk is one thread.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "arena.h"
#include "clerk.h"
#include "futex.h"
#include "porter.h"

#define TRIES 100

union baggage {
	char bytes[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
	struct cmsghdr align;
};

static struct {
	struct thread thread;
	int socket;			/* the clerk's */
	struct sockaddr_un name;
	socklen_t name_size;
	uint32_t wanted;		/* futex: how often something was */
	uint32_t answered;		/* futex: how often there was an answer */
	int fd;				/* which */
	int error;
} porter LIBRARY_DATA = { .socket = -1 };

/* ---- in the porter ------------------------------------------------------------------ */

static int send_fd(int fd, uint32_t number)
{
	union baggage baggage = { .bytes = { 0 } };
	struct iovec iov = { &number, sizeof(number) };
	struct msghdr message = { .msg_name = &porter.name, .msg_namelen = porter.name_size, .msg_iov = &iov, .msg_iovlen = 1,
				  .msg_control = &baggage, .msg_controllen = CMSG_SPACE(sizeof(fd)) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int way = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), error = 0;

	if (way < 0)
		return -errno;
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	if (sendmsg(way, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		error = -errno;
	close(way);
	return error;
}

static void porter_main(void *argument)
{
	uint32_t done = 0;

	(void)argument;
	for (;;) {
		uint32_t wanted = __atomic_load_n(&porter.wanted, __ATOMIC_ACQUIRE);

		if (wanted == done) {
			futex_wait(&porter.wanted, wanted, NULL);
			continue;
		}
		porter.error = send_fd(porter.fd, wanted);
		done = wanted;
		__atomic_store_n(&porter.answered, wanted, __ATOMIC_RELEASE);
		futex_wake(&porter.answered, 1);
	}
}

int hmmc_porter_start(void)
{
	return hmmc_thread_start(&porter.thread, "hmm-porter", porter_main, NULL);
}

/* ---- in the clerk ------------------------------------------------------------------- */

int hmmc_porter_receive(void)
{
	const int on = 1;

	/* With a name of no letters the kernel chooses one. */
	porter.name.sun_family = AF_UNIX;
	porter.name_size = sizeof(porter.name);
	porter.socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (porter.socket < 0)
		return -errno;
	if (setsockopt(porter.socket, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) ||
	    bind(porter.socket, (struct sockaddr *)&porter.name, sizeof(sa_family_t)) ||
	    getsockname(porter.socket, (struct sockaddr *)&porter.name, &porter.name_size)) {
		int error = -errno;

		close(porter.socket);
		porter.socket = -1;
		return error;
	}
	return 0;
}

/* Return: a descriptor; -EAGAIN: nothing is there; -ENOMSG: what came was something else. */
static int receive_fd(uint32_t number)
{
	union baggage baggage;
	uint32_t got = 0;
	struct iovec iov = { &got, sizeof(got) };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &baggage, .msg_controllen = sizeof(baggage) };
	ssize_t n = recvmsg(porter.socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct ucred sender = { 0 };
	int fd = -1;

	if (n < 0)
		return -errno;
	for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
		if (header->cmsg_level != SOL_SOCKET)
			continue;
		if (header->cmsg_type == SCM_CREDENTIALS)
			memcpy(&sender, CMSG_DATA(header), sizeof(sender));
		for (size_t at = CMSG_LEN(0); header->cmsg_type == SCM_RIGHTS && at + sizeof(fd) <= header->cmsg_len; at += sizeof(fd)) {
			if (fd >= 0)
				close(fd);
			memcpy(&fd, (char *)header + at, sizeof(fd));
		}
	}
	if (n == sizeof(got) && got == number && sender.pid == getpid() && fd >= 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -ENOMSG;
}

int hmmc_porter_fetch(int fd)
{
	int got = -ENOSYS;

	if (porter.socket < 0 || !porter.thread.started)
		return got;
	for (int tries = 0; tries < TRIES; tries++) {
		uint32_t number = porter.wanted + 1, answered;

		porter.fd = fd;
		__atomic_store_n(&porter.wanted, number, __ATOMIC_RELEASE);
		futex_wake(&porter.wanted, 1);
		while ((answered = __atomic_load_n(&porter.answered, __ATOMIC_ACQUIRE)) != number)
			futex_wait(&porter.answered, answered, NULL);
		do {
			got = receive_fd(number);
		} while (got == -ENOMSG);
		if (got >= 0 || (porter.error && porter.error != -EAGAIN))
			break;
	}
	return got < 0 && porter.error ? porter.error : got;
}

void hmmc_porter_forget(void)
{
	memset(&porter, 0, sizeof(porter));
	porter.socket = -1;
}
