/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mirror.h - one owner x one device: the device's view of an address space.
 *
 * The promise, and the one that all tests defend: at any time an address leads
 * CPU and device to the same bytes, or one of them has no entry.
 */
#ifndef HMM_MIRROR_H
#define HMM_MIRROR_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_mirror;
struct hmm_device;

enum hmm_update_event {
	HMM_UPDATE_INVALIDATE,
	HMM_UPDATE_RESTORED,	/* resume(): what hmm_mirror_lookup() finds of the range may be used */
	HMM_UPDATE_GONE,	/* resume(): nothing of the range is on the device any more */
};

enum hmm_update_reason {
	HMM_REASON_CPU_WRITE = 1,
	HMM_REASON_CPU_FAULT = 2,
	HMM_REASON_UNMAP = 3,
	HMM_REASON_REMAP = 4,
	HMM_REASON_DISCARD = 5,
	HMM_REASON_PROTECT = 6,
	HMM_REASON_FORK = 7,
	HMM_REASON_MIGRATE = 8,
	HMM_REASON_EXCLUSIVE = 9,
	HMM_REASON_EVICT = 10,
	HMM_REASON_RELEASE = 11,	/* release() tells of it, never an update */
	HMM_REASON_RECALL = 12,		/* the device's card is unplugged or unbound: hmm_device_fd() */
};

struct hmm_update {
	unsigned long start;		/* inclusive */
	unsigned long end;		/* exclusive */
	enum hmm_update_event event;
	enum hmm_update_reason reason;
	bool blockable;
	unsigned int pending;		/* resume(): changes of other addresses that have not ended */
};

/* What the driver does when it is called back. Each call may be NULL. */
struct hmm_mirror_ops {
	size_t size;		/* sizeof(struct hmm_mirror_ops) */
	/*
	 * The owner is gone (exit, exec). When it returns no access to pages
	 * of this mirror goes on; later ones fail with -ESTALE, and those
	 * through a window raise SIGSEGV. It must not wait for a thread that
	 * may be waiting in a window for a page.
	 */
	void (*release)(struct hmm_mirror *mirror);
	/*
	 * Let go of [start, end). Returning means that the device's TLB is
	 * flushed. Runs in the library's dispatch thread, or where the driver
	 * calls hmm_dispatch(). What waits for pages (hmm_device_read(),
	 * hmm_migrate(), hmm_mirror_unregister()...) answers -EDEADLK to a
	 * callback, since the page may be waiting for it. -EAGAIN is allowed
	 * when update->blockable is false, as it is when eviction looks for a
	 * cheap victim: the range stays as it was, for every mirror, and
	 * another one is taken. Elsewhere what it returns is ignored. Past hmmd's deadline (1000 ms) the
	 * mirror's windows are revoked and the owner goes on.
	 */
	int (*sync_cpu_device_pagetables)(struct hmm_mirror *mirror,
					  const struct hmm_update *update);
	/*
	 * For a device without HMM_DEVICE_FAULTS, which cannot wait for a page; the two go
	 * together, and take the place of sync_cpu_device_pagetables(). Not called for a device
	 * that can fault. (The model is what the kernel's KFD does to queues.)
	 *
	 * quiesce(): the device stops touching [start, end), or stops altogether, and has
	 * stopped when this returns. Only then hmmd changes anything. It comes for changes of
	 * what the device has (coherent, or pinned on it) and for no others; and for all
	 * addresses when another hmmd goes on, or (HMM_REASON_RECALL) when the card that the device is
	 * is being unplugged or unbound: then the driver also closes what hmm_device_fd() gave, for
	 * which the kernel waits. Deadline, -EAGAIN and what may be called: as above.
	 *
	 * resume(): the change is over, whatever its range is now. With HMM_UPDATE_RESTORED some of
	 * it is on the device, and hmm_mirror_lookup() tells what; entries and windows are
	 * valid again. With HMM_UPDATE_GONE nothing is: the device must not
	 * touch it until it is pinned (hmm_advise()) or made coherent once more, of which
	 * the driver is not told by a callback.
	 *
	 * Changes may overlap: quiesce() comes for each, resume() once, with the span of all
	 * that overlap, when the last of them has ended. A device that stops altogether goes on
	 * when update->pending is 0. Both are called one at a time
	 * for a mirror, in the order of the changes, also where several threads dispatch. After
	 * release() no resume() comes.
	 */
	int (*quiesce)(struct hmm_mirror *mirror, const struct hmm_update *update);
	void (*resume)(struct hmm_mirror *mirror, const struct hmm_update *update);
	uint64_t flags;		/* 0 or HMM_MIRROR_TRACKED */
};

/*
 * Its device has copies of ranges, which hmm_mirror_sync() brings up to date (sync.h): no page goes to it. Of the
 * calls only release() may be given, since nothing is ever taken from it.
 */
#define HMM_MIRROR_TRACKED	(1ULL << 0)

/* The driver embeds it and sets ops and device before registering. */
struct hmm_mirror {
	struct hmm *hmm;			/* set by hmm_mirror_register() */
	const struct hmm_mirror_ops *ops;	/* required; looked at once, when it registers */
	struct hmm_device *device;		/* required; a group, too (hmm_device_group()) */
	struct hmm_mirror_private *priv;	/* the library's */
};

/*
 * hmm_mirror_register() - the mirror may be anything before, but must not be registered.
 * Return: 0; -EINVAL: a NULL mirror, hmm, ops or
 * device, the mirror is registered already, ops->size is not set, one of quiesce and resume without the
 * other, or release and no way to stop a device that cannot fault, flags that are not known, or of a tracked mirror
 * another call than release, or a group of devices; -E2BIG: ops of a later library;
 * -ENOSPC: the owner has 16 mirrors, of all processes together; -ENOMEM; -EPERM: hmmd does not know that
 * the handle has a right to the owner, which hmm_open() and hmm_open_peer() give: open anew; -ESTALE: the owner is gone;
 * -EOPNOTSUPP: the device's memory is reached by another process's driver only, or by one in the owner itself; or a
 * tracked mirror's by its driver only, or it is in a hugetlb pool.
 */
int hmm_mirror_register(struct hmm_mirror *mirror, struct hmm *hmm);

/*
 * hmm_mirror_unregister() - its prefetches end, and its pages come home. Callbacks that run are waited
 * for, those that have not begun never will: the device must have let go of
 * everything before. Return: 0; -EDEADLK: called from inside a callback; -EBUSY:
 * pages cannot come home yet, or -ENOMEM: nothing is to be had to ask with: it stays registered, try again.
 */
int hmm_mirror_unregister(struct hmm_mirror *mirror);

/*
 * hmm_mirror_member() - the mirror of one device of a group: of its @index-th. An ordinary mirror
 *	is its own member 0. It lives as long as the group's, and is unregistered with it.
 *
 * A mirror whose device is a group is one of each member. Its callbacks are called once for
 * each change, whichever device had the page, with the group's mirror; release() is, too.
 * To it may be given: hmm_mirror_unregister() (after -EBUSY or -ENOMEM some members may be gone already: try
 * again, it goes on), hmm_device_read(), hmm_device_write(), hmm_mirror_lookup() (what
 * the entries of all members have in common; 0: one has none), and ranges (range.h):
 * what hmm_range_fault() gives is valid for all members, so pages come home from whichever
 * device has them and have the owner's numbers. A snapshot tells where they are, and
 * moves nothing. All else takes one device, so one member: with the group it is -EINVAL.
 * Any thread, a callback, too. Return: NULL: no mirror, or no such member.
 */
struct hmm_mirror *hmm_mirror_member(struct hmm_mirror *mirror, unsigned int index);

/*
 * hmm_device_read(), hmm_device_write() - a device access without a window, in
 * place wherever the page is; honours the mapping's protection. Any alignment. It is
 * the driver that asks and hmmd that copies: a device need not be able to fault for it.
 * Return: bytes done (short only before a page that fails); -EFAULT: nothing
 * mapped there, or not readable; -EPERM: a write to a read-only mapping;
 * -EIO: the page is lost (state E); -EOPNOTSUPP: the mirror is tracked (sync.h);
 * -EDEADLK: called from inside a callback.
 */
ssize_t hmm_device_read(struct hmm_mirror *mirror, unsigned long addr, void *buffer, size_t length);
ssize_t hmm_device_write(struct hmm_mirror *mirror, unsigned long addr, const void *buffer,
			 size_t length);

/*
 * hmm_mirror_lookup() - the device page table's entry of one address: one
 * load from shared memory, no system call. HMM_ENTRY_* bits; 0: no entry. Without
 * HMM_ENTRY_DEVICE: the page is at home and was seen by a range (range.h).
 */
#define HMM_ENTRY_VALID		(1ULL << 0)
#define HMM_ENTRY_WRITE		(1ULL << 1)
#define HMM_ENTRY_DEVICE	(1ULL << 2)
#define HMM_ENTRY_COHERENT	(1ULL << 3)
#define HMM_ENTRY_ERROR		(1ULL << 4)
#define HMM_ENTRY_EXCLUSIVE	(1ULL << 5)	/* see hmm_device_exclusive_begin() */
uint64_t hmm_mirror_lookup(const struct hmm_mirror *mirror, unsigned long addr);

#ifdef __cplusplus
}
#endif
#endif
