// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * transfer.c - how fast pages move in bulk, to the device and home.
 *
 * Rounds alternate: the mirror moves its memory out, the floor fills as many
 * fresh bytes of the same pool; the mirror moves it home, the floor fills fresh
 * anonymous memory; and every other round the floor goes first. One thread of
 * this program; the mirror's copies are made by the library's agent. What the
 * thread that copies (the agent, or this one for the floor) waited for a
 * processor is other programs' doing and not counted, on neither side.
 */
#include <errno.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench/rig/rig.h"

struct floor {
	const char *source;	/* resident */
	size_t bytes;
	const char *pool;
	char *shadow;		/* what the way out filled last */
	bool huge;
};

static double fill_by_pwrite(struct floor *floor, int fd)
{
	double start = now_served();

	for (size_t at = 0; at < floor->bytes; at += BLOCK)
		if (pwrite(fd, floor->source + at, BLOCK, (off_t)at) != (ssize_t)BLOCK)
			fail("pwrite: %s", strerror(errno));
	return now_served() - start;
}

static double floor_out(struct floor *floor)
{
	bool hugetlb = !strcmp(floor->pool, "hugetlb");
	int fd = (int)syscall(SYS_memfd_create, "floor",
			      MFD_CLOEXEC | (hugetlb ? MFD_HUGETLB | 21U << MFD_HUGE_SHIFT : 0));
	double start, took;

	if (floor->shadow)
		munmap(floor->shadow, floor->bytes);
	if (fd < 0 || ftruncate(fd, (off_t)floor->bytes) < 0)
		fail("memfd: %s", strerror(errno));
	floor->shadow = mmap(NULL, floor->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (floor->shadow == MAP_FAILED)
		fail("%s: %s", floor->pool, strerror(errno));
	if (!strcmp(floor->pool, "memfd")) {
		took = fill_by_pwrite(floor, fd);
	} else {
		if (!hugetlb)
			madvise(floor->shadow, floor->bytes, MADV_HUGEPAGE);
		start = now_served();
		memcpy(floor->shadow, floor->source, floor->bytes);
		took = now_served() - start;
		if (!hugetlb && memory_field(floor->shadow, floor->bytes, "ShmemPmdMapped:") != floor->bytes)
			fail("shmem does not give huge pages: is shmem_enabled 'advise'?");
	}
	close(fd);
	return took;
}

static double floor_home(struct floor *floor)
{
	char *room = mmap(NULL, floor->bytes + BLOCK, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *memory = (char *)(((unsigned long)room + BLOCK - 1) & ~(BLOCK - 1));
	double start, took;

	if (room == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	madvise(memory, floor->bytes, floor->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	start = now_served();
	memcpy(memory, floor->shadow, floor->bytes);
	took = now_served() - start;
	munmap(room, floor->bytes + BLOCK);
	return took;
}

static double ours(struct mirrored *mirrored, pid_t agent, char *memory, size_t bytes,
		   enum hmm_target target)
{
	double off = waited(agent), start = now();

	move_all(mirrored, memory, bytes, target);
	return now() - start - (waited(agent) - off);
}

int main(int argc, char **argv)
{
	struct figures out = { .unit = "MB/s" }, home = { .unit = "MB/s" };
	struct arguments arguments;
	struct mirrored mirrored;
	struct floor floor = { 0 };
	char *memory, note[128], row[2][64];
	double huge_home = 0;
	pid_t agent;

	arguments_read(&arguments, argc, argv);
	warm_up(arguments.bytes * 5);
	memory = memory_new(arguments.bytes, arguments.huge);
	floor.source = memory_new(arguments.bytes, true);
	floor.bytes = arguments.bytes;
	floor.pool = arguments.pool;
	floor.huge = arguments.huge;
	mirrored_open(&mirrored, arguments.bytes);
	agent = library_thread("hmm-agent");
	if (!agent)
		fail("the library has no agent");

	/* The first round warms up what both will use again. */
	for (unsigned int round = 0; round <= arguments.rounds; round++) {
		double mine[2], bare[2];
		bool floor_first = round & 1;

		if (floor_first)
			bare[0] = floor_out(&floor);
		mine[0] = ours(&mirrored, agent, memory, arguments.bytes, HMM_DEVICE);
		if (!floor_first)
			bare[0] = floor_out(&floor);
		if (floor_first)
			bare[1] = floor_home(&floor);
		mine[1] = ours(&mirrored, agent, memory, arguments.bytes, HMM_SYSTEM);
		if (!floor_first)
			bare[1] = floor_home(&floor);
		memory_compare(memory, arguments.bytes, 0);
		if (!round)
			continue;
		figures_add(&out, (double)arguments.bytes / mine[0] / 1e6,
			    (double)arguments.bytes / bare[0] / 1e6);
		figures_add(&home, (double)arguments.bytes / mine[1] / 1e6,
			    (double)arguments.bytes / bare[1] / 1e6);
	}
	huge_home = (double)memory_field(memory, arguments.bytes, "AnonHugePages:") / (double)arguments.bytes;
	mirrored_close(&mirrored);

	snprintf(note, sizeof(note), "\"MiB\": %zu, \"huge_after\": %.2f", arguments.bytes / MIB, huge_home);
	snprintf(row[0], sizeof(row[0]), "to-device-%s%s", arguments.pool, arguments.huge ? "" : "-from-4k");
	snprintf(row[1], sizeof(row[1]), "home-%s%s", arguments.pool, arguments.huge ? "" : "-to-4k");
	out.row = row[0];
	home.row = row[1];
	figures_print(&out, note);
	figures_print(&home, note);
	return 0;
}
