/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * nodes.c - memory nodes: which there are, what can be had on one, and where
 * the pages of a mapping's file are to lie. Asked anew each time: memory comes and
 * goes (dax_kmem, CXL), and libnuma looks once, when it is loaded.
 *
 * Any thread. What can fail: a kernel without NUMA, and a seccomp filter (as
 * containers have it) that forbids mbind() and get_mempolicy().
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <numaif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "layout.h"
#include "private.h"

#define NODES_MAX	(HMM_NODE_WORDS * 64)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

bool kernel_read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, text, size - 1);
	close(fd);
	if (n < 0)
		return false;
	text[n] = '\0';
	return true;
}

/* "0-1,3" as sysfs writes it. */
static void parse_list(const char *text, uint64_t *nodes)
{
	char *end;

	memset(nodes, 0, HMM_NODE_WORDS * sizeof(*nodes));
	for (;; text = end + 1) {
		unsigned long first = strtoul(text, &end, 10), last = first;

		if (end == text)
			return;
		if (*end == '-')
			last = strtoul(end + 1, &end, 10);
		for (; first <= last && first < NODES_MAX; first++)
			nodes[first / 64] |= 1ULL << (first % 64);
		if (*end != ',')
			return;
	}
}

int kernel_nodes(uint64_t *nodes)
{
	uint64_t memory[HMM_NODE_WORDS];
	char text[1024];

	memset(nodes, 0, HMM_NODE_WORDS * sizeof(*nodes));
	if (get_mempolicy(NULL, nodes, NODES_MAX, NULL, MPOL_F_MEMS_ALLOWED) < 0)
		return -errno;
	if (!kernel_read_text("/sys/devices/system/node/has_memory", text, sizeof(text)))
		return 0;
	parse_list(text, memory);
	for (unsigned int i = 0; i < HMM_NODE_WORDS; i++)
		nodes[i] &= memory[i];
	return 0;
}

unsigned int kernel_count_nodes(void)
{
	uint64_t nodes[HMM_NODE_WORDS];
	unsigned int count = 0;

	if (kernel_nodes(nodes))
		return 1;
	for (unsigned int i = 0; i < HMM_NODE_WORDS; i++)
		count += (unsigned int)__builtin_popcountll(nodes[i]);
	return count;
}

uint64_t kernel_field(const char *text, const char *name)
{
	const char *at = strstr(text, name);

	return at ? strtoull(at + strlen(name), NULL, 10) << 10 : 0;
}

int kernel_node_free(unsigned int node, uint64_t *bytes)
{
	char path[64], text[4096];
	uint64_t have, cache, dirty, reserve = 0;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%u/meminfo", node);
	if (!kernel_read_text(path, text, sizeof(text)))
		return -ENOENT;
	have = kernel_field(text, " MemFree:");
	cache = kernel_field(text, " Active(file):") + kernel_field(text, " Inactive(file):");
	dirty = kernel_field(text, " Dirty:") + kernel_field(text, " Writeback:");
	/* Half of the cache that is clean: some of it is in use, and comes back. */
	have += cache > dirty ? (cache - dirty) / 2 : 0;
	if (kernel_read_text("/proc/sys/vm/min_free_kbytes", text, sizeof(text)))
		reserve = strtoull(text, NULL, 10) << 10;
	reserve += KERNEL_MARGIN;
	*bytes = have > reserve ? have - reserve : 0;
	return 0;
}

int kernel_node_huge(unsigned int node, uint64_t *pages)
{
	char path[96], text[32];

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%u/hugepages/hugepages-2048kB/nr_hugepages", node);
	if (!kernel_read_text(path, text, sizeof(text)))
		return -ENOENT;
	*pages = strtoull(text, NULL, 10);
	return 0;
}

int kernel_node_size(unsigned int node, uint64_t *bytes)
{
	char path[64], text[4096];

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%u/meminfo", node);
	if (!kernel_read_text(path, text, sizeof(text)))
		return -ENOENT;
	*bytes = kernel_field(text, " MemTotal:");
	return 0;
}

/* ---- dax ----------------------------------------------------------------------------- */

#define DAX_DEVICES "/sys/bus/dax/devices"

static long read_number(const char *device, const char *name)
{
	char path[320], text[32];

	snprintf(path, sizeof(path), DAX_DEVICES "/%s/%s", device, name);
	return kernel_read_text(path, text, sizeof(text)) ? strtol(text, NULL, 10) : -1;
}

static bool is_memory(const char *device)
{
	char path[320], driver[256];
	ssize_t n;

	snprintf(path, sizeof(path), DAX_DEVICES "/%s/driver", device);
	n = readlink(path, driver, sizeof(driver) - 1);
	if (n <= 0)
		return false;
	driver[n] = '\0';
	return strcmp(basename(driver), "kmem") == 0;
}

int kernel_dax_nodes(uint64_t *nodes, unsigned int *others)
{
	/* What dax devices have brought to each node. */
	uint64_t brought[NODES_MAX] = { 0 }, there[HMM_NODE_WORDS], size;
	struct dirent *entry;
	int count = 0, r = kernel_nodes(there);
	DIR *devices;

	memset(nodes, 0, HMM_NODE_WORDS * sizeof(*nodes));
	*others = 0;
	if (r)
		return r;
	devices = opendir(DAX_DEVICES);
	if (!devices)
		return errno == ENOENT ? 0 : -errno;
	while ((entry = readdir(devices))) {
		long node;

		if (entry->d_name[0] == '.')
			continue;
		node = read_number(entry->d_name, "target_node");
		if (node >= 0 && node < (long)NODES_MAX && is_memory(entry->d_name))
			brought[node] += (uint64_t)read_number(entry->d_name, "size");
		else
			++*others;
	}
	closedir(devices);
	for (unsigned int node = 0; node < NODES_MAX; node++) {
		if (!brought[node] || !(there[node / 64] >> (node % 64) & 1) || kernel_node_size(node, &size))
			continue;
		if (size > brought[node]) {
			++*others;
			continue;
		}
		nodes[node / 64] |= 1ULL << (node % 64);
		count++;
	}
	return count;
}

/* ---- placing ---------------------------------------------------------------------------- */

int kernel_place(void *start, size_t length, int policy, const uint64_t *nodes)
{
	return mbind(start, length, policy, nodes, NODES_MAX + 1, 0) < 0 ? -errno : 0;
}

/* What numactl(8) gave hmmd, and each thread has from the one that started it. */
static __thread struct {
	bool known;
	int policy;
	unsigned long nodes[HMM_NODE_WORDS];
} own;

static int follow(int policy, const unsigned long *nodes)
{
	static const unsigned long none[HMM_NODE_WORDS];
	bool any = memcmp(nodes, none, sizeof(none));

	return set_mempolicy(policy, any ? nodes : NULL, any ? NODES_MAX + 1 : 0) < 0 ? -errno : 0;
}

int kernel_policy(int policy, uint64_t nodes)
{
	const unsigned long mask[HMM_NODE_WORDS] = { nodes };

	if (!own.known && get_mempolicy(&own.policy, own.nodes, NODES_MAX, NULL, 0) < 0)
		own.policy = MPOL_DEFAULT;
	own.known = true;
	if (policy != MPOL_DEFAULT)
		return follow(policy, mask);
	/* What it had may not be had any more: then none, but nobody else's. */
	return follow(own.policy, own.nodes) ? follow(MPOL_DEFAULT, mask) : 0;
}

int kernel_lock(void *start, size_t length)
{
	return mlock2(start, length, MLOCK_ONFAULT) < 0 ? -errno : 0;
}

int kernel_populate(void *start, size_t length)
{
	return madvise(start, length, MADV_POPULATE_WRITE) < 0 ? -errno : 0;
}
