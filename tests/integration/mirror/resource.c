/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * resource.c - device memory in what exists: a memfd, a file of hugetlbfs, what a driver's own descriptor
 * can be mapped from; whatever cannot be had is refused with the reason, and what is large costs little.
 */
#include "copyengine.h"
#include "driver.h"
#include "mirror.h"

#include <fcntl.h>
#include <sys/resource.h>

static void there_and_back(const char *kind)
{
	char *memory;

	engine_begin(kind);
	memory = test_map_huge(2);
	engine_rounds(memory, 1024);
	engine_end();
}

static void resource(void)
{
	there_and_back("resource");
}

static void own_descriptor(void)
{
	there_and_back("own-descriptor");
}

/* As many as there are, and all of them set aside when the memory is added. */
static void huge_pages(void)
{
	there_and_back("huge-pages");
}

static void bad_resource(struct hmm_device *device, int fd, uint64_t offset, uint64_t length, const char *why)
{
	struct hmm_resource resource = { .size = sizeof(resource), .fd = fd, .offset = offset, .length = length };
	struct hmm_devmem *devmem = NULL;

	CHECK_EQ(hmm_devmem_add_resource(NULL, device, &resource, &devmem), -EINVAL);
	if (!strstr(hmm_last_error(), why))
		FAIL("the reason is not '%s'", why);
	CHECK(!devmem);
}

static void bad_resources(void)
{
	struct hmm_device_options options = { .size = sizeof(options), .name = "bad-resources", .node = -1,
					      .caps = HMM_DEVICE_FAULTS | HMM_DEVICE_COPY_ENGINE };
	struct { struct hmm_resource known; uint64_t more; } larger = { .more = 1 };
	struct hmm_resource resource = { .size = sizeof(resource) };
	struct hmm_devmem *devmem = NULL, *twice = NULL;
	int file, sealed, readonly, pair[2];
	pid_t child;
	struct hmm_device *device, *plain;
	char path[32];

	test_open(0, DEVICE_MEMORY);
	plain = test_device("plain", 0);
	CHECK_EQ(hmm_device_new(hmm, &options, &device), 0);
	file = memfd_create("resource", MFD_ALLOW_SEALING);
	sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
	CHECK_EQ(ftruncate(file, 64 * PAGE), 0);
	CHECK_EQ(ftruncate(sealed, 64 * PAGE), 0);
	CHECK_EQ(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE), 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	readonly = open(path, O_RDONLY | O_CLOEXEC);
	CHECK_EQ(pipe(pair), 0);
	bad_resource(device, -1, 0, PAGE, "not open");
	bad_resource(device, 1000, 0, PAGE, "not open");
	bad_resource(device, file, 0, 0, "length is 0");
	bad_resource(device, file, 0, PAGE + 1, "multiple");
	bad_resource(device, file, 100, PAGE, "offset");
	bad_resource(device, file, 0, 65 * PAGE, "fewer");
	bad_resource(device, file, PAGE, 64 * PAGE, "fewer");
	bad_resource(device, file, INT64_MAX & ~(PAGE - 1), 2 * PAGE, "above");
	bad_resource(device, readonly, 0, PAGE, "reading and writing");
	bad_resource(device, sealed, 0, PAGE, "cannot be mapped");
	bad_resource(device, pair[1], 0, PAGE, "reading and writing");
	bad_resource(plain, file, 0, PAGE, "COPY_ENGINE");
	CHECK_EQ(hmm_devmem_add_resource(NULL, device, NULL, &devmem), -EINVAL);
	resource.size = 0;
	CHECK_EQ(hmm_devmem_add_resource(NULL, device, &resource, &devmem), -EINVAL);
	larger.known = (struct hmm_resource){ .size = sizeof(larger), .fd = file, .length = PAGE };
	CHECK_EQ(hmm_devmem_add_resource(NULL, device, &larger.known, &devmem), -E2BIG);
	/* And one that is good, once. */
	resource = (struct hmm_resource){ .size = sizeof(resource), .fd = file, .length = 64 * PAGE };
	CHECK_EQ(hmm_devmem_add_resource(NULL, device, &resource, &devmem), 0);
	CHECK_EQ(hmm_devmem_add_resource(NULL, device, &resource, &twice), -EBUSY);
	CHECK(hmm_devmem_page_address(&devmem->pages[3]));
	CHECK(hmm_devmem_pfn_to_page(devmem, devmem->pfn_first + 3) == &devmem->pages[3]);
	CHECK(hmm_devmem_pfn_to_page(devmem, 5 * HMM_PFN_DEVICE_FIRST + 3) == &devmem->pages[3]);
	CHECK_EQ(hmm_devmem_page_to_pfn(&devmem->pages[3]), devmem->pfn_first + 3);
	CHECK(!hmm_devmem_pfn_to_page(devmem, devmem->pfn_last + 1));
	CHECK(!hmm_devmem_pfn_to_page(devmem, 3));
	hmm_devmem_page_set_drvdata(&devmem->pages[3], 99);
	CHECK_EQ(hmm_devmem_page_get_drvdata(&devmem->pages[3]), 99);
	child = fork();
	if (!child) {
		hmm_device_put(device);
		_exit(hmm_devmem_remove(devmem, true) == -ESTALE ? 0 : 1);
	}
	test_reap(child, 0);
	hmm_page_get(NULL);
	CHECK_EQ(hmm_devmem_remove(devmem, false), 0);
	CHECK_EQ(hmm_devmem_add_resource(NULL, device, &resource, &devmem), 0);
	hmm_device_put(device);
	hmm_device_put(plain);
	close(pair[0]);
	close(pair[1]);
	close(readonly);
	close(sealed);
	close(file);
	test_close();
}

static struct hmm_device *device_with_engine(const char *name)
{
	struct hmm_device_options options = { .size = sizeof(options), .name = name, .node = -1,
					      .caps = HMM_DEVICE_FAULTS | HMM_DEVICE_COPY_ENGINE };
	struct hmm_device *device = NULL;

	CHECK_EQ(hmm_device_new(hmm, &options, &device), 0);
	return device;
}

/* More huge pages than any machine has: nobody gets a signal for them later. */
static void too_few_huge_pages(void)
{
	struct hmm_device *device;
	int file = memfd_create("too-large", MFD_HUGETLB | MFD_CLOEXEC);

	if (file < 0)
		test_skip("this kernel has no huge pages");
	test_open(0, DEVICE_MEMORY);
	device = device_with_engine("too-few");
	CHECK_EQ(ftruncate(file, 1L << 40), 0);
	bad_resource(device, file, 0, PAGE, "multiple of its page");
	bad_resource(device, file, 0, 1UL << 40, "too few are free");
	bad_resource(device, file, BLOCK, 1UL << 40, "fewer");
	hmm_device_put(device);
	close(file);
	test_close();
}

/*
 * A dax device as a file: it says what its pages are, and where it ends. What is on it is written over, so
 * only one that is named for that will do.
 */
static void dax(void)
{
	const char *name = getenv("HMM_TEST_DAX");
	struct hmm_device *device;
	int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;

	if (file < 0)
		test_skip("HMM_TEST_DAX names no dax device that may be written over");
	test_open(0, DEVICE_MEMORY);
	device = device_with_engine("not-so");
	bad_resource(device, file, 0, PAGE, "multiple of its page, 2097152 bytes");
	bad_resource(device, file, PAGE, BLOCK, "offset is not a multiple of its page");
	bad_resource(device, file, 0, 1UL << 40, "fewer than offset and length ask for");
	bad_resource(device, file, 1UL << 40, BLOCK, "fewer than offset and length ask for");
	hmm_device_put(device);
	close(file);
	test_close();
	there_and_back("dax");
}

static void store_nothing(struct hmm_devmem *devmem, const struct hmm_devmem_move *move)
{
}

static int lose(struct hmm_devmem *devmem, unsigned long addr, const struct hmm_page *page, unsigned int flags)
{
	return HMM_FAULT_SIGBUS;
}

/* KiB of shared memory that is this process's. */
static long shared_kib(void)
{
	FILE *file = fopen("/proc/self/status", "re");
	char line[128];
	long kib = -1;

	CHECK(file);
	while (fgets(line, sizeof(line), file))
		sscanf(line, "RssShmem: %ld", &kib);
	fclose(file);
	CHECK(kib >= 0);
	return kib;
}

/* A table of many pages is address space, and memory only as far as pages are used. */
static void large(void)
{
	static const dev_page_fault_t fault = lose;
	const struct hmm_devmem_ops ops = { .size = sizeof(ops), .alloc_and_copy = store_nothing, .fault = fault };
	struct hmm_devmem *devmem = NULL, *twice = NULL;
	struct rlimit limit, tight;
	struct hmm_device *device;
	struct hmm_page *last;
	long before;

	test_open(0, DEVICE_MEMORY);
	device = device_with_engine("large");
	/* No room for the table: nothing is left of it, and then it is there. */
	CHECK_EQ(getrlimit(RLIMIT_AS, &limit), 0);
	tight = (struct rlimit){ .rlim_cur = PAGE, .rlim_max = limit.rlim_max };
	CHECK_EQ(setrlimit(RLIMIT_AS, &tight), 0);
	CHECK_EQ(hmm_devmem_add(&ops, device, 16UL << 30, &devmem), -ENOMEM);
	CHECK(strstr(hmm_last_error(), "4194304 pages"));
	CHECK_EQ(setrlimit(RLIMIT_AS, &limit), 0);
	CHECK(!devmem);
	CHECK_EQ(hmm_device_memory(device), 0);
	CHECK_EQ(hmm_devmem_add(&ops, device, 1UL << 46, &devmem), -ENOSPC);
	before = shared_kib();
	CHECK_EQ(hmm_devmem_add(&ops, device, 16UL << 30, &devmem), 0);
	CHECK(shared_kib() - before < 1024);
	/* That it has memory is known before another table is made. */
	CHECK_EQ(setrlimit(RLIMIT_AS, &tight), 0);
	CHECK_EQ(hmm_devmem_add(&ops, device, 16UL << 30, &twice), -EBUSY);
	CHECK_EQ(setrlimit(RLIMIT_AS, &limit), 0);
	last = hmm_devmem_pfn_to_page(devmem, devmem->pfn_last);
	CHECK(last == &devmem->pages[(4 << 20) - 1]);
	CHECK_EQ(hmm_devmem_page_to_pfn(last), devmem->pfn_last);
	CHECK_EQ(hmm_devmem_page_to_pfn(last + 1), -1UL);
	CHECK_EQ(hmm_devmem_page_to_pfn(NULL), -1UL);
	CHECK(!hmm_devmem_page_address(last));
	CHECK(shared_kib() - before < 1024);
	CHECK_EQ(hmm_devmem_remove(devmem, true), 0);
	hmm_device_put(device);
	test_close();
}

static const struct test_case cases[] = {
	{ "resource", resource, false }, { "own-descriptor", own_descriptor, false },
	{ "huge-pages", huge_pages, true }, { "dax", dax, true }, { "bad-resources", bad_resources, false },
	{ "too-few-huge-pages", too_few_huge_pages, false }, { "large", large, false },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	if (test_is_driver(argc, argv)) {
		copyengine_main(argv[1]);
		return 0;
	}
	return test_main(argc, argv, cases);
}
