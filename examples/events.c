// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * events.c - what becomes of a program's pages, as it happens. A thread polls a ring of
 * events and prints them, while main() sends a buffer to device memory, touches it, and
 * protects it. Needs a running hmmd.
 *
 * The ring never makes anybody wait: what does not fit is counted.
 */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <hmm/hmm.h>

#define SIZE	(1UL << 20)

static const char *const kinds[] = {
	[HMM_EVENT_CPU_FAULT] = "the CPU touched",
	[HMM_EVENT_MIGRATE_OUT] = "to the device",
	[HMM_EVENT_MIGRATE_HOME] = "home",
	[HMM_EVENT_EVICT] = "evicted",
	[HMM_EVENT_INVALIDATE] = "invalidated",
	[HMM_EVENT_WINDOW_FAULT] = "a window asked for",
	[HMM_EVENT_REVOKED] = "a window was revoked",
	[HMM_EVENT_POISON] = "a window may not have",
	[HMM_EVENT_PIN_BROKEN] = "a pin was broken",
	[HMM_EVENT_LOST] = "hmmd was restarted",
};

struct listener {
	struct hmm_events *events;
	int stop;		/* an eventfd */
};

static void check(long ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "events: %s: %s\n", what, hmm_last_error());
	exit(EXIT_FAILURE);
}

static void print_all(struct hmm_events *events)
{
	struct hmm_event seen[16];
	int n;

	while ((n = hmm_event_read(events, seen, 16)) > 0)
		for (int i = 0; i < n; i++)
			printf("%lu.%06lu  %-20s %#lx-%#lx, %lu pages\n", seen[i].time / 1000000000,
			       seen[i].time / 1000 % 1000000, kinds[seen[i].kind], seen[i].start,
			       seen[i].end, seen[i].pages);
}

static void *listen_on(void *data)
{
	struct listener *listener = data;
	struct pollfd fds[] = {
		{ .fd = hmm_event_fd(listener->events), .events = POLLIN },
		{ .fd = listener->stop, .events = POLLIN },
	};

	while (!fds[1].revents && poll(fds, 2, -1) > 0)
		print_all(listener->events);
	return NULL;
}

int main(void)
{
	struct hmm_device_options options = { .size = sizeof(options), .memory = 64UL << 20, .node = -1,
					      .caps = HMM_DEVICE_FAULTS };
	struct hmm_event_options kinds_wanted = { .size = sizeof(kinds_wanted) };	/* all of them */
	static const struct hmm_mirror_ops ops = { .size = sizeof(ops) };
	struct hmm_mirror mirror = { .ops = &ops };
	struct listener listener;
	pthread_t thread;
	char name[32], *buffer;
	struct hmm *hmm;

	check(hmm_open(NULL, &hmm), "hmm_open");
	snprintf(name, sizeof(name), "events-%d", getpid());
	options.name = name;
	check(hmm_device_new(hmm, &options, &mirror.device), "hmm_device_new");
	check(hmm_mirror_register(&mirror, hmm), "hmm_mirror_register");
	check(hmm_event_open(hmm, &kinds_wanted, &listener.events), "hmm_event_open");
	listener.stop = eventfd(0, EFD_CLOEXEC);
	pthread_create(&thread, NULL, listen_on, &listener);

	buffer = aligned_alloc(4096, SIZE);
	memset(buffer, '.', SIZE);
	check(hmm_migrate(&mirror, (unsigned long)buffer, SIZE, HMM_DEVICE, 0, NULL, NULL), "hmm_migrate");
	buffer[5000] = 'x';
	/* What the device may not write any more is at home when this returns. */
	mprotect(buffer, SIZE, PROT_READ);
	mprotect(buffer, SIZE, PROT_READ | PROT_WRITE);

	eventfd_write(listener.stop, 1);
	pthread_join(thread, NULL);
	printf("%lu events did not fit\n", hmm_event_dropped(listener.events));
	hmm_event_close(listener.events);
	check(hmm_mirror_unregister(&mirror), "hmm_mirror_unregister");
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	free(buffer);
	return EXIT_SUCCESS;
}
