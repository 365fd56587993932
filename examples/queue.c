// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * queue.c - an accelerator in a thread of the owner itself: the template to copy.
 *
 * The program keeps records in linked lists, each from malloc(). A job is the pointer to
 * a list; the device follows it, computes, and writes results into the records. Meanwhile
 * the program works on other lists, whose pages then come home from under the device.
 *
 *	the program		rings in coherent memory	the device, a thread
 *	submit() ------------>	submission ring, doorbell ---->	device_run()
 *	complete() <----------	completion ring, interrupt <---	  tlb_lookup(), tlb_fill()
 *	touches a page ----------------- hmmd ---------------->	tlb_flush()
 *
 * What the device's TLB lacks is faulted in by a range; what changes is flushed by the
 * callback. A lock keeps the two apart, and is held over nothing that waits. The callback's
 * own data is static: were it among what migrates, it would wait for itself.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include <hmm/hmm.h>

#define PAGE		4096UL
#define LISTS		16
#define LENGTH		48	/* records in a list */
#define WORDS		60	/* in a record */
#define JOBS		(4 * LISTS)
#define RING		8	/* jobs under way at once */
#define TLB_ENTRIES	8

static void must(long ret, const char *what)
{
	if (ret < 0) {
		fprintf(stderr, "queue: %s: %s\n", what, hmm_last_error());
		exit(EXIT_FAILURE);
	}
}

struct record {
	struct record *next;
	unsigned long sum;		/* the device's answer */
	unsigned long word[WORDS];
};

struct job {
	struct record *list;
	unsigned int number;		/* the program's name for it */
	unsigned long sum;		/* of the whole list, when it is done */
};

/* In coherent memory, which both sides map. How many jobs wait is the count of an eventfd. */
struct rings {
	struct job submitted[RING], completed[RING];
};
_Static_assert(sizeof(struct rings) <= PAGE, "the rings are one page");

static unsigned long checksum(const struct record *record)
{
	unsigned long sum = 0;

	for (int i = 0; i < WORDS; i++)
		sum = sum * 31 + record->word[i];
	return sum;
}

/* ---- the device ------------------------------------------------------------------ */

enum { DEVICE_VALID = 1, DEVICE_WRITE = 2, DEVICE_LOCAL = 4, DEVICE_NONE = 0, DEVICE_BAD = 8 };
static const uint64_t flags[HMM_PFN_FLAG_MAX] = { DEVICE_VALID, DEVICE_WRITE, DEVICE_LOCAL };
static const uint64_t values[HMM_PFN_VALUE_MAX] = { DEVICE_BAD, DEVICE_NONE, DEVICE_BAD };

static struct device {
	struct hmm_mirror mirror;	/* first: the callback's mirror is the device */
	struct rings *rings;
	int doorbell, interrupt;	/* eventfds, as semaphores */
	bool stop;
	pthread_mutex_t lock;		/* of the TLB */
	struct { unsigned long page; uint64_t entry; } tlb[TLB_ENTRIES];
	unsigned long faults, retries, local, remote;	/* the device thread's */
	unsigned long invalidations;			/* under the lock */
} device = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* The owner's memory is about to change: when this returns the device has let go of it. */
static int tlb_flush(struct hmm_mirror *mirror, const struct hmm_update *update)
{
	struct device *dev = (struct device *)mirror;

	if (update->blockable)
		pthread_mutex_lock(&dev->lock);
	else if (pthread_mutex_trylock(&dev->lock))
		return -EAGAIN;
	dev->invalidations++;
	for (int i = 0; i < TLB_ENTRIES; i++)
		if (dev->tlb[i].page >= update->start && dev->tlb[i].page < update->end)
			dev->tlb[i].page = 0;
	pthread_mutex_unlock(&dev->lock);
	return 0;
}

static const struct hmm_mirror_ops ops = { .size = sizeof(ops), .sync_cpu_device_pagetables = tlb_flush };

static uint64_t tlb_lookup(struct device *dev, unsigned long page)
{
	unsigned int slot = page / PAGE % TLB_ENTRIES;
	uint64_t entry;

	pthread_mutex_lock(&dev->lock);
	entry = dev->tlb[slot].page == page ? dev->tlb[slot].entry : DEVICE_NONE;
	pthread_mutex_unlock(&dev->lock);
	return entry;
}

/* A miss. What the range says goes into the TLB if nothing has changed since the look began. */
static void tlb_fill(struct device *dev, unsigned long page)
{
	unsigned int slot = page / PAGE % TLB_ENTRIES;
	unsigned long number;
	uint64_t pfn = 0;
	struct hmm_range range = {
		.pfns = &pfn, .flags = flags, .values = values, .pfn_shift = 12,
		.default_flags = DEVICE_VALID | DEVICE_WRITE,
	};
	long ret;

	must(hmm_range_register(&range, &dev->mirror, page, page + PAGE, 12), "hmm_range_register");
	for (dev->faults++;; dev->retries++) {
		number = hmm_range_read_begin(&range);
		ret = hmm_range_fault(&range, true);
		if (ret == -EBUSY || ret == -EAGAIN)
			continue;
		must(ret, "hmm_range_fault");
		pthread_mutex_lock(&dev->lock);
		if (!hmm_range_read_retry(&range, number))
			break;
		pthread_mutex_unlock(&dev->lock);
	}
	dev->tlb[slot].page = page;
	dev->tlb[slot].entry = pfn;
	pthread_mutex_unlock(&dev->lock);
	hmm_range_unregister(&range);
}

/* The device's bus. It reaches a page wherever that is; the TLB says whether it may. */
static void device_access(struct device *dev, void *memory, void *buffer, size_t size, bool write)
{
	unsigned long addr = (unsigned long)memory;
	char *at = buffer;

	while (size) {
		unsigned long page = addr & ~(PAGE - 1);
		size_t n = page + PAGE - addr < size ? page + PAGE - addr : size;
		uint64_t entry = tlb_lookup(dev, page);

		if (!(entry & DEVICE_VALID)) {
			tlb_fill(dev, page);
			continue;
		}
		*(entry & DEVICE_LOCAL ? &dev->local : &dev->remote) += 1;
		if (write)
			must(hmm_device_write(&dev->mirror, addr, at, n), "hmm_device_write");
		else
			must(hmm_device_read(&dev->mirror, addr, at, n), "hmm_device_read");
		addr += n;
		at += n;
		size -= n;
	}
}

static unsigned long device_job(struct device *dev, struct record *list)
{
	unsigned long total = 0;
	struct record record;

	for (; list; list = record.next) {
		device_access(dev, list, &record, sizeof(record), false);
		record.sum = checksum(&record);
		device_access(dev, &list->sum, &record.sum, sizeof(record.sum), true);
		total += record.sum;
	}
	return total;
}

static void *device_run(void *data)
{
	struct device *dev = data;
	eventfd_t one;

	for (unsigned int n = 0; !eventfd_read(dev->doorbell, &one) && !dev->stop; n++) {
		struct job job = dev->rings->submitted[n % RING];

		job.sum = device_job(dev, job.list);
		dev->rings->completed[n % RING] = job;
		eventfd_write(dev->interrupt, 1);
	}
	return NULL;
}

/* ---- the program ------------------------------------------------------------------- */

static struct list {
	struct record *first;
	unsigned long start, end;	/* the pages that it lies on */
} lists[LISTS];
static unsigned long moved, wrong;

static void make(struct list *list, unsigned long seed)
{
	for (int n = 0; n < LENGTH; n++) {
		struct record *record = malloc(sizeof(*record));
		unsigned long start = (unsigned long)record & ~(PAGE - 1);
		unsigned long end = ((unsigned long)(record + 1) + PAGE - 1) & ~(PAGE - 1);

		must(record ? 0 : -ENOMEM, "malloc");
		for (unsigned long i = 0; i < WORDS; i++)
			record->word[i] = seed++ * 2654435761;
		record->next = list->first;
		list->first = record;
		list->start = n && list->start < start ? list->start : start;
		list->end = list->end > end ? list->end : end;
	}
}

/* Its pages go to the device first, which would find them at home, too. */
static void submit(const struct list *list, unsigned int number)
{
	static unsigned int n;
	long pages = hmm_migrate(&device.mirror, list->start, list->end - list->start, HMM_DEVICE, 0,
				 NULL, NULL);

	must(pages, "hmm_migrate");
	moved += (unsigned long)pages;
	device.rings->submitted[n++ % RING] = (struct job){ .list = list->first, .number = number };
	eventfd_write(device.doorbell, 1);
}

/* The next answer. The program checks it and changes the records: their pages come home. */
static void complete(void)
{
	static unsigned int n;
	unsigned long total = 0;
	eventfd_t one;
	struct job job;

	eventfd_read(device.interrupt, &one);
	job = device.rings->completed[n++ % RING];
	for (struct record *record = lists[job.number].first; record; record = record->next) {
		total += checksum(record);
		wrong += record->sum != checksum(record);
		record->word[n % WORDS] ^= total;
	}
	wrong += job.sum != total;
}

int main(void)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "queue", .memory = 64UL << 20, .node = -1,
		.caps = HMM_DEVICE_FAULTS,
	};
	pthread_t thread;
	struct hmm *hmm;
	void *rings;

	device.mirror.ops = &ops;
	must(hmm_open(NULL, &hmm), "hmm_open");
	must(hmm_device_new(hmm, &options, &device.mirror.device), "hmm_device_new");
	must(hmm_mirror_register(&device.mirror, hmm), "hmm_mirror_register");
	must(hmm_alloc(&device.mirror, PAGE, &rings), "hmm_alloc");
	device.rings = rings;
	device.doorbell = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
	device.interrupt = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
	if (pthread_create(&thread, NULL, device_run, &device))
		return EXIT_FAILURE;

	for (unsigned int i = 0; i < LISTS; i++)
		make(&lists[i], i);
	for (unsigned int i = 0; i < JOBS + RING; i++) {
		if (i >= RING)
			complete();
		if (i < JOBS)
			submit(&lists[i % LISTS], i % LISTS);
	}
	device.stop = true;
	eventfd_write(device.doorbell, 1);
	pthread_join(thread, NULL);

	must(hmm_free(&device.mirror, rings, PAGE), "hmm_free");
	must(hmm_mirror_unregister(&device.mirror), "hmm_mirror_unregister");
	hmm_device_put(device.mirror.device);
	hmm_close(hmm);
	printf("%d jobs on lists of %d records: %lu wrong answers\n", JOBS, LENGTH, wrong);
	printf("%lu pages sent to the device; %lu accesses to them there, %lu at home\n", moved,
	       device.local, device.remote);
	printf("%lu device faults, %lu retries, %lu invalidations\n", device.faults, device.retries,
	       device.invalidations);
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
