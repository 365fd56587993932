// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * rebind.c - the writes into sysfs that change a PCI device's driver.
 *
 * Happy path: which driver it has is written to /run/hmmctl; driver_override
 * names vfio-pci, which therefore takes this device and no other of its kind;
 * the old driver lets go of it; the bus looks for a driver anew. Back: vfio-pci
 * lets go, the override is as it was, the bus looks again, the record goes.
 *
 * What can fail: any write, and a driver that does not take the device: then
 * everything is put back. A driver that waits for its users to let go makes the
 * kernel wait inside a write; whoever calls this has looked. Main thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "rebind.h"

#define RECORDS		"/run/hmmctl"
/* A driver may look at its device in its own time. */
#define PROBE_TRIES	200
#define PROBE_WAIT_NS	10000000L

/* What a device had before: "-" for none. */
struct before {
	char driver[PCI_NAME];
	char chosen[PCI_NAME];
};

static void note(struct rebinding *rebinding, const char *path, const char *value)
{
	struct json_object *write = json_object_new_object();

	json_object_object_add(write, "path", json_object_new_string(path));
	json_object_object_add(write, "value", value ? json_object_new_string(value) : NULL);
	json_object_array_add(rebinding->writes, write);
}

/* @value "": a line end alone, which clears an attribute. */
static bool write_value(struct rebinding *rebinding, const char *path, const char *value, int flags)
{
	const char *text = *value ? value : "\n";
	ssize_t written;
	int fd, error;

	note(rebinding, path, value);
	if (rebinding->dry_run)
		return true;
	fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC | flags, 0644);
	written = fd < 0 ? -1 : write(fd, text, strlen(text));
	error = errno;
	if (fd >= 0)
		close(fd);
	if (written == (ssize_t)strlen(text))
		return true;
	snprintf(rebinding->error, sizeof(rebinding->error), "'%s' cannot be written to %s: %s",
		 value, path, strerror(written < 0 ? error : EIO));
	return false;
}

/* ---- the record ---------------------------------------------------------------------- */

static bool remember(struct rebinding *rebinding, const struct pci_device *device,
		     const struct before *before)
{
	char path[PCI_PATH], text[2 * PCI_NAME];

	pci_path(path, "%s", RECORDS);
	if (!rebinding->dry_run && mkdir(path, 0755) && errno != EEXIST) {
		snprintf(rebinding->error, sizeof(rebinding->error), "%s cannot be made: %m", path);
		return false;
	}
	pci_path(path, "%s/%s", RECORDS, device->address);
	snprintf(text, sizeof(text), "%s %s", before->driver, before->chosen);
	return write_value(rebinding, path, text, O_CREAT);
}

static bool recall(const struct pci_device *device, struct before *before)
{
	char path[PCI_PATH], text[2 * PCI_NAME];

	pci_path(path, "%s/%s", RECORDS, device->address);
	return pci_read(path, text, sizeof(text)) &&
	       sscanf(text, "%63s %63s", before->driver, before->chosen) == 2;
}

static void forget(struct rebinding *rebinding, const struct pci_device *device)
{
	char path[PCI_PATH];

	pci_path(path, "%s/%s", RECORDS, device->address);
	if (access(path, F_OK))
		return;
	note(rebinding, path, NULL);
	if (!rebinding->dry_run)
		unlink(path);
}

/* ---- the steps ------------------------------------------------------------------------- */

static bool override(struct rebinding *rebinding, const struct pci_device *device,
		     const char *driver)
{
	char path[PCI_PATH];

	pci_path(path, "/sys/bus/pci/devices/%s/driver_override", device->address);
	return write_value(rebinding, path, driver, 0);
}

static bool release(struct rebinding *rebinding, const struct pci_device *device,
		    const char *driver)
{
	char path[PCI_PATH];

	pci_path(path, "/sys/bus/pci/drivers/%s/unbind", driver);
	return write_value(rebinding, path, device->address, 0);
}

static bool probe(struct rebinding *rebinding, const struct pci_device *device)
{
	char path[PCI_PATH];

	pci_path(path, "/sys/bus/pci/drivers_probe");
	return write_value(rebinding, path, device->address, 0);
}

/* Whether it comes to have that driver ("": none). */
static bool await_driver(const struct rebinding *rebinding, const char *address, const char *driver)
{
	const struct timespec pause = { .tv_nsec = PROBE_WAIT_NS };
	struct pci_device now;

	for (int i = 0; !rebinding->dry_run && i < PROBE_TRIES; i++) {
		if (pci_look(address, &now) && !strcmp(now.driver, driver))
			return true;
		nanosleep(&pause, NULL);
	}
	return rebinding->dry_run;
}

static bool put_back(struct rebinding *rebinding, const struct pci_device *device,
		     const struct before *before)
{
	const char *chosen = strcmp(before->chosen, "-") ? before->chosen : "";
	bool had_driver = strcmp(before->driver, "-");
	struct pci_device now;

	if (!pci_look(device->address, &now)) {
		snprintf(rebinding->error, sizeof(rebinding->error), "%s is gone", device->address);
		return false;
	}
	if (*now.driver && strcmp(now.driver, before->driver) &&
	    !release(rebinding, device, now.driver))
		return false;
	if (!override(rebinding, device, chosen))
		return false;
	if (had_driver && !probe(rebinding, device))
		return false;
	if (await_driver(rebinding, device->address, had_driver ? before->driver : ""))
		return true;
	snprintf(rebinding->error, sizeof(rebinding->error),
		 "%s does not take %s back (is it loaded? dmesg may tell)", before->driver,
		 device->address);
	return false;
}

bool rebind_to_vfio(struct rebinding *rebinding, const struct pci_device *device)
{
	struct before before;
	char error[sizeof(rebinding->error)];
	bool done;

	snprintf(before.driver, sizeof(before.driver), "%s",
		 *device->driver ? device->driver : "-");
	snprintf(before.chosen, sizeof(before.chosen), "%s",
		 *device->chosen ? device->chosen : "-");
	if (!remember(rebinding, device, &before))
		return false;
	done = override(rebinding, device, REBIND_DRIVER) &&
	       (!*device->driver || release(rebinding, device, device->driver)) &&
	       probe(rebinding, device);
	if (done && await_driver(rebinding, device->address, REBIND_DRIVER))
		return true;
	if (done)
		snprintf(rebinding->error, sizeof(rebinding->error),
			 "%s does not take %s (dmesg may tell)", REBIND_DRIVER, device->address);
	memcpy(error, rebinding->error, sizeof(error));
	if (put_back(rebinding, device, &before))
		memcpy(rebinding->error, error, sizeof(error));
	forget(rebinding, device);
	return false;
}

bool rebind_back(struct rebinding *rebinding, const struct pci_device *device)
{
	struct before before;
	bool done;

	if (recall(device, &before)) {
		done = put_back(rebinding, device, &before);
	} else {
		done = release(rebinding, device, device->driver) &&
		       override(rebinding, device, "") && probe(rebinding, device);
	}
	if (done)
		forget(rebinding, device);
	return done;
}

bool rebind_is_permitted(const struct pci_device *device)
{
	char path[PCI_PATH];

	pci_path(path, "/sys/bus/pci/devices/%s/driver_override", device->address);
	if (access(path, W_OK))
		return false;
	pci_path(path, "/sys/bus/pci/drivers_probe");
	return !access(path, W_OK);
}
