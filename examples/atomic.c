// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * atomic.c - CPU and device count in the same two words. The first takes atomic
 * instructions on both sides, and needs no more. The second the device adds to by a load
 * and a store, as its own unit for atomics might: for that it has the page to itself, and
 * operates under the lock that the callback takes. So the CPU never comes between.
 *
 * The driver is this program again, started with the owner's key and the words' address.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <hmm/hmm.h>

#define PAGE	4096UL
#define BURST	100UL		/* operations, for which the device keeps the page if it can */
#define TAKEN	20UL		/* how often the CPU must have taken it back */

struct words {
	_Atomic unsigned long first, second;
	unsigned long bursts, done;		/* the driver's own */
};

static void must(long ret)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "atomic: %s\n", hmm_last_error());
	exit(EXIT_FAILURE);
}

/* ---- the driver ------------------------------------------------------------------ */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The page is no longer the device's. When this returns no operation on it is half done. */
static int let_go(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	(void)mirror, (void)update;
	pthread_mutex_lock(&lock);
	pthread_mutex_unlock(&lock);
	return 0;
}

static const struct hmm_mirror_ops ops = { .size = sizeof(ops),
					   .sync_cpu_device_pagetables = let_go };

static void add_slowly(volatile unsigned long *word)
{
	unsigned long seen = *word;

	for (volatile int i = 0; i < 1000; i++)
		;		/* time enough for the CPU, if it could */
	*word = seen + 1;
}

/* @words: where @address is mapped here. Return: operations; below BURST: the page was taken. */
static unsigned long burst(struct hmm_mirror *mirror, unsigned long address, struct words *words)
{
	unsigned long n;
	bool ours = true;

	if (hmm_device_exclusive_begin(mirror, address, PAGE, NULL) != 1)
		return 0;
	/* Under the lock nothing may wait for hmmd: the page is mapped here before. */
	words->bursts++;
	for (n = 0; n < BURST && ours; n += ours) {
		pthread_mutex_lock(&lock);
		ours = hmm_device_exclusive_check(mirror, address, PAGE);
		if (ours)
			add_slowly((volatile unsigned long *)&words->second);
		pthread_mutex_unlock(&lock);
	}
	return n;
}

static int driver(int key, unsigned long address)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "atomic", .memory = 64UL << 20, .node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};
	struct hmm_mirror mirror = { .ops = &ops };
	unsigned long taken = 0, done = 0, n;
	struct hmm_window *window;
	struct words *words;
	struct hmm *hmm;

	must(hmm_open_peer(key, NULL, &hmm));
	must(hmm_device_new(hmm, &options, &mirror.device));
	must(hmm_mirror_register(&mirror, hmm));
	must(hmm_window_map(&mirror, address, PAGE, HMM_WINDOW_OFFSET, &window));
	words = hmm_window_ptr(window, address);

	while (taken < TAKEN || done < BURST) {
		n = burst(&mirror, address, words);
		atomic_fetch_add(&words->first, n);
		done += n;
		taken += n < BURST;
	}
	words->done = done;
	must(hmm_window_unmap(window));
	must(hmm_mirror_unregister(&mirror));
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	return EXIT_SUCCESS;
}

/* ---- the owner --------------------------------------------------------------------- */

int main(int argc, char **argv)
{
	char key_text[16], words_text[32];
	unsigned long added = 0, wrong;
	struct words *words;
	struct hmm *hmm;
	int key, status;
	pid_t child;

	if (argc == 3)
		return driver(atoi(argv[1]), strtoul(argv[2], NULL, 0));
	words = aligned_alloc(PAGE, PAGE);
	if (!words)
		return EXIT_FAILURE;
	*words = (struct words){ 0 };
	must(hmm_open(NULL, &hmm));
	must(key = hmm_export(hmm));
	snprintf(key_text, sizeof(key_text), "%d", key);
	snprintf(words_text, sizeof(words_text), "%p", (void *)words);
	child = fork();
	if (child == 0) {
		fcntl(key, F_SETFD, 0);
		execl("/proc/self/exe", "atomic", key_text, words_text, NULL);
		_exit(127);
	}
	while (waitpid(child, &status, WNOHANG) == 0) {
		atomic_fetch_add(&words->first, 1);
		atomic_fetch_add(&words->second, 1);
		added++;
		usleep(400);
	}
	wrong = words->first != added + words->done || words->second != added + words->done;
	printf("the CPU added %lu, the device %lu in %lu bursts: the words are %lu and %lu\n", added,
	       words->done, words->bursts, words->first, words->second);
	hmm_close(hmm);
	free(words);
	return status || wrong;
}
