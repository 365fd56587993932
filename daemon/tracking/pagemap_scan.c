/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pagemap_scan.c - the engine for Linux 6.7 and later: memory is write-protected by a
 * userfaultfd that is asynchronous, so that the kernel lifts a protection by itself at the
 * first write, and one call finds the pages without and protects them again,
 * page by page in one step. Writers wait for nobody.
 *
 * Where there is no page a mark is left in its place: what was discarded has none.
 *
 * What can fail: the mapping changes between registering and the call, which then says so.
 * Thread: the owner's worker.
 */
#include <errno.h>

#include "tracking/tracking.h"
#include "uapi.h"

#define REGIONS 256U

static const char *lacks(const struct kernel_facts *facts)
{
	if (!facts->pagemap_scan)
		return "the kernel lacks PAGEMAP_SCAN (Linux 6.7 has it)";
	if (!(facts->uffd_features & UFFD_FEATURE_WP_ASYNC))
		return "the kernel lacks asynchronous write protection (UFFD_FEATURE_WP_ASYNC, Linux 6.7), or userfaultfd is forbidden";
	return NULL;
}

static int look(struct tracker *tracker, uint64_t at, uint64_t end)
{
	struct kernel_region regions[REGIONS];
	int n, r;

	/* Again each time: what was mapped anew is not. */
	r = kernel->uffd_register(tracker->uffd, at, end - at, UFFDIO_REGISTER_MODE_WP);
	if (r)
		return r;
	while (at < end) {
		uint64_t walked = end;

		n = kernel->pages_written(tracker->owner->pagemap, at, end, regions, REGIONS, &walked);
		if (n < 0)
			return n;
		for (int i = 0; i < n; i++)
			track_sight(tracker, regions[i].start, regions[i].end, SIGHT_WRITTEN);
		if (walked <= at)
			return -EIO;
		at = walked;
	}
	return 0;
}

const struct tracking_ops tracking_pagemap_scan = {
	.name = "pagemap-scan",
	.feature = HMM_FEATURE_TRACK_PAGEMAP_SCAN,
	.userfaultfd = true,
	.uffd_features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMAP,
	.lacks = lacks,
	.look = look,
};
