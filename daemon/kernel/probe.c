/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * probe.c - what the running kernel offers, found by trying it. Runs once, on
 * the control thread, before the engine starts.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "layout.h"
#include "private.h"
#include "uapi.h"

static void probe_uffd(struct kernel_facts *facts)
{
	int fd = kernel_uffd_new();

	if (fd < 0)
		return;
	/* Asking for nothing is always allowed, and the answer names everything. */
	kernel_uffd_api(fd, 0, &facts->uffd_features);
	close(fd);

	fd = kernel_uffd_new();
	if (fd < 0)
		return;
	facts->event_fork = kernel_uffd_api(fd, UFFD_FEATURE_EVENT_FORK, NULL) == 0;
	close(fd);
}

/* Before Linux 6.17 one userfaultfd takes away what another has registered. */
static void probe_unregister(struct kernel_facts *facts)
{
	void *page = mmap(NULL, HMM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int one = kernel_uffd_new(), other = kernel_uffd_new();

	if (page != MAP_FAILED && one >= 0 && other >= 0 && !kernel_uffd_api(one, 0, NULL) &&
	    !kernel_uffd_api(other, 0, NULL) &&
	    !kernel_real.uffd_register(one, (uintptr_t)page, HMM_PAGE_SIZE, UFFDIO_REGISTER_MODE_MISSING))
		facts->unregister_checks =
			kernel_real.uffd_unregister(other, (uintptr_t)page, HMM_PAGE_SIZE) != 0;
	if (one >= 0)
		close(one);
	if (other >= 0)
		close(other);
	if (page != MAP_FAILED)
		munmap(page, HMM_PAGE_SIZE);
}

static void probe_proc(struct kernel_facts *facts)
{
	struct procmap_query query = {
		.size = sizeof(query), .query_addr = (uint64_t)(uintptr_t)facts,
	};
	struct pm_scan_arg scan = { .size = sizeof(scan) };
	int fd;

	fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		facts->procmap_query = ioctl(fd, PROCMAP_QUERY, &query) == 0;
		close(fd);
	}
	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		/* An empty range scans nothing; what counts is that the call exists. */
		facts->pagemap_scan = ioctl(fd, PAGEMAP_SCAN, &scan) == 0 || errno == EINVAL;
		close(fd);
	}
}

/* Where the kernel was built without them, clearing succeeds and the bit never shows. */
static void probe_soft_dirty(struct kernel_facts *facts)
{
	int clear = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t before = 0, after = 0;
	volatile char *page;

	page = mmap(NULL, HMM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (clear >= 0 && pagemap >= 0 && page != MAP_FAILED) {
		*page = 1;
		if (!kernel_soft_dirty_clear(clear) &&
		    !kernel_pagemap_read(pagemap, (uintptr_t)page, 1, &before)) {
			*page = 2;
			facts->soft_dirty = !kernel_pagemap_read(pagemap, (uintptr_t)page, 1, &after) &&
					    !(before & PM_SOFT_DIRTY) && after & PM_SOFT_DIRTY;
		}
	}
	if (page != MAP_FAILED)
		munmap((void *)page, HMM_PAGE_SIZE);
	if (clear >= 0)
		close(clear);
	if (pagemap >= 0)
		close(pagemap);
}

static void probe_guard_and_collapse(struct kernel_facts *facts)
{
	char *page;

	page = mmap(NULL, HMM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page != MAP_FAILED) {
		facts->guard = madvise(page, HMM_PAGE_SIZE, MADV_GUARD_INSTALL) == 0;
		munmap(page, HMM_PAGE_SIZE);
	}
	/* -EINVAL is the advice refused; -ENOMEM, -EAGAIN and the like are this moment's. */
	page = mmap(NULL, 2 * HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page != MAP_FAILED) {
		char *block = (char *)(((uintptr_t)page + HMM_BLOCK_SIZE - 1) & ~(HMM_BLOCK_SIZE - 1));

		for (size_t at = 0; at < HMM_BLOCK_SIZE; at += HMM_PAGE_SIZE)
			block[at] = 1;
		facts->collapse = madvise(block, HMM_BLOCK_SIZE, MADV_COLLAPSE) == 0 || errno != EINVAL;
		munmap(page, 2 * HMM_BLOCK_SIZE);
	}
}

static bool file_says(const char *path, const char *word)
{
	char text[256];
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n < 0)
		return false;
	text[n] = '\0';
	return strstr(text, word);
}

bool kernel_merging(void)
{
	return file_says("/sys/kernel/mm/ksm/run", "1");
}

static void probe_huge(struct kernel_facts *facts)
{
	const char *shmem = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
	char text[32];
	ssize_t n;
	int fd;

	facts->shmem_unasked = file_says(shmem, "[always]") || file_says(shmem, "[within_size]") ||
			       file_says(shmem, "[force]");
	facts->shmem_huge = facts->shmem_unasked || file_says(shmem, "[advise]");
	fd = open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	facts->hugetlb = n > 0 && text[0] != '0';
}

void kernel_probe(struct kernel_facts *facts)
{
	struct io_uring ring;

	memset(facts, 0, sizeof(*facts));
	probe_uffd(facts);
	probe_unregister(facts);
	probe_proc(facts);
	probe_soft_dirty(facts);
	probe_guard_and_collapse(facts);
	probe_huge(facts);
	if (io_uring_queue_init(8, &ring, 0) == 0) {
		facts->io_uring = true;
		io_uring_queue_exit(&ring);
	}
	facts->nodes = kernel_count_nodes();
}
