/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * arena.c - the library's own memory: requests, thread stacks, handles.
 *
 * malloc would not do: its memory may be on the device, and a thread that must
 * bring it home cannot wait for itself. One reservation of address space is
 * made on first use and announced to hmmd as excluded. Inside it pieces are
 * powers of two; a freed piece goes to the list of its size and is never
 * split or merged, which is enough for a few hundred long-lived objects.
 *
 * Fails with NULL when the address space limit or the reservation is used up.
 * Any thread may call; the lock is held for a few instructions.
 */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "arena.h"
#include "futex.h"
#include "mapping.h"
#include "proto/layout.h"
#include "proto/uapi.h"

#define ARENA_SIZE	(256UL << 20)
#define ARENA_SIZE_POOR	(32UL << 20)	/* for programs under RLIMIT_AS */
#define CLASS_MIN	6		/* 64 bytes: a cache line, so that locks do not share one */
#define CLASS_MAX	26
#define LOCKED_KEPT	2U		/* of each size: to lock and unlock takes as long as a request */

struct piece {
	struct piece *next;
};

static struct {
	struct futex_lock lock;
	char *start, *end, *fresh;
	struct piece *free[CLASS_MAX + 1];
	struct piece *locked[CLASS_MAX + 1];	/* a few of those that were allocated locked, as they are */
	unsigned int kept[CLASS_MAX + 1];
} arena LIBRARY_DATA = { .lock = { 0 } };

static unsigned int class_of(size_t size)
{
	unsigned int class = CLASS_MIN;

	while (((size_t)1 << class) < size)
		class++;
	return class;
}

static bool reserve(void)
{
	size_t size = ARENA_SIZE;
	char *start;

	start = hmmc_map(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!start) {
		size = ARENA_SIZE_POOR;
		start = hmmc_map(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				 -1, 0);
	}
	if (!start)
		return false;
	madvise(start, size, MADV_NOHUGEPAGE);
	/* Messages carry bytes that the program may have kept out of its core. */
	madvise(start, size, MADV_DONTDUMP);
	arena.start = arena.fresh = start;
	arena.end = start + size;
	return true;
}

void *hmmc_arena_alloc(size_t size)
{
	unsigned int class = class_of(size);
	size_t rounded = (size_t)1 << class;
	struct piece *piece = NULL;

	if (class > CLASS_MAX)
		return NULL;
	futex_lock(&arena.lock);
	if (arena.start || reserve()) {
		piece = arena.free[class];
		if (piece) {
			arena.free[class] = piece->next;
		} else {
			size_t align = rounded < HMM_PAGE_SIZE ? rounded : HMM_PAGE_SIZE;
			uintptr_t fresh = ((uintptr_t)arena.fresh + align - 1) & ~(align - 1);

			if (fresh + rounded <= (uintptr_t)arena.end) {
				piece = (struct piece *)fresh;
				arena.fresh = (char *)fresh + rounded;
			}
		}
	}
	futex_unlock(&arena.lock);
	if (piece)
		memset(piece, 0, size < sizeof(*piece) ? sizeof(*piece) : size);
	return piece;
}

void hmmc_arena_free(void *memory, size_t size)
{
	unsigned int class = class_of(size);
	struct piece *piece = memory;

	if (!piece)
		return;
	/* Large pieces are stacks and buffers: what they had touched goes back to the system. */
	if (class >= 16)
		madvise(memory, (size_t)1 << class, MADV_DONTNEED);
	futex_lock(&arena.lock);
	piece->next = arena.free[class];
	arena.free[class] = piece;
	futex_unlock(&arena.lock);
}

static size_t whole_pages(size_t size)
{
	return size < HMM_PAGE_SIZE ? HMM_PAGE_SIZE : (size_t)1 << class_of(size);
}

void *hmmc_arena_alloc_locked(size_t size)
{
	const unsigned int class = class_of(whole_pages(size));
	struct piece *piece = NULL;

	if (class > CLASS_MAX)
		return NULL;
	futex_lock(&arena.lock);
	piece = arena.locked[class];
	if (piece) {
		arena.locked[class] = piece->next;
		arena.kept[class]--;
	}
	futex_unlock(&arena.lock);
	if (piece) {
		memset(piece, 0, size < sizeof(*piece) ? sizeof(*piece) : size);
		return piece;
	}
	piece = hmmc_arena_alloc(whole_pages(size));
	if (piece)
		mlock2(piece, whole_pages(size), MLOCK_ONFAULT);
	return piece;
}

void hmmc_arena_free_locked(void *memory, size_t size)
{
	const unsigned int class = class_of(whole_pages(size));
	struct piece *piece = memory;

	if (!piece)
		return;
	futex_lock(&arena.lock);
	if (arena.kept[class] < LOCKED_KEPT) {
		arena.kept[class]++;
		piece->next = arena.locked[class];
		arena.locked[class] = piece;
		piece = NULL;
	}
	futex_unlock(&arena.lock);
	if (!piece)
		return;
	size = whole_pages(size);
	/* Nothing is left in it for the disk. */
	if (madvise(memory, size, MADV_DONTNEED_LOCKED))
		memset(memory, 0, size);
	munlock(memory, size);
	hmmc_arena_free(memory, size);
}

bool hmmc_arena_range(unsigned long *start, size_t *length)
{
	bool exists;

	futex_lock(&arena.lock);
	exists = arena.start != NULL;
	*start = (unsigned long)arena.start;
	*length = (size_t)(arena.end - arena.start);
	futex_unlock(&arena.lock);
	return exists;
}

bool hmmc_arena_contains(const void *address)
{
	const char *byte = address;

	return byte >= arena.start && byte < arena.end;
}

void hmmc_arena_forget(void)
{
	memset(&arena, 0, sizeof(arena));
}
