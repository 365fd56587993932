// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * prefetch.c - memory that moves while the program does something else. A buffer
 * larger than the device streams through it: each piece is sent there ahead of its turn,
 * changed by the device, and sent home. One poll() waits for all of it, and could wait for
 * anything else: a prefetch that is done signals an eventfd. Needs a running hmmd.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <hmm/hmm.h>

#define PAGE	4096UL
#define PIECE	(2UL << 20)
#define PIECES	16U
#define AHEAD	3U		/* pieces under way at once */
#define MEMORY	(8UL << 20)	/* of the device: room for four */
#define WORDS	(PIECE / sizeof(unsigned long))

static struct piece {
	unsigned long *words;
	bool sent;		/* home, that is */
} pieces[PIECES];

static struct pollfd done[PIECES];	/* eventfds */
static struct hmm_mirror mirror;
static unsigned long there, home;	/* pages */

static void check(long ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "prefetch: %s: %s\n", what, hmm_last_error());
	exit(EXIT_FAILURE);
}

static void send_piece(unsigned int n, enum hmm_target target)
{
	unsigned long addr = (unsigned long)pieces[n].words;

	check(hmm_prefetch(&mirror, addr, PIECE, target, 0, done[n].fd, NULL), "hmm_prefetch");
}

/* In its own memory: what the program has of the piece is nothing, until it is sent home. */
static void device_works(const struct piece *piece)
{
	unsigned long addr = (unsigned long)piece->words;
	static unsigned long buffer[WORDS];

	check(hmm_device_read(&mirror, addr, buffer, PIECE), "hmm_device_read");
	for (unsigned long i = 0; i < WORDS; i++)
		buffer[i] = ~buffer[i];
	check(hmm_device_write(&mirror, addr, buffer, PIECE), "hmm_device_write");
}

/* This piece has come to the device, or home. Return: whether it is home. */
static bool step(unsigned int n)
{
	eventfd_t count;

	if (eventfd_read(done[n].fd, &count))
		exit(EXIT_FAILURE);
	if (pieces[n].sent) {
		home += count - 1;	/* so that 0 pages are a signal, too */
		return true;
	}
	there += count - 1;
	device_works(&pieces[n]);
	pieces[n].sent = true;
	send_piece(n, HMM_SYSTEM);
	return false;
}

static unsigned long stream(void)
{
	unsigned int next = 0, left = PIECES;
	unsigned long waits = 0;

	while (next < AHEAD)
		send_piece(next++, HMM_DEVICE);
	for (; left; waits++) {
		if (poll(done, PIECES, -1) < 0)
			exit(EXIT_FAILURE);
		for (unsigned int n = 0; n < PIECES; n++) {
			if (!(done[n].revents & POLLIN) || !step(n))
				continue;
			left--;
			if (next < PIECES)
				send_piece(next++, HMM_DEVICE);
		}
	}
	return waits;
}

int main(void)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "prefetch", .memory = MEMORY, .node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};
	static const struct hmm_mirror_ops ops = { .size = sizeof(ops) };	/* no callbacks */
	unsigned long *buffer = aligned_alloc(PIECE, PIECES * PIECE), waits, wrong = 0;
	struct hmm *hmm;

	if (!buffer)
		return EXIT_FAILURE;
	for (unsigned long i = 0; i < PIECES * WORDS; i++)
		buffer[i] = i;
	mirror.ops = &ops;
	check(hmm_open(NULL, &hmm), "hmm_open");
	check(hmm_device_new(hmm, &options, &mirror.device), "hmm_device_new");
	check(hmm_mirror_register(&mirror, hmm), "hmm_mirror_register");
	for (unsigned int n = 0; n < PIECES; n++) {
		pieces[n].words = buffer + n * WORDS;
		done[n] = (struct pollfd){ .fd = eventfd(0, EFD_CLOEXEC), .events = POLLIN };
	}

	waits = stream();
	for (unsigned long i = 0; i < PIECES * WORDS; i++)
		wrong += buffer[i] != ~i;
	printf("%u pieces of %lu pages went through a device with room for %lu pages\n", PIECES,
	       PIECE / PAGE, MEMORY / PAGE);
	printf("%lu pages sent there, %lu sent home, in %lu waits; %lu words are wrong\n", there, home,
	       waits, wrong);

	check(hmm_mirror_unregister(&mirror), "hmm_mirror_unregister");
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	for (unsigned int n = 0; n < PIECES; n++)
		close(done[n].fd);
	free(buffer);
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
