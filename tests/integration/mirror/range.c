/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * range.c - ranges: what a driver sees of memory of every kind, has faulted in,
 * and how it learns that what it saw is so no more.
 */
#include <hmm/compat.h>	/* before a mirror is named mirror */

#include "mirror.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sys/auxv.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#define DEVICE_MEMORY (256UL << 20)

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

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

static struct hmm_range prepare(size_t pages)
{
	struct hmm_range range = { .flags = flags, .values = values, .pfn_shift = 12 };

	range.pfns = calloc(pages, sizeof(*range.pfns));
	for (size_t i = 0; i < pages; i++)
		range.pfns[i] = ~0UL;
	return range;
}

static struct hmm_range look_at(const void *memory, size_t pages)
{
	unsigned long start = (unsigned long)memory;
	struct hmm_range range = prepare(pages);

	CHECK_EQ(hmm_range_register(&range, &mirror, start, start + pages * PAGE, 12), 0);
	CHECK(hmm_range_wait_until_valid(&range, HMM_RANGE_DEFAULT_TIMEOUT));
	return range;
}

static void end(struct hmm_range *range)
{
	hmm_range_unregister(range);
	CHECK(!range->priv && !hmm_range_valid(range));
	free(range->pfns);
}

/* The driver's loop, as long as it is told to come back. */
static long again(struct hmm_range *range, bool snapshot)
{
	long result;

	do {
		CHECK(hmm_range_wait_until_valid(range, 10000));
		result = snapshot ? hmm_range_snapshot(range) : hmm_range_fault(range, true);
	} while (result == -EBUSY || result == -EAGAIN);
	return result;
}

/* The pages [first, end) are @expected, but for the number. */
static void check_entries(const struct hmm_range *range, size_t first, size_t end, uint64_t expected)
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

static void snapshot(const void *memory, size_t pages, uint64_t expected)
{
	struct hmm_range range = look_at(memory, pages);

	CHECK_EQ(again(&range, true), pages);
	check_entries(&range, 0, pages, expected);
	end(&range);
}

static void fault(const void *memory, size_t pages, uint64_t wanted, uint64_t expected)
{
	struct hmm_range range = look_at(memory, pages);

	range.default_flags = wanted;
	CHECK_EQ(again(&range, false), pages);
	check_entries(&range, 0, pages, expected);
	end(&range);
}

static bool is_present(const void *page)
{
	int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	CHECK_EQ(pread(file, &entry, 8, (off_t)((unsigned long)page / PAGE * 8)), 8);
	close(file);
	return entry >> 63;
}

/* ---- registering ----------------------------------------------------------------- */

static void registering(void)
{
	struct hmm_range range = prepare(1024);
	struct hmm_mirror none = { 0 };
	unsigned long start;

	test_open(0, DEVICE_MEMORY);
	start = (unsigned long)test_map_huge(2);
	CHECK_EQ(hmm_range_register(NULL, &mirror, start, start + PAGE, 12), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, NULL, start, start + PAGE, 12), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, &none, start, start + PAGE, 12), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, &mirror, start, start, 12), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, &mirror, start + PAGE, start, 12), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, &mirror, start + 8, start + PAGE, 12), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, &mirror, start, start + PAGE + 8, 12), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, &mirror, start, start + PAGE, 21), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, &mirror, start + PAGE, start + PAGE + BLOCK, 21), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, &mirror, start, start + PAGE, 11), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, &mirror, 0, 1UL << 32, 32), -EINVAL);
	CHECK_EQ(hmm_range_register(&range, &mirror, (1UL << 47) - PAGE, (1UL << 47) + PAGE, 12), -EINVAL);
	CHECK(!range.priv && !hmm_range_valid(&range) && !hmm_range_wait_until_valid(&range, 0));

	CHECK_EQ(hmm_range_register(&range, &mirror, start, start + BLOCK, 21), 0);
	CHECK(range.hmm == hmm && range.start == start && range.end == start + BLOCK && range.page_shift == 21);
	CHECK_EQ(hmm_range_page_shift(&range), 21);
	CHECK_EQ(hmm_range_page_size(&range), BLOCK);
	CHECK(hmm_range_valid(&range) && range.valid);
	hmm_range_unregister(&range);
	hmm_range_unregister(&range);
	hmm_range_unregister(NULL);
	CHECK(!hmm_range_valid(&range) && !hmm_range_valid(NULL));
	CHECK(!hmm_range_wait_until_valid(&range, 1000) && !hmm_range_wait_until_valid(NULL, 1000));
	CHECK_EQ(hmm_range_read_begin(&range), 0);
	CHECK(hmm_range_read_retry(&range, 0));
	free(range.pfns);
	test_close();
}

static long both_ways(struct hmm_range *range)
{
	long result = hmm_range_snapshot(range);

	CHECK_EQ(hmm_range_fault(range, true), result);
	return result;
}

/* What cannot be told apart is refused, and pfns[] left alone. */
static void bad_arrays(void)
{
	uint64_t f[HMM_PFN_FLAG_MAX], v[HMM_PFN_VALUE_MAX];
	struct hmm_range range;
	char *memory;

	CHECK_EQ(hmm_range_snapshot(NULL), -EINVAL);
	CHECK_EQ(hmm_range_fault(NULL, true), -EINVAL);
	test_open(0, DEVICE_MEMORY);
	memory = test_map(4);
	test_fill(memory, 4, 1);
	range = look_at(memory, 4);
	for (int bad = 0; bad < 10; bad++) {
		uint64_t *pfns = range.pfns;

		memcpy(f, flags, sizeof(f));
		memcpy(v, values, sizeof(v));
		range.flags = f;
		range.values = v;
		switch (bad) {
		case 0: range.pfns = NULL; break;
		case 1: range.flags = NULL; break;
		case 2: range.values = NULL; break;
		case 3: range.pfn_shift = 13; break;
		case 4: f[HMM_PFN_VALID] = 0; break;
		case 5: v[HMM_PFN_NONE] = ERROR; break;
		case 6: v[HMM_PFN_NONE] = SPECIAL; break;
		case 7: v[HMM_PFN_NONE] = VALID; break;
		case 8: f[HMM_PFN_WRITE] = 1UL << 20; break;
		case 9: f[HMM_PFN_DEVICE_PRIVATE] = 1UL << 51; break;
		}
		CHECK_EQ(both_ways(&range), -EINVAL);
		range.pfns = pfns;
		range.pfn_shift = 12;
	}
	for (size_t i = 0; i < 4; i++)
		CHECK_EQ(range.pfns[i], ~0UL);
	/* ERROR and SPECIAL may be the same, flags may be missing, and lie above the number. */
	memcpy(f, (uint64_t[]){ 1UL << 63, 0, 0 }, sizeof(f));
	memcpy(v, (uint64_t[]){ 8, 0, 8 }, sizeof(v));
	range.default_flags = 1UL << 63;
	CHECK_EQ(both_ways(&range), 4);
	for (size_t i = 0; i < 4; i++) {
		CHECK_EQ(hmm_device_entry_to_pfn(&range, range.pfns[i]), (unsigned long)memory / PAGE + i);
		CHECK_EQ(hmm_device_entry_from_pfn(&range, (unsigned long)memory / PAGE + i), range.pfns[i]);
		CHECK_EQ(hmm_pfn_to_pfn(&range, range.pfns[i]), (unsigned long)memory / PAGE + i);
		CHECK_EQ(hmm_pfn_from_pfn(&range, (unsigned long)memory / PAGE + i), range.pfns[i]);
	}
	end(&range);
	CHECK_EQ(both_ways(&range), -EINVAL);
	test_close();
}

static void wants_invalid(struct hmm_range *range);

/* ---- what is there ------------------------------------------------------------------ */

static void untouched(void)
{
	static char copy[PAGE];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(600);
	snapshot(memory, 600, NONE);
	CHECK(!is_present(memory + 5 * PAGE));
	/* Nothing is asked. */
	fault(memory, 600, 0, NONE);
	CHECK(!is_present(memory + 5 * PAGE));
	/* The zero page; its mapping may be written. */
	fault(memory, 600, VALID, VALID | WRITE);
	CHECK(is_present(memory + 5 * PAGE));
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, copy, PAGE), PAGE);
	test_check_zero(copy, 1);
	fault(memory, 600, VALID | WRITE, VALID | WRITE);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 7 * PAGE, "device", 7), 7);
	CHECK(!strcmp(memory + 7 * PAGE, "device"));
	test_fill(memory, 600, 1);
	snapshot(memory, 600, VALID | WRITE);
	test_device_check(memory, 600, 1);
	test_check(memory, 600, 1);
	test_close();
}

/* Each page as its own pfns[i] asks. */
static void page_by_page(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	range = look_at(memory, 64);
	range.pfn_flags_mask = FLAGS;
	for (size_t i = 0; i < 64; i++)
		range.pfns[i] = i % 3 == 0 ? VALID : i % 3 == 1 ? 0 : WRITE | PRIVATE;
	CHECK_EQ(hmm_range_fault(&range, true), 64);
	for (size_t i = 0; i < 64; i++)
		check_entries(&range, i, i + 1, i % 3 ? NONE : VALID | WRITE);
	for (size_t i = 0; i < 64; i++)
		CHECK_EQ(is_present(memory + i * PAGE), i % 3 == 0);
	/* Nothing of what stands in pfns[] counts without the mask. */
	for (size_t i = 0; i < 64; i++)
		range.pfns[i] = VALID;
	range.pfn_flags_mask = 0;
	CHECK_EQ(hmm_range_fault(&range, true), 64);
	for (size_t i = 0; i < 64; i++)
		check_entries(&range, i, i + 1, i % 3 ? NONE : VALID | WRITE);
	end(&range);
	test_close();
}

static void read_only(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(8);
	test_fill(memory, 8, 2);
	CHECK_EQ(mprotect(memory + 2 * PAGE, 2 * PAGE, PROT_READ), 0);
	snapshot(memory + 2 * PAGE, 2, VALID);
	fault(memory + 2 * PAGE, 2, VALID, VALID);
	range = look_at(memory, 8);
	CHECK_EQ(again(&range, true), 8);
	check_entries(&range, 0, 2, VALID | WRITE);
	check_entries(&range, 2, 4, VALID);
	check_entries(&range, 4, 8, VALID | WRITE);
	range.default_flags = VALID | WRITE;
	CHECK_EQ(again(&range, false), -EPERM);
	check_entries(&range, 0, 8, NONE);
	/* Wanted of the others only. */
	range.default_flags = VALID;
	range.pfn_flags_mask = WRITE;
	for (size_t i = 0; i < 8; i++)
		range.pfns[i] = i / 2 == 1 ? 0 : WRITE;
	CHECK_EQ(again(&range, false), 8);
	check_entries(&range, 2, 4, VALID);
	end(&range);
	test_check(memory, 8, 2);
	test_close();
}

static void not_readable(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(8);
	test_fill(memory, 8, 3);
	test_out(memory, 4);
	CHECK_EQ(mprotect(memory + 3 * PAGE, 2 * PAGE, PROT_NONE), 0);
	range = look_at(memory, 8);
	CHECK_EQ(again(&range, true), -EPERM);
	check_entries(&range, 0, 8, NONE);
	memset(range.pfns, 0xff, 8 * sizeof(*range.pfns));
	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), -EPERM);
	check_entries(&range, 0, 8, NONE);
	end(&range);
	CHECK_EQ(mprotect(memory + 3 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE), 0);
	/* mprotect() had what may not be read come home. */
	CHECK_EQ(test_device_pages(memory, 8), 3);
	test_check(memory, 8, 3);
	test_close();
}

static void nothing_mapped(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(8);
	test_fill(memory, 8, 4);
	CHECK_EQ(munmap(memory + 5 * PAGE, PAGE), 0);
	range = look_at(memory, 8);
	CHECK_EQ(again(&range, true), -EFAULT);
	check_entries(&range, 0, 5, VALID | WRITE);
	check_entries(&range, 5, 8, NONE);
	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), -EFAULT);
	check_entries(&range, 0, 5, VALID | WRITE);
	check_entries(&range, 5, 6, ERROR);
	check_entries(&range, 6, 8, NONE);
	end(&range);
	test_check(memory, 5, 4);
	test_close();
}

/* What the kernel shows of itself is not memory. */
static void special(void)
{
	unsigned long vdso = getauxval(AT_SYSINFO_EHDR);
	struct hmm_range range;

	if (!vdso)
		test_skip("this kernel maps no vdso");
	test_open(0, DEVICE_MEMORY);
	range = look_at((void *)vdso, 1);
	CHECK_EQ(again(&range, true), -EFAULT);
	check_entries(&range, 0, 1, SPECIAL);
	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), -EFAULT);
	check_entries(&range, 0, 1, SPECIAL);
	end(&range);
	test_close();
}

static void guard_pages(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	if (!(hmm_features(hmm) & HMM_HAS_GUARD))
		test_skip("this kernel has no guard pages");
	memory = test_map(8);
	test_fill(memory, 8, 5);
	CHECK_EQ(madvise(memory + 4 * PAGE, PAGE, MADV_GUARD_INSTALL), 0);
	range = look_at(memory, 8);
	CHECK_EQ(again(&range, true), 8);
	check_entries(&range, 0, 4, VALID | WRITE);
	check_entries(&range, 4, 5, NONE);
	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), -EFAULT);
	check_entries(&range, 0, 4, VALID | WRITE);
	check_entries(&range, 4, 5, ERROR);
	check_entries(&range, 5, 8, NONE);
	end(&range);
	test_close();
}

/* A file that ends before its mapping. */
static void beyond_the_file(void)
{
	int file = memfd_create("short", MFD_CLOEXEC);
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(ftruncate(file, 2 * PAGE), 0);
	memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(memory != MAP_FAILED);
	range = look_at(memory, 4);
	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), -EFAULT);
	check_entries(&range, 0, 2, VALID | WRITE);
	check_entries(&range, 2, 3, ERROR);
	check_entries(&range, 3, 4, NONE);
	end(&range);
	close(file);
	test_close();
}

static void one_kind(char *memory, size_t pages)
{
	char word[8];

	CHECK(memory != MAP_FAILED);
	snapshot(memory, pages, NONE);
	fault(memory, pages, VALID, VALID | WRITE);
	fault(memory, pages, VALID | WRITE, VALID | WRITE);
	test_fill(memory, pages, 6);
	snapshot(memory, pages, VALID | WRITE);
	test_device_check(memory, pages, 6);
	CHECK_EQ(munmap(memory, pages * PAGE), 0);
	/* The table follows a moment later; what was asked since finds it applied. */
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, word, 8), -EFAULT);
}

static void files_and_shared(void)
{
	char path[] = "/var/tmp/hmm-range-XXXXXX";
	int file = memfd_create("file", MFD_CLOEXEC), disk = mkstemp(path);

	test_open(0, DEVICE_MEMORY);
	CHECK(disk >= 0 && !unlink(path));
	CHECK_EQ(ftruncate(file, 40 * PAGE), 0);
	CHECK_EQ(ftruncate(disk, 40 * PAGE), 0);
	one_kind(mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 40);
	one_kind(mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), 40);
	one_kind(mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0), 40);
	one_kind(mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, disk, 0), 40);
	one_kind(mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, disk, 0), 40);
	close(file);
	close(disk);
	test_close();
}

static void huge_pages(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(3);
	fault(memory, 3 * 512, VALID, VALID | WRITE);
	test_fill(memory, 3 * 512, 7);
	snapshot(memory, 3 * 512, VALID | WRITE);
	/* They are the kernel's affair, not the mapping's size. */
	range = prepare(512);
	CHECK_EQ(hmm_range_register(&range, &mirror, (unsigned long)memory, (unsigned long)memory + BLOCK, 21), 0);
	CHECK_EQ(again(&range, true), -EINVAL);
	CHECK_EQ(again(&range, false), -EINVAL);
	CHECK_EQ(range.pfns[0], ~0UL);
	/* On the device they are one page of it. */
	test_out(memory, 512);
	if (hmm_features(hmm) & HMM_HAS_HUGE_SHMEM) {
		CHECK_EQ(again(&range, true), 512);
		check_entries(&range, 0, 512, FLAGS);
	}
	end(&range);
	test_check(memory, 3 * 512, 7);
	test_close();
}

static void hugetlb(void)
{
	struct hmm_range range;
	char *memory = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (memory == MAP_FAILED)
		test_skip("no huge pages are reserved");
	test_open(0, DEVICE_MEMORY);
	snapshot(memory, 1024, NONE);
	fault(memory, 512, VALID, VALID | WRITE);
	range = prepare(1024);
	CHECK_EQ(hmm_range_register(&range, &mirror, (unsigned long)memory, (unsigned long)memory + 2 * BLOCK, 21),
		 0);
	CHECK_EQ(again(&range, true), 1024);
	check_entries(&range, 0, 512, VALID | WRITE);
	check_entries(&range, 512, 1024, NONE);
	range.default_flags = VALID | WRITE;
	CHECK_EQ(again(&range, false), 1024);
	check_entries(&range, 0, 1024, VALID | WRITE);
	test_fill(memory, 1024, 8);
	test_device_check(memory, 1024, 8);
	CHECK_EQ(munmap(memory, 2 * BLOCK), 0);
	wants_invalid(&range);
	end(&range);
	test_close();
}

/* ---- pages of devices ---------------------------------------------------------------- */

static void on_the_device(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 9);
	test_out(memory + 8 * PAGE, 16);
	range = look_at(memory, 64);
	CHECK_EQ(again(&range, true), 64);
	check_entries(&range, 0, 8, VALID | WRITE);
	check_entries(&range, 8, 24, FLAGS);
	check_entries(&range, 24, 64, VALID | WRITE);
	/* It stays there, also where it is wanted. */
	range.default_flags = VALID | WRITE;
	CHECK_EQ(again(&range, false), 64);
	check_entries(&range, 8, 24, FLAGS);
	CHECK_EQ(test_device_pages(memory, 64), 16);
	/* Unless it is asked for. */
	range.default_flags = VALID;
	range.pfn_flags_mask = PRIVATE;
	for (size_t i = 0; i < 64; i++)
		range.pfns[i] = i >= 10 && i < 12 ? PRIVATE : 0;
	CHECK_EQ(again(&range, false), 64);
	check_entries(&range, 8, 10, FLAGS);
	check_entries(&range, 10, 12, VALID | WRITE);
	check_entries(&range, 12, 24, FLAGS);
	CHECK_EQ(test_device_pages(memory, 64), 14);
	range.pfn_flags_mask = 0;
	range.default_flags = PRIVATE;		/* without VALID nothing is asked */
	CHECK_EQ(again(&range, false), 64);
	CHECK_EQ(test_device_pages(memory, 64), 14);
	range.default_flags = FLAGS;
	CHECK_EQ(again(&range, false), 64);
	check_entries(&range, 0, 64, VALID | WRITE);
	CHECK_EQ(test_device_pages(memory, 64), 0);
	end(&range);
	test_check(memory, 64, 9);
	test_close();
}

static struct hmm_update last;
static _Atomic unsigned int updates;

static int note_update(struct hmm_mirror *which, const struct hmm_update *update)
{
	last = *update;
	updates++;
	return 0;
}

static const struct hmm_mirror_ops with_callback = { .sync_cpu_device_pagetables = note_update };

/* A page that both may read: the device's copy is read-only. */
static void shared_pages(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	/* Callbacks are what makes a copy on the device worth keeping. */
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	mirror.ops = &with_callback;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	memory = test_map(64);
	test_fill(memory, 64, 10);
	test_out(memory, 64);
	for (size_t i = 0; i < 64; i++)
		CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 10));
	range = look_at(memory, 64);
	CHECK_EQ(again(&range, true), 64);
	check_entries(&range, 0, 64, VALID | PRIVATE);
	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), 64);
	check_entries(&range, 0, 64, VALID | PRIVATE);
	/* Whoever writes first takes it. */
	range.pfn_flags_mask = WRITE;
	for (size_t i = 0; i < 64; i++)
		range.pfns[i] = i < 32 ? WRITE : 0;
	CHECK_EQ(again(&range, false), 64);
	check_entries(&range, 0, 32, VALID | WRITE);
	check_entries(&range, 32, 64, VALID | PRIVATE);
	test_check(memory, 64, 10);
	memory[40 * PAGE] ^= 1;
	CHECK(!hmm_range_valid(&range));
	end(&range);
	test_close();
}

static void coherent_memory(void)
{
	struct hmm_range range;
	void *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_alloc(&mirror, 512 * PAGE, &memory), 0);
	range = look_at(memory, 512);
	range.default_flags = FLAGS;
	CHECK_EQ(again(&range, false), 512);
	for (size_t i = 0; i < 512; i++) {
		CHECK_EQ(range.pfns[i] & FLAGS, VALID | WRITE);
		CHECK(hmm_device_entry_to_pfn(&range, range.pfns[i]) >= HMM_PFN_DEVICE_FIRST);
	}
	CHECK_EQ(hmm_free(&mirror, memory, 512 * PAGE), 0);
	CHECK(!hmm_range_valid(&range));
	end(&range);
	test_close();
}

/* What another device has: seen by a snapshot, home when it is wanted. */
static void of_another_device(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_range range;
	char *memory, name[40];

	test_open(0, DEVICE_MEMORY);
	snprintf(name, sizeof(name), "other-%d", getpid());
	test_mirror(&other, test_device(name, DEVICE_MEMORY / 2));
	memory = test_map(32);
	test_fill(memory, 32, 11);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 16 * PAGE, HMM_DEVICE, 0, NULL, NULL), 16);
	range = look_at(memory, 32);
	CHECK_EQ(again(&range, true), 32);
	check_entries(&range, 0, 16, FLAGS);
	/* The number says that it is not this device's. */
	CHECK_EQ(hmm_device_entry_to_pfn(&range, range.pfns[0]) / HMM_PFN_DEVICE_FIRST, 2);
	check_entries(&range, 16, 32, VALID | WRITE);
	CHECK_EQ(hmm_range_fault(&range, false), 32);	/* nothing is asked */
	check_entries(&range, 0, 16, FLAGS);
	range.default_flags = VALID;
	CHECK_EQ(hmm_range_fault(&range, false), -EAGAIN);
	CHECK_EQ(again(&range, false), 32);
	check_entries(&range, 0, 32, VALID | WRITE);
	end(&range);
	test_check(memory, 32, 11);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(other.device);
	test_close();
}

static void not_waiting(void)
{
	struct hmm_range range;
	char *memory;
	long result;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 12);
	test_out(memory, 16);
	range = look_at(memory, 16);
	range.default_flags = FLAGS;
	memset(range.pfns, 0xab, 16 * sizeof(*range.pfns));
	CHECK_EQ(hmm_range_fault(&range, false), -EAGAIN);
	for (size_t i = 0; i < 16; i++)
		CHECK_EQ(range.pfns[i], 0xababababababababUL);
	/* It has begun, and ends without being waited for. */
	do {
		CHECK(hmm_range_wait_until_valid(&range, 10000));
		result = hmm_range_fault(&range, false);
	} while (result == -EAGAIN || result == -EBUSY);
	CHECK_EQ(result, 16);
	check_entries(&range, 0, 16, VALID | WRITE);
	end(&range);
	test_check(memory, 16, 12);
	test_close();
}

/* ---- validity ------------------------------------------------------------------------- */

/* Faulted in, and valid. */
static struct hmm_range seen(char *memory, size_t pages)
{
	struct hmm_range range = look_at(memory, pages);

	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), pages);
	CHECK(hmm_range_valid(&range));
	return range;
}

/* Something happened: hmmd hears of it at once and says so in its own time. */
static void wants_invalid(struct hmm_range *range)
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

static void invalidated(void)
{
	struct hmm_range range;
	unsigned long number;
	char *memory, *moved;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(64);
	test_fill(memory, 64, 13);

	range = seen(memory, 8);
	number = hmm_range_read_begin(&range);
	CHECK(!hmm_range_read_retry(&range, number));
	CHECK_EQ(madvise(memory + 3 * PAGE, PAGE, MADV_DONTNEED), 0);
	wants_invalid(&range);
	CHECK(hmm_range_read_retry(&range, number));
	CHECK_EQ(again(&range, true), 8);
	check_entries(&range, 0, 3, VALID | WRITE);
	check_entries(&range, 3, 4, NONE);
	CHECK_EQ(again(&range, false), 8);
	check_entries(&range, 0, 8, VALID | WRITE);

	CHECK_EQ(madvise(memory + 3 * PAGE, PAGE, MADV_FREE), 0);
	wants_invalid(&range);
	CHECK_EQ(again(&range, false), 8);

	CHECK_EQ(munmap(memory + 6 * PAGE, PAGE), 0);
	wants_invalid(&range);
	CHECK_EQ(again(&range, false), -EFAULT);
	check_entries(&range, 6, 7, ERROR);
	end(&range);

	range = seen(memory + 16 * PAGE, 4);
	moved = mmap(NULL, 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mremap(memory + 16 * PAGE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved) == moved);
	wants_invalid(&range);
	CHECK_EQ(again(&range, false), -EFAULT);
	end(&range);
	fault(moved, 4, VALID, VALID | WRITE);

	/* A mapping that watching has split. */
	range = seen(memory + 44 * PAGE, 4);
	moved = mremap(memory + 40 * PAGE, 16 * PAGE, 32 * PAGE, MREMAP_MAYMOVE);
	CHECK(moved != MAP_FAILED);
	wants_invalid(&range);
	for (size_t i = 0; i < 16; i++)
		CHECK_EQ(*(volatile uint64_t *)(moved + i * PAGE), test_word(40 + i, 0, 13));
	end(&range);

	/* Mapped over. */
	range = seen(memory + 24 * PAGE, 4);
	CHECK(mmap(memory + 25 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		   0) == memory + 25 * PAGE);
	wants_invalid(&range);
	CHECK_EQ(again(&range, true), 4);
	check_entries(&range, 1, 2, NONE);
	end(&range);

	/* To the device, and home by a touch. */
	range = seen(memory + 32 * PAGE, 8);
	test_out(memory + 34 * PAGE, 2);
	wants_invalid(&range);
	CHECK_EQ(again(&range, false), 8);
	check_entries(&range, 2, 4, FLAGS);
	CHECK_EQ(*(volatile uint64_t *)(memory + 34 * PAGE), test_word(34, 0, 13));
	wants_invalid(&range);
	end(&range);
	test_check(memory, 3, 13);
	test_close();
}

/* Shared memory is watched, too. */
static void invalidated_shared(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	if (!(hmm_features(hmm) & HMM_HAS_WP_SHMEM))
		test_skip("this kernel cannot watch shared memory");
	memory = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	test_fill(memory, 8, 14);
	range = seen(memory, 8);
	CHECK_EQ(munmap(memory, PAGE), 0);
	wants_invalid(&range);
	end(&range);
	range = seen(memory + PAGE, 7);
	CHECK_EQ(madvise(memory + 2 * PAGE, PAGE, MADV_DONTNEED), 0);
	wants_invalid(&range);
	CHECK_EQ(again(&range, false), 7);
	test_device_check(memory + 7 * PAGE, 0, 14);
	end(&range);
	test_close();
}

/* What the kernel does not let hmmd watch is asked for each time, and reached by its address. */
static void not_watched(void)
{
	char path[] = "/var/tmp/hmm-range-XXXXXX", word[8];
	int disk = mkstemp(path);
	struct hmm_range range;
	struct statfs st;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK(disk >= 0 && !unlink(path) && !fstatfs(disk, &st));
	if (st.f_type == TMPFS_MAGIC)
		test_skip("/var/tmp is on no disk");
	CHECK_EQ(ftruncate(disk, 4 * PAGE), 0);
	memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, disk, 0);
	CHECK(memory != MAP_FAILED);
	test_fill(memory, 4, 21);
	range = seen(memory, 4);
	CHECK_EQ(hmm_mirror_lookup(&mirror, (unsigned long)memory), 0);
	CHECK_EQ(munmap(memory + PAGE, PAGE), 0);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + PAGE, word, 8), -EFAULT);
	CHECK_EQ(again(&range, false), -EFAULT);
	check_entries(&range, 0, 1, VALID | WRITE);
	check_entries(&range, 1, 2, ERROR);
	end(&range);
	/* Excluded memory, too: here this thread's own stack. */
	range = seen((char *)((unsigned long)__builtin_frame_address(0) & ~(PAGE - 1)), 1);
	CHECK_EQ(hmm_mirror_lookup(&mirror, (unsigned long)__builtin_frame_address(0)), 0);
	end(&range);
	/* What was watched and is excluded is watched no more. */
	memory = test_map(8);
	test_fill(memory, 8, 22);
	range = seen(memory, 8);
	CHECK(hmm_mirror_lookup(&mirror, (unsigned long)memory) & HMM_ENTRY_VALID);
	CHECK_EQ(hmm_exclude(hmm, (unsigned long)memory, 8 * PAGE), 0);
	CHECK(!hmm_range_valid(&range));
	CHECK_EQ(again(&range, false), 8);
	CHECK_EQ(hmm_mirror_lookup(&mirror, (unsigned long)memory), 0);
	end(&range);
	close(disk);
	test_close();
}

static void protected_later(void)
{
	struct hmm_range range;
	char *memory, word[8];

	test_open(0, DEVICE_MEMORY);
	memory = test_map(8);
	test_fill(memory, 8, 23);
	range = seen(memory, 8);
	CHECK_EQ(mprotect(memory, 8 * PAGE, PROT_READ), 0);
	CHECK(hmm_range_valid(&range));
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory, "no", 3), -EPERM);
	CHECK_EQ(mprotect(memory, 8 * PAGE, PROT_NONE), 0);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, word, 8), -EFAULT);
	end(&range);
	/* A look that is a message sees it. */
	CHECK_EQ(mprotect(memory, 8 * PAGE, PROT_READ), 0);
	test_check(memory, 8, 23);
	test_close();
}

/* Ordinary use of memory changes nothing: no fault of a page that is there is the driver's affair. */
static void stays_valid(void)
{
	struct hmm_range range;
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	range = seen(memory, 1024);
	test_fill(memory, 1024, 15);
	CHECK(hmm_range_valid(&range));
	child = fork();
	if (!child) {
		/* What the parent sees is nobody's affair here. */
		if (hmm_range_valid(&range) || hmm_range_fault(&range, true) != -EFAULT)
			_exit(1);
		hmm_range_unregister(&range);
		test_check(memory, 1024, 15);
		_exit(0);
	}
	test_reap(child, 0);
	test_fill(memory, 1024, 16);
	usleep(200000);		/* longer than anything is left alone that nobody wants */
	CHECK(hmm_range_valid(&range));
	CHECK_EQ(hmm_range_fault(&range, false), 1024);
	check_entries(&range, 0, 1024, VALID | WRITE);
	test_device_check(memory, 1024, 16);
	end(&range);
	test_close();
}

/* Watching ends with the range; what another range saw through it is not believed after that. */
static void released(void)
{
	struct hmm_range one, two;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 17);
	one = seen(memory, 16);
	two = seen(memory, 8);		/* from the table alone */
	hmm_range_unregister(&one);
	wants_invalid(&two);
	CHECK_EQ(again(&two, false), 8);
	usleep(200000);
	CHECK(hmm_range_valid(&two));
	end(&two);
	for (int tries = 0; hmm_mirror_lookup(&mirror, (unsigned long)memory); tries++) {
		CHECK(tries < 10000);
		usleep(1000);
	}
	free(one.pfns);
	test_check(memory, 16, 17);
	test_close();
}

static void orphaned(void)
{
	struct hmm_range range, unused;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 18);
	range = seen(memory, 16);
	unused = look_at(memory, 16);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	CHECK(!hmm_range_valid(&range));
	CHECK(!hmm_range_wait_until_valid(&range, 1000));
	CHECK_EQ(hmm_range_fault(&range, true), -EFAULT);
	check_entries(&range, 0, 16, NONE);
	CHECK_EQ(hmm_range_snapshot(&range), -EFAULT);
	CHECK_EQ(hmm_range_read_begin(&range), 0);
	CHECK(hmm_range_read_retry(&range, 0));
	end(&range);
	end(&unused);
	test_mirror(&mirror, mirror.device);
	fault(memory, 16, VALID, VALID | WRITE);
	test_close();
}

/* ---- callbacks -------------------------------------------------------------------------- */

static void told(void)
{
	struct hmm_mirror other = { .ops = &with_callback };
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	test_fill(memory, 16, 19);
	other.device = mirror.device;
	CHECK_EQ(hmm_mirror_register(&other, hmm), 0);
	range = seen(memory, 16);
	CHECK_EQ(madvise(memory + 3 * PAGE, 2 * PAGE, MADV_DONTNEED), 0);
	for (int tries = 0; !updates; tries++) {
		CHECK(tries < 10000);
		usleep(1000);
	}
	CHECK_EQ(last.start, memory + 3 * PAGE);
	CHECK_EQ(last.end, memory + 5 * PAGE);
	CHECK_EQ(last.reason, HMM_REASON_DISCARD);
	wants_invalid(&range);
	CHECK_EQ(munmap(memory + 8 * PAGE, PAGE), 0);
	for (int tries = 0; updates < 2; tries++) {
		CHECK(tries < 10000);
		usleep(1000);
	}
	CHECK_EQ(last.reason, HMM_REASON_UNMAP);
	end(&range);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	test_close();
}

/* ---- addresses of the device ---------------------------------------------------------------- */

static void dma(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_range range;
	uint64_t daddrs[16];
	char *memory, name[40];

	test_open(0, DEVICE_MEMORY);
	snprintf(name, sizeof(name), "other-%d", getpid());
	test_mirror(&other, test_device(name, DEVICE_MEMORY / 2));
	memory = test_map(16);
	test_fill(memory, 16, 20);
	range = look_at(memory, 16);
	range.default_flags = VALID;
	CHECK_EQ(hmm_range_dma_map(NULL, mirror.device, daddrs, true), -EINVAL);
	CHECK_EQ(hmm_range_dma_map(&range, NULL, daddrs, true), -EINVAL);
	CHECK_EQ(hmm_range_dma_map(&range, mirror.device, NULL, true), -EINVAL);
	CHECK_EQ(hmm_range_dma_map(&range, other.device, daddrs, true), -EINVAL);
	CHECK_EQ((hmm_range_dma_unmap)(NULL, mirror.device, daddrs, true), -EINVAL);
	test_out(memory, 15);
	CHECK(hmm_range_wait_until_valid(&range, 10000));
	/* One page is at home: none is mapped. */
	memset(daddrs, 0xff, sizeof(daddrs));
	CHECK_EQ(hmm_range_dma_map(&range, mirror.device, daddrs, true), -EFAULT);
	for (int i = 0; i < 16; i++)
		CHECK_EQ(daddrs[i], 0);
	test_out(memory, 16);
	CHECK(hmm_range_wait_until_valid(&range, 10000));
	CHECK_EQ(hmm_range_dma_map(&range, mirror.device, daddrs, true), 16);
	for (int i = 0; i < 16; i++)
		CHECK_EQ(daddrs[i], hmm_device_entry_to_pfn(&range, range.pfns[i]) << 12);
	CHECK_EQ(hmm_range_dma_unmap(&range, mirror.device, daddrs, true), 16);
	check_entries(&range, 0, 16, NONE);
	CHECK_EQ(daddrs[7], 0);
	/* The kernel's five arguments. */
	CHECK_EQ(hmm_range_dma_unmap(&range, NULL, mirror.device, daddrs, true), 0);
	end(&range);
	/* No page at all. */
	memory = test_map(16);
	range = look_at(memory, 16);
	CHECK_EQ(hmm_range_dma_map(&range, mirror.device, daddrs, true), -EBUSY);
	CHECK_EQ(madvise(memory, PAGE, MADV_DONTNEED), 0);
	end(&range);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(other.device);
	test_close();
}

/* ---- the old names ---------------------------------------------------------------------------- */

static void compat(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	range = prepare(16);
	range.start = (unsigned long)memory;
	range.end = range.start + 16 * PAGE;
	for (size_t i = 0; i < 16; i++)
		range.pfns[i] = i < 8 ? VALID | WRITE : 0;
	CHECK_EQ(hmm_vma_fault(&mirror, &range, true), 0);
	check_entries(&range, 0, 8, VALID | WRITE);
	check_entries(&range, 8, 16, NONE);
	CHECK(hmm_vma_range_done(&range));
	CHECK(!range.priv);
	test_out(memory, 8);
	CHECK_EQ(mprotect(memory, PAGE, PROT_READ), 0);
	range.pfns[0] = VALID | WRITE;
	range.pfns[1] = 0;
	CHECK_EQ(hmm_vma_fault(&mirror, &range, true), -EPERM);
	CHECK(!range.priv);
	range.pfns[0] = 0;
	range.pfns[1] = VALID | PRIVATE;
	CHECK_EQ(hmm_vma_fault(&mirror, &range, false), -EBUSY);
	CHECK(!range.priv && !hmm_vma_range_done(&range));
	range.end = range.start;
	CHECK_EQ(hmm_vma_fault(&mirror, &range, true), -EINVAL);
	free(range.pfns);
	test_close();
}

/* ---- large ones, and many at once ---------------------------------------------------------------- */

static void large(void)
{
	size_t pages = 40 * 512;
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(40);
	for (size_t i = 0; i < pages; i += 97)
		memory[i * PAGE] = 1;
	range = look_at(memory + PAGE, pages - 2);
	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), pages - 2);
	check_entries(&range, 0, pages - 2, VALID | WRITE);
	CHECK(hmm_range_valid(&range));
	test_out(memory + 20 * BLOCK, 512);
	wants_invalid(&range);
	CHECK_EQ(again(&range, false), pages - 2);
	check_entries(&range, 20 * 512 - 1, 21 * 512 - 1, FLAGS);
	range.default_flags = FLAGS;
	CHECK_EQ(again(&range, false), pages - 2);
	check_entries(&range, 0, pages - 2, VALID | WRITE);
	end(&range);
	test_close();
}

/* ---- many at once, while everything changes -------------------------------------------------------- */

#define CROWD 4
#define CROWD_PAGES 1100UL
#define UPHEAVALS 150

static char *arena;
static _Atomic long begun, done;
static _Atomic bool over;
static _Atomic unsigned long caught[CROWD];

static uint64_t draw(uint64_t *random)
{
	*random = *random * 6364136223846793005ULL + 1442695040888963407ULL;
	return *random >> 33;
}

/* A range that was valid when a change began must not be when that change is done. */
static void *driver_loop(void *data)
{
	size_t index = (size_t)data;
	uint64_t random = index + 1;

	while (!over) {
		size_t first = draw(&random) % CROWD_PAGES, n = 1 + draw(&random) % (CROWD_PAGES - first);
		struct hmm_range range = look_at(arena + first * PAGE, n);
		long before, result;

		range.default_flags = draw(&random) % 4 ? VALID : FLAGS;
		result = again(&range, draw(&random) % 4 == 0);
		if (result != (long)n)
			FAIL("%zu pages from %zu on: %ld", n, first, result);
		before = begun;
		if (!hmm_range_valid(&range)) {
			end(&range);
			continue;
		}
		for (int looks = 0; looks < 200 && !over; looks++) {
			long after = done;
			bool valid = hmm_range_valid(&range);

			/* All of the arena changes with each upheaval. */
			if (after > before && valid)
				FAIL("valid after upheaval %ld, seen at %ld", after, before);
			if (!valid) {
				caught[index]++;
				break;
			}
		}
		end(&range);
	}
	return NULL;
}

static void upheaval(uint64_t *random)
{
	void *there = arena;
	char copy[8];

	switch (draw(random) % 4) {
	case 0:
		CHECK_EQ(madvise(arena, CROWD_PAGES * PAGE, MADV_DONTNEED), 0);
		break;
	case 1:
		there = mmap(arena, CROWD_PAGES * PAGE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		break;
	case 2:
		test_migrate(arena, CROWD_PAGES, HMM_DEVICE, NULL);
		CHECK_EQ(madvise(arena, CROWD_PAGES * PAGE, MADV_DONTNEED), 0);
		break;
	case 3:
		test_fill(arena, CROWD_PAGES, 1);
		CHECK_EQ(madvise(arena, CROWD_PAGES * PAGE, MADV_DONTNEED), 0);
		break;
	}
	CHECK(there == arena);
	/* What was read by then has been applied. */
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)arena, copy, 8), 8);
}

static void crowd(void)
{
	const char *given = getenv("HMM_TEST_SEED");
	uint64_t random = given && *given ? strtoull(given, NULL, 0) : (uint64_t)getpid();
	unsigned long all = 0;
	pthread_t threads[CROWD];

	printf("HMM_TEST_SEED=%lu\n", random);
	test_open(0, DEVICE_MEMORY);
	arena = test_map(CROWD_PAGES);
	for (size_t i = 0; i < CROWD; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, driver_loop, (void *)i), 0);
	for (int i = 0; i < UPHEAVALS; i++) {
		begun++;
		upheaval(&random);
		done++;
	}
	over = true;
	for (size_t i = 0; i < CROWD; i++) {
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
		all += caught[i];
	}
	CHECK(all > 0);
	test_fill(arena, CROWD_PAGES, 2);
	test_device_check(arena, CROWD_PAGES, 2);
	test_check(arena, CROWD_PAGES, 2);
	test_close();
}

static const struct test_case cases[] = {
	{ "registering", registering, false }, { "bad-arrays", bad_arrays, false },
	{ "untouched", untouched, false }, { "page-by-page", page_by_page, false },
	{ "read-only", read_only, false }, { "not-readable", not_readable, false },
	{ "nothing-mapped", nothing_mapped, false }, { "special", special, false },
	{ "guard-pages", guard_pages, false }, { "beyond-the-file", beyond_the_file, false },
	{ "files-and-shared", files_and_shared, false }, { "huge-pages", huge_pages, false },
	{ "hugetlb", hugetlb, false }, { "on-the-device", on_the_device, false },
	{ "shared-pages", shared_pages, false }, { "coherent-memory", coherent_memory, false },
	{ "of-another-device", of_another_device, false }, { "not-waiting", not_waiting, false },
	{ "invalidated", invalidated, false }, { "invalidated-shared", invalidated_shared, false },
	{ "not-watched", not_watched, false }, { "protected-later", protected_later, false },
	{ "stays-valid", stays_valid, false }, { "released", released, false },
	{ "orphaned", orphaned, false }, { "told", told, false }, { "dma", dma, false },
	{ "compat", compat, false }, { "large", large, false }, { "crowd", crowd, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
