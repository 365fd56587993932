/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pool.h - where device pages come from, and the devices that hang on it.
 *
 * One pool per kind and placement; a device takes a share of one. Charging is
 * atomic and may happen on any thread; the registry has its own lock.
 */
#ifndef HMMD_POOL_H
#define HMMD_POOL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "hmm_protocol.h"
#include "kernel/kernel.h"
#include "layout.h"
#include "memory/bar.h"
#include "memory/card.h"
#include "memory/placement.h"
#include "memory/reserve.h"

struct pool {
	TAILQ_ENTRY(pool) link;
	uint32_t id;
	enum hmm_pool_kind kind;
	struct placement placement;
	struct reserve *reserve;	/* what its pages are taken from; NULL: from what there is */
	uint64_t promised;		/* to devices; under the registry's lock */
	uint32_t devices;
	_Atomic uint64_t used, peak;	/* bytes that hold pages now, and at most so far */
	_Atomic uint64_t evicted;	/* bytes that went home to make room, so far */
	_Atomic int64_t granted;	/* bytes that its nodes were seen to have room for */
	_Atomic int64_t granted_until;	/* CLOCK_MONOTONIC, ns */
};

/* What did not make way. */
struct obstacles {
	uint64_t pinned;		/* bytes that never do */
	bool passing;			/* some may in a moment */
	uint64_t journey;		/* some were brought by a migration that runs; 0: none */
	bool many;			/* ... by several */
};

/* The making of room on a device, in rounds: engine/evict.c's. Under the registry's lock. */
struct room {
	uint64_t round, ended;		/* rounds that began, and that have ended */
	uint64_t asked, busy;		/* workers that have yet to begin, or end, their part: a bit each */
	uint64_t waiting;		/* workers that have tasks waiting for the end */
	uint64_t later;			/* ... or for what was busy */
	uint64_t released;		/* how often what was busy came free: a migration has ended */
	uint64_t wanted;		/* bytes that no victim was found for yet */
	uint64_t freed;			/* in this round, or the last */
	struct obstacles seen;		/* in this round, or the last */
};

struct device {
	TAILQ_ENTRY(device) link;
	uint32_t id;
	char name[64];
	uint64_t caps;			/* HMM_DEVICE_CAPS_* */
	_Atomic uint64_t size;		/* its share of the pool, bytes; 0: no memory */
	uint64_t promised;		/* the same, or more while what it is to give back is in use; under the registry's lock */
	/* Memory that only its driver reaches. */
	_Atomic uint64_t far_pages;	/* 0: not said yet, or none */
	_Atomic uint32_t token;		/* which memory it is: the driver's own number */
	_Atomic pid_t driver;
	_Atomic(struct card *) card;	/* that it is, behind an IOMMU; NULL: none (or, after a restart, not yet) */
	_Atomic uint32_t card_number;	/* which one; 0: none */
	/* Of a pool of kind vfio. Size is what passes through hmmd's own memory then. */
	struct bar *bar;		/* its memory; NULL: none, or it could not be had after a restart: all in it is lost */
	uint32_t bar_card, bar_index;	/* which it is, or was */
	uint32_t bar_pages;		/* so many of it are the device's */
	_Atomic uint32_t bar_used;
	struct pool *pool;
	_Atomic uint64_t used;
	uint64_t creator;		/* peer, 0: gone */
	uid_t uid;			/* the creator's: only such a peer adds memory or takes it; -1: not known after a restart */
	uint32_t mirrors;		/* registered on it; under the registry's lock */
	struct room room;
};

struct devices {
	pthread_mutex_t lock;
	TAILQ_HEAD(, device) list;
	TAILQ_HEAD(, pool) pools;
	uint64_t capacity;		/* bytes that all devices may share out */
	struct reserve *reserve;	/* ... and that are taken already; NULL: they are not. Outlives this. */
	uint64_t promised;
	uint32_t next_id, next_pool;
};

void devices_init(struct devices *devices, uint64_t capacity);
void devices_deinit(struct devices *devices);
/* What devices have is taken from it, where it serves them; its pool is there from the beginning. Before the first device. 0 or -ENOMEM. */
int devices_reserve(struct devices *devices, struct reserve *reserve);

/*
 * A new device. Return: 0; -EBUSY: the name is taken; -ENOSPC: more than is
 * left; -EINVAL: no name; -ENOMEM. @placement NULL: anywhere.
 */
int device_new(struct devices *devices, const char *name, enum hmm_pool_kind kind,
	       const struct placement *placement, uint64_t size, uint64_t caps, uint64_t creator, struct device **result);
/* Pages of a BAR, promised already, and the BAR itself; NULL: after a restart, when it cannot be had. */
struct bar_share {
	struct bar *bar;
	uint32_t card, index, pages;
	bool scarce; /* nothing of hmmd's own memory is promised to what passes */
};
/* The same with memory that is one: it is the device's unless that fails. */
int device_new_bar(struct devices *devices, const char *name, const struct bar_share *share, uint64_t caps,
		   uint64_t creator, struct device **result);
/*
 * Its share of the pool becomes @size. Return: 0; -ENODEV; -ENOSPC: more than is left; -EBUSY: more than that is
 * in use: nothing comes beyond @size from now on, and who asks again when some has gone gets it done; what was
 * promised stays so, and who asks for that much has it again.
 */
int device_resize(struct devices *devices, uint32_t id, uint64_t size);
/*
 * Memory that only its driver reaches: @pages of it, and @token for which memory it is. -EBUSY: a
 * driver that lives (@alive) has given it another. The rest as device_resize().
 */
int device_add_far(struct devices *devices, uint32_t id, uint64_t pages, uint32_t token, pid_t driver,
		   bool (*alive)(pid_t driver));
/*
 * After a restart the device of this name may have been made before its creator came back: it is @creator's
 * again, and the card is its. NULL: there is none that waits for one like this.
 */
struct device *device_readopt(struct devices *devices, const char *name, uint64_t caps, uint64_t creator, uid_t uid,
			      struct card *card);
/* ... and it is not waited for any more: that card is gone. */
void device_forget_card(struct devices *devices, const char *name, uint32_t card);
/* After a restart: whose memory it was, and which card. */
void device_expect(struct devices *devices, uint32_t id, uint32_t token, pid_t driver, uint32_t card);
/* By name, by id: a copy of what does not change, or -ENODEV. */
struct device *device_by_name(struct devices *devices, const char *name);
struct device *device_by_id(struct devices *devices, uint32_t id);
/*
 * A mirror on it begins and ends, or it is looked at: without that another thread may free it.
 * device_unuse() may free the device.
 */
struct device *device_use(struct devices *devices, uint32_t id);
struct device *device_use_name(struct devices *devices, const char *name);
void device_unuse(struct devices *devices, struct device *device);
/* The creator lets go of one, or (@id 0) of all its devices because it is gone: cards that it drove are stopped. */
void device_let_go(struct devices *devices, uint64_t creator, uint32_t id);

/*
 * Room for @bytes, or -ENOSPC. Exact: what is charged is what may be allocated. Of a pool that is bound to nodes
 * also: those have it free (pool_has_room()).
 */
int device_charge(struct device *device, uint64_t bytes);
/* Beyond its size, too. */
void device_overcharge(struct device *device, uint64_t bytes);
void device_uncharge(struct device *device, uint64_t bytes);

/* Its memory is a BAR of a card, and hmmd copies there. */
static inline bool device_has_bar(const struct device *device)
{
	return device->pool->kind == HMM_POOL_KIND_VFIO;
}

/* What its pages lie in, and how much of that has some, bytes. */
static inline uint64_t device_memory(const struct device *device)
{
	return device_has_bar(device) ? (uint64_t)device->bar_pages << HMM_PAGE_SHIFT : atomic_load(&device->size);
}

static inline uint64_t device_memory_used(const struct device *device)
{
	return device_has_bar(device) ? (uint64_t)atomic_load(&device->bar_used) << HMM_PAGE_SHIFT :
					atomic_load(&device->used);
}

/* Its pages only pass through the shadow, to memory that no CPU but the driver's reaches, or hmmd's own. */
static inline bool device_is_far(const struct device *device)
{
	return device->caps & HMM_DEVICE_CAPS_COPY_ENGINE || device_has_bar(device);
}

/* Who does, in words. */
static inline const char *device_reached_by(const struct device *device)
{
	return device_has_bar(device) ? "hmmd's copies reach, a card's BAR" : "its driver reaches";
}

/* It can retry an access. Without that it reaches what lies still: coherent and pinned memory. */
static inline bool device_faults(const struct device *device)
{
	return device->caps & HMM_DEVICE_CAPS_FAULTS;
}

/*
 * A page that both may read is of use to it: it faults where it writes. A card asks nobody, but its IOMMU
 * tells reading from writing, and its driver asks before it writes.
 */
static inline bool device_shares(const struct device *device)
{
	return device_faults(device) || (device->card_number && !device_is_far(device));
}

/*
 * Whether the nodes that a pool is bound to have room for @bytes more. A page that is missing on a node which
 * its policy names alone is no error to the kernel: it kills some process for it, whichever is the largest.
 */
bool pool_has_room(struct pool *pool, uint64_t bytes);

static inline bool pool_is_huge(enum hmm_pool_kind kind)
{
	return kind != HMM_POOL_KIND_MEMFD && kind != HMM_POOL_KIND_VFIO;
}

#endif
