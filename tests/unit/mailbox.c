// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mailbox.c - letters: none lost, none twice, in order of each sender, and a
 * taker that sleeps on the eventfd alone misses nothing.
 */
#include "daemon/mailbox.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(mailbox);

#define SENDERS 8
#define LETTERS 5000

static struct letter *numbered(uint64_t peer, uint32_t number)
{
	struct letter *letter = letter_new(LETTER_EVENT);

	letter->peer = peer;
	letter->owner = number;
	return letter;
}

static bool is_signalled(const struct mailbox *box)
{
	struct pollfd poll_fd = { .fd = box->eventfd, .events = POLLIN };

	return poll(&poll_fd, 1, 0) == 1;
}

Test(mailbox, oldest_first)
{
	struct mailbox box;
	struct letter *letter, *next;
	uint32_t i;

	cr_assert(eq(int, mailbox_init(&box), 0));
	cr_expect(not(is_signalled(&box)));
	cr_expect(eq(ptr, mailbox_take(&box), NULL));
	for (i = 0; i < 3; i++)
		mailbox_post(&box, numbered(0, i));
	cr_expect(is_signalled(&box));
	i = 0;
	for (letter = mailbox_take(&box); letter; letter = next) {
		next = letter->next;
		cr_expect(eq(u32, letter->owner, i++));
		letter_free(letter);
	}
	cr_expect(eq(u32, i, 3));
	cr_expect(not(is_signalled(&box)));
	cr_expect(eq(ptr, mailbox_take(&box), NULL));
	mailbox_deinit(&box);
}

Test(mailbox, deinit_frees_what_was_not_taken)
{
	struct mailbox box;
	struct letter *letter = letter_new(LETTER_REPLY);

	cr_assert(eq(int, mailbox_init(&box), 0));
	letter->fds[3] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	letter->reply_fds[1] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	letter->message = malloc(16);
	letter_reply(letter, HMM_OP_DRAIN_REPLY, sizeof(struct hmm_msg_drain_reply));
	mailbox_post(&box, letter);
	mailbox_post(&box, letter_new(LETTER_RELOAD));
	mailbox_deinit(&box);
}

Test(mailbox, fds_are_taken_once)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	letter->fds[0] = fd;
	letter->nfds = 1;
	cr_expect(eq(int, letter_take_fd(letter, 0), fd));
	cr_expect(eq(int, letter_take_fd(letter, 0), -EBADF));
	cr_expect(eq(int, letter_take_fd(letter, 1), -EBADF));
	cr_expect(eq(ptr, letter_free(letter), NULL));
	cr_expect(fcntl(fd, F_GETFD) >= 0, "a taken descriptor was closed");
	close(fd);
	cr_expect(eq(ptr, letter_free(NULL), NULL));
}

Test(mailbox, errors_fit_the_wire)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	char text[400];
	size_t i;

	for (i = 0; i < sizeof(text) - 1; i++)
		text[i] = i == 5 ? '\n' : 'x';
	text[sizeof(text) - 1] = '\0';
	cr_expect(eq(int, letter_fail(letter, -EDQUOT, "%s", text), -EDQUOT));
	cr_expect(eq(int, letter->error, -EDQUOT));
	cr_expect(eq(sz, strlen(letter->text), sizeof(letter->text) - 1));
	cr_expect(eq(chr, letter->text[5], '?'));
	letter_free(letter);
}

Test(mailbox, reply_repeats_the_serial)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_drain_reply *reply;

	letter->message = malloc(sizeof(struct hmm_msg_drain));
	hmm_wire_init(letter->message, HMM_OP_DRAIN, sizeof(struct hmm_msg_drain), 77);
	reply = letter_reply(letter, HMM_OP_DRAIN_REPLY, sizeof(*reply));
	cr_expect(eq(u32, reply->header.serial, 77));
	cr_expect(eq(u64, reply->pages, 0));
	cr_expect(eq(int, hmm_wire_check(reply, sizeof(*reply), 0, HMM_WIRE_SERVER, NULL), 0));
	letter_free(letter);
}

struct sender {
	pthread_t thread;
	struct mailbox *box;
	uint64_t id;
};

static void *send_letters(void *arg)
{
	struct sender *sender = arg;
	uint32_t i;

	for (i = 0; i < LETTERS; i++)
		mailbox_post(sender->box, numbered(sender->id, i));
	return NULL;
}

/* The taker sleeps in poll() without a deadline of its own: a lost signal hangs the test. */
Test(mailbox, many_senders_one_sleeper)
{
	struct sender senders[SENDERS];
	uint32_t next_of[SENDERS] = { 0 };
	struct mailbox box;
	struct letter *letter, *next;
	unsigned int i, total = 0;

	cr_assert(eq(int, mailbox_init(&box), 0));
	for (i = 0; i < SENDERS; i++) {
		senders[i] = (struct sender) { .box = &box, .id = i };
		cr_assert(eq(int,
			     pthread_create(&senders[i].thread, NULL, send_letters, &senders[i]),
			     0));
	}
	while (total < SENDERS * LETTERS) {
		struct pollfd poll_fd = { .fd = box.eventfd, .events = POLLIN };

		cr_assert(eq(int, poll(&poll_fd, 1, -1), 1));
		for (letter = mailbox_take(&box); letter; letter = next) {
			next = letter->next;
			cr_assert(letter->peer < SENDERS);
			cr_assert(eq(u32, letter->owner, next_of[letter->peer]));
			next_of[letter->peer]++;
			total++;
			letter_free(letter);
		}
	}
	for (i = 0; i < SENDERS; i++)
		pthread_join(senders[i].thread, NULL);
	cr_expect(eq(ptr, mailbox_take(&box), NULL));
	mailbox_deinit(&box);
}
