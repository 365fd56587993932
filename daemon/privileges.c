// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * privileges.c - capabilities are dropped by the system call itself: libcap would be linked for one
 * line.
 *
 * What is kept, and what fails without it. (By root's `hmmd --user`, too: root's processes have more than
 * it, and to look at them takes SYS_PTRACE. Another user's has nothing to begin with.)
 *   SYS_PTRACE     UFFDIO_API with EVENT_FORK; get_robust_list() of an owner's threads; userfaultfd() of old kernels
 *   SYS_NICE       process_madvise(MADV_COLLAPSE)
 *   DAC_OVERRIDE   /proc/PID/clear_refs (tracking by soft-dirty); a card's /dev/vfio/GROUP that is somebody else's
 *   IPC_LOCK       VFIO_IOMMU_MAP_DMA beyond RLIMIT_MEMLOCK
 * hmmd.service grants the first two; the others are for who starts hmmd by hand as root.
 */
#include "daemon/privileges.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BIT(capability) (UINT64_C(1) << (capability))

static const uint64_t kept[] = {
	[PRIVILEGES_NONE] = 0,
	[PRIVILEGES_SERVE] = BIT(CAP_SYS_PTRACE) | BIT(CAP_SYS_NICE) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_IPC_LOCK),
};

int privileges_keep(enum privileges which)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
	uint64_t held, keep;

	/* Else a root that executes something has all of it again. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || syscall(SYS_capget, &header, data) < 0)
		return -errno;
	held = data[0].permitted | (uint64_t)data[1].permitted << 32;
	keep = held & kept[which];
	/* Under a service manager there is nothing to drop, and capset() may not even be allowed. */
	if (keep == held)
		return 0;
	for (unsigned int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		data[i].effective = data[i].permitted = (uint32_t)(keep >> 32 * i);
		data[i].inheritable &= data[i].permitted;
	}
	return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}
