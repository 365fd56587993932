/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pci.h - PCI devices as sysfs shows them: drivers, IOMMU groups, and what of the system uses them. */
#ifndef HMMCTL_PCI_H
#define HMMCTL_PCI_H

#include <stdbool.h>
#include <stddef.h>

#define PCI_ADDRESS	16	/* "0000:03:00.0" and a zero */
#define PCI_NAME	64
#define PCI_PATH	512
#define PCI_MEMBERS	64	/* of a group, at most that many are looked at */

struct pci_device {
	char address[PCI_ADDRESS];
	char driver[PCI_NAME];		/* "": none */
	char chosen[PCI_NAME];		/* driver_override, "": by its ids */
	char group[PCI_NAME];		/* the IOMMU's, "": behind none */
	unsigned int vendor, device;
	unsigned int class;		/* base class, subclass, interface: 0x060400 */
};

/*
 * A path of the system, such as /sys/bus/pci/devices/0000:03:00.0/driver. $HMMCTL_ROOT stands before it where it is
 * set: a tree that somebody made up, for tests.
 */
void pci_path(char path[PCI_PATH], const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The first line of a small file. False: it cannot be read. */
bool pci_read(const char *path, char *text, size_t room);

/* "3:0.0", "03:00.0", "0000:03:00.0", as sysfs has it. False: that is no address. */
bool pci_parse_address(const char *text, char address[PCI_ADDRESS]);
/* False: there is no such device. */
bool pci_look(const char *address, struct pci_device *device);
bool pci_is_bridge(const struct pci_device *device);
/* Whether this machine has an IOMMU that is on. */
bool pci_has_iommu(void);
/* All devices of a group, in order of address. Return: how many. */
unsigned int pci_group(const char *group, char addresses[PCI_MEMBERS][PCI_ADDRESS]);
/* Whether a driver of that name is loaded. */
bool pci_has_driver(const char *name);

/*
 * What would be torn away: "network interface eth0, which is up", "/dev/sda1, which is mounted at /". Return: false
 * when the device is free.
 */
bool pci_in_use(const struct pci_device *device, char *how, size_t room);

#endif
