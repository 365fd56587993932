// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * share.c - memory that a thread is using becomes coherent under its hands: one
 * thread counts in a page without ever stopping, and the device reads the count
 * from the very same page; then the page is ordinary memory again. Needs a
 * running hmmd.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <hmm/hmm.h>

/* Coherent memory comes in blocks of 2 MiB. */
#define BLOCK	(2UL << 20)

static _Atomic unsigned long *counter;
static atomic_bool enough;

/* The device holds nothing back: there is nothing to forget. */
static int forget(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	return 0;
}

static const struct hmm_mirror_ops ops = { .size = sizeof(ops),
					   .sync_cpu_device_pagetables = forget };

static void check(long ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "share: %s: %s\n", what, hmm_last_error());
	exit(EXIT_FAILURE);
}

static void *count(void *unused)
{
	while (!atomic_load(&enough))
		atomic_fetch_add(counter, 1);
	return NULL;
}

static unsigned long device_reads(struct hmm_mirror *mirror)
{
	unsigned long seen = 0;

	check(hmm_device_read(mirror, (unsigned long)counter, &seen, sizeof(seen)), "hmm_device_read");
	return seen;
}

static const char *kind(struct hmm_mirror *mirror)
{
	return hmm_mirror_lookup(mirror, (unsigned long)counter) & HMM_ENTRY_COHERENT ? "coherent" : "ordinary";
}

int main(void)
{
	struct hmm_device_options options = { .size = sizeof(options), .memory = 64UL << 20, .node = -1,
					      .caps = HMM_DEVICE_FAULTS };
	struct hmm_mirror mirror = { .ops = &ops };
	unsigned long first, second;
	pthread_t thread;
	char name[32];
	struct hmm *hmm;
	char *memory;

	check(hmm_open(NULL, &hmm), "hmm_open");
	snprintf(name, sizeof(name), "share-%d", getpid());
	options.name = name;
	check(hmm_device_new(hmm, &options, &mirror.device), "hmm_device_new");
	check(hmm_mirror_register(&mirror, hmm), "hmm_mirror_register");

	/* Around it nothing else of the program: a thread's stack beside it would have to stay. */
	memory = aligned_alloc(BLOCK, 3 * BLOCK);
	if (!memory)
		return EXIT_FAILURE;
	counter = (_Atomic unsigned long *)(memory + BLOCK);
	if (pthread_create(&thread, NULL, count, NULL))
		return EXIT_FAILURE;

	printf("the thread counts in %s memory\n", kind(&mirror));
	check(hmm_share(&mirror, memory + BLOCK, BLOCK), "hmm_share");
	printf("it goes on, in %s memory\n", kind(&mirror));
	first = device_reads(&mirror);
	do
		second = device_reads(&mirror);
	while (second == first);
	printf("the device sees it count\n");
	check(hmm_unshare(&mirror, memory + BLOCK, BLOCK), "hmm_unshare");
	printf("it still goes on, in %s memory\n", kind(&mirror));

	atomic_store(&enough, true);
	pthread_join(thread, NULL);
	check(hmm_mirror_unregister(&mirror), "hmm_mirror_unregister");
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	free(memory);
	return EXIT_SUCCESS;
}
