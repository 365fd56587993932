// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * device.c - `hmmctl device bind|unbind ADDRESS...`: gives PCI devices to
 * vfio-pci, where hmmd can drive them through the IOMMU, and back to the
 * driver that each had.
 *
 * All devices are looked at before the first is touched, and when one fails
 * those before it are put back. It asks no hmmd, and loads no module. Main thread.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hmmctl.h"
#include "output.h"
#include "pci.h"
#include "rebind.h"

struct selected {
	struct pci_device devices[MOST_WORDS];
	struct rebinding rebindings[MOST_WORDS];
	unsigned int n;
};

__attribute__((format(printf, 4, 5))) static int refuse(int status, const struct pci_device *device,
							const char *fix, const char *format, ...)
{
	va_list args;

	fprintf(stderr, "hmmctl: %s: ", device->address);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\n%s%s%s", fix ? "  " : "", fix ? fix : "", fix ? "\n" : "");
	return status;
}

static bool is_bound(const struct pci_device *device)
{
	return !strcmp(device->driver, REBIND_DRIVER);
}

/* ---- what speaks against it -------------------------------------------------------------- */

static bool is_selected(const struct selected *selected, const char *address)
{
	for (unsigned int i = 0; i < selected->n; i++)
		if (!strcmp(selected->devices[i].address, address))
			return true;
	return false;
}

/* As the kernel has it: everything else in the group must be free, with vfio-pci, or lead no transfers of its own. */
static bool spoils_group(const struct pci_device *other)
{
	return *other->driver && !is_bound(other) && strcmp(other->driver, "pci-stub") &&
	       !pci_is_bridge(other);
}

static int check_group(const struct selected *selected, const struct pci_device *device)
{
	char fix[PCI_MEMBERS * PCI_ADDRESS + 64] = "bind all together: hmmctl device bind";
	char members[PCI_MEMBERS][PCI_ADDRESS];
	unsigned int n = pci_group(device->group, members), spoilt = 0;
	struct pci_device other;

	for (unsigned int i = 0; i < n; i++) {
		if (!pci_look(members[i], &other) || pci_is_bridge(&other))
			continue;
		snprintf(fix + strlen(fix), sizeof(fix) - strlen(fix), " %s", other.address);
		if (is_selected(selected, other.address) || !spoils_group(&other))
			continue;
		if (!spoilt++)
			fprintf(stderr,
				"hmmctl: %s: its IOMMU group %s would not be viable: the kernel keeps devices apart by groups, "
				"and others of it have drivers of their own:\n",
				device->address, device->group);
		fprintf(stderr, "    %s  %04x:%04x  %s\n", other.address, other.vendor,
			other.device, other.driver);
	}
	if (!spoilt)
		return STATUS_OK;
	fprintf(stderr, "  %s\n", fix);
	return STATUS_FAILED;
}

static int check_bind(const struct context *context, const struct selected *selected,
		      const struct pci_device *device)
{
	char how[400];
	int status;

	if (pci_is_bridge(device))
		return refuse(STATUS_FAILED, device, NULL,
			      "it is a bridge; give away what is behind it");
	if (!*device->group && !pci_has_iommu())
		return refuse(
			STATUS_FAILED, device,
			"turn it on in the firmware (VT-d, AMD-Vi) and for the kernel: intel_iommu=on or amd_iommu=on",
			"this machine has no IOMMU, or it is off");
	if (!*device->group)
		return refuse(STATUS_FAILED, device, NULL,
			      "it is behind no IOMMU, and could reach all memory");
	if (is_bound(device))
		return STATUS_OK;
	if (!pci_has_driver(REBIND_DRIVER))
		return refuse(STATUS_FAILED, device, "modprobe vfio-pci",
			      "there is no driver vfio-pci");
	status = check_group(selected, device);
	if (status)
		return status;
	if (!context->force && pci_in_use(device, how, sizeof(how)))
		return refuse(STATUS_FAILED, device,
			      "free it first, or take it away all the same with --force",
			      "it is in use: it has %s", how);
	return STATUS_OK;
}

/* Processes that have @file open, by /proc. True: hmmd has, and nobody else but the process that keeps its cards. */
static bool find_users(const char *file, char *text, size_t room)
{
	bool hmmd = false, others = false;

	char path[PCI_PATH], name[64], link[PATH_MAX];
	DIR *processes = opendir("/proc"), *files;
	struct dirent *process, *entry;
	ssize_t length;

	*text = '\0';
	while (processes && (process = readdir(processes))) {
		snprintf(path, sizeof(path), "/proc/%.20s/fd", process->d_name);
		files = strspn(process->d_name, "0123456789") ? opendir(path) : NULL;
		while (files && (entry = readdir(files))) {
			length = readlinkat(dirfd(files), entry->d_name, link, sizeof(link) - 1);
			link[length < 0 ? 0 : length] = '\0';
			if (strcmp(link, file))
				continue;
			snprintf(path, sizeof(path), "/proc/%.20s/comm", process->d_name);
			if (!pci_read(path, name, sizeof(name)))
				strcpy(name, "?");
			snprintf(text + strlen(text), room - strlen(text), "%s process %.20s (%s)",
				 *text ? "," : "", process->d_name, name);
			hmmd |= !strcmp(name, "hmmd");
			others |= strcmp(name, "hmmd") && strcmp(name, "hmmd-holder");
			break;
		}
		if (files)
			closedir(files);
	}
	if (processes)
		closedir(processes);
	return hmmd && !others;
}

/*
 * vfio-pci does not let go of a device that somebody has: the write would wait for him. hmmd gives it back when the
 * kernel asks. A group opens only once.
 */
static int check_unbind(const struct pci_device *device, bool dry_run)
{
	char path[PCI_PATH], users[300];
	int fd;

	if (!is_bound(device))
		return refuse(STATUS_FAILED, device, NULL, "it is not with vfio-pci: %s%s",
			      *device->driver ? "its driver is " : "it has no driver",
			      device->driver);
	pci_path(path, "/dev/vfio/%s", device->group);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	if (fd >= 0 || errno != EBUSY)
		return STATUS_OK;
	if (find_users(path, users, sizeof(users))) {
		if (!dry_run)
			fprintf(stderr,
				"hmmctl: %s: hmmd has it and is asked for it back: this waits until nothing is left there, and until its "
				"driver has closed it; hmmd's log says more\n",
				device->address);
		return STATUS_OK;
	}
	return refuse(STATUS_FAILED, device, "end that first", "it is in use: %s is open%s%s", path,
		      *users ? " in" : "", users);
}

/* ---- doing it ---------------------------------------------------------------------------------- */

static int select_devices(const struct context *context, struct selected *selected)
{
	char address[PCI_ADDRESS];

	for (unsigned int i = 1; i < context->n_words; i++) {
		struct pci_device *device = &selected->devices[selected->n];

		if (!pci_parse_address(context->words[i], address)) {
			fprintf(stderr,
				"hmmctl: '%s' is no PCI address such as 0000:03:00.0\n  see what there is: lspci -D\n",
				context->words[i]);
			return STATUS_USAGE;
		}
		if (is_selected(selected, address))
			continue;
		if (!pci_look(address, device)) {
			fprintf(stderr,
				"hmmctl: there is no PCI device %s\n  see what there is: lspci -D\n",
				address);
			return STATUS_NOTHING;
		}
		selected->rebindings[selected->n].dry_run = context->dry_run;
		selected->rebindings[selected->n++].writes = json_object_new_array();
	}
	return STATUS_OK;
}

static int check(const struct context *context, const struct selected *selected, bool bind)
{
	const struct pci_device *device = selected->devices, *end = device + selected->n;
	int status = STATUS_OK;

	for (; !status && device < end; device++)
		status = bind ? check_bind(context, selected, device) :
				check_unbind(device, context->dry_run);
	for (device = selected->devices; !status && device < end; device++)
		if (!context->dry_run && bind != is_bound(device) && !rebind_is_permitted(device))
			status = refuse(
				STATUS_NOT_PERMITTED, device, "as root: sudo hmmctl device ...",
				"only root gives devices away; --dry-run shows what would be written");
	return status;
}

static int rebind(struct selected *selected, bool bind)
{
	struct rebinding undo;
	struct pci_device now;

	for (unsigned int i = 0; i < selected->n; i++) {
		struct rebinding *rebinding = &selected->rebindings[i];
		const struct pci_device *device = &selected->devices[i];

		if (bind && is_bound(device))
			continue;
		if (bind ? rebind_to_vfio(rebinding, device) : rebind_back(rebinding, device))
			continue;
		refuse(STATUS_FAILED, device, NULL, "%s", rebinding->error);
		while (bind && i-- > 0) {
			undo = (struct rebinding){ .writes = json_object_new_array() };
			/* One that was bound before stays. */
			if (!is_bound(&selected->devices[i]) &&
			    pci_look(selected->devices[i].address, &now) &&
			    !rebind_back(&undo, &now))
				refuse(STATUS_FAILED, &now, NULL, "%s", undo.error);
			json_object_put(undo.writes);
		}
		return STATUS_FAILED;
	}
	return STATUS_OK;
}

/* ---- telling it ---------------------------------------------------------------------------------- */

static struct json_object *hexadecimal(unsigned int value)
{
	char text[16];

	snprintf(text, sizeof(text), "%04x", value);
	return json_object_new_string(text);
}

static struct json_object *device_json(const struct pci_device *before,
				       const struct pci_device *now,
				       const struct rebinding *rebinding)
{
	struct json_object *object = json_object_new_object();

	json_object_object_add(object, "address", json_object_new_string(before->address));
	json_object_object_add(object, "vendor", hexadecimal(before->vendor));
	json_object_object_add(object, "device", hexadecimal(before->device));
	json_object_object_add(object, "group", json_object_new_string(before->group));
	json_object_object_add(object, "driver_before", json_object_new_string(before->driver));
	json_object_object_add(object, "driver", json_object_new_string(now->driver));
	json_object_object_add(object, "writes", json_object_get(rebinding->writes));
	return object;
}

static void print_writes(const struct rebinding *rebinding)
{
	for (size_t i = 0; i < json_object_array_length(rebinding->writes); i++) {
		struct json_object *write = json_object_array_get_idx(rebinding->writes, i), *value;
		const char *path = json_object_get_string(json_object_object_get(write, "path"));

		value = json_object_object_get(write, "value");
		if (!value)
			printf("%s is removed\n", path);
		else
			printf("%s <- %s\n", path,
			       *json_object_get_string(value) ? json_object_get_string(value)
							      : "''");
	}
}

static void print_device(const struct pci_device *before, const struct pci_device *now)
{
	printf("%s (%04x:%04x): ", before->address, before->vendor, before->device);
	if (is_bound(now))
		printf("vfio-pci%s, /dev/vfio/%s\n", is_bound(before) ? " as before" : "",
		       now->group);
	else
		printf("%s\n", *now->driver ? now->driver : "no driver");
}

static void tell(const struct context *context, const struct selected *selected)
{
	struct json_object *array = json_object_new_array(), *object;
	struct pci_device now;

	for (unsigned int i = 0; i < selected->n; i++) {
		const struct pci_device *before = &selected->devices[i];

		if (!pci_look(before->address, &now))
			now = *before;
		if (context->json)
			json_object_array_add(array,
					      device_json(before, &now, &selected->rebindings[i]));
		else if (context->dry_run)
			print_writes(&selected->rebindings[i]);
		else
			print_device(before, &now);
	}
	if (!context->json) {
		json_object_put(array);
		return;
	}
	object = json_object_new_object();
	json_object_object_add(object, "dry_run", json_object_new_boolean(context->dry_run));
	json_object_object_add(object, "devices", array);
	output_json(object);
}

static void tell_missing_module(void)
{
	char path[PCI_PATH];

	pci_path(path, "/sys/module/vfio_iommu_type1");
	if (access(path, F_OK))
		fputs("hmmctl: note: vfio_iommu_type1 is not loaded, without which nothing can be mapped for the device\n"
		      "  modprobe vfio_iommu_type1\n",
		      stderr);
}

int command_device(struct context *context)
{
	const char *verb = context->n_words ? context->words[0] : "";
	bool bind = !strcmp(verb, "bind");
	static struct selected selected;
	int status;

	if ((!bind && strcmp(verb, "unbind")) || context->n_words < 2) {
		fputs("hmmctl: bind or unbind which device? hmmctl device bind 0000:03:00.0\n  try: hmmctl help device\n",
		      stderr);
		return STATUS_USAGE;
	}
	status = select_devices(context, &selected);
	if (!status)
		status = check(context, &selected, bind);
	if (!status)
		status = rebind(&selected, bind);
	if (!status)
		tell(context, &selected);
	if (!status && bind)
		tell_missing_module();
	for (unsigned int i = 0; i < selected.n; i++)
		json_object_put(selected.rebindings[i].writes);
	return status;
}
