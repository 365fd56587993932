// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * doctor.c - what on this machine keeps hmmd from doing its best, and what to
 * do about each. Everything is looked up when somebody asks: a machine changes.
 *
 * A check reads one thing and makes at most one finding; nothing found means
 * nothing to say. Files that do not exist or cannot be read are no finding:
 * kernels and containers differ.
 *
 * Thread: control. All reads are of /proc and /sys, which do not wait for disks.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/control/doctor.h"
#include "daemon/control/peer.h"
#include "daemon/control/server.h"
#include "daemon/kernel/kernel.h"

void doctor_find(struct examination *exam, enum doctor_severity severity, uint64_t feature, const char *name,
		 const char *fix, const char *format, ...)
{
	struct hmm_record_finding *finding;
	char text[sizeof(finding->text)];
	va_list args;

	if (exam->count == exam->max)
		return;
	finding = &exam->out[exam->count++];
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	memset(finding, 0, sizeof(*finding));
	finding->severity = severity;
	finding->feature = (uint32_t)feature;
	HMM_MSG_TEXT(finding->name, name);
	HMM_MSG_TEXT(finding->text, text);
	HMM_MSG_TEXT(finding->fix, fix);
}

bool doctor_read(const char *path, char *out, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, out, room - 1);
	close(fd);
	if (n < 0)
		return false;
	out[n] = '\0';
	return true;
}

static bool read_number(const char *path, uint64_t *value)
{
	char text[64], *end;

	if (!doctor_read(path, text, sizeof(text)))
		return false;
	errno = 0;
	*value = strtoull(text, &end, 10);
	return end != text && !errno;
}

/* "Key:   123 kB" of a /proc file, in bytes. */
static bool read_field(const char *path, const char *key, uint64_t *bytes)
{
	char text[8192], *at;

	if (!doctor_read(path, text, sizeof(text)))
		return false;
	at = strstr(text, key);
	if (!at)
		return false;
	*bytes = strtoull(at + strlen(key), NULL, 10) << 10;
	return true;
}

static uint64_t pool_bytes(const struct examination *exam)
{
	return exam->totals.pool_bytes;
}

/* ---- the kernel's userfaultfd ---------------------------------------------------- */

static void check_userfaultfd(struct examination *exam)
{
	const char *device = "/dev/userfaultfd";
	uint64_t unprivileged = 0;
	bool privileged = !exam->server->config.user;

	if (exam->server->uffd_device >= 0)
		return;
	read_number("/proc/sys/vm/unprivileged_userfaultfd", &unprivileged);
	/* A container's filter may stand before it all the same. */
	if (unprivileged && !doctor_is_filtered())
		return;
	if (access(device, F_OK) < 0)
		doctor_find(exam, DOCTOR_ERROR, 0, "userfaultfd",
		     doctor_is_filtered() ? "give hmmd's container the device (docker run --device /dev/userfaultfd)" :
		     "sysctl vm.unprivileged_userfaultfd=1, or a kernel of 6.1 or later with /dev/userfaultfd",
		     "%s does not exist%s and unprivileged processes may not use userfaultfd: only root's can be mirrored",
		     device, doctor_is_filtered() ? " here" : "");
	else if (privileged)
		doctor_find(exam, DOCTOR_ERROR, 0, "userfaultfd",
		     "allow the device in hmmd's service or container (DeviceAllow=/dev/userfaultfd, and 60-hmmd.rules of udev)",
		     "%s cannot be opened by hmmd, which runs for everybody: its service or container forbids it, or it is another user's",
		     device);
	else
		doctor_find(exam, DOCTOR_WARNING, HMM_FEATURE_USER_MODE, "userfaultfd",
		     "sysctl vm.unprivileged_userfaultfd=1, or give yourself access to /dev/userfaultfd",
		     "without access to %s a system call on a page that is on a device fails with EFAULT",
		     device);
}

static void check_tier(struct examination *exam)
{
	if (exam->features & HMM_FEATURE_MOVE)
		return;
	doctor_find(exam, DOCTOR_WARNING, HMM_FEATURE_MOVE, "move",
	     exam->server->config.move ? "Linux 6.8 or later" : "remove 'move = no' or --no-move",
	     "%s", engine_feature_reason(exam->server->engine, HMM_FEATURE_MOVE));
}

static void check_fork(struct examination *exam)
{
	if (exam->features & HMM_FEATURE_EVENT_FORK)
		return;
	doctor_find(exam, DOCTOR_WARNING, HMM_FEATURE_EVENT_FORK, "fork",
	     "run hmmd as a system service, with CAP_SYS_PTRACE",
	     "%s", engine_feature_reason(exam->server->engine, HMM_FEATURE_EVENT_FORK));
}

/* Features whose absence costs speed or reach, and is the kernel's. */
static void check_kernel_features(struct examination *exam)
{
	static const struct {
		uint64_t feature;
		const char *name, *fix;
	} rows[] = {
		{ HMM_FEATURE_WP_SHMEM, "wp_shmem",
		 "Linux 5.19 or later with CONFIG_PTE_MARKER_UFFD_WP" },
		{ HMM_FEATURE_POISON, "poison", "Linux 6.6 or later" },
		{ HMM_FEATURE_PAGEMAP_SCAN, "pagemap_scan", "Linux 6.7 or later" },
		{ HMM_FEATURE_PROCMAP_QUERY, "procmap_query", "Linux 6.11 or later" },
		{ HMM_FEATURE_GUARD, "guard", "Linux 6.15 or later" },
		{ HMM_FEATURE_COLLAPSE, "collapse",
		 "Linux 6.1 or later; run hmmd with CAP_SYS_ADMIN" },
	};
	size_t i;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		if (!(exam->features & rows[i].feature))
			doctor_find(exam, DOCTOR_NOTE, rows[i].feature, rows[i].name, rows[i].fix,
			     "off: %s",
			     engine_feature_reason(exam->server->engine, rows[i].feature));
	}
}

static void check_tracking(struct examination *exam)
{
	const uint64_t engines = HMM_FEATURE_TRACK_PAGEMAP_SCAN | HMM_FEATURE_TRACK_UFFD_WP |
				 HMM_FEATURE_TRACK_SOFT_DIRTY;

	if (exam->features & engines)
		return;
	doctor_find(exam, DOCTOR_WARNING, 0, "tracking",
	     exam->server->config.tracking ? "tracking = auto in hmmd.conf" : "a kernel with userfaultfd's write protection",
	     "what programs write can't be tracked: %s",
	     exam->server->config.tracking ? "the kernel lacks the engine that tracking names (hmmctl features)" :
					     "the kernel has none of the engines (hmmctl features)");
}

static void check_io_uring(struct examination *exam)
{
	uint64_t disabled = 0;

	if (exam->features & HMM_FEATURE_IO_URING)
		return;
	read_number("/proc/sys/kernel/io_uring_disabled", &disabled);
	if (disabled)
		doctor_find(exam, DOCTOR_NOTE, HMM_FEATURE_IO_URING, "io_uring",
		     "sysctl kernel.io_uring_disabled=0",
		     "kernel.io_uring_disabled is %" PRIu64
		     ": the engine runs on epoll and serves faults a little slower",
		     disabled);
	else
		doctor_find(exam, DOCTOR_NOTE, HMM_FEATURE_IO_URING, "io_uring",
		     exam->server->config.io_uring
			     ? "allow io_uring in hmmd's seccomp filter or container"
			     : "remove 'io_uring = no' or --no-io-uring",
		     "%s: the engine runs on epoll and serves faults a little slower",
		     engine_feature_reason(exam->server->engine, HMM_FEATURE_IO_URING));
}

/* ---- memory -------------------------------------------------------------------------- */

static bool is_chosen(const char *path, const char *choice)
{
	char text[256];

	return doctor_read(path, text, sizeof(text)) && strstr(text, choice);
}

static void check_huge_pages(struct examination *exam)
{
	static const char shmem[] = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
	static const char anonymous[] = "/sys/kernel/mm/transparent_hugepage/enabled";

	if (exam->server->config.pool_kind == HMM_POOL_KIND_MEMFD_HUGE &&
	    (is_chosen(shmem, "[never]") || is_chosen(shmem, "[deny]")))
		doctor_find(exam, DOCTOR_WARNING, HMM_FEATURE_HUGE_SHMEM, "shmem_enabled",
		     "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
		     "the kernel gives shmem no huge pages: the pool memfd-huge is made of 4 KiB pages");
	if (is_chosen(anonymous, "[never]"))
		doctor_find(exam, DOCTOR_NOTE, 0, "transparent_hugepage",
		     "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
		     "the kernel gives programs no huge pages: every page migrates as 4 KiB");
}

static void check_hugetlb(struct examination *exam)
{
	uint64_t free_pages, wanted = pool_bytes(exam) - exam->totals.pool_used;
	char fix[96];

	if (exam->server->config.pool_kind != HMM_POOL_KIND_HUGETLB)
		return;
	if (!read_number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", &free_pages))
		return;
	if (free_pages << 21 >= wanted)
		return;
	snprintf(fix, sizeof(fix), "sysctl vm.nr_hugepages=%" PRIu64 ", or a smaller pool",
		 pool_bytes(exam) >> 21);
	doctor_find(exam, free_pages ? DOCTOR_WARNING : DOCTOR_ERROR, HMM_FEATURE_HUGETLB, "hugepages",
	     fix,
	     "the hugetlb pool wants %" PRIu64 " more huge pages of 2 MiB and %" PRIu64 " are free",
	     wanted >> 21, free_pages);
}

static void check_placement(struct examination *exam)
{
	const struct config *config = &exam->server->config;
	const struct placement placement = config_placement(config);
	char wanted[PLACEMENT_TEXT], known[PLACEMENT_TEXT];
	uint64_t nodes[HMM_NODE_WORDS];
	unsigned int others = 0;
	int count;

	if (placement.mode != HMM_PLACEMENT_ANY && (kernel_nodes(nodes) || !placement_lies_in(&placement, nodes)))
		doctor_find(exam, DOCTOR_ERROR, HMM_FEATURE_NUMA, "placement", "another 'placement' or 'node' in [pool]",
		     "pools are to be on memory node %s, and hmmd may have memory on %s: no device can be made",
		     placement_print_nodes(&placement, wanted, sizeof(wanted)), nodes_print(nodes, known, sizeof(known)));
	count = kernel_dax_nodes(nodes, &others);
	if (config->pool_kind == HMM_POOL_KIND_DAX && count <= 0)
		doctor_find(exam, DOCTOR_ERROR, 0, "dax", "daxctl reconfigure-device --mode=system-ram DEVICE",
		     "the pool is dax, and no dax device is memory with a node of its own; %u are something else", others);
	else if (count > 0 && config->pool_kind != HMM_POOL_KIND_DAX)
		doctor_find(exam, DOCTOR_NOTE, 0, "dax", "a device with HMM_POOL_DAX, or kind = dax in [pool]",
		     "memory node %s is of dax devices: a pool of kind dax lies there", nodes_print(nodes, known, sizeof(known)));
}

static void check_pool_size(struct examination *exam)
{
	uint64_t total;

	if (exam->server->config.pool_kind == HMM_POOL_KIND_HUGETLB)
		return;
	if (read_field("/proc/meminfo", "MemTotal:", &total) && pool_bytes(exam) > total)
		doctor_find(exam, DOCTOR_WARNING, 0, "pool", "a smaller 'size' in [pool]",
		     "the pool may grow to %" PRIu64 " MiB, and the machine has %" PRIu64 " MiB",
		     pool_bytes(exam) >> 20, total >> 20);
}

/* The least memory.max from hmmd's own group up to the root. */
static bool cgroup_limit(uint64_t *limit, char *where, size_t room)
{
	char text[1024], path[1200], *group, *slash;
	uint64_t value;

	if (!doctor_read("/proc/self/cgroup", text, sizeof(text)))
		return false;
	group = strstr(text, "0::");
	if (!group)
		return false;
	group += 3;
	group[strcspn(group, "\n")] = '\0';
	*limit = UINT64_MAX;
	for (;;) {
		snprintf(path, sizeof(path), "/sys/fs/cgroup%s/memory.max",
			 strcmp(group, "/") ? group : "");
		if (read_number(path, &value) && value < *limit) {
			*limit = value;
			snprintf(where, room, "%s", group);
		}
		slash = strrchr(group, '/');
		if (!slash || slash == group)
			break;
		*slash = '\0';
	}
	return *limit != UINT64_MAX;
}

static void check_cgroup(struct examination *exam)
{
	char where[100];
	uint64_t limit;

	if (exam->server->config.pool_kind == HMM_POOL_KIND_HUGETLB)
		return;
	if (cgroup_limit(&limit, where, sizeof(where)) && limit < pool_bytes(exam))
		doctor_find(exam, DOCTOR_WARNING, 0, "cgroup",
		     "raise MemoryMax of hmmd's service, or a smaller 'size' in [pool]",
		     "memory.max of %s is %" PRIu64 " MiB, less than the pool's %" PRIu64
		     " MiB: a full pool gets hmmd killed",
		     where, limit >> 20, pool_bytes(exam) >> 20);
}

/* ---- limits ----------------------------------------------------------------------------- */

static void check_map_count(struct examination *exam)
{
	uint64_t count;

	if (read_number("/proc/sys/vm/max_map_count", &count) && count < 262144)
		doctor_find(exam, DOCTOR_NOTE, 0, "max_map_count", "sysctl vm.max_map_count=1048576",
		     "vm.max_map_count is %" PRIu64
		     ": mirrored ranges split mappings, and a large program may run out of them",
		     count);
}

static void check_limits(struct examination *exam)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur < 4096)
		doctor_find(exam, DOCTOR_WARNING, 0, "nofile",
		     "LimitNOFILE=1048576 in hmmd's service, or ulimit -n before hmmd",
		     "hmmd may have %llu descriptors; each mirrored process takes 10 and one per GiB on a device",
		     (unsigned long long)limit.rlim_cur);
	if (!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur != RLIM_INFINITY)
		doctor_find(exam, DOCTOR_ERROR, 0, "fsize",
		     "ulimit -f unlimited before hmmd, or no LimitFSIZE in its service",
		     "files may be %llu MiB long: the sparse tables of a mirror are longer, and no process can be mirrored",
		     (unsigned long long)limit.rlim_cur >> 20);
	if (!getrlimit(RLIMIT_AS, &limit) && limit.rlim_cur != RLIM_INFINITY)
		doctor_find(exam, DOCTOR_ERROR, 0, "address_space",
		     "ulimit -v unlimited before hmmd, or no LimitAS in its service",
		     "hmmd may map %llu MiB: it maps sparse tables of terabytes",
		     (unsigned long long)limit.rlim_cur >> 20);
}

/* "Max locked memory   8388608   8388608   bytes": the soft one. */
static bool locked_limit(pid_t pid, uint64_t *limit)
{
	static const char key[] = "Max locked memory";
	char path[64], text[4096], *at;

	snprintf(path, sizeof(path), "/proc/%d/limits", pid);
	if (!doctor_read(path, text, sizeof(text)))
		return false;
	at = strstr(text, key);
	if (!at)
		return false;
	at += strlen(key);
	at += strspn(at, " ");
	*limit = strncmp(at, "unlimited", 9) ? strtoull(at, NULL, 10) : UINT64_MAX;
	return true;
}

/* Locked pages migrate through a staging slot that must be locked as well. */
static void check_locked(struct examination *exam)
{
	const struct rights_owner *owner;
	uint64_t locked, limit;
	char path[64];

	for (owner = exam->server->rights.owners; owner; owner = owner->next) {
		snprintf(path, sizeof(path), "/proc/%d/status", owner->pid);
		if (!read_field(path, "VmLck:", &locked) || !locked ||
		    !locked_limit(owner->pid, &limit))
			continue;
		if (limit != UINT64_MAX && limit < locked + (8U << 20))
			doctor_find(exam, DOCTOR_NOTE, 0, "memlock",
			     "ulimit -l unlimited before the program",
			     "owner %u (pid %d) has %" PRIu64 " KiB locked of %" PRIu64
			     ": no room to lock a staging slot, "
			     "so its locked pages stay",
			     owner->id, owner->pid, locked >> 10, limit >> 10);
	}
}

/* ---- who may come -------------------------------------------------------------------------- */

/*
 * By the socket, not by asking for the group: a directory service may take its time, and this is
 * the control loop.
 */
static void check_group(struct examination *exam)
{
	const struct config *config = &exam->server->config;
	struct stat st;
	char fix[128];

	if (config->user || !*config->group || stat(exam->server->path, &st) < 0 ||
	    st.st_mode & S_IWGRP)
		return;
	snprintf(fix, sizeof(fix), "groupadd --system %s; usermod -aG %s USER; restart hmmd",
		 config->group, config->group);
	doctor_find(exam, DOCTOR_WARNING, 0, "group", fix,
	     "there was no group '%s' when hmmd started: only root can connect", config->group);
}

static void check_user_mode(struct examination *exam)
{
	if (!exam->server->config.user)
		return;
	doctor_find(exam, DOCTOR_NOTE, HMM_FEATURE_USER_MODE, "user mode", "run hmmd as a system service",
	     "hmmd --user serves uid %u alone, within that user's own limits", geteuid());
}

unsigned int doctor_examine(struct server *server, struct hmm_record_finding *out, unsigned int max)
{
	static void (*const checks[])(struct examination *exam) = {
		check_userfaultfd, check_tier, check_fork, check_tracking, check_io_uring, check_kernel_features,
		check_huge_pages, check_hugetlb, check_placement, check_pool_size, check_cgroup, check_map_count,
		check_limits, check_locked, doctor_surroundings, doctor_cards, check_group, check_user_mode,
	};
	struct examination exam = {
		.server = server,
		.root = "",
		.features = engine_features(server->engine),
		.out = out,
		.max = max,
	};
	size_t i;

	engine_totals(server->engine, &exam.totals);
	for (i = 0; i < sizeof(checks) / sizeof(checks[0]); i++)
		checks[i](&exam);
	return exam.count;
}
