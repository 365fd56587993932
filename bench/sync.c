// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sync.c - bringing a tracked mirror's copy up to date, one page in a hundred written, beside memcpy() of those
 * very pages into memory that was touched before. Ours finds them first. The note says what the kernel's quickest copy
 * of memory that may be unmapped meanwhile, process_vm_readv() of pages known beforehand, has of memcpy()'s rate.
 *
 * The copy is compared at the end, page by page.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bench/rig/rig.h"

static void write_to(char *memory, const uint32_t *order, size_t pages)
{
	for (size_t i = 0; i < pages; i++)
		memory[order[i] * PAGE]++;
}

static int in_order(const void *a, const void *b)
{
	const uint32_t *left = a, *right = b;

	return *left < *right ? -1 : *left > *right;
}

/* Less what the agent waited for a processor. */
static double time_ours(struct hmm_mirror *replica, pid_t agent, const char *memory, size_t bytes, size_t pages)
{
	double off = waited(agent), start = now();
	long n = hmm_mirror_sync(replica, (unsigned long)memory, bytes, 0, NULL);
	double end = now() - (waited(agent) - off);

	hmm_check(n, "hmm_mirror_sync");
	if ((size_t)n != pages)
		fail("%ld pages were copied and %zu written", n, pages);
	return end - start;
}

static double time_floor(char *to, const char *from, const uint32_t *order, size_t pages)
{
	double start = now_served();

	for (size_t i = 0; i < pages; i++)
		memcpy(to + order[i] * PAGE, from + order[i] * PAGE, PAGE);
	return now_served() - start;
}

#define BATCH	512U

static double time_kernel(char *to, char *from, const uint32_t *order, size_t pages)
{
	static struct iovec local[BATCH], remote[BATCH];
	double start = now_served();
	pid_t self = getpid();

	for (size_t i = 0, n; i < pages; i += n) {
		for (n = 0; n < BATCH && i + n < pages; n++) {
			local[n] = (struct iovec){ to + order[i + n] * PAGE, PAGE };
			remote[n] = (struct iovec){ from + order[i + n] * PAGE, PAGE };
		}
		if (process_vm_readv(self, local, n, remote, n, 0) != (ssize_t)(n * PAGE))
			fail("process_vm_readv: %s", strerror(errno));
	}
	return now_served() - start;
}

int main(int argc, char **argv)
{
	static struct figures figures = { .row = "dirty-sync", .unit = "MB/s" };
	static double kernel[512];	/* of memcpy()'s rate */
	unsigned int measured = 0;
	const struct hmm_mirror_ops ops = { .size = sizeof(ops), .flags = HMM_MIRROR_TRACKED };
	struct hmm_device_options options = { .size = sizeof(options), .name = "replica" };
	struct hmm_mirror replica = { .ops = &ops };
	struct arguments arguments;
	struct mirrored mirrored;
	size_t all, some;
	pid_t agent;
	char *memory, *to, note[64];

	arguments_read(&arguments, argc, argv);
	all = arguments.bytes / PAGE;
	some = all / 100;
	warm_up(arguments.bytes * 7 / 2);
	memory = memory_new(arguments.bytes, false);
	to = memory_new(arguments.bytes, false);
	mirrored_open(&mirrored, 16 * MIB);
	agent = library_thread("hmm-agent");
	options.memory = arguments.bytes + 4 * MIB;
	hmm_check(hmm_device_new(mirrored.hmm, &options, &replica.device), "hmm_device_new");
	hmm_check(hmm_mirror_register(&replica, mirrored.hmm), "hmm_mirror_register");
	hmm_check(hmm_advise(mirrored.hmm, (unsigned long)memory, arguments.bytes, HMM_ADVISE_UNPINNED, NULL), "hmm_advise");
	hmm_check(hmm_mirror_track(&replica, (unsigned long)memory, arguments.bytes, 0), "hmm_mirror_track");
	hmm_check(hmm_mirror_sync(&replica, (unsigned long)memory, arguments.bytes, 0, NULL), "hmm_mirror_sync");
	for (unsigned int round = 0; round <= arguments.rounds; round++) {
		uint32_t *order = permutation((uint32_t)all, round + 1);
		double mine = 0, least = 0, copied = 0, megabytes = (double)some * (double)PAGE / 1e6;

		write_to(memory, order, some);
		/* All go upwards, and each is the first as often as the others: the next finds its bytes in a cache. */
		qsort(order, some, sizeof(*order), in_order);
		for (unsigned int turn = round; turn < round + 3; turn++) {
			if (turn % 3 == 0)
				least = time_floor(to, memory, order, some);
			else if (turn % 3 == 1)
				mine = time_ours(&replica, agent, memory, arguments.bytes, some);
			else
				copied = time_kernel(to, memory, order, some);
		}
		free(order);
		if (!round)
			continue;
		figures_add(&figures, megabytes / mine, megabytes / least);
		kernel[measured++ % 512] = least / copied;
	}
	if (memcmp(hmm_mirror_copy(&replica, (unsigned long)memory), memory, arguments.bytes))
		fail("the copy is not what it should be");
	snprintf(note, sizeof(note), "\"process_vm_readv\": %.3g", quantile(kernel, measured < 512 ? measured : 512, 0.5));
	figures_print(&figures, note);
	hmm_check(hmm_mirror_unregister(&replica), "hmm_mirror_unregister");
	hmm_device_put(replica.device);
	mirrored_close(&mirrored);
	return 0;
}
