// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * count.c - one walk over the whole index, word by word, posting by posting.
 *
 * The same code for all three who count; only the view differs, and that is
 * what is being shown: a driver in another process uses the owner's structures
 * as they are. Words come in the table's order, so that result number i is the
 * same word for everybody.
 */
#include "count.h"

#define LONGEST 64

static bool is_scored(const struct board *board, uint64_t places)
{
	return places % board->options.score_every == 0;
}

static void count_postings(struct board *board, struct view *view, struct posting *posting,
			   struct result *result, bool write)
{
	for (; posting; posting = view_load(view, &posting->next)) {
		uint64_t document = view_load(view, &posting->document);
		uint64_t place = document << 32 | view_load(view, &posting->position);
		uint32_t score = (uint32_t)scramble(result->text ^ place);

		result->postings++;
		result->places = scramble(result->places ^ place);
		if (is_scored(board, scramble(place))) {
			/* What is right already is not written again: writing takes the page. */
			if (write && view_load(view, &posting->score) != score)
				view_store(view, &posting->score, score);
			score = view_load(view, &posting->score);
			result->scores = scramble(result->scores ^ score);
		}
		if (!view->mirror)
			result->visits = scramble(result->visits ^
						  view_load(view, &posting->visits));
	}
}

long count_words(struct board *board, enum who who, struct view *view, struct index *index,
		 bool write)
{
	struct word **buckets = view_load(view, &index->buckets);
	size_t n_buckets = view_load(view, &index->n_buckets);
	size_t n = 0;

	for (size_t i = 0; i < n_buckets && !view->error; i++) {
		struct word *word = view_load(view, &buckets[i]);

		for (; word; word = view_load(view, &word->next)) {
			struct result *result = board_results(board, who) + n;
			uint32_t length = view_load(view, &word->length);
			char text[LONGEST];

			if (++n > board->capacity || length > sizeof(text))
				return -1;
			view_bytes(view, word->text, text, length);
			*result = (struct result){ .text = index_hash(text, length) };
			count_postings(board, view, view_load(view, &word->first), result, write);
			if (write && is_scored(board, result->text) &&
			    view_load(view, &word->answer) != result->places)
				view_store(view, &word->answer, result->places);
		}
	}
	board->words[who] = n;
	return view->error ? -1 : (long)n;
}

bool count_answers_hold(const struct board *board, const struct index *index)
{
	const struct result *result = board->results + OWNER * board->capacity;

	for (size_t i = 0; i < index->n_buckets; i++)
		for (const struct word *word = index->buckets[i]; word; word = word->next, result++)
			if (is_scored(board, result->text) && word->answer != result->places)
				return false;
	return true;
}
