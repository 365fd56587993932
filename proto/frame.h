/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Messages and descriptors across a SOCK_SEQPACKET socket: one message, one
 * datagram, descriptors beside it.
 */
#ifndef HMM_PROTO_FRAME_H
#define HMM_PROTO_FRAME_H

#include <sys/socket.h>

#include "wire.h"

struct ucred;

/* A received message and the descriptors that came along. Large: one per reader. */
struct hmm_frame {
	union {
		struct hmm_wire_header header;
		uint8_t data[HMM_WIRE_MAX];
		uint64_t align;
	};
	size_t size;
	unsigned nfds;			/* that came; a taken one leaves -1 in fds */
	int fds[HMM_WIRE_MAX_FDS];
};

/* Once, before the first receive. */
void hmm_frame_init(struct hmm_frame *frame);

/*
 * Receives one message; flags are 0 or MSG_DONTWAIT. The header is known to
 * agree with the datagram; everything else is hmm_wire_check()'s. Descriptors
 * are close-on-exec. What the frame still held is closed first.
 *
 * Returns the size, 0 at the end of the stream, or
 *   -EAGAIN    nothing there
 *   -EMSGSIZE  longer than a message may be
 *   -EPROTO    no header, or one that lies, or more descriptors than a message
 *              may have (or than this process may open)
 *   and what recvmsg() returns. After anything but a size the frame holds nothing.
 */
int hmm_frame_recv(int fd, struct hmm_frame *frame, int flags);

/*
 * Sends header.size bytes and copies of nfds descriptors, whose number goes
 * into the header that is sent. Never raises SIGPIPE. 0, -EAGAIN when the
 * socket doesn't block and is full, -EMSGSIZE, -EINVAL, -EPIPE and what
 * sendmsg() returns.
 */
int hmm_frame_send(int fd, const void *msg, const int *fds, unsigned nfds);

/* The i-th descriptor, now the caller's to close. -EBADF when it isn't there or was taken. */
int hmm_frame_take_fd(struct hmm_frame *frame, unsigned i);

/* Closes the descriptors that were not taken. */
void hmm_frame_close(struct hmm_frame *frame);

/* Who is at the other end, as the kernel saw it connect. */
int hmm_frame_peer(int fd, struct ucred *cred);

/*
 * Where HMMD_DEBUG, a list with commas, has the word "wire", every message that
 * is sent or received is printed to stderr, one line each, headed by who. Call
 * it before there are threads; a program that is not told stays silent.
 */
void hmm_frame_debug_init(const char *who);
/* Print to this descriptor instead, which stays the caller's. */
void hmm_frame_debug_fd(int fd);

#endif
