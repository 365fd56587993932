/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mapping.c - memory that the library maps for itself: its arena, staging slots,
 * tables, shadows, windows.
 *
 * Much of it is address space and little memory: a table alone covers 256 GiB of
 * a sparse file. In a program that has called mlockall(MCL_FUTURE) a plain mmap()
 * would allocate all of it on the spot. So a mapping begins inaccessible, which
 * keeps the kernel from populating it, is unlocked, and only then opened.
 *
 * It lies far from where the kernel puts a program's mappings: a window needs an
 * owner's addresses free in its driver, and a table would take a quarter of them.
 *
 * Fails as mmap() does; what was at the wanted place then still is.
 */
#include <errno.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arena.h"
#include "layout.h"
#include "mapping.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

#define PLACES_START	0x200000000000UL
#define PLACES (1UL << 42) /* behind it: 4 TiB to begin in, as much to grow into */
#define PLACE_SIZE	(1UL << 30)

/* A place that is probably free; the kernel finds another if it is not. */
static void *choose_place(size_t size)
{
	static uint64_t next LIBRARY_DATA = PLACES_START;
	uint64_t step = (size + 2 * PLACE_SIZE - 1) & ~(PLACE_SIZE - 1), place;
	uint64_t random = 0;

	if (__atomic_load_n(&next, __ATOMIC_RELAXED) == PLACES_START) {
		if (getrandom(&random, sizeof(random), GRND_NONBLOCK) < 0)
			random = (uint64_t)getpid() * 0x9e3779b97f4a7c15ULL;
		__atomic_fetch_add(&next, PLACE_SIZE + random % PLACES / PLACE_SIZE * PLACE_SIZE,
				   __ATOMIC_RELAXED);
	}
	place = __atomic_fetch_add(&next, step, __ATOMIC_RELAXED);
	return (void *)(PLACES_START + (place - PLACES_START) % (2 * PLACES));
}

void *hmmc_map_reserved(void *at, size_t size, int protection, int flags, int fd, uint64_t offset)
{
	void *map = mmap(choose_place(size), size, PROT_NONE, flags, fd, (off_t)offset);
	void *moved = map;
	int error;

	if (map == MAP_FAILED)
		return NULL;
	munlock(map, size);
	/* A name shows whose it is and keeps the kernel from merging it with the program's. */
	if (flags & MAP_ANONYMOUS)
		prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, (unsigned long)map, size, "libhmmclient");
	/* Not the library's own mprotect(), which is the program's. */
	if (syscall(SYS_mprotect, map, size, protection))
		moved = MAP_FAILED;
	else if (at)
		moved = mremap(map, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, at);
	if (moved != MAP_FAILED)
		return moved;
	error = errno;
	munmap(map, size);
	errno = error;
	return NULL;
}

void *hmmc_map(void *at, size_t size, int protection, int flags, int fd, uint64_t offset)
{
	return hmmc_map_reserved(at, size, protection, flags | MAP_NORESERVE, fd, offset);
}

bool hmmc_is_lost(const void *bytes)
{
	return madvise((void *)(uintptr_t)bytes, HMM_PAGE_SIZE, MADV_POPULATE_READ) && (errno == EHWPOISON || errno == EFAULT);
}
