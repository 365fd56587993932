// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * driver.c - the process that runs the device.
 *
 * It opens the owner's address space with the key, makes a device and mirrors
 * the owner on it, and maps a window: from then on the owner's pointers are
 * good here. It walks the index again and again, writes scores and answers
 * through those pointers, and stops after a walk that began when the index no
 * longer grew. Meanwhile the churn thread keeps the blocks moving.
 *
 * The window needs the owner's own addresses. Where one is taken here (the
 * kernel lays out every program at random) the process executes itself anew.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <hmm/hmm.h>

#include "churn.h"
#include "count.h"
#include "map.h"
#include "message.h"
#include "roles.h"

struct driver {
	struct board *board;
	int to_owner;
	struct hmm *hmm;		/* the owner's address space */
	struct hmm_device *device;
	struct hmm_mirror mirror;
	struct hmm_window *window;
	struct view view;
};

static int complain(const char *what)
{
	fprintf(stderr, "demo: driver: %s: %s\n", what, hmm_last_error());
	return EXIT_FAILURE;
}

/*
 * This device keeps no translations of its own that would have to be flushed:
 * hmmd itself takes pages out of the window. See hello.c for one that is told.
 */
static const struct hmm_mirror_ops mirror_ops = { .size = sizeof(mirror_ops) };

static int open_owner(struct driver *driver)
{
	struct hmm_open_options options = {
		.size = sizeof(options),
		.socket = driver->board->options.socket[0] ? driver->board->options.socket : NULL,
		.name = "demo driver",
	};
	int key, ret;

	if (message_wait(driver->to_owner, &key) != KEY)
		return EXIT_FAILURE;
	ret = hmm_open_peer(key, &options, &driver->hmm);
	close(key);
	return ret ? complain("cannot open the owner's memory") : 0;
}

static int make_mirror(struct driver *driver)
{
	size_t size = driver->board->options.size;
	char name[32];
	struct hmm_device_options options = {
		.size = sizeof(options),
		.name = name,
		.memory = size + size / 4 + (64UL << 20),
		.node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};

	snprintf(name, sizeof(name), "demo-%d", getpid());
	if (hmm_device_new(driver->hmm, &options, &driver->device))
		return complain("cannot make a device");
	driver->mirror.ops = &mirror_ops;
	driver->mirror.device = driver->device;
	if (hmm_mirror_register(&driver->mirror, driver->hmm))
		return complain("cannot mirror the owner");
	return 0;
}

static int make_view(struct driver *driver)
{
	int ret;

	if (driver->board->options.no_window)
		return view_init_remote(&driver->view, &driver->mirror) ? EXIT_FAILURE : 0;
	ret = hmm_window_map(&driver->mirror, 0, 0, 0, &driver->window);
	if (ret == -EEXIST)
		return DRIVER_TRY_AGAIN;
	return ret ? complain("cannot map the window") : 0;
}

/* Without a window reads are remembered, so they have to wait until nothing is added. */
static void wait_for_seal(struct driver *driver, const struct index *index)
{
	uint32_t sealed = 0;

	while (!sealed && !driver->view.error) {
		nanosleep(&(struct timespec){ .tv_nsec = 10 * 1000 * 1000 }, NULL);
		if (hmm_device_read(&driver->mirror, (uintptr_t)&index->sealed, &sealed,
				    sizeof(sealed)) < 0)
			driver->view.error = -EFAULT;
	}
}

static int walk(struct driver *driver)
{
	struct board *board = driver->board;
	struct index *index = (struct index *)board->index;
	struct timespec start, end;
	bool sealed;
	long words;

	if (board->options.no_window)
		wait_for_seal(driver, index);
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		sealed = view_load(&driver->view, &index->sealed);
		words = count_words(board, DRIVER, &driver->view, index, true);
		if (words < 0)
			return complain("the walk broke off");
		if (board->figures.passes++ == 0)
			map_print("during", &driver->mirror, &board->blocks);
	} while (!sealed);
	clock_gettime(CLOCK_MONOTONIC, &end);
	board->figures.written = driver->view.stores;
	board->figures.seconds = (double)(end.tv_sec - start.tv_sec) +
				 (double)(end.tv_nsec - start.tv_nsec) / 1e9;
	printf("driver %d: walked %lu times over %ld words by the owner's pointers,"
	       " wrote %lu scores and answers, %.2f s\n", getpid(), board->figures.passes, words,
	       board->figures.written, board->figures.seconds);
	fflush(stdout);
	return 0;
}

static int work(struct driver *driver)
{
	struct churn churn;
	int ret;

	map_print("before", &driver->mirror, &driver->board->blocks);
	if (churn_start(&churn, &driver->mirror, driver->board))
		return EXIT_FAILURE;
	ret = message_send(driver->to_owner, READY, -1) ? walk(driver) : EXIT_FAILURE;
	if (churn_finish(&churn))
		ret = EXIT_FAILURE;
	if (!ret && (!message_send(driver->to_owner, COUNTED, -1) ||
		     message_wait(driver->to_owner, NULL) != FINISH))
		ret = EXIT_FAILURE;
	if (!ret)
		map_print("after", &driver->mirror, &driver->board->blocks);
	return ret;
}

static void let_go_of_all(struct driver *driver)
{
	view_deinit(&driver->view);
	hmm_window_unmap(driver->window);
	if (driver->mirror.hmm)
		hmm_mirror_unregister(&driver->mirror);
	hmm_device_put(driver->device);
	hmm_close(driver->hmm);
}

int driver_run(struct board *board, int to_owner, char **argv)
{
	struct driver driver = { .board = board, .to_owner = to_owner };
	int ret;

	ret = open_owner(&driver);
	if (!ret)
		ret = make_mirror(&driver);
	if (!ret)
		ret = make_view(&driver);
	if (!ret)
		ret = work(&driver);
	let_go_of_all(&driver);
	if (ret == DRIVER_TRY_AGAIN && message_send(to_owner, AGAIN, -1))
		execv("/proc/self/exe", argv);
	return ret;
}
