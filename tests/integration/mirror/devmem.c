/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * devmem.c - memory that only the driver reaches: pages go there and come home by its
 * own copies, whatever the owner does meanwhile; and what becomes of them when the driver
 * has no room, no memory, has lost them, or dies.
 */
#include "copyengine.h"
#include "driver.h"
#include "mirror.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define DEVICE_MEMORY (64UL << 20)

static int engine;		/* the socket to the driver */
static pid_t driver;

static void begin(const char *name)
{
	board_make();
	test_open(0, DEVICE_MEMORY);
	driver = copyengine_start(name, &engine);
}

static void until(const char *what, const _Atomic unsigned int *value, unsigned int expected)
{
	for (int i = 0; i < 2000 && atomic_load(value) != expected; i++)
		usleep(5000);
	if (atomic_load(value) != expected)
		FAIL("%s: %u, not %u", what, atomic_load(value), expected);
}

/* Every page of the driver's memory came back, once. */
static void nothing_in_use(void)
{
	until("pages in use", &board->in_use, 0);
	CHECK_EQ(board->bad_free, 0);
}

static void end(void)
{
	nothing_in_use();
	close(engine);
	test_reap(driver, 0);
	test_close();
}

static void out(void *memory, size_t pages)
{
	CHECK_EQ(copyengine_ask(engine, COMMAND_OUT, memory, pages), pages);
	for (size_t i = 0; i < pages; i++)
		CHECK(board->results[i] == HMM_MIGRATED || board->results[i] == HMM_ALREADY);
}

/* Pages [first, end) of what test_fill() wrote at @memory. */
static void check_part(const char *memory, size_t first, size_t end, uint64_t seed)
{
	for (size_t i = first; i < end; i++)
		for (size_t w = 0; w < 512; w++)
			CHECK_EQ(((const volatile uint64_t *)(const void *)(memory + i * PAGE))[w], test_word(i, w, seed));
}

static uint64_t entry(const void *page)
{
	return copyengine_ask(engine, COMMAND_ENTRY, page, 1);
}

/* ---- there and back ------------------------------------------------------------------ */

static void round_trip(void)
{
	size_t pages = 3 * 512 + 40;
	char *memory;

	begin("round-trip");
	memory = test_map(pages);
	test_fill(memory, pages, 1);
	out(memory, pages);
	CHECK_EQ(board->in_use, pages);
	until("pages moved", &board->moved, (unsigned int)pages);
	CHECK_EQ(board->refused, 0);
	for (size_t i = 0; i < pages; i += 100)
		CHECK_EQ(entry(memory + i * PAGE), HMM_ENTRY_VALID | HMM_ENTRY_WRITE | HMM_ENTRY_DEVICE);
	/* Reads, writes, and by request. */
	test_check(memory, 512, 1);
	test_fill(memory + 512 * PAGE, 512, 2);
	CHECK_EQ(copyengine_ask(engine, COMMAND_HOME, memory, pages), pages);
	CHECK_EQ(entry(memory), 0);
	test_check(memory, 512, 1);
	test_check(memory + 512 * PAGE, 512, 2);
	nothing_in_use();
	/* The second time is like the first. */
	test_fill(memory, pages, 3);
	out(memory, pages);
	CHECK_EQ(board->in_use, pages);
	test_check(memory, pages, 3);
	CHECK(board->writes);
	end();
	test_check(memory, pages, 3);
}

static void huge(void)
{
	char *memory;

	begin("huge");
	memory = test_map_huge(4);
	test_fill(memory, 4 * 512, 1);
	out(memory, 4 * 512);
	CHECK_EQ(test_smaps(memory, 4 * BLOCK, "Rss"), 0);
	check_part(memory, 512, 1212, 1);
	CHECK_EQ(copyengine_ask(engine, COMMAND_HOME, memory, 4 * 512), 4 * 512);
	test_check(memory, 4 * 512, 1);
	end();
}

static void holes(void)
{
	char *memory;

	begin("holes");
	memory = test_map(64);
	test_fill(memory + 10 * PAGE, 20, 1);
	board->word = HMM_MIGRATE_POPULATE;
	out(memory, 64);
	CHECK_EQ(board->in_use, 64);
	test_check_zero(memory, 10);
	test_check(memory + 10 * PAGE, 20, 1);
	test_check_zero(memory + 30 * PAGE, 34);
	end();
}

static void already(void)
{
	char *memory;

	begin("already");
	memory = test_map(32);
	test_fill(memory, 32, 1);
	out(memory, 32);
	out(memory, 32);
	for (int i = 0; i < 32; i++)
		CHECK_EQ(board->results[i], HMM_ALREADY);
	CHECK_EQ(board->in_use, 32);
	test_check(memory, 32, 1);
	end();
}

static void resource(void)
{
	char *memory;

	begin("resource");
	memory = test_map_huge(2);
	for (uint64_t round = 1; round < 4; round++) {
		test_fill(memory, 1024, round);
		out(memory, 1024);
		CHECK_EQ(entry(memory), HMM_ENTRY_VALID | HMM_ENTRY_WRITE | HMM_ENTRY_DEVICE);
		check_part(memory, 100, 600, round);
		CHECK_EQ(copyengine_ask(engine, COMMAND_HOME, memory, 1024), 1024);
		test_check(memory, 1024, round);
	}
	end();
}

/* ---- the driver's answers --------------------------------------------------------------- */

static void no_room(void)
{
	unsigned int moved = 0, full = 0;
	char *memory;

	begin("no-room");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	atomic_store(&board->room, 10);
	CHECK_EQ(copyengine_ask(engine, COMMAND_OUT, memory, 64), 10);
	for (int i = 0; i < 64; i++) {
		moved += board->results[i] == HMM_MIGRATED;
		full += board->results[i] == HMM_POOL_FULL;
	}
	CHECK_EQ(moved, 10);
	CHECK_EQ(full, 54);
	until("pages in use", &board->in_use, 10);
	until("pages refused", &board->refused, 54);
	CHECK_EQ(board->moved, 10);
	/* The others come home by themselves. */
	for (int i = 0; i < 1000 && test_smaps(memory, 64 * PAGE, "Rss") != 54 * 4; i++)
		usleep(5000);
	CHECK_EQ(test_smaps(memory, 64 * PAGE, "Rss"), 54 * 4);
	/* What had to stay goes with the next one. */
	atomic_store(&board->room, DEVICE_PAGES);
	out(memory, 64);
	CHECK_EQ(board->in_use, 64);
	test_check(memory, 64, 1);
	end();
}

static void bad_choice(void)
{
	char *memory;

	begin("bad-choice");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	out(memory, 1);
	atomic_store(&board->choose_badly, true);
	CHECK_EQ(copyengine_ask(engine, COMMAND_OUT, memory, 64), 1);
	for (int i = 1; i < 64; i++)
		CHECK_EQ(board->results[i], HMM_POOL_FULL);
	test_check(memory, 64, 1);
	end();
}

static void no_memory(void)
{
	char *memory;

	begin("no-memory");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	out(memory, 64);
	atomic_store(&board->out_of_memory, 5);
	test_check(memory, 64, 1);
	CHECK_EQ(board->out_of_memory, 0);
	CHECK(board->faults >= 6);
	end();
}

static void brings_all(void)
{
	char *memory;

	begin("brings-all");
	memory = test_map_huge(1);
	test_fill(memory, 64, 1);
	out(memory, 64);
	atomic_store(&board->whole, true);
	CHECK_EQ(copyengine_ask(engine, COMMAND_HOME, memory, 64), 64);
	CHECK_EQ(board->faults, 1);
	test_check(memory, 64, 1);
	end();
}

static __thread sigjmp_buf caught;
static __thread volatile unsigned long caught_at;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	caught_at = (unsigned long)info->si_addr;
	siglongjmp(caught, 1);
}

/* Whether a read of the page is SIGBUS. */
static bool is_lost(const char *page)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };

	sigaction(SIGBUS, &action, NULL);
	if (sigsetjmp(caught, 1)) {
		CHECK_EQ(caught_at & ~(PAGE - 1), (unsigned long)page);
		return true;
	}
	(void)*(volatile const char *)page;
	return false;
}

static void lost(_Atomic unsigned long *how)
{
	char *memory;

	memory = test_map(64);
	test_fill(memory, 64, 1);
	out(memory, 64);
	atomic_store(how, (unsigned long)memory + 20 * PAGE);
	CHECK(is_lost(memory + 20 * PAGE));
	CHECK(is_lost(memory + 20 * PAGE));
	test_check(memory, 20, 1);
	check_part(memory, 21, 64, 1);
	CHECK_EQ(entry(memory + 20 * PAGE), HMM_ENTRY_ERROR);
	copyengine_ask(engine, COMMAND_READ, memory + 20 * PAGE, 1);
	CHECK_EQ(board->result, -EIO);
	/* It does not migrate, and nothing else minds. */
	CHECK_EQ(copyengine_ask(engine, COMMAND_OUT, memory, 64), 63);
	CHECK_EQ(board->results[20], HMM_MIGRATE_ERROR);
	CHECK(is_lost(memory + 20 * PAGE));
	/* A program that throws it away has memory again. */
	CHECK_EQ(madvise(memory + 20 * PAGE, PAGE, MADV_DONTNEED), 0);
	test_check_zero(memory + 20 * PAGE, 1);
	test_fill(memory, 64, 2);
	test_check(memory, 64, 2);
}

static void sigbus(void)
{
	begin("sigbus");
	lost(&board->sigbus);
	end();
}

static void liar(void)
{
	begin("liar");
	lost(&board->liar);
	end();
}

/* It stays lost when its owner has nothing to do with hmmd any more. */
static void lost_for_good(void)
{
	char *memory;

	begin("lost-for-good");
	memory = test_map(8);
	test_fill(memory, 8, 1);
	out(memory, 8);
	atomic_store(&board->sigbus, (unsigned long)memory + 3 * PAGE);
	test_check(memory, 3, 1);
	CHECK(is_lost(memory + 3 * PAGE));
	check_part(memory, 4, 8, 1);
	end();
	CHECK(is_lost(memory + 3 * PAGE));
	test_check(memory, 3, 1);
	check_part(memory, 4, 8, 1);
}

static void driver_dies(void)
{
	char *memory;
	unsigned int n = 0;

	begin("driver-dies");
	memory = test_map(600);
	test_fill(memory, 600, 1);
	out(memory + 100 * PAGE, 400);
	test_check(memory, 150, 1);
	kill(driver, SIGKILL);
	test_reap(driver, SIGKILL);
	for (int i = 0; i < 600; i++) {
		bool gone = is_lost(memory + i * PAGE);

		if (i < 150 || i >= 500)
			CHECK(!gone);
		n += gone;
		if (!gone)
			CHECK_EQ(*(uint64_t *)(void *)(memory + i * PAGE), test_word(i, 0, 1));
	}
	/* What a read had brought along was saved. */
	CHECK(n > 0 && n <= 350);
	close(engine);
	/* Another driver begins with nothing. */
	atomic_store(&board->in_use, 0);
	driver = copyengine_start("driver-dies", &engine);
	CHECK_EQ(madvise(memory, 600 * PAGE, MADV_DONTNEED), 0);
	test_fill(memory, 600, 2);
	usleep(2100000);	/* what was just discarded does not leave for 2 s */
	out(memory, 600);
	test_check(memory, 600, 2);
	end();
}

static void *touch(void *page)
{
	return (void *)(uintptr_t)is_lost(page);
}

/* Whoever waits for a page finds that it is lost; one that was unmapped meanwhile is nobody's. */
static void driver_dies_in_fetch(void)
{
	pthread_t helper;
	char *memory;
	void *gone;

	begin("driver-dies-in-fetch");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	out(memory, 32);
	atomic_store(&board->hold_fault, true);
	CHECK_EQ(pthread_create(&helper, NULL, touch, memory + 7 * PAGE), 0);
	while (!atomic_load(&board->in_fault))
		usleep(1000);
	CHECK_EQ(munmap(memory + 20 * PAGE, 12 * PAGE), 0);
	kill(driver, SIGKILL);
	test_reap(driver, SIGKILL);
	CHECK_EQ(pthread_join(helper, &gone), 0);
	CHECK(gone);
	check_part(memory, 32, 64, 1);
	for (int i = 0; i < 20; i++)
		CHECK(is_lost(memory + i * PAGE));
	close(engine);
	test_close();
}

/* An answer that comes late: what was unmapped meanwhile is freed, the rest is there. */
static void unmapped_in_fetch(void)
{
	pthread_t helper;
	char *memory;
	void *gone;

	begin("unmapped-in-fetch");
	memory = test_map_huge(1);
	test_fill(memory, 64, 1);
	out(memory, 64);
	atomic_store(&board->hold_fault, true);
	CHECK_EQ(pthread_create(&helper, NULL, touch, memory + 7 * PAGE), 0);
	while (!atomic_load(&board->in_fault))
		usleep(1000);
	CHECK_EQ(munmap(memory + 20 * PAGE, 12 * PAGE), 0);
	CHECK_EQ(madvise(memory + 8 * PAGE, 2 * PAGE, MADV_DONTNEED), 0);
	atomic_store(&board->hold_fault, false);
	CHECK_EQ(pthread_join(helper, &gone), 0);
	CHECK(!gone);
	check_part(memory, 0, 8, 1);
	test_check_zero(memory + 8 * PAGE, 2);
	check_part(memory, 10, 20, 1);
	check_part(memory, 32, 64, 1);
	end();
}

static void driver_dies_in_store(void)
{
	char *memory;

	begin("driver-dies-in-store");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	atomic_store(&board->hold_store, true);
	board->addr = (unsigned long)memory;
	board->pages = 64;
	tell(engine, COMMAND_OUT, -1);
	while (!atomic_load(&board->in_store))
		usleep(1000);
	kill(driver, SIGKILL);
	test_reap(driver, SIGKILL);
	test_check(memory, 64, 1);
	close(engine);
	test_close();
	test_check(memory, 64, 1);
}

static void *let_go_soon(void *data)
{
	usleep(100000);
	atomic_store(&board->hold_store, false);
	return data;
}

/* A thread that touches a page while the driver takes it waits, and finds it. */
static void touched_in_store(void)
{
	pthread_t helper;
	char *memory;

	begin("touched-in-store");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	atomic_store(&board->hold_store, true);
	board->addr = (unsigned long)memory;
	board->pages = 64;
	tell(engine, COMMAND_OUT, -1);
	while (!atomic_load(&board->in_store))
		usleep(1000);
	CHECK_EQ(pthread_create(&helper, NULL, let_go_soon, NULL), 0);
	test_check(memory, 64, 1);
	CHECK_EQ(pthread_join(helper, NULL), 0);
	CHECK(hear(engine, &(uint64_t){ 0 }, NULL));
	test_check(memory, 64, 1);
	end();
}

/* ---- who else looks ---------------------------------------------------------------------- */

static void accesses(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	uint64_t word = 0;
	char *memory;

	begin("accesses");
	device = test_device("the-other", DEVICE_MEMORY);
	test_mirror(&other, device);
	memory = test_map(64);
	test_fill(memory, 64, 1);
	out(memory, 64);
	CHECK_EQ(copyengine_ask(engine, COMMAND_READ, memory + 3 * PAGE, 1), test_word(3, 0, 1));
	CHECK_EQ(board->result, 8);
	board->word = 77;
	copyengine_ask(engine, COMMAND_WRITE, memory + 4 * PAGE, 1);
	CHECK_EQ(board->result, 8);
	CHECK_EQ(*(volatile uint64_t *)(void *)(memory + 4 * PAGE), 77);
	CHECK_EQ(hmm_device_read(&other, (unsigned long)memory + 5 * PAGE, &word, 8), 8);
	CHECK_EQ(word, test_word(5, 0, 1));
	word = 78;
	CHECK_EQ(hmm_device_write(&other, (unsigned long)memory + 6 * PAGE, &word, 8), 8);
	CHECK_EQ(*(volatile uint64_t *)(void *)(memory + 6 * PAGE), 78);
	*(volatile uint64_t *)(void *)(memory + 4 * PAGE) = test_word(4, 0, 1);
	*(volatile uint64_t *)(void *)(memory + 6 * PAGE) = test_word(6, 0, 1);
	/* The other device takes what this one has, and back. */
	board->word = 0;
	out(memory, 64);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 64 * PAGE, HMM_DEVICE, 0, NULL, NULL), 64);
	nothing_in_use();
	out(memory, 64);
	test_check(memory, 64, 1);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	end();
}

static void refusals(void)
{
	struct hmm_device_options options = { .size = sizeof(options), .name = "in-the-owner", .node = -1,
					      .caps = HMM_DEVICE_COPY_ENGINE };
	static const struct hmm_devmem_ops none = { 0 };
	static const struct hmm_mirror_ops no_callbacks = { 0 };
	struct hmm_devmem *devmem = NULL;
	struct hmm_mirror mine = { 0 };
	struct hmm_device *device, *theirs;
	char *memory, name[32];

	begin("refusals");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_WINDOW, memory, 64), -EOPNOTSUPP);
	CHECK_EQ(hmm_device_new(hmm, &options, &device), 0);
	CHECK_EQ(hmm_devmem_add(NULL, device, 64 * PAGE, &devmem), -EINVAL);
	CHECK_EQ(hmm_devmem_add(&none, device, 64 * PAGE, &devmem), -EINVAL);
	CHECK_EQ(hmm_devmem_add(&none, NULL, 64 * PAGE, &devmem), -EINVAL);
	CHECK_EQ(hmm_devmem_add(&none, device, 64 * PAGE, NULL), -EINVAL);
	CHECK_EQ(hmm_devmem_remove(NULL, true), -EINVAL);
	mine.device = device;
	mine.ops = &no_callbacks;
	CHECK_EQ(hmm_mirror_register(&mine, hmm), -EOPNOTSUPP);
	/* Another's device with a copy engine, from here. */
	snprintf(name, sizeof(name), "copyengine-%d", getpid());
	CHECK_EQ(hmm_device_open(hmm, name, &theirs), 0);
	mine.device = theirs;
	CHECK_EQ(hmm_mirror_register(&mine, hmm), -EOPNOTSUPP);
	hmm_device_put(theirs);
	hmm_device_put(device);
	options.name = "hugetlb-engine";
	options.pool = HMM_POOL_HUGETLB;
	CHECK_EQ(hmm_device_new(hmm, &options, &device), -EOPNOTSUPP);
	CHECK(!hmm_vma_alloc_locked_page(NULL, (unsigned long)memory));
	CHECK(!hmm_devmem_page_address(NULL));
	hmm_page_put(NULL);
	test_check(memory, 64, 1);
	end();
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
					      .caps = HMM_DEVICE_COPY_ENGINE };
	struct { struct hmm_resource known; uint64_t more; } larger = { .more = 1 };
	struct hmm_resource resource = { .size = sizeof(resource) };
	struct hmm_devmem *devmem = NULL, *twice = NULL;
	int file, sealed, readonly, pair[2];
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
	CHECK(hmm_devmem_pfn_to_page(devmem, 5 * HMM_DEVICE_PFN + 3) == &devmem->pages[3]);
	CHECK_EQ(hmm_devmem_page_to_pfn(&devmem->pages[3]), devmem->pfn_first + 3);
	CHECK(!hmm_devmem_pfn_to_page(devmem, devmem->pfn_last + 1));
	CHECK(!hmm_devmem_pfn_to_page(devmem, 3));
	hmm_devmem_page_set_drvdata(&devmem->pages[3], 99);
	CHECK_EQ(hmm_devmem_page_get_drvdata(&devmem->pages[3]), 99);
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

/* Memory of hmmd's pool, for a device that was made without. */
static void from_the_pool(void)
{
	static const struct hmm_devmem_ops none = { 0 };
	struct hmm_devmem *devmem = NULL, *twice = NULL;
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	uint8_t results[64];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	device = test_device("from-the-pool", 0);
	test_mirror(&other, device);
	memory = test_map(64);
	test_fill(memory, 64, 1);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 64 * PAGE, HMM_DEVICE, 0, results, NULL), 0);
	CHECK_EQ(results[0], HMM_POOL_FULL);
	CHECK_EQ(hmm_devmem_add(&none, device, 4 << 20, &devmem), -EINVAL);
	CHECK_EQ(hmm_devmem_add(NULL, device, 0, &devmem), -EINVAL);
	CHECK_EQ(hmm_devmem_add(NULL, device, 1UL << 46, &devmem), -ENOSPC);
	CHECK_EQ(hmm_devmem_add(NULL, device, (4 << 20) - 5, &devmem), 0);
	CHECK_EQ(hmm_devmem_add(NULL, device, 4 << 20, &twice), -EBUSY);
	CHECK(!devmem->pages);
	CHECK(!hmm_devmem_pfn_to_page(devmem, devmem->pfn_first));
	CHECK_EQ(hmm_device_memory(device), 4 << 20);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 64 * PAGE, HMM_DEVICE, 0, NULL, NULL), 64);
	test_check(memory, 10, 1);
	CHECK_EQ(hmm_devmem_remove(devmem, true), 0);
	CHECK_EQ(hmm_device_memory(device), 0);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 64 * PAGE, HMM_DEVICE, 0, results, NULL), 0);
	CHECK_EQ(results[0], HMM_POOL_FULL);
	test_check(memory, 64, 1);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	test_close();
}

/* ---- what the owner does ------------------------------------------------------------------ */

static void unmapped(void)
{
	char *memory;

	begin("unmapped");
	memory = test_map(1024);
	test_fill(memory, 1024, 1);
	out(memory, 1024);
	CHECK_EQ(munmap(memory + 100 * PAGE, 600 * PAGE), 0);
	until("pages in use", &board->in_use, 424);
	CHECK_EQ(madvise(memory, 50 * PAGE, MADV_DONTNEED), 0);
	until("pages in use", &board->in_use, 374);
	test_check_zero(memory, 50);
	CHECK_EQ(board->faults, 0);
	check_part(memory, 700, 1024, 1);
	CHECK_EQ(munmap(memory, 100 * PAGE), 0);
	end();
}

static void remapped(void)
{
	char *memory, *room, *moved;

	begin("remapped");
	memory = test_map(600);
	room = test_map(1200);
	test_fill(memory, 600, 1);
	out(memory, 600);
	/* Moved, to another place in its block; and shrunk. */
	moved = mremap(memory, 600 * PAGE, 600 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + 37 * PAGE);
	CHECK(moved == room + 37 * PAGE);
	CHECK_EQ(board->in_use, 600);
	CHECK_EQ(entry(moved + 20 * PAGE), HMM_ENTRY_VALID | HMM_ENTRY_WRITE | HMM_ENTRY_DEVICE);
	test_check(moved, 300, 1);
	CHECK(mremap(moved, 600 * PAGE, 500 * PAGE, 0) == moved);
	test_check(moved, 500, 1);
	end();
}

/* Onto what another device has: a block has one holder, and hmmd can't ask the driver just then. */
static void remapped_onto_another(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	char *memory, *room;

	begin("remapped-onto-another");
	device = test_device("the-other", DEVICE_MEMORY);
	test_mirror(&other, device);
	memory = test_map(8);
	room = test_map_huge(1);
	test_fill(memory, 8, 1);
	test_fill(room, 512, 2);
	out(memory, 8);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)room, 512 * PAGE, HMM_DEVICE, 0, NULL, NULL), 512);
	CHECK(mremap(memory, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + 100 * PAGE) ==
	      room + 100 * PAGE);
	for (int i = 0; i < 8; i++)
		CHECK(is_lost(room + (100 + i) * PAGE));
	test_check(room, 100, 2);
	nothing_in_use();
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	end();
}

static void forked(void)
{
	char *memory;
	pid_t child;

	begin("forked");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	out(memory, 64);
	child = fork();
	if (!child) {
		test_check(memory, 64, 1);
		_exit(0);
	}
	test_fill(memory, 64, 2);
	test_reap(child, 0);
	test_check(memory, 64, 2);
	end();
}

/* A fork that no hook saw: the driver brings the pages, or (late) the child gets SIGBUS, and never zeros. */
static void clone_raw(bool late)
{
	char *memory;
	pid_t child;

	if (!(hmm_features(hmm) & HMM_HAS_EVENT_FORK))
		test_skip("raw forks are not seen here");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	out(memory, 32);
	atomic_store(&board->hold_fault, late);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		if (late && (!is_lost(memory) || !is_lost(memory + 31 * PAGE)))
			_exit(1);
		check_part(memory, late ? 32 : 0, 64, 1);
		_exit(0);
	}
	if (!late)
		test_fill(memory, 64, 2);
	test_reap(child, 0);
	atomic_store(&board->hold_fault, false);
	test_check(memory, 64, late ? 1 : 2);
}

static void cloned(void)
{
	begin("cloned");
	clone_raw(false);
	end();
}

/* What is lost just then is lost to both. */
static void cloned_lost(void)
{
	char *memory;
	pid_t child;

	begin("cloned-lost");
	if (!(hmm_features(hmm) & HMM_HAS_EVENT_FORK))
		test_skip("raw forks are not seen here");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	out(memory, 32);
	atomic_store(&board->sigbus, (unsigned long)memory + 5 * PAGE);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		check_part(memory, 0, 5, 1);
		check_part(memory, 6, 64, 1);
		_exit(is_lost(memory + 5 * PAGE) ? 0 : 1);
	}
	test_reap(child, 0);
	check_part(memory, 0, 5, 1);
	CHECK(is_lost(memory + 5 * PAGE));
	check_part(memory, 6, 64, 1);
	end();
}

static void cloned_late(void)
{
	begin("cloned-late");
	clone_raw(true);
	end();
}

/* ---- going ----------------------------------------------------------------------------------- */

static void unregistered(void)
{
	char *memory;

	begin("unregistered");
	memory = test_map(700);
	test_fill(memory, 700, 1);
	out(memory, 700);
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_UNREGISTER, NULL, 0), 0);
	CHECK_EQ(board->in_use, 0);
	test_check(memory, 700, 1);
	end();
}

static void device_put(void)
{
	char *memory;

	begin("device-put");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	out(memory, 64);
	copyengine_ask(engine, COMMAND_DEVICE_PUT, NULL, 0);
	CHECK_EQ(board->in_use, 0);
	test_check(memory, 64, 1);
	end();
}

static void removed(void)
{
	char *memory;

	begin("removed");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	out(memory, 64);
	CHECK_EQ(copyengine_ask(engine, COMMAND_DRVDATA, memory + 9 * PAGE, 1), (unsigned long)memory + 9 * PAGE);
	copyengine_ask(engine, COMMAND_GET, memory, 1);
	board->word = 0;
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_REMOVE, NULL, 0), -EBUSY);
	CHECK_EQ(board->in_use, 1);
	copyengine_ask(engine, COMMAND_PUT, NULL, 0);
	nothing_in_use();
	board->word = 0;
	out(memory, 64);
	board->word = 1;
	CHECK_EQ((long)copyengine_ask(engine, COMMAND_REMOVE, NULL, 0), 0);
	board->word = 0;
	CHECK_EQ(copyengine_ask(engine, COMMAND_OUT, memory, 64), 0);
	test_check(memory, 64, 1);
	end();
}

/* The owner ends with pages on the device: they are the driver's again. */
static void owner_ends(void)
{
	char *memory;
	pid_t owner;

	board_make();
	owner = fork();
	if (!owner) {
		test_open(0, DEVICE_MEMORY);
		driver = copyengine_start("owner-ends", &engine);
		memory = test_map(600);
		test_fill(memory, 600, 1);
		out(memory, 600);
		CHECK_EQ(board->in_use, 600);
		_exit(0);
	}
	test_reap(owner, 0);
	until("pages in use", &board->in_use, 0);
	CHECK_EQ(board->bad_free, 0);
}

/* ---- a new hmmd, or none: what the script beside does to it ------------------------------------ */

/*
 * Lines on standard input, each answered by one: out N, check N (the CPU reads the first N), rest N
 * (and those behind), lost N (SIGBUS for each of N), drvdata, use (pages in use), unmap N (the last
 * N), hold and let go (a store that takes its time), end.
 */
static void told(void)
{
	size_t pages = 700, n;
	char line[64], *memory;

	begin("told");
	memory = test_map(pages);
	test_fill(memory, pages, 1);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (sscanf(line, "out %zu", &n) == 1) {
			printf("out %ld\n", (long)copyengine_ask(engine, COMMAND_OUT, memory, n));
		} else if (sscanf(line, "check %zu", &n) == 1) {
			test_check(memory, n, 1);
			puts("checked");
		} else if (sscanf(line, "rest %zu", &n) == 1) {
			check_part(memory, n, pages, 1);
			puts("checked");
		} else if (sscanf(line, "lost %zu", &n) == 1) {
			for (size_t i = 0; i < n; i++)
				CHECK(is_lost(memory + i * PAGE));
			puts("lost");
		} else if (!strcmp(line, "drvdata")) {
			CHECK_EQ(copyengine_ask(engine, COMMAND_DRVDATA, memory + 5 * PAGE, 1),
				 (unsigned long)memory + 5 * PAGE);
			puts("drvdata");
		} else if (!strcmp(line, "use")) {
			printf("use %u\n", atomic_load(&board->in_use));
		} else if (!strcmp(line, "hold")) {
			atomic_store(&board->hold_store, true);
			board->addr = (unsigned long)memory;
			board->pages = pages;
			tell(engine, COMMAND_OUT, -1);
			while (!atomic_load(&board->in_store))
				usleep(1000);
			puts("holding");
		} else if (!strcmp(line, "let go")) {
			uint64_t moved;

			atomic_store(&board->hold_store, false);
			CHECK(hear(engine, &moved, NULL));
			puts("let go");
		} else if (sscanf(line, "unmap %zu", &n) == 1) {
			CHECK_EQ(munmap(memory + (pages - n) * PAGE, n * PAGE), 0);
			pages -= n;
			puts("unmapped");
		} else if (!strcmp(line, "end")) {
			test_check(memory, pages, 1);
			end();
			puts("ended");
		} else {
			FAIL("what is '%s'?", line);
		}
	}
}

static const struct test_case cases[] = {
	{ "round-trip", round_trip, false }, { "huge", huge, false }, { "holes", holes, false },
	{ "already", already, false }, { "resource", resource, false }, { "no-room", no_room, false },
	{ "bad-choice", bad_choice, false }, { "no-memory", no_memory, false },
	{ "brings-all", brings_all, false }, { "sigbus", sigbus, false }, { "liar", liar, false },
	{ "lost-for-good", lost_for_good, false }, { "driver-dies", driver_dies, false },
	{ "driver-dies-in-fetch", driver_dies_in_fetch, false },
	{ "unmapped-in-fetch", unmapped_in_fetch, false },
	{ "driver-dies-in-store", driver_dies_in_store, false },
	{ "touched-in-store", touched_in_store, false }, { "accesses", accesses, false },
	{ "refusals", refusals, false }, { "bad-resources", bad_resources, false },
	{ "from-the-pool", from_the_pool, false }, { "unmapped", unmapped, false },
	{ "remapped", remapped, false }, { "remapped-onto-another", remapped_onto_another, false },
	{ "forked", forked, false }, { "cloned", cloned, false }, { "cloned-late", cloned_late, false },
	{ "cloned-lost", cloned_lost, false }, { "unregistered", unregistered, false },
	{ "device-put", device_put, false }, { "removed", removed, false }, { "owner-ends", owner_ends, false },
	{ "told", told, true }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[2], "driver")) {
		copyengine_main(!strcmp(argv[1], "resource"));
		return 0;
	}
	return test_main(argc, argv, cases);
}
