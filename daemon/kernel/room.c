/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * room.c - how much memory can be had without the kernel killing somebody for it: what the machine has
 * to give, and what a process's memory cgroup and those above it let it have.
 *
 * Any thread. What can fail: a container may hide what is asked for; what nobody tells counts as room.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "private.h"

#define CGROUPS	"/sys/fs/cgroup"
/* Beyond this a limit of cgroup v1 means none. */
#define NO_LIMIT	(1ULL << 60)

/* The files of either version. */
struct version {
	const char *controller;	/* what is between two colons in /proc/PID/cgroup */
	const char *root;
	const char *limits[2];
	const char *usage;
	const char *cache;	/* in memory.stat: what is given up where memory is wanted */
};

static const struct version versions[] = {
	{ "0::", CGROUPS, { "memory.max", "memory.high" }, "memory.current", "\ninactive_file " },
	{ ":memory:", CGROUPS "/memory", { "memory.limit_in_bytes", NULL }, "memory.usage_in_bytes",
	  "\ntotal_inactive_file " },
};

static bool read_number(const struct version *version, const char *group, const char *file, uint64_t *value)
{
	char path[1200], text[64], *end;

	snprintf(path, sizeof(path), "%s%s/%s", version->root, group, file);
	if (!kernel_read_text(path, text, sizeof(text)))
		return false;
	*value = strtoull(text, &end, 10);
	return end != text;	/* "max" is no limit */
}

static uint64_t cache_of(const struct version *version, const char *group)
{
	char path[1200], text[8192];
	const char *at;

	snprintf(path, sizeof(path), "%s%s/memory.stat", version->root, group);
	at = kernel_read_text(path, text, sizeof(text)) ? strstr(text, version->cache) : NULL;
	return at ? strtoull(at + strlen(version->cache), NULL, 10) : 0;
}

/* Less than *@bytes: then that is what there is, and @what says where. */
static void look_at(const struct version *version, const char *group, uint64_t *bytes, char *what, size_t size)
{
	for (unsigned int i = 0; i < 2; i++) {
		uint64_t limit, usage, cache, room;

		if (!version->limits[i] || !read_number(version, group, version->limits[i], &limit) ||
		    limit >= NO_LIMIT || !read_number(version, group, version->usage, &usage))
			continue;
		/* It can only be more, and to ask takes the kernel a while. */
		if (limit > usage && limit - usage > KERNEL_MARGIN && limit - usage - KERNEL_MARGIN >= *bytes)
			continue;
		cache = cache_of(version, group);
		usage -= cache < usage ? cache : usage;
		room = limit > usage + KERNEL_MARGIN ? limit - usage - KERNEL_MARGIN : 0;
		if (room >= *bytes)
			continue;
		*bytes = room;
		snprintf(what, size, "memory cgroup %s (%s)", *group ? group : "/", version->limits[i]);
	}
}

/* Its group and all above it. */
static void walk(const struct version *version, char *group, uint64_t *bytes, char *what, size_t size)
{
	for (char *slash = group + strlen(group); slash; slash = strrchr(group, '/')) {
		*slash = '\0';
		look_at(version, group, bytes, what, size);
	}
}

void kernel_room(pid_t pid, uint64_t *bytes, char *what, size_t size)
{
	char text[4096], path[32] = "/proc/self/cgroup", *group;
	uint64_t have;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/cgroup", pid);
	*bytes = UINT64_MAX;
	snprintf(what, size, "this machine");
	if (kernel_read_text("/proc/meminfo", text, sizeof(text))) {
		have = kernel_field(text, "MemAvailable:");
		*bytes = have > KERNEL_MARGIN ? have - KERNEL_MARGIN : 0;
	}
	for (unsigned int i = 0; i < 2; i++) {
		if (!kernel_read_text(path, text, sizeof(text)))
			return;
		group = strstr(text, versions[i].controller);
		if (!group)
			continue;
		group += strlen(versions[i].controller);
		group[strcspn(group, "\n")] = '\0';
		walk(&versions[i], strcmp(group, "/") ? group : group + 1, bytes, what, size);
	}
}
