/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * group.c - a mirror of several devices: what its members have, each for itself; what all of them
 * may use alike; callbacks once for all. What an outage does to it is for ../mirror_outage.py.
 */
#include <stdatomic.h>
#include <sys/wait.h>

#include "driver.h"
#include "mirror.h"

#define DEVICE_MEMORY	(64UL << 20)
#define MEMBERS		3
#define PART		512UL	/* a block each: no two devices have pages of one block of their own */
#define PAGES		(MEMBERS * PART)

static struct hmm_device *devices[MEMBERS], *group;
static struct hmm_mirror whole;
static const uint64_t flags[HMM_PFN_FLAG_MAX] = { 1, 2, 4 };
static const uint64_t values[HMM_PFN_VALUE_MAX] = { 8, 0, 16 };

static _Atomic int told, released;
static _Atomic unsigned long told_of;

static int let_go(struct hmm_mirror *me, const struct hmm_update *update)
{
	CHECK(me == &whole);
	told_of = update->start;
	told++;
	return 0;
}

static void over(struct hmm_mirror *me)
{
	CHECK(me == &whole);
	released++;
}

static const struct hmm_mirror_ops ops = { .size = sizeof(ops), .release = over,
					   .sync_cpu_device_pagetables = let_go };

static void open_devices(void)
{
	for (unsigned int i = 0; i < MEMBERS; i++) {
		struct hmm_device_options options = { .size = sizeof(options), .memory = DEVICE_MEMORY,
						      .node = -1, .caps = HMM_DEVICE_FAULTS };
		char name[32];

		snprintf(name, sizeof(name), "member-%u-%d", i, getpid());
		options.name = name;
		CHECK_EQ(hmm_device_new(hmm, &options, &devices[i]), 0);
	}
}

static void open_group(void)
{
	struct hmm_open_options options = { .size = sizeof(options),
						    .timeout_ms = (unsigned int)test_scaled(5000) };

	CHECK_EQ(hmm_open(&options, &hmm), 0);
	open_devices();
	CHECK_EQ(hmm_device_group(hmm, devices, MEMBERS, &group), 0);
	CHECK_EQ(hmm_device_memory(group), MEMBERS * DEVICE_MEMORY);
	CHECK(!hmm_device_drvdata(group));
	whole.ops = &ops;
	whole.device = group;
	CHECK_EQ(hmm_mirror_register(&whole, hmm), 0);
	CHECK(whole.hmm == hmm);
}

static void close_group(void)
{
	CHECK_EQ(hmm_mirror_unregister(&whole), 0);
	hmm_device_put(group);
	for (unsigned int i = 0; i < MEMBERS; i++)
		hmm_device_put(devices[i]);
	hmm_close(hmm);
}

static struct hmm_mirror *member(unsigned int i)
{
	return hmm_mirror_member(&whole, i);
}

static char *map_parts(void)
{
	char *memory = test_map_huge(MEMBERS);

	madvise(memory, PAGES * PAGE, MADV_NOHUGEPAGE);
	return memory;
}

/* To each member a part of the pages. */
static void spread(char *memory)
{
	for (unsigned int i = 0; i < MEMBERS; i++)
		CHECK_EQ(hmm_migrate(member(i), (unsigned long)memory + i * PART * PAGE, PART * PAGE, HMM_DEVICE,
				     0, NULL, NULL), PART);
}

static void begin_range(struct hmm_range *range, uint64_t *pfns, struct hmm_mirror *of, char *memory)
{
	unsigned long start = (unsigned long)memory;

	memset(pfns, 0, PAGES * sizeof(*pfns));
	*range = (struct hmm_range){ .pfns = pfns, .flags = flags, .values = values, .pfn_shift = 12,
				     .default_flags = 1 };
	CHECK_EQ(hmm_range_register(range, of, start, start + PAGES * PAGE, 12), 0);
}

static void fault(struct hmm_range *range)
{
	long result;

	do {
		CHECK(hmm_range_wait_until_valid(range, 20000));
		result = hmm_range_fault(range, true);
	} while (result == -EBUSY);
	CHECK_EQ(result, PAGES);
}

static void members(void)
{
	uint64_t words[512];
	char *memory;

	open_group();
	memory = map_parts();
	test_fill(memory, PAGES, 1);
	CHECK(!member(MEMBERS));
	CHECK(!hmm_mirror_member(NULL, 0));
	CHECK(hmm_mirror_member(member(1), 0) == member(1));
	CHECK(member(1)->device == devices[1]);
	spread(memory);
	for (unsigned long i = 0; i < PAGES; i++) {
		unsigned long address = (unsigned long)memory + i * PAGE;

		for (unsigned int j = 0; j < MEMBERS; j++)
			CHECK_EQ(hmm_mirror_lookup(member(j), address) != 0, j == i / PART);
		CHECK_EQ(hmm_mirror_lookup(&whole, address), 0);
	}
	/* Wherever it is. */
	for (unsigned long i = 0; i < PAGES; i += 61) {
		unsigned long address = (unsigned long)memory + i * PAGE;

		CHECK_EQ(hmm_device_read(&whole, address, words, PAGE), PAGE);
		CHECK_EQ(words[7], test_word(i, 7, 1));
		words[7]++;
		CHECK_EQ(hmm_device_write(&whole, address, words, PAGE), PAGE);
		CHECK_EQ(((volatile uint64_t *)memory)[i * 512 + 7], test_word(i, 7, 1) + 1);
	}
	close_group();
	CHECK_EQ(((volatile uint64_t *)memory)[7], test_word(0, 7, 1) + 1);
}

/* What a range over a group gives is good for all of them: a page of the owner's. */
static void range_over_all(void)
{
	static uint64_t pfns[PAGES], own[PAGES];
	struct hmm_range range, one;
	char *memory;

	open_group();
	memory = map_parts();
	test_fill(memory, PAGES, 2);
	spread(memory);
	/* A snapshot says where they are, and leaves them there. */
	begin_range(&range, pfns, &whole, memory);
	CHECK_EQ(hmm_range_snapshot(&range), PAGES);
	for (unsigned long i = 0; i < PAGES; i++) {
		CHECK(pfns[i] & flags[HMM_PFN_DEVICE_PRIVATE]);
		CHECK(hmm_device_entry_to_pfn(&range, pfns[i]) >= HMM_PFN_DEVICE_FIRST);
		pfns[i] = 0;
	}
	CHECK(hmm_mirror_lookup(member(2), (unsigned long)memory + (PAGES - 1) * PAGE));
	fault(&range);
	for (unsigned long i = 0; i < PAGES; i++) {
		unsigned long address = (unsigned long)memory + i * PAGE;

		CHECK_EQ(pfns[i] & 7, flags[HMM_PFN_VALID] | flags[HMM_PFN_WRITE]);
		CHECK_EQ(hmm_device_entry_to_pfn(&range, pfns[i]), address / PAGE);
		CHECK_EQ(hmm_mirror_lookup(&whole, address), HMM_ENTRY_VALID | HMM_ENTRY_WRITE);
	}
	CHECK(hmm_range_valid(&range));
	/* Once more, out of the table. */
	fault(&range);
	/* One member's range may leave them there; that ends the group's. */
	CHECK_EQ(hmm_migrate(member(1), (unsigned long)memory, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
	CHECK(!hmm_range_valid(&range));
	begin_range(&one, own, member(1), memory);
	fault(&one);
	CHECK(own[0] & flags[HMM_PFN_DEVICE_PRIVATE]);
	fault(&range);
	CHECK_EQ(hmm_device_entry_to_pfn(&range, pfns[0]), (unsigned long)memory / PAGE);
	CHECK(!hmm_range_valid(&one));
	CHECK_EQ(hmm_range_dma_map(&range, devices[0], own, true), -EINVAL);
	CHECK_EQ(hmm_range_dma_map(&range, group, own, true), -EINVAL);
	hmm_range_unregister(&one);
	hmm_range_unregister(&range);
	test_check(memory, PAGES, 2);
	close_group();
	test_check(memory, PAGES, 2);
}

/* Coherent memory is the owner's page to all of them. */
static void coherent(void)
{
	static uint64_t pfns[PAGES];
	struct hmm_range range;
	void *memory = NULL;

	open_group();
	CHECK_EQ(hmm_alloc(&whole, PAGES * PAGE, &memory), -EINVAL);
	CHECK_EQ(hmm_alloc(member(0), PAGES * PAGE, &memory), 0);
	test_fill(memory, PAGES, 3);
	begin_range(&range, pfns, &whole, memory);
	fault(&range);
	for (unsigned long i = 0; i < PAGES; i++)
		CHECK_EQ(hmm_device_entry_to_pfn(&range, pfns[i]), (unsigned long)memory / PAGE + i);
	hmm_range_unregister(&range);
	test_check(memory, PAGES, 3);
	CHECK_EQ(hmm_free(member(0), memory, PAGES * PAGE), 0);
	close_group();
}

/* One call for a change, whichever member has the page. */
static void callbacks(void)
{
	volatile char *memory;
	int before;

	open_group();
	memory = map_parts();
	test_fill((void *)memory, PAGES, 4);
	for (unsigned int i = 0; i < MEMBERS; i++) {
		CHECK_EQ(hmm_migrate(member(i), (unsigned long)memory, PAGE, HMM_DEVICE, 0, NULL, NULL), 1);
		before = told;
		memory[0] = (char)i;	/* not read before: that is a change, too */
		CHECK_EQ(told, before + 1);
		CHECK_EQ(told_of, memory);
	}
	CHECK_EQ(hmm_mirror_unregister(member(1)), -EINVAL);
	close_group();
	CHECK_EQ(released, 0);
}

static void bad_input(void)
{
	struct hmm_device *several[17], *other = NULL;
	struct hmm_mirror mirror_of_none = { .ops = &ops };
	uint8_t results[4];
	struct hmm_advise_options advice = { .size = sizeof(advice), .mirror = &whole };
	struct hmm_prefetch *prefetch = NULL;
	struct hmm_devmem *devmem = NULL;
	struct hmm_window *window = NULL;
	const struct hmm_device_options cannot_fault = { .size = sizeof(cannot_fault), .name = "cannot-fault",
							 .node = -1 };
	unsigned long address;
	char *memory;

	open_group();
	memory = test_map_in_block(4);
	test_fill(memory, 4, 5);
	address = (unsigned long)memory;
	for (unsigned int i = 0; i < 17; i++)
		several[i] = devices[i % MEMBERS];
	CHECK_EQ(hmm_device_group(NULL, devices, MEMBERS, &other), -EINVAL);
	CHECK_EQ(hmm_device_group(hmm, NULL, MEMBERS, &other), -EINVAL);
	CHECK_EQ(hmm_device_group(hmm, devices, MEMBERS, NULL), -EINVAL);
	CHECK_EQ(hmm_device_group(hmm, devices, 0, &other), -EINVAL);
	CHECK_EQ(hmm_device_group(hmm, several, 17, &other), -EINVAL);
	CHECK_EQ(hmm_device_group(hmm, several, 4, &other), -EINVAL);	/* one of them twice */
	several[1] = group;
	CHECK_EQ(hmm_device_group(hmm, several, 2, &other), -EINVAL);
	several[1] = NULL;
	CHECK_EQ(hmm_device_group(hmm, several, 2, &other), -EINVAL);
	CHECK_EQ(hmm_device_new(hmm, &cannot_fault, &several[1]), 0);
	CHECK_EQ(hmm_device_group(hmm, several, 2, &other), -EOPNOTSUPP);
	hmm_device_put(several[1]);
	CHECK(!other);
	CHECK_EQ(hmm_devmem_add(NULL, group, PAGE, &devmem), -EINVAL);
	CHECK_EQ(hmm_mirror_register(&mirror_of_none, hmm), -EINVAL);
	/* What takes one device. */
	CHECK_EQ(hmm_migrate(&whole, address, PAGE, HMM_DEVICE, 0, results, NULL), -EINVAL);
	CHECK(strstr(hmm_last_error(), "hmm_mirror_member"));
	CHECK_EQ(hmm_prefetch(&whole, address, PAGE, HMM_DEVICE, 0, -1, &prefetch), -EINVAL);
	CHECK_EQ(hmm_drain(&whole), -EINVAL);
	CHECK_EQ(hmm_device_exclusive_begin(&whole, address, PAGE, results), -EINVAL);
	CHECK(!hmm_device_exclusive_check(&whole, address, PAGE));
	CHECK_EQ(hmm_share(&whole, memory, BLOCK), -EINVAL);
	CHECK_EQ(hmm_window_map(&whole, address, PAGE, 0, &window), -EINVAL);
	CHECK_EQ(hmm_advise(hmm, address, PAGE, HMM_ADVISE_SET_ACCESSED_BY, &advice), -EINVAL);
	advice.mirror = member(2);
	CHECK_EQ(hmm_advise(hmm, address, PAGE, HMM_ADVISE_SET_ACCESSED_BY, &advice), 0);
	test_check(memory, 4, 5);
	close_group();
}

/* A group that cannot be registered whole leaves nothing behind. */
static void half(void)
{
	struct hmm_device_options options = { .size = sizeof(options), .name = "without-memory", .node = -1,
					      .caps = HMM_DEVICE_FAULTS | HMM_DEVICE_COPY_ENGINE };
	struct hmm_device *pair[2];

	test_open(0, DEVICE_MEMORY);
	/* Its driver is in the owner itself: -EOPNOTSUPP; the second one was registered by then. */
	CHECK_EQ(hmm_device_new(hmm, &options, &pair[0]), 0);
	pair[1] = test_device("whole-half", DEVICE_MEMORY);
	CHECK_EQ(hmm_device_group(hmm, pair, 2, &group), 0);
	whole.ops = &ops;
	whole.device = group;
	CHECK_EQ(hmm_mirror_register(&whole, hmm), -EOPNOTSUPP);
	CHECK(!whole.priv);
	CHECK(strlen(hmm_last_error()) > 10);
	hmm_device_put(group);
	/* Nobody has it mirrored. */
	CHECK_EQ(hmm_device_group(hmm, &pair[1], 1, &group), 0);
	whole.device = group;
	CHECK_EQ(hmm_mirror_register(&whole, hmm), 0);
	CHECK(member(0) && !member(1));
	/* hmm_close() ends it. */
	test_close();
}

static void driver(void)
{
	unsigned long address = test_driver_join();
	uint64_t word;

	hmm_device_put(mirror.device);
	open_devices();
	CHECK_EQ(hmm_device_group(hmm, devices, MEMBERS, &group), 0);
	whole.ops = &ops;
	whole.device = group;
	CHECK_EQ(hmm_mirror_register(&whole, hmm), 0);
	CHECK_EQ(hmm_migrate(member(1), address, PAGE, HMM_DEVICE, 0, NULL, NULL), 1);
	CHECK_EQ(hmm_device_read(&whole, address, &word, 8), 8);
	test_tell(TEST_DRIVER_SOCKET, word, -1);
	while (!released)
		usleep(1000);
	CHECK_EQ(hmm_device_read(&whole, address, &word, 8), -ESTALE);
	CHECK_EQ(hmm_mirror_lookup(&whole, address), 0);
	close_group();
	CHECK_EQ(released, 1);
}

/* The owner ends: its driver hears that once. */
static void owner_ends(void)
{
	uint64_t word;
	char *memory;
	int socket, status;
	pid_t owner, of = test_driver_start("owner-ends", &socket);

	owner = fork();
	if (owner == 0) {
		test_open(0, DEVICE_MEMORY);
		memory = test_map(1);
		test_fill(memory, 1, 6);
		test_invite(socket, memory);
		CHECK(test_hear(socket, &word, NULL));
		CHECK_EQ(word, test_word(0, 0, 6));
		_exit(0);
	}
	CHECK_EQ(waitpid(owner, &status, 0), owner);
	CHECK_EQ(status, 0);
	test_reap(of, 0);
}

static const struct test_case cases[] = {
	{ "members", members, false },
	{ "range-over-all", range_over_all, false },
	{ "coherent", coherent, false },
	{ "callbacks", callbacks, false },
	{ "bad-input", bad_input, false },
	{ "half", half, false },
	{ "owner-ends", owner_ends, false },
	{ 0 },
};

static const struct test_case drivers[] = { { "owner-ends", driver, false }, { 0 } };

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
