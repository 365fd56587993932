/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mailbox.h - what the control thread and the engine's workers say to each
 * other. Many may post, one thread takes; a post that finds the box empty
 * signals an eventfd, which the taker's loop polls.
 *
 * A letter belongs to whoever took it, with its descriptors and its memory.
 */
#ifndef HMMD_MAILBOX_H
#define HMMD_MAILBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "hmm_protocol.h"

#define LETTER_FDS HMM_WIRE_MAX_FDS

enum letter_kind {
	LETTER_REQUEST,		/* control -> worker: a validated message of a peer */
	LETTER_PEER_GONE,	/* control -> worker: the peer's connection is closed */
	LETTER_RELOAD,		/* control -> worker: configuration changed */
	LETTER_TRACED,		/* control -> worker: a debugger attached to letter->pid */
	LETTER_DUMPS,		/* control -> worker: letter->pid is dying and begins to dump core */
	LETTER_SHUTDOWN,	/* control -> worker: bring every page home, then answer */
	LETTER_HAND_OVER,	/* control -> worker: leave everything to the next hmmd, then answer */
	LETTER_REPLY,		/* worker -> control: a REQUEST, answered */
	LETTER_EVENT,		/* worker -> control: a message for a peer */
	LETTER_OWNER_GONE,	/* worker -> control: the owner's mm is gone, its id is void */
	LETTER_WINDOW_GONE,	/* worker -> control: a window's descriptor is closed, so letter->uid pays for one less */
	LETTER_STOPPED,		/* worker -> control: SHUTDOWN is done, every page is home; or HAND_OVER, and workers have ended */
};

struct letter {
	struct letter *next;
	enum letter_kind kind;
	uint64_t peer;		/* control's name of the connection; never reused */
	uid_t uid;		/* of the peer, by SO_PEERCRED */
	gid_t gid;
	pid_t pid;
	int pidfd;		/* of OPEN and REOPEN: the very process that connected; -1: none */
	char name[64];		/* as the peer said in hello */
	uint32_t owner;		/* the owner it is about, 0: none */

	/* REQUEST: validated by hmm_wire_check(). EVENT: what to send. Heap. */
	struct hmm_wire_header *message;
	int fds[LETTER_FDS];	/* the message's; -1 once taken */
	unsigned int nfds;

	/* REPLY: error 0 and reply (heap, its serial is filled in by control), or error and text. */
	int error;
	char text[240];
	struct hmm_wire_header *reply;
	struct hmm_wire_header *room;	/* for it; NULL: none, or it is there */
	size_t room_size;
	int reply_fds[LETTER_FDS];	/* sent, then closed, by control */
	unsigned int n_reply_fds;
};

/* Zeroed, with every fd -1. NULL when out of memory. */
struct letter *letter_new(enum letter_kind kind);
/* Room for the fixed part of the answer to its message: what is done is then not refused. False: out of memory. */
bool letter_make_room(struct letter *letter);
/* Closes what fds are left and frees all. NULL is allowed; returns NULL. */
struct letter *letter_free(struct letter *letter);
/* Takes descriptor @index out of the letter. */
int letter_take_fd(struct letter *letter, unsigned int index);
/* Makes an error answer: @error is negative, the text says why and what to do. Returns @error. */
int letter_fail(struct letter *letter, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* The zeroed reply of @size with opcode @op, in the room made for it or allocated; NULL when out of memory. */
void *letter_reply(struct letter *letter, uint16_t op, size_t size);

struct mailbox {
	pthread_mutex_t lock;
	struct letter *head, **tail;
	int eventfd;
};

int mailbox_init(struct mailbox *box);
void mailbox_deinit(struct mailbox *box);	/* frees what was not taken */
void mailbox_post(struct mailbox *box, struct letter *letter);
/* The whole queue, oldest first; drains the eventfd. NULL when empty. */
struct letter *mailbox_take(struct mailbox *box);

#endif
