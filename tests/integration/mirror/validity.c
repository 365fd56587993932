/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * validity.c - ranges: how a driver learns that what it saw is so no more, in
 * peace, in a crowd, and by its callbacks.
 */
#include "look.h"

#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#define DEVICE_MEMORY (256UL << 20)

static struct hmm_update last;
static _Atomic unsigned int updates;

static int note_update(struct hmm_mirror *which, const struct hmm_update *update)
{
	last = *update;
	updates++;
	return 0;
}

static const struct hmm_mirror_ops with_callback = { .size = sizeof(with_callback),
						     .sync_cpu_device_pagetables = note_update };

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

/* ---- validity ------------------------------------------------------------------------- */

static void invalidated(void)
{
	struct hmm_range range;
	unsigned long number;
	char *memory, *split, *moved;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_apart(64);
	split = test_map(64);
	test_fill(memory, 64, 13);
	test_fill(split, 64, 13);

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
	range = seen(split + 44 * PAGE, 4);
	moved = mremap(split + 40 * PAGE, 16 * PAGE, 32 * PAGE, MREMAP_MAYMOVE);
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
	memory = test_map_apart(4);
	CHECK(mmap(memory, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, disk, 0) == memory);
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
	/* By itself, so that nobody but the kernel knows. */
	CHECK_EQ(syscall(SYS_mprotect, memory, 8 * PAGE, PROT_READ), 0);
	CHECK(hmm_range_valid(&range));
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory, "no", 3), -EPERM);
	CHECK_EQ(syscall(SYS_mprotect, memory, 8 * PAGE, PROT_NONE), 0);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, word, 8), -EFAULT);
	end(&range);
	/* Through the library the entries are withdrawn: those for writing, then all. */
	CHECK_EQ(mprotect(memory, 8 * PAGE, PROT_READ | PROT_WRITE), 0);
	range = seen(memory, 8);
	CHECK_EQ(mprotect(memory + PAGE, PAGE, PROT_READ), 0);
	CHECK(!hmm_range_valid(&range));
	CHECK(hmm_mirror_lookup(&mirror, (unsigned long)memory) & HMM_ENTRY_WRITE);
	CHECK(!hmm_mirror_lookup(&mirror, (unsigned long)memory + PAGE));
	end(&range);
	range = seen(memory, 8);
	CHECK_EQ(mprotect(memory, 8 * PAGE, PROT_READ | PROT_WRITE), 0);
	CHECK(hmm_range_valid(&range));
	CHECK_EQ(mprotect(memory, PAGE, PROT_NONE), 0);
	CHECK(!hmm_range_valid(&range));
	end(&range);
	CHECK_EQ(mprotect(memory, PAGE, PROT_READ | PROT_WRITE), 0);
	range = seen(memory, 8);
	CHECK_EQ(mprotect(memory, PAGE, PROT_WRITE), 0);
	CHECK(!hmm_range_valid(&range));
	CHECK(!hmm_mirror_lookup(&mirror, (unsigned long)memory));
	end(&range);
	/* A look that is a message sees it. */
	CHECK_EQ(mprotect(memory, 8 * PAGE, PROT_READ), 0);
	test_check(memory, 8, 23);
	test_close();
}

/*
 * Somebody looks after the rights have gone and before hmmd is asked to follow: it sees the lesser ones, and whoever saw
 * the greater ones is told all the same.
 */
static void protected_and_seen(void)
{
	static const int rights[] = { PROT_READ, PROT_NONE };

	test_open(0, DEVICE_MEMORY);
	for (int i = 0; i < 4; i++) {
		char *memory = test_map(8);
		struct hmm_range before, after;

		test_fill(memory, 8, 24);
		/* The first page is in no table, so that hmmd is asked for it and the rest. */
		before = seen(memory + PAGE, 7);
		check_entries(&before, 0, 7, VALID | WRITE);
		CHECK_EQ(syscall(SYS_mprotect, memory + PAGE, 4 * PAGE, rights[i % 2]), 0);
		after = look_at(memory, 8);
		after.default_flags = VALID;
		/* One that would rather not wait only begins it. */
		CHECK_EQ(i < 2 ? again(&after, true) : hmm_range_fault(&after, false),
			 i < 2 ? (i % 2 ? -EPERM : 8) : -EAGAIN);
		CHECK_EQ(mprotect(memory + PAGE, 4 * PAGE, rights[i % 2]), 0);
		CHECK(!hmm_range_valid(&before));
		end(&before);
		end(&after);
		CHECK_EQ(mprotect(memory, 8 * PAGE, PROT_READ | PROT_WRITE), 0);
		test_check(memory, 8, 24);
	}
	test_close();
}

/* Of a huge page of the kernel's pool no part can be protected, and what lies before it has been by then. */
static void protected_half_way(void)
{
	char *memory, *page;
	struct hmm_range range;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	page = memory + BLOCK - 4 * PAGE;
	if (mmap(memory + BLOCK, BLOCK, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_HUGETLB | MAP_NORESERVE, -1, 0) == MAP_FAILED)
		test_skip("the system gives no huge pages");
	test_fill(page, 4, 26);
	range = seen(page, 4);
	CHECK_EQ(mprotect(page + 2 * PAGE, 3 * PAGE, PROT_READ), -1);
	CHECK_EQ(errno, EINVAL);
	CHECK(!hmm_range_valid(&range));
	end(&range);
	test_check(page, 4, 26);
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
		CHECK(tries < test_scaled(10000));
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

static void wait_for_updates(unsigned int n)
{
	for (int tries = 0; updates < n; tries++) {
		CHECK(tries < test_scaled(10000));
		usleep(1000);
	}
}

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
	wait_for_updates(1);
	CHECK_EQ(last.start, memory + 3 * PAGE);
	CHECK_EQ(last.end, memory + 5 * PAGE);
	CHECK_EQ(last.reason, HMM_REASON_DISCARD);
	wants_invalid(&range);
	CHECK_EQ(munmap(memory + 8 * PAGE, PAGE), 0);
	wait_for_updates(2);
	CHECK_EQ(last.reason, HMM_REASON_UNMAP);
	end(&range);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	test_close();
}

/* What is excluded is watched no more, and told; its neighbours are watched still. */
static void told_of_exclusion(void)
{
	struct hmm_mirror other = { .ops = &with_callback };
	struct hmm_range range;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_in_block(16);
	test_fill(memory, 16, 25);
	other.device = mirror.device;
	CHECK_EQ(hmm_mirror_register(&other, hmm), 0);
	range = seen(memory, 16);
	CHECK_EQ(hmm_exclude(hmm, (unsigned long)memory + 8 * PAGE, 4 * PAGE), 0);
	wait_for_updates(1);
	CHECK_EQ(last.start, memory + 8 * PAGE);
	CHECK_EQ(last.end, memory + 12 * PAGE);
	wants_invalid(&range);
	CHECK_EQ(munmap(memory + 3 * PAGE, PAGE), 0);
	wait_for_updates(2);
	CHECK_EQ(last.reason, HMM_REASON_UNMAP);
	CHECK_EQ(last.start, memory + 3 * PAGE);
	end(&range);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
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

/* ---- the mirror goes in another thread ------------------------------------------------- */

static struct hmm_mirror passing;
static char *watched;
static _Atomic unsigned int looks;
static _Atomic bool enough;

static bool look_once(struct hmm_range *range, unsigned int i)
{
	long result;

	switch (i % 4) {
	case 0:
		result = hmm_range_fault(range, true);
		break;
	case 1:
		result = hmm_range_snapshot(range);
		break;
	case 2:
		hmm_range_read_retry(range, hmm_range_read_begin(range));
		result = hmm_range_fault(range, false);
		break;
	default:
		hmm_range_valid(range);
		result = hmm_range_wait_until_valid(range, 1) ? 64 : -EBUSY;
	}
	atomic_fetch_add(&looks, 1);
	if (result != -EFAULT && result != -EAGAIN && result != -EBUSY)
		CHECK_EQ(result, 64);
	if (result != -EFAULT)
		return true;
	/* And for good. */
	CHECK(!hmm_range_valid(range) && !hmm_range_wait_until_valid(range, 1));
	CHECK_EQ(hmm_range_read_begin(range), 0);
	CHECK_EQ(hmm_range_fault(range, true), -EFAULT);
	return false;
}

static void *keep_looking(void *arg)
{
	unsigned long start = (unsigned long)watched + (unsigned long)arg * 64 * PAGE;

	for (unsigned int i = 0; !atomic_load(&enough); i++) {
		struct hmm_range range = { .flags = flags, .values = values, .pfn_shift = 12,
					   .default_flags = VALID };
		uint64_t pfns[64] = { 0 };
		int error = hmm_range_register(&range, &passing, start, start + 64 * PAGE, 12);

		range.pfns = pfns;
		CHECK(!error || error == -EINVAL);
		for (unsigned int k = i; !error && !atomic_load(&enough) && look_once(&range, k); k++)
			;
		hmm_range_unregister(&range);
	}
	return NULL;
}

static void unregistered_meanwhile(void)
{
	static const struct hmm_mirror_ops none = { .size = sizeof(none) };
	struct hmm_range left = prepare(64);
	struct hmm_device *device;
	pthread_t threads[3];

	test_open(0, DEVICE_MEMORY);
	device = test_device("passing", DEVICE_MEMORY);
	watched = test_map(3 * 64);
	test_fill(watched, 3 * 64, 1);
	for (unsigned long i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, keep_looking, (void *)i), 0);
	for (unsigned int i = 0; i < 100; i++) {
		unsigned int before = atomic_load(&looks);

		passing.ops = &none;
		passing.device = device;
		CHECK_EQ(hmm_mirror_register(&passing, hmm), 0);
		if (i == 99)
			CHECK_EQ(hmm_range_register(&left, &passing, (unsigned long)watched,
						    (unsigned long)watched + 64 * PAGE, 12), 0);
		while (atomic_load(&looks) < before + 10)
			usleep(100);
		CHECK_EQ(hmm_mirror_unregister(&passing), 0);
	}
	atomic_store(&enough, true);
	for (unsigned int i = 0; i < 3; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	hmm_device_put(device);
	test_check(watched, 3 * 64, 1);
	test_close();
	/* A range that is left is as good when the handle is closed. */
	CHECK(!hmm_range_valid(&left));
	CHECK_EQ(hmm_range_fault(&left, true), -EFAULT);
	end(&left);
}

static const struct test_case cases[] = {
	{ "shared-pages", shared_pages, false }, { "invalidated", invalidated, false },
	{ "invalidated-shared", invalidated_shared, false },
	{ "not-watched", not_watched, false }, { "protected-later", protected_later, false },
	{ "protected-and-seen", protected_and_seen, false }, { "protected-half-way", protected_half_way, false },
	{ "stays-valid", stays_valid, false }, { "released", released, false },
	{ "orphaned", orphaned, false },
	{ "unregistered-meanwhile", unregistered_meanwhile, false }, { "told", told, false },
	{ "told-of-exclusion", told_of_exclusion, false }, { "crowd", crowd, false },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
