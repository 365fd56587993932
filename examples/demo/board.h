/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * board.h - what the demo's three processes share: one memfd with what was
 * agreed on before, the blocks that the index lies in, and the three counts.
 */
#ifndef DEMO_BOARD_H
#define DEMO_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BLOCK_SIZE (2UL << 20)
#define MOST_BLOCKS 65536

/* One 2 MiB block that holds a piece of the index, and what became of it. */
struct block {
	uintptr_t address;
	uint32_t out, home;	/* how often the churn moved something out of it, and back */
};

/* The owner appends, the driver reads on: entries up to @count are complete. */
struct blocks {
	_Atomic uint32_t count;
	uint32_t recent;	/* the owner's: where the last allocation was */
	struct block block[MOST_BLOCKS];
};

void blocks_add(struct blocks *blocks, void *memory, size_t size);

/* What one of the three found out about one word. */
struct result {
	uint64_t text;		/* hash of its letters */
	uint64_t postings;
	uint64_t places;	/* checksum of documents and positions, in the list's order */
	uint64_t scores;	/* checksum of what the driver wrote, or would have to */
	uint64_t visits;	/* checksum of the queries' marks; the driver cannot know it */
};

enum who { OWNER, DRIVER, THIRD, N_WHO };

struct figures {
	uint64_t moves, out_pages, home_pages, left_pages;
	uint64_t passes, written;
	double seconds;
};

/* What the command line says. */
struct options {
	size_t size;		/* of the index */
	uint64_t seed;
	uint32_t score_every;	/* the driver writes one score in so many */
	bool no_window;
	char socket[108];	/* "": the default */
};

struct board {
	struct options options;
	size_t capacity;	/* results for each */

	/* Said while it runs. */
	const void *index;	/* the owner's pointer, as it is */
	_Atomic uint64_t queries_after_seal;
	_Atomic uint32_t owner_is_done;
	size_t words[N_WHO];
	struct figures figures;

	struct blocks blocks;
	struct result results[];
};

/* @memfd: for the program that shall open it. Return: NULL, with errno set. */
struct board *board_new(const struct options *options, int *memfd);
struct board *board_open(int memfd);

static inline struct result *board_results(struct board *board, enum who who)
{
	return board->results + (size_t)who * board->capacity;
}

/* Prints the first difference of two counts. Return: they are equal, to the byte. */
bool board_agree(struct board *board, enum who a, enum who b);

#endif
