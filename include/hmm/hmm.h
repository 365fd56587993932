/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * hmm.h - heterogeneous memory management for userspace: connection, address
 * spaces, features, errors. Include this one; it includes the others.
 *
 * Conventions, everywhere in these headers:
 *  - a call returns 0 or a count on success, a negative errno on failure;
 *    errno itself is never set. hmm_last_error() says in words what went wrong
 *    in the calling thread's last failed call and what to do about it.
 *  - addresses are the owner's virtual addresses; lengths are bytes; both are
 *    multiples of HMM_PAGE_SIZE unless a call says otherwise.
 *  - handles are opaque. Any thread may use any handle; a handle must not be
 *    used after the call that gives it back.
 *  - option structs begin with their own size. Bytes beyond what the library
 *    knows must be zero (-E2BIG otherwise), so old and new code mix.
 *  - the library never prints, exits or installs a signal handler.
 */
#ifndef HMM_HMM_H
#define HMM_HMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HMM_VERSION_MAJOR 0
#define HMM_VERSION_MINOR 1
#define HMM_VERSION "0.1.0"

/* An address space: this process's (hmm_open) or another's (hmm_open_peer). */
struct hmm;

/* The first number of a page of a device: lower ones are the owner's virtual page numbers. */
#define HMM_PFN_DEVICE_FIRST (1UL << 35)

/* What hmm_features() reports. The same bits as the protocol's `feature` flags. */
#define HMM_HAS_MOVE		(1ULL << 0)	/* pages migrate by UFFDIO_MOVE */
#define HMM_HAS_EVENT_FORK	(1ULL << 1)	/* raw forks are seen */
#define HMM_HAS_WP_SHMEM	(1ULL << 2)	/* windows can be write-protected: state S under windows */
#define HMM_HAS_POISON		(1ULL << 3)
#define HMM_HAS_PAGEMAP_SCAN	(1ULL << 4)
#define HMM_HAS_PROCMAP_QUERY	(1ULL << 5)
#define HMM_HAS_IO_URING	(1ULL << 6)
#define HMM_HAS_HUGE_SHMEM	(1ULL << 7)
#define HMM_HAS_HUGETLB		(1ULL << 8)
#define HMM_HAS_GUARD		(1ULL << 9)
#define HMM_HAS_USER_MODE	(1ULL << 10)	/* hmmd serves one uid without privileges */
#define HMM_HAS_COLLAPSE	(1ULL << 11)
#define HMM_HAS_NUMA		(1ULL << 12)
/* How written pages are found (dirty.h): one of these, or none. */
#define HMM_HAS_TRACK_PAGEMAP_SCAN	(1ULL << 20)
#define HMM_HAS_TRACK_UFFD_WP		(1ULL << 21)
#define HMM_HAS_TRACK_SOFT_DIRTY	(1ULL << 22)

struct hmm_open_options {
	size_t size;		/* sizeof(struct hmm_open_options) */
	const char *socket;	/* NULL: $HMM_SOCKET, then /run/hmmd/hmmd.sock, then $XDG_RUNTIME_DIR/hmmd.sock */
	const char *name;	/* shown by hmmctl; NULL: the program's name */
	uint64_t flags;		/* HMM_OPEN_* */
	uint32_t timeout_ms;	/* how long to try to connect; 0: once */
	uint32_t slots;		/* staging slots of 2 MiB each; 0: 8 */
};
#define HMM_OPEN_BASE_ENGINE	(1ULL << 0)	/* do without UFFDIO_MOVE even where the kernel has it */
#define HMM_OPEN_PRELOADED	(1ULL << 1)	/* for hmmctl run */

/*
 * hmm_open() - mirror this process's address space.
 * @options: NULL for the defaults.
 * @result: the handle. The same process gets the same address space again,
 *	with one more reference.
 * Return: 0; -ECONNREFUSED or -ENOENT: no hmmd; -EACCES: not in group hmm,
 *	or hmmd may not look at this process's threads; -ESRCH: hmmd does not see this process (containers);
 *	-EPROTO: versions do not fit; -EINVAL; -ENOMEM; -EPERM: no userfaultfd;
 *	-EDEADLK: another thread closes the last reference, and this is a callback or a
 *	fork handler, which that may wait for. (Elsewhere hmm_open() waits until it is closed.)
 */
int hmm_open(const struct hmm_open_options *options, struct hmm **result);

/*
 * hmm_export() - make a key to this address space.
 * Return: a descriptor to send to a driver process (over a Unix socket or by
 *	inheritance), or a negative errno. Whoever holds it may mirror, read
 *	and write this process's memory through hmmd. Close it when sent.
 */
int hmm_export(struct hmm *hmm);

/*
 * hmm_open_peer() - another process's address space, by the key it exported.
 * @key: is not consumed.
 * Return: 0; -EBADF: not a key; -ESTALE: its owner is gone.
 */
int hmm_open_peer(int key, const struct hmm_open_options *options, struct hmm **result);

/*
 * hmm_close() - give the handle back. On the last reference prefetches end, and of the
 * owner every page comes home first; callbacks that run are waited for, and may remap,
 * protect and fork meanwhile. NULL is allowed. The last reference cannot be given
 * back from inside a callback: nothing happens then, but for hmm_last_error().
 */
void hmm_close(struct hmm *hmm);

/*
 * hmm_features() - what this library, kernel and hmmd can do for this address space:
 * HMM_HAS_* bits. No message is sent; another hmmd may have others. 0: the handle leads nowhere.
 */
uint64_t hmm_features(struct hmm *hmm);

/* hmm_features_name() - of one HMM_HAS_* bit, as hmmctl shows it: "move". NULL: not such a bit. */
const char *hmm_features_name(uint64_t feature);

/*
 * hmm_features_reason() - why hmm_features() lacks one HMM_HAS_* bit, and what to do about it.
 * @text, @size: where the words go, as with snprintf(); NULL with 0 is allowed.
 * Any thread, a callback, too; hmmd is asked.
 * Return: how long the words are, without their end; 0: the feature is there; -EINVAL: not such a
 *	bit, or text is NULL; -ESTALE; -ENOMEM.
 */
int hmm_features_reason(struct hmm *hmm, uint64_t feature, char *text, size_t size);

/* In words, what went wrong in this thread's last failed call. Never NULL. */
const char *hmm_last_error(void);

/* The library's version, "0.1.0". */
const char *hmm_version(void);

/*
 * hmm_set_log() - where the library tells what happened behind the program's
 * back: a reconnection, a rescue. Called, one line at a time, in a thread of the
 * library that has the program's descriptors; must not call hmm functions. @level
 * is syslog's. NULL: nowhere (the default). A fork's child has to set it again.
 */
typedef void (*hmm_log_fn)(void *data, int level, const char *text);
void hmm_set_log(hmm_log_fn fn, void *data);

#ifdef __cplusplus
}
#endif

#include <hmm/device.h>
#include <hmm/devmem.h>
#include <hmm/dirty.h>
#include <hmm/event.h>
#include <hmm/dispatch.h>
#include <hmm/exclusive.h>
#include <hmm/mirror.h>
#include <hmm/migrate.h>
#include <hmm/mm.h>
#include <hmm/range.h>
#include <hmm/sync.h>
#include <hmm/window.h>

#endif
