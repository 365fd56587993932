/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* migrate.h - moving pages to device memory and home. Best effort, page by page. */
#ifndef HMM_MIGRATE_H
#define HMM_MIGRATE_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_mirror;

enum hmm_target {
	HMM_SYSTEM = 0,
	HMM_DEVICE = 1,
};

/* What became of one page. hmm_migrate_result_name() has them in words. */
enum hmm_migrate_result {
	HMM_MIGRATED = 0,
	HMM_ALREADY = 1,	/* it was there before */
	HMM_HOLE = 2,		/* nothing mapped that can be read, or never written */
	HMM_PINNED = 3,		/* I/O in flight, or shared since a fork */
	HMM_FILE = 4,
	HMM_SHARED_MEMORY = 5,
	HMM_READONLY = 6,
	HMM_LOCKED = 7,
	HMM_ARMED = 8,		/* the program's own userfaultfd */
	HMM_EXCLUDED = 9,	/* a stack, a thread control block, the library itself */
	HMM_SPECIAL = 10,
	HMM_POOL_FULL = 11,
	HMM_CHANGED = 12,	/* the mapping changed meanwhile: ask again */
	HMM_UNDECLARED = 13,	/* base engine: the range was not declared UNPINNED */
	HMM_MIGRATE_ERROR = 14,
	HMM_NOT_TRIED = 15,	/* hmm_prefetch(): it was over before this page's turn */
	HMM_TRACKED = 16,	/* hmm_dirty_start(): what is written there is tracked */
	HMM_OVER_QUOTA = 17,	/* the user has as much of devices' memory as hmmd lets one have */
};

struct hmm_migrate_report {
	uint64_t pages;		/* asked for */
	uint64_t moved;
	uint64_t already;
	uint64_t failed;	/* the rest */
};

#define HMM_MIGRATE_POPULATE (1ULL << 0)	/* holes become zero pages of the device */

/*
 * hmm_migrate() - move [addr, addr + length) to @target: the mirror's device, or
 *	ordinary memory from whichever device has it.
 * @results: one byte per page (enum hmm_migrate_result), or NULL.
 * @report: totals, or NULL.
 * Return: pages now at the target (moved + already); -EOPNOTSUPP: to a device without
 * HMM_DEVICE_FAULTS, which has what is pinned on it (device.h), or to that of a
 *	tracked mirror (sync.h); -EINVAL: unaligned,
 *	empty or wrapping range; -ESTALE: the owner is gone; -EDEADLK: called
 *	from inside a callback.
 */
long hmm_migrate(struct hmm_mirror *mirror, unsigned long addr, size_t length,
		 enum hmm_target target, uint64_t flags, uint8_t *results,
		 struct hmm_migrate_report *report);

/*
 * hmm_prefetch() - hmm_migrate() that does not wait. May be called by a callback.
 * @completion: an eventfd of the caller, or -1. When all is done it is
 *	signalled with 1 + the number of pages at the target. The library has a
 *	duplicate: the caller may close it at once.
 * @result: NULL, or where to put a handle, by which the caller follows it, hears
 *	what became of each page, or stops it. To be given back with hmm_prefetch_free().
 *
 * Nothing of the caller's is written to meanwhile. It ends early, and says so, when it is
 * cancelled, when a piece of it fails, and when its mirror is unregistered (or the last
 * reference of the handle of the address space is given back): those calls wait for what is
 * under way, and after them the completion has been signalled. A restart of hmmd
 * does not end it; what was in flight is asked again.
 * Return: 0, or as hmm_migrate() (not -EDEADLK); -EBADF: @completion is no descriptor;
 *	-ENOMEM: also for a handle on more than 256 GiB.
 */
struct hmm_prefetch;
int hmm_prefetch(struct hmm_mirror *mirror, unsigned long addr, size_t length,
		 enum hmm_target target, uint64_t flags, int completion,
		 struct hmm_prefetch **result);

/*
 * hmm_prefetch_progress() - how many pages have had their turn, whatever became of them.
 * @pages: NULL, or where to put how many were asked for.
 * One load from the library's memory, no system call; any thread, a callback, too. It never
 * falls. It ends below @pages if the prefetch ended early. 0 for NULL.
 */
uint64_t hmm_prefetch_progress(const struct hmm_prefetch *prefetch, uint64_t *pages);

/*
 * hmm_prefetch_result() - how it ended. Does not wait; any thread, a callback, too.
 * @results: one byte per page (enum hmm_migrate_result), or NULL.
 * @report: totals, or NULL.
 * Return: pages at the target, as hmm_migrate(); -EAGAIN: it runs, and nothing is
 *	written; -EINVAL: @prefetch is NULL; -ESTALE: in a fork's child. If nothing
 *	is at the target, also why it ended early: -ECANCELED, -ESTALE: the owner is gone, -ENOMEM.
 */
long hmm_prefetch_result(const struct hmm_prefetch *prefetch, uint8_t *results,
			 struct hmm_migrate_report *report);

/*
 * hmm_prefetch_cancel() - no page has its turn any more, but for those that are under
 * way: 16 MiB at most. It ends as any other, a little later. Nothing moves back.
 * Return: 0; -EALREADY: it has ended; -EINVAL; -ESTALE: in a fork's child.
 */
int hmm_prefetch_cancel(struct hmm_prefetch *prefetch);

/* Gives the handle back, at any time, after hmm_close() too; what runs goes on. NULL is allowed. */
void hmm_prefetch_free(struct hmm_prefetch *prefetch);

/*
 * hmm_drain() - bring home all that the mirror's device has of this owner.
 * Coherent memory stays what it is; what cannot come home yet stays and is served
 * as before. Waits. Return: pages brought home, or as hmm_migrate().
 */
long hmm_drain(struct hmm_mirror *mirror);

const char *hmm_migrate_result_name(enum hmm_migrate_result result);

#ifdef __cplusplus
}
#endif
#endif
