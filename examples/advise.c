// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * advise.c - saying how memory is used: a table that both sides read, and a
 * buffer that has to stay on the device. Owner and driver are one process, and
 * each piece of advice is answered with what becomes of it. Needs a running hmmd.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <hmm/hmm.h>

#define SIZE	(4UL << 20)

static const struct hmm_mirror_ops ops = { .size = sizeof(ops) };

static void check(long ret, const char *what)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "advise: %s: %s\n", what, hmm_last_error());
	exit(EXIT_FAILURE);
}

static void show(struct hmm *hmm, const char *name, const void *memory)
{
	struct hmm_policy policy = { .size = sizeof(policy) };

	check(hmm_range_get_attribute(hmm, (unsigned long)memory, SIZE, &policy), "hmm_range_get_attribute");
	printf("%s: %lu of %lu pages are on the device%s%s\n", name, policy.on_device, policy.pages,
	       policy.why[0] ? "; not as said: " : "", policy.why);
}

int main(void)
{
	struct hmm_device_options device = { .size = sizeof(device), .memory = 64UL << 20, .node = -1,
					     .caps = HMM_DEVICE_FAULTS };
	struct hmm_mirror mirror = { .ops = &ops };
	struct hmm_advise_options on_device = { .size = sizeof(on_device), .mirror = &mirror };
	char name[32], *table, *buffer;
	unsigned long sum = 0;
	struct hmm *hmm;

	check(hmm_open(NULL, &hmm), "hmm_open");
	snprintf(name, sizeof(name), "advise-%d", getpid());
	device.name = name;
	check(hmm_device_new(hmm, &device, &mirror.device), "hmm_device_new");
	check(hmm_mirror_register(&mirror, hmm), "hmm_mirror_register");
	table = aligned_alloc(2UL << 20, SIZE);
	buffer = aligned_alloc(2UL << 20, SIZE);
	if (!table || !buffer)
		return EXIT_FAILURE;
	memset(table, 1, SIZE);
	memset(buffer, 2, SIZE);

	/* Both read it: after this both have it, and reading it takes it from neither. */
	check(hmm_advise(hmm, (unsigned long)table, SIZE, HMM_ADVISE_SET_READ_MOSTLY, NULL), "READ_MOSTLY");
	check(hmm_advise(hmm, (unsigned long)table, SIZE, HMM_ADVISE_SET_ACCESSED_BY, &on_device), "ACCESSED_BY");
	for (size_t i = 0; i < SIZE; i += 4096)
		sum += (unsigned char)table[i];
	show(hmm, "the table, read by the CPU", table);

	/* All of it is there when this returns, or none was moved. */
	check(hmm_advise(hmm, (unsigned long)buffer, SIZE, HMM_ADVISE_PIN, &on_device), "PIN");
	show(hmm, "the buffer, pinned", buffer);
	buffer[0] = 3;
	show(hmm, "the buffer, written by the CPU", buffer);

	/* Its bytes have served their purpose: nothing is copied home. */
	check(hmm_advise(hmm, (unsigned long)buffer, SIZE, HMM_ADVISE_DISCARD, NULL), "DISCARD");
	check(hmm_unadvise(hmm, (unsigned long)buffer, SIZE, HMM_ADVISE_PIN, NULL), "unpin");
	show(hmm, "the buffer, discarded", buffer);
	printf("%lu pages added up; the buffer's last byte is %d\n", sum, buffer[SIZE - 1]);

	check(hmm_mirror_unregister(&mirror), "hmm_mirror_unregister");
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	free(table);
	free(buffer);
	return EXIT_SUCCESS;
}
