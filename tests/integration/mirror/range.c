/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * range.c - ranges: what a driver sees of memory of every kind, and has faulted in.
 * That what it saw is so no more it learns in validity.c.
 */
#include <hmm/compat.h>	/* before a mirror is named mirror */

#include "look.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define DEVICE_MEMORY (256UL << 20)

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

#ifndef UFFDIO_POISON
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

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

/* One that is registered is not taken again; what an unset one or a copy holds means nothing. */
static void registered_twice(void)
{
	struct hmm_range range = prepare(2), raw, copy;
	struct hmm_mirror other = { 0 };
	struct hmm_range_private *before;
	unsigned long start;

	test_open(0, DEVICE_MEMORY);
	test_mirror(&other, test_device("other", 0));
	start = (unsigned long)test_map(2);
	CHECK_EQ(hmm_range_register(&range, &mirror, start, start + PAGE, 12), 0);
	before = range.priv;
	CHECK_EQ(hmm_range_register(&range, &mirror, start, start + 2 * PAGE, 12), -EINVAL);
	CHECK(strstr(hmm_last_error(), "already"));
	CHECK_EQ(hmm_range_register(&range, &other, start, start + 2 * PAGE, 12), -EINVAL);
	CHECK(range.priv == before && range.end == start + PAGE && hmm_range_valid(&range));
	memset(&raw, 0x5a, sizeof(raw));
	CHECK_EQ(hmm_range_register(&raw, &mirror, start, start + PAGE, 12), 0);
	hmm_range_unregister(&raw);
	copy = range;
	CHECK_EQ(hmm_range_register(&copy, &mirror, start, start + PAGE, 12), 0);
	CHECK(copy.priv != before);
	hmm_range_unregister(&copy);
	hmm_range_unregister(&range);
	/* What it held once it holds no more. */
	range.priv = before;
	CHECK_EQ(hmm_range_register(&range, &mirror, start, start + PAGE, 12), 0);
	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), 1);
	end(&range);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(other.device);
	test_close();
}

/* The process may map nothing more: each call says so, the entries stay, and with room it goes on. */
static void no_memory(void)
{
	const size_t pages = 2048;
	struct rlimit all, none;
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(pages);
	test_fill(memory, pages, 6);
	range = look_at(memory, pages);
	range.default_flags = VALID;
	CHECK_EQ(getrlimit(RLIMIT_AS, &all), 0);
	none = (struct rlimit){ .rlim_cur = PAGE, .rlim_max = all.rlim_max };
	CHECK_EQ(setrlimit(RLIMIT_AS, &none), 0);
	CHECK_EQ(hmm_range_snapshot(&range), -ENOMEM);
	CHECK_EQ(hmm_range_fault(&range, true), -ENOMEM);
	CHECK(strstr(hmm_last_error(), "no memory"));
	CHECK_EQ(setrlimit(RLIMIT_AS, &all), 0);
	for (size_t i = 0; i < pages; i++)
		CHECK_EQ(range.pfns[i], ~0UL);
	CHECK(hmm_range_valid(&range));
	CHECK_EQ(again(&range, false), pages);
	check_entries(&range, 0, pages, VALID | WRITE);
	end(&range);
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
	for (int bad = 0; bad < 13; bad++) {
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
		case 10: v[HMM_PFN_ERROR] = ERROR | VALID; break;
		case 11: v[HMM_PFN_SPECIAL] = VALID; break;
		/* Of the bits of one that has several, too. */
		case 12: f[HMM_PFN_VALID] = VALID | 1UL << 63; v[HMM_PFN_ERROR] = 1UL << 63; break;
		}
		CHECK_EQ(both_ways(&range), -EINVAL);
		range.pfns = pfns;
		range.pfn_shift = 12;
	}
	for (size_t i = 0; i < 4; i++)
		CHECK_EQ(range.pfns[i], ~0UL);
	/* ERROR and SPECIAL may be the same, flags may be missing, and lie above the number. */
	memcpy(f, (uint64_t[HMM_PFN_FLAG_MAX]){ 1UL << 63 }, sizeof(f));
	memcpy(v, (uint64_t[]){ 8, 0, 8 }, sizeof(v));
	range.default_flags = 1UL << 63;
	CHECK_EQ(both_ways(&range), 4);
	for (size_t i = 0; i < 4; i++) {
		CHECK_EQ(hmm_device_entry_to_pfn(&range, range.pfns[i]), (unsigned long)memory / PAGE + i);
		CHECK_EQ(hmm_device_entry_from_pfn(&range, (unsigned long)memory / PAGE + i), range.pfns[i]);
		CHECK_EQ(hmm_pfn_to_pfn(&range, range.pfns[i]), (unsigned long)memory / PAGE + i);
		CHECK_EQ(hmm_pfn_from_pfn(&range, (unsigned long)memory / PAGE + i), range.pfns[i]);
	}
	/* Numbers may be at the very bottom. */
	memcpy(f, (uint64_t[HMM_PFN_FLAG_MAX]){ 1UL << 40, 1UL << 41, 1UL << 42 }, sizeof(f));
	memcpy(v, (uint64_t[]){ 1UL << 50, 0, 1UL << 51 }, sizeof(v));
	range.pfn_shift = 0;
	range.default_flags = 1UL << 40;
	CHECK_EQ(both_ways(&range), 4);
	for (size_t i = 0; i < 4; i++)
		CHECK_EQ(range.pfns[i], ((unsigned long)memory / PAGE + i) | 3UL << 40);
	end(&range);
	CHECK_EQ(both_ways(&range), -EINVAL);
	test_close();
}

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

/* A mark of the kernel's in the owner's own memory, which looks as a page in swap does until it is read. */
static void poisoned(void)
{
	char *memory = test_map(8), byte;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register watch = { .range = { (unsigned long)memory, 8 * PAGE },
					 .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_poison poison = { .range = { (unsigned long)memory + 3 * PAGE, PAGE } };
	struct hmm_range range;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */);

	test_fill(memory, 8, 1);
	CHECK_EQ(madvise(memory + 3 * PAGE, PAGE, MADV_DONTNEED), 0);
	CHECK(uffd >= 0);
	CHECK_EQ(ioctl(uffd, UFFDIO_API, &api), 0);
	CHECK_EQ(ioctl(uffd, UFFDIO_REGISTER, &watch), 0);
	if (ioctl(uffd, UFFDIO_POISON, &poison))
		test_skip("this kernel has no UFFDIO_POISON");
	close(uffd);
	test_open(0, DEVICE_MEMORY);
	range = look_at(memory, 8);
	CHECK_EQ(again(&range, true), 8);
	check_entries(&range, 0, 3, VALID | WRITE);
	check_entries(&range, 3, 4, NONE);
	check_entries(&range, 4, 8, VALID | WRITE);
	range.default_flags = VALID;
	CHECK_EQ(again(&range, false), -EFAULT);
	check_entries(&range, 0, 3, VALID | WRITE);
	check_entries(&range, 3, 4, ERROR);
	check_entries(&range, 4, 8, NONE);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 3 * PAGE, &byte, 1), -EFAULT);
	end(&range);
	test_check(memory, 3, 1);
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
	memory = test_map_apart(8);
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
	/* Who has a flag for it is told, and looking at a part splits none. */
	if (hmm_features(hmm) & HMM_HAS_PAGEMAP_SCAN) {
		static const uint64_t more[HMM_PFN_FLAG_MAX] = { VALID, WRITE, PRIVATE, 1UL << 60, 1UL << 61 };

		range = look_at(memory + 7 * PAGE, 9);
		range.flags = more;
		CHECK_EQ(again(&range, true), 9);
		for (size_t i = 0; i < 9; i++)
			CHECK(range.pfns[i] & more[HMM_PFN_HUGE] && !(range.pfns[i] & more[HMM_PFN_ZERO]));
		end(&range);
	}
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

/* From the table alone, and each page's number is its own, whatever is asked of which page. */
static void check_coherent(struct hmm_range *range)
{
	unsigned long first = HMM_PFN_DEVICE_FIRST + (range->start >> 12);

	CHECK_EQ(hmm_range_fault(range, false), 512);
	for (size_t i = 0; i < 512; i++) {
		CHECK_EQ(range->pfns[i] & FLAGS, VALID | WRITE);
		CHECK_EQ(hmm_device_entry_to_pfn(range, range->pfns[i]), first + i);
	}
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
	check_coherent(&range);
	range.default_flags = 0;
	range.pfn_flags_mask = FLAGS;
	for (size_t i = 0; i < 512; i++)
		range.pfns[i] = i % 3 == 0 ? 0 : i % 3 == 1 ? VALID : VALID | WRITE;
	check_coherent(&range);
	CHECK_EQ(hmm_free(&mirror, memory, 512 * PAGE), 0);
	CHECK(!hmm_range_valid(&range));
	end(&range);
	test_close();
}

/* Coherent pages between others, the borders anywhere in the range: asked of hmmd, and then by the table. */
static void coherent_borders(void)
{
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(4);
	CHECK_EQ(hmm_share(&mirror, memory + BLOCK, 2 * BLOCK), 0);
	for (size_t first = 400; first <= 550; first += 25) {
		char *start = memory + first * PAGE;
		const size_t before = first < 512 ? 512 - first : 0, after = 3 * 512 - first;

		/* Nothing of it is in the table, until it is asked for. */
		CHECK_EQ(madvise(memory, BLOCK, MADV_DONTNEED), 0);
		range = look_at(start, after + 90);
		range.default_flags = VALID;
		for (int round = 0; round < 2; round++) {
			CHECK_EQ(again(&range, false), (long)(after + 90));
			for (size_t i = 0; i < after + 90; i++) {
				unsigned long page = ((unsigned long)start >> 12) + i;

				if (i >= before && i < after)
					page += HMM_PFN_DEVICE_FIRST;
				CHECK_EQ(range.pfns[i] & (VALID | WRITE), VALID | WRITE);
				CHECK_EQ(hmm_device_entry_to_pfn(&range, range.pfns[i]), page);
			}
		}
		end(&range);
	}
	CHECK_EQ(hmm_unshare(&mirror, memory + BLOCK, 2 * BLOCK), 0);
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

static const struct test_case cases[] = {
	{ "registering", registering, false }, { "registered-twice", registered_twice, false },
	{ "poisoned", poisoned, false }, { "bad-arrays", bad_arrays, false },
	{ "no-memory", no_memory, false },
	{ "untouched", untouched, false }, { "page-by-page", page_by_page, false },
	{ "read-only", read_only, false }, { "not-readable", not_readable, false },
	{ "nothing-mapped", nothing_mapped, false }, { "special", special, false },
	{ "guard-pages", guard_pages, false }, { "beyond-the-file", beyond_the_file, false },
	{ "files-and-shared", files_and_shared, false }, { "huge-pages", huge_pages, false },
	{ "hugetlb", hugetlb, true }, { "on-the-device", on_the_device, false },
	{ "coherent-memory", coherent_memory, false },
	{ "coherent-borders", coherent_borders, false },
	{ "of-another-device", of_another_device, false },
	{ "not-waiting", not_waiting, false }, { "dma", dma, false },
	{ "compat", compat, false }, { "large", large, false },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
