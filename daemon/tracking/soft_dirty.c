/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * soft_dirty.c - the engine by the kernel's soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), which
 * needs no userfaultfd. They can't be read and cleared in one step, and are cleared for the
 * whole process: so all of the owner's threads are stopped while they are read and cleared,
 * and a look is one at all of its tracks.
 *
 * Memory without a page has no bit, so it is presumed to be written each time. New
 * and moved mappings have all bits set.
 *
 * What can fail: a debugger has the owner, so that it can't be stopped. Thread: the owner's worker.
 */
#include <errno.h>

#include "engine/worker.h"
#include "tracking/tracking.h"
#include "uapi.h"

#define ENTRIES 512U
/* How soon it is tried again after it was found out at length that it is no use. */
#define BARRED_NS (2000 * NS_PER_MS)

static const char *lacks(const struct kernel_facts *facts)
{
	return facts->soft_dirty ? NULL : "the kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)";
}

static enum sight sight_of(uint64_t entry)
{
	if (entry & PM_SOFT_DIRTY)
		return SIGHT_WRITTEN;
	/* The page of zeros, say, in the place of one that was discarded. */
	if (entry & PM_PRESENT && !(entry & PM_EXCLUSIVE))
		return SIGHT_PRESUMED;
	return entry & (PM_PRESENT | PM_SWAP) ? SIGHT_CLEAN : SIGHT_PRESUMED;
}

static int look(struct tracker *tracker, uint64_t at, uint64_t end)
{
	uint64_t entries[ENTRIES];

	while (at < end) {
		uint64_t left = (end - at) >> HMM_PAGE_SHIFT;
		unsigned int pages = left < ENTRIES ? (unsigned int)left : ENTRIES;
		int r = kernel->pagemap_read(tracker->owner->pagemap, at, pages, entries);

		if (r)
			return r;
		for (unsigned int i = 0; i < pages; i++, at += HMM_PAGE_SIZE)
			track_sight(tracker, at, at + HMM_PAGE_SIZE, sight_of(entries[i]));
	}
	return 0;
}

static int begin(struct tracker *tracker)
{
	const struct owner *owner = tracker->owner;
	int r;

	if (owner->worker->now < tracker->barred)
		return -EBUSY;
	r = freeze(owner->pid, &tracker->stopped);
	if (r != -ETIMEDOUT)
		return r;
	/* Others wait for this worker, too. */
	tracker->barred = owner->worker->now + BARRED_NS;
	return -EBUSY;
}

/* Bits that can't be cleared are told once more. */
static int end(struct tracker *tracker)
{
	int r = kernel->soft_dirty_clear(tracker->clear_refs);

	thaw(&tracker->stopped);
	return r;
}

const struct tracking_ops tracking_soft_dirty = {
	.name = "soft-dirty",
	.feature = HMM_FEATURE_TRACK_SOFT_DIRTY,
	.whole = true,
	.lacks = lacks,
	.begin = begin,
	.end = end,
	.look = look,
};
