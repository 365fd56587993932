/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * window.h - the owner's addresses inside a driver process: load and store
 * through the owner's raw pointers; a miss faults to hmmd, which brings the page.
 */
#ifndef HMM_WINDOW_H
#define HMM_WINDOW_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_mirror;
struct hmm_window;

#define HMM_WINDOW_OFFSET (1ULL << 0)	/* where the addresses are taken, map elsewhere */

/*
 * hmm_window_map() - map [addr, addr + length) of the mirror's owner here.
 * @length: 0 with @addr 0: everything a window can cover, as the owner's
 *	memory is now.
 * Any thread. What cannot be had raises a signal when it is touched; hmm_device_read() reaches it.
 * Return: 0; -EEXIST: addresses are taken here (hmm_last_error() names them);
 *	-EINVAL; -EBUSY: called in the owner itself; -EOPNOTSUPP: the device has memory
 *	that no window can show, or the mirror is tracked (sync.h); -E2BIG: @length 0, and the
 *	owner's memory lies in too many places;
 *	-EPERM: no userfaultfd; -EDEADLK: called from inside a callback; -ENOMEM; -ESTALE.
 */
int hmm_window_map(struct hmm_mirror *mirror, unsigned long addr, size_t length, uint64_t flags,
		   struct hmm_window **result);

/* Unmaps and gives the handle back. NULL is allowed. Return: 0; -ESTALE: in a fork's child. */
int hmm_window_unmap(struct hmm_window *window);

/* The local pointer for an owner's address; NULL when the window does not cover it. */
void *hmm_window_ptr(const struct hmm_window *window, unsigned long addr);

#ifdef __cplusplus
}
#endif
#endif
