/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * space.h - struct hmm: an address space, this process's or another's, with
 * everything that has to be told to a restarted hmmd.
 */
#ifndef HMMC_SPACE_H
#define HMMC_SPACE_H

#include "connection.h"
#include "owner.h"

struct hmm_device {
	struct hmm_device *next;
	struct hmm *hmm;
	uint32_t references;
	uint32_t id;
	bool created;			/* here, so that it is to be made again */
	char name[64];
	uint64_t memory;		/* as hmmd rounded it */
	uint64_t wanted;		/* as it was asked for */
	enum hmm_pool pool;
	int node;
	enum hmm_placement placement;
	uint64_t nodes;
	uint64_t caps;
	char memory_bus[16];		/* of the card whose BAR its memory is, where bus is another; or "" */
	char bus[16];			/* of the card that it is, or whose BAR its memory is; "": of none */
	uint32_t bar;
	void *drvdata;
	struct hmm_devmem_private *devmem;	/* added by this handle, or NULL */
	unsigned int count;		/* a group: its members, referenced; else 0 */
	struct hmm_device *members[HMM_MIRRORS_MAX];
};

struct item;
struct hmm_mirror_private {
	struct hmm_mirror_private *next;
	struct hmm_mirror_private *next_registered;	/* in the process, whatever its handle */
	struct hmm_mirror *mirror;
	struct hmm_mirror *told;	/* the one that callbacks are about: its group's, or the same */
	struct group *group;		/* that it is a member of, or NULL */
	struct hmm_mirror_ops ops;	/* what this library knows of them */
	struct hmm *hmm;
	struct hmm_device *device;	/* referenced */
	uint32_t references;		/* atomic: of the program's mirror, and of its ranges */
	uint32_t unregistered;		/* atomic: ranges alone know it, and hmm may be closed */
	_Atomic uint32_t id;		/* owner << 8 | index; another one after a restart */
	uint64_t flags;
	uint32_t former;		/* its id before hmmd went away in good order */
	uint32_t gone;			/* its owner is: release() was called */
	uint32_t leaving;		/* set under hmm->lock: nothing is queued any more */
	uint32_t callbacks;		/* futex: running or queued */
	bool faults;			/* its device can fault */
	bool quiesces;			/* its device cannot fault, and stops for changes */
	bool busy;			/* then: one of its callbacks is queued or runs. Under the queue's lock */
	struct item *later;		/* those behind it, under the same; dispatch.c */
	struct item *changes;		/* that the device has stopped for; the callback's that runs */
	struct hmm_devmem_private *devmem;	/* of its device, or NULL */
	struct hmm_mirror_private *devmem_next;
};

struct key {
	struct key *next;
	int fd;				/* a memfd, in the private table */
};

struct hmm {
	uint32_t references;		/* under process.lock */
	uint32_t generation; /* of the process it was made in: a fork's child has another */
	uint32_t lost;			/* no hmmd came back; atomic */
	struct connection *connection;
	uint32_t id;			/* of the owner */
	uint64_t features;			/* atomic: the next hmmd may have others */
	struct owner *owner;		/* NULL: another process's address space */
	int key;			/* what opened it, in the private table, or -1 */
	const uint64_t *table;
	struct hmm_pulse *pulse;
	uint32_t tables;		/* how many tables there were: atomic */
	uint32_t holds;			/* ranges that hmmd was told of: atomic */

	struct futex_lock lock;		/* the lists */
	struct futex_lock restore_lock;	/* before lock: nothing leaves the lists */
	struct hmm_device *devices, *groups;
	struct hmm_mirror_private *mirrors;
	struct hmm_window *windows;
	struct key *keys;
	struct statement *statements;
	struct hmm_events *events;
	struct hmm_dirty *dirties;	/* under lock */
	struct hmm_prefetch *prefetches;	/* that run */
	struct dispatch *dispatch;	/* NULL: nobody wants callbacks */
	struct regions *staging;	/* a driver's: what pages pass through; or NULL */

	uint32_t users;			/* futex: who has entered it: mprotect(), mremap(), fork() */
	struct alloc *allocs;		/* coherent memory */
};

/* The text for a missing or dead handle. Return: 0, -EINVAL or -ESTALE. */
int hmmc_space_check(const struct hmm *hmm);
/* The same, but for one whose owner or hmmd is gone. */
int hmmc_space_check_handle(const struct hmm *hmm);
/* Of this process: handles that were made in another generation are a parent's. */
uint32_t hmmc_space_generation(void);
/* request->prepare for messages whose first field is the owner: a restart may change its id. */
int hmmc_prepare_owner(struct request *request);
/* Nobody opens until the unlock. With no callback to be waited for. */
void hmmc_space_lock(void);
void hmmc_space_unlock(void);
/* This process's, or NULL when there is none that works; it is not freed until it is left. */
struct hmm *hmmc_space_enter_own(void);
struct hmm *hmmc_space_enter_any(void);	/* also one that does not: whose hmmd is gone */
void hmmc_space_leave(struct hmm *hmm);
/*
 * There is none: if one is just being freed, and watches memory still, waits until that is done.
 */
void hmmc_space_await_close(void);
/* After fork, in the child. */
void hmmc_space_forget(void);

/* The mirror of that id, or NULL. With hmm->lock held. */
struct hmm_mirror_private *hmmc_mirror_find(struct hmm *hmm, uint32_t id);
/* device.c: makes or opens every device again. In the receiver. */
int hmmc_device_restore(struct hmm *hmm);
void hmmc_device_reference(struct hmm_device *device);
/* Whoever refers to it: its handle is being closed. */
void hmmc_device_close(struct hmm_device *device);
/* mirror.c: -EINVAL, -ESTALE or 0, with the text. */
int hmmc_mirror_check(const struct hmm_mirror *mirror);
/* The same where a group of devices will do, too. */
int hmmc_mirror_check_any(const struct hmm_mirror *mirror);
/*
 * mirror.c: what is behind it, referenced, though another thread may be unregistering it. NULL: it
 * is not registered. Of a fork's parent: not to be asked for.
 */
struct hmm_mirror_private *hmmc_mirror_get(struct hmm_mirror *mirror);
void hmmc_mirror_put(struct hmm_mirror_private *private);
/* mirror.c: of a page that another mirror holds (its entry is @entry) this one may have a copy: to be read. */
bool hmmc_mirror_has_copy(const struct hmm_mirror_private *mirror, unsigned long addr, uint64_t entry);
/* After fork, in the child. */
void hmmc_mirror_forget(void);
/* Registers every mirror again, under its old id where @same. */
int hmmc_mirror_restore(struct hmm *hmm, bool same);

/* dirty.c, in the receiver: hmmd wants a userfaultfd for tracking. */
void hmmc_dirty_wanted(struct hmm *hmm);

/* event.c, in the receiver. */
void hmmc_event_signal(struct hmm *hmm, uint32_t notices);	/* 0: all, for nothing more will come */
int hmmc_event_restore(struct hmm *hmm);
/* migrate.c: 0, or what is wrong with a range of a mirror, with the text. */
int hmmc_migrate_check(const struct hmm_mirror *mirror, unsigned long addr, size_t length);
/* hmm_migrate() with the protocol's flags. */
long hmmc_migrate(struct hmm_mirror *mirror, unsigned long addr, size_t length,
		  enum hmm_target target, uint64_t flags, uint8_t *results,
		  struct hmm_migrate_report *report);

/* alloc.c: coherent memory outlives its handle as ordinary shared memory. */
void hmmc_alloc_forget(struct hmm *hmm);
/* Whether some of [start, end) is from hmm_alloc(). */
bool hmmc_alloc_has(struct hmm *hmm, uint64_t start, uint64_t end);

/* window.c, in the receiver. */
void hmmc_window_region(struct hmm *hmm, const struct hmm_msg_region *event, int fd);
void hmmc_window_revoked(struct hmm *hmm, const struct hmm_msg_window_revoked *event);
int hmmc_window_restore(struct hmm *hmm);
/* No access from here on, and back. */
void hmmc_window_freeze(struct hmm *hmm, bool frozen);
/* For good, after it was frozen. */
void hmmc_window_abandon(struct hmm *hmm);
/* Both, for the windows of one mirror: its owner is gone. In any thread. */
void hmmc_window_shut(struct hmm_mirror_private *mirror);

/* advice.c: what an hmmd that has gone away in good order was told. In the receiver, with the mirrors. */
int hmmc_advice_restate(struct hmm *hmm);

/* statement.c: ranges that are never mirrored. */
struct statement {
	struct statement *next;
	uint64_t start, end;
};
/* Tells hmmd, and remembers it for the next one. */
int hmmc_state(struct hmm *hmm, uint64_t start, uint64_t length, bool excluded);
/* -EINVAL, -ESTALE or 0, with the text. */
int hmmc_range_check(struct hmm *hmm, unsigned long addr, size_t length);
int hmmc_statement_restore(struct hmm *hmm);
/*
 * What is there comes home and is watched no more, until it is taken back: nothing is
 * remembered.
 */
int hmmc_statement_pause(struct hmm *hmm, uint64_t start, uint64_t length, bool holds);
void hmmc_statement_free(struct hmm *hmm);
/* Excludes everything that must never be on the device as far as the library knows it. */
int hmmc_exclude_library(struct hmm *hmm);
/* The calling thread's stack and control block. */
int hmmc_exclude_thread(struct hmm *hmm);

#endif
