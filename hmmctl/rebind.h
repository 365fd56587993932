/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rebind.h - takes a PCI device from its driver, gives it to vfio-pci, and back. */
#ifndef HMMCTL_REBIND_H
#define HMMCTL_REBIND_H

#include <stdbool.h>

#include <json-c/json.h>

#include "pci.h"

#define REBIND_DRIVER	"vfio-pci"

struct rebinding {
	bool dry_run;			/* nothing is written, only noted */
	struct json_object *writes; /* {path, value}, in order; value null: the file is removed */
	char error[PCI_PATH + 128];	/* what went wrong */
};

/*
 * The device goes from whatever driver it has to vfio-pci; which it was is remembered. False: that failed, it is as it
 * was, and @error says why.
 */
bool rebind_to_vfio(struct rebinding *rebinding, const struct pci_device *device);
/* Back to what was remembered; if nothing was, to the driver that the kernel chooses. False: see @error. */
bool rebind_back(struct rebinding *rebinding, const struct pci_device *device);
/* Whether this process may do either. */
bool rebind_is_permitted(const struct pci_device *device);

#endif
