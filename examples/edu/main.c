// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * main.c - what a card behind an IOMMU does to malloc'ed memory through hmmd: it reads and writes
 * it at the program's own addresses, while it is there; and nothing once it is not.
 *
 *	edu 0000:00:04.0			the card, bound to vfio-pci
 *	edu 0000:00:04.0 0000:00:05.0 2		... and a BAR of another one, where that memory lies then
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "edu.h"

#define BLOCK  (2UL << 20)
#define PAGE   4096UL
#define MEMORY (16UL << 20)

static struct hmm *hmm;
static struct edu *edu;

static void must(int error, const char *what)
{
	if (!error)
		return;
	fprintf(stderr, "edu: %s: %s\n", what,
		*hmm_last_error() ? hmm_last_error() : strerror(-error));
	exit(EXIT_FAILURE);
}

static void write_text(char *to, unsigned int seed)
{
	for (size_t i = 0; i < EDU_MOST; i++)
		to[i] = (char)(seed * 31 + i * 7 + i / 256);
}

/* Every byte counts. */
static void compare(const char *what, const char *found, const char *expected)
{
	bool same = memcmp(found, expected, EDU_MOST) == 0;

	printf("%-58s %s\n", what, same ? "yes" : "NO");
	if (!same)
		exit(EXIT_FAILURE);
}

static void pin(char *memory)
{
	struct hmm_advise_options options = {.size = sizeof(options), .mirror = edu_mirror(edu)};

	/* Linux before 6.8 moves only what is promised to be in nobody's I/O. */
	must(hmm_advise(hmm, (unsigned long)memory, BLOCK, HMM_ADVISE_UNPINNED, NULL), "advise");
	must(hmm_advise(hmm, (unsigned long)memory, BLOCK, HMM_ADVISE_PIN, &options), "pin");
}

static void unpin(char *memory)
{
	struct hmm_advise_options options = {.size = sizeof(options), .mirror = edu_mirror(edu)};

	must(hmm_unadvise(hmm, (unsigned long)memory, BLOCK, HMM_ADVISE_PIN, &options), "unpin");
}

int main(int argc, char **argv)
{
	static char text[EDU_MOST], other[EDU_MOST];
	const char *other_card = argc == 4 ? argv[2] : NULL;
	char *memory, *copy, *last;

	if (argc != 2 && argc != 4) {
		fprintf(stderr, "usage: edu PCI-ADDRESS [PCI-ADDRESS BAR]\n");
		return EXIT_FAILURE;
	}
	memory = aligned_alloc(BLOCK, BLOCK);
	last = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!memory || last == MAP_FAILED)
		return EXIT_FAILURE;
	copy = memory + 100 * PAGE;
	must(hmm_open(NULL, &hmm), "open");
	must(edu_open(hmm, argv[1], MEMORY, other_card, other_card ? (unsigned int)atoi(argv[3]) : 0, &edu),
	     argv[1]);

	write_text(text, 1);
	memcpy(memory, text, EDU_MOST);
	pin(memory);
	must(edu_load(edu, memory, EDU_MOST), "the card reads");
	must(edu_store(edu, copy, EDU_MOST), "the card writes");
	unpin(memory);
	compare(other_card ? "pinned memory, copied in the other card, and back at home:"
			   : "pinned memory, copied by the card, and back at home:", copy, text);

	/* No CPU reaches a page in a card. */
	if (!other_card) {
		write_text(text, 2);
		memcpy(memory, text, EDU_MOST);
		must(hmm_share(edu_mirror(edu), memory, BLOCK), "share");
		must(edu_load(edu, memory, EDU_MOST), "the card reads");
		must(edu_store(edu, copy, EDU_MOST), "the card writes");
		compare("shared memory, which both have at the same time:", copy, text);
		must(hmm_unshare(edu_mirror(edu), memory, BLOCK), "unshare");
	}
	edu_store_blindly(edu, memory + 200 * PAGE, EDU_MOST);
	compare("ordinary memory again, which the card cannot write:", memory + 200 * PAGE, other);

	/* The card has the text of before, and its last target becomes other memory. */
	pin(last);
	must(edu_store(edu, last, EDU_MOST), "the card writes");
	munmap(last, BLOCK);
	last = mmap(last, BLOCK, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (last == MAP_FAILED)
		return EXIT_FAILURE;
	write_text(other, 3);
	memcpy(last, other, EDU_MOST);
	edu_store_blindly(edu, last, EDU_MOST);
	compare("memory at an address that was unmapped, untouched:", last, other);

	edu_close(edu);
	hmm_close(hmm);
	free(memory);
	return 0;
}
