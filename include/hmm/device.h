/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* device.h - devices: a name, memory from a pool, and what the device can do. */
#ifndef HMM_DEVICE_H
#define HMM_DEVICE_H

#include <hmm/hmm.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hmm_device;

/*
 * A device without HMM_DEVICE_FAULTS has memory that is coherent (hmm_alloc(), hmm_share()) or
 * pinned on it (HMM_ADVISE_PIN), and nothing else, since it cannot wait for a page:
 * - hmm_migrate(), hmm_prefetch() and hmm_device_exclusive_begin() to it are -EOPNOTSUPP; only a
 *   pin takes memory there, and hmm_unadvise() brings it home;
 * - a window shows what it has; a touch elsewhere is SIGBUS, and HMM_EVENT_POISON with -EFAULT;
 * - hmm_range_fault(): -EFAULT at the first page that it has not; a snapshot says NONE;
 * - a touch of a pinned page by the CPU, a read too, takes the page home and breaks its pin; but what the CPU only
 *   reads of a card's (options.bus) the card goes on to read, and gets back where hmm_range_fault() wants it
 *   to be written;
 * - it is stopped for changes: quiesce() and resume() of struct hmm_mirror_ops.
 * hmm_device_read() and hmm_device_write() reach everything, as for any device.
 */
/*
 * WRITE_PROTECT is noted (hmm_device_caps()), and changes nothing yet; so is DMA, without
 * options.bus.
 */
#define HMM_DEVICE_FAULTS	(1ULL << 0)	/* the device can retry an access */
#define HMM_DEVICE_WRITE_PROTECT (1ULL << 1)	/* ... and protect its own pages: needs FAULTS */
#define HMM_DEVICE_DMA		(1ULL << 2)	/* reaches the owner's memory itself, by an IOMMU */
#define HMM_DEVICE_COPY_ENGINE	(1ULL << 3)	/* its driver alone reaches its memory: devmem.h */

enum hmm_pool {
	HMM_POOL_DEFAULT = 0,	/* what hmmd's configuration says */
	HMM_POOL_MEMFD = 1,	/* shmem, 4 KiB pages */
	HMM_POOL_MEMFD_HUGE = 2,/* shmem, huge pages where allowed */
	HMM_POOL_HUGETLB = 3,	/* reserved huge pages */
	/* Memory of dax devices, which the kernel runs as memory nodes of its own: hmmd.conf(5). */
	HMM_POOL_DAX = 4,
	/*
	 * A BAR of a card behind VFIO: options.bus and .bar. hmmd copies pages there and back; no
	 * window shows them.
	 */
	HMM_POOL_VFIO = 5,
};

/*
 * On which NUMA nodes a device's memory lies, whoever allocates it. Source: set_mempolicy(2).
 * - BIND: on these, and nowhere else. A node that is full is a device that is full: what can make
 *   way goes home, the rest is HMM_POOL_FULL. hmmd leaves alone what the kernel needs there, so
 *   that nobody is killed for it.
 * - PREFERRED: on these while they have memory, then elsewhere.
 * - INTERLEAVE: page by page (of 4 KiB or 2 MiB) in turn on each; elsewhere where one is full.
 */
enum hmm_placement {
	/* With a node: BIND; without: what hmmd's configuration says, which may be any. */
	HMM_PLACE_DEFAULT = 0,
	HMM_PLACE_BIND = 1,
	HMM_PLACE_PREFERRED = 2,
	HMM_PLACE_INTERLEAVE = 3,
};

struct hmm_device_options {
	size_t size;		/* sizeof(struct hmm_device_options) */
	const char *name;	/* 1..63 printable characters, unique in the hmmd */
	/*
	 * Bytes of device memory; 0: no pool, state R only. With a copy engine: for bytes that
	 * pass. With HMM_POOL_VFIO: of the BAR; 0: all that no other device has of it
	 * (where hmmd's configuration has chosen that kind, and not this: none).
	 */
	uint64_t memory;
	enum hmm_pool pool;
	int node;		/* NUMA node, 0..1023; -1: those of nodes, or hmmd's choice */
	uint64_t caps;		/* HMM_DEVICE_* */
	void *drvdata;
	enum hmm_placement placement;
	uint64_t nodes;		/* with node -1: NUMA nodes 0..63, a bit each */
	/*
	 * The PCI address of the card that this device is, "0000:00:04.0", bound to vfio-pci and
	 * behind an IOMMU; NULL: none. With HMM_DEVICE_DMA, and without HMM_DEVICE_FAULTS: a card
	 * behind VFIO cannot retry an access. hmm_range_dma_map() then maps into its IOMMU, for one
	 * owner at a time.
	 * With HMM_POOL_VFIO: the card whose BAR is the device's memory, and the device has
	 * HMM_DEVICE_FAULTS, without HMM_DEVICE_DMA and HMM_DEVICE_COPY_ENGINE. It is bound and
	 * behind an IOMMU just the same. Devices may share a BAR. Where memory_bus names that card,
	 * bus is again the card that the device is.
	 */
	const char *bus;
	unsigned int bar;	/* with HMM_POOL_VFIO: which one, 0..5 */
	/*
	 * With HMM_POOL_VFIO, and a card at bus: the other card whose BAR is the device's memory; what
	 * is pinned on the device lies there, and the card at bus reaches it there, from card to
	 * card. NULL: bus. Where hmmd's configuration has chosen a BAR as the pool, a card that names
	 * no pool has it there.
	 */
	const char *memory_bus;
};

/*
 * hmm_device_new() - a device of this name. It lives as long as its creator's
 * connection or the last mirror on it, whichever is longer.
 * Return: 0; -EBUSY: the name is taken, or somebody has the card; -ENOSPC: more than the pool has,
 *	or than the nodes that it is bound to; -EINVAL: a bad name, unknown bits, a placement
 *	without nodes, node and nodes both, a node that hmmd has no memory on (hmm_last_error()
 *	names those that there are), or what is no PCI address; -ENODEV: no dax device is memory;
 *	-EOPNOTSUPP: a copy engine with a hugetlb pool, or without FAULTS; a node where the kernel
 *	places nothing; a card with FAULTS; no IOMMU, no VFIO; -E2BIG: options of a later library;
 *	-ENOMEM; -ESTALE. Of a card also -ENODEV: there is none; -ENXIO: it, or another of its
 *	group, is not bound to vfio-pci; -EACCES: neither root, nor may the user open its group in
 *	/dev/vfio; -EPERM: its IOMMU does not remap interrupts, which it could forge then. Of a BAR
 *	also -ENODEV: the card has none of that number; -EOPNOTSUPP: it cannot be mapped; -ENOSPC:
 *	it has less; -EBUSY: another of the card's BARs is a pool; -EIO: the card does not answer.
 */
int hmm_device_new(struct hmm *hmm, const struct hmm_device_options *options,
		   struct hmm_device **result);

/*
 * hmm_device_open() - by name.
 * Return: 0; -ENODEV: no such device; -EACCES: it is a card, and the user may not open its group in
 *	/dev/vfio, nor is root; -EINVAL: what can be no name; -ENOMEM; -ESTALE.
 */
int hmm_device_open(struct hmm *hmm, const char *name, struct hmm_device **result);

/*
 * hmm_device_group() - several devices with one mirror: hmm_mirror_register() of a mirror whose
 *	device is the group. See <hmm/mirror.h>.
 * @devices, @count: 1 to 16 different devices of this handle, no groups, all with
 *	HMM_DEVICE_FAULTS.
 * Any thread. It refers to its members; hmmd knows nothing of it, hmmctl shows a mirror for each.
 * Return: 0; -EINVAL; -EOPNOTSUPP: one of them cannot fault; -ENOMEM; -ESTALE: the owner is gone.
 */
int hmm_device_group(struct hmm *hmm, struct hmm_device *const *devices, unsigned int count,
		     struct hmm_device **result);

/*
 * hmm_device_put() - gives the handle back. NULL is allowed. The last one takes back the memory
 *	that was added (hmm_devmem_remove(), blocking). Where that can't be done, in a callback,
 *	say, or while another process's mirror has pages there, the handle stays as it was and
 *	hmm_last_error() says why: put it again. hmm_close() takes the rest. Any thread.
 */
void hmm_device_put(struct hmm_device *device);

/*
 * hmm_device_fd() - a new descriptor of the card that the device is, for its driver: BARs,
 *	configuration and interrupts, by the calls of linux/vfio.h. It is the caller's to close,
 *	close-on-exec, and decides nothing of what the card reaches. hmmd has made the card a master
 *	of its bus, and does so again after a restart. Only for the user who made the device, and
 *	root. Any thread.
 * Return: the descriptor; -EINVAL: @device is NULL; -EOPNOTSUPP: it is no card, or a group;
 *	-EPERM: another user made it, or its memory is the card's BAR; -EACCES: the user may not
 *	open the card's group in /dev/vfio;
 *	-EMFILE: this process or hmmd is out of descriptors; -ENOMEM; -ENODEV: hmmd has the device
 *	no more, or the card is being unplugged or unbound; -ESTALE.
 *
 * When the card is unplugged, or unbound from vfio-pci, the kernel waits for whoever has it: the mirror's
 * quiesce() is called for all addresses with HMM_REASON_RECALL, and the driver closes the descriptor
 * and unmaps what it has mapped of it. (The model is VFIO's own request, VFIO_PCI_REQ_IRQ_INDEX. That is
 * hmmd's: a driver must not set it.)
 */
int hmm_device_fd(struct hmm_device *device);

/*
 * Of a group: NULL, the sum of its members', and what all of them can do. Of NULL: NULL and 0. Any
 * thread.
 */
void *hmm_device_drvdata(const struct hmm_device *device);
uint64_t hmm_device_memory(const struct hmm_device *device);
uint64_t hmm_device_caps(const struct hmm_device *device);

#ifdef __cplusplus
}
#endif
#endif
