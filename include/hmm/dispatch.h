/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dispatch.h - callbacks in a thread of the driver's own, when its event loop says so.
 *
 * Without these calls the library runs a driver's callbacks in a thread of its own.
 * The kernel's HMM runs them wherever the change happens, so a driver that is ported
 * has no such choice to make; one that lives in an event loop has.
 */
#ifndef HMM_DISPATCH_H
#define HMM_DISPATCH_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * hmm_dispatch_fd() - callbacks of this handle's mirrors wait until hmm_dispatch()
 * is called. To be chosen before the first mirror that has callbacks is registered;
 * for good, and for every user of the handle.
 * Return: a descriptor that is readable (poll(), level-triggered) as long as a
 *	callback waits: only to be polled, and closed by hmm_close(). The same one
 *	each time. -EBUSY: the library's thread runs this handle's callbacks;
 *	-EINVAL: @hmm is NULL; -ESTALE: the owner is gone; -EMFILE, -ENFILE,
 *	-ENOMEM.
 */
int hmm_dispatch_fd(struct hmm *hmm);

/*
 * hmm_dispatch() - run callbacks that wait, in the calling thread, oldest first.
 * @max: how many at most; 0: those that wait now.
 * @timeout_ms: how long to wait for the first one; 0: not at all, -1: for ever.
 *
 * Several threads may call it; callbacks then run at the same time. A thread that has
 * called one of these two, on one handle or on several, runs callbacks of all of them, too,
 * wherever it waits in the library (as the kernel calls a driver back in the middle of its
 * migrate_vma()), until the handle is closed or the thread ends: call
 * with no lock held that a callback takes. It must not touch, through a window or in
 * the owner itself, memory that another change may be about: nobody would run the
 * callback that the touch waits for. hmmd's deadline
 * runs from the moment of the change, not from this call: a driver that does not
 * come in time loses its windows there, as one whose callback does not return.
 * Return: how many ran, 0 when the time was over; -EINVAL: @hmm is NULL or its
 *	callbacks do not come this way; -EDEADLK: from inside a callback; -ESTALE:
 *	the handle is of the process that forked this one; -ENOMEM.
 */
int hmm_dispatch(struct hmm *hmm, unsigned int max, int timeout_ms);

#ifdef __cplusplus
}
#endif
#endif
