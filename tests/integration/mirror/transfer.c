/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * transfer.c - pages go to the device and come home, by request and by touch;
 * whatever the shape of the range, every byte arrives.
 */
#include "mirror.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#define DEVICE_MEMORY (512UL << 20)

static void small(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 1);
	test_out(memory, 64);
	test_device_check(memory, 64, 1);
	CHECK_EQ(test_device_pages(memory, 64), 64);
	test_home(memory, 64);
	test_check(memory, 64, 1);
	test_close();
	test_check(memory, 64, 1);
}

static void one_page(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(3);
	test_fill(memory, 3, 2);
	test_out(memory + PAGE, 1);
	CHECK(!test_on_device(memory));
	CHECK(!test_on_device(memory + 2 * PAGE));
	test_check(memory, 3, 2);
	test_close();
	test_check(memory, 3, 2);
}

static void already(void)
{
	uint8_t results[16];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 3);
	test_out(memory, 16);
	CHECK_EQ(test_migrate(memory, 16, HMM_DEVICE, results), 16);
	for (int i = 0; i < 16; i++)
		CHECK_EQ(results[i], HMM_ALREADY);
	test_home(memory, 16);
	CHECK_EQ(test_migrate(memory, 16, HMM_SYSTEM, results), 16);
	for (int i = 0; i < 16; i++)
		CHECK_EQ(results[i], HMM_ALREADY);
	test_check(memory, 16, 3);
	test_close();
}

static void huge(void)
{
	char *memory;
	long before;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(4);
	test_fill(memory, 4 * 512, 4);
	before = test_smaps(memory, 4 * BLOCK, "AnonHugePages");
	if (!before)
		test_skip("the system gives no huge pages");
	test_out(memory, 4 * 512);
	CHECK_EQ(test_smaps(memory, 4 * BLOCK, "AnonHugePages"), 0);
	test_device_check(memory, 4 * 512, 4);
	test_home(memory, 4 * 512);
	test_check(memory, 4 * 512, 4);
	CHECK_EQ(test_smaps(memory, 4 * BLOCK, "AnonHugePages"), before);
	test_close();
	test_check(memory, 4 * 512, 4);
}

/* Part of a huge page leaves: the rest stays where it is and what it is. */
static void part_of_huge(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	test_fill(memory, 2 * 512, 5);
	test_out(memory + 100 * PAGE, 50);
	CHECK_EQ(test_device_pages(memory, 2 * 512), 50);
	test_device_check(memory, 2 * 512, 5);
	test_check(memory, 2 * 512, 5);
	test_out(memory + 500 * PAGE, 24);
	test_check(memory, 2 * 512, 5);
	test_close();
	test_check(memory, 2 * 512, 5);
}

/* Every third page was never written, and one block holds nothing at all. */
static void holes(void)
{
	size_t pages = 3 * 512;
	uint8_t results[3 * 512];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(3);
	madvise(memory, 3 * BLOCK, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < pages; i++)
		if (i % 3 && i / 512 != 1)
			test_fill(memory + i * PAGE, 1, i);
	test_migrate(memory, pages, HMM_DEVICE, results);
	/* A block that goes as a whole takes its holes along, as zeros. */
	for (size_t i = 0; i < pages; i++)
		CHECK(results[i] == HMM_MIGRATED || (results[i] == HMM_HOLE && (i % 3 == 0 || i / 512 == 1)));
	for (size_t i = 0; i < pages; i++) {
		if (i % 3 && i / 512 != 1)
			test_check(memory + i * PAGE, 1, i);
		else
			test_check_zero(memory + i * PAGE, 1);
	}
	test_close();
}

static void populate(void)
{
	struct hmm_migrate_report report;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(512 + 40);
	test_fill(memory + 7 * PAGE, 3, 6);
	CHECK_EQ(hmm_migrate(&mirror, (unsigned long)memory, 552 * PAGE, HMM_DEVICE, HMM_MIGRATE_POPULATE, NULL,
			     &report), 552);
	CHECK_EQ(test_device_pages(memory, 552), 552);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 20 * PAGE, "written by the device", 22), 22);
	test_check_zero(memory, 7);
	test_check(memory + 7 * PAGE, 3, 6);
	CHECK(!strcmp(memory + 20 * PAGE, "written by the device"));
	test_check_zero(memory + 21 * PAGE, 531);
	test_close();
}

/* Memory that was read but never written is the kernel's zero page: it may leave or stay. */
static void never_written(void)
{
	uint8_t results[32];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(32);
	test_check_zero(memory, 32);
	test_migrate(memory, 32, HMM_DEVICE, results);
	for (int i = 0; i < 32; i++)
		CHECK(results[i] == HMM_HOLE || results[i] == HMM_MIGRATED);
	test_check_zero(memory, 32);
	test_fill(memory, 32, 7);
	test_out(memory, 32);
	test_check(memory, 32, 7);
	test_close();
}

static void spanning_blocks(void)
{
	size_t pages = 5 * 512;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(5);
	test_fill(memory, pages, 8);
	test_out(memory + 300 * PAGE, 1700);
	CHECK_EQ(test_device_pages(memory, pages), 1700);
	test_check(memory, pages, 8);
	test_fill(memory, pages, 9);
	test_out(memory + 511 * PAGE, 2);
	test_out(memory + PAGE, pages - 2);
	test_device_check(memory, pages, 9);
	test_home(memory + 200 * PAGE, 1000);
	test_check(memory, pages, 9);
	test_close();
	test_check(memory, pages, 9);
}

/* More than one request carries. */
static void large(void)
{
	size_t pages = 96 << 8;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(48);
	test_fill(memory, pages, 10);
	test_out(memory, pages);
	test_home(memory, pages);
	test_check(memory, pages, 10);
	test_close();
}

static void read_fault(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(600);
	test_fill(memory, 600, 11);
	test_out(memory, 600);
	for (size_t i = 0; i < 600; i += 7)
		CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), (long)test_word(i, 0, 11));
	test_check(memory, 600, 11);
	/* Read by both: whichever copy the device has, it is the same, and not writable. */
	test_device_check(memory, 600, 11);
	for (size_t i = 0; i < 600; i++)
		CHECK(!(hmm_mirror_lookup(&mirror, (unsigned long)memory + i * PAGE) & HMM_ENTRY_WRITE));
	test_close();
	test_check(memory, 600, 11);
}

static void write_fault(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(600);
	test_fill(memory, 600, 12);
	test_out(memory, 600);
	for (size_t i = 0; i < 600; i++) {
		volatile uint64_t *word = (volatile uint64_t *)(memory + i * PAGE) + i % 512;
		uint64_t seen;

		*word = i;
		CHECK(!test_on_device((void *)word));
		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)word, &seen, 8), 8);
		CHECK_EQ(seen, i);
		*word = test_word(i, i % 512, 12);
	}
	test_check(memory, 600, 12);
	test_device_check(memory, 600, 12);
	test_close();
}

/* First a read, which shares the page, then a write, which takes it. */
static void read_then_write(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(512);
	test_fill(memory, 512, 13);
	for (int round = 0; round < 4; round++) {
		test_out(memory, 512);
		test_check(memory, 512, 13 + (uint64_t)round);
		test_fill(memory, 512, 14 + (uint64_t)round);
		test_device_check(memory, 512, 14 + (uint64_t)round);
		test_check(memory, 512, 14 + (uint64_t)round);
	}
	test_close();
}

/* A shared page goes out again, and comes home by a write of the device. */
static void shared_goes_out(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 20);
	test_out(memory, 64);
	test_check(memory, 64, 20);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 8, &(uint64_t){ 77 }, 8), 8);
	CHECK_EQ(((volatile uint64_t *)memory)[1], 77);
	((volatile uint64_t *)memory)[1] = test_word(0, 1, 20);
	test_out(memory, 64);
	test_device_check(memory, 64, 20);
	test_check(memory, 64, 20);
	test_close();
}

static void device_writes(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(256);
	test_fill(memory, 256, 21);
	test_out(memory, 128);
	for (size_t i = 0; i < 256; i++) {
		uint64_t words[512];

		for (size_t j = 0; j < 512; j++)
			words[j] = test_word(i, j, 22);
		CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + i * PAGE, words, PAGE), PAGE);
	}
	test_device_check(memory, 256, 22);
	test_check(memory, 256, 22);
	test_close();
	test_check(memory, 256, 22);
}

static void prefetch(void)
{
	int completion = eventfd(0, EFD_CLOEXEC);
	struct pollfd wait = { .fd = completion, .events = POLLIN };
	uint64_t count;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(700);
	test_fill(memory, 700, 23);
	CHECK_EQ(hmm_prefetch(&mirror, (unsigned long)memory, 700 * PAGE, HMM_DEVICE, 0, completion, NULL), 0);
	CHECK_EQ(poll(&wait, 1, test_scaled(20000)), 1);
	CHECK_EQ(read(completion, &count, 8), 8);
	CHECK_EQ(count, 701);
	CHECK_EQ(test_device_pages(memory, 700), 700);
	CHECK_EQ(hmm_prefetch(&mirror, (unsigned long)memory, 700 * PAGE, HMM_SYSTEM, 0, completion, NULL), 0);
	CHECK_EQ(poll(&wait, 1, test_scaled(20000)), 1);
	CHECK_EQ(read(completion, &count, 8), 8);
	CHECK_EQ(count, 701);
	CHECK_EQ(test_device_pages(memory, 700), 0);
	CHECK_EQ(hmm_prefetch(&mirror, (unsigned long)memory, 700 * PAGE, HMM_DEVICE, 0, -1, NULL), 0);
	CHECK_EQ(hmm_prefetch(&mirror, (unsigned long)memory + 1, PAGE, HMM_DEVICE, 0, -1, NULL), -EINVAL);
	test_check(memory, 700, 23);
	close(completion);
	test_close();
}

/* The kernel touches the pages, in system calls. */
/* Everything of this mirror comes home, what another device has stays there, and coherent memory stays what it is. */
static void drain(void)
{
	struct hmm_device *device;
	char *memory, *others;
	struct hmm_mirror second;
	void *coherent;

	test_open(0, 64UL << 20);
	device = test_device("drain-second", 16UL << 20);
	test_mirror(&second, device);
	memory = test_map_huge(3);
	others = test_map_huge(1);
	test_fill(memory, 3 * 512, 41);
	test_fill(others, 512, 42);
	CHECK_EQ(hmm_drain(&mirror), 0);
	CHECK_EQ(hmm_alloc(&mirror, BLOCK, &coherent), 0);
	test_fill(coherent, 512, 43);
	test_out(memory, 3 * 512);
	CHECK_EQ(hmm_migrate(&second, (unsigned long)others, BLOCK, HMM_DEVICE, 0, NULL, NULL), 512);
	CHECK_EQ(hmm_drain(&mirror), 3 * 512);
	for (size_t i = 0; i < 3 * 512; i++)
		CHECK(!test_on_device(memory + i * PAGE));
	CHECK(hmm_mirror_lookup(&second, (unsigned long)others) & HMM_ENTRY_DEVICE);
	CHECK(hmm_mirror_lookup(&mirror, (unsigned long)coherent) & HMM_ENTRY_COHERENT);
	CHECK_EQ(hmm_drain(&mirror), 0);
	/* A migration home asks whatever device has the pages. */
	CHECK_EQ(hmm_migrate(&mirror, (unsigned long)others, BLOCK, HMM_SYSTEM, 0, NULL, NULL), 512);
	CHECK(!hmm_mirror_lookup(&second, (unsigned long)others));
	test_check(memory, 3 * 512, 41);
	test_check(others, 512, 42);
	test_check(coherent, 512, 43);
	CHECK_EQ(hmm_drain(NULL), -EINVAL);
	CHECK_EQ(hmm_free(&mirror, coherent, BLOCK), 0);
	CHECK_EQ(hmm_mirror_unregister(&second), 0);
	CHECK_EQ(hmm_drain(&second), -EINVAL);
	hmm_device_put(device);
	test_close();
}

static void system_calls(void)
{
	int pipes[2], file = memfd_create("file", MFD_CLOEXEC);
	char *memory, *other;

	test_open(0, DEVICE_MEMORY);
	CHECK(file >= 0);
	CHECK_EQ(pipe2(pipes, O_CLOEXEC), 0);
	memory = test_map(64);
	other = test_map(64);
	test_fill(memory, 64, 24);
	test_out(memory, 64);
	CHECK_EQ(write(file, memory, 64 * PAGE), 64 * PAGE);
	test_fill(other, 64, 25);
	test_out(other, 64);
	CHECK_EQ(pread(file, other, 64 * PAGE, 0), 64 * PAGE);
	test_check(other, 64, 24);
	test_out(other, 64);
	CHECK_EQ(write(pipes[1], other + 100, 5000), 5000);
	CHECK_EQ(read(pipes[0], memory + 100, 5000), 5000);
	test_check(memory, 64, 24);
	close(file);
	test_close();
}

static void bad_ranges(void)
{
	unsigned long address;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(4);
	address = (unsigned long)memory;
	test_fill(memory, 4, 26);
	CHECK_EQ(hmm_migrate(&mirror, address + 1, PAGE, HMM_DEVICE, 0, NULL, NULL), -EINVAL);
	CHECK_EQ(hmm_migrate(&mirror, address, PAGE + 1, HMM_DEVICE, 0, NULL, NULL), -EINVAL);
	CHECK_EQ(hmm_migrate(&mirror, address, 0, HMM_DEVICE, 0, NULL, NULL), -EINVAL);
	CHECK_EQ(hmm_migrate(&mirror, ~0UL - PAGE + 1, 2 * PAGE, HMM_DEVICE, 0, NULL, NULL), -EINVAL);
	CHECK_EQ(hmm_migrate(&mirror, 0xffff800000000000UL, PAGE, HMM_DEVICE, 0, NULL, NULL), -EINVAL);
	CHECK_EQ(hmm_migrate(&mirror, (1UL << 47) - PAGE, 2 * PAGE, HMM_DEVICE, 0, NULL, NULL), -EINVAL);
	CHECK_EQ(hmm_migrate(&mirror, address, PAGE, (enum hmm_target)7, 0, NULL, NULL), -EINVAL);
	CHECK_EQ(hmm_migrate(&mirror, address, PAGE, HMM_DEVICE, 1ULL << 40, NULL, NULL), -EINVAL);
	CHECK(hmm_device_read(&mirror, 0xffff800000000000UL, &address, 8) < 0);
	test_check(memory, 4, 26);
	test_out(memory, 4);
	test_check(memory, 4, 26);
	test_close();
}

/* ---- threads ------------------------------------------------------------------ */

struct crowd {
	char *memory;
	size_t pages;
	pthread_barrier_t barrier;
};

static void *crowd_reads(void *argument)
{
	struct crowd *crowd = argument;

	for (int round = 0; round < 20; round++) {
		pthread_barrier_wait(&crowd->barrier);
		test_check(crowd->memory, crowd->pages, (uint64_t)round);
		pthread_barrier_wait(&crowd->barrier);
	}
	return NULL;
}

/* All at once on the same pages. */
static void many_threads(void)
{
	struct crowd crowd = { .pages = 80 };
	pthread_t threads[4];

	test_open(0, DEVICE_MEMORY);
	crowd.memory = test_map(crowd.pages);
	pthread_barrier_init(&crowd.barrier, NULL, 5);
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, crowd_reads, &crowd), 0);
	for (int round = 0; round < 20; round++) {
		test_fill(crowd.memory, crowd.pages, (uint64_t)round);
		test_out(crowd.memory, crowd.pages);
		pthread_barrier_wait(&crowd.barrier);
		pthread_barrier_wait(&crowd.barrier);
	}
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	test_close();
}

static void churn(void)
{
	size_t pages = 4 * 512;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(4);
	test_fill(memory, pages, 0);
	for (uint64_t round = 1; round < 40; round++) {
		size_t first = round * 37 % 900, n = 1 + round * 91 % 1100;

		test_migrate(memory + first * PAGE, n, HMM_DEVICE, NULL);
		if (round % 3 == 0)
			test_device_check(memory, pages, round - 1);
		for (size_t i = 0; i < pages; i++) {
			volatile uint64_t *words = (volatile uint64_t *)(memory + i * PAGE);

			for (size_t j = 0; j < 512; j += round % 2 ? 1 : 3) {
				CHECK(words[j] == test_word(i, j, round - 1));
				words[j] = test_word(i, j, round);
			}
			for (size_t j = 0; j < 512; j++)
				words[j] = test_word(i, j, round);
		}
		if (round % 4 == 0)
			test_home(memory, pages);
	}
	test_check(memory, pages, 39);
	test_close();
}

/* ---- without UFFDIO_MOVE ----------------------------------------------------- */

static void base_undeclared(void)
{
	char *memory;

	test_open(HMM_OPEN_BASE_ENGINE, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 30);
	test_refused(memory, 64, HMM_UNDECLARED);
	CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, 64 * PAGE, HMM_ADVISE_UNPINNED, NULL), 0);
	test_out(memory, 64);
	test_device_check(memory, 64, 30);
	test_check(memory, 64, 30);
	CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, 64 * PAGE, HMM_ADVISE_PINNED, NULL), 0);
	test_home(memory, 64);
	test_refused(memory, 64, HMM_UNDECLARED);
	test_check(memory, 64, 30);
	test_close();
}

static void base_blocks(void)
{
	size_t pages = 4 * 512;
	char *memory;

	test_open(HMM_OPEN_BASE_ENGINE, DEVICE_MEMORY);
	memory = test_map_huge(4);
	test_fill(memory, pages, 31);
	CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, pages * PAGE, HMM_ADVISE_UNPINNED, NULL), 0);
	test_out(memory + 5 * PAGE, pages - 9);
	test_device_check(memory, pages, 31);
	test_fill(memory, pages, 32);
	test_out(memory, pages);
	test_check(memory, pages, 32);
	test_home(memory, pages);
	test_check(memory, pages, 32);
	test_close();
	test_check(memory, pages, 32);
}

static const struct test_case cases[] = {
	{ "small", small, false }, { "one-page", one_page, false }, { "already", already, false }, { "huge", huge, false },
	{ "part-of-huge", part_of_huge, false }, { "holes", holes, false }, { "populate", populate, false },
	{ "never-written", never_written, false }, { "spanning-blocks", spanning_blocks, false }, { "large", large, false },
	{ "read-fault", read_fault, false }, { "write-fault", write_fault, false },
	{ "read-then-write", read_then_write, false }, { "shared-goes-out", shared_goes_out, false },
	{ "device-writes", device_writes, false }, { "prefetch", prefetch, false }, { "drain", drain, false },
	{ "system-calls", system_calls, false },
	{ "bad-ranges", bad_ranges, false }, { "many-threads", many_threads, false }, { "churn", churn, false },
	{ "base-undeclared", base_undeclared, false }, { "base-blocks", base_blocks, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
