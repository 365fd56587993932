/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * kernel.h - every kernel call that the engine makes on somebody's memory,
 * behind one replaceable table: tests make the Nth of them fail, a simulator
 * can stand in. All return 0 or a count, or a negative errno; none sets errno
 * for the caller. None blocks on armed memory: sources are hmmd's own.
 *
 * Any thread may call them.
 */
#ifndef HMMD_KERNEL_H
#define HMMD_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* One mapping of an owner, as /proc/PID/maps tells it. */
struct kernel_vma {
	uint64_t start, end;
	uint64_t page_size;	/* 0: unknown */
	bool read, write, exec, shared;
	bool file;		/* backed by an inode: a file, a memfd, shared anonymous memory */
	char name[256];		/* "[heap]", "[stack]", a path's beginning or "" */
};

/* Pages that were written, or have nothing and no mark that says so. */
struct kernel_region {
	uint64_t start, end;
};

#define KERNEL_PAGE_HUGE	1U
#define KERNEL_PAGE_ZERO	2U

#define KERNEL_TOLD_LOCKED	1U	/* mlock() */
#define KERNEL_TOLD_NODUMP	2U	/* MADV_DONTDUMP */
#define KERNEL_TOLD_NOFORK	4U	/* MADV_DONTFORK */
#define KERNEL_TOLD_WIPED	8U	/* MADV_WIPEONFORK */
#define KERNEL_TOLD_NOHUGE	16U	/* MADV_NOHUGEPAGE */

struct kernel_ops {
	/*
	 * @done: bytes that were done even when the call failed.
	 * -EAGAIN: the owner's map is changing, an event is to be read first;
	 * -EEXIST: a page is there; -ENOENT: nothing registered; -ESRCH: the mm is gone.
	 */
	int (*uffd_copy)(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done);
	int (*uffd_zero)(int uffd, uint64_t dst, size_t length, size_t *done);
	int (*uffd_poison)(int uffd, uint64_t dst, size_t length, size_t *done);
	/* Maps what the file has. -EFAULT: it has nothing there; -EINVAL: this kernel lacks @mode. */
	int (*uffd_continue)(int uffd, uint64_t dst, size_t length, uint64_t mode, size_t *done);
	int (*uffd_protect)(int uffd, uint64_t start, size_t length, bool protect);
	int (*uffd_register)(int uffd, uint64_t start, size_t length, uint64_t mode);
	int (*uffd_unregister)(int uffd, uint64_t start, size_t length);
	int (*uffd_wake)(int uffd, uint64_t start, size_t length);

	/*
	 * Messages, as many as fit. Never blocks, even if the client that shares the
	 * description has cleared O_NONBLOCK. -EAGAIN: none.
	 */
	ssize_t (*uffd_read)(int uffd, void *messages, size_t length);

	/* One 64-bit entry per page, as /proc/PID/pagemap has them. */
	int (*pagemap_read)(int pagemap, uint64_t start, unsigned int pages, uint64_t *entries);

	/* Which of these pages are a part of a huge page, or the page of zeros: 0, or -errno (before Linux 6.7). */
	int (*page_kinds)(int pagemap, uint64_t start, unsigned int pages, uint8_t *kinds);

	/*
	 * Of [start, end), which is registered with an asynchronous userfaultfd: what was written since this was asked
	 * last, and from now on is marked as not written. Return: how many of @regions, or -errno: then some may
	 * have been marked and not told. -EPERM: some of it is not registered so. *@walked: as far as it went.
	 */
	int (*pages_written)(int pagemap, uint64_t start, uint64_t end, struct kernel_region *regions,
			     unsigned int max, uint64_t *walked);

	/* The soft-dirty bits of a whole process begin anew. */
	int (*soft_dirty_clear)(int clear_refs);

	/* The owner's bytes through its own /proc/self/mem: present pages only, never a wait. */
	ssize_t (*mem_read)(int mem, uint64_t addr, void *buffer, size_t length);
	ssize_t (*mem_write)(int mem, uint64_t addr, const void *buffer, size_t length);

	/*
	 * The mapping that has @addr, or the next one above. -ENOENT: none. Since Linux 6.17 it waits for nobody who
	 * changes the map, and may see none where mremap() is putting one in another's place.
	 */
	int (*vma_at)(int maps, uint64_t addr, struct kernel_vma *vma);
	/* Whether memory is mapped at @addr, by a look that waits for them: 1, 0 or -errno (before Linux 6.7). */
	int (*mapped)(int pagemap, uint64_t addr);

	/*
	 * What the program has told the kernel of its mappings in [start, end): of each that was told anything, in order.
	 * Takes as long as counting all pages from the first mapping to there. 0, or -errno: what came before was told.
	 */
	int (*told)(int smaps, uint64_t start, uint64_t end,
		    void (*found)(void *data, uint64_t start, uint64_t end, unsigned int told), void *data);

	int (*memfd_new)(const char *name, uint64_t size, unsigned int flags);
	int (*punch)(int fd, uint64_t offset, uint64_t length);
	/* Huge pages for a fully populated range of another process. */
	int (*collapse)(int pidfd, uint64_t start, size_t length);
	/* Whether ksmd merges pages at present. */
	bool (*merging)(void);

	/* Of a VFIO container: nothing is mapped for its cards from now on. */
	int (*vfio_unmap_all)(int container);
	/* Of a VFIO device on PCI: whether it may start transfers. */
	int (*vfio_master)(int device, bool on);
	/* Bytes that can be had on a memory node without anybody being killed for them. */
	int (*node_free)(unsigned int node, uint64_t *bytes);
	/*
	 * A policy (MPOL_*) with HMM_NODE_WORDS words of @nodes: of a shared mapping's file, for whoever allocates
	 * its pages; where the file is hugetlb's, of this mapping alone.
	 */
	int (*place)(void *start, size_t length, int policy, const uint64_t *nodes);
	/* The calling thread's own policy, with nodes of the first 64; MPOL_DEFAULT: what it had before the first call. */
	int (*policy)(int policy, uint64_t nodes);
	/* Pages for a mapping of hmmd's own, as by a write. -EFAULT: there are none (it would have been SIGBUS). */
	int (*populate)(void *start, size_t length);
	/* Pages that such a mapping has, or gets later, are not swapped out. -ENOMEM, -EPERM: that is not allowed to it. */
	int (*lock)(void *start, size_t length);
	/*
	 * Bytes that a process can have without anybody being killed for them, UINT64_MAX where nobody tells; and in words,
	 * whose limit that is. 0: hmmd.
	 */
	void (*room)(pid_t pid, uint64_t *bytes, char *what, size_t size);

	/* The last part of what @name of a PCI device leads to in sysfs: its "driver", its "iommu_group". */
	int (*pci_link)(const char *address, const char *name, char *target, size_t size);
	/* A file of /dev/vfio; a call of linux/vfio.h on one, and its result. */
	int (*vfio_open)(const char *path);
	int (*vfio_call)(int fd, unsigned long request, void *argument);
	/*
	 * All of a BAR, in hmmd and in no child of it. -ENODEV: the device has no such BAR of memory; -EOPNOTSUPP: it
	 * cannot be mapped, or not as a whole.
	 */
	int (*bar_map)(int device, unsigned int bar, void **map, uint64_t *length);
	/* Between a file and such a mapping, which nobody else touches. -EFAULT: there is no memory (any more). */
	int (*bar_store)(int file, uint64_t offset, void *frame, size_t length);
	int (*bar_fetch)(int file, uint64_t offset, const void *frame, size_t length);
	/* Whether the card is there: 0, or -errno. What was read before it was asked is true then. */
	int (*vfio_answers)(int device);
};

extern const struct kernel_ops kernel_real;
extern const struct kernel_ops *kernel;		/* &kernel_real, unless a test says otherwise */

/* What the running kernel offers, probed once; never by version. */
struct kernel_facts {
	uint64_t uffd_features;		/* UFFD_FEATURE_* bits */
	bool event_fork;		/* may ask for UFFD_FEATURE_EVENT_FORK */
	bool procmap_query;
	bool pagemap_scan;
	bool soft_dirty;		/* pagemap has such bits */
	bool guard;			/* pagemap shows guard pages */
	bool shmem_huge;		/* shmem_enabled lets MADV_HUGEPAGE work */
	bool shmem_unasked;		/* ... and it makes shmem pages huge without being asked */
	bool hugetlb;			/* huge pages are reserved */
	bool collapse;
	bool io_uring;
	bool unregister_checks;		/* UNREGISTER refuses what another userfaultfd has registered */
	unsigned int nodes;		/* NUMA nodes */
};
void kernel_probe(struct kernel_facts *facts);
/* The nodes whose memory hmmd may have, HMM_NODE_WORDS words. -errno: the kernel does not tell, and places nothing. */
int kernel_nodes(uint64_t *nodes);
unsigned int kernel_count_nodes(void);
/* How many huge pages of 2 MiB are reserved on a node; how much memory it has. */
int kernel_node_huge(unsigned int node, uint64_t *pages);
int kernel_node_size(unsigned int node, uint64_t *bytes);
/*
 * Those of kernel_nodes() whose memory is all of dax devices that their driver kmem has made memory. *@others:
 * dax devices that are something else, or share a node with other memory. How many nodes, or -errno.
 */
int kernel_dax_nodes(uint64_t *nodes, unsigned int *others);

/* Opens a userfaultfd: by /dev/userfaultfd or the system call. Not handshaken. */
int kernel_uffd_new(void);
/* UFFDIO_API with exactly these features; returns what the kernel has in @have. */
int kernel_uffd_api(int uffd, uint64_t want, uint64_t *have);

#endif
