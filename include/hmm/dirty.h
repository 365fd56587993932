/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dirty.h - which pages of an address space were written since they were asked for last. For
 * memory that stays with the CPU, and whose copies elsewhere are brought up to date from
 * time to time: checkpoints, replication, devices without page faults.
 *
 * hmmd finds them by one of three engines, whichever works best on this kernel (hmm_features(),
 * HMM_HAS_TRACK_*). All keep one promise: no write is missed. A page may be told that was not
 * written; how many nobody saw being written is counted (presumed).
 */
#ifndef HMM_DIRTY_H
#define HMM_DIRTY_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_dirty;

#define HMM_DIRTY_CLEAR (1ULL << 0)	/* what is told now is not told again */

struct hmm_dirty_report {
	uint64_t pages;		/* asked for, of 4 KiB */
	uint64_t written;	/* that may have been written */
	uint64_t presumed;	/* of these, what nobody saw being written */
};

/*
 * hmm_dirty_start() - from now on, note which pages of [addr, addr + length) are written.
 * @hmm: the process's own, or another's by its key.
 * @flags: 0.
 * @result: give it back with hmm_dirty_stop(); hmm_close() of the last reference does, too.
 *
 * Nothing need be mapped there yet. Ranges may overlap, each is told of by itself. At first all
 * pages count as written, and so they do after a restart of hmmd.
 *
 * A page is looked at where it is private anonymous memory and the owner has said that nothing pins it
 * (hmm_advise(), HMM_ADVISE_UNPINNED): what I/O writes through a pin that was made before shows nowhere, so that
 * promise holds for every read, too. Everything else that is mapped there is told each time, as
 * presumed: not declared, shared, file-backed, read-only, excluded, watched by another userfaultfd.
 *
 * What is tracked does not migrate (HMM_TRACKED), and what a coherent mirror watches at present is
 * presumed. The engine uffd-wp delays the first write to a page after it was told; the others do not. soft-dirty stops
 * all threads of the owner for a moment at each hmm_dirty_read().
 * Any thread. Return: 0; -EINVAL: result is NULL, flags, or a range that is empty,
 *	unaligned or ends above user space; -EOPNOTSUPP: no engine works, hmm_last_error() says why; -EPERM: the
 *	owner has no userfaultfd to give; -EDQUOT: the user's share of hmmd is used up; -ENOSPC: the owner
 *	has too many; -ENOMEM; -ESTALE: the owner is gone; -EDEADLK: called from inside a callback.
 */
int hmm_dirty_start(struct hmm *hmm, unsigned long addr, size_t length, uint64_t flags,
		    struct hmm_dirty **result);

/*
 * hmm_dirty_read() - the pages of [addr, addr + length), which lies in the range, that were written.
 * @flags: 0 or HMM_DIRTY_CLEAR.
 * @bitmap: a bit per page, in words of 64, the lowest first, all of which are stored; or NULL.
 * @report: totals, or NULL.
 *
 * A write that is over before the call is told, now or, where the page was told before and
 * nobody cleared it, again. One that comes after is told by the next call. One in
 * between by either. So whoever reads with CLEAR and copies the pages then has all that was written before.
 *
 * Any thread; of two that clear at the same time each page is told to one.
 * Return: how many pages; -EINVAL; -EBUSY: with soft-dirty, a debugger has the owner, or it has io_uring's own
 *	threads; -ESTALE; -ENOMEM; -EDEADLK: called from inside a callback. After an error what was not told counts as written.
 */
long hmm_dirty_read(struct hmm_dirty *dirty, unsigned long addr, size_t length, uint64_t flags,
		    uint64_t *bitmap, struct hmm_dirty_report *report);

/*
 * hmm_dirty_stop() - not while another thread reads. NULL is allowed. Return: 0; -ESTALE: the handle
 * is a fork's parent's; -EDEADLK: called from inside a callback.
 */
int hmm_dirty_stop(struct hmm_dirty *dirty);

#ifdef __cplusplus
}
#endif
#endif
