/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vfio.c - cards that VFIO hands to programs: what sysfs says of one, its files, their calls. No
 * policy: which calls in which order is memory/card.c's.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "private.h"

int kernel_pci_link(const char *address, const char *name, char *target, size_t size)
{
	char path[128], whole[256];
	const char *last;
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", address, name);
	n = readlink(path, whole, sizeof(whole) - 1);
	if (n < 0)
		return -errno;
	whole[n] = '\0';
	last = strrchr(whole, '/');
	last = last ? last + 1 : whole;
	if (strlen(last) >= size)
		return -ENAMETOOLONG;
	strcpy(target, last);
	return 0;
}

int kernel_vfio_open(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int kernel_vfio_call(int fd, unsigned long request, void *argument)
{
	int r = ioctl(fd, request, argument);

	return r < 0 ? -errno : r;
}
