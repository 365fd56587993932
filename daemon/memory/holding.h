/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * holding.h - what hmmd and its holder say to each other: one request, one
 * answer, each a message of a fixed size on a SOCK_SEQPACKET socket, with the
 * descriptors it speaks of. Both ends are this very program, but not of the
 * same release when hmmd was upgraded in between: HOLDING_VERSION.
 */
#ifndef HMMD_HOLDING_H
#define HMMD_HOLDING_H

#include <stdint.h>

#include "holder.h"

#define HOLDING_VERSION	1U

/* Where the process finds what it was given, and what it keeps for itself. */
enum holding_fd {
	HOLDING_HMMD = 3,
	HOLDING_LISTENER,
	HOLDING_FIRST_FREE,
};

enum holding_op {
	/* The holder's first word to any hmmd, with a pidfd of itself; or @error: why it may not stay. */
	HOLDING_GREETING,
	HOLDING_KEEP,		/* @name and descriptors */
	HOLDING_DROP,		/* @name */
	HOLDING_TAKE,		/* the card of @index: name and descriptors are in the answer */
	HOLDING_END,		/* close all, and end */
};

struct holding_message {
	uint32_t version, op;
	int32_t error;			/* in an answer: 0 or a negative errno */
	uint32_t cards;			/* in an answer: how many are kept now */
	uint32_t pid;			/* in the greeting */
	uint32_t index;
	uint32_t n;			/* descriptors of the card ... */
	uint32_t present;		/* ... and which of them are no -1: a bit each */
	char name[HOLDER_NAME];
};

/* One card. Both sides have such a record of it. */
struct holding_card {
	char name[HOLDER_NAME];
	int fds[HOLDER_FDS];		/* -1: none */
	unsigned int n;
};

/* Sends @message with the descriptors of @card (NULL: none). 0 or a negative errno. */
int holding_send(int socket, struct holding_message *message, const struct holding_card *card);
/*
 * Receives one; what comes with it lies in @card, the caller's to close even after an error. Waits for
 * @timeout_ms at most. 0; -ETIMEDOUT; -ECONNRESET: the other end is gone; -EPROTO: that is no message of this
 * version; -EMFILE: not all descriptors could be had.
 */
int holding_receive(int socket, struct holding_message *message, struct holding_card *card,
		    int timeout_ms);
void holding_close(struct holding_card *card);

#endif
