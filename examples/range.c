// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * range.c - a device with a page table of its own, as a kernel driver would run it:
 * a miss faults in all that is left of a range, the table is filled under a
 * lock if the range is still valid then, and a callback takes entries out again.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <hmm/hmm.h>

#define PAGE	4096UL
#define PAGES	512UL

/* The bits of this device's entries; the page's number is above them. */
enum { DEVICE_VALID = 1, DEVICE_WRITE = 2, DEVICE_LOCAL = 4, DEVICE_NONE = 0, DEVICE_BAD = 8 };
static const uint64_t flags[HMM_PFN_FLAG_MAX] = { DEVICE_VALID, DEVICE_WRITE, DEVICE_LOCAL };
static const uint64_t values[HMM_PFN_VALUE_MAX] = { DEVICE_BAD, DEVICE_NONE, DEVICE_BAD };

static struct device {
	struct hmm_mirror mirror;
	pthread_mutex_t lock;
	unsigned long start;		/* what it looks at */
	uint64_t table[PAGES];
	unsigned int faults, local;
} device = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void must(long ret)
{
	if (ret >= 0)
		return;
	fprintf(stderr, "range: %s\n", hmm_last_error());
	exit(EXIT_FAILURE);
}

/* It must not touch memory that may be on the device: the table is not. */
static int let_go(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	(void)mirror;
	pthread_mutex_lock(&device.lock);
	for (unsigned long i = 0; i < PAGES; i++)
		if (device.start + i * PAGE < update->end && device.start + (i + 1) * PAGE > update->start)
			device.table[i] = DEVICE_NONE;
	pthread_mutex_unlock(&device.lock);
	return 0;
}

static const struct hmm_mirror_ops ops = { .size = sizeof(ops),
					   .sync_cpu_device_pagetables = let_go };

/* A miss of page @first: it, and what lies behind it, in one go. */
static void device_fault(unsigned long first)
{
	static uint64_t pfns[PAGES];
	struct hmm_range range = { .pfns = pfns, .flags = flags, .values = values, .pfn_shift = 12,
				   .default_flags = DEVICE_VALID };
	long pages;

	must(hmm_range_register(&range, &device.mirror, device.start + first * PAGE,
				device.start + PAGES * PAGE, 12));
	for (;;) {
		if (!hmm_range_wait_until_valid(&range, HMM_RANGE_DEFAULT_TIMEOUT))
			continue;	/* a real driver gives up some time */
		pages = hmm_range_fault(&range, true);
		if (pages == -EAGAIN || pages == -EBUSY)
			continue;
		must(pages);
		pthread_mutex_lock(&device.lock);
		if (hmm_range_valid(&range))
			break;
		pthread_mutex_unlock(&device.lock);
	}
	memcpy(device.table + first, pfns, (unsigned long)pages * sizeof(*pfns));
	pthread_mutex_unlock(&device.lock);
	hmm_range_unregister(&range);
	device.faults++;
}

/* The device adds up the first word of each page. */
static unsigned long device_sum(void)
{
	unsigned long sum = 0, word;

	device.faults = device.local = 0;
	for (unsigned long i = 0; i < PAGES; i++) {
		if (!(device.table[i] & DEVICE_VALID))
			device_fault(i);
		device.local += device.table[i] & DEVICE_LOCAL ? 1 : 0;
		must(hmm_device_read(&device.mirror, device.start + i * PAGE, &word, sizeof(word)));
		sum += word;
	}
	return sum;
}

static int compare(const char *when, const unsigned long *memory)
{
	unsigned long seen = device_sum(), expected = 0;

	printf("%-28s %4u of %lu pages on the device, %u device faults\n", when, device.local, PAGES,
	       device.faults);
	for (unsigned long i = 0; i < PAGES; i++)
		expected += memory[i * PAGE / sizeof(*memory)];
	return seen != expected;
}

int main(void)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "range", .memory = 64UL << 20, .node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};
	unsigned long *memory;
	struct hmm *hmm;
	int wrong;

	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return EXIT_FAILURE;
	device.start = (unsigned long)memory;
	device.mirror.ops = &ops;
	must(hmm_open(NULL, &hmm));
	must(hmm_device_new(hmm, &options, &device.mirror.device));
	must(hmm_mirror_register(&device.mirror, hmm));

	wrong = compare("nothing written yet:", memory);
	for (unsigned long i = 0; i < PAGES; i++)
		memory[i * PAGE / sizeof(*memory)] = i;
	wrong |= compare("the CPU wrote:", memory);
	must(hmm_migrate(&device.mirror, device.start, PAGES / 2 * PAGE, HMM_DEVICE, 0, NULL, NULL));
	wrong |= compare("half of it migrated:", memory);
	madvise((char *)memory + PAGES / 4 * PAGE, PAGES / 2 * PAGE, MADV_DONTNEED);
	wrong |= compare("the middle thrown away:", memory);

	must(hmm_mirror_unregister(&device.mirror));
	hmm_device_put(device.mirror.device);
	hmm_close(hmm);
	return wrong;
}
