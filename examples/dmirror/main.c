// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * main.c - what a device can do with a program's memory, a step at a time. The
 * program's own thread is the CPU here, and gives the device its commands. Each step
 * prints what came of it, and the exit status tells whether all bytes were right.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dmirror.h"

#define PAGE		4096UL
#define BLOCK		(2UL << 20)
#define PAGES		16

static struct dmirror *here, *there;	/* two devices */
static struct dmirror_counts counts;
static int wrong;

static void must(long ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "dmirror: %s: %s\n", what, hmm_last_error());
	exit(EXIT_FAILURE);
}

static void expect(bool right, const char *what)
{
	if (!right)
		printf("  WRONG: %s\n", what);
	wrong += !right;
}

static void step(const char *what)
{
	printf("%-44s %5lu pages %3lu faults\n", what, counts.pages, counts.faults);
}

/* A character for each page; hexadecimal is what a program would look at. */
static void snapshot(const char *what, const void *memory, size_t pages)
{
	unsigned char bytes[PAGES];

	must(dmirror_snapshot(here, (unsigned long)memory, pages * PAGE, bytes), "snapshot");
	printf("%-44s", what);
	for (size_t i = 0; i < pages; i++)
		printf(" %02x", bytes[i]);
	printf("\n");
}

/* The middle of a mapping of its own: @size bytes around the beginning of a block of 2 MiB. */
static char *map(size_t size)
{
	char *memory = mmap(NULL, 8 * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		perror("dmirror: mmap");
		exit(EXIT_FAILURE);
	}
	return (char *)(((unsigned long)memory + 4 * BLOCK) & ~(BLOCK - 1)) - size / 2;
}

static void reads_and_writes(void)
{
	char *memory = map(PAGES * PAGE);
	unsigned long addr = (unsigned long)memory;
	char *bytes = malloc(PAGES * PAGE);

	memset(memory, 'c', PAGES * PAGE);
	must(dmirror_read(here, addr, bytes, PAGES * PAGE, &counts), "read");
	step("the device reads what the CPU wrote");
	expect(!memcmp(bytes, memory, PAGES * PAGE), "the device read other bytes");

	memset(bytes, 'd', PAGES * PAGE);
	must(dmirror_write(here, addr, bytes, PAGES * PAGE, &counts), "write");
	step("the device writes, in place");
	expect(!memcmp(bytes, memory, PAGES * PAGE), "the CPU reads other bytes");

	must(dmirror_read(here, addr + PAGE - 4, bytes, 8, &counts), "read");
	step("it reads again: its own table has all");
	expect(!memcmp(bytes, "dddddddd", 8) && !counts.faults, "the second read");
	munmap(memory, PAGES * PAGE);
	expect(dmirror_read(here, addr, bytes, PAGE, &counts) == -EFAULT, "unmapped memory was read");
	free(bytes);
}

static void migrates(void)
{
	char *memory = map(PAGES * PAGE);
	unsigned long addr = (unsigned long)memory;
	char bytes[PAGE];

	memset(memory, 'c', PAGES * PAGE);
	must(dmirror_migrate(here, addr, PAGES * PAGE, HMM_DEVICE, &counts), "migrate");
	step("pages go to the device");
	memset(bytes, 'd', PAGE);
	must(dmirror_write(here, addr, bytes, PAGE, &counts), "write");
	step("the device writes one there");
	expect(memory[0] == 'd' && memory[PAGE] == 'c', "what came home");
	snapshot("the CPU has touched two", memory, PAGES);
	must(dmirror_evict_all(here, &counts), "evict");
	step("everything goes home");
	munmap(memory, PAGES * PAGE);
}

/* One page of each kind. A block of 2 MiB belongs to one device, so the two devices have one each. */
static void looks(void)
{
	char *memory = map(8 * PAGE);
	char *huge = map(0), byte;
	unsigned long addr = (unsigned long)memory;
	void *both;

	for (size_t page = 1; page < 7; page++)
		memory[page * PAGE] = (char)page;
	expect(memory[7 * PAGE] == 0, "what nobody wrote");	/* now it is the page of zeros */
	must(dmirror_migrate(here, addr + 3 * PAGE, PAGE, HMM_DEVICE, &counts), "migrate");
	must(dmirror_migrate(there, addr + 4 * PAGE, PAGE, HMM_DEVICE, &counts), "migrate");
	mprotect(memory + 2 * PAGE, PAGE, PROT_READ);
	mprotect(memory + 5 * PAGE, PAGE, PROT_NONE);
	munmap(memory + 6 * PAGE, PAGE);
	snapshot("hole, rw, r, here, there, none, gone, zero", memory, 8);
	munmap(memory, 8 * PAGE);

	madvise(huge, BLOCK, MADV_HUGEPAGE);
	memset(huge, 'h', BLOCK);
	snapshot("huge, where the system has huge pages", huge, 2);
	munmap(huge, BLOCK);

	/* The kernel's own code in every program. */
	snapshot("what is not memory", (void *)getauxval(AT_SYSINFO_EHDR), 1);

	must(dmirror_alloc(here, BLOCK, &both), "alloc");
	memset(both, 'b', BLOCK);
	snapshot("memory that CPU and device both map", both, 2);
	must(dmirror_read(here, (unsigned long)both, &byte, 1, &counts), "read");
	expect(byte == 'b', "the device read another byte");
	must(dmirror_free(here, both, BLOCK), "free");
}

static void has_to_itself(void)
{
	char *memory = map(PAGES * PAGE);
	unsigned long addr = (unsigned long)memory;

	memset(memory, 'c', PAGES * PAGE);
	must(dmirror_exclusive(here, addr, PAGES * PAGE, &counts), "exclusive");
	step("pages that the device has to itself");
	expect(!dmirror_check_exclusive(here, addr, PAGES * PAGE), "they are not its own");
	expect(memory[PAGE] == 'c', "what came home");
	expect(dmirror_check_exclusive(here, addr + PAGE, PAGE) == -EPERM, "the CPU's touch took nothing back");
	munmap(memory, PAGES * PAGE);
}

int main(void)
{
	char name[32];
	struct hmm *hmm;

	must(hmm_open(NULL, &hmm), "hmm_open");
	snprintf(name, sizeof(name), "dmirror-%d-a", getpid());
	must(dmirror_open(hmm, name, 64UL << 20, &here), name);
	snprintf(name, sizeof(name), "dmirror-%d-b", getpid());
	must(dmirror_open(hmm, name, 64UL << 20, &there), name);

	reads_and_writes();
	migrates();
	looks();
	has_to_itself();

	must(dmirror_close(there), "close");
	must(dmirror_close(here), "close");
	hmm_close(hmm);
	printf("%s\n", wrong ? "some bytes were wrong" : "every byte was right");
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
