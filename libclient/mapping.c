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
 * Fails as mmap() does; what was at the wanted place then still is.
 */
#include <errno.h>
#include <stddef.h>
#include <sys/prctl.h>

#include "mapping.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

void *hmmc_map(void *at, size_t size, int protection, int flags, int fd, uint64_t offset)
{
	void *map = mmap(NULL, size, PROT_NONE, flags | MAP_NORESERVE, fd, (off_t)offset), *moved = map;
	int error;

	if (map == MAP_FAILED)
		return NULL;
	munlock(map, size);
	/* A name shows whose it is and keeps the kernel from merging it with the program's. */
	if (flags & MAP_ANONYMOUS)
		prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, (unsigned long)map, size, "libhmmclient");
	if (mprotect(map, size, protection))
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
