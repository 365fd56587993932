/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pieces.c - huge pages of which the program takes parts away, and addresses that it uses
 * again: what is left has its bytes, and what is new has none of the old ones.
 *
 * A driver with a window is this program again; it is told by words on its socket what to do.
 */
#include "driver.h"

#include <signal.h>
#include <sys/wait.h>

#define DEVICE_MEMORY (64UL << 20)
#define BLOCKS 3UL
#define BLOCK_PAGES 512UL

/* ---- a part of a huge page ------------------------------------------------------------ */

/* What is taken from the first two blocks: the middle of one, and a piece near the end of the next. */
static bool is_gone(size_t page)
{
	return (page >= 100 && page < 400) || (page >= 1012 && page < 1032);
}

static void check_rest(const char *memory, uint64_t seed, bool by_device)
{
	for (size_t i = 0; i < BLOCKS * BLOCK_PAGES; i++) {
		uint64_t words[512];

		if (is_gone(i))
			continue;
		if (by_device)
			CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + i * PAGE, words, PAGE), PAGE);
		else
			memcpy(words, memory + i * PAGE, PAGE);
		for (size_t w = 0; w < 512; w++)
			CHECK_EQ(words[w], test_word(i, w, seed));
	}
}

static void unmap_parts(char *memory)
{
	char byte;

	CHECK_EQ(munmap(memory + 100 * PAGE, 300 * PAGE), 0);
	CHECK_EQ(munmap(memory + 1012 * PAGE, 20 * PAGE), 0);
	for (size_t i = 0; i < BLOCKS * BLOCK_PAGES; i += 10)
		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + i * PAGE, &byte, 1),
			 is_gone(i) ? -EFAULT : 1);
}

/* New memory where the old was: zeros on either side, and its own bytes from then on. */
static void map_anew(char *memory, size_t first, size_t pages)
{
	char *at = memory + first * PAGE;
	uint64_t word = 1;

	CHECK(mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
		   0) == at);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)at, &word, 8), 8);
	CHECK_EQ(word, 0);
	test_check_zero(at, pages);
	test_fill(at, pages, 9);
	test_out(at, pages);
	test_device_check(at, pages, 9);
	test_check(at, pages, 9);
}

/* On the device, half way home again, or at home and in pieces already. */
static void partly_unmapped(void)
{
	test_open(0, DEVICE_MEMORY);
	for (uint64_t round = 0; round < 4; round++) {
		char *memory = test_map_huge(BLOCKS);

		test_fill(memory, BLOCKS * BLOCK_PAGES, round);
		test_out(memory, BLOCKS * BLOCK_PAGES);
		if (round == 1)
			test_home(memory + 50 * PAGE, 100);
		if (round == 2)
			CHECK_EQ(*(volatile uint64_t *)(memory + 380 * PAGE), test_word(380, 0, round));
		if (round == 3)
			CHECK_EQ(mprotect(memory + 90 * PAGE, 20 * PAGE, PROT_READ), 0);
		unmap_parts(memory);
		check_rest(memory, round, round % 2);
		check_rest(memory, round, false);
		map_anew(memory, 100, 300);
		map_anew(memory, 1012, 20);
		check_rest(memory, round, true);
		/* The half of a block, and a discard beside it. */
		test_out(memory + 2 * BLOCK + 8 * PAGE, 504);
		CHECK_EQ(munmap(memory + 2 * BLOCK + 256 * PAGE, 256 * PAGE), 0);
		CHECK_EQ(madvise(memory + 2 * BLOCK + 8 * PAGE, 120 * PAGE, MADV_DONTNEED), 0);
		test_check_zero(memory + 2 * BLOCK + 8 * PAGE, 120);
		for (size_t i = 2 * BLOCK_PAGES + 128; i < 2 * BLOCK_PAGES + 256; i++)
			CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, round));
		CHECK_EQ(munmap(memory, BLOCKS * BLOCK), 0);
	}
	test_close();
}

/* hugetlb pages go whole or not at all; the device reaches what is left where it is. */
static void hugetlb(void)
{
	uint64_t word = 7;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = mmap(NULL, BLOCKS * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (memory == MAP_FAILED)
		test_skip("no hugetlb pages");
	test_fill(memory, BLOCKS * BLOCK_PAGES, 5);
	test_device_check(memory, BLOCKS * BLOCK_PAGES, 5);
	CHECK_EQ(munmap(memory + 100 * PAGE, 300 * PAGE), -1);
	CHECK_EQ(errno, EINVAL);
	test_device_check(memory, BLOCKS * BLOCK_PAGES, 5);
	CHECK_EQ(munmap(memory + BLOCK, BLOCK), 0);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + BLOCK, &word, 8), -EFAULT);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 2 * BLOCK - 8, &word, 8), -EFAULT);
	test_device_check(memory, BLOCK_PAGES, 5);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 2 * BLOCK, &word, 8), 8);
	CHECK_EQ(*(volatile uint64_t *)(memory + 2 * BLOCK), 7);
	CHECK_EQ(*(volatile uint64_t *)(memory + 2 * BLOCK + 8), test_word(1024, 1, 5));
	CHECK(mmap(memory + BLOCK, BLOCK, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_FIXED_NOREPLACE, -1, 0) == memory + BLOCK);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + BLOCK, &word, 8), 8);
	CHECK_EQ(word, 0);
	CHECK_EQ(munmap(memory, BLOCKS * BLOCK), 0);
	test_close();
}

/* ---- freed and allocated again ---------------------------------------------------------- */

/* Small, so that it is of the heap, with neighbours; and so large that it is a mapping by itself. */
static const size_t sizes[] = { 5000, 100000, 3000000 };
#define ROUNDS 12U
#define END 1UL

static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

/* An address: has a window over it for one read, and one write of what was read plus one. */
static void reused_driver(void)
{
	uint64_t address;

	test_driver_open(&quiet);
	while (test_hear(TEST_DRIVER_SOCKET, &address, NULL) && address != END) {
		unsigned long page = address & ~(PAGE - 1);
		struct hmm_window *window = NULL;
		volatile unsigned char *byte;
		unsigned char seen;

		CHECK_EQ(hmm_window_map(&mirror, page, PAGE, HMM_WINDOW_OFFSET, &window), 0);
		byte = (volatile unsigned char *)hmm_window_ptr(window, page) + (address - page);
		seen = *byte;
		*byte = (unsigned char)(seen + 1);
		CHECK_EQ(hmm_window_unmap(window), 0);
		test_tell(TEST_DRIVER_SOCKET, seen, -1);
	}
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static unsigned char seen_in_window(int socket, const unsigned char *byte)
{
	uint64_t seen;

	test_tell(socket, (uint64_t)byte, -1);
	CHECK(test_hear(socket, &seen, NULL));
	return (unsigned char)seen;
}

static void send_away(const unsigned char *bytes, size_t size)
{
	unsigned long start = (unsigned long)bytes & ~(PAGE - 1),
		      end = ((unsigned long)bytes + size + PAGE - 1) & ~(PAGE - 1);

	CHECK(hmm_migrate(&mirror, start, end - start, HMM_DEVICE, 0, NULL, NULL) >= 0);
}

static bool is_all(const unsigned char *bytes, size_t size, unsigned char value)
{
	return bytes[0] == value && !memcmp(bytes, bytes + 1, size - 1);
}

/* One life of a piece of memory: the device reads and writes it by its address, the driver through its window. */
static unsigned char *live(int socket, size_t size, unsigned char value, bool zeroed)
{
	unsigned char *bytes = zeroed ? calloc(1, size) : malloc(size), byte;
	size_t middle = size / 2;

	CHECK(bytes);
	if (zeroed)
		value = 0;
	else
		memset(bytes, value, size);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)bytes + middle, &byte, 1), 1);
	CHECK_EQ(byte, value);
	CHECK_EQ(seen_in_window(socket, bytes + middle), value);
	CHECK_EQ(seen_in_window(socket, bytes + middle), (unsigned char)(value + 1));
	CHECK_EQ(bytes[middle], (unsigned char)(value + 2));
	bytes[middle] = value;
	CHECK(is_all(bytes, size, value));
	send_away(bytes, size);
	byte = value;
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)bytes + size - 1, &byte, 1), 1);
	CHECK_EQ(seen_in_window(socket, bytes), value);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)bytes, &byte, 1), 1);
	if (value % 2) {
		CHECK(is_all(bytes, size, value));
		send_away(bytes, size);
	}
	return bytes;
}

static void reused(void)
{
	unsigned int again = 0;
	int socket;
	pid_t driver = test_driver_start("reused", &socket);

	test_open(0, DEVICE_MEMORY);
	test_invite(socket, NULL);
	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		unsigned char *before = NULL;

		for (unsigned int round = 0; round < ROUNDS; round++) {
			unsigned char *bytes = live(socket, sizes[i], (unsigned char)(16 * i + round + 1),
						    round % 4 == 3);

			again += bytes == before;
			before = bytes;
			/* Away, as it is, for the allocator to store into. */
			free(bytes);
		}
	}
	/* Else nothing of this was tried. */
	CHECK(again >= ROUNDS);
	test_tell(socket, END, -1);
	test_reap(driver, 0);
	test_close();
}

static const struct test_case cases[] = {
	{ "partly-unmapped", partly_unmapped, false },
	{ "hugetlb", hugetlb, true },
	{ "reused", reused, false },
	{ NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "reused", reused_driver, false },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
