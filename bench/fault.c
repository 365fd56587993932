// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fault.c - one CPU fault on a page that is on the device, beside the same
 * fault served by the bare handler.
 *
 * A round takes both memories away, then touches every page once in the same
 * random order, 500 faults of one, 500 of the other, so that both meet the same
 * disturbances; its figures are the quantiles of all its faults. Random order:
 * a walk would be noticed and prefetched. With --threads all threads fault at
 * once and the figure is faults a second, whole rounds in turn.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "bench/rig/rig.h"

#define FAULTS	20000U
#define BATCH	500U

struct run {
	volatile char *memory;
	const uint32_t *order;
	uint32_t first, step, pages;
	int cpu;
	pthread_t thread;
	pthread_barrier_t *start;
};

static void check(uint64_t value, uint32_t page)
{
	if (value != page)
		fail("page %u came home with wrong bytes", page);
}

static double touch(volatile char *memory, uint32_t page)
{
	uint64_t start = now_ns(), value = *(volatile uint64_t *)(memory + page * PAGE), end = now_ns();

	check(value, page);
	return (double)(end - start) / 1e3;
}

/* ---- one at a time ---------------------------------------------------------- */

static void latency(const struct arguments *arguments, struct mirrored *mirrored, char *memory,
		    struct handler *handler, const uint32_t *order)
{
	struct figures middle = { .row = "fault-p50", .unit = "us" };
	struct figures tail = { .row = "fault-p99", .unit = "us" };
	double *ours = calloc(FAULTS, sizeof(*ours)), *floor = calloc(FAULTS, sizeof(*floor));

	if (!ours || !floor)
		fail("out of memory");
	pin(arguments->fault_cpu);
	for (unsigned int round = 0; round <= arguments->rounds; round++) {
		move_all(mirrored, memory, arguments->bytes, HMM_DEVICE);
		handler_reset(handler, 1);
		for (uint32_t first = 0; first < FAULTS; first += BATCH) {
			for (uint32_t i = first; i < first + BATCH; i++)
				ours[i] = touch(memory, order[i]);
			for (uint32_t i = first; i < first + BATCH; i++)
				floor[i] = touch(handler->range, order[i]);
		}
		if (!round)
			continue;
		figures_add(&middle, quantile(ours, FAULTS, 0.5), quantile(floor, FAULTS, 0.5));
		figures_add(&tail, quantile(ours, FAULTS, 0.99), quantile(floor, FAULTS, 0.99));
	}
	pin(-1);
	figures_print(&middle, "\"faults\": 20000");
	figures_print(&tail, "\"faults\": 20000");
	free(ours);
	free(floor);
}

/* ---- many at a time ------------------------------------------------------------ */

static void *run_main(void *argument)
{
	struct run *run = argument;

	pin(run->cpu);
	pthread_barrier_wait(run->start);
	for (uint32_t i = run->first; i < run->pages; i += run->step)
		check(*(volatile uint64_t *)(run->memory + run->order[i] * PAGE), run->order[i]);
	return NULL;
}

static double all_threads(const struct arguments *arguments, volatile char *memory, const uint32_t *order)
{
	pthread_barrier_t barrier;
	struct run run[64];
	double start;

	if (arguments->threads > sizeof(run) / sizeof(run[0]))
		fail("at most 64 threads");
	pthread_barrier_init(&barrier, NULL, arguments->threads + 1);
	for (unsigned int i = 0; i < arguments->threads; i++) {
		run[i] = (struct run){
			.memory = memory, .order = order, .first = i, .step = arguments->threads,
			.pages = FAULTS, .cpu = arguments->fault_cpu, .start = &barrier,
		};
		if (pthread_create(&run[i].thread, NULL, run_main, &run[i]))
			fail("no thread");
	}
	pthread_barrier_wait(&barrier);
	start = now();
	for (unsigned int i = 0; i < arguments->threads; i++)
		pthread_join(run[i].thread, NULL);
	pthread_barrier_destroy(&barrier);
	return FAULTS / (now() - start);
}

static void throughput(const struct arguments *arguments, struct mirrored *mirrored, char *memory,
		       struct handler *handler, const uint32_t *order)
{
	struct figures figures = { .row = "faults-threads", .unit = "1/s" };
	char note[64];

	for (unsigned int round = 0; round <= arguments->rounds; round++) {
		double ours = 0, floor;

		move_all(mirrored, memory, arguments->bytes, HMM_DEVICE);
		handler_reset(handler, 1);
		if (round & 1)
			ours = all_threads(arguments, memory, order);
		floor = all_threads(arguments, handler->range, order);
		if (!(round & 1))
			ours = all_threads(arguments, memory, order);
		if (round)
			figures_add(&figures, ours, floor);
	}
	snprintf(note, sizeof(note), "\"threads\": %u, \"faults\": %u", arguments->threads, FAULTS);
	figures_print(&figures, note);
}

int main(int argc, char **argv)
{
	struct arguments arguments;
	struct mirrored mirrored;
	struct handler handler;
	uint32_t *order;
	char *memory;

	arguments_read(&arguments, argc, argv);
	arguments.bytes = (FAULTS * PAGE + BLOCK - 1) & ~(BLOCK - 1);
	warm_up(arguments.bytes * 6);
	handler_start(&handler, arguments.bytes, arguments.handler_cpu, arguments.spin_us);
	memory = memory_new(arguments.bytes, arguments.huge);
	order = permutation(FAULTS, 1);
	mirrored_open(&mirrored, arguments.bytes);
	if (arguments.threads > 1)
		throughput(&arguments, &mirrored, memory, &handler, order);
	else
		latency(&arguments, &mirrored, memory, &handler, order);
	mirrored_close(&mirrored);
	handler_stop(&handler);
	free(order);
	return 0;
}
