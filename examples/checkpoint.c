// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * checkpoint.c - a copy of a program's memory that is brought up to date without stopping it:
 * main() copies what was written since the last round, a thread writes on. At the end, when
 * it has stopped, one more round makes them equal. Needs a running hmmd.
 *
 * Only memory of which the program says that nothing pins it is looked at page by page; all
 * else would be told, and copied, each time.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <hmm/hmm.h>

#define PAGE	4096UL
#define PAGES	16384UL
#define SIZE	(PAGES * PAGE)
#define ROUNDS	10

static atomic_bool enough;

static void check(long ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "checkpoint: %s: %s\n", what, hmm_last_error());
	exit(EXIT_FAILURE);
}

static char *map(void)
{
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		perror("checkpoint: mmap");
		exit(EXIT_FAILURE);
	}
	return memory;
}

/* One page in a hundred, again and again. */
static void *work(void *data)
{
	volatile char *memory = data;

	for (unsigned long i = 0; !atomic_load(&enough); i++)
		memory[i * 101 % (PAGES / 100) * 100 * PAGE + i % PAGE]++;
	return NULL;
}

static long bring_up_to_date(struct hmm_dirty *dirty, char *copy, const char *memory)
{
	static uint64_t written[PAGES / 64];
	long pages = hmm_dirty_read(dirty, (unsigned long)memory, SIZE, HMM_DIRTY_CLEAR, written, NULL);

	check(pages, "hmm_dirty_read");
	for (size_t page = 0; page < PAGES; page++)
		if (written[page / 64] >> (page % 64) & 1)
			memcpy(copy + page * PAGE, memory + page * PAGE, PAGE);
	return pages;
}

int main(void)
{
	struct hmm_dirty *dirty;
	char *memory, *copy;
	pthread_t worker;
	struct hmm *hmm;
	long pages, later = 0;

	check(hmm_open(NULL, &hmm), "hmm_open");
	memory = map();
	copy = map();
	memset(memory, 1, SIZE);
	check(hmm_advise(hmm, (unsigned long)memory, SIZE, HMM_ADVISE_UNPINNED, NULL), "hmm_advise");
	check(hmm_dirty_start(hmm, (unsigned long)memory, SIZE, 0, &dirty), "hmm_dirty_start");
	pages = bring_up_to_date(dirty, copy, memory);
	printf("at first %ld of %lu pages were copied\n", pages, PAGES);
	if (pthread_create(&worker, NULL, work, memory))
		return EXIT_FAILURE;
	for (int i = 0; i < ROUNDS; i++) {
		usleep(10000);
		later += bring_up_to_date(dirty, copy, memory);
	}
	atomic_store(&enough, true);
	pthread_join(worker, NULL);
	later += bring_up_to_date(dirty, copy, memory);
	printf("then %ld, in %d rounds\n", later, ROUNDS + 1);
	printf("the copy is %s\n", memcmp(copy, memory, SIZE) ? "not the same" : "the same");
	check(hmm_dirty_stop(dirty), "hmm_dirty_stop");
	hmm_close(hmm);
	return 0;
}
