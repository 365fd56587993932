// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * replica.c - see replica.h.
 */
#include "replica.h"

#include "dirty.h"

const struct hmm_mirror_ops tracked_ops = { .size = sizeof(tracked_ops), .flags = HMM_MIRROR_TRACKED };
static struct hmm_device *device;
struct hmm_mirror replica;

void open_replica(uint64_t memory)
{
	open_tracked();
	device = test_device("replica", memory);
	replica.ops = &tracked_ops;
	replica.device = device;
	CHECK_EQ(hmm_mirror_register(&replica, hmm), 0);
}

void close_replica(void)
{
	CHECK_EQ(hmm_mirror_unregister(&replica), 0);
	hmm_device_put(device);
	test_close();
}

void track(void *memory, size_t pages)
{
	CHECK_EQ(hmm_mirror_track(&replica, (unsigned long)memory, pages * PAGE, 0), 0);
}

struct hmm_sync_report sync_all(void *memory, size_t pages)
{
	struct hmm_sync_report report;
	long n = hmm_mirror_sync(&replica, (unsigned long)memory, pages * PAGE, 0, &report);

	if (n < 0)
		FAIL("sync: %s", hmm_last_error());
	CHECK_EQ(n, report.copied + report.zeroed);
	CHECK_EQ(report.pages, pages);
	CHECK(report.written >= report.copied + report.zeroed);
	CHECK(report.presumed <= report.written);
	return report;
}

const char *copy_of(const void *memory)
{
	const char *copy = hmm_mirror_copy(&replica, (unsigned long)memory);

	CHECK(copy);
	return copy;
}

void check_equal(const char *memory, size_t pages)
{
	const char *copy = copy_of(memory);

	for (size_t i = 0; i < pages; i++)
		if (memcmp(copy + i * PAGE, memory + i * PAGE, PAGE))
			FAIL("page %zu of the copy differs", i);
}

/* Declared, tracked, copied. */
void begin(char *memory, size_t pages)
{
	struct hmm_sync_report report;

	declare(memory, pages);
	track(memory, pages);
	test_check_zero(copy_of(memory), pages);
	report = sync_all(memory, pages);
	CHECK_EQ(report.written, pages);
	CHECK_EQ(report.copied + report.zeroed, pages);
	check_equal(memory, pages);
}

char *open_and_begin(size_t pages)
{
	char *memory;

	open_replica(64 * BLOCK);
	memory = test_map_apart(pages);
	test_fill(memory, pages, 1);
	begin(memory, pages);
	return memory;
}
