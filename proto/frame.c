// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Framing: one message is one datagram, descriptors ride beside it.
 *
 * Happy path: hmm_frame_recv() fills a frame, the caller checks it with
 * hmm_wire_check(), takes the descriptors that it wants to keep and closes the
 * frame, or receives the next message into it, which does the same.
 *
 * What can fail: a peer may send too much, too little, or more descriptors than
 * anything needs. The kernel has installed those in our table by the time that
 * we hear of it, so every path out of here that is not a message closes them.
 *
 * Threads: any, one at a time per frame. The debug settings are written before
 * there are threads. Nothing here allocates: a library thread that must not
 * touch malloc may receive.
 */
#define _GNU_SOURCE
#include "frame.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hmm_protocol.h"

#define DEBUG_LINE	1024

static struct {
	const char *who;	/* NULL: don't print */
	int fd;
} debug = { .fd = STDERR_FILENO };

static bool has_word(const char *list, const char *word)
{
	size_t length = strlen(word);

	while (list) {
		if (strcspn(list, ",") == length && memcmp(list, word, length) == 0)
			return true;
		list = strchr(list, ',');
		if (list)
			list++;
	}
	return false;
}

void hmm_frame_debug_init(const char *who)
{
	debug.who = has_word(secure_getenv("HMMD_DEBUG"), "wire") ? who : NULL;
}

void hmm_frame_debug_fd(int fd)
{
	debug.fd = fd;
}

/* One write per line, so that the lines of several processes don't mix. */
static void debug_print(const char *direction, int fd, const void *msg, size_t size, unsigned nfds)
{
	int saved = errno;
	char line[DEBUG_LINE];
	size_t length;

	length = snprintf(line, sizeof(line), "%.32s[%d] %d %s (%u fds) ", debug.who, getpid(), fd,
			  direction, nfds);
	length += hmm_wire_format(line + length, sizeof(line) - length, msg, size);
	if (length > sizeof(line) - 1)
		length = sizeof(line) - 1;
	line[length++] = '\n';
	/* Traffic goes on though nobody is left to read about it. */
	if (write(debug.fd, line, length) < 0)
		errno = saved;
}

void hmm_frame_init(struct hmm_frame *frame)
{
	frame->size = 0;
	frame->nfds = 0;
}

void hmm_frame_close(struct hmm_frame *frame)
{
	for (unsigned i = 0; i < frame->nfds; i++)
		if (frame->fds[i] >= 0)
			close(frame->fds[i]);
	frame->nfds = 0;
}

int hmm_frame_take_fd(struct hmm_frame *frame, unsigned i)
{
	int fd;

	if (i >= frame->nfds || frame->fds[i] < 0)
		return -EBADF;
	fd = frame->fds[i];
	frame->fds[i] = -1;
	return fd;
}

/* The control buffer has room for as many as fds has; the kernel drops the others itself. */
static void collect_fds(struct hmm_frame *frame, struct msghdr *msg)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < count && frame->nfds < HMM_WIRE_MAX_FDS; i++)
			memcpy(&frame->fds[frame->nfds++], CMSG_DATA(c) + i * sizeof(int),
			       sizeof(int));
	}
}

static int refuse(struct hmm_frame *frame, int error)
{
	hmm_frame_close(frame);
	frame->size = 0;
	return error;
}

int hmm_frame_recv(int fd, struct hmm_frame *frame, int flags)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * HMM_WIRE_MAX_FDS)];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = frame->data, .iov_len = sizeof(frame->data) };
	struct msghdr msg;
	ssize_t size;

	hmm_frame_close(frame);
	frame->size = 0;
	do {
		msg = (struct msghdr){
			.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = control.bytes,
			.msg_controllen = sizeof(control.bytes),
		};
		size = recvmsg(fd, &msg, flags | MSG_CMSG_CLOEXEC);
	} while (size < 0 && errno == EINTR);
	if (size < 0)
		return -errno;

	collect_fds(frame, &msg);
	if (debug.who && size > 0)
		debug_print("<-", fd, frame->data, size, frame->nfds);
	/* An empty datagram reads like the end of the stream; it is of no use to anybody either. */
	if (size == 0)
		return refuse(frame, 0);
	if (msg.msg_flags & MSG_TRUNC)
		return refuse(frame, -EMSGSIZE);
	if (msg.msg_flags & MSG_CTRUNC)
		return refuse(frame, -EPROTO);
	if ((size_t)size < sizeof(frame->header) || frame->header.size != (size_t)size ||
	    frame->header.nfds != frame->nfds)
		return refuse(frame, -EPROTO);
	frame->size = size;
	return size;
}

int hmm_frame_send(int fd, const void *msg, const int *fds, unsigned nfds)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * HMM_WIRE_MAX_FDS)];
		struct cmsghdr align;
	} control = { .bytes = { 0 } };
	struct hmm_wire_header header;
	struct iovec iov[2];
	struct msghdr out = { .msg_iov = iov, .msg_iovlen = 2 };
	ssize_t sent;

	memcpy(&header, msg, sizeof(header));
	if (header.size < sizeof(header) || nfds > HMM_WIRE_MAX_FDS)
		return -EINVAL;
	if (header.size > HMM_WIRE_MAX)
		return -EMSGSIZE;
	header.nfds = nfds;
	iov[0] = (struct iovec){ .iov_base = &header, .iov_len = sizeof(header) };
	iov[1] = (struct iovec){
		.iov_base = (char *)msg + sizeof(header),
		.iov_len = header.size - sizeof(header),
	};
	if (nfds) {
		out.msg_control = control.bytes;
		out.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(&control.align), fds, sizeof(int) * nfds);
	}
	if (debug.who)
		debug_print("->", fd, msg, header.size, nfds);
	do {
		sent = sendmsg(fd, &out, MSG_NOSIGNAL);
	} while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : 0;
}

int hmm_frame_peer(int fd, struct ucred *cred)
{
	socklen_t size = sizeof(*cred);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, cred, &size) < 0 ? -errno : 0;
}
