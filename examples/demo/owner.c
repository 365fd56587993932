// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * owner.c - the process whose memory is mirrored.
 *
 * It opens hmmd, builds an index with malloc(), and gives the driver a key to
 * its address space. That is all it does about hmmd: from then on it adds
 * documents and answers queries as any program would, while its memory goes to
 * the device and comes home under its hands. At the end it counts for itself.
 * One thread. It fails when there is no hmmd or when the driver gives up.
 */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <hmm/hmm.h>

#include "count.h"
#include "message.h"
#include "roles.h"
#include "story.h"

#define PAUSE_NS	(20 * 1000 * 1000)
#define TRIES		16

/* A program that did nothing else would only measure how fast pages go back and forth. */
static void pause_a_little(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
}

static int complain(const char *what)
{
	fprintf(stderr, "demo: owner: %s: %s\n", what, hmm_last_error());
	return EXIT_FAILURE;
}

/*
 * All in one heap: a large table that malloc() maps by itself may come to lie
 * right beside the thread's control block, whose pages never leave home and are
 * in no window.
 */
static void keep_in_one_heap(void)
{
	mallopt(M_MMAP_THRESHOLD, 32 << 20);
	mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

/* A window covers what is mapped when it is made: the heap shall not grow afterwards. */
static void make_room(void)
{
	free(malloc(16 << 20));
}

static int build(struct story *story, struct board *board)
{
	keep_in_one_heap();
	if (story_build(story, &board->blocks)) {
		fprintf(stderr, "demo: owner: no memory for an index of %zu MiB; try --size\n",
			board->options.size >> 20);
		return EXIT_FAILURE;
	}
	make_room();
	board->index = story->index;
	printf("owner %d: indexed %u documents: %lu words, %lu postings, %zu MiB of malloc memory"
	       " in %u blocks\n", getpid(), story->index->documents, story->index->n_words,
	       story->index->n_postings, story->index->bytes >> 20, board->blocks.count);
	fflush(stdout);
	return 0;
}

/* Hands the key over until the driver has found a place for the window. */
static int invite(int to_driver, int key)
{
	for (int i = 0; i < TRIES; i++) {
		if (!message_send(to_driver, KEY, key))
			return EXIT_FAILURE;
		switch (message_wait(to_driver, NULL)) {
		case READY:
			return 0;
		case AGAIN:
			continue;
		default:
			return EXIT_FAILURE;
		}
	}
	fprintf(stderr, "demo: the driver finds the owner's addresses taken every time;"
		" try --no-window\n");
	return EXIT_FAILURE;
}

/* Documents first; then the shape of the index stands still, but its queries go on. */
static int live(struct story *story, struct board *board, int to_driver)
{
	uint64_t before;

	for (int i = 0; i < STORY_GROWTH; i++) {
		if (story_grow(story))
			return EXIT_FAILURE;
		pause_a_little();
	}
	__atomic_store_n(&story->index->sealed, 1, __ATOMIC_RELEASE);

	before = story->queries;
	while (!message_waiting(to_driver)) {
		story_query(story);
		pause_a_little();
	}
	atomic_store(&board->queries_after_seal, story->queries - before);
	return message_wait(to_driver, NULL) == COUNTED ? 0 : EXIT_FAILURE;
}

static int count(struct story *story, struct board *board)
{
	struct view view = { 0 };

	if (count_words(board, OWNER, &view, story->index, false) < 0) {
		fprintf(stderr, "demo: owner: the index holds more words than there is room for\n");
		return EXIT_FAILURE;
	}
	if (!count_answers_hold(board, story->index)) {
		fprintf(stderr, "demo: an answer that the driver wrote did not arrive\n");
		return EXIT_FAILURE;
	}
	printf("owner %d: counted again: %lu postings, after %lu queries of its own\n", getpid(),
	       story->index->n_postings, story->queries);
	fflush(stdout);
	return 0;
}

static int share(struct story *story, struct board *board, struct hmm *hmm, int to_driver)
{
	int key = hmm_export(hmm), ret;

	if (key < 0)
		return complain("cannot export a key");
	ret = invite(to_driver, key);
	close(key);
	if (!ret)
		ret = live(story, board, to_driver);
	return ret;
}

int owner_run(struct board *board, const struct corpus *corpus, int to_driver, int to_third)
{
	struct story story = { .board = board, .corpus = corpus };
	struct hmm_open_options options = {
		.size = sizeof(options),
		.socket = board->options.socket[0] ? board->options.socket : NULL,
		.name = "demo owner",
	};
	struct hmm *hmm;
	int ret;

	if (hmm_open(&options, &hmm))
		return complain("cannot have the memory mirrored");
	ret = build(&story, board);
	if (!ret)
		ret = share(&story, board, hmm, to_driver);
	if (!ret && !message_send(to_third, COUNTED, -1))
		ret = EXIT_FAILURE;
	if (!ret)
		ret = count(&story, board);
	if (!ret && !message_send(to_driver, FINISH, -1))
		ret = EXIT_FAILURE;
	if (!ret)	/* the driver closes when it has let go of everything */
		message_wait(to_driver, NULL);
	hmm_close(hmm);
	index_free(story.index);
	return ret;
}
