// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * dmirror.h - a device in software and its driver, in the manner of the kernel's
 * test driver of the same name. Copy it, and put your device where this one is.
 *
 * The device has a page table of its own (table.c), which the driver fills from
 * ranges and empties when it is told to. Its accesses go through that table; what
 * the table does not have is a fault of the device, which the driver serves.
 *
 * Calls return 0 or a negative errno, as the library's; hmm_last_error() has words.
 * Any thread may call them.
 */
#ifndef DMIRROR_H
#define DMIRROR_H

#include <stddef.h>

#include <hmm/hmm.h>

struct dmirror;

/* What a command did. */
struct dmirror_counts {
	unsigned long pages;	/* that it was about and that it reached */
	unsigned long faults;	/* of the device, that the driver had to serve */
};

/* A device of this name with @memory bytes of its own, on this address space. */
int dmirror_open(struct hmm *hmm, const char *name, size_t memory, struct dmirror **result);
/* Its pages come home. -EBUSY: some cannot yet; it goes on. */
int dmirror_close(struct dmirror *dmirror);

/* The device reads or writes the owner's memory; any alignment. */
int dmirror_read(struct dmirror *dmirror, unsigned long addr, void *buffer, size_t size,
		 struct dmirror_counts *counts);
int dmirror_write(struct dmirror *dmirror, unsigned long addr, const void *buffer, size_t size,
		  struct dmirror_counts *counts);

/* Pages to the device's memory, and home. */
int dmirror_migrate(struct dmirror *dmirror, unsigned long addr, size_t size, enum hmm_target target,
		    struct dmirror_counts *counts);
/* All that it has goes home. */
int dmirror_evict_all(struct dmirror *dmirror, struct dmirror_counts *counts);

/* Pages that the device has to itself until the CPU touches them. */
int dmirror_exclusive(struct dmirror *dmirror, unsigned long addr, size_t size,
		      struct dmirror_counts *counts);
/* 0; -EPERM: somebody took one back. */
int dmirror_check_exclusive(struct dmirror *dmirror, unsigned long addr, size_t size);

/* Memory of the device that the CPU maps, too. */
int dmirror_alloc(struct dmirror *dmirror, size_t size, void **result);
int dmirror_free(struct dmirror *dmirror, void *memory, size_t size);

/* What the device may do to a page, and where that is: one byte each from dmirror_snapshot(). */
#define DMIRROR_NONE		0x00
#define DMIRROR_READ		0x01
#define DMIRROR_WRITE		0x02
#define DMIRROR_HUGE		0x04	/* a part of one huge page of the owner */
#define DMIRROR_ZERO		0x10	/* the page of zeros that all share */
#define DMIRROR_LOCAL		0x20	/* in this device's memory */
#define DMIRROR_REMOTE		0x30	/* in another device's */
#define DMIRROR_COHERENT	0x40	/* in this device's, and the CPU maps the very same page */
#define DMIRROR_ERROR		0xff
/* Looks, and changes nothing. @bytes: one for each page. */
int dmirror_snapshot(struct dmirror *dmirror, unsigned long addr, size_t size, unsigned char *bytes);

#endif
