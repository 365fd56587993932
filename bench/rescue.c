// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * rescue.c - how long an owner's library takes to bring all home by itself, once it has waited for another hmmd for as long as
 * it should. (--hmmd PID: the first hmmd.)
 *
 * When the last hmmd went, how long that is, and when everything is home the library tells (hmm_set_log). The floor is a memcpy of
 * as much, from memory that is there, into fresh memory.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/rig/rig.h"

/* Written by a thread of the library, read when `home` is not 0. */
static struct {
	double gone, grace;
	double home;
} told;

static void hear(void *data, int level, const char *text)
{
	unsigned int ms;

	if (sscanf(text, "hmmd is gone; waiting %u ms", &ms) == 1) {
		told.gone = now();
		told.grace = ms / 1e3;
	} else if (strstr(text, "pages brought home")) {
		double at = now();

		__atomic_store(&told.home, &at, __ATOMIC_RELEASE);
	}
}

static double ours(struct hmmd *hmmd, char *memory, size_t bytes)
{
	struct mirrored mirrored;
	double home = 0;

	mirrored_open(&mirrored, bytes);
	move_all(&mirrored, memory, bytes, HMM_DEVICE);
	__atomic_store(&told.home, &home, __ATOMIC_RELAXED);
	hmmd_end(hmmd, SIGKILL);
	while (__atomic_load(&told.home, &home, __ATOMIC_ACQUIRE), home == 0)
		usleep(1000);
	memory_compare(memory, bytes, 7);
	hmm_mirror_unregister(&mirrored.mirror);
	hmm_device_put(mirrored.mirror.device);
	hmm_close(mirrored.hmm);
	hmmd_start(hmmd, NULL);
	return home - told.gone - told.grace;
}

static double floor_of(const char *memory, size_t bytes)
{
	double start;
	char *fresh = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (fresh == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	start = now();
	memcpy(fresh, memory, bytes);
	start = now() - start;
	memory_compare(fresh, bytes, 7);
	munmap(fresh, bytes);
	return start;
}

int main(int argc, char **argv)
{
	struct figures figures = { .row = "rescue", .unit = "ms" };
	struct arguments arguments;
	struct hmmd hmmd;
	char *memory, note[64];

	arguments_read(&arguments, argc, argv);
	if (!arguments.hmmd)
		fail("--hmmd PID is needed");
	hmmd_adopt(&hmmd, arguments.hmmd);
	hmm_set_log(hear, NULL);
	warm_up(arguments.bytes * 3);
	for (unsigned int round = 0; round <= arguments.rounds; round++) {
		double a, b;

		/* What came home is pages of 4 KiB: each round begins with the same memory. */
		memory = memory_new(arguments.bytes, arguments.huge);
		memory_mark(memory, arguments.bytes, 7);
		b = floor_of(memory, arguments.bytes);
		a = ours(&hmmd, memory, arguments.bytes);
		munmap(memory, arguments.bytes);
		if (round)
			figures_add(&figures, a * 1e3, b * 1e3);
	}
	hmmd_end(&hmmd, SIGTERM);
	snprintf(note, sizeof(note), "\"MiB\": %zu", arguments.bytes / MIB);
	figures_print(&figures, note);
	return 0;
}
