// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * doctor_cards.c - what doctor says of cards behind VFIO: the IOMMU, the
 * modules, each device that is with vfio-pci and whether it can be driven, how
 * wide its addresses are, how much hmmd may pin.
 *
 * Nobody needs an IOMMU to use hmmd. So as long as no device is with vfio-pci there are
 * notes at most; from then on what keeps it from being driven is a warning.
 *
 * Thread: control. All reads are of /proc and /sys.
 */
#include <dirent.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "daemon/control/doctor.h"
#include "daemon/control/server.h"
#include "layout.h"

#define CLASS_BRIDGE	0x06U
#define NAME_ROOM	64
#define RESOURCE_MEMORY	0x200U	/* of a line of "resource" */
/* What programs map lies below 2^47: an IOVA is the owner's address. */
#define WANTED_BITS	47U

__attribute__((format(printf, 3, 4)))
static void path_of(const struct examination *exam, char path[PATH_MAX], const char *format, ...)
{
	int length = snprintf(path, PATH_MAX, "%s", exam->root);
	va_list args;

	va_start(args, format);
	vsnprintf(path + length, (size_t)(PATH_MAX - length), format, args);
	va_end(args);
}

/* The last part of what a link leads to; "" when there is none. */
static void read_link(const char *path, char name[NAME_ROOM])
{
	char target[PATH_MAX];
	ssize_t length = readlink(path, target, sizeof(target) - 1);
	const char *slash;

	*name = '\0';
	if (length < 0)
		return;
	target[length] = '\0';
	slash = strrchr(target, '/');
	snprintf(name, NAME_ROOM, "%.*s", NAME_ROOM - 1, slash ? slash + 1 : target);
}

/* The next entry that is none of the folder itself; NULL at the end. */
static const char *next_name(DIR *folder)
{
	struct dirent *entry;

	while (folder && (entry = readdir(folder)))
		if (entry->d_name[0] != '.')
			return entry->d_name;
	return NULL;
}

static bool exists(const struct examination *exam, const char *name)
{
	char path[PATH_MAX];

	path_of(exam, path, "%s", name);
	return !access(path, F_OK);
}

static bool has_iommu(const struct examination *exam)
{
	char path[PATH_MAX];
	DIR *folder;
	bool has;

	path_of(exam, path, "/sys/class/iommu");
	folder = opendir(path);
	has = next_name(folder);
	if (folder)
		closedir(folder);
	return has;
}

/* ---- one card ---------------------------------------------------------------------------- */

/* As the kernel has it: what has a driver of its own spoils the group, unless it is a bridge. */
static bool spoils_group(const struct examination *exam, const char *address,
			 char driver[NAME_ROOM])
{
	char path[PATH_MAX], class[32];

	path_of(exam, path, "/sys/bus/pci/devices/%s/driver", address);
	read_link(path, driver);
	if (!*driver || !strcmp(driver, "vfio-pci") || !strcmp(driver, "pci-stub"))
		return false;
	path_of(exam, path, "/sys/bus/pci/devices/%s/class", address);
	return !doctor_read(path, class, sizeof(class)) ||
	       strtoul(class, NULL, 16) >> 16 != CLASS_BRIDGE;
}

static bool group_is_viable(const struct examination *exam, const char *address,
			    char other[NAME_ROOM], char driver[NAME_ROOM])
{
	char path[PATH_MAX];
	const char *name;
	bool viable = true;
	DIR *folder;

	path_of(exam, path, "/sys/bus/pci/devices/%s/iommu_group/devices", address);
	folder = opendir(path);
	while (viable && (name = next_name(folder))) {
		snprintf(other, NAME_ROOM, "%.*s", NAME_ROOM - 1, name);
		viable = !spoils_group(exam, other, driver);
	}
	if (folder)
		closedir(folder);
	return viable;
}

/*
 * Of Intel's capability register: the widest table that is supported, 39, 48 or 57 bits, and no more than
 * the widest address. 0: another maker's, or not told.
 */
static unsigned int address_bits(const struct examination *exam, const char *address)
{
	char path[PATH_MAX], text[64];
	unsigned int table, widest;
	uint64_t capability;

	path_of(exam, path, "/sys/bus/pci/devices/%s/iommu/intel-iommu/cap", address);
	if (!doctor_read(path, text, sizeof(text)))
		return 0;
	capability = strtoull(text, NULL, 16);
	table = capability >> 11 & 1   ? 57
		: capability >> 10 & 1 ? 48
		: capability >> 9 & 1  ? 39
				       : 0;
	widest = (unsigned int)(capability >> 16 & 0x3f) + 1;
	return table < widest ? table : widest;
}

static void check_group(struct examination *exam, const char *address, const char *group)
{
	char name[NAME_ROOM], other[NAME_ROOM], driver[NAME_ROOM], path[PATH_MAX], fix[160];

	snprintf(name, sizeof(name), "card %.16s", address);
	if (!group_is_viable(exam, address, other, driver)) {
		snprintf(fix, sizeof(fix), "hmmctl device bind %.16s %.16s", address, other);
		doctor_find(
			exam, DOCTOR_WARNING, 0, name, fix,
			"its IOMMU group %s is not viable: %.16s is in it and has the driver %s",
			group, other, driver);
		return;
	}
	path_of(exam, path, "/dev/vfio/%s", group);
	if (access(path, R_OK | W_OK)) {
		snprintf(fix, sizeof(fix),
			 "run hmmd as a system service, or give its user access to /dev/vfio/%s",
			 group);
		doctor_find(exam, DOCTOR_WARNING, 0, name, fix, "hmmd may not open /dev/vfio/%s",
			    group);
		return;
	}
	snprintf(fix, sizeof(fix),
		 "nothing is to be done; hmmctl device unbind %.16s gives it back", address);
	doctor_find(exam, DOCTOR_NOTE, 0, name, fix,
		    "is with vfio-pci and can be driven; IOMMU group %s is viable", group);
}

static void check_width(struct examination *exam, const char *address)
{
	unsigned int bits = address_bits(exam, address);
	char name[NAME_ROOM];

	if (!bits || bits > WANTED_BITS)
		return;
	snprintf(name, sizeof(name), "card %.16s", address);
	doctor_find(
		exam, DOCTOR_WARNING, 0, name,
		"in an emulated machine intel-iommu,aw-bits=48; else another machine",
		"its IOMMU has addresses of %u bits, and programs' addresses have %u: most memory cannot be mapped for it",
		bits, WANTED_BITS);
}

static void check_card(struct examination *exam, const char *address)
{
	char path[PATH_MAX], group[NAME_ROOM], kind[64], name[NAME_ROOM];

	path_of(exam, path, "/sys/bus/pci/devices/%s/iommu_group", address);
	read_link(path, group);
	path_of(exam, path, "/sys/bus/pci/devices/%s/iommu_group/name", address);
	if (!*group ||
	    (doctor_read(path, kind, sizeof(kind)) && !strncmp(kind, "vfio-noiommu", 12))) {
		snprintf(name, sizeof(name), "card %.16s", address);
		doctor_find(
			exam, DOCTOR_WARNING, 0, name,
			"turn the IOMMU on: VT-d or AMD-Vi in the firmware, intel_iommu=on or "
			"amd_iommu=on",
			"is with vfio-pci and behind no IOMMU: it could reach all memory, and hmmd does not drive it");
		return;
	}
	check_group(exam, address, group);
	check_width(exam, address);
}

/* ---- the machine --------------------------------------------------------------------------- */

/* Return: how many devices are with vfio-pci. */
static unsigned int check_cards(struct examination *exam)
{
	char path[PATH_MAX];
	unsigned int n = 0;
	const char *name;
	DIR *folder;

	path_of(exam, path, "/sys/bus/pci/drivers/vfio-pci");
	folder = opendir(path);
	while ((name = next_name(folder))) {
		if (!strchr(name, ':'))
			continue;
		check_card(exam, name);
		n++;
	}
	if (folder)
		closedir(folder);
	return n;
}

static void check_vfio(struct examination *exam, bool wanted)
{
	enum doctor_severity severity = wanted ? DOCTOR_WARNING : DOCTOR_NOTE;
	char path[PATH_MAX];

	if (!has_iommu(exam)) {
		doctor_find(
			exam, severity, 0, "iommu",
			"VT-d or AMD-Vi in the firmware, and for the kernel intel_iommu=on or amd_iommu=on",
			"there is no IOMMU, or it is off: no card can be driven through VFIO; nothing else needs one");
		return;
	}
	if (!exists(exam, "/sys/bus/pci/drivers/vfio-pci")) {
		doctor_find(exam, DOCTOR_NOTE, 0, "vfio",
			    "modprobe vfio-pci, then hmmctl device bind ADDRESS",
			    "vfio-pci is not loaded: no card can be driven");
		return;
	}
	if (!exists(exam, "/sys/module/vfio_iommu_type1"))
		doctor_find(exam, severity, 0, "vfio_iommu_type1", "modprobe vfio_iommu_type1",
			    "vfio_iommu_type1 is not loaded: nothing can be mapped for a card");
	path_of(exam, path, "/dev/vfio/vfio");
	if (access(path, F_OK))
		doctor_find(exam, severity, 0, "vfio",
			    "modprobe vfio; in a container give it /dev/vfio",
			    "/dev/vfio/vfio does not exist: no card can be driven");
	else if (access(path, R_OK | W_OK))
		doctor_find(exam, severity, 0, "vfio",
			    "run hmmd as a system service, or chmod 0666 /dev/vfio/vfio",
			    "hmmd may not open /dev/vfio/vfio");
}

static bool may_pin_all(const struct examination *exam)
{
	char path[PATH_MAX], text[8192], *at;

	path_of(exam, path, "/proc/self/status");
	if (!doctor_read(path, text, sizeof(text)))
		return false;
	at = strstr(text, "CapEff:");
	return at && strtoull(at + 7, NULL, 16) >> CAP_IPC_LOCK & 1;
}

/* What is mapped for a card is pinned, and counts as locked. */
static void check_pinning(struct examination *exam)
{
	struct rlimit limit;

	if (may_pin_all(exam) || getrlimit(RLIMIT_MEMLOCK, &limit) ||
	    limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= exam->totals.pool_bytes)
		return;
	doctor_find(exam, DOCTOR_WARNING, 0, "pinned memory",
		    "LimitMEMLOCK=infinity in hmmd's service, or ulimit -l unlimited before hmmd",
		    "hmmd may pin %" PRIu64 " KiB for cards, and devices may have %" PRIu64
		    " KiB: mappings beyond that fail",
		    (uint64_t)limit.rlim_cur >> 10, exam->totals.pool_bytes >> 10);
}

/* Of the file "resource": a line for each BAR, with its first and last address and its flags. 0: none. */
static uint64_t bar_size(const struct examination *exam, const char *address, unsigned int bar)
{
	char path[PATH_MAX], text[2048], *line = text;
	unsigned long long first, last, flags;

	path_of(exam, path, "/sys/bus/pci/devices/%s/resource", address);
	if (!doctor_read(path, text, sizeof(text)))
		return 0;
	while (bar-- && line)
		line = strchr(line + (line != text), '\n');
	if (!line || sscanf(line, "%llx %llx %llx", &first, &last, &flags) != 3 || last <= first)
		return 0;
	return flags & RESOURCE_MEMORY ? last - first + 1 : 0;
}

/* The card whose BAR is the pool. */
static void check_pool(struct examination *exam)
{
	const struct config *config = &exam->server->config;
	char path[PATH_MAX], driver[NAME_ROOM], name[NAME_ROOM], fix[160];
	uint64_t size;

	if (!*config->pool_card)
		return;
	snprintf(name, sizeof(name), "pool %.16s", config->pool_card);
	path_of(exam, path, "/sys/bus/pci/devices/%s", config->pool_card);
	if (access(path, F_OK)) {
		doctor_find(exam, DOCTOR_ERROR, 0, name, "another 'card' in [pool]: lspci -D lists them",
			    "the pool is a BAR of %s, and there is no such card", config->pool_card);
		return;
	}
	path_of(exam, path, "/sys/bus/pci/devices/%s/driver", config->pool_card);
	read_link(path, driver);
	if (strcmp(driver, "vfio-pci")) {
		snprintf(fix, sizeof(fix), "hmmctl device bind %.16s", config->pool_card);
		doctor_find(exam, DOCTOR_ERROR, 0, name, fix, "the pool is a BAR of %s, which is not with vfio-pci",
			    config->pool_card);
		return;
	}
	size = bar_size(exam, config->pool_card, (unsigned int)config->pool_bar);
	if (size < 4096)
		doctor_find(exam, DOCTOR_ERROR, 0, name, "another 'bar' in [pool]: lspci -vs ADDRESS lists them",
			    "the pool is BAR %" PRIu64 " of %s, which has no memory", config->pool_bar, config->pool_card);
	else
		doctor_find(exam, DOCTOR_NOTE, 0, name, "nothing is to be done",
			    "the pool is BAR %" PRIu64 " of %s, with %" PRIu64 " KiB", config->pool_bar,
			    config->pool_card, size >> 10);
}

void doctor_cards(struct examination *exam)
{
	unsigned int cards = check_cards(exam);

	check_pool(exam);

	check_vfio(exam, cards);
	if (cards)
		check_pinning(exam);
}
