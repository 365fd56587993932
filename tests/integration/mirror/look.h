/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * look.h - what the tests of ranges share: a driver's way to encode a page, to look
 * until it need not come back, and to say what it wants to have seen. After mirror.h.
 */
#ifndef TEST_LOOK_H
#define TEST_LOOK_H

#include <fcntl.h>

#include "mirror.h"

/* As a driver would have them: bits of its page table. */
#define VALID	0x1UL
#define WRITE	0x2UL
#define PRIVATE 0x4UL
#define ERROR	0xfe00000000000008UL
#define SPECIAL 0xfe00000000000010UL
#define NONE	0x20UL
#define FLAGS	(VALID | WRITE | PRIVATE)

static const uint64_t flags[HMM_PFN_FLAG_MAX] = { VALID, WRITE, PRIVATE };
static const uint64_t values[HMM_PFN_VALUE_MAX] = { ERROR, NONE, SPECIAL };

/* For a change to be over, ms: that it ends is to be seen, and not that it takes no longer than a driver would wait. */
#define LOOK_PATIENCE ((unsigned int)test_scaled(30000))

static inline struct hmm_range prepare(size_t pages)
{
	struct hmm_range range = { .flags = flags, .values = values, .pfn_shift = 12 };

	range.pfns = calloc(pages, sizeof(*range.pfns));
	for (size_t i = 0; i < pages; i++)
		range.pfns[i] = ~0UL;
	return range;
}

static inline struct hmm_range look_at(const void *memory, size_t pages)
{
	unsigned long start = (unsigned long)memory;
	struct hmm_range range = prepare(pages);

	CHECK_EQ(hmm_range_register(&range, &mirror, start, start + pages * PAGE, 12), 0);
	CHECK(hmm_range_wait_until_valid(&range, LOOK_PATIENCE));
	return range;
}

static inline void end(struct hmm_range *range)
{
	hmm_range_unregister(range);
	CHECK(!range->priv && !hmm_range_valid(range));
	free(range->pfns);
}

/* The driver's loop, as long as it is told to come back. */
static inline long again(struct hmm_range *range, bool snapshot)
{
	long result;

	do {
		CHECK(hmm_range_wait_until_valid(range, 10000));
		result = snapshot ? hmm_range_snapshot(range) : hmm_range_fault(range, true);
	} while (result == -EBUSY || result == -EAGAIN);
	return result;
}

/* The pages [first, end) are @expected, but for the number. */
static inline void check_entries(const struct hmm_range *range, size_t first, size_t end, uint64_t expected)
{
	for (size_t i = first; i < end; i++) {
		uint64_t entry = range->pfns[i], vpn = (range->start >> 12) + i;
		unsigned long pfn = hmm_device_entry_to_pfn(range, entry);

		if (!(expected & VALID) || expected == ERROR || expected == SPECIAL) {
			if (entry != expected || pfn != -1UL)
				FAIL("page %zu: entry %#lx, pfn %#lx instead of %#lx", i, entry, pfn, expected);
			continue;
		}
		if ((entry & (FLAGS | NONE)) != expected)
			FAIL("page %zu: entry %#lx instead of %#lx", i, entry, expected);
		if (expected & PRIVATE ? pfn < HMM_PFN_DEVICE_FIRST : pfn != vpn)
			FAIL("page %zu: pfn %#lx at page %#lx", i, pfn, vpn);
	}
}

static inline void snapshot(const void *memory, size_t pages, uint64_t expected)
{
	struct hmm_range range = look_at(memory, pages);

	CHECK_EQ(again(&range, true), pages);
	check_entries(&range, 0, pages, expected);
	end(&range);
}

static inline void fault(const void *memory, size_t pages, uint64_t wanted, uint64_t expected)
{
	struct hmm_range range = look_at(memory, pages);

	range.default_flags = wanted;
	CHECK_EQ(again(&range, false), pages);
	check_entries(&range, 0, pages, expected);
	end(&range);
}

static inline bool is_present(const void *page)
{
	int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	CHECK_EQ(pread(file, &entry, 8, (off_t)((unsigned long)page / PAGE * 8)), 8);
	close(file);
	return entry >> 63;
}

/* Faulted in, and valid. */
static inline struct hmm_range seen(char *memory, size_t pages)
{
	struct hmm_range range = look_at(memory, pages);

	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), pages);
	CHECK(hmm_range_valid(&range));
	return range;
}

/* Something happened: hmmd hears of it at once and says so in its own time. */
static inline void wants_invalid(struct hmm_range *range)
{
	for (int tries = 0; hmm_range_valid(range); tries++) {
		if (tries == 10000)
			FAIL("the range is still valid");
		usleep(1000);
	}
	CHECK(!range->valid);
	memset(range->pfns, 0xcd, (range->end - range->start) / PAGE * sizeof(*range->pfns));
	if (range->priv) {
		CHECK_EQ(hmm_range_snapshot(range), -EAGAIN);
		CHECK_EQ(hmm_range_fault(range, true), -EBUSY);
	}
	CHECK_EQ(range->pfns[0], 0xcdcdcdcdcdcdcdcdUL);
	CHECK(hmm_range_wait_until_valid(range, 10000));
	CHECK(hmm_range_valid(range));
}

#endif
