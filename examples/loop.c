// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * loop.c - a driver that lives in an event loop (libuv). One thread does it all:
 * a timer gives the device work, and hmmd's callbacks come through a descriptor
 * that the loop polls. It is this program again, started with the owner's key
 * and a range.
 * With the argument - the owner goes on until its standard input ends.
 *
 * The device keeps a copy of one page, which a callback takes away. So as long as
 * it has a copy, the owner has not written to the page: it looks, now and then.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <hmm/hmm.h>
#include <uv.h>

#define PAGE	4096UL
#define PAGES	256UL
#define ROUNDS	2000

static void must(long ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "loop: %s: %s\n", what, hmm_last_error());
	exit(EXIT_FAILURE);
}

/* ---- the driver ------------------------------------------------------------ */

struct device {
	struct hmm_mirror mirror;
	struct hmm *hmm;
	unsigned long start, cached;		/* the page that there is a copy of; 0: none */
	unsigned char copy[PAGE];
	unsigned long copies, looks, callbacks, rounds;
	uv_timer_t work;
	uv_poll_t ready;
};

static int forget(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	struct device *device = (struct device *)mirror;

	device->callbacks++;
	if (device->cached >= update->start && device->cached < update->end)
		device->cached = 0;
	return 0;
}

/* The owner has ended: the loop does, too. */
static void stop(struct hmm_mirror *mirror)
{
	struct device *device = (struct device *)mirror;

	uv_close((uv_handle_t *)&device->work, NULL);
	uv_close((uv_handle_t *)&device->ready, NULL);
}

static const struct hmm_mirror_ops ops = { .size = sizeof(ops),
					   .release = stop, .sync_cpu_device_pagetables = forget };

static void callbacks_wait(uv_poll_t *handle, int status, int events)
{
	struct device *device = handle->data;

	must(hmm_dispatch(device->hmm, 0, 0), "hmm_dispatch");
}

/* Callbacks that come while these calls wait run inside of them. */
static void take_copy(struct device *device, unsigned long page)
{
	if (hmm_migrate(&device->mirror, page, PAGE, HMM_DEVICE, 0, NULL, NULL) != 1)
		return;
	device->cached = page;
	if (hmm_device_read(&device->mirror, page, device->copy, PAGE) != PAGE ||
	    !(hmm_mirror_lookup(&device->mirror, page) & HMM_ENTRY_VALID))
		device->cached = 0;
	device->copies++;
}

static void look(struct device *device)
{
	static unsigned char now[PAGE];

	if (hmm_device_read(&device->mirror, device->cached, now, PAGE) == PAGE && device->cached &&
	    memcmp(now, device->copy, PAGE)) {
		fprintf(stderr, "loop: the owner wrote, and nobody was told\n");
		exit(EXIT_FAILURE);
	}
	device->looks++;
}

static void do_work(uv_timer_t *timer)
{
	struct device *device = timer->data;

	if (!device->cached || device->rounds++ % 8 == 0)
		take_copy(device, device->start + (unsigned long)rand() % PAGES * PAGE);
	else
		look(device);
}

static int driver(int key, unsigned long start)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "loop", .memory = 64UL << 20, .node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};
	static struct device device = { .mirror = { .ops = &ops } };
	int fd;

	device.start = start;
	must(hmm_open_peer(key, NULL, &device.hmm), "hmm_open_peer");
	must(fd = hmm_dispatch_fd(device.hmm), "hmm_dispatch_fd");
	must(hmm_device_new(device.hmm, &options, &device.mirror.device), "hmm_device_new");
	must(hmm_mirror_register(&device.mirror, device.hmm), "hmm_mirror_register");

	device.work.data = device.ready.data = &device;
	uv_timer_init(uv_default_loop(), &device.work);
	uv_timer_start(&device.work, do_work, 1, 1);
	uv_poll_init(uv_default_loop(), &device.ready, fd);
	uv_poll_start(&device.ready, UV_READABLE, callbacks_wait);
	uv_run(uv_default_loop(), UV_RUN_DEFAULT);

	printf("%lu copies, %lu looks, %lu callbacks\n", device.copies, device.looks, device.callbacks);
	must(hmm_mirror_unregister(&device.mirror), "hmm_mirror_unregister");
	hmm_device_put(device.mirror.device);
	hmm_close(device.hmm);
	return EXIT_SUCCESS;
}

/* ---- the owner --------------------------------------------------------------- */

int main(int argc, char **argv)
{
	bool on = argc == 2 && strcmp(argv[1], "-") == 0;
	struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
	char key_text[16], start_text[32];
	volatile unsigned char *memory;
	struct hmm *hmm;
	int key, status;

	if (argc == 3)
		return driver(atoi(argv[1]), strtoul(argv[2], NULL, 0));
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset((void *)memory, 1, PAGES * PAGE);
	must(hmm_open(NULL, &hmm), "hmm_open");
	/* What kernels before Linux 6.8 want to be told: no I/O goes to these pages, nobody unmaps them. */
	must(hmm_advise(hmm, (unsigned long)memory, PAGES * PAGE, HMM_ADVISE_UNPINNED, NULL), "hmm_advise");
	must(key = hmm_export(hmm), "hmm_export");
	snprintf(key_text, sizeof(key_text), "%d", key);
	snprintf(start_text, sizeof(start_text), "%p", (void *)memory);
	if (fork() == 0) {
		fcntl(key, F_SETFD, 0);
		execl("/proc/self/exe", "loop", key_text, start_text, NULL);
		_exit(127);
	}
	for (unsigned long i = 0; i < ROUNDS || (on && poll(&input, 1, 0) == 0); i++) {
		memory[i % PAGES * PAGE]++;
		usleep(500);
	}
	hmm_close(hmm);
	wait(&status);
	return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE;
}
