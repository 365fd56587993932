/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mirror.c - see mirror.h. Runs in the test program's main thread.
 */
#include "mirror.h"

#include <stdarg.h>
#include <sys/wait.h>

struct hmm *hmm;
struct hmm_mirror mirror;
static bool base_chosen;

/* Memory beside a thread control block is excluded with it; test memory keeps a distance. */
#define GAP 16UL

static const struct hmm_mirror_ops no_callbacks = { .size = sizeof(no_callbacks) };

void test_fail(const char *file, int line, const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "%s:%d: ", strrchr(file, '/') ? strrchr(file, '/') + 1 : file, line);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, " (last error: %s)\n", hmm_last_error());
	_exit(1);
}

void test_skip(const char *why)
{
	printf("%s\n", why);
	fflush(stdout);
	_exit(77);
}

int test_scaled(int most)
{
	const char *scale = getenv("HMM_TEST_SCALE");
	double by = scale ? atof(scale) : 1;

	return (int)(most * (by > 1 ? by : 1));
}

/* Two merged tables are one with an end in its middle, and what lies behind that never runs. */
static void check_table(const struct test_case *cases, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (!cases[i].name != (i == count - 1))
			FAIL("entry %zu of the %zu cases: only the last has no name", i, count);
		for (size_t k = 0; cases[i].name && k < i; k++)
			if (!strcmp(cases[i].name, cases[k].name))
				FAIL("there are two cases '%s'", cases[i].name);
	}
}

int test_main_of(int argc, char **argv, const struct test_case *cases, size_t count)
{
	bool list = argc == 2 && !strcmp(argv[1], "--list"), all = argc == 2 && !strcmp(argv[1], "--list-all");

	check_table(cases, count);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (const struct test_case *one = cases; one->name && argc == 2; one++) {
		if (all || (list && !one->special))
			puts(one->name);
		if (!strcmp(argv[1], one->name))
			return one->run(), 0;
	}
	if (list || all)
		return 0;
	fprintf(stderr, "usage: %s CASE | --list | --list-all\n", argv[0]);
	return 2;
}

/* ---- the mirror ------------------------------------------------------------ */

struct hmm_device *test_device(const char *name, uint64_t memory)
{
	struct hmm_device_options options = { .size = sizeof(options), .name = name, .memory = memory,
					      .node = -1, .caps = HMM_DEVICE_FAULTS };
	struct hmm_device *device = NULL;

	CHECK_EQ(hmm_device_new(hmm, &options, &device), 0);
	CHECK(device);
	return device;
}

void test_mirror(struct hmm_mirror *other, struct hmm_device *device)
{
	other->device = device;
	other->ops = &no_callbacks;
	CHECK_EQ(hmm_mirror_register(other, hmm), 0);
	CHECK(other->hmm == hmm);
}

void test_open(uint64_t flags, uint64_t memory)
{
	struct hmm_open_options options = { .size = sizeof(options), .flags = flags,
						    .timeout_ms = (unsigned int)test_scaled(5000) };
	char name[32];

	snprintf(name, sizeof(name), "device-%d", getpid());
	CHECK_EQ(hmm_open(&options, &hmm), 0);
	base_chosen = flags & HMM_OPEN_BASE_ENGINE;
	test_mirror(&mirror, test_device(name, memory));
}

void test_close(void)
{
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	hmm = NULL;
}

/* ---- memory ------------------------------------------------------------------ */

/*
 * On a kernel of the base tier only memory migrates that is promised to have no pins. A
 * test that chose that engine promises itself. What is refused here stays, and is seen.
 */
static void declare(void *memory, size_t bytes)
{
	if (hmm && !base_chosen && !(hmm_features(hmm) & HMM_HAS_MOVE))
		hmm_advise(hmm, (unsigned long)memory, bytes, HMM_ADVISE_UNPINNED, NULL);
}

/*
 * Where the kernel places nothing by itself: many a test leaves a hole there for a while, in which a thread that
 * begins would otherwise find room for its stacks; or its driver, another process, has a window at these addresses.
 * Each process has 4 GiB of its own.
 */
static void *apart(size_t size)
{
	static uint64_t next;
	uint64_t at;

	if (!next)
		next = 0x300000000000UL + ((uint64_t)getpid() % 4096 << 32);
	at = next;
	next += size;
	return (void *)(uintptr_t)at;
}

/* Of reserved room. */
static char *open_up(char *memory, size_t pages)
{
	CHECK_EQ(mprotect(memory, pages * PAGE, PROT_READ | PROT_WRITE), 0);
	madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
	declare(memory, pages * PAGE);
	return memory;
}

static char *map_in(void *place, size_t pages)
{
	char *room = mmap(place, (pages + 2 * GAP) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *memory = room + GAP * PAGE;

	CHECK(room != MAP_FAILED);
	return open_up(memory, pages);
}

char *test_map(size_t pages)
{
	return map_in(NULL, pages);
}

char *test_map_apart(size_t pages)
{
	return map_in(apart((pages + 2 * GAP) * PAGE), pages);
}

char *test_map_huge(size_t blocks)
{
	char *room = mmap(apart((blocks + 1) * BLOCK), (blocks + 1) * BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *memory;

	CHECK(room != MAP_FAILED);
	memory = (char *)(((uintptr_t)room + BLOCK - 1) & ~(BLOCK - 1));
	CHECK(mmap(memory, blocks * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		   -1, 0) == memory);
	madvise(memory, blocks * BLOCK, MADV_HUGEPAGE);
	declare(memory, blocks * BLOCK);
	return memory;
}

char *test_map_across(size_t pages)
{
	const size_t apart = 64UL << 20;
	char *room = mmap(NULL, 2 * apart + (pages + 2 * GAP) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *memory = (char *)(((uintptr_t)room + (pages / 2 + GAP) * PAGE + apart - 1) & ~(apart - 1)) -
		       pages / 2 * PAGE;

	CHECK(room != MAP_FAILED);
	return open_up(memory, pages);
}

char *test_map_in_block(size_t pages)
{
	char *room = mmap(apart(2 * BLOCK), 2 * BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *memory = (char *)(((uintptr_t)room + BLOCK - 1) & ~(BLOCK - 1)) + GAP * PAGE;

	CHECK(room != MAP_FAILED && pages <= 480);
	return open_up(memory, pages);
}

uint64_t test_word(size_t page, size_t word, uint64_t seed)
{
	uint64_t z = (page * 512 + word + 1) * 0x9e3779b97f4a7c15ULL ^ seed * 0xbf58476d1ce4e5b9ULL;

	z = (z ^ (z >> 30)) * 0x94d049bb133111ebULL;
	return (z ^ (z >> 31)) | 1;
}

void test_fill(void *memory, size_t pages, uint64_t seed)
{
	volatile uint64_t *words = memory;

	for (size_t i = 0; i < pages * 512; i++)
		words[i] = test_word(i / 512, i % 512, seed);
}

void test_check(const void *memory, size_t pages, uint64_t seed)
{
	const volatile uint64_t *words = memory;

	for (size_t i = 0; i < pages * 512; i++) {
		uint64_t seen = words[i];

		if (seen != test_word(i / 512, i % 512, seed))
			FAIL("page %zu of %zu, word %zu, address %p: %#lx instead of %#lx", i / 512, pages, i % 512,
			     (void *)&words[i], seen, test_word(i / 512, i % 512, seed));
	}
}

void test_check_zero(const void *memory, size_t pages)
{
	const volatile uint64_t *words = memory;

	for (size_t i = 0; i < pages * 512; i++) {
		uint64_t seen = words[i];

		if (seen)
			FAIL("page %zu of %zu, word %zu, address %p: %#lx instead of zero", i / 512, pages, i % 512,
			     (void *)&words[i], seen);
	}
}

void test_device_check(const void *memory, size_t pages, uint64_t seed)
{
	static uint64_t copy[512];

	for (size_t page = 0; page < pages; page++) {
		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + page * PAGE, copy, PAGE), PAGE);
		for (size_t i = 0; i < 512; i++)
			if (copy[i] != test_word(page, i, seed))
				FAIL("the device reads %#lx in page %zu, word %zu, instead of %#lx", copy[i], page,
				     i, test_word(page, i, seed));
	}
}

/* ---- moving -------------------------------------------------------------------- */

long test_migrate(void *memory, size_t pages, enum hmm_target target, uint8_t *results)
{
	struct hmm_migrate_report report = { 0 };
	long there = hmm_migrate(&mirror, (unsigned long)memory, pages * PAGE, target, 0, results, &report);

	if (there < 0)
		FAIL("hmm_migrate: %s", strerror((int)-there));
	CHECK_EQ(report.pages, pages);
	CHECK_EQ(report.moved + report.already, there);
	CHECK_EQ(report.moved + report.already + report.failed, pages);
	return there;
}

/* HMM_CHANGED means "ask again": a slow machine's agent may be late for as long as hmmd asks by itself. */
static void test_travel(void *memory, size_t pages, enum hmm_target target)
{
	uint8_t *results = malloc(pages);
	int tries = test_scaled(5);
	long there;

	if (target == HMM_DEVICE)
		declare(memory, pages * PAGE);
	do {
		memset(results, 0xff, pages);
		there = test_migrate(memory, pages, target, results);
	} while (memchr(results, HMM_CHANGED, pages) && --tries);
	for (size_t i = 0; i < pages; i++)
		if (results[i] != HMM_MIGRATED && results[i] != HMM_ALREADY)
			FAIL("page %zu of %zu did not get there: %s", i, pages, hmm_migrate_result_name(results[i]));
	CHECK_EQ(there, pages);
	free(results);
}

void test_out(void *memory, size_t pages)
{
	test_travel(memory, pages, HMM_DEVICE);
	CHECK_EQ(test_device_pages(memory, pages), pages);
}

void test_home(void *memory, size_t pages)
{
	test_travel(memory, pages, HMM_SYSTEM);
	CHECK_EQ(test_device_pages(memory, pages), 0);
}

void test_refused(void *memory, size_t pages, enum hmm_migrate_result expected)
{
	uint8_t *results = malloc(pages);

	memset(results, 0xff, pages);
	CHECK_EQ(test_migrate(memory, pages, HMM_DEVICE, results), 0);
	for (size_t i = 0; i < pages; i++)
		if (results[i] != expected)
			FAIL("page %zu of %zu: %s instead of %s", i, pages, hmm_migrate_result_name(results[i]),
			     hmm_migrate_result_name(expected));
	free(results);
}

/* Of what was refused halfway some blocks are ordinary already. */
static int unshare_rest(char *memory, size_t blocks)
{
	int error = 0;

	for (char *block = memory; block < memory + blocks * BLOCK && !error; block += BLOCK)
		while (hmm_mirror_lookup(&mirror, (unsigned long)block) & HMM_ENTRY_COHERENT) {
			error = hmm_unshare(&mirror, block, BLOCK);
			if (error != -EBUSY)
				break;
		}
	return error;
}

int test_unshare(char *memory, size_t blocks)
{
	int error = hmm_unshare(&mirror, memory, blocks * BLOCK);

	return error == -EBUSY ? unshare_rest(memory, blocks) : error;
}

int test_share(char *memory, size_t blocks)
{
	int error, back = 0;

	do {
		error = hmm_share(&mirror, memory, blocks * BLOCK);
		if (error == -EBUSY)
			back = unshare_rest(memory, blocks);
	} while (error == -EBUSY && !back);
	return back ? back : error;
}

/* ---- looking ------------------------------------------------------------------- */

bool test_on_device(const void *page)
{
	return hmm_mirror_lookup(&mirror, (unsigned long)page) & HMM_ENTRY_DEVICE;
}

size_t test_device_pages(const void *memory, size_t pages)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++)
		n += test_on_device((const char *)memory + i * PAGE);
	return n;
}

long test_smaps(const void *memory, size_t bytes, const char *field)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	unsigned long start = 0, end = 0, from, to;
	char line[512], name[64];
	long sum = 0, value;

	CHECK(file);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
			start = from;
			end = to;
			continue;
		}
		if (sscanf(line, "%63[^:]: %ld kB", name, &value) == 2 && !strcmp(name, field) &&
		    start >= (unsigned long)memory && end <= (unsigned long)memory + bytes)
			sum += value;
	}
	fclose(file);
	return sum;
}

void test_reap(pid_t child, int status)
{
	int seen = 0;

	CHECK(child > 0);
	while (waitpid(child, &seen, 0) < 0)
		CHECK(errno == EINTR);
	if (seen != status)
		FAIL("child %d ended with status %#x instead of %#x", child, (unsigned int)seen,
		     (unsigned int)status);
}

struct hmm_policy test_policy(const void *memory, size_t pages)
{
	struct hmm_policy policy = { .size = sizeof(policy) };

	CHECK_EQ(hmm_range_get_attribute(hmm, (unsigned long)memory, pages * PAGE, &policy), 0);
	CHECK_EQ(policy.pages, pages);
	CHECK_EQ(policy.in_force & ~policy.said, 0);
	/* Never in silence. */
	CHECK((policy.in_force == policy.said) == !policy.why[0]);
	return policy;
}
