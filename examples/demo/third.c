// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * third.c - the count that has nothing to do with hmmd: an ordinary process
 * indexes the same texts, lives through the same changes and queries, and
 * writes the scores itself. It builds while the owner does, then waits to be
 * told how many queries the owner came to.
 */
#include <stdio.h>
#include <stdlib.h>

#include "count.h"
#include "message.h"
#include "roles.h"
#include "story.h"

static int repeat(struct story *story, struct board *board, int to_owner)
{
	struct view view = { 0 };
	int ret = story_build(story, NULL);

	for (int i = 0; !ret && i < STORY_GROWTH; i++)
		ret = story_grow(story);
	if (ret) {
		fprintf(stderr, "demo: the count without hmmd ran out of memory\n");
		return EXIT_FAILURE;
	}
	if (message_wait(to_owner, NULL) != COUNTED)
		return EXIT_FAILURE;
	for (uint64_t n = atomic_load(&board->queries_after_seal); n; n--)
		story_query(story);
	return count_words(board, THIRD, &view, story->index, true) < 0 ? EXIT_FAILURE : 0;
}

int third_run(struct board *board, const struct corpus *corpus, int to_owner)
{
	struct story story = { .board = board, .corpus = corpus };
	int ret = repeat(&story, board, to_owner);

	index_free(story.index);
	return ret;
}
