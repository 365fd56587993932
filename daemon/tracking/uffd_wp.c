/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * uffd_wp.c - the engine for every kernel with userfaultfd: memory is write-protected, the
 * first write to a page waits until hmmd has lifted that, and pagemap tells what is
 * protected still.
 *
 * hmmd alone lifts, in the thread that looks, so nothing changes between pagemap and
 * protecting but from protected to not there. Where there is no page a mark is left in its place, which a
 * discard takes away. Before Linux 6.4 it can't be left: there memory without a page is presumed to be
 * written each time. (That it had none at the last look, too, proves nothing: who was told of it
 * then may have copied what was there in between.)
 *
 * What can fail: EAGAIN while a message of an mremap is unread. Thread: the owner's worker.
 */
#include <errno.h>

#include "tracking/tracking.h"
#include "uapi.h"

#define ENTRIES 512U

static const char *lacks(const struct kernel_facts *facts)
{
	if (!(facts->uffd_features & UFFD_FEATURE_PAGEFAULT_FLAG_WP))
		return "the kernel's userfaultfd can't write-protect, or hmmd may not use it";
	return NULL;
}

static int protect(struct tracker *tracker, uint64_t start, uint64_t end, bool on)
{
	unsigned int tries = 0;
	int r;

	do {
		r = kernel->uffd_protect(tracker->uffd, start, end - start, on);
	} while (r == -EAGAIN && tracker_settle(tracker, &tries));
	return r;
}

static enum sight sight_of(const struct tracker *tracker, uint64_t entry)
{
	if (entry & PM_UFFD_WP)
		return SIGHT_CLEAN;
	if (entry & (PM_PRESENT | PM_SWAP) || tracker->features & UFFD_FEATURE_WP_UNPOPULATED)
		return SIGHT_WRITTEN;
	return SIGHT_PRESUMED;
}

static int look_entries(struct tracker *tracker, uint64_t start, unsigned int pages)
{
	uint64_t entries[ENTRIES];
	int r = kernel->pagemap_read(tracker->owner->pagemap, start, pages, entries);

	for (unsigned int i = 0, end; i < pages && !r; i = end) {
		enum sight sight = sight_of(tracker, entries[i]);
		uint64_t from = start + (uint64_t)i * HMM_PAGE_SIZE, to;

		for (end = i + 1; end < pages && sight_of(tracker, entries[end]) == sight; end++)
			;
		to = start + (uint64_t)end * HMM_PAGE_SIZE;
		/* Protected first: what is written from here on is found by the next look. */
		if (sight == SIGHT_WRITTEN)
			r = protect(tracker, from, to, true);
		track_sight(tracker, from, to, sight);
	}
	return r;
}

static int look(struct tracker *tracker, uint64_t at, uint64_t end)
{
	int r = kernel->uffd_register(tracker->uffd, at, end - at, UFFDIO_REGISTER_MODE_WP);

	while (at < end && !r) {
		uint64_t pages = (end - at) >> HMM_PAGE_SHIFT;

		if (pages > ENTRIES)
			pages = ENTRIES;
		r = look_entries(tracker, at, (unsigned int)pages);
		at += pages << HMM_PAGE_SHIFT;
	}
	return r;
}

/* Lifting wakes. Where that fails the writer is woken all the same, and faults anew if it has to. */
static void fault(struct tracker *tracker, uint64_t addr)
{
	uint64_t page = addr & ~(HMM_PAGE_SIZE - 1);

	if (kernel->uffd_protect(tracker->uffd, page, HMM_PAGE_SIZE, false))
		kernel->uffd_wake(tracker->uffd, page, HMM_PAGE_SIZE);
}

const struct tracking_ops tracking_uffd_wp = {
	.name = "uffd-wp",
	.feature = HMM_FEATURE_TRACK_UFFD_WP,
	.userfaultfd = true,
	.kernel_faults = true,
	.uffd_features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMAP,
	.uffd_optional = UFFD_FEATURE_WP_UNPOPULATED,
	.lacks = lacks,
	.look = look,
	.fault = fault,
};
