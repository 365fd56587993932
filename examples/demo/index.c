// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * index.c - builds and queries the index.
 *
 * A posting or word is complete before a release store links it in, so a
 * reader on another processor, or in another process through a window, never
 * follows a pointer to something half made. One thread at a time calls these.
 * Only malloc() can fail.
 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "board.h"
#include "index.h"

#define LONGEST_WORD	63
#define QUERY_DEPTH	16

uint64_t index_hash(const char *text, size_t length)
{
	uint64_t hash = 0xcbf29ce484222325ULL;

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3ULL;
	return scramble(hash);
}

static void *allocate(struct index *index, size_t size)
{
	void *memory = malloc(size);

	if (!memory)
		return NULL;
	/* malloc() in words of its own: a header, and a multiple of 16. */
	index->bytes += (size + 8 + 15) & ~15UL;
	if (index->blocks)
		blocks_add(index->blocks, memory, size);
	return memory;
}

struct index *index_new(size_t size, struct blocks *blocks)
{
	struct index *index = calloc(1, sizeof(*index));

	if (!index)
		return NULL;
	index->blocks = blocks;
	if (blocks)
		blocks_add(blocks, index, sizeof(*index));
	for (index->n_buckets = 1024; index->n_buckets < size / 512; index->n_buckets *= 2)
		;
	index->buckets = allocate(index, index->n_buckets * sizeof(*index->buckets));
	if (!index->buckets) {
		free(index);
		return NULL;
	}
	memset(index->buckets, 0, index->n_buckets * sizeof(*index->buckets));
	return index;
}

void index_free(struct index *index)
{
	if (!index)
		return;
	for (size_t i = 0; i < index->n_buckets; i++) {
		for (struct word *word = index->buckets[i], *next; word; word = next) {
			for (struct posting *posting = word->first, *older; posting;
			     posting = older) {
				older = posting->next;
				free(posting);
			}
			next = word->next;
			free(word);
		}
	}
	free(index->buckets);
	free(index);
}

static struct word *find_word(struct index *index, const char *text, size_t length)
{
	struct word **bucket, *word;

	bucket = &index->buckets[index_hash(text, length) & (index->n_buckets - 1)];
	for (word = *bucket; word; word = word->next)
		if (word->length == length && !memcmp(word->text, text, length))
			return word;

	word = allocate(index, sizeof(*word) + length);
	if (!word)
		return NULL;
	word->next = *bucket;
	word->first = NULL;
	word->answer = 0;
	word->length = (uint32_t)length;
	memcpy(word->text, text, length);
	__atomic_store_n(bucket, word, __ATOMIC_RELEASE);
	index->n_words++;
	return word;
}

static int add_posting(struct index *index, struct word *word, uint32_t document, uint32_t position)
{
	struct posting *posting = allocate(index, sizeof(*posting));

	if (!posting)
		return -ENOMEM;
	posting->next = word->first;
	posting->document = document;
	posting->position = position;
	posting->score = 0;
	posting->visits = 0;
	__atomic_store_n(&word->first, posting, __ATOMIC_RELEASE);
	index->n_postings++;
	return 0;
}

/* The next word of @text from @at on. Return: its length, 0 at the end. */
static size_t next_word(const struct document *text, size_t *at)
{
	size_t start, end;

	for (start = *at; start < text->length; start++)
		if (isalnum((unsigned char)text->text[start]))
			break;
	for (end = start; end < text->length && end - start < LONGEST_WORD; end++)
		if (!isalnum((unsigned char)text->text[end]) && text->text[end] != '_')
			break;
	*at = start;
	return end - start;
}

int index_add(struct index *index, const struct corpus *corpus, size_t most)
{
	struct document text = corpus->documents[index->documents % corpus->count];
	size_t at = 0, length;

	if (text.length > most)
		text.length = most;
	for (; (length = next_word(&text, &at)) > 0; at += length) {
		struct word *word = find_word(index, text.text + at, length);

		if (!word || add_posting(index, word, index->documents, (uint32_t)at))
			return -ENOMEM;
	}
	index->documents++;
	return 0;
}

void index_query(struct index *index, uint64_t random)
{
	size_t mask = index->n_buckets - 1, bucket = random & mask;
	struct posting *posting;
	int depth = 0;

	while (!index->buckets[bucket])
		bucket = (bucket + 1) & mask;
	for (posting = index->buckets[bucket]->first; posting && depth++ < QUERY_DEPTH;
	     posting = posting->next)
		__atomic_store_n(&posting->visits, posting->visits + 1, __ATOMIC_RELAXED);
}
