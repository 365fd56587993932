// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * copyengine.c - a device whose memory no CPU but the driver's reaches: here the driver's
 * own array. Its copies are all that brings bytes there and back. The driver is this program
 * again, started with the owner's key and a range.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <hmm/hmm.h>

#define PAGE 4096UL
#define PAGES 1024UL

static char card[PAGES][PAGE];
static bool used[PAGES];

static void must(long ret)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "copyengine: %s\n", hmm_last_error());
	exit(EXIT_FAILURE);
}

static void alloc_and_copy(struct hmm_devmem *devmem, const struct hmm_devmem_move *move)
{
	unsigned long n = 0;

	for (unsigned long i = 0; i < move->pages; i++) {
		if (!move->src[i])
			continue;
		while (n < PAGES && used[n])
			n++;
		if (n == PAGES)
			return;		/* no room: the rest stays with the owner */
		used[n] = true;
		memcpy(card[n], move->src[i], PAGE);
		move->dst[i] = &devmem->pages[n];
	}
}

static int fault(struct hmm_devmem *devmem, unsigned long addr, const struct hmm_page *page, unsigned int flags)
{
	void *to = hmm_vma_alloc_locked_page(devmem, addr);

	(void)flags;
	if (!to)
		return HMM_FAULT_OOM;
	memcpy(to, card[page - devmem->pages], PAGE);
	return HMM_FAULT_MINOR;
}

static void free_page(struct hmm_devmem *devmem, struct hmm_page *page)
{
	used[page - devmem->pages] = false;
}

static const struct hmm_mirror_ops ops = { .size = sizeof(ops) };	/* nothing to call back for */

static const struct hmm_devmem_ops memory = {
	.size = sizeof(memory),
	.alloc_and_copy = alloc_and_copy, .fault = fault, .free = free_page,
};

static int driver(int key, unsigned long start, size_t length)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "copyengine", .node = -1,
		.caps = HMM_DEVICE_FAULTS | HMM_DEVICE_COPY_ENGINE,
	};
	struct hmm_mirror mirror = { .ops = &ops };
	struct hmm_devmem *devmem;
	unsigned long there = 0;
	struct hmm *hmm;

	must(hmm_open_peer(key, NULL, &hmm));
	must(hmm_device_new(hmm, &options, &mirror.device));
	must(hmm_devmem_add(&memory, mirror.device, PAGES * PAGE, &devmem));
	must(hmm_mirror_register(&mirror, hmm));
	must(hmm_migrate(&mirror, start, length, HMM_DEVICE, 0, NULL, NULL));
	for (unsigned long n = 0; n < PAGES; n++) {
		there += used[n];
		card[n][0]++;		/* the device computes, in its own memory */
	}
	printf("%lu pages are in memory that only the driver reaches\n", there);
	must(hmm_mirror_unregister(&mirror));	/* brings them home */
	hmm_close(hmm);
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	char key_text[16], start_text[32], length_text[32], *bytes;
	struct hmm *hmm;
	unsigned long changed = 0;
	int key, status;

	if (argc == 4)
		return driver(atoi(argv[1]), strtoul(argv[2], NULL, 0), strtoul(argv[3], NULL, 0));
	must(hmm_open(NULL, &hmm));
	must(key = hmm_export(hmm));
	fcntl(key, F_SETFD, 0);
	bytes = aligned_alloc(PAGE, 256 * PAGE);
	if (!bytes)
		return EXIT_FAILURE;
	memset(bytes, 'a', 256 * PAGE);
	snprintf(key_text, sizeof(key_text), "%d", key);
	snprintf(start_text, sizeof(start_text), "%p", (void *)bytes);
	snprintf(length_text, sizeof(length_text), "%lu", 256 * PAGE);
	if (fork() == 0) {
		execl("/proc/self/exe", "copyengine", key_text, start_text, length_text, (char *)NULL);
		_exit(127);
	}
	wait(&status);
	for (unsigned long i = 0; i < 256; i++)
		changed += bytes[i * PAGE] == 'b';
	printf("%lu pages came home changed by the device\n", changed);
	hmm_close(hmm);
	free(bytes);
	return status;
}
