// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * table.c - the device's page table: leaves of 512 entries in a list:
 * A real device has its own format and its own walker in silicon.
 */
#include "table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_SHIFT	12
#define LEAF_SHIFT	21
#define LEAF_ENTRIES	(1U << (LEAF_SHIFT - PAGE_SHIFT))

struct leaf {
	struct leaf *next;
	unsigned long number;		/* addr >> LEAF_SHIFT */
	uint64_t entry[LEAF_ENTRIES];
};

static struct leaf *find(const struct table *table, unsigned long addr)
{
	struct leaf *leaf = table->leaves;

	while (leaf && leaf->number != addr >> LEAF_SHIFT)
		leaf = leaf->next;
	return leaf;
}

static unsigned int entry_index(unsigned long addr)
{
	return addr >> PAGE_SHIFT & (LEAF_ENTRIES - 1);
}

uint64_t table_load(const struct table *table, unsigned long addr)
{
	const struct leaf *leaf = find(table, addr);

	return leaf ? leaf->entry[entry_index(addr)] : 0;
}

int table_store(struct table *table, unsigned long addr, uint64_t entry)
{
	struct leaf *leaf = find(table, addr);

	if (!leaf) {
		leaf = calloc(1, sizeof(*leaf));
		if (!leaf)
			return -ENOMEM;
		leaf->number = addr >> LEAF_SHIFT;
		leaf->next = table->leaves;
		table->leaves = leaf;
	}
	leaf->entry[entry_index(addr)] = entry;
	return 0;
}

void table_erase(struct table *table, unsigned long start, unsigned long end)
{
	for (struct leaf *leaf = table->leaves; leaf; leaf = leaf->next) {
		unsigned long first = leaf->number << LEAF_SHIFT, last = first + (1UL << LEAF_SHIFT);

		if (first < start)
			first = start;
		if (last > end)
			last = end;
		if (first < last)
			memset(&leaf->entry[entry_index(first)], 0,
			       ((last - first) >> PAGE_SHIFT) * sizeof(leaf->entry[0]));
	}
}

void table_free(struct table *table)
{
	for (struct leaf *leaf = table->leaves, *next; leaf; leaf = next) {
		next = leaf->next;
		free(leaf);
	}
	table->leaves = NULL;
}
