// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * map.c - draws the residency of the index's blocks, one cell for some blocks.
 *
 * Every page is looked up in the device's page table, which is shared memory:
 * a lookup is one load, so a picture of 256 MiB asks nobody anything. It is a
 * moment's view: blocks move while it is drawn.
 */
#include <stdio.h>
#include <stdlib.h>

#include <hmm/hmm.h>

#include "map.h"

#define PAGE	4096UL
#define CELLS	64

static int by_address(const void *a, const void *b)
{
	const uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;

	return x < y ? -1 : x > y;
}

/* What the device sees of a range, page by page. */
struct sight {
	unsigned long pages, owned, copies;
};

static struct sight look(const struct hmm_mirror *mirror, uintptr_t start, uintptr_t end)
{
	struct sight sight = { .pages = (end - start) / PAGE };

	for (uintptr_t at = start; at < end; at += PAGE) {
		uint64_t entry = hmm_mirror_lookup(mirror, at);

		if (!(entry & HMM_ENTRY_VALID) || !(entry & HMM_ENTRY_DEVICE))
			continue;
		if (entry & HMM_ENTRY_WRITE)
			sight.owned++;
		else
			sight.copies++;
	}
	return sight;
}

static char cell(struct sight sight)
{
	if (sight.owned == sight.pages)
		return 'D';
	if (sight.owned)
		return 'd';
	return sight.copies ? 's' : '.';
}

static void print_run(const struct hmm_mirror *mirror, uintptr_t start, uintptr_t end)
{
	size_t blocks = (end - start) / BLOCK_SIZE;
	size_t step = (blocks + CELLS - 1) / CELLS * BLOCK_SIZE;
	unsigned long owned = 0;

	printf("  %012lx [", start);
	for (uintptr_t at = start; at < end; at += step) {
		struct sight sight = look(mirror, at, at + step < end ? at + step : end);

		owned += sight.owned;
		putchar(cell(sight));
	}
	printf("] %lu of %lu MiB on the device\n", owned * PAGE >> 20, (end - start) >> 20);
}

void map_print(const char *when, const struct hmm_mirror *mirror, const struct blocks *blocks)
{
	uint32_t n = blocks->count, from = 0;
	uintptr_t *start = malloc(n * sizeof(*start));

	if (!start)
		return;
	for (uint32_t i = 0; i < n; i++)
		start[i] = blocks->block[i].address;
	qsort(start, n, sizeof(*start), by_address);

	printf("%s  (. at home, d partly on the device, D on the device, s read by both)\n", when);
	for (uint32_t i = 1; i <= n; i++) {
		if (i < n && start[i] == start[i - 1] + BLOCK_SIZE)
			continue;
		print_run(mirror, start[from], start[i - 1] + BLOCK_SIZE);
		from = i;
	}
	fflush(stdout);
	free(start);
}
