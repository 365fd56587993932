/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * exclusive.h - pages that a device has to itself: for atomic operations of the device
 * that the CPU must not come between. The kernel's make_device_exclusive() is the model.
 */
#ifndef HMM_EXCLUSIVE_H
#define HMM_EXCLUSIVE_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_mirror;

/*
 * hmm_device_exclusive_begin() - bring [addr, addr + length) to the mirror's device
 * (holes as zero pages) and mark each page that got there.
 * @results: one byte per page (enum hmm_migrate_result), or NULL: HMM_MIGRATED and
 *	HMM_ALREADY are marked, anything else says why not; HMM_CHANGED is worth
 *	asking again, HMM_SHARED_MEMORY is coherent memory, which CPU and device map
 *	both.
 *
 * A marked page is the device's alone, until any touch by the CPU (a read as well as a
 * write), another device or a change of the mapping takes it back: the mark goes, then
 * sync_cpu_device_pagetables() is called (HMM_REASON_EXCLUSIVE for a touch), and when
 * that has returned the page goes home, never to be shared. So a driver that holds a lock
 * while it looks (hmm_device_exclusive_check()) and does its operation, and takes the
 * same lock in its callback, is never come between. hmmd's death takes every mark.
 * Return: how many pages are marked; -EINVAL: unaligned, empty or wrapping range;
 *	-EOPNOTSUPP: a device with HMM_DEVICE_COPY_ENGINE or without HMM_DEVICE_FAULTS,
 *	or a tracked mirror (sync.h);
 *	-ESTALE: the owner is gone;
 *	-EDEADLK: called from inside a callback.
 */
long hmm_device_exclusive_begin(struct hmm_mirror *mirror, unsigned long addr, size_t length,
				uint8_t *results);

/*
 * hmm_device_exclusive_end() - take the marks away; the pages stay where they are.
 * Return: how many were still marked, or as above (not -EDEADLK).
 */
long hmm_device_exclusive_end(struct hmm_mirror *mirror, unsigned long addr, size_t length);

/*
 * hmm_device_exclusive_check() - is every page of the range still marked? One load
 * from shared memory for each page, no system call. False for a bad argument, too.
 */
bool hmm_device_exclusive_check(const struct hmm_mirror *mirror, unsigned long addr,
				size_t length);

#ifdef __cplusplus
}
#endif
#endif
