/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload.c - libhmmpreload.so: mirrors a program that knows nothing of it.
 *
 * The happy path: hmmctl run makes a device, names it in HMM_PRELOAD_DEVICE and
 * starts the program with this module preloaded. The constructor opens the
 * process's address space and registers a mirror on that device; from then on
 * hmmctl steers. New threads exclude their stacks (preload_thread.c).
 *
 * The program must not notice: nothing is printed, no descriptor of its table is
 * taken, no signal is handled. What goes wrong leaves the program without a
 * mirror and one line in the file that HMM_PRELOAD_LOG names.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <hmm/hmm.h>

#include "preload.h"

/* .data is part of a file mapping and so never on a device, unlike .bss. */
#define MODULE_DATA __attribute__((section(".data")))

static struct hmm *space MODULE_DATA = NULL;
static struct hmm_mirror mirror MODULE_DATA = { .hmm = NULL };
static const struct hmm_mirror_ops no_callbacks = { .size = sizeof(no_callbacks) };
static char log_path[256] MODULE_DATA = "";

struct hmm *preload_space(void)
{
	return __atomic_load_n(&space, __ATOMIC_ACQUIRE);
}

static void note(const char *what, const char *text)
{
	char line[512];
	int fd, length;

	if (!log_path[0])
		return;
	fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	length = snprintf(line, sizeof(line), "%d %s: %s\n", getpid(), what, text);
	if (length > (int)sizeof(line) - 1)
		length = sizeof(line) - 1;
	if (write(fd, line, (size_t)length) < 0)
		length = 0;	/* there is nobody to tell */
	close(fd);
}

static void library_says(void *data, int level, const char *text)
{
	note("library", text);
}

__attribute__((constructor)) static void preload(void)
{
	struct hmm_open_options options = { .size = sizeof(options), .flags = HMM_OPEN_PRELOADED };
	const char *device = secure_getenv("HMM_PRELOAD_DEVICE");
	const char *log = secure_getenv("HMM_PRELOAD_LOG");
	struct hmm *hmm;

	if (!device || !*device)
		return;
	if (log && strlen(log) < sizeof(log_path)) {
		strcpy(log_path, log);
		hmm_set_log(library_says, NULL);
	}
	if (hmm_open(&options, &hmm)) {
		note("open", hmm_last_error());
		return;
	}
	mirror.ops = &no_callbacks;
	if (hmm_device_open(hmm, device, &mirror.device) || hmm_mirror_register(&mirror, hmm)) {
		note(device, hmm_last_error());
		hmm_device_put(mirror.device);
		hmm_close(hmm);
		return;
	}
	__atomic_store_n(&space, hmm, __ATOMIC_RELEASE);
}
