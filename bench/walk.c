// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * walk.c - a sequential walk over memory that is on the device, beside the bare
 * handler serving one page at a time and 512 pages at a time.
 *
 * Each round walks three times, one 8-byte load a page, every time over memory
 * that was just taken away. One thread.
 */
#include <stdlib.h>

#include "bench/rig/rig.h"

static double walk(const volatile char *memory, size_t bytes)
{
	double start;

	warm_up(bytes);
	start = now();
	for (size_t at = 0; at < bytes; at += PAGE)
		if (*(const volatile uint64_t *)(memory + at) != at / PAGE)
			fail("page %zu has wrong bytes", at / PAGE);
	return (double)(bytes / PAGE) / (now() - start);
}

int main(int argc, char **argv)
{
	struct figures one = { .row = "walk-1", .unit = "pages/s" };
	struct figures around = { .row = "walk-512", .unit = "pages/s" };
	struct arguments arguments;
	struct mirrored mirrored;
	struct handler handler;
	char *memory, note[64];

	arguments_read(&arguments, argc, argv);
	warm_up(arguments.bytes * 4);
	handler_start(&handler, arguments.bytes, arguments.handler_cpu, arguments.spin_us);
	memory = memory_new(arguments.bytes, arguments.huge);
	mirrored_open(&mirrored, arguments.bytes);
	pin(arguments.fault_cpu);
	for (unsigned int round = 0; round <= arguments.rounds; round++) {
		double ours, floor[2];

		move_all(&mirrored, memory, arguments.bytes, HMM_DEVICE);
		handler_reset(&handler, 512);
		floor[1] = walk(handler.range, arguments.bytes);
		ours = walk(memory, arguments.bytes);
		handler_reset(&handler, 1);
		floor[0] = walk(handler.range, arguments.bytes);
		if (!round)
			continue;
		figures_add(&one, ours, floor[0]);
		figures_add(&around, ours, floor[1]);
	}
	mirrored_close(&mirrored);
	handler_stop(&handler);
	snprintf(note, sizeof(note), "\"MiB\": %zu", arguments.bytes / MIB);
	figures_print(&one, note);
	figures_print(&around, note);
	return 0;
}
