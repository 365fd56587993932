// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * dirty.c - finding the pages that were written, one in a hundred, beside one bare
 * PAGEMAP_SCAN over as much memory; and what a write costs to a page that is tracked, after
 * its first one, beside the same page when nobody tracks it any more.
 *
 * The floor of the first has memory and a userfaultfd of its own, since a mapping has one at most. Both have the same
 * pages written. What is found is compared with what was written.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench/rig/rig.h"
#include "proto/uapi.h"

#define REGIONS	65536UL
#define PASSES	8U

struct floor {
	int pagemap;
	struct page_region *regions;
};

static void floor_open(struct floor *floor, char *memory, size_t bytes)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC };
	struct uffdio_register range = {
		.range = { .start = (uintptr_t)memory, .len = bytes }, .mode = UFFDIO_REGISTER_MODE_WP,
	};
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	floor->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	floor->regions = malloc(REGIONS * sizeof(*floor->regions));
	if (uffd < 0 || floor->pagemap < 0 || !floor->regions)
		fail("no userfaultfd, pagemap or memory: %s", strerror(errno));
	if (ioctl(uffd, UFFDIO_API, &api) < 0 || ioctl(uffd, UFFDIO_REGISTER, &range) < 0)
		fail("no asynchronous write protection: %s", strerror(errno));
	/* Never closed: that would lift every protection. */
}

/* One call, unless it finds more runs than there is room for. */
static size_t floor_find(const struct floor *floor, const char *memory, size_t bytes)
{
	struct pm_scan_arg scan = {
		.size = sizeof(scan), .start = (uintptr_t)memory, .end = (uintptr_t)memory + bytes,
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.vec = (uintptr_t)floor->regions, .vec_len = REGIONS,
		.category_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT, .return_mask = PAGE_IS_WRITTEN,
	};
	size_t pages = 0;
	long n;

	for (; scan.start < scan.end; scan.start = scan.walk_end) {
		n = ioctl(floor->pagemap, PAGEMAP_SCAN, &scan);
		if (n < 0)
			fail("PAGEMAP_SCAN: %s", strerror(errno));
		for (long i = 0; i < n; i++)
			pages += (floor->regions[i].end - floor->regions[i].start) / PAGE;
	}
	return pages;
}

static void write_to(char *memory, const uint32_t *order, size_t pages)
{
	for (size_t i = 0; i < pages; i++)
		memory[order[i] * PAGE]++;
}

static size_t find(struct hmm_dirty *dirty, const char *memory, size_t bytes, uint64_t *bits)
{
	long n = hmm_dirty_read(dirty, (unsigned long)memory, bytes, HMM_DIRTY_CLEAR, bits, NULL);

	hmm_check(n, "hmm_dirty_read");
	return (size_t)n;
}

static void check_found(const uint64_t *bits, const uint32_t *order, size_t pages, size_t found)
{
	if (found != pages)
		fail("%zu pages were found and %zu written", found, pages);
	for (size_t i = 0; i < pages; i++)
		if (!(bits[order[i] / 64] >> (order[i] % 64) & 1))
			fail("page %u was written and not found", order[i]);
}

/* One side or the other; seconds. */
static double time_ours(struct hmm_dirty *dirty, const char *memory, size_t bytes, uint64_t *bits, size_t *found)
{
	double start = now();

	*found = find(dirty, memory, bytes, bits);
	return now() - start;
}

static double time_floor(const struct floor *floor, const char *memory, size_t bytes, size_t *found)
{
	double start = now();

	*found = floor_find(floor, memory, bytes);
	return now() - start;
}

static void finding(const struct arguments *arguments, struct hmm_dirty *dirty, char *ours, char *theirs,
		      const struct floor *floor, struct figures *figures)
{
	size_t all = arguments->bytes / PAGE, some = all / 100;
	uint64_t *bits = malloc(all / 8 + 8);
	size_t found, theirs_found;

	if (!bits)
		fail("out of memory");
	for (unsigned int round = 0; round <= arguments->rounds; round++) {
		uint32_t *order = permutation((uint32_t)all, round + 1);
		double mine = 0, least;

		write_to(ours, order, some);
		write_to(theirs, order, some);
		if (round & 1)
			mine = time_ours(dirty, ours, arguments->bytes, bits, &found);
		least = time_floor(floor, theirs, arguments->bytes, &theirs_found);
		if (!(round & 1))
			mine = time_ours(dirty, ours, arguments->bytes, bits, &found);
		check_found(bits, order, some, found);
		if (theirs_found != some)
			fail("the floor found %zu pages and %zu were written", theirs_found, some);
		free(order);
		if (round)
			figures_add(figures, mine * 1e3, least * 1e3);
	}
	free(bits);
}

/*
 * Each page's first write after it was told is not measured: it is what the rest is bought with. The floor is the
 * same pages after the same first write, whose track has ended by then: which memory of the machine's a page is,
 * and what its caches hold after so many faults, makes more difference than who watches it.
 */
static double writing(struct mirrored *mirrored, char *memory, size_t bytes, bool tracked)
{
	struct hmm_dirty *dirty;
	double start, spent;

	hmm_check(hmm_dirty_start(mirrored->hmm, (unsigned long)memory, bytes, 0, &dirty), "hmm_dirty_start");
	find(dirty, memory, bytes, NULL);
	for (size_t at = 0; at < bytes; at += PAGE)
		((volatile char *)memory)[at]++;
	if (!tracked)
		hmm_dirty_stop(dirty);
	start = now_served();
	for (unsigned int pass = 0; pass < PASSES; pass++)
		for (size_t at = 0; at < bytes; at += 64)
			((volatile char *)memory)[at]++;
	spent = (now_served() - start) * 1e3;
	if (tracked)
		hmm_dirty_stop(dirty);
	return spent;
}

static void slowdown(const struct arguments *arguments, struct mirrored *mirrored, char *memory, struct figures *figures)
{
	size_t bytes = arguments->bytes / 16;

	for (unsigned int round = 0; round <= arguments->rounds; round++) {
		double mine = 0, least;

		if (round & 1)
			mine = writing(mirrored, memory, bytes, true);
		least = writing(mirrored, memory, bytes, false);
		if (!(round & 1))
			mine = writing(mirrored, memory, bytes, true);
		if (round)
			figures_add(figures, mine, least);
	}
}

int main(int argc, char **argv)
{
	static struct figures find_figures = { .row = "dirty-find", .unit = "ms" };
	static struct figures write_figures = { .row = "dirty-writer", .unit = "ms" };
	struct arguments arguments;
	struct mirrored mirrored;
	struct hmm_dirty *dirty;
	struct floor floor;
	char *ours, *theirs;

	arguments_read(&arguments, argc, argv);
	warm_up(arguments.bytes * 5 / 2);
	ours = memory_new(arguments.bytes, false);
	theirs = memory_new(arguments.bytes, false);
	floor_open(&floor, theirs, arguments.bytes);
	mirrored_open(&mirrored, 16 * MIB);
	if (!(hmm_features(mirrored.hmm) & HMM_HAS_TRACK_PAGEMAP_SCAN))
		fail("this kernel has no PAGEMAP_SCAN with asynchronous write protection");
	hmm_check(hmm_advise(mirrored.hmm, (unsigned long)ours, arguments.bytes, HMM_ADVISE_UNPINNED, NULL), "hmm_advise");
	hmm_check(hmm_dirty_start(mirrored.hmm, (unsigned long)ours, arguments.bytes, 0, &dirty), "hmm_dirty_start");
	find(dirty, ours, arguments.bytes, NULL);
	floor_find(&floor, theirs, arguments.bytes);
	finding(&arguments, dirty, ours, theirs, &floor, &find_figures);
	hmm_dirty_stop(dirty);
	arguments.rounds *= 3;
	slowdown(&arguments, &mirrored, ours, &write_figures);
	figures_print(&find_figures, NULL);
	figures_print(&write_figures, NULL);
	mirrored_close(&mirrored);
	return 0;
}
