/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * told.c - see told.h.
 */
#include "told.h"

#include <poll.h>

struct hmm_mirror told[TOLD_MAX];
_Atomic unsigned int calls, calls_of[TOLD_MAX];
pthread_t caller;
struct hmm_update last_update;
char *changed;

static _Atomic unsigned int running;

bool readable(int fd)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

	CHECK(poll(&poll_fd, 1, 0) >= 0);
	return poll_fd.revents & POLLIN;
}

void wait_readable(int fd)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

	CHECK_EQ(poll(&poll_fd, 1, -1), 1);
	CHECK_EQ(poll_fd.revents, POLLIN);
}

static int count_call(struct hmm_mirror *me, const struct hmm_update *update)
{
	CHECK_EQ(atomic_fetch_add(&running, 1), 0);
	CHECK(me >= told && me < told + TOLD_MAX);
	CHECK_EQ(update->event, HMM_UPDATE_INVALIDATE);
	caller = pthread_self();
	last_update = *update;
	atomic_fetch_add(&calls, 1);
	atomic_fetch_add(&calls_of[me - told], 1);
	atomic_fetch_sub(&running, 1);
	return 0;
}

const struct hmm_mirror_ops counting = { .size = sizeof(counting),
					 .sync_cpu_device_pagetables = count_call };

void tell_mirrors(unsigned int n, const struct hmm_mirror_ops *operations)
{
	char name[16];

	for (unsigned int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "told-%u", i);
		told[i].device = test_device(name, DEVICE_MEMORY);
		told[i].ops = operations;
		CHECK_EQ(hmm_mirror_register(&told[i], hmm), 0);
	}
}

void forget_mirrors(unsigned int n)
{
	for (unsigned int i = 0; i < n; i++) {
		CHECK_EQ(hmm_mirror_unregister(&told[i]), 0);
		hmm_device_put(told[i].device);
	}
}

int open_loop(unsigned int n, const struct hmm_mirror_ops *operations)
{
	int fd;

	test_open(0, DEVICE_MEMORY);
	fd = hmm_dispatch_fd(hmm);
	CHECK(fd >= 0);
	tell_mirrors(n, operations);
	return fd;
}

int begin_loop(unsigned int n, const struct hmm_mirror_ops *operations)
{
	int fd = open_loop(n, operations);

	changed = test_map_in_block(PAGES);
	test_fill(changed, PAGES, 1);
	return fd;
}

void *migrate_out(void *arg)
{
	CHECK_EQ(hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL), PAGES);
	return NULL;
}

void *try_out(void *arg)
{
	hmm_migrate(&told[0], (unsigned long)changed, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL);
	return NULL;
}

void *write_all(void *arg)
{
	test_fill(changed, PAGES, 2);
	return NULL;
}

void *dispatch_one(void *arg)
{
	CHECK_EQ(hmm_dispatch(hmm, 1, -1), 1);
	return NULL;
}

pthread_t start(void *(*change)(void *))
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, change, NULL), 0);
	return thread;
}

pthread_t start_and_hear(void *(*change)(void *), int fd)
{
	pthread_t thread = start(change);

	wait_readable(fd);
	return thread;
}

void run_until_joined(pthread_t thread)
{
	while (pthread_tryjoin_np(thread, NULL))
		hmm_dispatch(hmm, 0, 20);
}
