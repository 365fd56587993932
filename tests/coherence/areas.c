/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * areas.c - what lies behind each area. Most are anonymous memory, which migrates. With --in-place some
 * are what stays where it is, and devices reach it there: shared memory, files in tmpfs and on a disk,
 * each private and shared, and with --hugetlb huge pages of the kernel's pool. Windows can't show
 * any of it, so drivers read and write it by requests, and look at ranges of it.
 *
 * The oracle is the same for all. A file is as long as its area and nobody writes to the file itself, so
 * what is discarded of a private mapping is zeros again; what is to go of a shared one is punched out of it.
 *
 * Owner only, and but for area_map() the main thread.
 */
#include "board.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FIRST_IN_PLACE 3U

static int file_in_memory(struct board *board, struct participant *who, size_t bytes, unsigned int flags)
{
	int file = memfd_create("coherence-area", MFD_CLOEXEC | flags);

	if (file < 0 || ftruncate(file, (off_t)bytes))
		board_fail(board, who, "a file in memory, flags %#x: %m", flags);
	return file;
}

static int file_on_disk(struct board *board, struct participant *who, size_t bytes)
{
	char path[300];
	int file;

	snprintf(path, sizeof(path), "%s/coherence-XXXXXX", board->settings.directory);
	file = mkostemp(path, O_CLOEXEC);
	if (file < 0 || ftruncate(file, (off_t)bytes))
		board_fail(board, who, "%s: %m", path);
	unlink(path);
	return file;
}

static void set_up(struct area *area, enum area_kind kind, int file, int flags)
{
	area->kind = kind;
	area->file = file;
	area->flags = flags;
	area->shared = flags & MAP_SHARED;
	area->kept = area->shared && file >= 0;
}

static void set_up_huge(struct area *area, int file, int flags)
{
	set_up(area, AREA_HUGETLB, file, flags);
	area->unit = BLOCK_BYTES / PAGE_BYTES;
	for (int i = 0; i < 2; i++)
		area->homes[i] = (area->homes[i] + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1);
	atomic_store(&area->base, area->homes[0]);
}

void areas_open(struct board *board, struct participant *who)
{
	struct area *area = &board->areas[FIRST_IN_PLACE];
	size_t bytes = area->pages * PAGE_BYTES;

	if (!board->settings.in_place)
		return;
	set_up(area++, AREA_SHARED, -1, MAP_SHARED | MAP_ANONYMOUS);
	set_up(area++, AREA_FILE, file_in_memory(board, who, bytes, 0), MAP_PRIVATE);
	set_up(area++, AREA_FILE, file_in_memory(board, who, bytes, 0), MAP_SHARED);
	set_up(area++, AREA_FILE, file_on_disk(board, who, bytes), MAP_PRIVATE);
	set_up(area++, AREA_FILE, file_on_disk(board, who, bytes), MAP_SHARED);
	if (!board->settings.hugetlb)
		return;
	set_up_huge(area++, -1, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB);
	set_up_huge(area++, file_in_memory(board, who, bytes, MFD_HUGETLB), MAP_SHARED);
}

void areas_close(struct board *board)
{
	for (uint32_t i = 0; i < board->n_areas; i++)
		if (board->areas[i].file >= 0)
			close(board->areas[i].file);
}

void *area_map(const struct area *area, void *where, uint32_t offset, uint32_t pages, int more_flags)
{
	return mmap(where, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, area->flags | more_flags, area->file,
		    area->file >= 0 ? (off_t)(offset * PAGE_BYTES) : 0);
}
