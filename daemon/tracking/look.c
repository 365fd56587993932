/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * look.c - one look at a range: what was written since the last one. Runs on
 * the owner's worker.
 *
 * Happy path: mapping by mapping. What is private, anonymous, writable, not the library's nor a thread's
 * own, and declared UNPINNED by its owner is looked at by the engine. Of all other memory
 * that is mapped it can't be known, so it is presumed to be written, each time:
 * shared and file-backed memory has other writers; what another userfaultfd watches, a coherent mirror's or the program's
 * own, can't have a second; and where nobody has promised that no I/O into it is in flight,
 * it is (a write through a pin made before raises nothing, whatever the engine).
 *
 * Nothing about mappings is remembered from one look to the next but where nothing was mapped.
 * A range that was unmapped and mapped anew, or moved, is not registered any more, so that all of it
 * counts as written.
 *
 * What can fail: the owner's mm is gone, or its map keeps changing.
 */
#include <errno.h>
#include <string.h>

#include "engine/worker.h"
#include "tracking/tracking.h"

/* Threads that were there a moment ago. */
#define THREADS_AGE	(100 * NS_PER_MS)

/* As far as one thing is said of it. */
static uint64_t clip_declared(const struct owner *owner, uint64_t at, uint64_t end, bool *unpinned)
{
	const struct hmm_attribute said = attribute_at(&owner->attributes, at);

	*unpinned = said.flags & HMM_ATTRIBUTE_UNPINNED;
	return said.end > at && said.end < end ? said.end : end;
}

static int look_declared(struct tracker *tracker, uint64_t at, uint64_t end)
{
	int r = split_begin(tracker->owner) ? tracker->ops->look(tracker, at, end) : -EAGAIN;

	split_end(tracker->owner);
	if (!r)
		return 0;
	track_sight(tracker, at, end, SIGHT_PRESUMED);
	return r == -ESRCH ? r : 0;
}

static int look_segment(struct tracker *tracker, uint64_t at, uint64_t end)
{
	int r = 0;

	while (at < end && !r) {
		bool unpinned;
		uint64_t stop = clip_declared(tracker->owner, at, end, &unpinned);

		if (unpinned)
			r = look_declared(tracker, at, stop);
		else
			track_sight(tracker, at, stop, SIGHT_PRESUMED);
		at = stop;
	}
	return r;
}

/* Return: where to go on, or -errno. */
static int look_at(struct tracker *tracker, uint64_t at, uint64_t end, uint64_t *next)
{
	struct owner *owner = tracker->owner;
	struct segment segment;
	struct kernel_vma vma;
	int r = mapping_at(owner, at, &vma);

	if (r && r != -ENOENT)
		return r;
	if (r || vma.start > at) {
		*next = r || vma.start > end ? end : vma.start;
		track_sight(tracker, at, *next, SIGHT_GAP);
		return 0;
	}
	r = segment_of_map(owner, at, end, &segment);
	if (r)
		return r;
	*next = segment.end;
	if (segment.result == HMM_PAGE_RESULT_MOVED)
		return look_segment(tracker, at, segment.end);
	/* Between the two questions it may have been unmapped: then nothing is known. */
	track_sight(tracker, at, segment.end, SIGHT_PRESUMED);
	return 0;
}

static int look_over(struct tracker *tracker, uint64_t at, uint64_t end)
{
	int r = 0;

	while (at < end && !r)
		r = look_at(tracker, at, end, &at);
	if (r && at < end)
		track_sight(tracker, at, end, SIGHT_PRESUMED);
	return r;
}

static int look_all(struct tracker *tracker)
{
	struct track *track;
	int r = 0, failed;

	TAILQ_FOREACH(track, &tracker->tracks, link) {
		/* What fails is presumed to be written; the others are looked at all the same: it begins anew for them, too. */
		failed = look_over(tracker, track->start, track->end);
		r = r ? r : failed;
	}
	return r;
}

int tracking_look(struct tracker *tracker, uint64_t start, uint64_t end)
{
	const struct tracking_ops *ops = tracker->ops;
	int r, failed;

	vma_refresh_threads(tracker->owner, THREADS_AGE);
	r = ops->begin ? ops->begin(tracker) : 0;
	if (r)
		return r;
	r = ops->whole ? look_all(tracker) : look_over(tracker, start, end);
	failed = ops->end ? ops->end(tracker) : 0;
	return r ? r : failed;
}

const char *tracking_look_error(int error)
{
	return error == -EBUSY ? "a debugger has the owner, it has io_uring's own threads, or an execve() of it does not end: "
				 "it can't be stopped" : strerror(-error);
}
