// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * chase.c - a driver follows the owner's pointers through a window while the
 * pages are on the device, beside the owner doing the same at home.
 *
 * The owner builds two equal chains of pointers, one cache line each, in random
 * order over all its memory. One goes to the device: the driver, another
 * process, walks it once (the pages get mapped) and is then timed. The other
 * stays: the owner is timed on it. Both run on the same processor, in turn.
 */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/rig/rig.h"

#define LINE	64UL
#define OUT_ROOM	0x200000000000UL
#define OUT_AT		(OUT_ROOM + BLOCK)
#define HOME_ROOM	0x300000000000UL
#define STEPS	500000UL

static void chain_build(char *memory, size_t bytes)
{
	uint32_t n = (uint32_t)(bytes / LINE), *order = permutation(n, 7);

	for (uint32_t i = 0; i < n; i++)
		*(char **)(memory + order[i] * LINE) = memory + order[(i + 1) % n] * LINE;
	free(order);
}

/* Nanoseconds a step. */
static double chase(char **from, unsigned long steps)
{
	char *volatile end;
	char *at = (char *)from;
	double start = now_served();

	for (unsigned long i = 0; i < steps; i++)
		at = *(char **)at;
	end = at;
	(void)end;
	return (now_served() - start) * 1e9 / (double)steps;
}

static void touch_all(const char *memory, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += PAGE)
		(void)*(const volatile char *)(memory + at);
}

static void driver(int socket, const void *data)
{
	const struct arguments *arguments = data;
	static const struct hmm_mirror_ops no_ops = { .size = sizeof(no_ops) };
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "bench-chase", .memory = arguments->bytes, .node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};
	struct hmm_mirror mirror = { .ops = &no_ops };
	struct mirrored mirrored;
	struct hmm_window *window;
	int key;

	word_wait(socket, &key);
	hmm_check(hmm_open_peer(key, NULL, &mirrored.hmm), "hmm_open_peer");
	hmm_check(hmm_device_new(mirrored.hmm, &options, &mirror.device), "hmm_device_new");
	hmm_check(hmm_mirror_register(&mirror, mirrored.hmm), "hmm_mirror_register");
	mirrored.mirror = mirror;
	hmm_check(hmm_window_map(&mirrored.mirror, OUT_AT, arguments->bytes, 0, &window), "hmm_window_map");
	move_all(&mirrored, (void *)OUT_AT, arguments->bytes, HMM_DEVICE);
	pin(arguments->fault_cpu);
	touch_all((const char *)OUT_AT, arguments->bytes);
	chase((char **)OUT_AT, arguments->bytes / LINE);
	word_send(socket, (double)memory_field((void *)OUT_AT, arguments->bytes, "ShmemPmdMapped:"), -1);
	while (word_wait(socket, NULL) > 0)
		word_send(socket, chase((char **)OUT_AT, STEPS), -1);
	hmm_window_unmap(window);
	mirrored_close(&mirrored);
	exit(EXIT_SUCCESS);
}

int main(int argc, char **argv)
{
	struct figures figures = { .unit = "ns" };
	struct arguments arguments;
	char *home, *out, note[128];
	double huge;
	struct hmm *hmm;
	int socket, key;

	arguments_read(&arguments, argc, argv);
	warm_up(arguments.bytes * 3);
	process_start(driver, &arguments, &socket);
	out = memory_at(OUT_ROOM, arguments.bytes, arguments.huge);
	home = memory_at(HOME_ROOM, arguments.bytes, arguments.huge);
	chain_build(out, arguments.bytes);
	chain_build(home, arguments.bytes);
	hmm_check(hmm_open(NULL, &hmm), "hmm_open");
	key = hmm_export(hmm);
	hmm_check(key, "hmm_export");
	word_send(socket, 0, key);
	close(key);
	pin(arguments.fault_cpu);
	chase((char **)home, arguments.bytes / LINE);
	huge = word_wait(socket, NULL);

	for (unsigned int round = 0; round <= arguments.rounds; round++) {
		double ours, floor;

		word_send(socket, 1, -1);
		ours = word_wait(socket, NULL);
		floor = chase((char **)home, STEPS);
		if (round)
			figures_add(&figures, ours, floor);
	}
	word_send(socket, 0, -1);
	wait(NULL);
	hmm_close(hmm);
	figures.row = arguments.huge ? "chase-huge" : "chase-4k";
	snprintf(note, sizeof(note), "\"MiB\": %zu, \"window_huge\": %.2f", arguments.bytes / MIB,
		 huge / (double)arguments.bytes);
	figures_print(&figures, note);
	return 0;
}
