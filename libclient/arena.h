/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * arena.h - the library's own memory. It is one mapping that hmmd is told never
 * to arm, so whatever serves faults or carries out orders can touch it at any time.
 */
#ifndef HMMC_ARENA_H
#define HMMC_ARENA_H

#include <stdbool.h>
#include <stddef.h>

/*
 * The library's own variables go into .data, which is part of a file mapping
 * and so never migrated; .bss would be anonymous memory like any other.
 */
#define LIBRARY_DATA __attribute__((section(".data")))

/*
 * Zeroed memory, aligned to its size rounded up to a power of two (at most a page). NULL:
 * no more.
 */
void *hmmc_arena_alloc(size_t size);
/*
 * The same for bytes of the program's: pages of its own, that are never on a disk, as far as the program may lock memory. To be freed
 * with hmmc_arena_free_locked().
 */
void *hmmc_arena_alloc_locked(size_t size);
void hmmc_arena_free_locked(void *memory, size_t size);
/* With the size it was allocated with. NULL is allowed. */
void hmmc_arena_free(void *memory, size_t size);
/* The whole mapping; false before the first allocation. */
bool hmmc_arena_range(unsigned long *start, size_t *length);
bool hmmc_arena_contains(const void *address);
/* After fork, in the child: the old arena stays readable, the next allocation makes a new one. */
void hmmc_arena_forget(void);

#endif
