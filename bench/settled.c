// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * settled.c - a program after everything it has went to the device and came
 * home once, beside the same program that never heard of hmmd.
 *
 * Two processes run the same work on the same processor, in turn: look-ups in a
 * hash table of malloc memory, and allocation churn from 16 bytes to 1 MiB, so
 * that the heap grows, shrinks and maps. One of them opened hmmd before and
 * sent every private mapping out and home.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "bench/rig/rig.h"

#define BUCKETS		(1U << 18)
#define LIVE		4096U
#define LOOKUPS		200000U
#define CHURN		20000U

struct node {
	struct node *next;
	uint64_t key;
	char payload[];
};

struct program {
	struct node **bucket;
	uint32_t nodes;
	void *live[LIVE];
	uint64_t random, sum;
};

static void node_add(struct program *program, uint64_t key)
{
	size_t size = 32 + random_next(&program->random) % 450;
	struct node *node = malloc(sizeof(*node) + size), **bucket;

	if (!node)
		fail("out of memory");
	bucket = &program->bucket[key * 0x9e3779b97f4a7c15 >> 46];
	node->key = key;
	node->next = *bucket;
	memset(node->payload, (int)key, size);
	*bucket = node;
}

static void build(struct program *program, size_t bytes)
{
	program->random = 3;
	program->bucket = calloc(BUCKETS, sizeof(*program->bucket));
	if (!program->bucket)
		fail("out of memory");
	program->nodes = (uint32_t)(bytes / 280);
	for (uint32_t i = 0; i < program->nodes; i++)
		node_add(program, i);
}

static void lookups(struct program *program)
{
	for (unsigned int i = 0; i < LOOKUPS; i++) {
		uint64_t key = random_next(&program->random) % program->nodes;
		struct node *node = program->bucket[key * 0x9e3779b97f4a7c15 >> 46];

		while (node && node->key != key)
			node = node->next;
		if (!node)
			fail("a node is lost");
		program->sum += (uint64_t)node->payload[0]++;
	}
}

static size_t churn_size(uint64_t random)
{
	if (random % 64)
		return 16 + random / 64 % 1000;
	if (random / 64 % 32)
		return 4096 + random / 4096 % 60000;
	return 128 * 1024 + random / 4096 % 900000;
}

static void churn(struct program *program)
{
	for (unsigned int i = 0; i < CHURN; i++) {
		uint64_t random = random_next(&program->random);
		void **place = &program->live[random % LIVE];
		size_t size = churn_size(random / LIVE);

		free(*place);
		*place = malloc(size);
		if (!*place)
			fail("out of memory");
		memset(*place, 1, size);
	}
}

static double work(struct program *program)
{
	double start = now_served();

	lookups(program);
	churn(program);
	return (now_served() - start) * 1e3;
}

/* Every private writable mapping; what may not leave is left alone by hmmd. */
static unsigned long move_everything(struct hmm_mirror *mirror, enum hmm_target target)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long moved = 0;
	unsigned long range[512][2];
	unsigned int n = 0;
	char line[512], rights[8];

	if (!maps)
		fail("/proc/self/maps: %s", strerror(errno));
	while (n < 512 && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %7s", &range[n][0], &range[n][1], rights) == 3 &&
		    !strcmp(rights, "rw-p"))
			n++;
	fclose(maps);
	for (unsigned int i = 0; i < n; i++) {
		struct hmm_migrate_report report = { 0 };

		if (hmm_migrate(mirror, range[i][0], range[i][1] - range[i][0], target, 0, NULL, &report) >= 0)
			moved += report.moved;
	}
	return moved;
}

struct run {
	struct arguments arguments;
	bool mirrored_once;
};

static void run_program(int socket, const void *data)
{
	const struct run *run = data;
	const struct arguments *arguments = &run->arguments;
	static struct program program;
	struct mirrored mirrored;

	build(&program, arguments->bytes);
	work(&program);
	if (run->mirrored_once) {
		unsigned long out, home;

		mirrored_open(&mirrored, arguments->bytes * 2);
		out = move_everything(&mirrored.mirror, HMM_DEVICE);
		home = move_everything(&mirrored.mirror, HMM_SYSTEM);
		if (out < arguments->bytes / PAGE / 10 * 9)
			fail("only %lu pages went out and %lu came home", out, home);
	}
	pin(arguments->fault_cpu);
	work(&program);
	word_send(socket, 0, -1);
	while (word_wait(socket, NULL) > 0)
		word_send(socket, work(&program), -1);
	word_send(socket, (double)program.sum, -1);
	word_send(socket, (double)memory_field(NULL, (size_t)-1, "AnonHugePages:"), -1);
	if (run->mirrored_once)
		mirrored_close(&mirrored);
	exit(EXIT_SUCCESS);
}

static int start_program(const struct arguments *arguments, bool mirrored_once)
{
	const struct run run = { *arguments, mirrored_once };
	int socket;

	process_start(run_program, &run, &socket);
	word_wait(socket, NULL);
	return socket;
}

static double ask(int socket)
{
	word_send(socket, 1, -1);
	return word_wait(socket, NULL);
}

int main(int argc, char **argv)
{
	struct figures figures = { .unit = "ms" };
	struct arguments arguments;
	int ours_socket, floor_socket;
	double ours_sum, floor_sum, ours_huge, floor_huge;
	char note[128];

	arguments_read(&arguments, argc, argv);
	warm_up(arguments.bytes * 4);
	floor_socket = start_program(&arguments, false);
	ours_socket = start_program(&arguments, true);
	for (unsigned int round = 0; round < arguments.rounds; round++) {
		double ours = 0, floor;

		if (round & 1)
			ours = ask(ours_socket);
		floor = ask(floor_socket);
		if (!(round & 1))
			ours = ask(ours_socket);
		figures_add(&figures, ours, floor);
	}
	word_send(ours_socket, 0, -1);
	word_send(floor_socket, 0, -1);
	ours_sum = word_wait(ours_socket, NULL);
	floor_sum = word_wait(floor_socket, NULL);
	if (ours_sum != floor_sum)
		fail("the two programs disagree: %.0f and %.0f", ours_sum, floor_sum);
	ours_huge = word_wait(ours_socket, NULL) / (double)MIB;
	floor_huge = word_wait(floor_socket, NULL) / (double)MIB;
	while (wait(NULL) > 0)
		continue;
	figures.row = arguments.huge ? "settled-huge" : "settled-4k";
	snprintf(note, sizeof(note), "\"huge_MiB_ours\": %.0f, \"huge_MiB_floor\": %.0f", ours_huge, floor_huge);
	figures_print(&figures, note);
	return 0;
}
