/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * devmem.c - memory that only the driver reaches: pages go there and come home by its
 * own copies, whatever the owner does meanwhile, and although the driver has no room or no
 * memory. When it has lost them, or dies: loss.c. Memory that exists before: resource.c.
 */
#include "copyengine.h"
#include "driver.h"
#include "mirror.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>

/* ---- there and back ------------------------------------------------------------------ */

static void round_trip(void)
{
	size_t pages = 3 * 512 + 40;
	char *memory;

	engine_begin("round-trip");
	memory = test_map(pages);
	test_fill(memory, pages, 1);
	engine_out(memory, pages);
	CHECK_EQ(board->in_use, pages);
	engine_until("pages moved", &board->moved, (unsigned int)pages);
	CHECK_EQ(board->refused, 0);
	for (size_t i = 0; i < pages; i += 100)
		CHECK_EQ(engine_entry(memory + i * PAGE), HMM_ENTRY_VALID | HMM_ENTRY_WRITE | HMM_ENTRY_DEVICE);
	/* Reads, writes, and by request. */
	test_check(memory, 512, 1);
	test_fill(memory + 512 * PAGE, 512, 2);
	CHECK_EQ(copyengine_ask(engine, COMMAND_HOME, memory, pages), pages);
	CHECK_EQ(engine_entry(memory), 0);
	test_check(memory, 512, 1);
	test_check(memory + 512 * PAGE, 512, 2);
	engine_unused();
	/* The second time is like the first. */
	test_fill(memory, pages, 3);
	engine_out(memory, pages);
	CHECK_EQ(board->in_use, pages);
	test_check(memory, pages, 3);
	CHECK(board->writes);
	engine_end();
	test_check(memory, pages, 3);
}

static void huge(void)
{
	char *memory;

	engine_begin("huge");
	memory = test_map_huge(4);
	test_fill(memory, 4 * 512, 1);
	engine_out(memory, 4 * 512);
	CHECK_EQ(test_smaps(memory, 4 * BLOCK, "Rss"), 0);
	test_part(memory, 512, 1212, 1);
	CHECK_EQ(copyengine_ask(engine, COMMAND_HOME, memory, 4 * 512), 4 * 512);
	test_check(memory, 4 * 512, 1);
	engine_end();
}

static void holes(void)
{
	char *memory;

	engine_begin("holes");
	memory = test_map(64);
	test_fill(memory + 10 * PAGE, 20, 1);
	board->word = HMM_MIGRATE_POPULATE;
	engine_out(memory, 64);
	CHECK_EQ(board->in_use, 64);
	test_check_zero(memory, 10);
	test_check(memory + 10 * PAGE, 20, 1);
	test_check_zero(memory + 30 * PAGE, 34);
	engine_end();
}

static void already(void)
{
	char *memory;

	engine_begin("already");
	memory = test_map(32);
	test_fill(memory, 32, 1);
	engine_out(memory, 32);
	engine_out(memory, 32);
	for (int i = 0; i < 32; i++)
		CHECK_EQ(board->results[i], HMM_ALREADY);
	CHECK_EQ(board->in_use, 32);
	test_check(memory, 32, 1);
	engine_end();
}

/* ---- the driver's answers --------------------------------------------------------------- */

static void no_room(void)
{
	unsigned int moved = 0, full = 0;
	char *memory;

	engine_begin("no-room");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	atomic_store(&board->room, 10);
	CHECK_EQ(copyengine_ask(engine, COMMAND_OUT, memory, 64), 10);
	for (int i = 0; i < 64; i++) {
		moved += board->results[i] == HMM_MIGRATED;
		full += board->results[i] == HMM_POOL_FULL;
	}
	CHECK_EQ(moved, 10);
	CHECK_EQ(full, 54);
	engine_until("pages in use", &board->in_use, 10);
	engine_until("pages refused", &board->refused, 54);
	CHECK_EQ(board->moved, 10);
	/* The others come home by themselves. */
	for (int i = 0; i < test_scaled(1000) && test_smaps(memory, 64 * PAGE, "Rss") != 54 * 4; i++)
		usleep(5000);
	CHECK_EQ(test_smaps(memory, 64 * PAGE, "Rss"), 54 * 4);
	/* What had to stay goes with the next one. */
	atomic_store(&board->room, DEVICE_PAGES);
	engine_out(memory, 64);
	CHECK_EQ(board->in_use, 64);
	test_check(memory, 64, 1);
	engine_end();
}

static void bad_choice(void)
{
	char *memory;

	engine_begin("bad-choice");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 1);
	atomic_store(&board->choose_badly, true);
	CHECK_EQ(copyengine_ask(engine, COMMAND_OUT, memory, 64), 1);
	for (int i = 1; i < 64; i++)
		CHECK_EQ(board->results[i], HMM_POOL_FULL);
	test_check(memory, 64, 1);
	engine_end();
}

static void no_memory(void)
{
	char *memory;

	engine_begin("no-memory");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	atomic_store(&board->out_of_memory, 5);
	test_check(memory, 64, 1);
	CHECK_EQ(board->out_of_memory, 0);
	CHECK(board->faults >= 6);
	engine_end();
}

/* It took long, and is there; and room for what was not asked for there is none. */
static void takes_long(void)
{
	char *memory;

	engine_begin("takes-long");
	memory = test_map_in_block(64);
	test_fill(memory, 64, 1);
	engine_out(memory + 3 * PAGE, 1);
	atomic_store(&board->stray, (unsigned long)memory + 4 * PAGE);
	atomic_store(&board->slow, true);
	test_check(memory, 64, 1);
	CHECK_EQ(board->faults, 1);
	CHECK_EQ(board->strayed, 1);
	engine_end();
}

static void brings_all(void)
{
	char *memory;

	engine_begin("brings-all");
	memory = test_map_huge(1);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	atomic_store(&board->whole, true);
	CHECK_EQ(copyengine_ask(engine, COMMAND_HOME, memory, 64), 64);
	CHECK_EQ(board->faults, 1);
	test_check(memory, 64, 1);
	engine_end();
}

static void *let_go_soon(void *data)
{
	usleep(100000);
	atomic_store(&board->hold_store, false);
	return data;
}

/* A thread that touches a page while the driver takes it waits, and finds it. */
static void touched_in_store(void)
{
	pthread_t helper;
	char *memory;

	engine_begin("touched-in-store");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	atomic_store(&board->hold_store, true);
	board->addr = (unsigned long)memory;
	board->pages = 64;
	test_tell(engine, COMMAND_OUT, -1);
	while (!atomic_load(&board->in_store))
		usleep(1000);
	CHECK_EQ(pthread_create(&helper, NULL, let_go_soon, NULL), 0);
	test_check(memory, 64, 1);
	CHECK_EQ(pthread_join(helper, NULL), 0);
	CHECK(test_hear(engine, &(uint64_t){ 0 }, NULL));
	test_check(memory, 64, 1);
	engine_end();
}

/* ---- who else looks ---------------------------------------------------------------------- */

static void accesses(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	uint64_t word = 0;
	char *memory;

	engine_begin("accesses");
	device = test_device("the-other", DEVICE_MEMORY);
	test_mirror(&other, device);
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	CHECK_EQ(copyengine_ask(engine, COMMAND_READ, memory + 3 * PAGE, 1), test_word(3, 0, 1));
	CHECK_EQ(board->result, 8);
	board->word = 77;
	copyengine_ask(engine, COMMAND_WRITE, memory + 4 * PAGE, 1);
	CHECK_EQ(board->result, 8);
	CHECK_EQ(*(volatile uint64_t *)(void *)(memory + 4 * PAGE), 77);
	CHECK_EQ(hmm_device_read(&other, (unsigned long)memory + 5 * PAGE, &word, 8), 8);
	CHECK_EQ(word, test_word(5, 0, 1));
	word = 78;
	CHECK_EQ(hmm_device_write(&other, (unsigned long)memory + 6 * PAGE, &word, 8), 8);
	CHECK_EQ(*(volatile uint64_t *)(void *)(memory + 6 * PAGE), 78);
	*(volatile uint64_t *)(void *)(memory + 4 * PAGE) = test_word(4, 0, 1);
	*(volatile uint64_t *)(void *)(memory + 6 * PAGE) = test_word(6, 0, 1);
	/* The other device takes what this one has, and back. */
	board->word = 0;
	engine_out(memory, 64);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 64 * PAGE, HMM_DEVICE, 0, NULL, NULL), 64);
	engine_unused();
	engine_out(memory, 64);
	test_check(memory, 64, 1);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	engine_end();
}

static void store_nothing(struct hmm_devmem *devmem, const struct hmm_devmem_move *move)
{
}

static int lose(struct hmm_devmem *devmem, unsigned long addr, const struct hmm_page *page,
		unsigned int flags)
{
	return HMM_FAULT_SIGBUS;
}

/* Programs that were built with other headers than the library. */
static void sizes_of_ops(struct hmm_device *device)
{
	struct {
		struct hmm_devmem_ops known;
		uintptr_t later;
	} ops = { .known = { .alloc_and_copy = store_nothing, .fault = lose }, .later = 1 };
	struct hmm_resource resource = { .size = sizeof(resource), .fd = -1, .length = PAGE };
	struct hmm_devmem *devmem = NULL;

	CHECK_EQ(hmm_devmem_add(&ops.known, device, 64 * PAGE, &devmem), -EINVAL);
	CHECK(strstr(hmm_last_error(), "size"));
	ops.known.size = sizeof(ops);
	CHECK_EQ(hmm_devmem_add(&ops.known, device, 64 * PAGE, &devmem), -E2BIG);
	CHECK_EQ(hmm_devmem_add_resource(&ops.known, device, &resource, &devmem), -E2BIG);
	/* Without alloc_and_copy, which lies behind its end. */
	ops.known.size = offsetof(struct hmm_devmem_ops, alloc_and_copy);
	CHECK_EQ(hmm_devmem_add(&ops.known, device, 64 * PAGE, &devmem), -EINVAL);
	CHECK(!devmem);
	ops.known.size = sizeof(ops.known);
	CHECK_EQ(hmm_devmem_add(&ops.known, device, 64 * PAGE, &devmem), 0);
	CHECK(devmem->ops == &ops.known);
	CHECK_EQ(hmm_devmem_remove(devmem, true), 0);
}

static void refusals(void)
{
	struct hmm_device_options options = { .size = sizeof(options), .name = "in-the-owner", .node = -1,
					      .caps = HMM_DEVICE_FAULTS | HMM_DEVICE_COPY_ENGINE };
	static const struct hmm_devmem_ops none = { .size = sizeof(none) };
	static const struct hmm_mirror_ops no_callbacks = { .size = sizeof(no_callbacks) };
	struct hmm_devmem *devmem = NULL;
	struct hmm_mirror mine = { 0 };
	struct hmm_device *device, *theirs;
	char *memory, name[32];

	engine_begin("refusals");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_WINDOW, memory, 64), -EOPNOTSUPP);
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_EXCLUSIVE, memory, 64), -EOPNOTSUPP);
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_PIN, memory, 64), -EOPNOTSUPP);
	CHECK_EQ(hmm_device_new(hmm, &options, &device), 0);
	CHECK_EQ(hmm_devmem_add(NULL, device, 64 * PAGE, &devmem), -EINVAL);
	CHECK_EQ(hmm_devmem_add(&none, device, 64 * PAGE, &devmem), -EINVAL);
	CHECK_EQ(hmm_devmem_add(&none, NULL, 64 * PAGE, &devmem), -EINVAL);
	CHECK_EQ(hmm_devmem_add(&none, device, 64 * PAGE, NULL), -EINVAL);
	CHECK_EQ(hmm_devmem_remove(NULL, true), -EINVAL);
	sizes_of_ops(device);
	mine.device = device;
	mine.ops = &no_callbacks;
	CHECK_EQ(hmm_mirror_register(&mine, hmm), -EOPNOTSUPP);
	/* Another's device with a copy engine, from here. */
	snprintf(name, sizeof(name), "copyengine-%d", getpid());
	CHECK_EQ(hmm_device_open(hmm, name, &theirs), 0);
	mine.device = theirs;
	CHECK_EQ(hmm_mirror_register(&mine, hmm), -EOPNOTSUPP);
	hmm_device_put(theirs);
	hmm_device_put(device);
	options.name = "hugetlb-engine";
	options.pool = HMM_POOL_HUGETLB;
	CHECK_EQ(hmm_device_new(hmm, &options, &device), -EOPNOTSUPP);
	CHECK(!hmm_vma_alloc_locked_page(NULL, (unsigned long)memory));
	CHECK(!hmm_devmem_page_address(NULL));
	hmm_page_put(NULL);
	test_check(memory, 64, 1);
	engine_end();
}

/* A driver that runs its callbacks itself is asked there, also while it waits for hmmd. */
static void dispatching(void)
{
	char *memory;

	engine_begin("dispatching");
	memory = test_map(700);
	engine_rounds(memory, 700);
	engine_out(memory, 700);
	board->word = 1;
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_REMOVE, NULL, 0), 0);
	board->word = 0;
	CHECK_EQ(board->in_use, 0);
	test_check(memory, 700, 3);
	engine_end();
}

static void dispatching_leaves(void)
{
	char *memory;

	board_make();
	test_open(0, DEVICE_MEMORY);
	driver = copyengine_start("dispatching", &engine);
	memory = test_map(700);
	test_fill(memory, 700, 1);
	engine_out(memory, 700);
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_UNREGISTER, NULL, 0), 0);
	CHECK_EQ(board->in_use, 0);
	test_check(memory, 700, 1);
	engine_end();
}

/* What the CPU may not write any more comes home before mprotect() returns. */
static void protected(void)
{
	char *memory;

	engine_begin("protected");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	CHECK_EQ(mprotect(memory + 8 * PAGE, 8 * PAGE, PROT_READ), 0);
	CHECK_EQ(engine_entry(memory + 8 * PAGE), 0);
	CHECK_EQ(engine_entry(memory + 15 * PAGE), 0);
	CHECK_EQ(engine_entry(memory + 16 * PAGE), HMM_ENTRY_VALID | HMM_ENTRY_WRITE | HMM_ENTRY_DEVICE);
	CHECK_EQ(mprotect(memory + 40 * PAGE, 2 * PAGE, PROT_NONE), 0);
	CHECK_EQ(engine_entry(memory + 41 * PAGE), 0);
	CHECK_EQ(mprotect(memory + 40 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE), 0);
	test_check(memory, 64, 1);
	engine_end();
}

/* A range has the pages of the driver's memory. */
static void ranged(void)
{
	char *memory;

	engine_begin("ranged");
	memory = test_map(700);
	test_fill(memory, 700, 1);
	engine_out(memory, 700);
	CHECK_EQ(copyengine_ask(engine, COMMAND_RANGE, memory, 700), 700);
	test_check(memory, 700, 1);
	engine_end();
}

/* Memory of hmmd's pool, for a device that was made without. */
static void from_the_pool(void)
{
	static const struct hmm_devmem_ops none = { .size = sizeof(none) };
	struct hmm_devmem *devmem = NULL, *twice = NULL;
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	uint8_t results[64];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	device = test_device("from-the-pool", 0);
	test_mirror(&other, device);
	memory = test_map(64);
	test_fill(memory, 64, 1);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 64 * PAGE, HMM_DEVICE, 0, results, NULL), 0);
	CHECK_EQ(results[0], HMM_POOL_FULL);
	CHECK_EQ(hmm_devmem_add(&none, device, 4 << 20, &devmem), -EINVAL);
	CHECK_EQ(hmm_devmem_add(NULL, device, 0, &devmem), -EINVAL);
	CHECK_EQ(hmm_devmem_add(NULL, device, 1UL << 46, &devmem), -ENOSPC);
	CHECK_EQ(hmm_devmem_add(NULL, device, (4 << 20) - 5, &devmem), 0);
	CHECK_EQ(hmm_devmem_add(NULL, device, 4 << 20, &twice), -EBUSY);
	CHECK(!devmem->pages);
	CHECK(!hmm_devmem_pfn_to_page(devmem, devmem->pfn_first));
	CHECK_EQ(hmm_device_memory(device), 4 << 20);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 64 * PAGE, HMM_DEVICE, 0, NULL, NULL), 64);
	test_check(memory, 10, 1);
	CHECK_EQ(hmm_devmem_remove(devmem, true), 0);
	CHECK_EQ(hmm_device_memory(device), 0);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 64 * PAGE, HMM_DEVICE, 0, results, NULL), 0);
	CHECK_EQ(results[0], HMM_POOL_FULL);
	test_check(memory, 64, 1);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	test_close();
}

/* ---- what the owner does ------------------------------------------------------------------ */

static void unmapped(void)
{
	char *memory;

	engine_begin("unmapped");
	memory = test_map(1024);
	test_fill(memory, 1024, 1);
	engine_out(memory, 1024);
	CHECK_EQ(munmap(memory + 100 * PAGE, 600 * PAGE), 0);
	engine_until("pages in use", &board->in_use, 424);
	CHECK_EQ(madvise(memory, 50 * PAGE, MADV_DONTNEED), 0);
	engine_until("pages in use", &board->in_use, 374);
	test_check_zero(memory, 50);
	CHECK_EQ(board->faults, 0);
	test_part(memory, 700, 1024, 1);
	CHECK_EQ(munmap(memory, 100 * PAGE), 0);
	engine_end();
}

static void remapped(void)
{
	char *memory, *room, *moved;

	engine_begin("remapped");
	memory = test_map(600);
	room = test_map(1200);
	test_fill(memory, 600, 1);
	engine_out(memory, 600);
	/* Moved, to another place in its block; and shrunk. */
	moved = mremap(memory, 600 * PAGE, 600 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + 37 * PAGE);
	CHECK(moved == room + 37 * PAGE);
	CHECK_EQ(board->in_use, 600);
	CHECK_EQ(engine_entry(moved + 20 * PAGE), HMM_ENTRY_VALID | HMM_ENTRY_WRITE | HMM_ENTRY_DEVICE);
	test_check(moved, 300, 1);
	CHECK(mremap(moved, 600 * PAGE, 500 * PAGE, 0) == moved);
	test_check(moved, 500, 1);
	engine_end();
}

static void forked(void)
{
	char *memory;
	pid_t child;

	engine_begin("forked");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	child = fork();
	if (!child) {
		test_check(memory, 64, 1);
		_exit(0);
	}
	test_fill(memory, 64, 2);
	test_reap(child, 0);
	test_check(memory, 64, 2);
	engine_end();
}

/* ---- all at once --------------------------------------------------------------------------- */

#define CROWD_PAGES	1200U
#define CROWD_THREADS	4U

struct member {
	pthread_t thread;
	uint64_t random;
	unsigned int number;
	char *memory;
	_Atomic bool *stop;
};

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Each has the pages whose number leaves its own: it alone writes them, and knows what is there. */
static void *member_main(void *data)
{
	struct member *me = data;
	static __thread uint64_t expected[CROWD_PAGES];

	while (!atomic_load(me->stop)) {
		uint64_t random = next_random(&me->random);
		unsigned int page = (unsigned int)(random >> 16) % (CROWD_PAGES / CROWD_THREADS) * CROWD_THREADS + me->number;
		volatile uint64_t *word = (volatile uint64_t *)(void *)(me->memory + page * PAGE) + random % 512;

		if (random % 97 == 0) {
			CHECK_EQ(madvise(me->memory + page * PAGE, PAGE, MADV_DONTNEED), 0);
			expected[page] = 0;
		} else if (random % 3) {
			uint64_t seen = *word, first = *(volatile uint64_t *)(void *)(me->memory + page * PAGE);

			if (first != expected[page] || (seen != 0 && seen >> 32 != page + 1UL))
				FAIL("page %u has %#lx and %#lx, not %#lx", page, first, seen, expected[page]);
		} else {
			*word = (page + 1UL) << 32 | (uint32_t)random;
			*(volatile uint64_t *)(void *)(me->memory + page * PAGE) = expected[page] = (page + 1UL) << 32 | (uint32_t)random;
		}
	}
	return NULL;
}

/* Threads read, write and discard while pages go out and come home, with every answer that a driver has but a loss. */
static void crowd(void)
{
	const char *given = getenv("HMM_TEST_SEED");
	uint64_t seed = given && *given ? strtoul(given, NULL, 0) : (uint64_t)getpid() * 2654435761UL, random = seed | 1;
	struct member members[CROWD_THREADS];
	_Atomic bool stop = false;
	char *memory;

	printf("HMM_TEST_SEED=%lu\n", seed);
	engine_begin("crowd");
	memory = test_map(CROWD_PAGES);
	for (unsigned int i = 0; i < CROWD_THREADS; i++) {
		members[i] = (struct member){ .random = next_random(&random), .number = i, .memory = memory,
					      .stop = &stop };
		CHECK_EQ(pthread_create(&members[i].thread, NULL, member_main, &members[i]), 0);
	}
	for (int round = 0; round < 300; round++) {
		unsigned int first = (unsigned int)(next_random(&random) % CROWD_PAGES);
		unsigned int count = 1 + (unsigned int)(next_random(&random) % (CROWD_PAGES - first));

		atomic_store(&board->room, (unsigned int)(next_random(&random) % 4 ? DEVICE_PAGES : 50));
		atomic_store(&board->out_of_memory, next_random(&random) % 8 ? 0 : 3);
		atomic_store(&board->whole, next_random(&random) % 3 == 0);
		copyengine_ask(engine, round % 5 == 4 ? COMMAND_HOME : COMMAND_OUT, memory + first * PAGE, count);
	}
	atomic_store(&stop, true);
	for (unsigned int i = 0; i < CROWD_THREADS; i++)
		CHECK_EQ(pthread_join(members[i].thread, NULL), 0);
	atomic_store(&board->out_of_memory, 0);
	CHECK(board->stores && board->faults);
	CHECK_EQ(munmap(memory, CROWD_PAGES * PAGE), 0);
	engine_end();
}

/* ---- going ----------------------------------------------------------------------------------- */

static void unregistered(void)
{
	char *memory;

	engine_begin("unregistered");
	memory = test_map(700);
	test_fill(memory, 700, 1);
	engine_out(memory, 700);
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_UNREGISTER, NULL, 0), 0);
	CHECK_EQ(board->in_use, 0);
	test_check(memory, 700, 1);
	engine_end();
}

static void device_put(void)
{
	char *memory;

	engine_begin("device-put");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	copyengine_ask(engine, COMMAND_DEVICE_PUT, NULL, 0);
	CHECK_EQ(board->in_use, 0);
	test_check(memory, 64, 1);
	engine_end();
}

static void removed(void)
{
	char *memory;

	engine_begin("removed");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	CHECK_EQ(copyengine_ask(engine, COMMAND_DRVDATA, memory + 9 * PAGE, 1), (unsigned long)memory + 9 * PAGE);
	copyengine_ask(engine, COMMAND_GET, memory, 1);
	board->word = 0;
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_REMOVE, NULL, 0), -EBUSY);
	CHECK_EQ(board->in_use, 1);
	copyengine_ask(engine, COMMAND_PUT, NULL, 0);
	engine_unused();
	board->word = 0;
	engine_out(memory, 64);
	board->word = 1;
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_REMOVE, NULL, 0), 0);
	board->word = 0;
	CHECK_EQ(copyengine_ask(engine, COMMAND_OUT, memory, 64), 0);
	test_check(memory, 64, 1);
	engine_end();
}

/* A reference that another thread gives back later. */
static void removal_waits(void)
{
	char *memory;

	engine_begin("removal-waits");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	copyengine_ask(engine, COMMAND_GET, memory, 1);
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_REMOVE_AND_PUT, NULL, 0), 0);
	CHECK_EQ(board->in_use, 0);
	test_check(memory, 64, 1);
	engine_end();
}

/* The owner ends with pages on the device: they are the driver's again. */
static void owner_ends(void)
{
	char *memory;
	pid_t owner;

	board_make();
	owner = fork();
	if (!owner) {
		test_open(0, DEVICE_MEMORY);
		driver = copyengine_start("owner-ends", &engine);
		memory = test_map(600);
		test_fill(memory, 600, 1);
		engine_out(memory, 600);
		CHECK_EQ(board->in_use, 600);
		_exit(0);
	}
	test_reap(owner, 0);
	engine_until("pages in use", &board->in_use, 0);
	CHECK_EQ(board->bad_free, 0);
}

/* ---- a new hmmd, or none: what the script beside does to it ------------------------------------ */

/*
 * Lines on standard input, each answered by one: out N, check N (the CPU reads the first N), rest N
 * (and those behind), lost N (SIGBUS for each of N), drvdata, use (pages in use), unmap N (the last
 * N), hold and let go (a store that takes its time), starve N (the next N faults find no memory), end.
 */
static void told(void)
{
	size_t pages = 700, n;
	char line[64], *memory;

	engine_begin("told");
	memory = test_map(pages);
	test_fill(memory, pages, 1);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (sscanf(line, "out %zu", &n) == 1) {
			printf("out %ld\n", (long)copyengine_ask(engine, COMMAND_OUT, memory, n));
		} else if (sscanf(line, "check %zu", &n) == 1) {
			test_check(memory, n, 1);
			puts("checked");
		} else if (sscanf(line, "rest %zu", &n) == 1) {
			test_part(memory, n, pages, 1);
			puts("checked");
		} else if (sscanf(line, "lost %zu", &n) == 1) {
			for (size_t i = 0; i < n; i++)
				CHECK(test_lost(memory + i * PAGE));
			puts("lost");
		} else if (sscanf(line, "starve %zu", &n) == 1) {
			atomic_store(&board->out_of_memory, (int)n);
			puts("starving");
		} else if (!strcmp(line, "drvdata")) {
			CHECK_EQ(copyengine_ask(engine, COMMAND_DRVDATA, memory + 5 * PAGE, 1),
				 (unsigned long)memory + 5 * PAGE);
			puts("drvdata");
		} else if (!strcmp(line, "use")) {
			printf("use %u\n", atomic_load(&board->in_use));
		} else if (!strcmp(line, "hold")) {
			atomic_store(&board->hold_store, true);
			board->addr = (unsigned long)memory;
			board->pages = pages;
			test_tell(engine, COMMAND_OUT, -1);
			/* Right after a restart nothing moves: the driver has yet to say that it is there again. */
			while (!atomic_load(&board->in_store)) {
				struct pollfd answer = { .fd = engine, .events = POLLIN };

				if (poll(&answer, 1, 1) == 1 && test_hear(engine, &(uint64_t){ 0 }, NULL))
					test_tell(engine, COMMAND_OUT, -1);
			}
			puts("holding");
		} else if (!strcmp(line, "let go")) {
			uint64_t moved;

			atomic_store(&board->hold_store, false);
			CHECK(test_hear(engine, &moved, NULL));
			puts("let go");
		} else if (sscanf(line, "unmap %zu", &n) == 1) {
			CHECK_EQ(munmap(memory + (pages - n) * PAGE, n * PAGE), 0);
			pages -= n;
			puts("unmapped");
		} else if (!strcmp(line, "end")) {
			test_check(memory, pages, 1);
			engine_end();
			puts("ended");
		} else {
			FAIL("what is '%s'?", line);
		}
	}
}

static const struct test_case cases[] = {
	{ "round-trip", round_trip, false }, { "huge", huge, false }, { "holes", holes, false },
	{ "already", already, false }, { "no-room", no_room, false },
	{ "bad-choice", bad_choice, false }, { "no-memory", no_memory, false },
	{ "takes-long", takes_long, false }, { "brings-all", brings_all, false }, { "touched-in-store", touched_in_store, false },
	{ "accesses", accesses, false }, { "dispatching", dispatching, false },
	{ "dispatching-leaves", dispatching_leaves, false }, { "protected", protected, false },
	{ "ranged", ranged, false }, { "refusals", refusals, false },
	{ "from-the-pool", from_the_pool, false },
	{ "unmapped", unmapped, false }, { "remapped", remapped, false }, { "forked", forked, false },
	{ "unregistered", unregistered, false }, { "device-put", device_put, false },
	{ "removed", removed, false }, { "removal-waits", removal_waits, false }, { "owner-ends", owner_ends, false }, { "crowd", crowd, false },
	{ "told", told, true },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[2], "driver")) {
		copyengine_main(argv[1]);
		return 0;
	}
	return test_main(argc, argv, cases);
}
