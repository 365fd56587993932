// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * restart.c - the longest pause of an owner's thread when hmmd is killed and another is started at once. (--hmmd PID: the first.)
 *
 * Sixteen processes share --mib of memory on the device. Then each has a thread that touches a block every now and then, in random
 * order, each with a fault: those that come while there is no hmmd wait for the next. Meanwhile hmmd is killed by SIGKILL and
 * started again; ours is the longest that anybody waited for one touch, in ms, and the floor is what fork and exec of an hmmd without
 * any state take until it says READY. Afterwards every page is compared.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/rig/rig.h"

#define CLIENTS		16U
#define TOUCHING	1.5	/* seconds */
#define BEFORE_US	200000	/* so long they touch before it is killed */

static volatile uint64_t *block_word(char *memory, uint32_t block)
{
	return (volatile uint64_t *)(memory + block * BLOCK);
}

/* The longest touch, in seconds. */
static double touch(char *memory, size_t bytes, const uint32_t *order)
{
	uint32_t blocks = (uint32_t)(bytes / BLOCK);
	double start = now(), longest = 0, began;

	for (uint32_t i = 0; i < blocks; i++) {
		while (now() < start + TOUCHING * i / blocks)
			usleep(500);
		began = now();
		if (*block_word(memory, order[i]) != (uint64_t)order[i] * (BLOCK / PAGE))
			fail("a block has another's bytes");
		if (now() - began > longest)
			longest = now() - began;
	}
	return longest;
}

static size_t share(const struct arguments *arguments)
{
	return arguments->bytes / CLIENTS / BLOCK * BLOCK;
}

static void client(int socket, const void *data)
{
	const struct arguments *arguments = data;
	size_t bytes = share(arguments);
	struct mirrored mirrored;
	char *memory = memory_new(bytes, arguments->huge);
	uint32_t *order = permutation((uint32_t)(bytes / BLOCK), (uint64_t)getpid());

	memory_mark(memory, bytes, 0);
	mirrored_open(&mirrored, bytes);
	for (;;) {
		move_all(&mirrored, memory, bytes, HMM_DEVICE);
		word_send(socket, 0, -1);
		if (word_wait(socket, NULL) < 0)
			break;
		word_send(socket, touch(memory, bytes, order), -1);
		memory_compare(memory, bytes, 0);
	}
	mirrored_close(&mirrored);
	exit(0);
}

int main(int argc, char **argv)
{
	struct figures figures = { .row = "restart-pause", .unit = "ms" };
	struct arguments arguments;
	int sockets[CLIENTS], status;
	struct hmmd hmmd, bare;
	char note[64], path[108];

	arguments_read(&arguments, argc, argv);
	if (!arguments.hmmd)
		fail("--hmmd PID is needed");
	hmmd_adopt(&hmmd, arguments.hmmd);
	bare = hmmd;
	snprintf(path, sizeof(path), "%s.bare", getenv("HMM_SOCKET"));
	for (unsigned int i = 0; i < CLIENTS; i++)
		process_start(client, &arguments, &sockets[i]);
	for (unsigned int round = 0; round <= arguments.rounds; round++) {
		double ours = 0, floor;

		for (unsigned int i = 0; i < CLIENTS; i++)
			word_wait(sockets[i], NULL);
		floor = hmmd_start(&bare, path);
		hmmd_end(&bare, SIGTERM);
		for (unsigned int i = 0; i < CLIENTS; i++)
			word_send(sockets[i], 1, -1);
		usleep(BEFORE_US);
		hmmd_end(&hmmd, SIGKILL);
		hmmd_start(&hmmd, NULL);
		for (unsigned int i = 0; i < CLIENTS; i++) {
			double longest = word_wait(sockets[i], NULL);

			ours = longest > ours ? longest : ours;
		}
		if (round)
			figures_add(&figures, ours * 1e3, floor * 1e3);
	}
	for (unsigned int i = 0; i < CLIENTS; i++) {
		word_wait(sockets[i], NULL);
		word_send(sockets[i], -1, -1);
	}
	for (unsigned int i = 0; i < CLIENTS; i++)
		if (wait(&status) < 0 || status)
			fail("a client ended with status %#x", (unsigned int)status);
	hmmd_end(&hmmd, SIGTERM);
	snprintf(note, sizeof(note), "\"MiB\": %zu, \"clients\": %u", CLIENTS * share(&arguments) / MIB, CLIENTS);
	figures_print(&figures, note);
	return 0;
}
