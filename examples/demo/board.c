// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * board.c - the memory that the demo's processes share, and the verdict.
 *
 * A memfd: the driver is another program image (it is executed, so that its
 * addresses differ from the owner's) and takes it by inheritance. Sparse, so
 * its size costs nothing. The owner's thread adds blocks; the verdict is the
 * main thread's when all others are done.
 */
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "board.h"

static size_t board_bytes(size_t capacity)
{
	return sizeof(struct board) + N_WHO * capacity * sizeof(struct result);
}

struct board *board_new(const struct options *options, int *memfd)
{
	size_t capacity = options->size / 48;	/* the smallest word with its posting is larger */
	struct board *board;

	*memfd = memfd_create("demo-board", 0);
	if (*memfd < 0 || ftruncate(*memfd, (off_t)board_bytes(capacity)))
		return NULL;
	board = board_open(*memfd);
	if (!board)
		return NULL;
	board->options = *options;
	board->capacity = capacity;
	return board;
}

struct board *board_open(int memfd)
{
	struct board *board;
	struct stat stat;

	if (fstat(memfd, &stat))
		return NULL;
	board = mmap(NULL, (size_t)stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	return board == MAP_FAILED ? NULL : board;
}

static bool holds(const struct blocks *blocks, uint32_t i, uintptr_t address)
{
	return i < blocks->count && blocks->block[i].address == address;
}

void blocks_add(struct blocks *blocks, void *memory, size_t size)
{
	uintptr_t address = (uintptr_t)memory & ~(BLOCK_SIZE - 1);
	uint32_t i;

	for (; address < (uintptr_t)memory + size; address += BLOCK_SIZE) {
		if (holds(blocks, blocks->recent, address))
			continue;
		for (i = 0; i < blocks->count; i++)
			if (holds(blocks, i, address))
				break;
		if (i == MOST_BLOCKS)
			return;
		if (i == blocks->count) {
			blocks->block[i].address = address;
			atomic_store(&blocks->count, i + 1);
		}
		blocks->recent = i;
	}
}

static const char *const who_name[] = {
	[OWNER] = "the owner",
	[DRIVER] = "the driver",
	[THIRD] = "the count without hmmd",
};

static bool differs(const char *what, size_t i, enum who a, uint64_t of_a, enum who b,
		    uint64_t of_b)
{
	if (of_a == of_b)
		return false;
	fprintf(stderr, "demo: word %zu: %s: %s has %" PRIu64 ", %s has %" PRIu64 "\n", i, what,
		who_name[a], of_a, who_name[b], of_b);
	return true;
}

bool board_agree(struct board *board, enum who a, enum who b)
{
	const struct result *of_a = board_results(board, a), *of_b = board_results(board, b);
	bool visits = a != DRIVER && b != DRIVER;

	if (differs("words", 0, a, board->words[a], b, board->words[b]))
		return false;
	for (size_t i = 0; i < board->words[a]; i++)
		if (differs("text", i, a, of_a[i].text, b, of_b[i].text) ||
		    differs("postings", i, a, of_a[i].postings, b, of_b[i].postings) ||
		    differs("places", i, a, of_a[i].places, b, of_b[i].places) ||
		    differs("scores", i, a, of_a[i].scores, b, of_b[i].scores) ||
		    (visits && differs("visits", i, a, of_a[i].visits, b, of_b[i].visits)))
			return false;
	return true;
}
