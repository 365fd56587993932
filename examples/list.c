// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * list.c - a driver in another process follows the owner's pointers through a
 * window. It is this program again, started with the owner's key and a range.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <hmm/hmm.h>

struct node {
	struct node *next;
	long value;
};

/* This device keeps no translations of its own: nothing to call back for. */
static const struct hmm_mirror_ops ops = { .size = sizeof(ops) };

static void must(long ret)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "list: %s\n", hmm_last_error());
	exit(EXIT_FAILURE);
}

static int driver(int key, unsigned long list, unsigned long end)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "list", .memory = 64UL << 20, .node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};
	struct hmm_mirror mirror = { .ops = &ops };
	unsigned long start = list & ~4095UL;
	struct hmm_window *window;
	struct hmm *hmm;

	must(hmm_open_peer(key, NULL, &hmm));
	must(hmm_device_new(hmm, &options, &mirror.device));
	must(hmm_mirror_register(&mirror, hmm));
	must(hmm_window_map(&mirror, start, end - start, 0, &window));
	for (struct node *node = (struct node *)list; node; node = node->next)
		node->value *= 2;	/* the first touch brings the page to the device */
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	char key_text[16], list_text[32], end_text[32];
	struct node *list = NULL;
	struct hmm *hmm;
	long sum = 0;
	int key, status;

	if (argc == 4)
		return driver(atoi(argv[1]), strtoul(argv[2], NULL, 0), strtoul(argv[3], NULL, 0));
	for (struct node **at = &list; sum < 100000; at = &(*at)->next) {
		*at = malloc(sizeof(**at));
		**at = (struct node){ .value = sum++ };
	}
	must(hmm_open(NULL, &hmm));
	must(key = hmm_export(hmm));
	snprintf(key_text, sizeof(key_text), "%d", key);
	snprintf(list_text, sizeof(list_text), "%p", (void *)list);
	snprintf(end_text, sizeof(end_text), "%p", sbrk(0));
	if (fork() == 0) {
		fcntl(key, F_SETFD, 0);
		execl("/proc/self/exe", "list", key_text, list_text, end_text, NULL);
		_exit(127);
	}
	wait(&status);
	sum = 0;
	for (struct node *node = list; node; node = node->next)
		sum += node->value;
	printf("the driver's status is %d, the sum %ld\n", status, sum);
	hmm_close(hmm);
	return status != 0 || sum != 2 * 99999L * 100000 / 2;
}
