// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * silence.c - a card that may no longer reach anybody's memory: out of its
 * IOMMU at once, and without the right to start transfers. Any process that has the
 * descriptors may do either; who mapped need not be alive.
 *
 * Traps (KERNEL facts): vfio-pci leaves bus mastering off, and hides the
 * command register behind the device's config region, region 7; a span of
 * 2^64 bytes cannot be said in one request.
 */
#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "private.h"

int kernel_vfio_unmap_all(int container)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.flags = VFIO_DMA_UNMAP_FLAG_ALL,
	};

	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0)
		return 0;
	if (errno != EINVAL)
		return -errno;
	/* Before Linux 5.12, or another than type1: two halves are everything. */
	for (unsigned int half = 0; half < 2; half++) {
		unmap.flags = 0;
		unmap.iova = (uint64_t)half << 63;
		unmap.size = UINT64_C(1) << 63;
		if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) < 0)
			return -errno;
	}
	return 0;
}

int kernel_vfio_master(int device, bool on)
{
	struct vfio_region_info region = {
		.argsz = sizeof(region),
		.index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	uint16_t command;
	off_t at;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) < 0)
		return -errno;
	at = (off_t)region.offset + PCI_COMMAND;
	if (pread(device, &command, sizeof(command), at) != sizeof(command))
		return -EIO;
	command = (uint16_t)(on ? command | PCI_COMMAND_MASTER : command & ~PCI_COMMAND_MASTER);
	return pwrite(device, &command, sizeof(command), at) == sizeof(command) ? 0 : -EIO;
}
