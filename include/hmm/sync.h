/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sync.h - tracked mirrors: a device that has copies of an owner's memory, which are brought up to
 * date when the driver says so, by what was written since. For devices that neither fault nor are
 * told of changes: replication, checkpoints, accelerators that work on a snapshot.
 *
 * A mirror is tracked when it is registered with HMM_MIRROR_TRACKED in its ops. Nothing migrates to
 * it and nothing is taken from it, so it is never called back for a change. What is asked of other
 * mirrors (migrating, ranges, windows, advice, device accesses, coherent memory) is -EOPNOTSUPP.
 */
#ifndef HMM_SYNC_H
#define HMM_SYNC_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_mirror;

struct hmm_sync_report {
	uint64_t pages;		/* of the range, of 4 KiB */
	uint64_t written;	/* that may have been written since */
	uint64_t presumed;	/* of these, what nobody saw being written (dirty.h) */
	uint64_t copied;	/* now */
	uint64_t zeroed;	/* the owner has no page there: they read as zeros */
};

/*
 * hmm_mirror_track() - the mirror's device has a copy of [addr, addr + length) from now on. At
 *	first it is all zeros, and all of it counts as written.
 * @flags: 0.
 *
 * Nothing need be mapped there yet, and what is there on another device comes home at the next
 * sync. Until hmm_mirror_untrack() none of it migrates (HMM_TRACKED). The device's memory is taken
 * for all of the range at once (in pools of huge pages by 2 MiB), so that a sync never finds it
 * full.
 * Any thread. Return: 0; -EINVAL: flags, or a range that is empty, unaligned or ends above user
 *	space; -EEXIST: the mirror tracks some of it already; -ENOSPC: the device has no room
 *	(hmm_last_error() says how much is wanted and in use), or the owner has too many tracks;
 *	-EOPNOTSUPP: the mirror is not tracked, or no engine finds what is written, or some of it is locked; -EPERM: the
 *	owner has no userfaultfd to give; -EDQUOT: the user's share of hmmd is used up; -ENOMEM;
 *	-ESTALE: the owner is gone, or it is a fork's parent's; -EDEADLK: called from inside a
 *	callback. After an error nothing has changed.
 */
int hmm_mirror_track(struct hmm_mirror *mirror, unsigned long addr, size_t length, uint64_t flags);

/*
 * hmm_mirror_untrack() - a range as it was given to hmm_mirror_track(): the copy goes, with what
 *	hmm_mirror_copy() gave. Not while another thread syncs it. hmm_mirror_unregister() does it
 *	for all.
 * Any thread. Return: 0; -EINVAL: there is no such range; -ESTALE; -EDEADLK.
 */
int hmm_mirror_untrack(struct hmm_mirror *mirror, unsigned long addr, size_t length);

/*
 * hmm_mirror_sync() - bring the copy of [addr, addr + length), which lies in one tracked range, up
 *	to date: the owner's own thread copies what was written since the last sync, and no more.
 * @flags: 0.
 * @report: totals, or NULL.
 *
 * A write that is over before the call is in the copy when it returns. One that goes on meanwhile
 * may be, and is told again by the next call, torn or not. So who wants the copy to be of one
 * moment has the writers stand still. Where nothing is mapped, nothing may be read or nothing was
 * ever written the copy reads as zeros. Memory that is not looked at page by page (not declared
 * HMM_ADVISE_UNPINNED, shared, of a file: see hmm_dirty_start()) is copied each time.
 *
 * Any thread; several may at the same time. A restart of hmmd keeps the copy, or makes it anew with
 * all pages counting as written.
 * Return: pages that were copied or zeroed; -EINVAL: flags, or a range that is not (all of it)
 *	tracked; -EBUSY: some pages could not be copied (they are lost, cannot come home, or their
 *	mappings keep changing), or, with soft-dirty, the owner can't be stopped; -ENOSPC: the
 *	system has no memory for the copy; -ENOMEM; -ESTALE; -EDEADLK. After an error, what was not
 *	copied counts as written still.
 */
long hmm_mirror_sync(struct hmm_mirror *mirror, unsigned long addr, size_t length, uint64_t flags,
		     struct hmm_sync_report *report);

/*
 * hmm_mirror_copy() - where the copy of the owner's address @addr lies in this process: read-only,
 *	and one run for each tracked range. It stays when the owner ends. NULL: no such range, or no
 *	such mirror.
 * Any thread, a callback too. The same pointer until hmm_mirror_untrack().
 */
const void *hmm_mirror_copy(const struct hmm_mirror *mirror, unsigned long addr);

#ifdef __cplusplus
}
#endif
#endif
