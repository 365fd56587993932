/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * index.h - where each word of the corpus occurs: a hash table of words, each
 * with a linked list of postings, all of it plain malloc() memory.
 *
 * Nothing here knows of hmmd. The owner builds it and goes on changing it; the
 * driver, another process, follows the very same pointers. So every field has
 * one writer: what the owner may change while the driver looks is read and
 * written atomically, what the driver writes back the owner does not touch.
 */
#ifndef DEMO_INDEX_H
#define DEMO_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "corpus.h"

struct blocks;

struct posting {
	struct posting *next;	/* set before the posting is linked in, then constant */
	uint32_t document;
	uint32_t position;
	uint32_t score;		/* the driver's */
	uint32_t visits;	/* the owner's: how many queries came by */
};

struct word {
	struct word *next;	/* as in a posting */
	struct posting *first;	/* the owner's: the newest posting */
	uint64_t answer;	/* the driver's: what it found out about this word */
	uint32_t length;
	char text[];		/* no terminator */
};

struct index {
	struct word **buckets;	/* each the owner's */
	size_t n_buckets;	/* a power of two */
	uint32_t sealed;	/* the owner's: no posting will be added any more */
	uint32_t documents;
	uint64_t n_words, n_postings;
	size_t bytes;		/* asked of malloc() */
	struct blocks *blocks;	/* where it lies; NULL when nobody wants to know */
};

/* @size: about how large it will become. Return: NULL when out of memory. */
struct index *index_new(size_t size, struct blocks *blocks);
void index_free(struct index *index);

/*
 * Adds the next document of the corpus under the next number; after the last
 * one the first comes again, as a new document. Only the first @most bytes of
 * it count. Return: 0 or -ENOMEM.
 */
int index_add(struct index *index, const struct corpus *corpus, size_t most);

/* One query: some word's newest postings are visited. @random picks the word. */
void index_query(struct index *index, uint64_t random);

uint64_t index_hash(const char *text, size_t length);

/* A good scramble of 64 bits; with a counter as @x it is a random sequence. */
static inline uint64_t scramble(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

#endif
