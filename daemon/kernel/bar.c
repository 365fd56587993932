// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * bar.c - the memory of a card behind VFIO.
 *
 * Traps: a load from a mapping whose card is gone, or has its memory switched off, is SIGBUS, or
 * ones: so nothing here touches it but the kernel, on behalf of pread() and pwrite(), which say
 * -EFAULT. VFIO makes up most of the first words of the configuration, the vendor too; the class
 * and revision are read from the card, and a card that is gone has ones there. A BAR with MSI-X
 * tables in it may be mappable in parts only.
 */
#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "private.h"

static int config_at(int device, off_t *at)
{
	struct vfio_region_info region = {
		.argsz = sizeof(region),
		.index = VFIO_PCI_CONFIG_REGION_INDEX,
	};

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) < 0)
		return -errno;
	*at = (off_t)region.offset;
	return 0;
}

/* Without it VFIO maps nothing. */
static int switch_on(int device)
{
	uint16_t command;
	off_t at = 0;
	int r = config_at(device, &at);

	if (r)
		return r;
	if (pread(device, &command, sizeof(command), at + PCI_COMMAND) != sizeof(command))
		return -EIO;
	command |= PCI_COMMAND_MEMORY;
	return pwrite(device, &command, sizeof(command), at + PCI_COMMAND) == sizeof(command) ? 0
											      : -EIO;
}

/* Whether the kernel says that only parts of it can be mapped. */
static int is_sparse(int device, unsigned int bar, uint32_t size)
{
	union {
		struct vfio_region_info region;
		uint64_t room[128];
	} answer = {.region = {.argsz = size, .index = bar}};
	uint32_t at, steps = 0;

	if (size > sizeof(answer))
		return -EOPNOTSUPP;
	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &answer.region) < 0)
		return -errno;
	for (at = answer.region.cap_offset; at && at + sizeof(struct vfio_info_cap_header) <= size;) {
		const struct vfio_info_cap_header *header =
			(const void *)((const char *)&answer + at);

		if (header->id == VFIO_REGION_INFO_CAP_SPARSE_MMAP || ++steps == 64)
			return -EOPNOTSUPP;
		at = header->next;
	}
	return 0;
}

int kernel_bar_map(int device, unsigned int bar, void **map, uint64_t *length)
{
	struct vfio_region_info region = {.argsz = sizeof(region), .index = bar};
	const uint32_t needed = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
	int r;

	if (bar > VFIO_PCI_BAR5_REGION_INDEX)
		return -ENODEV;
	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) < 0)
		return -errno;
	if (!region.size || (region.flags & needed) != needed)
		return -ENODEV;
	if (!(region.flags & VFIO_REGION_INFO_FLAG_MMAP))
		return -EOPNOTSUPP;
	r = region.flags & VFIO_REGION_INFO_FLAG_CAPS ? is_sparse(device, bar, region.argsz) : 0;
	if (!r)
		r = switch_on(device);
	if (r)
		return r;
	*map = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, device,
		    (off_t)region.offset);
	if (*map == MAP_FAILED)
		return errno == EINVAL ? -EOPNOTSUPP : -errno;
	madvise(*map, region.size, MADV_DONTFORK);
	*length = region.size;
	return 0;
}

int kernel_bar_store(int file, uint64_t offset, void *frame, size_t length)
{
	ssize_t n = pread(file, frame, length, (off_t)offset);

	return n < 0 ? -errno : (size_t)n == length ? 0 : -EFAULT;
}

int kernel_bar_fetch(int file, uint64_t offset, const void *frame, size_t length)
{
	ssize_t n = pwrite(file, frame, length, (off_t)offset);

	return n < 0 ? -errno : (size_t)n == length ? 0 : -EFAULT;
}

int kernel_vfio_answers(int device)
{
	uint32_t class;
	off_t at = 0;
	ssize_t n;
	int r = config_at(device, &at);

	if (r)
		return r;
	n = pread(device, &class, sizeof(class), at + PCI_CLASS_REVISION);
	if (n != sizeof(class))
		return n < 0 ? -errno : -EIO;
	return class == UINT32_MAX ? -ENODEV : 0;
}
