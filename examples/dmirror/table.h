// SPDX-License-Identifier: GPL-2.0-or-later
/* table.h - the device's page table: an entry for each page, 0 where there is none. No lock of its own. */
#ifndef DMIRROR_TABLE_H
#define DMIRROR_TABLE_H

#include <stdint.h>

struct table {
	struct leaf *leaves;
};

uint64_t table_load(const struct table *table, unsigned long addr);
int table_store(struct table *table, unsigned long addr, uint64_t entry);	/* 0 or -ENOMEM */
void table_erase(struct table *table, unsigned long start, unsigned long end);
void table_free(struct table *table);

#endif
