// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * hello.c - the smallest use of libhmmclient: one process is owner and driver.
 *
 * A buffer from malloc() goes to device memory, the device changes it there,
 * and the CPU's next touch brings the page home, changed. Needs a running hmmd.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <hmm/hmm.h>

#define SIZE	(8UL << 20)

/*
 * The device must forget [update->start, update->end) before this returns. It
 * runs while a thread may wait for the page, so it takes no lock that the
 * thread may hold: printf() here could wait for the printf() that touched it.
 */
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
	fprintf(stderr, "hello: %s: %s\n", what, hmm_last_error());
	exit(EXIT_FAILURE);
}

static const char *where(struct hmm_mirror *mirror, const void *address)
{
	uint64_t entry = hmm_mirror_lookup(mirror, (unsigned long)address);

	if (!(entry & HMM_ENTRY_DEVICE))
		return "at home";
	return entry & HMM_ENTRY_WRITE ? "on the device" : "on both sides, to be read";
}

int main(void)
{
	struct hmm_device_options options = { .size = sizeof(options), .memory = 64UL << 20, .node = -1,
					      .caps = HMM_DEVICE_FAULTS };
	struct hmm_mirror mirror = { .ops = &ops };
	struct hmm_migrate_report report;
	char name[32], *buffer;
	struct hmm *hmm;

	check(hmm_open(NULL, &hmm), "hmm_open");
	snprintf(name, sizeof(name), "hello-%d", getpid());
	options.name = name;
	check(hmm_device_new(hmm, &options, &mirror.device), "hmm_device_new");
	check(hmm_mirror_register(&mirror, hmm), "hmm_mirror_register");

	buffer = aligned_alloc(4096, SIZE);
	memset(buffer, '.', SIZE);
	strcpy(buffer, "written by the CPU");
	check(hmm_migrate(&mirror, (unsigned long)buffer, SIZE, HMM_DEVICE, 0, NULL, &report), "hmm_migrate");
	printf("%lu of %lu pages moved; the first is %s\n", report.moved, report.pages, where(&mirror, buffer));

	/* The device has the CPU's pointer. */
	check(hmm_device_write(&mirror, (unsigned long)buffer + 15, "device", 7), "hmm_device_write");
	printf("the device wrote; the page is %s\n", where(&mirror, buffer));
	printf("the CPU reads: %s\n", buffer);
	printf("now the page is %s\n", where(&mirror, buffer));
	buffer[0] = 'W';
	printf("the CPU wrote; the page is %s\n", where(&mirror, buffer));

	check(hmm_mirror_unregister(&mirror), "hmm_mirror_unregister");
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	free(buffer);
	return EXIT_SUCCESS;
}
