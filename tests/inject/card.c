// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * card.c - hmmd on a machine that has a card: 0000:00:04.0, behind VFIO and an IOMMU, whose BAR 2
 * is 64 MiB of memory. Linked with hmmd's own main.c into hmmd_card, which puts itself in front of
 * the table of kernel calls (kernel.h) before main() begins.
 *
 * The card's descriptor is a memfd, and that is the BAR: so it lives for as long as somebody has
 * the card open, as a real one is reset when nobody has. Copying is the kernel's own.
 *
 *   HMMD_CARD_FAULTS=N   one in N copies, or looks at the card, fails and does nothing (copies:
 *                        having done half of it), with errors that say nothing of the card.
 *
 *   HMMD_CARD_BUSY=FILE  while that is there the BAR cannot be mapped: ENOMEM.
 *
 *   HMMD_CARD_RECALL=FILE  while that is there the kernel wants the card back, and says so to whoever has armed
 *                        its request last, again and again (a real one every ten seconds).
 *
 *   HMMD_CARD_IOMMU=FILE  how many mappings its IOMMU has stands there; 40 at most while FILE.full is there.
 *
 * Any thread of hmmd runs this, and one of its own; the counter is atomic, the request has a lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernel/kernel.h"

#define CARD	  "0000:00:04.0"
#define BAR	  2U
#define BAR_BYTES (64UL << 20)

static unsigned long faults; /* one in so many; 0: none */
static const char *busy;     /* while there is such a file the BAR cannot be mapped */
static const char *recall;   /* while there is such a file the card is wanted back */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* on what follows */
static int request = -1;

/* By chance, and not the same at each start. */
static bool fails(void)
{
	static _Atomic uint64_t count;
	uint64_t z = (atomic_fetch_add(&count, 1) + ((uint64_t)getpid() << 32)) * 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return faults && (z ^ z >> 31) % faults == 0;
}

static int new_file(off_t bytes)
{
	int fd = memfd_create("hmmd-card", MFD_CLOEXEC);

	if (fd >= 0 && ftruncate(fd, bytes)) {
		close(fd);
		fd = -1;
	}
	return fd < 0 ? -errno : fd;
}

static int pci_link(const char *address, const char *name, char *target, size_t size)
{
	if (strcmp(address, CARD) != 0)
		return kernel_real.pci_link(address, name, target, size);
	snprintf(target, size, "%s",
		 strcmp(name, "driver") == 0	    ? "vfio-pci"
		 : strcmp(name, "iommu_group") == 0 ? "7"
						    : "pci");
	return 0;
}

static int vfio_open(const char *path)
{
	(void)path;
	return new_file(0);
}

static void *ask(void *data)
{
	for (;;) {
		usleep(100000);
		pthread_mutex_lock(&lock);
		if (request >= 0 && access(recall, F_OK) == 0)
			eventfd_write(request, 1);
		pthread_mutex_unlock(&lock);
	}
	return data;
}

/* What was armed before it asks no more. */
static void arm(int fd)
{
	pthread_mutex_lock(&lock);
	if (request >= 0)
		close(request);
	request = fd;
	pthread_mutex_unlock(&lock);
}

static int set_irqs(const struct vfio_irq_set *set)
{
	static bool asks;
	pthread_t thread;
	int32_t fd;

	if (set->index != VFIO_PCI_REQ_IRQ_INDEX || set->count != 1 ||
	    set->flags != (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER))
		return -EINVAL;
	memcpy(&fd, set->data, sizeof(fd));
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return -errno;
	arm(fd);
	if (!recall || asks)
		return 0;
	asks = true;
	return -pthread_create(&thread, NULL, ask, NULL);
}

#define MAPPINGS 4096U
#define FULL	 40U

static const char *iommu; /* tells of its mappings */
static struct mapping {
	uint64_t start, end; /* empty: free */
} mapping[MAPPINGS]; /* all with the lock held */
static unsigned int mappings;

static void tell(void)
{
	char text[32];
	int fd = iommu ? open(iommu, O_WRONLY | O_CREAT | O_CLOEXEC, 0644) : -1;

	if (fd < 0)
		return;
	snprintf(text, sizeof(text), "%-8u\n", mappings);
	if (pwrite(fd, text, strlen(text), 0) < 0)
		perror(iommu);
	close(fd);
}

static bool is_full(void)
{
	char path[4096];

	if (!iommu || mappings < FULL)
		return mappings == MAPPINGS;
	snprintf(path, sizeof(path), "%s.full", iommu);
	return access(path, F_OK) == 0;
}

static int map_locked(const struct vfio_iommu_type1_dma_map *map)
{
	const struct mapping wanted = { map->iova, map->iova + map->size };
	struct mapping *place = NULL;

	if (!map->size || (map->iova | map->size | map->vaddr) % 4096)
		return -EINVAL;
	for (unsigned int i = 0; i < MAPPINGS; i++) {
		if (mapping[i].start < wanted.end && mapping[i].end > wanted.start)
			return -EEXIST;
		if (mapping[i].start == mapping[i].end)
			place = &mapping[i];
	}
	if (!place || is_full())
		return -ENOSPC;
	*place = wanted;
	mappings++;
	return 0;
}

/* As a real one it splits none. */
static int unmap_locked(uint64_t start, uint64_t end)
{
	for (unsigned int i = 0; i < MAPPINGS; i++)
		if (mapping[i].start < end && mapping[i].end > start && (mapping[i].start < start || mapping[i].end > end))
			return -EINVAL;
	for (unsigned int i = 0; i < MAPPINGS; i++) {
		if (mapping[i].start == mapping[i].end || mapping[i].start < start || mapping[i].end > end)
			continue;
		mapping[i] = (struct mapping){ 0 };
		mappings--;
	}
	return 0;
}

static int change(const struct vfio_iommu_type1_dma_map *map, const struct vfio_iommu_type1_dma_unmap *unmap)
{
	int r;

	pthread_mutex_lock(&lock);
	r = map ? map_locked(map) : unmap_locked(unmap->iova, unmap->iova + unmap->size);
	tell();
	pthread_mutex_unlock(&lock);
	return r;
}

static int vfio_call(int fd, unsigned long number, void *argument)
{
	switch (number) {
	case VFIO_GET_API_VERSION:
		return VFIO_API_VERSION;
	case VFIO_CHECK_EXTENSION:
		return (uintptr_t)argument == VFIO_TYPE1v2_IOMMU;
	case VFIO_GROUP_GET_STATUS:
		((struct vfio_group_status *)argument)->flags = VFIO_GROUP_FLAGS_VIABLE;
		return 0;
	case VFIO_GROUP_SET_CONTAINER:
	case VFIO_SET_IOMMU:
		return fcntl(fd, F_GETFD) < 0 ? -errno : 0;
	case VFIO_GROUP_GET_DEVICE_FD:
		return strcmp(argument, CARD) == 0 ? new_file((off_t)BAR_BYTES) : -ENODEV;
	case VFIO_DEVICE_SET_IRQS:
		return set_irqs(argument);
	case VFIO_IOMMU_MAP_DMA:
		return change(argument, NULL);
	case VFIO_IOMMU_UNMAP_DMA:
		return change(NULL, argument);
	default:
		return -ENOTTY;
	}
}

/* The end of the card in this hmmd, or before anything else of one that was kept. */
static int vfio_unmap_all(int container)
{
	const struct vfio_iommu_type1_dma_unmap all = { .size = UINT64_MAX };

	arm(-1);
	change(NULL, &all);
	return fcntl(container, F_GETFD) < 0 ? -errno : 0;
}

static int vfio_master(int device, bool on)
{
	(void)on;
	return fcntl(device, F_GETFD) < 0 ? -errno : 0;
}

static int bar_map(int device, unsigned int bar, void **map, uint64_t *length)
{
	if (bar != BAR)
		return -ENODEV;
	if (busy && access(busy, F_OK) == 0)
		return -ENOMEM;
	*length = BAR_BYTES;
	*map = mmap(NULL, BAR_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);
	if (*map == MAP_FAILED)
		return -errno;
	madvise(*map, BAR_BYTES, MADV_DONTFORK);
	return 0;
}

/* A new card's seal is written and read once: who is refused then has nothing to lose. */
static _Atomic bool new_seal;

static int bar_store(int file, uint64_t offset, void *frame, size_t length)
{
	if (length < 4096)
		atomic_store(&new_seal, true);
	if (length < 4096 || !fails())
		return kernel_real.bar_store(file, offset, frame, length);
	kernel_real.bar_store(file, offset, frame, length / 2);
	return -EFAULT;
}

static int bar_fetch(int file, uint64_t offset, const void *frame, size_t length)
{
	if ((length < 4096 && atomic_exchange(&new_seal, false)) || !fails())
		return kernel_real.bar_fetch(file, offset, frame, length);
	kernel_real.bar_fetch(file, offset, frame, length / 2);
	return -ENOSPC;
}

static int vfio_answers(int device)
{
	return fcntl(device, F_GETFD) < 0 ? -errno : fails() ? -ENOMEM : 0;
}

__attribute__((constructor)) static void stand_in_front(void)
{
	static struct kernel_ops ops;
	const char *wanted = getenv("HMMD_CARD_FAULTS");

	faults = wanted ? strtoul(wanted, NULL, 10) : 0;
	busy = getenv("HMMD_CARD_BUSY");
	recall = getenv("HMMD_CARD_RECALL");
	iommu = getenv("HMMD_CARD_IOMMU");
	ops = kernel_real;
	ops.pci_link = pci_link;
	ops.vfio_open = vfio_open;
	ops.vfio_call = vfio_call;
	ops.vfio_unmap_all = vfio_unmap_all;
	ops.vfio_master = vfio_master;
	ops.bar_map = bar_map;
	ops.bar_store = bar_store;
	ops.bar_fetch = bar_fetch;
	ops.vfio_answers = vfio_answers;
	kernel = &ops;
}
