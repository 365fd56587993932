// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * edu.c - the driver. Four things make it one:
 *
 *	open_card()	hmmd hands out the card: it is reset, and its registers are mapped
 *	transfer()	a range goes into the IOMMU, and the engine runs while that is valid
 *	quiesce()	something is about to change: the engine has stopped when this returns
 *	let_go()	the card is unplugged, or unbound, and the kernel waits for whoever has it
 *
 * The engine cannot be stopped, but a transfer ends soon; so the lock is held while one runs, and
 * quiesce() takes it.
 */
#include "edu.h"

#include <errno.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE	   4096UL
#define PAGE_SHIFT 12

/* The card's registers, and where its own 4 KiB are for its engine. */
enum { IDENTITY = 0x00, SOURCE = 0x80, TARGET = 0x88, COUNT = 0x90, COMMAND = 0x98 };
enum { RUN = 1, TO_MEMORY = 2 };
#define IDENTITY_MASK 0xff
#define IDENTITY_EDU  0xed
#define BUFFER	      0x40000

struct edu {
	struct hmm_mirror mirror; /* first: the callbacks' mirror is the card */
	struct hmm_device *device;
	int fd;
	volatile char *registers;
	size_t size;
	pthread_mutex_t lock; /* the engine runs */
};

static const uint64_t flags[HMM_PFN_FLAG_MAX] = {[HMM_PFN_VALID] = 1, [HMM_PFN_WRITE] = 2};
static const uint64_t values[HMM_PFN_VALUE_MAX] = {
	[HMM_PFN_NONE] = 0, [HMM_PFN_ERROR] = 4, [HMM_PFN_SPECIAL] = 8};

/* ---- changes --------------------------------------------------------------------- */

/* Nothing of the card is left here: neither its registers nor its descriptor. */
static void let_go(struct edu *edu)
{
	if (edu->size)
		munmap((void *)(uintptr_t)edu->registers, edu->size);
	if (edu->fd >= 0)
		close(edu->fd);
	edu->size = 0;
	edu->fd = -1;
}

static int quiesce(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	struct edu *edu = (struct edu *)mirror;

	if (update->blockable)
		pthread_mutex_lock(&edu->lock);
	else if (pthread_mutex_trylock(&edu->lock))
		return -EAGAIN;
	if (update->reason == HMM_REASON_RECALL)
		let_go(edu);
	/* What would begin now finds its range not valid. */
	pthread_mutex_unlock(&edu->lock);
	return 0;
}

static void resume(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	(void)mirror;
	(void)update;
}

static const struct hmm_mirror_ops ops = {
	.size = sizeof(ops), .quiesce = quiesce, .resume = resume};

/* ---- the engine --------------------------------------------------------------------- */

static void put(struct edu *edu, unsigned int at, uint64_t value)
{
	*(volatile uint64_t *)(edu->registers + at) = value;
}

static void wait_for_engine(const struct edu *edu)
{
	while (*(volatile uint64_t *)(edu->registers + COMMAND) & RUN)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

static void run(struct edu *edu, uint64_t source, uint64_t target, size_t length,
		uint64_t direction)
{
	put(edu, SOURCE, source);
	put(edu, TARGET, target);
	put(edu, COUNT, length);
	put(edu, COMMAND, RUN | direction);
	wait_for_engine(edu);
}

/* Between the card's buffer and one page of memory: at its own address, if it is in the IOMMU. */
static int transfer(struct edu *edu, uint64_t addr, size_t length, bool to_memory)
{
	uint64_t pfn = 0, bus = 0, page = addr & ~(PAGE - 1);
	struct hmm_range range = {
		.flags = flags,
		.values = values,
		.pfns = &pfn,
		.pfn_shift = PAGE_SHIFT,
		.default_flags = to_memory ? flags[HMM_PFN_VALID] | flags[HMM_PFN_WRITE]
					   : flags[HMM_PFN_VALID],
	};
	int error;
	long n;

	if (length > EDU_MOST || addr + length > page + PAGE)
		return -EINVAL;
	error = hmm_range_register(&range, &edu->mirror, page, page + PAGE, PAGE_SHIFT);
	if (error)
		return error;
	for (;;) {
		if (!hmm_range_wait_until_valid(&range, HMM_RANGE_DEFAULT_TIMEOUT)) {
			n = -EFAULT; /* the program is gone, or its memory does not come to rest */
			break;
		}
		n = hmm_range_dma_map(&range, edu->device, &bus, true);
		if (n == -EBUSY || n == -EAGAIN)
			continue;
		if (n < 0)
			break;
		pthread_mutex_lock(&edu->lock);
		if (edu->fd < 0) {
			pthread_mutex_unlock(&edu->lock);
			n = -ENODEV;
			break;
		}
		if (hmm_range_valid(&range)) {
			bus += addr - page;
			run(edu, to_memory ? BUFFER : bus, to_memory ? bus : BUFFER, length,
			    to_memory ? TO_MEMORY : 0);
			pthread_mutex_unlock(&edu->lock);
			hmm_range_dma_unmap(&range, edu->device, &bus, to_memory);
			break;
		}
		pthread_mutex_unlock(&edu->lock);
	}
	hmm_range_unregister(&range);
	return n < 0 ? (int)n : 0;
}

int edu_load(struct edu *edu, const void *from, size_t length)
{
	return transfer(edu, (uintptr_t)from, length, false);
}

int edu_store(struct edu *edu, void *to, size_t length)
{
	return transfer(edu, (uintptr_t)to, length, true);
}

void edu_load_blindly(struct edu *edu, const void *from, size_t length)
{
	pthread_mutex_lock(&edu->lock);
	if (edu->fd >= 0)
		run(edu, (uintptr_t)from, BUFFER, length, 0);
	pthread_mutex_unlock(&edu->lock);
}

void edu_store_blindly(struct edu *edu, void *to, size_t length)
{
	pthread_mutex_lock(&edu->lock);
	if (edu->fd >= 0)
		run(edu, BUFFER, (uintptr_t)to, length, TO_MEMORY);
	pthread_mutex_unlock(&edu->lock);
}

/* ---- coming and going ------------------------------------------------------------------ */

/*
 * The driver before this one may have died in a transfer, which hmmd has cut. It would go on with the
 * first hmm_range_dma_map(), and its addresses would mean this driver's memory: so a card is reset
 * before anything is mapped for it. Of one that has no reset of its own, as QEMU makes it, VFIO says so:
 * then what it had begun is waited for (open_card()), while nothing is in its reach.
 */
static int reset_card(const struct edu *edu)
{
	struct vfio_device_info info = {.argsz = sizeof(info)};

	if (ioctl(edu->fd, VFIO_DEVICE_GET_INFO, &info))
		return -errno;
	if (info.flags & VFIO_DEVICE_FLAGS_RESET && ioctl(edu->fd, VFIO_DEVICE_RESET))
		return -errno;
	return 0;
}

static int open_card(struct edu *edu)
{
	struct vfio_region_info region = {.argsz = sizeof(region),
					  .index = VFIO_PCI_BAR0_REGION_INDEX};
	void *at;
	int error;

	edu->fd = hmm_device_fd(edu->device);
	if (edu->fd < 0)
		return edu->fd;
	error = reset_card(edu);
	if (error)
		return error;
	if (ioctl(edu->fd, VFIO_DEVICE_GET_REGION_INFO, &region))
		return -errno;
	at = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, edu->fd,
		  (off_t)region.offset);
	if (at == MAP_FAILED)
		return -errno;
	edu->registers = at;
	edu->size = region.size;
	if ((*(volatile uint32_t *)(edu->registers + IDENTITY) & IDENTITY_MASK) != IDENTITY_EDU)
		return -ENODEV;
	wait_for_engine(edu);
	return 0;
}

int edu_open(struct hmm *hmm, const char *bus, size_t memory, const char *memory_bus,
	     unsigned int bar, struct edu **result)
{
	struct hmm_device_options options = {
		.size = sizeof(options),
		.name = "edu",
		.memory = memory,
		.node = -1,
		.caps = HMM_DEVICE_DMA,
		.bus = bus,
		.pool = memory_bus ? HMM_POOL_VFIO : HMM_POOL_DEFAULT,
		.memory_bus = memory_bus,
		.bar = bar,
	};
	struct edu *edu = calloc(1, sizeof(*edu));
	int error;

	if (!edu)
		return -ENOMEM;
	edu->fd = -1;
	edu->mirror.ops = &ops;
	pthread_mutex_init(&edu->lock, NULL);
	error = hmm_device_new(hmm, &options, &edu->device);
	if (!error)
		error = open_card(edu);
	edu->mirror.device = edu->device;
	if (!error)
		error = hmm_mirror_register(&edu->mirror, hmm);
	if (error)
		edu_close(edu);
	else
		*result = edu;
	return error;
}

void edu_close(struct edu *edu)
{
	if (edu->mirror.priv)
		hmm_mirror_unregister(&edu->mirror);
	let_go(edu);
	hmm_device_put(edu->device);
	pthread_mutex_destroy(&edu->lock);
	free(edu);
}

struct hmm_mirror *edu_mirror(struct edu *edu)
{
	return &edu->mirror;
}
