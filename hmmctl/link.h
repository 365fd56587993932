/* SPDX-License-Identifier: GPL-2.0-or-later */
/* link.h - the connection to hmmd: one request, one reply. */
#ifndef HMMCTL_LINK_H
#define HMMCTL_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hmm_protocol.h"
#include "frame.h"

struct link {
	int fd;			/* -1: not connected */
	uint32_t serial;
	int error;		/* of the last call that failed: negative errno */
	char text[320];		/* ... in words */
	char path[108];		/* of the socket */
	struct hmm_frame frame;	/* the last reply */
};

void link_init(struct link *link);
/*
 * Connects and says hello. @path: NULL for $HMM_SOCKET, then
 * /run/hmmd/admin.sock, /run/hmmd/hmmd.sock, $XDG_RUNTIME_DIR/hmmd.sock.
 * Return: 0, or a negative errno that is in @link as well.
 */
int link_open(struct link *link, const char *path);
/* The same as somebody else would: HMM_ROLE_*. */
int link_open_as(struct link *link, const char *path, uint32_t role);
void link_close(struct link *link);
/* Notes what went wrong. Return: @error. */
int link_fail(struct link *link, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * Sends @message, made by HMM_MSG_INIT(); the serial is filled in here.
 * Return: the reply, valid until the next request; NULL: see link->error.
 */
const void *link_request(struct link *link, void *message);

/*
 * Waits for what hmmd says by itself. Return: the event, valid until the next call; NULL: see
 * link->error.
 */
const void *link_event(struct link *link);
/* Takes descriptor @index out of the last reply. */
int link_take_fd(struct link *link, unsigned int index);

/*
 * Asks for a list until nothing more comes. @message: a request that has a
 * cursor; its reply's tail are records of @record_size.
 * Return: how many, in *records (free() it); or a negative errno.
 */
long link_list(struct link *link, void *message, size_t record_size, void *records);

#endif
