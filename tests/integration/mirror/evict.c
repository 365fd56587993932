/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * evict.c - a device that is smaller than what is wanted on it: the coldest
 * blocks make way, never what may not, and every byte stays what it was.
 *
 * A driver process is this program again, with the owner's key on a descriptor.
 */
#include "mirror.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/wait.h>

#define ROOM_BLOCKS 8UL
#define ROOM (ROOM_BLOCKS * BLOCK)
#define BLOCKS 24UL
#define BLOCK_PAGES 512UL
#define KEY_FD 100

extern char **environ;

static char *blocks;

static char *block_at(size_t n)
{
	return blocks + n * BLOCK;
}

/* BLOCKS blocks of a pattern, none of them on the device. */
static void map_blocks(uint64_t seed)
{
	blocks = test_map_huge(BLOCKS);
	test_fill(blocks, BLOCKS * BLOCK_PAGES, seed);
}

static size_t resident(size_t n)
{
	return test_device_pages(block_at(n), BLOCK_PAGES);
}

static void expect_resident(size_t first, size_t end, bool whether)
{
	for (size_t n = first; n < end; n++)
		if (resident(n) != (whether ? BLOCK_PAGES : 0))
			FAIL("block %zu: %zu of its pages are on the device", n, resident(n));
}

/* Some of its pages, read by the device. */
static void check_bytes(size_t n, uint64_t seed)
{
	static uint64_t copy[512];

	for (size_t page = n * BLOCK_PAGES; page < (n + 1) * BLOCK_PAGES; page += 17) {
		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)blocks + page * PAGE, copy, PAGE), PAGE);
		for (size_t i = 0; i < 512; i++)
			if (copy[i] != test_word(page, i, seed))
				FAIL("the device reads %#lx in page %zu, word %zu, instead of %#lx", copy[i],
				     page, i, test_word(page, i, seed));
	}
}

/* ---- who goes ---------------------------------------------------------------- */

/* Three times what fits, one block after the other. One more than is needed makes way each time. */
static void in_turn(void)
{
	test_open(0, ROOM);
	map_blocks(1);
	for (size_t n = 0; n < BLOCKS; n++) {
		test_out(block_at(n), BLOCK_PAGES);
		check_bytes(n, 1);
		check_bytes(n / 2, 1);
	}
	expect_resident(BLOCKS - ROOM_BLOCKS + 1, BLOCKS, true);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 1);
	/* The last of them the program has just read, and sends them out while hmmd may not have heard yet that they are home. */
	for (size_t n = BLOCKS; n-- > 0;)
		test_out(block_at(n), BLOCK_PAGES);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 1);
	test_close();
	test_check(blocks, BLOCKS * BLOCK_PAGES, 1);
}

/* What the device used since stays; what it used longest ago goes. */
static void least_recently_used(void)
{
	uint64_t word;

	test_open(0, ROOM);
	map_blocks(2);
	for (size_t n = 0; n < ROOM_BLOCKS; n++)
		test_out(block_at(n), BLOCK_PAGES);
	expect_resident(0, ROOM_BLOCKS, true);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)block_at(0), &word, 8), 8);
	word = test_word(BLOCK_PAGES * 2, 0, 2);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)block_at(2), &word, 8), 8);
	test_out(block_at(ROOM_BLOCKS), BLOCK_PAGES);
	expect_resident(0, 1, true);
	expect_resident(1, 2, false);
	expect_resident(2, 3, true);
	expect_resident(3, 4, false);
	expect_resident(4, ROOM_BLOCKS + 1, true);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 2);
	test_close();
}

/* A migration that is larger than the device: what fits goes, and is not thrown out for the rest. */
static void larger_than_the_device(void)
{
	uint8_t *results = malloc(BLOCKS * BLOCK_PAGES);

	test_open(0, ROOM);
	map_blocks(3);
	for (int round = 0; round < 3; round++) {
		CHECK_EQ(test_migrate(blocks, BLOCKS * BLOCK_PAGES, HMM_DEVICE, results), ROOM / PAGE);
		CHECK_EQ(test_device_pages(blocks, BLOCKS * BLOCK_PAGES), ROOM / PAGE);
		for (size_t i = 0; i < BLOCKS * BLOCK_PAGES; i++) {
			bool there = test_on_device(blocks + i * PAGE);

			if (results[i] != HMM_MIGRATED && results[i] != HMM_ALREADY && results[i] != HMM_POOL_FULL)
				FAIL("page %zu: %s", i, hmm_migrate_result_name(results[i]));
			if (there != (results[i] != HMM_POOL_FULL))
				FAIL("page %zu: %s, and it is %s the device", i,
				     hmm_migrate_result_name(results[i]), there ? "on" : "not on");
		}
		if (round == 1)
			test_check(blocks, BLOCKS * BLOCK_PAGES, 3);
	}
	test_check(blocks, BLOCKS * BLOCK_PAGES, 3);
	free(results);
	test_close();
}

/* More than one request of the library's: they are one migration all the same. */
static void larger_than_a_request(void)
{
	const size_t n = 80;
	uint8_t *results = malloc(n * BLOCK_PAGES);
	char *memory;

	test_open(0, ROOM);
	memory = test_map_huge(n);
	test_fill(memory, n * BLOCK_PAGES, 4);
	CHECK_EQ(test_migrate(memory, n * BLOCK_PAGES, HMM_DEVICE, results), ROOM / PAGE);
	CHECK_EQ(test_device_pages(memory, n * BLOCK_PAGES), ROOM / PAGE);
	for (size_t i = 0; i < n * BLOCK_PAGES; i++)
		CHECK_EQ(test_on_device(memory + i * PAGE), results[i] == HMM_MIGRATED);
	/* It is over: the next one may have their room. */
	map_blocks(5);
	test_out(blocks, BLOCK_PAGES);
	test_check(memory, n * BLOCK_PAGES, 4);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 5);
	free(results);
	test_close();
}

/* Parts of blocks, of which some are shared, some written by the CPU again. */
static void pieces(void)
{
	test_open(0, ROOM);
	map_blocks(6);
	for (size_t n = 0; n < BLOCKS; n++) {
		size_t first = n * 37 % 400, count = 40 + n * 3;

		test_out(block_at(n) + first * PAGE, count);
		for (size_t i = first; i < first + count; i += 3)
			CHECK_EQ(*(volatile uint64_t *)(block_at(n) + i * PAGE),
				 test_word(n * BLOCK_PAGES + i, 0, 6));
		for (size_t i = first; i < first + count; i += 5)
			*(volatile uint64_t *)(block_at(n) + i * PAGE) = test_word(n * BLOCK_PAGES + i, 0, 6);
		check_bytes(n, 6);
	}
	test_check(blocks, BLOCKS * BLOCK_PAGES, 6);
	test_close();
}

/* ---- drivers that are asked -------------------------------------------------------- */

static _Atomic unsigned long stubborn_start, stubborn_end;	/* what is not given away cheaply */
static _Atomic int asked_cheaply, refused, insisted;

static int may_refuse(struct hmm_mirror *me, const struct hmm_update *update)
{
	bool mine = update->start < atomic_load(&stubborn_end) && update->end > atomic_load(&stubborn_start);

	(void)me;
	if (update->reason != HMM_REASON_EVICT) {
		CHECK(update->blockable);
		return 0;
	}
	if (update->blockable) {
		atomic_fetch_add(&insisted, 1);
		return mine ? -EAGAIN : 0;	/* which is no answer to an order */
	}
	atomic_fetch_add(&asked_cheaply, 1);
	if (!mine)
		return 0;
	atomic_fetch_add(&refused, 1);
	return -EAGAIN;
}

static int agrees(struct hmm_mirror *me, const struct hmm_update *update)
{
	(void)me;
	(void)update;
	return 0;
}

static const struct hmm_mirror_ops refusing = { .size = sizeof(refusing),
						.sync_cpu_device_pagetables = may_refuse };
static const struct hmm_mirror_ops agreeing = { .size = sizeof(agreeing),
						.sync_cpu_device_pagetables = agrees };

static void open_with(const struct hmm_mirror_ops *ops)
{
	test_open(0, ROOM);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	mirror.ops = ops;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
}

static void be_stubborn(void *start, size_t bytes)
{
	atomic_store(&stubborn_start, (unsigned long)start);
	atomic_store(&stubborn_end, (unsigned long)start + bytes);
}

/* A driver that would have to wait for block 0: others go, and block 0 is as if it had not been asked for. */
static void refused_one(void)
{
	open_with(&refusing);
	map_blocks(7);
	be_stubborn(block_at(0), BLOCK);
	for (size_t n = 0; n < BLOCKS; n++) {
		test_out(block_at(n), BLOCK_PAGES);
		expect_resident(0, 1, true);
	}
	CHECK(atomic_load(&refused) > 0);
	CHECK(atomic_load(&asked_cheaply) > atomic_load(&refused));
	CHECK_EQ(atomic_load(&insisted), 0);
	check_bytes(0, 7);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 7);
	test_close();
}

/* All would have to wait: all are asked, then the coldest are told. */
static void refused_all(void)
{
	open_with(&refusing);
	map_blocks(8);
	be_stubborn(blocks, BLOCKS * BLOCK);
	for (size_t n = 0; n < ROOM_BLOCKS; n++)
		test_out(block_at(n), BLOCK_PAGES);
	CHECK_EQ(atomic_load(&asked_cheaply), 0);
	test_out(block_at(ROOM_BLOCKS), BLOCK_PAGES);
	CHECK_EQ(atomic_load(&refused), ROOM_BLOCKS);
	CHECK_EQ(atomic_load(&asked_cheaply), ROOM_BLOCKS);
	CHECK_EQ(atomic_load(&insisted), 2);
	expect_resident(0, 2, false);
	expect_resident(2, ROOM_BLOCKS + 1, true);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 8);
	test_close();
}

/* One of two drivers would have to wait: the block stays for both. */
static void refused_by_one_of_two(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;

	open_with(&agreeing);
	device = test_device("the-other", ROOM);
	other.device = device;
	other.ops = &refusing;
	CHECK_EQ(hmm_mirror_register(&other, hmm), 0);
	map_blocks(9);
	be_stubborn(block_at(0), 2 * BLOCK);
	for (size_t n = 0; n < BLOCKS; n++)
		test_out(block_at(n), BLOCK_PAGES);
	CHECK(atomic_load(&refused) >= 2);
	expect_resident(0, 2, true);
	check_bytes(0, 9);
	check_bytes(1, 9);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 9);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	test_close();
}

/* Refused while the pages are shared with the CPU: they stay so, and the CPU may read on. */
static void refused_shared(void)
{
	open_with(&refusing);
	map_blocks(10);
	be_stubborn(block_at(0), BLOCK);
	test_out(block_at(0), BLOCK_PAGES);
	test_check(block_at(0), 1, 10);
	for (size_t n = 1; n < BLOCKS; n++) {
		test_out(block_at(n), BLOCK_PAGES);
		expect_resident(0, 1, true);
		CHECK_EQ(*(volatile uint64_t *)block_at(0), test_word(0, 0, 10));
	}
	CHECK(atomic_load(&refused) > 0);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 10);
	test_close();
}

/* ---- what never goes ------------------------------------------------------------------ */

static void coherent(void)
{
	void *first, *second, *third = NULL;

	test_open(0, ROOM);
	map_blocks(11);
	for (size_t n = 0; n < ROOM_BLOCKS; n++)
		test_out(block_at(n), BLOCK_PAGES);
	CHECK_EQ(hmm_alloc(&mirror, 4 * BLOCK, &first), 0);
	test_fill(first, 4 * BLOCK_PAGES, 12);
	expect_resident(0, 4, false);
	for (size_t n = 0; n < BLOCKS; n++) {
		test_out(block_at(n), BLOCK_PAGES);
		check_bytes(n, 11);
	}
	test_check(first, 4 * BLOCK_PAGES, 12);
	CHECK_EQ(hmm_alloc(&mirror, 4 * BLOCK, &second), 0);
	test_fill(second, 4 * BLOCK_PAGES, 13);
	CHECK_EQ(test_device_pages(blocks, BLOCKS * BLOCK_PAGES), 0);
	/* Nothing else is left that could make way. */
	CHECK_EQ(hmm_alloc(&mirror, BLOCK, &third), -ENOSPC);
	CHECK(strstr(hmm_last_error(), "has 16777216 bytes, of which 16777216 are in use, 16777216 of those pinned or coherent; 2097152 are wanted"));
	CHECK_EQ(hmm_alloc(&mirror, 2 * ROOM, &third), -ENOSPC);
	test_refused(block_at(0), BLOCK_PAGES, HMM_POOL_FULL);
	test_check(first, 4 * BLOCK_PAGES, 12);
	test_check(second, 4 * BLOCK_PAGES, 13);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 11);
	/* And at once when there is. */
	hmm_free(&mirror, second, 4 * BLOCK);
	for (size_t n = 0; n < BLOCKS; n++)
		test_out(block_at(n), BLOCK_PAGES);
	test_check(first, 4 * BLOCK_PAGES, 12);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 11);
	hmm_free(&mirror, first, 4 * BLOCK);
	test_close();
}

/* ---- several owners ------------------------------------------------------------------------- */

static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

/* A child that opens the device of that name when it is told to, and uses far more of it than its share. */
static pid_t start_neighbour(int go, uint64_t rounds, uint64_t seed)
{
	struct hmm_open_options options = { .size = sizeof(options),
						    .timeout_ms = (unsigned int)test_scaled(5000) };
	pid_t child = fork();
	char byte;

	if (child)
		return child;
	CHECK_EQ(read(go, &byte, 1), 1);
	CHECK_EQ(hmm_open(&options, &hmm), 0);
	CHECK_EQ(hmm_device_open(hmm, "crowded", &mirror.device), 0);
	mirror.ops = &quiet;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	map_blocks(seed);
	for (uint64_t round = 0; round < rounds; round++)
		for (size_t n = 0; n < BLOCKS; n++) {
			test_migrate(block_at(n), BLOCK_PAGES, HMM_DEVICE, NULL);
			check_bytes(n, seed);
		}
	test_check(blocks, BLOCKS * BLOCK_PAGES, seed);
	test_close();
	test_check(blocks, BLOCKS * BLOCK_PAGES, seed);
	_exit(0);
}

static void open_crowded(void)
{
	test_open(0, ROOM);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	test_mirror(&mirror, test_device("crowded", ROOM));
}

static void use_crowded(int rounds, uint64_t seed)
{
	map_blocks(seed);
	for (int round = 0; round < rounds; round++) {
		for (size_t n = 0; n < BLOCKS; n++) {
			test_migrate(block_at(n), BLOCK_PAGES, HMM_DEVICE, NULL);
			check_bytes(n, seed);
		}
		test_check(blocks, BLOCKS * BLOCK_PAGES, seed);
	}
}

/* Each makes room by sending the others' blocks home. */
static void three_owners(void)
{
	pid_t one, two;
	int go[2];

	CHECK_EQ(pipe2(go, O_CLOEXEC), 0);
	one = start_neighbour(go[0], 3, 20);
	two = start_neighbour(go[0], 3, 21);
	open_crowded();
	CHECK_EQ(write(go[1], "xx", 2), 2);
	use_crowded(3, 22);
	test_reap(one, 0);
	test_reap(two, 0);
	test_close();
}

/* An owner that has filled the device and does nothing more is no obstacle for another one. */
static void idle_neighbour(void)
{
	int go[2], go_on[2];
	pid_t child;

	CHECK_EQ(pipe2(go, O_CLOEXEC), 0);
	CHECK_EQ(pipe2(go_on, O_CLOEXEC), 0);
	child = fork();
	if (!child) {
		struct hmm_open_options options = { .size = sizeof(options),
							    .timeout_ms = (unsigned int)test_scaled(5000) };
		char byte;

		CHECK_EQ(read(go[0], &byte, 1), 1);
		CHECK_EQ(hmm_open(&options, &hmm), 0);
		CHECK_EQ(hmm_device_open(hmm, "crowded", &mirror.device), 0);
		mirror.ops = &quiet;
		CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
		map_blocks(23);
		test_out(blocks, ROOM / PAGE);
		CHECK_EQ(write(go_on[1], "x", 1), 1);
		CHECK_EQ(read(go[0], &byte, 1), 1);
		CHECK_EQ(test_device_pages(blocks, BLOCKS * BLOCK_PAGES), 0);
		test_check(blocks, BLOCKS * BLOCK_PAGES, 23);
		test_close();
		_exit(0);
	}
	open_crowded();
	map_blocks(24);
	CHECK_EQ(write(go[1], "x", 1), 1);
	CHECK_EQ(read(go_on[0], &(char){ 0 }, 1), 1);
	test_out(blocks, ROOM / PAGE);
	CHECK_EQ(write(go[1], "x", 1), 1);
	test_reap(child, 0);
	check_bytes(0, 24);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 24);
	test_close();
}

/* Nor is one that is stopped: its blocks go home without it. */
static void stopped_neighbour(void)
{
	int go[2], status;
	pid_t child;

	CHECK_EQ(pipe2(go, O_CLOEXEC), 0);
	child = fork();
	if (!child) {
		struct hmm_open_options options = { .size = sizeof(options),
							    .timeout_ms = (unsigned int)test_scaled(5000) };

		CHECK_EQ(read(go[0], &(char){ 0 }, 1), 1);
		CHECK_EQ(hmm_open(&options, &hmm), 0);
		CHECK_EQ(hmm_device_open(hmm, "crowded", &mirror.device), 0);
		mirror.ops = &quiet;
		CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
		map_blocks(27);
		test_out(blocks, ROOM / PAGE);
		raise(SIGSTOP);
		test_check(blocks, BLOCKS * BLOCK_PAGES, 27);
		test_close();
		_exit(0);
	}
	open_crowded();
	map_blocks(28);
	CHECK_EQ(write(go[1], "x", 1), 1);
	CHECK_EQ(waitpid(child, &status, WUNTRACED), child);
	CHECK(WIFSTOPPED(status));
	test_out(blocks, ROOM / PAGE);
	CHECK_EQ(kill(child, SIGCONT), 0);
	test_reap(child, 0);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 28);
	test_close();
}

/* One of them is killed while its blocks go home for the other. */
static void killed_neighbour(void)
{
	open_crowded();
	map_blocks(25);
	for (int round = 0; round < 4; round++) {
		pid_t child;
		int go[2];

		CHECK_EQ(pipe2(go, O_CLOEXEC), 0);
		child = start_neighbour(go[0], 1000, 26);
		CHECK_EQ(write(go[1], "x", 1), 1);
		for (size_t n = 0; n < BLOCKS; n++) {
			test_migrate(block_at(n), BLOCK_PAGES, HMM_DEVICE, NULL);
			if (n == 3U * (size_t)round + 4)
				kill(child, SIGKILL);
			check_bytes(n, 25);
		}
		test_reap(child, SIGKILL);
		close(go[0]);
		close(go[1]);
	}
	test_check(blocks, BLOCKS * BLOCK_PAGES, 25);
	test_close();
}

/* ---- windows ------------------------------------------------------------------------------------ */

/* All of it, again and again, by loads and stores: each touch makes another block go home. */
static int window_driver(const char *name, unsigned long address)
{
	struct hmm_window *window;
	uint64_t seed = 30;

	CHECK_EQ(hmm_open_peer(KEY_FD, NULL, &hmm), 0);
	CHECK_EQ(hmm_device_open(hmm, name, &mirror.device), 0);
	mirror.ops = &quiet;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	CHECK_EQ(hmm_window_map(&mirror, address, BLOCKS * BLOCK, 0, &window), 0);
	blocks = (char *)address;
	for (int round = 0; round < 3; round++, seed++) {
		test_check(blocks, BLOCKS * BLOCK_PAGES, seed);
		test_fill(blocks, BLOCKS * BLOCK_PAGES, seed + 1);
	}
	test_check(blocks, BLOCKS * BLOCK_PAGES, seed);
	hmm_window_unmap(window);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	return 0;
}

static void window(void)
{
	char program[] = "/proc/self/exe", driver[] = "driver", name[32], address[32];
	char *arguments[] = { program, driver, name, address, NULL };
	posix_spawn_file_actions_t actions;
	pid_t child;
	int key;

	test_open(0, ROOM);
	map_blocks(30);
	key = hmm_export(hmm);
	CHECK(key >= 0);
	snprintf(name, sizeof(name), "device-%d", getpid());
	snprintf(address, sizeof(address), "%lu", (unsigned long)blocks);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, key, KEY_FD);
	CHECK_EQ(posix_spawn(&child, program, &actions, NULL, arguments, environ), 0);
	posix_spawn_file_actions_destroy(&actions);
	test_reap(child, 0);
	close(key);
	check_bytes(3, 33);
	test_check(blocks, BLOCKS * BLOCK_PAGES, 33);
	test_close();
}

static const struct test_case cases[] = {
	{ "in-turn", in_turn, false }, { "least-recently-used", least_recently_used, false },
	{ "larger-than-the-device", larger_than_the_device, false },
	{ "larger-than-a-request", larger_than_a_request, false }, { "pieces", pieces, false },
	{ "refused-one", refused_one, false }, { "refused-all", refused_all, false },
	{ "refused-by-one-of-two", refused_by_one_of_two, false }, { "refused-shared", refused_shared, false },
	{ "coherent", coherent, false }, { "three-owners", three_owners, false },
	{ "idle-neighbour", idle_neighbour, false }, { "stopped-neighbour", stopped_neighbour, false }, { "killed-neighbour", killed_neighbour, false },
	{ "window", window, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "driver"))
		return window_driver(argv[2], strtoul(argv[3], NULL, 0));
	return test_main(argc, argv, cases);
}
