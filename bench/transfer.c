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

/* Seconds: as a clock shows them, and less what the copying thread waited for a processor. */
struct took {
	double wall, served;
};

struct floor {
	const char *source;	/* resident */
	size_t bytes;
	const char *pool;
	char *shadow;		/* what the way out filled last */
	bool huge;
};

static void fill_by_pwrite(struct floor *floor, int fd)
{

	for (size_t at = 0; at < floor->bytes; at += BLOCK)
		if (pwrite(fd, floor->source + at, BLOCK, (off_t)at) != (ssize_t)BLOCK)
			fail("pwrite: %s", strerror(errno));
}

static struct took begin(pid_t thread)
{
	double off = waited(thread), start = now();

	return (struct took){ .wall = start, .served = start - off };
}

static struct took end(pid_t thread, struct took begun)
{
	double stop = now(), off = waited(thread);

	return (struct took){ .wall = stop - begun.wall, .served = stop - off - begun.served };
}

static struct took floor_out(struct floor *floor)
{
	bool hugetlb = !strcmp(floor->pool, "hugetlb");
	int fd = (int)syscall(SYS_memfd_create, "floor",
			      MFD_CLOEXEC | (hugetlb ? MFD_HUGETLB | 21U << MFD_HUGE_SHIFT : 0));
	struct took took;

	if (floor->shadow)
		munmap(floor->shadow, floor->bytes);
	if (fd < 0 || ftruncate(fd, (off_t)floor->bytes) < 0)
		fail("memfd: %s", strerror(errno));
	floor->shadow = mmap(NULL, floor->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (floor->shadow == MAP_FAILED)
		fail("%s: %s", floor->pool, strerror(errno));
	if (!strcmp(floor->pool, "memfd")) {
		took = begin(gettid());
		fill_by_pwrite(floor, fd);
		took = end(gettid(), took);
	} else {
		if (!hugetlb)
			madvise(floor->shadow, floor->bytes, MADV_HUGEPAGE);
		took = begin(gettid());
		memcpy(floor->shadow, floor->source, floor->bytes);
		took = end(gettid(), took);
		if (!hugetlb && memory_field(floor->shadow, floor->bytes, "ShmemPmdMapped:") != floor->bytes)
			fail("shmem does not give huge pages: is shmem_enabled 'advise'?");
	}
	close(fd);
	return took;
}

static struct took floor_home(struct floor *floor)
{
	char *room = mmap(NULL, floor->bytes + BLOCK, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *memory = (char *)(((unsigned long)room + BLOCK - 1) & ~(BLOCK - 1));
	struct took took;

	if (room == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	madvise(memory, floor->bytes, floor->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	took = begin(gettid());
	memcpy(memory, floor->shadow, floor->bytes);
	took = end(gettid(), took);
	munmap(room, floor->bytes + BLOCK);
	return took;
}

static struct took ours(struct mirrored *mirrored, pid_t agent, char *memory, size_t bytes,
			enum hmm_target target)
{
	struct took took = begin(agent);

	move_all(mirrored, memory, bytes, target);
	return end(agent, took);
}

static void add(struct figures *figures, struct figures *wall, size_t bytes, struct took mine,
		struct took bare)
{
	double megabytes = (double)bytes / 1e6;

	figures_add(figures, megabytes / mine.served, megabytes / bare.served);
	figures_add(wall, megabytes / mine.wall, megabytes / bare.wall);
}

static void print(struct figures *figures, const struct figures *wall, size_t bytes, double huge)
{
	double ratios[sizeof(wall->ours) / sizeof(wall->ours[0])];
	char note[160];

	for (unsigned int i = 0; i < wall->count; i++)
		ratios[i] = wall->ours[i] / wall->floor[i];
	snprintf(note, sizeof(note), "\"MiB\": %zu, \"huge_after\": %.2f, \"wall_ratio\": %.3f",
		 bytes / MIB, huge, quantile(ratios, wall->count, 0.5));
	figures_print(figures, note);
}

int main(int argc, char **argv)
{
	static struct figures out_wall, home_wall;
	struct figures out = { .unit = "MB/s" }, home = { .unit = "MB/s" };
	struct arguments arguments;
	struct mirrored mirrored;
	struct floor floor = { 0 };
	char *memory, row[2][64];
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
		struct took mine[2], bare[2];
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
		add(&out, &out_wall, arguments.bytes, mine[0], bare[0]);
		add(&home, &home_wall, arguments.bytes, mine[1], bare[1]);
	}
	huge_home = (double)memory_field(memory, arguments.bytes, "AnonHugePages:") / (double)arguments.bytes;
	mirrored_close(&mirrored);

	snprintf(row[0], sizeof(row[0]), "to-device-%s%s", arguments.pool, arguments.huge ? "" : "-from-4k");
	snprintf(row[1], sizeof(row[1]), "home-%s%s", arguments.pool, arguments.huge ? "" : "-to-4k");
	out.row = row[0];
	home.row = row[1];
	print(&out, &out_wall, arguments.bytes, huge_home);
	print(&home, &home_wall, arguments.bytes, huge_home);
	return 0;
}
