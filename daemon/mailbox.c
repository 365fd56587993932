// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mailbox.c - letters between the control thread and the workers.
 *
 * A post appends under a mutex that is held for a few instructions and never
 * across a call that can block; the one that finds the box empty signals the
 * eventfd. The taker drains the eventfd first and then takes the whole queue,
 * so a letter posted in between costs one empty wake-up at worst and is never
 * missed.
 *
 * What can fail: memory (letter_new, letter_reply give NULL) and the eventfd
 * at mailbox_init(). A post cannot fail.
 *
 * Thread: any posts, one takes.
 */
#include "daemon/mailbox.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon/vault.h"

struct letter *letter_new(enum letter_kind kind)
{
	struct letter *letter = calloc(1, sizeof(*letter));
	unsigned int i;

	if (!letter)
		return NULL;
	letter->kind = kind;
	letter->pidfd = -1;
	for (i = 0; i < LETTER_FDS; i++) {
		letter->fds[i] = -1;
		letter->reply_fds[i] = -1;
	}
	return letter;
}

struct letter *letter_free(struct letter *letter)
{
	unsigned int i;

	if (!letter)
		return NULL;
	for (i = 0; i < LETTER_FDS; i++) {
		if (letter->fds[i] >= 0)
			close(letter->fds[i]);
		if (letter->reply_fds[i] >= 0)
			close(letter->reply_fds[i]);
	}
	if (letter->pidfd >= 0)
		close(letter->pidfd);
	vault_free(letter->message);
	vault_free(letter->reply);
	free(letter->room);
	free(letter);
	return NULL;
}

int letter_take_fd(struct letter *letter, unsigned int index)
{
	int fd;

	if (index >= letter->nfds)
		return -EBADF;
	fd = letter->fds[index];
	if (fd < 0)
		return -EBADF;
	letter->fds[index] = -1;
	return fd;
}

int letter_fail(struct letter *letter, int error, const char *format, ...)
{
	char text[sizeof(letter->text)];
	va_list args;

	assert(error < 0);
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	hmm_wire_text(letter->text, sizeof(letter->text), text);
	letter->error = error;
	return error;
}

bool letter_make_room(struct letter *letter)
{
	const struct hmm_wire_message *answer = hmm_wire_message(letter->message->opcode | HMM_WIRE_REPLY);

	if (!answer)
		return true;
	letter->room = malloc(answer->size);
	letter->room_size = letter->room ? answer->size : 0;
	return letter->room;
}

void *letter_reply(struct letter *letter, uint16_t op, size_t size)
{
	vault_free(letter->reply);
	if (letter->room && size <= letter->room_size) {
		letter->reply = letter->room;
		letter->room = NULL;
	} else {
		letter->reply = op == HMM_OP_DEVICE_READ_REPLY ? vault_alloc(size) : malloc(size);
	}
	if (letter->reply)
		hmm_wire_init(letter->reply, op, size,
			      letter->message ? letter->message->serial : 0);
	return letter->reply;
}

int mailbox_init(struct mailbox *box)
{
	int r;

	box->head = NULL;
	box->tail = &box->head;
	box->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (box->eventfd < 0)
		return -errno;
	r = pthread_mutex_init(&box->lock, NULL);
	if (r) {
		close(box->eventfd);
		box->eventfd = -1;
	}
	return -r;
}

void mailbox_deinit(struct mailbox *box)
{
	struct letter *letter, *next;

	for (letter = box->head; letter; letter = next) {
		next = letter->next;
		letter_free(letter);
	}
	box->head = NULL;
	box->tail = &box->head;
	pthread_mutex_destroy(&box->lock);
	if (box->eventfd >= 0)
		close(box->eventfd);
	box->eventfd = -1;
}

void mailbox_post(struct mailbox *box, struct letter *letter)
{
	bool was_empty;

	letter->next = NULL;
	pthread_mutex_lock(&box->lock);
	was_empty = !box->head;
	*box->tail = letter;
	box->tail = &letter->next;
	pthread_mutex_unlock(&box->lock);
	/*
	 * Cannot fail but by overflow of a counter that every take resets, and then it is readable
	 * anyway.
	 */
	if (was_empty)
		eventfd_write(box->eventfd, 1);
}

struct letter *mailbox_take(struct mailbox *box)
{
	struct letter *letters;
	eventfd_t count;

	/* Drained before the take: a post after it finds the box empty and signals anew. */
	(void)eventfd_read(box->eventfd, &count);
	pthread_mutex_lock(&box->lock);
	letters = box->head;
	box->head = NULL;
	box->tail = &box->head;
	pthread_mutex_unlock(&box->lock);
	return letters;
}
