// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * dirty_crowd.c - everything at once: many threads write, one changes the map under them and forks, and a
 * copy that is brought up to date by what is told must be equal whenever they stand still. Seeded. And one
 * thread that only writes, for cases in which something else happens.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "dirty.h"

#define TRACKS (HMM_HAS_TRACK_PAGEMAP_SCAN | HMM_HAS_TRACK_UFFD_WP | HMM_HAS_TRACK_SOFT_DIRTY)

void open_tracked(void)
{
	char why[256] = "";

	test_open(0, 64 * BLOCK);
	if (hmm_features(hmm) & TRACKS)
		return;
	for (unsigned int bit = 20; bit < 23 && !strstr(why, "lacks") && !strstr(why, "has no"); bit++)
		hmm_features_reason(hmm, 1ULL << bit, why, sizeof(why));
	test_close();
	test_skip(why);
}

void declare(void *memory, size_t pages)
{
	CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, pages * PAGE, HMM_ADVISE_UNPINNED, NULL), 0);
}

#define PAGES	4096UL
#define WRITERS	5
#define CHUNK	16UL

static struct {
	char *memory, *spare;
	const char *copy;
	pthread_rwlock_t map;		/* written-locked: mappings are missing for a moment */
	pthread_barrier_t barrier;
	atomic_bool pause, over;
	unsigned long seed;
	atomic_ulong changes, allowed;	/* no more than so many: who waits for the map has its turn, too */
	unsigned long forks;
} crowd;

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void write_somewhere(uint64_t *state)
{
	uint64_t r = next_random(state);
	char *page = crowd.memory + r % PAGES * PAGE;

	pthread_rwlock_rdlock(&crowd.map);
	__atomic_add_fetch((uint64_t *)(page + (r >> 20) % 512 * 8), r | 1, __ATOMIC_RELAXED);
	pthread_rwlock_unlock(&crowd.map);
}

static char *chunk_at(uint64_t r)
{
	return crowd.memory + r % (PAGES / CHUNK) * CHUNK * PAGE;
}

static void map_over(char *at, size_t bytes)
{
	CHECK(mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
}

/* Each leaves memory that can be written, everywhere. */
static void change_map(uint64_t *state)
{
	uint64_t r = next_random(state), s = next_random(state);
	char *a = chunk_at(r), *b = chunk_at(s), *block = crowd.memory + s % (PAGES / 512) * BLOCK;
	const size_t size = CHUNK * PAGE;

	pthread_rwlock_wrlock(&crowd.map);
	switch (r >> 32 & 7) {
	case 0:
		map_over(a, size);
		break;
	case 1:
		CHECK(!madvise(a, size, MADV_DONTNEED));
		break;
	case 2:
		CHECK(!madvise(block, BLOCK, MADV_DONTNEED));
		CHECK(!madvise(block, BLOCK, MADV_HUGEPAGE));
		break;
	case 3:
		if (a == b)
			break;
		CHECK(mremap(a, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, b) == b);
		map_over(a, size);
		break;
	case 4:
		/* Out, and in again elsewhere. */
		CHECK(mremap(a, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, crowd.spare) == crowd.spare);
		map_over(a, size);
		CHECK(mremap(crowd.spare, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, b) == b);
		break;
	case 5:
		CHECK(mremap(a, size, size, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, crowd.spare) == crowd.spare);
		break;
	case 6:
		CHECK(!mprotect(a, size, PROT_READ));
		CHECK(!mprotect(a, size, PROT_READ | PROT_WRITE));
		break;
	case 7:
		memset(a, (int)r, PAGE);
		CHECK(!madvise(a, PAGE, MADV_DONTNEED));
		break;
	}
	crowd.changes++;
	pthread_rwlock_unlock(&crowd.map);
}

/* Its writes are its own; what the parent writes meanwhile is copied on write. */
static void fork_somebody(uint64_t *state)
{
	uint64_t r = next_random(state);
	pid_t child, reaped;
	int status;

	pthread_rwlock_rdlock(&crowd.map);
	child = fork();
	if (child)
		pthread_rwlock_unlock(&crowd.map);
	if (!child) {
		for (size_t i = 0; i < 64; i++)
			crowd.memory[(r + i * 37) % PAGES * PAGE]++;
		_exit(0);
	}
	reaped = waitpid(child, &status, 0);
	CHECK(reaped == child && status == 0);
	crowd.forks++;
}

static void *writer(void *argument)
{
	unsigned long me = (unsigned long)argument;
	uint64_t state = crowd.seed * 0x9e3779b97f4a7c15ULL + me + 1;

	while (!atomic_load(&crowd.over)) {
		while (!atomic_load(&crowd.pause)) {
			for (int i = 0; i < (me ? 50 : 8); i++)
				write_somewhere(&state);
			/* Whoever changes the map, and hmmd, need the processor as well. */
			if (me)
				usleep(200);
			if (me == 0 && atomic_load(&crowd.changes) < atomic_load(&crowd.allowed))
				change_map(&state);
			if (me == 1 && next_random(&state) % 16 == 0)
				fork_somebody(&state);
		}
		pthread_barrier_wait(&crowd.barrier);
		pthread_barrier_wait(&crowd.barrier);
	}
	return NULL;
}

void crowd_lock_map(bool lock)
{
	if (lock)
		pthread_rwlock_rdlock(&crowd.map);
	else
		pthread_rwlock_unlock(&crowd.map);
}

static void compare(int round)
{
	for (size_t i = 0; i < PAGES; i++)
		if (memcmp(crowd.copy + i * PAGE, crowd.memory + i * PAGE, PAGE))
			FAIL("seed %lu, round %d: a write to page %zu was missed", crowd.seed, round, i);
}

void crowd_run(const struct replica *replica, int rounds)
{
	const char *given = getenv("HMM_TEST_SEED");
	pthread_t threads[WRITERS];
	pthread_rwlockattr_t fair;

	crowd.seed = given ? strtoul(given, NULL, 0) : (unsigned long)getpid() * 2654435761UL % 1000000007UL;
	printf("seed %lu\n", crowd.seed);
	fflush(stdout);
	crowd.memory = test_map_huge(PAGES / 512);
	/* Apart: it is a hole at times, and what is moved there must not hit another thread's stack. */
	crowd.spare = test_map_apart(CHUNK);
	test_fill(crowd.memory, PAGES, 1);
	declare(crowd.memory, PAGES);
	replica->begin(crowd.memory, PAGES);
	pthread_rwlockattr_init(&fair);
	pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&crowd.map, &fair);
	pthread_barrier_init(&crowd.barrier, NULL, WRITERS + 1);
	for (unsigned long i = 0; i < WRITERS; i++)
		CHECK(!pthread_create(&threads[i], NULL, writer, (void *)i));
	for (int round = 0; round < rounds; round++) {
		atomic_fetch_add(&crowd.allowed, 40);
		/* Often enough for something to happen in between. */
		for (int i = 0; i < 3 || atomic_load(&crowd.changes) < 10UL * (unsigned long)(round + 1); i++)
			replica->update();
		atomic_store(&crowd.pause, true);
		pthread_barrier_wait(&crowd.barrier);
		replica->update();
		crowd.copy = replica->copy();
		compare(round);
		replica->still();
		atomic_store(&crowd.over, round == rounds - 1);
		atomic_store(&crowd.pause, round == rounds - 1);
		pthread_barrier_wait(&crowd.barrier);
	}
	for (int i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
	printf("%lu changes of the map, %lu forks\n", atomic_load(&crowd.changes), crowd.forks);
}

/* ---- one writer ---------------------------------------------------------------------------- */

static struct {
	pthread_t thread;
	atomic_ulong written;
	atomic_bool enough;
} steady;

static void *write_on(void *argument)
{
	volatile char *memory = argument;

	for (unsigned long i = 0; !atomic_load(&steady.enough); i++) {
		memory[i % 256 * PAGE]++;
		atomic_store(&steady.written, i);
	}
	return NULL;
}

void steady_begin(char *memory)
{
	CHECK(!pthread_create(&steady.thread, NULL, write_on, memory));
}

unsigned long steady_written(void)
{
	return atomic_load(&steady.written);
}

void steady_end(void)
{
	while (steady_written() < 256)
		usleep(1000);
	atomic_store(&steady.enough, true);
	pthread_join(steady.thread, NULL);
}
