/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * devmem.h - device memory. A device that was made without HMM_DEVICE_COPY_ENGINE
 * has memory that CPUs address: a share of hmmd's pool, which lies at the owner's
 * addresses. One that was made with it has memory of the driver's own, which only
 * the driver reaches: pages are numbered, the driver copies bytes there and back.
 * The semantics are those of Linux's hmm_devmem and of migrate_vma()'s
 * alloc_and_copy and finalize; callbacks run in the dispatch thread of the mirror's
 * handle, one at a time for each handle, and may run for two handles at once.
 *
 * Such a driver is a process of its own: in the owner itself it would wait for its own
 * pages. Its death loses what its memory holds: those pages become state E, a touch is
 * SIGBUS. A driver that is late is waited for, with whoever needs the page.
 */
#ifndef HMM_DEVMEM_H
#define HMM_DEVMEM_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_devmem;
struct hmm_mirror;
struct hmm_device;
struct hmm_page;

/* What ops->fault is; see there. */
typedef int (*dev_page_fault_t)(struct hmm_devmem *devmem, unsigned long addr, const struct hmm_page *page,
				unsigned int flags);

/*
 * A page of a driver's memory. Its fields are the library's, but for what the calls
 * below give; a driver knows a page by its place: page - devmem->pages.
 */
struct hmm_page {
	struct hmm_devmem *devmem;	/* NULL until it was used for the first time */
	unsigned long drvdata;		/* hmm_devmem_page_set_drvdata() */
	unsigned long addr;		/* the owner's address whose bytes it got; mremap() may have moved them */
	struct hmm_mirror_private *mirror;	/* whose page it is; NULL: nobody's */
	uint32_t references;
	uint32_t held;
};

/* What ops->fault() answers. */
#define HMM_FAULT_MINOR		0	/* the bytes are there */
#define HMM_FAULT_MAJOR		1	/* the same, and it took long */
#define HMM_FAULT_OOM		2	/* no memory now: asked again, after a pause that grows to 1 s */
#define HMM_FAULT_SIGBUS	3	/* the bytes are lost: the page becomes E */

/* flags of ops->fault() */
#define HMM_FAULT_WRITE		(1U << 0)	/* the CPU is about to write */

/* Pages of one block on their way to the driver's memory. */
struct hmm_devmem_move {
	struct hmm_mirror *mirror;
	unsigned long start, end;	/* the owner's addresses: [start, end), within 2 MiB */
	unsigned long pages;		/* (end - start) / HMM_PAGE_SIZE */
	const void *const *src;		/* per page: where its bytes are to be read; NULL: it does not move */
	struct hmm_page **dst;		/* per page: the driver's choice; NULL: no room, it stays with the owner */
};

/* Each call may be NULL where hmm_devmem_add_resource() has a default. */
struct hmm_devmem_ops {
	size_t size;		/* sizeof(struct hmm_devmem_ops) */
	/*
	 * Nobody refers to @page any more: it is the callback's alone, and may be chosen
	 * again from then on. May run in the thread that calls hmm_page_put().
	 */
	void (*free)(struct hmm_devmem *devmem, struct hmm_page *page);
	/*
	 * Somebody needs the bytes of @addr, which @page has: to be copied to where
	 * hmm_vma_alloc_locked_page(devmem, addr) says. Others that it answers for may
	 * be brought with it, and are not asked for then; @addr comes first. @page must
	 * not be changed: it is freed by ops->free when hmmd has noted its bytes.
	 * Return: HMM_FAULT_*. A success without the bytes counts as HMM_FAULT_SIGBUS.
	 */
	dev_page_fault_t fault;
	/*
	 * Choose a free page in dst[] for each page that has a src[], and copy. A
	 * choice that is no page of @devmem, or in use, counts as none.
	 */
	void (*alloc_and_copy)(struct hmm_devmem *devmem, const struct hmm_devmem_move *move);
	/*
	 * What really moved: dst[] is NULL for the others, whose chosen pages come to
	 * ops->free after it. May be NULL.
	 */
	void (*finalize)(struct hmm_devmem *devmem, const struct hmm_devmem_move *move);
};

struct hmm_devmem {
	unsigned long pfn_first;	/* of pages[0] */
	unsigned long pfn_last;		/* inclusive */
	struct hmm_page *pages;		/* pfn_last - pfn_first + 1; NULL: memory of hmmd's pool */
	struct hmm_device *device;
	const struct hmm_devmem_ops *ops;	/* as given; looked at once, when it was added */
	void *drvdata;			/* the driver's own */
	struct hmm_devmem_private *priv;	/* the library's */
};

/* Something that exists already: a memfd, a file of hugetlbfs, a dax device, what a driver can be mmap()ed from. */
struct hmm_resource {
	size_t size;		/* sizeof(struct hmm_resource) */
	int fd;			/* is not consumed */
	uint64_t offset;	/* bytes, a multiple of the file's page */
	uint64_t length;	/* the same */
};

/*
 * hmm_devmem_add() - memory for a device.
 * @ops: the callbacks; for a device without a copy engine NULL.
 * @size: bytes, rounded up to the page. Without a copy engine that much more of
 *	hmmd's pool is the device's. With one it is how much the driver has; of the
 *	pool pages take their way through at most 64 MiB.
 * A device has one such memory, and its mirrors are registered after that, in
 * the same process, by whichever handle.
 * Return: 0; -ENOSPC: more than the pool has; -ENOMEM; -EBUSY: the device has one, here or in
 * another process that lives; -EINVAL: no ops->alloc_and_copy or ops->fault with a copy engine, ops
 * without one, no size, or ops->size is not set; -E2BIG: ops of a later library.
 */
int hmm_devmem_add(const struct hmm_devmem_ops *ops, struct hmm_device *device, unsigned long size,
		   struct hmm_devmem **result);

/*
 * hmm_devmem_add_resource() - the same, in memory that exists. The device has a
 * copy engine. What @ops (or NULL) does not have, the library does: it picks pages
 * and copies by memcpy().
 * Return: as above; -EINVAL with the reason: not open, empty, not a multiple of its
 * page, smaller than offset + length, read-only, not mappable, or its huge pages cannot be
 * reserved. The file must not shrink, and its file system must have room for all of it: the
 * driver gets a signal otherwise, as for any mapping.
 */
int hmm_devmem_add_resource(const struct hmm_devmem_ops *ops, struct hmm_device *device,
			    const struct hmm_resource *resource, struct hmm_devmem **result);

/*
 * hmm_devmem_remove() - brings every page home that mirrors of this process have there, waits for the last
 * hmm_page_put(), and gives the memory back. The last hmm_device_put() does it too. From then on nothing
 * new goes there, unless it fails.
 * @block: false: does not wait for references.
 *	Mirrors of other processes keep what they have: it is waited for them to let it go, true: for
 *	hmmd's grace time, false: for a moment.
 * Return: 0; -EBUSY: pages that are in use, here or by another process's mirror: the memory stays, try
 * again; -EDEADLK: called from inside a callback; -EINVAL; -ESTALE: in a fork's child.
 */
int hmm_devmem_remove(struct hmm_devmem *devmem, bool block);

/* One more reference to a page that is in use, and one less; from any thread. */
void hmm_page_get(struct hmm_page *page);
void hmm_page_put(struct hmm_page *page);

/*
 * hmm_vma_alloc_locked_page() - inside ops->fault(): where the bytes of @addr are to
 * be written, one page. It is the owner's when the callback returns a success.
 * Return: NULL when out of memory, when @addr is not asked for, or outside of ops->fault().
 */
void *hmm_vma_alloc_locked_page(struct hmm_devmem *devmem, unsigned long addr);

/* The bytes of a page of a resource, in this process; NULL where only the driver knows. */
void *hmm_devmem_page_address(const struct hmm_page *page);

/* One unsigned long per page for the driver. It lives as long as the driver does, over a restart of hmmd too. */
static inline void hmm_devmem_page_set_drvdata(struct hmm_page *page, unsigned long data)
{
	page->drvdata = data;
}

static inline unsigned long hmm_devmem_page_get_drvdata(const struct hmm_page *page)
{
	return page->drvdata;
}

/*
 * One space of page numbers: those of system pages are their virtual page numbers,
 * below HMM_PFN_DEVICE_FIRST; device pages lie above. In the entries of an owner each of its
 * mirrors has a part of HMM_PFN_DEVICE_FIRST numbers of its own, so that a page of @devmem is known by
 * what is left of a number in its part.
 */

/* The page of a number; NULL: a system page's, one of hmmd's pool, or past the end. */
static inline struct hmm_page *hmm_devmem_pfn_to_page(const struct hmm_devmem *devmem, unsigned long pfn)
{
	unsigned long n = pfn % HMM_PFN_DEVICE_FIRST;

	if (pfn < HMM_PFN_DEVICE_FIRST || !devmem->pages || n > devmem->pfn_last - devmem->pfn_first)
		return (struct hmm_page *)0;
	return &devmem->pages[n];
}

/* From pfn_first to pfn_last; -1UL: no page of this process's memories. Any thread, a callback, too. */
unsigned long hmm_devmem_page_to_pfn(const struct hmm_page *page);

#ifdef __cplusplus
}
#endif
#endif
