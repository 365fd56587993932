/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * devmem.h - device memory: what the program added to its devices. One that only the driver
 * reaches belongs to the process, whichever handle its mirrors are on.
 */
#ifndef HMMC_DEVMEM_H
#define HMMC_DEVMEM_H

#include "region.h"
#include "space.h"

struct hmm_devmem_private {
	struct hmm_devmem_private *next;
	struct hmm_devmem devmem;
	struct hmm_devmem_ops ops;	/* what this library knows of them */
	char name[64];			/* of the device */
	uint32_t token;			/* which memory it is, for hmmd; 0: of hmmd's pool */
	uint64_t base, pool;		/* the device's share of hmmd's pool without it, and with it */
	uint64_t count;			/* pages */
	uint64_t touched;		/* those from here on were never anyone's; atomic */
	void *table;			/* of pages, and of those that are free */
	size_t table_size;
	struct hmm_mirror_private *mirrors;	/* by devmem_next; under the list's lock */
	uint32_t closing;		/* takes no more pages; atomic */
	uint32_t in_use;		/* futex: pages with references */

	/* A resource, and what the library does with it. */
	char *memory;
	size_t memory_size;
	struct futex_lock lock;
	uint32_t *free;			/* numbers of pages that came back, a stack */
	uint64_t free_count;
	uint64_t fresh;			/* from here on none was ever taken */
};

/* resource.c: memory in something that exists */
/* Maps it. Return: 0 or -EINVAL with the text. */
int hmmc_resource_map(struct hmm_devmem_private *devmem, const struct hmm_resource *resource);
void hmmc_resource_unmap(struct hmm_devmem_private *devmem);
/* The defaults of hmm_devmem_ops. */
void hmmc_resource_store(struct hmm_devmem_private *devmem, const struct hmm_devmem_move *move);
int hmmc_resource_fault(struct hmm_devmem_private *devmem, unsigned long addr, const struct hmm_page *page);
void hmmc_resource_free(struct hmm_devmem_private *devmem, const struct hmm_page *page);

/* The memory of that device's, or NULL. */
struct hmm_devmem_private *hmmc_devmem_find(const char *device);
/* Whose page it is, also of one that was never used; NULL: no page of this process's. */
struct hmm_devmem_private *hmmc_devmem_of(const struct hmm_page *page);
/*
 * Its device's handle is being closed, and its mirrors are gone. Pages that other processes have there stay
 * with hmmd's device, as after the death of the device's maker.
 */
void hmmc_devmem_close(struct hmm_devmem_private *devmem);
/* A mirror of its device begins: it has the memory, and what pages pass through. Return: 0 or -ENOMEM. */
int hmmc_devmem_join(struct hmm_mirror_private *mirror);
/* ... and ends: nobody needs what its pages hold. Callbacks are over. */
void hmmc_devmem_leave(struct hmm_mirror_private *mirror);

/* far.c: what hmmd asks of the driver */
/* Tells hmmd that what it asked before is over; frees what it does not need any more. */
int hmmc_devmem_ready(struct hmm_mirror_private *mirror);
/* Whatever the mirror has is free: its owner is gone, or all is home. */
void hmmc_devmem_release(struct hmm_mirror_private *mirror);

/* In the receiver. */
/* Both fail where there is no memory for what hmmd said. */
int hmmc_devmem_region(struct hmm *hmm, const struct hmm_msg_region *event, int fd);
int hmmc_devmem_event(struct hmm *hmm, const struct hmm_wire_header *event);
/* After a restart: says it of this device again. */
int hmmc_devmem_restore(struct hmm *hmm, const struct hmm_device *device);
/* ... and has the mirror call hmmc_devmem_ready() when its earlier callbacks are over. It fails where there is no memory for that. */
int hmmc_devmem_return(struct hmm_mirror_private *mirror);

/* After fork, in the child. */
void hmmc_devmem_forget(void);

#endif
