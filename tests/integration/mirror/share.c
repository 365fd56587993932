/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * share.c - hmm_share() and hmm_unshare(): memory of every kind becomes coherent
 * in place while threads use it, and back; and every answer that they can give.
 */
#include "mirror.h"

#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define DEVICE_MEMORY (256UL << 20)
#define BLOCK_PAGES 512UL
#define THREADS 4

static bool is_coherent(const void *page)
{
	return hmm_mirror_lookup(&mirror, (unsigned long)page) & HMM_ENTRY_COHERENT;
}

static size_t coherent_pages(const void *memory, size_t pages)
{
	size_t n = 0;

	for (size_t i = 0; i < pages; i++)
		n += is_coherent((const char *)memory + i * PAGE);
	return n;
}

static void make_coherent(void *memory, size_t blocks)
{
	CHECK_EQ(hmm_share(&mirror, memory, blocks * BLOCK), 0);
	CHECK_EQ(coherent_pages(memory, blocks * BLOCK_PAGES), blocks * BLOCK_PAGES);
}

static void take_back(void *memory, size_t blocks)
{
	CHECK_EQ(hmm_unshare(&mirror, memory, blocks * BLOCK), 0);
	CHECK_EQ(coherent_pages(memory, blocks * BLOCK_PAGES), 0);
}

/* Refused, with words, and nothing was changed. */
static void refused(void *memory, size_t length, int error)
{
	CHECK_EQ(hmm_share(&mirror, memory, length), error);
	CHECK(strlen(hmm_last_error()) > 10);
}

/* Away from threads' stacks, which keep a few pages around them at home. */
static char *map_apart(size_t blocks)
{
	char *room = mmap(NULL, (blocks + 2) * BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *memory = (char *)(((uintptr_t)room + BLOCK) & ~(BLOCK - 1));

	CHECK(room != MAP_FAILED);
	CHECK_EQ(mprotect(memory, blocks * BLOCK, PROT_READ | PROT_WRITE), 0);
	madvise(memory, blocks * BLOCK, MADV_HUGEPAGE);
	return memory;
}

/* Both see at once what the other writes. */
static void check_one_page(char *page)
{
	volatile uint64_t *word = (volatile uint64_t *)(page + 24);
	uint64_t before = *word, other = ~before, seen = 0;

	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)word, &other, 8), 8);
	CHECK_EQ(*word, other);
	*word = before;
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)word, &seen, 8), 8);
	CHECK_EQ(seen, before);
}

/* ---- what it is for --------------------------------------------------------------- */

static void there_and_back(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(3);
	test_fill(memory, 3 * BLOCK_PAGES, 1);
	for (int round = 0; round < 4; round++) {
		make_coherent(memory, 3);
		test_check(memory, 3 * BLOCK_PAGES, 1);
		test_device_check(memory, 3 * BLOCK_PAGES, 1);
		for (size_t i = 0; i < 3 * BLOCK_PAGES; i += 37)
			check_one_page(memory + i * PAGE);
		CHECK_EQ(coherent_pages(memory, 3 * BLOCK_PAGES), 3 * BLOCK_PAGES);
		take_back(memory, 3);
		CHECK(test_on_device(memory));
		test_device_check(memory, 3 * BLOCK_PAGES, 1);
		test_check(memory, 3 * BLOCK_PAGES, 1);
		test_fill(memory, 3 * BLOCK_PAGES, 1);
	}
	/* Ordinary memory again in every respect. */
	test_home(memory, 3 * BLOCK_PAGES);
	test_out(memory, BLOCK_PAGES);
	CHECK_EQ(munmap(memory + BLOCK, BLOCK), 0);
	test_check(memory, BLOCK_PAGES, 1);
	test_close();
	test_check(memory, BLOCK_PAGES, 1);
}

/* Any blocks of it can go back, the others stay. */
static void a_part_back(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(5);
	test_fill(memory, 5 * BLOCK_PAGES, 2);
	make_coherent(memory, 5);
	take_back(memory + BLOCK, 2);
	CHECK_EQ(coherent_pages(memory, 5 * BLOCK_PAGES), 3 * BLOCK_PAGES);
	test_check(memory, 5 * BLOCK_PAGES, 2);
	CHECK_EQ(hmm_unshare(&mirror, memory, 2 * BLOCK), -EINVAL);
	make_coherent(memory + BLOCK, 1);
	test_device_check(memory, 5 * BLOCK_PAGES, 2);
	take_back(memory + 3 * BLOCK, 2);
	take_back(memory, 2);
	test_check(memory, 5 * BLOCK_PAGES, 2);
	test_close();
}

static void never_touched(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	memset(memory + 5 * PAGE, 7, PAGE);
	make_coherent(memory, 2);
	test_check_zero(memory, 5);
	test_check_zero(memory + 6 * PAGE, 2 * BLOCK_PAGES - 6);
	CHECK_EQ(memory[5 * PAGE + 9], 7);
	take_back(memory, 2);
	test_check_zero(memory + 6 * PAGE, 2 * BLOCK_PAGES - 6);
	CHECK_EQ(memory[5 * PAGE + 9], 7);
	test_close();
}

/* On the device, shared, at home, and never touched, side by side. */
static void many_states(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	madvise(memory, 2 * BLOCK, MADV_NOHUGEPAGE);
	test_fill(memory, BLOCK_PAGES + 100, 3);
	test_out(memory, BLOCK_PAGES);
	for (size_t i = 0; i < BLOCK_PAGES; i++)
		if (i % 3 == 0)
			CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 3));
		else if (i % 3 == 1)
			*(volatile uint64_t *)(memory + i * PAGE) = test_word(i, 0, 3);
	make_coherent(memory, 2);
	test_check(memory, BLOCK_PAGES + 100, 3);
	test_check_zero(memory + BLOCK + 100 * PAGE, BLOCK_PAGES - 100);
	test_device_check(memory, BLOCK_PAGES + 100, 3);
	take_back(memory, 2);
	test_check(memory, BLOCK_PAGES + 100, 3);
	test_close();
}

/* A block that is several mappings to the kernel becomes one. */
static void several_mappings(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	test_fill(memory, 2 * BLOCK_PAGES, 4);
	CHECK_EQ(madvise(memory + 100 * PAGE, 200 * PAGE, MADV_DONTDUMP), 0);
	CHECK_EQ(madvise(memory + 400 * PAGE, 300 * PAGE, MADV_NOHUGEPAGE), 0);
	make_coherent(memory, 2);
	test_check(memory, 2 * BLOCK_PAGES, 4);
	test_device_check(memory, 2 * BLOCK_PAGES, 4);
	take_back(memory, 2);
	test_check(memory, 2 * BLOCK_PAGES, 4);
	test_close();
}

/* More than one message can ask for, over the edge of a region. */
static void large(void)
{
	size_t blocks = 80, pages = blocks * BLOCK_PAGES;
	char *room, *memory;

	test_open(0, DEVICE_MEMORY);
	room = mmap(NULL, 2UL << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(room != MAP_FAILED);
	memory = (char *)((((uintptr_t)room >> 30) + 1) << 30) - 50 * BLOCK;
	if (memory < room)
		memory += 1UL << 30;
	CHECK(mmap(memory, blocks * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		   0) == memory);
	test_fill(memory, pages, 5);
	make_coherent(memory, blocks);
	test_check(memory, pages, 5);
	test_device_check(memory, BLOCK_PAGES, 5);
	take_back(memory, blocks);
	test_check(memory, pages, 5);
	test_close();
	CHECK_EQ(munmap(room, 2UL << 30), 0);
}

/* ---- with threads running ------------------------------------------------------------- */

static char *counters;
static atomic_bool stop;

struct worker {
	pthread_t thread;
	size_t first;		/* its word of each page */
	uint64_t rounds;
};

/* Each page has a counter of this thread: it finds what it wrote, or something was lost. */
static void *count(void *data)
{
	struct worker *worker = data;
	size_t pages = 4 * BLOCK_PAGES;

	while (!atomic_load(&stop)) {
		for (size_t i = 0; i < pages; i++) {
			size_t page = worker->first % 2 ? i : (i * 37) % pages;
			volatile uint64_t *word = (volatile uint64_t *)(counters + page * PAGE) + worker->first;

			if (*word != worker->rounds)
				FAIL("thread %zu, page %zu: %lu instead of %lu", worker->first, page, *word, worker->rounds);
			*word = worker->rounds + 1;
			/* One that all count on. */
			__atomic_fetch_add((uint64_t *)(counters + page * PAGE) + 100, 1, __ATOMIC_RELAXED);
		}
		__atomic_fetch_add(&worker->rounds, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void running(void)
{
	struct worker workers[THREADS];
	uint64_t rounds = 0, seen = 0;

	test_open(0, DEVICE_MEMORY);
	counters = map_apart(4);
	for (size_t i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){ .first = i };
		CHECK_EQ(pthread_create(&workers[i].thread, NULL, count, &workers[i]), 0);
	}
	for (int round = 0; round < 30; round++) {
		CHECK_EQ(test_share(counters, 4), 0);
		CHECK_EQ(coherent_pages(counters, 4 * BLOCK_PAGES), 4 * BLOCK_PAGES);
		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)counters + 800, &seen, 8), 8);
		CHECK_EQ(test_unshare(counters, 4), 0);
		/* Nobody is kept out for good. */
		rounds = __atomic_load_n(&workers[0].rounds, __ATOMIC_ACQUIRE);
		while (round % 10 == 9 && __atomic_load_n(&workers[0].rounds, __ATOMIC_ACQUIRE) < rounds + 2)
			usleep(1000);
	}
	atomic_store(&stop, true);
	rounds = 0;
	for (size_t i = 0; i < THREADS; i++) {
		pthread_join(workers[i].thread, NULL);
		CHECK(workers[i].rounds > 0);
		rounds += workers[i].rounds;
	}
	for (size_t i = 0; i < 4 * BLOCK_PAGES; i++) {
		uint64_t *words = (uint64_t *)(counters + i * PAGE);

		for (size_t j = 0; j < THREADS; j++)
			CHECK_EQ(words[j], workers[j].rounds);
		CHECK_EQ(words[100], rounds);
	}
	test_close();
}

/* The device counts too: what it wrote is found by the CPU, and the reverse. */
static void *device_counts(void *data)
{
	struct worker *worker = data;
	uint64_t seen = 0;

	while (!atomic_load(&stop)) {
		size_t page = (worker->rounds * 41) % (4 * BLOCK_PAGES);
		unsigned long word = (unsigned long)counters + page * PAGE + 8 * 200;

		CHECK_EQ(hmm_device_read(&mirror, word, &seen, 8), 8);
		CHECK_EQ(seen, worker->rounds / (4 * BLOCK_PAGES));
		seen++;
		CHECK_EQ(hmm_device_write(&mirror, word, &seen, 8), 8);
		worker->rounds++;
	}
	return NULL;
}

static void device_running(void)
{
	struct worker device = { .first = 0 }, cpu = { .first = 1 };

	test_open(0, DEVICE_MEMORY);
	counters = map_apart(4);
	CHECK_EQ(pthread_create(&device.thread, NULL, device_counts, &device), 0);
	CHECK_EQ(pthread_create(&cpu.thread, NULL, count, &cpu), 0);
	for (int round = 0; round < 20; round++) {
		CHECK_EQ(test_share(counters, 4), 0);
		usleep(1000);
		CHECK_EQ(test_unshare(counters, 4), 0);
	}
	atomic_store(&stop, true);
	pthread_join(device.thread, NULL);
	pthread_join(cpu.thread, NULL);
	for (uint64_t i = 0; i < 4 * BLOCK_PAGES; i++) {
		uint64_t *words = (uint64_t *)(counters + (i * 41) % (4 * BLOCK_PAGES) * PAGE);

		CHECK_EQ(words[200], device.rounds / (4 * BLOCK_PAGES) + (i < device.rounds % (4 * BLOCK_PAGES)));
		CHECK_EQ(words[1], cpu.rounds);
	}
	test_close();
}

/*
 * For as long as standard input says nothing: threads count, blocks become coherent and go
 * back, and hmmd may be killed. Without any hmmd the counting goes on where the blocks are.
 */
static void hammered(void)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };
	struct worker workers[THREADS - 1];
	bool lost = false;
	uint64_t calls = 0;

	test_open(0, DEVICE_MEMORY);
	counters = map_apart(4);
	for (size_t i = 0; i < THREADS - 1; i++) {
		workers[i] = (struct worker){ .first = i };
		CHECK_EQ(pthread_create(&workers[i].thread, NULL, count, &workers[i]), 0);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready\n");
	while (poll(&input, 1, lost ? 100 : 0) == 0) {
		size_t first = calls % 3, blocks = 1 + calls % 2;
		int there = lost ? -ESTALE : test_share(counters + first * BLOCK, blocks), back = there;

		if (!there)
			back = test_unshare(counters + first * BLOCK, blocks);
		lost |= there == -ESTALE || back == -ESTALE;
		if (!lost && (there || back))
			FAIL("sharing: %d, taking back: %d", there, back);
		calls++;
	}
	atomic_store(&stop, true);
	for (size_t i = 0; i < THREADS - 1; i++)
		pthread_join(workers[i].thread, NULL);
	for (size_t i = 0; i < 4 * BLOCK_PAGES; i++)
		for (size_t j = 0; j < THREADS - 1; j++)
			CHECK_EQ(((uint64_t *)(counters + i * PAGE))[j], workers[j].rounds);
	hmm_mirror_unregister(&mirror);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	printf("ended %lu %s\n", calls, lost ? "alone" : "together");
}

/* hmmd ends in good order while standard input says nothing: what is coherent stays the program's. */
static void left_behind(void)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	test_fill(memory, 2 * BLOCK_PAGES, 17);
	make_coherent(memory, 1);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready\n");
	CHECK_EQ(poll(&input, 1, -1), 1);
	test_check(memory, 2 * BLOCK_PAGES, 17);
	test_fill(memory, 2 * BLOCK_PAGES, 18);
	test_check(memory, 2 * BLOCK_PAGES, 18);
	CHECK_EQ(hmm_unshare(&mirror, memory, BLOCK), -ESTALE);
	CHECK_EQ(hmm_share(&mirror, memory + BLOCK, BLOCK), -ESTALE);
	hmm_mirror_unregister(&mirror);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
	test_check(memory, 2 * BLOCK_PAGES, 18);
	printf("ended 0 alone\n");
}

/* ---- what it refuses ------------------------------------------------------------------- */

static void arguments(void)
{
	void *allocated;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	test_fill(memory, 2 * BLOCK_PAGES, 6);
	CHECK_EQ(hmm_share(NULL, memory, BLOCK), -EINVAL);
	CHECK_EQ(hmm_unshare(NULL, memory, BLOCK), -EINVAL);
	refused(memory, 0, -EINVAL);
	refused(memory + PAGE, BLOCK, -EINVAL);
	refused(memory, BLOCK + PAGE, -EINVAL);
	refused(memory, PAGE, -EINVAL);
	refused((void *)(1UL << 47), BLOCK, -EINVAL);
	refused((void *)((1UL << 47) - BLOCK), 2 * BLOCK, -EINVAL);
	refused(memory, ~BLOCK + 1, -EINVAL);
	refused(NULL, BLOCK, -EFAULT);
	CHECK_EQ(hmm_unshare(&mirror, memory + PAGE, BLOCK), -EINVAL);
	CHECK_EQ(hmm_unshare(&mirror, memory, 0), -EINVAL);
	/* Not shared; shared already; another call's memory. */
	CHECK_EQ(hmm_unshare(&mirror, memory, BLOCK), -EINVAL);
	make_coherent(memory, 1);
	refused(memory, BLOCK, -EALREADY);
	refused(memory, 2 * BLOCK, -EALREADY);
	CHECK_EQ(coherent_pages(memory, 2 * BLOCK_PAGES), BLOCK_PAGES);
	CHECK_EQ(hmm_free(&mirror, memory, BLOCK), -EINVAL);
	CHECK_EQ(hmm_alloc(&mirror, BLOCK, &allocated), 0);
	CHECK_EQ(hmm_unshare(&mirror, allocated, BLOCK), -EINVAL);
	refused(allocated, BLOCK, -EALREADY);
	CHECK_EQ(hmm_free(&mirror, allocated, BLOCK), 0);
	take_back(memory, 1);
	test_check(memory, 2 * BLOCK_PAGES, 6);
	test_close();
	CHECK_EQ(hmm_share(&mirror, memory, BLOCK), -EINVAL);
}

/* One block of three, in the middle of it. All or nothing. */
static void refuses(int error, void (*spoil)(char *page), void (*mend)(char *page))
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(3);
	test_fill(memory, 3 * BLOCK_PAGES, 7);
	spoil(memory + BLOCK + 77 * PAGE);
	refused(memory, 3 * BLOCK, error);
	CHECK_EQ(coherent_pages(memory, 3 * BLOCK_PAGES), 0);
	test_check(memory, BLOCK_PAGES, 7);
	if (mend) {
		mend(memory + BLOCK + 77 * PAGE);
		make_coherent(memory, 3);
		test_check(memory, BLOCK_PAGES + 77, 7);
		take_back(memory, 3);
	} else {
		make_coherent(memory, 1);
		make_coherent(memory + 2 * BLOCK, 1);
		take_back(memory, 1);
		take_back(memory + 2 * BLOCK, 1);
	}
	test_close();
	test_check(memory, BLOCK_PAGES, 7);
}

static void unmap_page(char *page)
{
	CHECK_EQ(munmap(page, PAGE), 0);
}

static void map_page(char *page)
{
	CHECK(mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page);
}

static void hole(void)
{
	refuses(-EFAULT, unmap_page, map_page);
}

static void map_file(char *page)
{
	int file = memfd_create("file", MFD_CLOEXEC);

	CHECK_EQ(ftruncate(file, PAGE), 0);
	CHECK(mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) == page);
	close(file);
}

static void file(void)
{
	refuses(-EOPNOTSUPP, map_file, map_page);
}

static void map_shared(char *page)
{
	CHECK(mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page);
}

static void shared_memory(void)
{
	refuses(-EOPNOTSUPP, map_shared, NULL);
}

static void protect_page(char *page)
{
	CHECK_EQ(mprotect(page, PAGE, PROT_READ), 0);
}

static void allow_page(char *page)
{
	CHECK_EQ(mprotect(page, PAGE, PROT_READ | PROT_WRITE), 0);
}

static void readonly(void)
{
	refuses(-EPERM, protect_page, allow_page);
}

/* What the program took from its coherent memory it gets back with no rights that it did not ask for. */
static void protected_meanwhile(void)
{
	static const int rights[] = { PROT_READ, PROT_NONE, PROT_WRITE, PROT_READ | PROT_WRITE | PROT_EXEC };
	size_t length = PAGE, taken = 0;
	char *memory, *page;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	page = memory + BLOCK + 77 * PAGE;
	test_fill(memory, 2 * BLOCK_PAGES, 20);
	make_coherent(memory, 2);
	if (mprotect(page, length, PROT_READ)) {
		/* A page of the kernel's pool of huge pages is protected whole. */
		CHECK_EQ(errno, EINVAL);
		page = memory + BLOCK;
		length = BLOCK;
	}
	for (size_t i = 0; i < sizeof(rights) / sizeof(rights[0]); i++) {
		if (mprotect(page, length, rights[i]))
			continue;	/* where nothing may be made executable */
		taken++;
		CHECK_EQ(hmm_unshare(&mirror, memory + BLOCK, BLOCK), -EPERM);
		CHECK(strstr(hmm_last_error(), "coherent"));
		CHECK_EQ(coherent_pages(memory, 2 * BLOCK_PAGES), 2 * BLOCK_PAGES);
		CHECK_EQ(test_smaps(page, length, "Size"), length / 1024);
		CHECK_EQ(mprotect(page, length, PROT_READ | PROT_WRITE), 0);
	}
	CHECK(taken >= 3);
	test_check(memory, 2 * BLOCK_PAGES, 20);
	take_back(memory, 2);
	test_check(memory, 2 * BLOCK_PAGES, 20);
	test_close();
}

/* Where something else is mapped by now, or nothing, it is not replaced. */
static void replaced_meanwhile(void)
{
	const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, rights = PROT_READ | PROT_WRITE;
	char *memory, *place;
	size_t length = PAGE;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	place = memory + BLOCK + 77 * PAGE;
	test_fill(memory, 2 * BLOCK_PAGES, 21);
	make_coherent(memory, 2);
	if (mmap(place, length, rights, how, -1, 0) == MAP_FAILED) {
		/* A page of the kernel's pool of huge pages goes whole. */
		CHECK_EQ(errno, EINVAL);
		place = memory + BLOCK;
		length = BLOCK;
		CHECK(mmap(place, length, rights, how, -1, 0) == place);
	}
	*place = 7;
	CHECK_EQ(hmm_unshare(&mirror, memory + BLOCK, BLOCK), -EFAULT);
	CHECK_EQ(*place, 7);
	CHECK_EQ(munmap(place, length), 0);
	CHECK_EQ(hmm_unshare(&mirror, memory + BLOCK, BLOCK), -EFAULT);
	take_back(memory, 1);
	test_check(memory, BLOCK_PAGES, 21);
	test_close();
	test_check(memory, BLOCK_PAGES, 21);
}

static void lock_page(char *page)
{
	if (mlock(page, PAGE))
		test_skip("memory cannot be locked here");
}

static void unlock_page(char *page)
{
	CHECK_EQ(munlock(page, PAGE), 0);
}

static void locked(void)
{
	refuses(-EOPNOTSUPP, lock_page, unlock_page);
}

static void exclude_page(char *page)
{
	CHECK_EQ(hmm_exclude(hmm, (unsigned long)page, PAGE), 0);
}

static void include_page(char *page)
{
	CHECK_EQ(hmm_include(hmm, (unsigned long)page, PAGE), 0);
}

static void excluded(void)
{
	refuses(-EOPNOTSUPP, exclude_page, include_page);
}

static struct io_uring ring;

static void pin_page(char *page)
{
	struct iovec buffer = { page, PAGE };

	if (io_uring_queue_init(2, &ring, 0))
		test_skip("no io_uring here");
	CHECK_EQ(io_uring_register_buffers(&ring, &buffer, 1), 0);
}

static void unpin_page(char *page)
{
	CHECK_EQ(io_uring_unregister_buffers(&ring), 0);
	io_uring_queue_exit(&ring);
	/* The kernel lets go of it a little later. */
	for (int tries = 0; tries < test_scaled(1000) && test_migrate(page, 1, HMM_DEVICE, NULL) < 1; tries++)
		usleep(10000);
}

static void pinned(void)
{
	refuses(-EBUSY, pin_page, unpin_page);
}

static void no_room(void)
{
	char *memory;

	test_open(0, 4 * BLOCK);
	memory = test_map_huge(6);
	test_fill(memory, 6 * BLOCK_PAGES, 8);
	refused(memory, 6 * BLOCK, -ENOSPC);
	CHECK(strstr(hmm_last_error(), "in use"));
	CHECK_EQ(coherent_pages(memory, 6 * BLOCK_PAGES), 0);
	test_check(memory, 6 * BLOCK_PAGES, 8);
	test_home(memory, 6 * BLOCK_PAGES);
	make_coherent(memory, 4);
	test_check(memory, 6 * BLOCK_PAGES, 8);
	test_close();
	test_check(memory, 6 * BLOCK_PAGES, 8);
}

/* The process can have no more address space: refused there, and on the way back. */
static void no_mappings(void)
{
	struct rlimit all, none;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	test_fill(memory, 2 * BLOCK_PAGES, 19);
	/* So that the shadow and the library's own memory are there. */
	make_coherent(memory, 2);
	take_back(memory + BLOCK, 1);
	CHECK_EQ(getrlimit(RLIMIT_AS, &all), 0);
	none = (struct rlimit){ .rlim_cur = PAGE, .rlim_max = all.rlim_max };
	CHECK_EQ(setrlimit(RLIMIT_AS, &none), 0);
	refused(memory + BLOCK, BLOCK, -ENOMEM);
	CHECK_EQ(hmm_unshare(&mirror, memory, BLOCK), -ENOMEM);
	CHECK(strstr(hmm_last_error(), "mapping"));
	CHECK_EQ(setrlimit(RLIMIT_AS, &all), 0);
	CHECK_EQ(coherent_pages(memory, 2 * BLOCK_PAGES), BLOCK_PAGES);
	test_check(memory, 2 * BLOCK_PAGES, 19);
	take_back(memory, 1);
	make_coherent(memory, 2);
	test_check(memory, 2 * BLOCK_PAGES, 19);
	test_close();
}

/* Without UFFDIO_MOVE only what is declared to be unpinned. */
static void base_engine(void)
{
	char *memory;

	test_open(HMM_OPEN_BASE_ENGINE, DEVICE_MEMORY);
	memory = test_map_huge(2);
	test_fill(memory, 2 * BLOCK_PAGES, 9);
	refused(memory, 2 * BLOCK, -EOPNOTSUPP);
	CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, 2 * BLOCK, HMM_ADVISE_UNPINNED, NULL), 0);
	make_coherent(memory, 2);
	test_check(memory, 2 * BLOCK_PAGES, 9);
	test_device_check(memory, 2 * BLOCK_PAGES, 9);
	take_back(memory, 2);
	test_check(memory, 2 * BLOCK_PAGES, 9);
	test_close();
}

/* Another device has a part of it; and another device's coherent memory. */
static void two_devices(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	device = test_device("the-other", DEVICE_MEMORY);
	test_mirror(&other, device);
	memory = test_map_huge(1);
	test_fill(memory, BLOCK_PAGES, 10);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 100 * PAGE, HMM_DEVICE, 0, NULL, NULL), 100);
	make_coherent(memory, 1);
	test_check(memory, BLOCK_PAGES, 10);
	CHECK_EQ(hmm_share(&other, memory, BLOCK), -EALREADY);
	CHECK_EQ(hmm_unshare(&other, memory, BLOCK), -EINVAL);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)memory, 100 * PAGE, HMM_DEVICE, 0, NULL, NULL), 0);
	take_back(memory, 1);
	CHECK_EQ(hmm_share(&other, memory, BLOCK), 0);
	test_check(memory, BLOCK_PAGES, 10);
	CHECK_EQ(hmm_unshare(&other, memory, BLOCK), 0);
	test_check(memory, BLOCK_PAGES, 10);
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	test_close();
}

/* ---- the rest of a program's life -------------------------------------------------------- */

/* It stays where both want it, whatever is asked. */
static void stays(void)
{
	uint8_t results[BLOCK_PAGES];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(1);
	test_fill(memory, BLOCK_PAGES, 11);
	make_coherent(memory, 1);
	test_migrate(memory, BLOCK_PAGES, HMM_DEVICE, results);
	test_migrate(memory, BLOCK_PAGES, HMM_SYSTEM, results);
	CHECK_EQ(coherent_pages(memory, BLOCK_PAGES), BLOCK_PAGES);
	test_check(memory, BLOCK_PAGES, 11);
	test_device_check(memory, BLOCK_PAGES, 11);
	test_close();
}

/* Thrown away and shared at once: what comes is zeros, not what was. */
static void discarded(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(1);
	for (int round = 0; round < 2; round++) {
		test_fill(memory, BLOCK_PAGES, 12);
		test_migrate(memory, BLOCK_PAGES, HMM_DEVICE, NULL);
		CHECK_EQ(madvise(memory + 64 * PAGE, 64 * PAGE, MADV_DONTNEED), 0);
		make_coherent(memory, 1);
		test_check(memory, 64, 12);
		test_check_zero(memory + 64 * PAGE, 64);
		take_back(memory, 1);
		test_check_zero(memory + 64 * PAGE, 64);
		CHECK_EQ(madvise(memory, 64 * PAGE, MADV_DONTNEED), 0);
		test_check_zero(memory, 128);
	}
	test_close();
}

/* A child shares it; what was unshared is its own. */
static void forked(void)
{
	volatile uint64_t *shared, *own;
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	test_fill(memory, 2 * BLOCK_PAGES, 13);
	make_coherent(memory, 2);
	take_back(memory + BLOCK, 1);
	shared = (uint64_t *)memory + 5;
	own = (uint64_t *)(memory + BLOCK) + 5;
	child = fork();
	if (!child) {
		test_check(memory, 2 * BLOCK_PAGES, 13);
		*shared = 55;
		*own = 56;
		_exit(0);
	}
	test_reap(child, 0);
	CHECK_EQ(*shared, 55);
	CHECK_EQ(*own, test_word(BLOCK_PAGES, 5, 13));
	test_close();
}

/* It outlives the mirror as ordinary shared memory, and its addresses can be used anew. */
static void outlives(void)
{
	char *memory = test_map_huge(2);

	test_fill(memory, 2 * BLOCK_PAGES, 14);
	test_open(0, DEVICE_MEMORY);
	make_coherent(memory, 2);
	test_close();
	test_check(memory, 2 * BLOCK_PAGES, 14);
	test_fill(memory, 2 * BLOCK_PAGES, 15);
	test_check(memory, 2 * BLOCK_PAGES, 15);
	test_open(0, DEVICE_MEMORY);
	refused(memory, 2 * BLOCK, -EOPNOTSUPP);
	CHECK(mmap(memory, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory);
	make_coherent(memory, 2);
	test_check_zero(memory, 2 * BLOCK_PAGES);
	test_close();
}

/* Unshared, unmapped, mapped anew, shared: nothing of before is seen. */
static void mapped_anew(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	for (int round = 0; round < 10; round++) {
		test_fill(memory, 2 * BLOCK_PAGES, 16);
		make_coherent(memory, 2);
		test_check(memory, 2 * BLOCK_PAGES, 16);
		take_back(memory, 2);
		if (round % 2)
			test_check(memory, 2 * BLOCK_PAGES, 16);
		CHECK_EQ(munmap(memory, 2 * BLOCK), 0);
		CHECK(mmap(memory, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			   -1, 0) == memory);
		test_check_zero(memory, 2 * BLOCK_PAGES);
	}
	test_close();
}

static const struct test_case cases[] = {
	{ "there-and-back", there_and_back, false }, { "a-part-back", a_part_back, false },
	{ "never-touched", never_touched, false }, { "many-states", many_states, false },
	{ "several-mappings", several_mappings, false }, { "large", large, false },
	{ "running", running, false }, { "device-running", device_running, false },
	{ "arguments", arguments, false }, { "hole", hole, false }, { "file", file, false },
	{ "shared-memory", shared_memory, false }, { "readonly", readonly, false }, { "locked", locked, false },
	{ "protected-meanwhile", protected_meanwhile, false }, { "replaced-meanwhile", replaced_meanwhile, false },
	{ "excluded", excluded, false }, { "pinned", pinned, false }, { "no-room", no_room, false }, { "no-mappings", no_mappings, false },
	{ "base-engine", base_engine, false }, { "two-devices", two_devices, false }, { "stays", stays, false },
	{ "discarded", discarded, false }, { "forked", forked, false }, { "outlives", outlives, false },
	{ "mapped-anew", mapped_anew, false }, { "hammered", hammered, true },
	{ "left-behind", left_behind, true }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
