// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * dma.c - coherent memory into a card's IOMMU, beside a bare loop of VFIO_IOMMU_MAP_DMA over as many blocks of
 * the same kind of memory, in a container of this process's own with another card.
 *
 * HMM_BENCH_CARD is the card that hmmd has, HMM_BENCH_OTHER_CARD the loop's: both are vfio-pci's, each in an IOMMU group
 * of its own. Both memories have been written, and each makes one call of MAP_DMA for each block. Ours asks for the entries of all pages
 * as well. Taking out again is not measured.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/rig/rig.h"

#define FLOOR_IOVA	(4UL << 30)

static const char *card(const char *variable)
{
	const char *name = getenv(variable);

	if (!name)
		fail("%s names no card: this needs two that vfio-pci has (hmmctl device bind), such as the emulated machine's", variable);
	return name;
}

/* ---- the floor ---------------------------------------------------------------------- */

struct bare {
	int container, group, device;
	char *memory;
};

static int group_of(const char *name)
{
	char path[256], link[256], node[64];
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", name);
	length = readlink(path, link, sizeof(link) - 1);
	if (length < 0)
		fail("%s has no IOMMU: %s", name, strerror(errno));
	link[length] = 0;
	snprintf(node, sizeof(node), "/dev/vfio/%s", strrchr(link, '/') + 1);
	fd = open(node, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fail("%s: %s", node, strerror(errno));
	return fd;
}

static void bare_open(struct bare *bare, const char *name, const char *pool, size_t bytes)
{
	int file = memfd_create("floor", MFD_CLOEXEC);

	bare->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (bare->container < 0)
		fail("/dev/vfio/vfio: %s", strerror(errno));
	bare->group = group_of(name);
	if (ioctl(bare->group, VFIO_GROUP_SET_CONTAINER, &bare->container) ||
	    ioctl(bare->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		fail("%s: no container: %s", name, strerror(errno));
	bare->device = ioctl(bare->group, VFIO_GROUP_GET_DEVICE_FD, name);
	if (bare->device < 0 || file < 0 || ftruncate(file, (off_t)bytes))
		fail("%s: %s", name, strerror(errno));
	bare->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (bare->memory == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	if (!strcmp(pool, "memfd-huge"))
		madvise(bare->memory, bytes, MADV_HUGEPAGE);
	memset(bare->memory, 1, bytes);
	close(file);
}

static void bare_unmap(struct bare *bare, size_t bytes)
{
	struct vfio_iommu_type1_dma_unmap all = { .argsz = sizeof(all), .iova = FLOOR_IOVA, .size = bytes };

	if (ioctl(bare->container, VFIO_IOMMU_UNMAP_DMA, &all) || all.size != bytes)
		fail("VFIO_IOMMU_UNMAP_DMA: %s", strerror(errno));
}

static double time_floor(struct bare *bare, size_t bytes)
{
	double start = now(), end;

	for (size_t at = 0; at < bytes; at += BLOCK) {
		struct vfio_iommu_type1_dma_map map = {
			.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
			.vaddr = (uintptr_t)bare->memory + at, .iova = FLOOR_IOVA + at, .size = BLOCK,
		};

		if (ioctl(bare->container, VFIO_IOMMU_MAP_DMA, &map))
			fail("VFIO_IOMMU_MAP_DMA of block %zu: %s", at / BLOCK, strerror(errno));
	}
	end = now();
	bare_unmap(bare, bytes);
	return end - start;
}

/* ---- ours --------------------------------------------------------------------------- */

static int quiesce(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	(void)mirror;
	(void)update;
	return 0;
}

static void resume(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	(void)mirror;
	(void)update;
}

static const struct hmm_mirror_ops ops = { .size = sizeof(ops), .quiesce = quiesce, .resume = resume };
static const uint64_t flags[HMM_PFN_FLAG_MAX] = { [HMM_PFN_VALID] = 1, [HMM_PFN_WRITE] = 2 };
static const uint64_t values[HMM_PFN_VALUE_MAX] = { [HMM_PFN_ERROR] = 4, [HMM_PFN_SPECIAL] = 8 };

static double time_ours(struct hmm_range *range, struct hmm_device *device, uint64_t *addresses, size_t pages)
{
	double start, end;
	long n;

	if (!hmm_range_wait_until_valid(range, HMM_RANGE_DEFAULT_TIMEOUT))
		fail("the range does not become valid");
	start = now();
	n = hmm_range_dma_map(range, device, addresses, true);
	end = now();
	hmm_check(n, "hmm_range_dma_map");
	if ((size_t)n != pages)
		fail("%ld pages of %zu were mapped", n, pages);
	for (size_t i = 0; i < pages; i++)
		if (addresses[i] != range->start + i * PAGE)
			fail("page %zu is at %#lx for the card", i, addresses[i]);
	hmm_check(hmm_range_dma_unmap(range, device, addresses, false), "hmm_range_dma_unmap");
	return end - start;
}

int main(int argc, char **argv)
{
	static struct figures figures = { .row = "dma-map", .unit = "ms" };
	struct hmm_device_options options = { .size = sizeof(options), .name = "card", .node = -1, .caps = HMM_DEVICE_DMA };
	struct hmm_mirror mirror = { .ops = &ops };
	struct hmm_range range = { .flags = flags, .values = values, .pfn_shift = 12, .default_flags = 3 };
	struct arguments arguments;
	struct bare bare;
	struct hmm *hmm;
	uint64_t *addresses;
	size_t pages;
	void *memory;

	arguments_read(&arguments, argc, argv);
	pages = arguments.bytes / PAGE;
	options.bus = card("HMM_BENCH_CARD");
	options.memory = arguments.bytes + 4 * MIB;
	bare_open(&bare, card("HMM_BENCH_OTHER_CARD"), arguments.pool, arguments.bytes);
	range.pfns = calloc(pages, sizeof(*range.pfns));
	addresses = calloc(pages, sizeof(*addresses));
	if (!range.pfns || !addresses)
		fail("out of memory");
	hmm_check(hmm_open(NULL, &hmm), "hmm_open");
	hmm_check(hmm_device_new(hmm, &options, &mirror.device), "hmm_device_new");
	hmm_check(hmm_mirror_register(&mirror, hmm), "hmm_mirror_register");
	hmm_check(hmm_alloc(&mirror, arguments.bytes, &memory), "hmm_alloc");
	memset(memory, 2, arguments.bytes);
	hmm_check(hmm_range_register(&range, &mirror, (unsigned long)memory, (unsigned long)memory + arguments.bytes, 12),
		  "hmm_range_register");
	for (unsigned int round = 0; round <= arguments.rounds; round++) {
		double mine = 0, least;

		if (round & 1)
			mine = time_ours(&range, mirror.device, addresses, pages);
		least = time_floor(&bare, arguments.bytes);
		if (!(round & 1))
			mine = time_ours(&range, mirror.device, addresses, pages);
		if (round)
			figures_add(&figures, mine * 1e3, least * 1e3);
	}
	figures_print(&figures, NULL);
	hmm_range_unregister(&range);
	hmm_check(hmm_free(&mirror, memory, arguments.bytes), "hmm_free");
	hmm_check(hmm_mirror_unregister(&mirror), "hmm_mirror_unregister");
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	return 0;
}
