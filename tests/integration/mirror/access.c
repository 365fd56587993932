/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * access.c - hmm_device_read() and hmm_device_write() on memory of every kind
 * and in every state, and coherent memory from hmm_alloc().
 */
#include "mirror.h"

#include <fcntl.h>

#define DEVICE_MEMORY (256UL << 20)

/* Any alignment, across pages of which some are on the device, some shared, some at home. */
static void any_alignment(void)
{
	static unsigned char copy[16 * PAGE], model[16 * PAGE];
	unsigned char *memory;
	uint64_t random = 1;

	test_open(0, DEVICE_MEMORY);
	memory = (unsigned char *)test_map(16);
	test_fill(memory, 16, 1);
	memcpy(model, memory, sizeof(model));
	for (int round = 0; round < 1500; round++) {
		size_t first, length;

		random = random * 6364136223846793005ULL + 1442695040888963407ULL;
		first = (random >> 33) % sizeof(model);
		length = 1 + (random >> 20) % (round % 5 ? 100 : 3 * PAGE);
		if (length > sizeof(model) - first)
			length = sizeof(model) - first;
		switch (random >> 60) {
		case 0:
			test_migrate(memory + first / PAGE * PAGE, 1, HMM_DEVICE, NULL);
			break;
		case 1:
			test_migrate(memory, 16, HMM_DEVICE, NULL);
			break;
		case 2: case 3: case 4:
			memset(model + first, round, length);
			memset(memory + first, round, length);
			break;
		case 5: case 6: case 7: case 8: case 9:
			memset(model + first, round + 1, length);
			memset(copy, round + 1, length);
			CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + first, copy, length), length);
			break;
		default:
			CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + first, copy, length), length);
			CHECK(!memcmp(copy, model + first, length));
			break;
		}
		if (round % 50 == 0)
			CHECK(!memcmp(memory, model, sizeof(model)));
	}
	CHECK(!memcmp(memory, model, sizeof(model)));
	test_close();
}

/* More than a message holds. */
static void large(void)
{
	size_t pages = 3 * 512;
	char *memory, *copy = malloc(pages * PAGE);

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(3);
	test_fill(memory, pages, 2);
	test_out(memory + BLOCK, 512);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, copy, pages * PAGE), pages * PAGE);
	test_check(copy, pages, 2);
	test_fill(copy, pages, 3);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory, copy, pages * PAGE), pages * PAGE);
	test_check(memory, pages, 3);
	free(copy);
	test_close();
}

static void nothing_there(void)
{
	char *memory, copy[64];

	test_open(0, DEVICE_MEMORY);
	memory = test_map_apart(4);
	test_fill(memory, 4, 4);
	CHECK_EQ(munmap(memory + 2 * PAGE, PAGE), 0);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 2 * PAGE, copy, 8), -EFAULT);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 2 * PAGE, copy, 8), -EFAULT);
	CHECK_EQ(hmm_device_read(&mirror, 0, copy, 8), -EFAULT);
	CHECK_EQ(hmm_device_read(&mirror, 0x1000, copy, 8), -EFAULT);
	/* Short of the page that fails. */
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 2 * PAGE - 24, copy, 64), 24);
	CHECK(!memcmp(copy, memory + 2 * PAGE - 24, 24));
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 2 * PAGE - 24, copy, 64), 24);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, copy, 0), 0);
	test_check(memory, 2, 4);
	test_close();
}

static void protection(void)
{
	char *memory, copy[8] = "device!";

	test_open(0, DEVICE_MEMORY);
	memory = test_map(8);
	test_fill(memory, 8, 5);
	test_out(memory, 4);
	CHECK_EQ(mprotect(memory + 2 * PAGE, 4 * PAGE, PROT_READ), 0);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 2 * PAGE, copy, 8), -EPERM);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 5 * PAGE, copy, 8), -EPERM);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 5 * PAGE, copy, 8), 8);
	CHECK_EQ(mprotect(memory + 2 * PAGE, 4 * PAGE, PROT_NONE), 0);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 2 * PAGE, copy, 8), -EFAULT);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 5 * PAGE, copy, 8), -EFAULT);
	CHECK(hmm_device_write(&mirror, (unsigned long)memory + 5 * PAGE, copy, 8) < 0);
	CHECK_EQ(mprotect(memory + 2 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE), 0);
	test_check(memory, 8, 5);
	test_close();
}

/* A hole reads as zeros, and the first write makes the page. */
static void fresh_memory(void)
{
	static char copy[4 * PAGE];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(4);
	memset(copy, 1, sizeof(copy));
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, copy, sizeof(copy)), sizeof(copy));
	test_check_zero(copy, 4);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + PAGE, "made by the device", 19), 19);
	CHECK(!strcmp(memory + PAGE, "made by the device"));
	test_check_zero(memory, 1);
	test_close();
}

static void files(void)
{
	int file = memfd_create("file", MFD_CLOEXEC);
	char *ours, *private, copy[16];

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(ftruncate(file, 4 * PAGE), 0);
	ours = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	private = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	CHECK(ours != MAP_FAILED && private != MAP_FAILED);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)ours + 100, "for all", 8), 8);
	CHECK_EQ(pread(file, copy, 8, 100), 8);
	CHECK(!strcmp(copy, "for all"));
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)private + 100, copy, 8), 8);
	CHECK(!strcmp(copy, "for all"));
	/* A write to a private mapping is the program's alone. */
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)private + 100, "for one", 8), 8);
	CHECK(!strcmp(private + 100, "for one"));
	CHECK(!strcmp(ours + 100, "for all"));
	close(file);
	test_close();
}

static void many_states(void)
{
	size_t pages = 512;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(1);
	test_fill(memory, pages, 6);
	test_out(memory, pages);
	for (size_t i = 0; i < pages; i++)
		switch (i % 4) {
		case 0:		/* shared */
			CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 6));
			break;
		case 1:		/* home, written */
			*(volatile uint64_t *)(memory + i * PAGE) = test_word(i, 0, 6);
			break;
		default:	/* there */
			break;
		}
	test_device_check(memory, pages, 6);
	for (size_t i = 0; i < pages; i++) {
		uint64_t words[512];

		for (size_t j = 0; j < 512; j++)
			words[j] = test_word(i, j, 7);
		CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + i * PAGE, words, PAGE), PAGE);
	}
	test_device_check(memory, pages, 7);
	test_check(memory, pages, 7);
	test_close();
}

/* ---- coherent memory ----------------------------------------------------------- */

static void coherent(void)
{
	uint64_t word = 0;
	void *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_alloc(&mirror, 100 * PAGE, &memory), 0);
	test_check_zero(memory, 100);
	test_fill(memory, 100, 8);
	test_device_check(memory, 100, 8);
	for (size_t i = 0; i < 100; i++) {
		volatile uint64_t *page = (volatile uint64_t *)((char *)memory + i * PAGE);

		CHECK(hmm_mirror_lookup(&mirror, (unsigned long)page) & HMM_ENTRY_COHERENT);
		word = i;
		CHECK_EQ(hmm_device_write(&mirror, (unsigned long)page, &word, 8), 8);
		CHECK_EQ(page[0], i);
		page[0] = i + 1;
		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)page, &word, 8), 8);
		CHECK_EQ(word, i + 1);
	}
	CHECK_EQ(hmm_free(&mirror, memory, 100 * PAGE), 0);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, &word, 8), -EFAULT);
	test_close();
}

static void coherent_many(void)
{
	void *memory[64];

	test_open(0, DEVICE_MEMORY);
	for (int round = 0; round < 5; round++) {
		for (size_t i = 0; i < 64; i++) {
			CHECK_EQ(hmm_alloc(&mirror, (1 + i * 3) * PAGE, &memory[i]), 0);
			test_check_zero(memory[i], 1 + i * 3);
			test_fill(memory[i], 1 + i * 3, i);
		}
		for (size_t i = 0; i < 64; i++) {
			test_device_check(memory[i], 1 + i * 3, i);
			CHECK_EQ(hmm_free(&mirror, memory[i], (1 + i * 3) * PAGE), 0);
		}
	}
	test_close();
}

static void coherent_limits(void)
{
	void *memory = NULL;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_alloc(&mirror, 2 * DEVICE_MEMORY, &memory), -ENOSPC);
	CHECK_EQ(hmm_alloc(&mirror, 0, &memory), -EINVAL);
	CHECK_EQ(hmm_alloc(&mirror, 100, &memory), -EINVAL);
	CHECK_EQ(hmm_alloc(&mirror, DEVICE_MEMORY / 2, &memory), 0);
	test_fill(memory, DEVICE_MEMORY / 2 / PAGE, 9);
	test_check(memory, DEVICE_MEMORY / 2 / PAGE, 9);
	CHECK_EQ(hmm_free(&mirror, memory, DEVICE_MEMORY / 2), 0);
	CHECK_EQ(hmm_alloc(&mirror, DEVICE_MEMORY / 2, &memory), 0);
	test_check_zero(memory, DEVICE_MEMORY / 2 / PAGE);
	CHECK_EQ(hmm_free(&mirror, memory, DEVICE_MEMORY / 2), 0);
	test_close();
}

/* The system has four huge pages, the pool's size promises more: a refusal, and nobody is killed by a touch. */
static void coherent_few_huge_pages(void)
{
	void *memory = NULL, *more = NULL;

	test_open(0, 16 * BLOCK);
	for (int round = 0; round < 3; round++) {
		CHECK_EQ(hmm_alloc(&mirror, 8 * BLOCK, &memory), -ENOSPC);
		CHECK_EQ(hmm_alloc(&mirror, 4 * BLOCK, &memory), 0);
		CHECK_EQ(hmm_alloc(&mirror, BLOCK, &more), -ENOSPC);
		test_fill(memory, 4 * BLOCK / PAGE, 12);
		test_device_check(memory, 4 * BLOCK / PAGE, 12);
		CHECK_EQ(hmm_free(&mirror, memory, 4 * BLOCK), 0);
	}
	test_close();
}

/* It cannot migrate: it is where both want it. */
static void coherent_stays(void)
{
	uint8_t results[16];
	void *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_alloc(&mirror, 16 * PAGE, &memory), 0);
	test_fill(memory, 16, 10);
	test_migrate(memory, 16, HMM_DEVICE, results);
	test_device_check(memory, 16, 10);
	test_check(memory, 16, 10);
	test_migrate(memory, 16, HMM_SYSTEM, results);
	test_device_check(memory, 16, 10);
	test_check(memory, 16, 10);
	test_close();
}

/* It is shared memory: a child shares it with its parent, and with the device. */
static void coherent_forked(void)
{
	volatile uint64_t *word;
	uint64_t seen = 0;
	void *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_alloc(&mirror, 16 * PAGE, &memory), 0);
	test_fill(memory, 16, 11);
	word = memory;
	child = fork();
	if (!child) {
		test_check(memory, 16, 11);
		word[5] = 55;
		_exit(0);
	}
	test_reap(child, 0);
	CHECK_EQ(word[5], 55);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)&word[5], &seen, 8), 8);
	CHECK_EQ(seen, 55);
	word[5] = test_word(0, 5, 11);
	test_device_check(memory, 16, 11);
	test_close();
}

static const struct test_case cases[] = {
	{ "any-alignment", any_alignment, false }, { "large", large, false }, { "nothing-there", nothing_there, false },
	{ "protection", protection, false }, { "fresh-memory", fresh_memory, false }, { "files", files, false },
	{ "many-states", many_states, false }, { "coherent", coherent, false }, { "coherent-many", coherent_many, false },
	{ "coherent-limits", coherent_limits, false }, { "coherent-stays", coherent_stays, false },
	{ "coherent-forked", coherent_forked, false }, { "coherent-few-huge-pages", coherent_few_huge_pages, true },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
