/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* mapping.h - memory that the library maps for itself. */
#ifndef HMMC_MAPPING_H
#define HMMC_MAPPING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>

/*
 * As mmap(), but nothing of it is touched or locked even in a program that has
 * called mlockall(MCL_FUTURE). @at not NULL: replaces what is there, in one step.
 * Return: NULL and errno when it fails.
 */
void *hmmc_map(void *at, size_t size, int protection, int flags, int fd, uint64_t offset);
/*
 * The same, and refused where there is no memory for it: the kernel counts it where it counts such
 * memory at all, and sets huge pages of a hugetlb file aside.
 */
void *hmmc_map_reserved(void *at, size_t size, int protection, int flags, int fd, uint64_t offset);
/*
 * Whether a page of bytes that the kernel could not copy (EFAULT) never can be: its memory has failed, or the disk that it was swapped
 * to. Else there was no memory to map it, or to swap it in: it is to be tried again.
 */
bool hmmc_is_lost(const void *bytes);

#endif
