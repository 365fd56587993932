// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * replica.c - a device that takes no faults and has a copy of a program's memory: a tracked mirror.
 * hmm_mirror_sync() copies what was written since the last time, while a thread writes on; at the end, when
 * it has stopped, once more. Needs a running hmmd.
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

static long check(long ret, const char *what)
{
	if (ret >= 0)
		return ret;
	fprintf(stderr, "replica: %s: %s\n", what, hmm_last_error());
	exit(EXIT_FAILURE);
}

/* One page in a hundred, again and again. */
static void *work(void *data)
{
	volatile char *memory = data;

	for (unsigned long i = 0; !atomic_load(&enough); i++)
		memory[i * 101 % (PAGES / 100) * 100 * PAGE + i % PAGE]++;
	return NULL;
}

int main(void)
{
	const struct hmm_device_options options = { .size = sizeof(options), .name = "replica", .memory = SIZE + (4UL << 20) };
	const struct hmm_mirror_ops ops = { .size = sizeof(ops), .flags = HMM_MIRROR_TRACKED };
	struct hmm_mirror mirror = { .ops = &ops };
	pthread_t worker;
	struct hmm *hmm;
	long first, later = 0;
	char *memory;

	check(hmm_open(NULL, &hmm), "hmm_open");
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return EXIT_FAILURE;
	memset(memory, 1, SIZE);
	/* Nothing pins it: so it can be known which pages are written. */
	check(hmm_advise(hmm, (unsigned long)memory, SIZE, HMM_ADVISE_UNPINNED, NULL), "hmm_advise");
	check(hmm_device_new(hmm, &options, &mirror.device), "hmm_device_new");
	check(hmm_mirror_register(&mirror, hmm), "hmm_mirror_register");
	check(hmm_mirror_track(&mirror, (unsigned long)memory, SIZE, 0), "hmm_mirror_track");
	first = check(hmm_mirror_sync(&mirror, (unsigned long)memory, SIZE, 0, NULL), "hmm_mirror_sync");
	printf("at first %ld of %lu pages were copied\n", first, PAGES);
	if (pthread_create(&worker, NULL, work, memory))
		return EXIT_FAILURE;
	for (int i = 0; i < ROUNDS; i++) {
		usleep(10000);
		later += check(hmm_mirror_sync(&mirror, (unsigned long)memory, SIZE, 0, NULL), "hmm_mirror_sync");
	}
	atomic_store(&enough, true);
	pthread_join(worker, NULL);
	later += check(hmm_mirror_sync(&mirror, (unsigned long)memory, SIZE, 0, NULL), "hmm_mirror_sync");
	printf("then %ld, in %d rounds\n", later, ROUNDS + 1);
	printf("the copy is %s\n", memcmp(hmm_mirror_copy(&mirror, (unsigned long)memory), memory, SIZE) ? "not the same" : "the same");
	check(hmm_mirror_unregister(&mirror), "hmm_mirror_unregister");
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	return 0;
}
