// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * hello.c - the smallest use of libhmmclient: one process is owner and driver.
 *
 * A buffer from malloc() goes to device memory, the device changes it there,
 * and the CPU's next touch brings it home, changed. Needs a running hmmd.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <hmm/hmm.h>

#define PAGE	4096UL
#define SIZE	(8UL << 20)

/* The device's page table is a view of ours: it must forget [start, end) before we go on. */
static int forget(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	printf("the device lets go of %lx-%lx, reason %d\n", update->start, update->end,
	       update->reason);
	return 0;
}

static const struct hmm_mirror_ops ops = { .sync_cpu_device_pagetables = forget };

static void check(long ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "hello: %s: %s\n", what, hmm_last_error());
	exit(EXIT_FAILURE);
}

static const char *where(struct hmm_mirror *mirror, const void *address)
{
	return hmm_mirror_lookup(mirror, (unsigned long)address) & HMM_ENTRY_DEVICE ?
	       "in device memory" : "at home";
}

int main(void)
{
	struct hmm_device_options options = { .size = sizeof(options), .memory = 64UL << 20, .node = -1 };
	struct hmm_mirror mirror = { .ops = &ops };
	struct hmm_migrate_report report;
	char name[32], *buffer;
	struct hmm *hmm;

	check(hmm_open(NULL, &hmm), "hmm_open");
	snprintf(name, sizeof(name), "hello-%d", getpid());
	options.name = name;
	check(hmm_device_new(hmm, &options, &mirror.device), "hmm_device_new");
	check(hmm_mirror_register(&mirror, hmm), "hmm_mirror_register");

	buffer = aligned_alloc(PAGE, SIZE);
	memset(buffer, '.', SIZE);
	strcpy(buffer, "written by the CPU");
	check(hmm_migrate(&mirror, (unsigned long)buffer, SIZE, HMM_DEVICE, 0, NULL, &report),
	      "hmm_migrate");
	printf("%lu of %lu pages moved; the first is %s\n", report.moved, report.pages,
	       where(&mirror, buffer));

	/* An address leads the device to the same bytes. Nothing else would have to change. */
	check(hmm_device_write(&mirror, (unsigned long)buffer + 15, "device", 7), "hmm_device_write");
	printf("the device wrote; the page is still %s\n", where(&mirror, buffer));
	printf("the CPU reads: %s\n", buffer);
	printf("... and that brought it %s\n", where(&mirror, buffer));

	check(hmm_mirror_unregister(&mirror), "hmm_mirror_unregister");
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	free(buffer);
	return EXIT_SUCCESS;
}
