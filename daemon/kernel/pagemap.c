/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pagemap.c - an owner's pages and bytes through descriptors that the owner
 * itself opened (/proc/self/pagemap, /proc/self/mem): they stay bound to its
 * mm, so that an exec of a setuid program can never be read by mistake.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "layout.h"
#include "private.h"
#include "uapi.h"

int kernel_pagemap_read(int pagemap, uint64_t start, unsigned int pages, uint64_t *entries)
{
	size_t want = pages * sizeof(*entries);
	ssize_t n;

	n = pread(pagemap, entries, want, (off_t)((start >> HMM_PAGE_SHIFT) * sizeof(*entries)));
	if (n < 0)
		return -errno;
	return (size_t)n == want ? 0 : -ESRCH;
}

int kernel_page_kinds(int pagemap, uint64_t start, unsigned int pages, uint8_t *kinds)
{
	struct page_region regions[64];
	struct pm_scan_arg scan = {
		.size = sizeof(scan), .start = start, .end = start + ((uint64_t)pages << HMM_PAGE_SHIFT),
		.vec = (uintptr_t)regions, .vec_len = sizeof(regions) / sizeof(regions[0]),
		.category_anyof_mask = PAGE_IS_HUGE | PAGE_IS_PFNZERO,
		.return_mask = PAGE_IS_HUGE | PAGE_IS_PFNZERO,
	};
	int n;

	memset(kinds, 0, pages);
	for (; scan.start < scan.end; scan.start = scan.walk_end) {
		n = ioctl(pagemap, PAGEMAP_SCAN, &scan);
		if (n < 0)
			return -errno;
		for (int r = 0; r < n; r++)
			for (uint64_t at = regions[r].start; at < regions[r].end; at += HMM_PAGE_SIZE)
				kinds[(at - start) >> HMM_PAGE_SHIFT] =
					(regions[r].categories & PAGE_IS_HUGE ? KERNEL_PAGE_HUGE : 0) |
					(regions[r].categories & PAGE_IS_PFNZERO ? KERNEL_PAGE_ZERO : 0);
	}
	return 0;
}

/* A page is told of whatever it has, if it has a mapping. Not in drivers' mappings of frames: those are passed over. */
int kernel_mapped(int pagemap, uint64_t addr)
{
	struct page_region region;
	uint64_t page = addr & ~(HMM_PAGE_SIZE - 1);
	struct pm_scan_arg scan = {
		.size = sizeof(scan), .start = page, .end = page + HMM_PAGE_SIZE,
		.vec = (uintptr_t)&region, .vec_len = 1, .return_mask = PAGE_IS_PRESENT,
	};
	int n = ioctl(pagemap, PAGEMAP_SCAN, &scan);

	return n < 0 ? -errno : n;
}

/* A page with nothing and without a mark was discarded, or never there: it counts as written once. */
static bool is_written(const struct page_region *region)
{
	return region->categories & PAGE_IS_WRITTEN ||
	       !(region->categories & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED));
}

int kernel_pages_written(int pagemap, uint64_t start, uint64_t end, struct kernel_region *regions,
			 unsigned int max, uint64_t *walked)
{
	struct page_region found[256];
	/*
	 * Written, or not present: that catches what whole page tables without an entry hide, which
	 * WRITTEN alone does not.
	 */
	struct pm_scan_arg scan = {
		.size = sizeof(scan), .start = start, .end = end,
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.vec = (uintptr_t)found, .vec_len = max < 256 ? max : 256,
		.category_inverted = PAGE_IS_PRESENT,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_PRESENT | PAGE_IS_WRITTEN | PAGE_IS_SWAPPED,
	};
	int n = ioctl(pagemap, PAGEMAP_SCAN, &scan), told = 0;

	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++)
		if (is_written(&found[i]))
			regions[told++] = (struct kernel_region){ found[i].start, found[i].end };
	*walked = scan.walk_end;
	return told;
}

int kernel_soft_dirty_clear(int clear_refs)
{
	return pwrite(clear_refs, "4", 1, 0) == 1 ? 0 : -errno;
}

ssize_t kernel_mem_read(int mem, uint64_t addr, void *buffer, size_t length)
{
	ssize_t n = pread(mem, buffer, length, (off_t)addr);

	return n < 0 ? -errno : n;
}

ssize_t kernel_mem_write(int mem, uint64_t addr, const void *buffer, size_t length)
{
	ssize_t n = pwrite(mem, buffer, length, (off_t)addr);

	return n < 0 ? -errno : n;
}

int kernel_memfd_new(const char *name, uint64_t size, unsigned int flags)
{
	/* Mode 0600: a read-only descriptor could be reopened for writing otherwise. */
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	int fd, r;

	fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) < 0 || fchmod(fd, 0600) < 0 || fcntl(fd, F_ADD_SEALS, seals) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

int kernel_punch(int fd, uint64_t offset, uint64_t length)
{
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) < 0)
		return -errno;
	return 0;
}

int kernel_collapse(int pidfd, uint64_t start, size_t length)
{
	struct iovec range = { .iov_base = (void *)(uintptr_t)start, .iov_len = length };

	if (syscall(SYS_process_madvise, pidfd, &range, 1UL, MADV_COLLAPSE, 0U) < 0)
		return -errno;
	return 0;
}
