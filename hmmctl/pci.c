// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * pci.c - reads sysfs, and /proc for what is mounted. Nothing is written here
 * and nothing remembered. A file that is not there means that there is no such thing.
 * Main thread.
 */
#include <ctype.h>
#include <dirent.h>
#include <limits.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pci.h"

#define CLASS_BRIDGE	0x06

void pci_path(char path[PCI_PATH], const char *format, ...)
{
	const char *root = getenv("HMMCTL_ROOT");
	int length = snprintf(path, PCI_PATH, "%s", root ? root : "");
	va_list args;

	if (length >= PCI_PATH)
		length = 0;
	va_start(args, format);
	vsnprintf(path + length, (size_t)(PCI_PATH - length), format, args);
	va_end(args);
}

bool pci_read(const char *path, char *text, size_t room)
{
	FILE *file = fopen(path, "re");
	bool read;

	if (!file)
		return false;
	*text = '\0';
	read = fgets(text, (int)room, file) || feof(file);
	fclose(file);
	text[strcspn(text, "\n")] = '\0';
	return read;
}

/* The last part of what a link leads to; "" when it is none. */
static void read_link(const char *path, char *name, size_t room)
{
	char target[PATH_MAX];
	ssize_t length = readlink(path, target, sizeof(target) - 1);
	char *slash;

	*name = '\0';
	if (length < 0)
		return;
	target[length] = '\0';
	slash = strrchr(target, '/');
	snprintf(name, room, "%.*s", (int)room - 1, slash ? slash + 1 : target);
}

static unsigned int read_hex(const char *address, const char *name)
{
	char path[PCI_PATH], text[32];

	pci_path(path, "/sys/bus/pci/devices/%s/%s", address, name);
	return pci_read(path, text, sizeof(text)) ? (unsigned int)strtoul(text, NULL, 16) : 0;
}

/* Up to @most hexadecimal digits and then @end. Return: what follows, or NULL. */
static const char *read_part(const char *text, size_t most, char end, unsigned int *value)
{
	size_t length = 0;

	*value = 0;
	while (isxdigit((unsigned char)text[length])) {
		char digit = (char)tolower((unsigned char)text[length++]);

		*value =
			*value * 16 + (unsigned int)(digit <= '9' ? digit - '0' : digit - 'a' + 10);
	}
	if (!length || length > most || text[length] != end)
		return NULL;
	return text + length + (end ? 1 : 0);
}

bool pci_parse_address(const char *text, char address[PCI_ADDRESS])
{
	unsigned int domain = 0, bus, slot, function;
	const char *colon = strchr(text, ':');

	if (colon && strchr(colon + 1, ':'))
		text = read_part(text, 4, ':', &domain);
	text = text ? read_part(text, 2, ':', &bus) : NULL;
	text = text ? read_part(text, 2, '.', &slot) : NULL;
	text = text ? read_part(text, 1, '\0', &function) : NULL;
	if (!text || slot > 0x1f || function > 7)
		return false;
	snprintf(address, PCI_ADDRESS, "%04x:%02x:%02x.%x", domain & 0xffff, bus & 0xff, slot,
		 function);
	return true;
}

bool pci_look(const char *address, struct pci_device *device)
{
	char path[PCI_PATH];

	memset(device, 0, sizeof(*device));
	pci_path(path, "/sys/bus/pci/devices/%s/vendor", address);
	if (access(path, F_OK))
		return false;
	snprintf(device->address, sizeof(device->address), "%s", address);
	device->vendor = read_hex(address, "vendor");
	device->device = read_hex(address, "device");
	device->class = read_hex(address, "class");
	pci_path(path, "/sys/bus/pci/devices/%s/driver", address);
	read_link(path, device->driver, sizeof(device->driver));
	pci_path(path, "/sys/bus/pci/devices/%s/iommu_group", address);
	read_link(path, device->group, sizeof(device->group));
	pci_path(path, "/sys/bus/pci/devices/%s/driver_override", address);
	if (!pci_read(path, device->chosen, sizeof(device->chosen)) ||
	    !strcmp(device->chosen, "(null)"))
		device->chosen[0] = '\0';
	return true;
}

bool pci_is_bridge(const struct pci_device *device)
{
	return device->class >> 16 == CLASS_BRIDGE;
}

static bool is_empty(const char *path)
{
	DIR *folder = opendir(path);
	struct dirent *entry;
	bool empty = true;

	while (folder && (entry = readdir(folder)))
		empty = empty && entry->d_name[0] == '.';
	if (folder)
		closedir(folder);
	return empty;
}

bool pci_has_iommu(void)
{
	char path[PCI_PATH];

	pci_path(path, "/sys/class/iommu");
	return !is_empty(path);
}

bool pci_has_driver(const char *name)
{
	char path[PCI_PATH];

	pci_path(path, "/sys/bus/pci/drivers/%s", name);
	return !access(path, F_OK);
}

static int compare(const void *a, const void *b)
{
	return strcmp(a, b);
}

unsigned int pci_group(const char *group, char addresses[PCI_MEMBERS][PCI_ADDRESS])
{
	char path[PCI_PATH];
	struct dirent *entry;
	unsigned int n = 0;
	DIR *folder;

	pci_path(path, "/sys/kernel/iommu_groups/%s/devices", group);
	folder = opendir(path);
	while (folder && n < PCI_MEMBERS && (entry = readdir(folder)))
		if (entry->d_name[0] != '.' && pci_parse_address(entry->d_name, addresses[n]))
			n++;
	if (folder)
		closedir(folder);
	qsort(addresses, n, PCI_ADDRESS, compare);
	return n;
}

/* ---- what uses it ---------------------------------------------------------------------- */

/* Whether /sys/class/CLASS/NAME is a part of the device that lies at @folder. */
static bool belongs(const char *folder, const char *class, const char *name)
{
	char path[PCI_PATH], real[PATH_MAX];
	size_t length = strlen(folder);

	pci_path(path, "/sys/class/%s/%s", class, name);
	return realpath(path, real) && !strncmp(real, folder, length) && real[length] == '/';
}

static bool is_up(const char *name)
{
	char path[PCI_PATH], text[32];

	pci_path(path, "/sys/class/net/%s/flags", name);
	return pci_read(path, text, sizeof(text)) && strtoul(text, NULL, 16) & IFF_UP;
}

/* MAJOR:MINOR, the place (with blanks as \040) and what is mounted: words 3, 5 and the second behind " - ". */
static bool read_mount(char *line, char **numbers, char **where, char **source)
{
	char *rest = strstr(line, " - ");

	if (!rest)
		return false;
	*rest = '\0';
	rest += 3;
	strsep(&rest, " ");
	*source = strsep(&rest, " ");
	strsep(&line, " ");
	strsep(&line, " ");
	*numbers = strsep(&line, " ");
	strsep(&line, " ");
	*where = strsep(&line, " ");
	return *source && *numbers && *where;
}

/* By its name as well: some file systems have numbers of their own. */
static bool is_mounted(const char *name, const char *numbers, char *found, size_t room)
{
	char path[PCI_PATH], *line = NULL, *theirs, *where, *source;
	bool mounted = false;
	size_t size = 0;
	FILE *file;

	pci_path(path, "/proc/self/mountinfo");
	file = fopen(path, "re");
	while (file && !mounted && getline(&line, &size, file) > 0) {
		if (!read_mount(line, &theirs, &where, &source))
			continue;
		mounted = !strcmp(theirs, numbers) ||
			  (!strncmp(source, "/dev/", 5) && !strcmp(source + 5, name));
		if (mounted)
			snprintf(found, room, "%s", where);
	}
	free(line);
	if (file)
		fclose(file);
	return mounted;
}

static bool is_swap(const char *name)
{
	char path[PCI_PATH], *line = NULL;
	size_t size = 0, length = strlen(name);
	bool swap = false;
	FILE *file;

	pci_path(path, "/proc/swaps");
	file = fopen(path, "re");
	while (file && !swap && getline(&line, &size, file) > 0)
		swap = !strncmp(line, "/dev/", 5) && !strncmp(line + 5, name, length) &&
		       isspace((unsigned char)line[5 + length]);
	free(line);
	if (file)
		fclose(file);
	return swap;
}

static bool disk_in_use(const char *name, char *how, size_t room)
{
	char path[PCI_PATH], numbers[32], where[256];

	pci_path(path, "/sys/class/block/%s/dev", name);
	if (pci_read(path, numbers, sizeof(numbers)) &&
	    is_mounted(name, numbers, where, sizeof(where))) {
		snprintf(how, room, "/dev/%s, which is mounted at %s", name, where);
		return true;
	}
	if (is_swap(name)) {
		snprintf(how, room, "/dev/%s, which is swap", name);
		return true;
	}
	pci_path(path, "/sys/class/block/%s/holders", name);
	if (is_empty(path))
		return false;
	snprintf(how, room, "/dev/%s, which is a part of another block device", name);
	return true;
}

static bool interface_in_use(const char *name, char *how, size_t room)
{
	if (!is_up(name))
		return false;
	snprintf(how, room, "the network interface %s, which is up", name);
	return true;
}

bool pci_in_use(const struct pci_device *device, char *how, size_t room)
{
	static const struct {
		const char *class;
		bool (*in_use)(const char *name, char *how, size_t room);
	} classes[] = { { "net", interface_in_use }, { "block", disk_in_use } };
	char path[PCI_PATH], folder[PATH_MAX];
	struct dirent *entry;
	bool used = false;
	DIR *things;

	pci_path(path, "/sys/bus/pci/devices/%s", device->address);
	if (!realpath(path, folder))
		return false;
	for (size_t i = 0; i < sizeof(classes) / sizeof(classes[0]) && !used; i++) {
		pci_path(path, "/sys/class/%s", classes[i].class);
		things = opendir(path);
		while (things && !used && (entry = readdir(things)))
			used = entry->d_name[0] != '.' &&
			       belongs(folder, classes[i].class, entry->d_name) &&
			       classes[i].in_use(entry->d_name, how, room);
		if (things)
			closedir(things);
	}
	return used;
}
