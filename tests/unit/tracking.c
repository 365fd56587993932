// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * tracking.c - tracks' bitmaps against a model of one byte per page, the choice of an
 * engine, and processes that stand still.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine_random.h"
#include "tests/leakcheck.h"
#include "tracking/choose.h"
#include "tracking/tracking.h"
#include "uapi.h"

LEAKCHECKED_SUITE(tracking);

/* ---- bitmaps --------------------------------------------------------------------- */

#define BASE	0x7f0000001000ULL
#define PAGES	333U

struct model {
	bool written[PAGES], presumed[PAGES], gap[PAGES], unseen[PAGES];
};

static void model_sight(struct model *model, unsigned int first, unsigned int end, enum sight sight)
{
	for (unsigned int i = first; i < end; i++) {
		bool changed = sight == SIGHT_WRITTEN || sight == SIGHT_PRESUMED ||
			       (sight == SIGHT_CLEAN && (model->gap[i] || model->unseen[i])) ||
			       (sight == SIGHT_GAP && !model->gap[i]);

		model->presumed[i] |= (sight == SIGHT_PRESUMED || sight == SIGHT_CLEAN) && changed && !model->written[i];
		model->written[i] |= changed;
		model->gap[i] = sight == SIGHT_GAP;
		model->unseen[i] = sight == SIGHT_PRESUMED;
	}
}

static uint64_t addr(unsigned int page)
{
	return BASE + page * HMM_PAGE_SIZE;
}

static void check_tell(struct track *track, struct model *model, unsigned int first, unsigned int end, bool clear)
{
	uint64_t bits[PAGES / 64 + 2] = { 0 }, presumed = 0, expected = 0, guessed = 0, told;

	told = track_tell(track, addr(first), addr(end), clear, bits, 3, &presumed);
	for (unsigned int i = first; i < end; i++) {
		unsigned int bit = 3 + i - first;

		cr_assert_eq(bits[bit / 64] >> (bit % 64) & 1, model->written[i], "page %u", i);
		expected += model->written[i];
		guessed += model->written[i] && model->presumed[i];
		if (clear)
			model->written[i] = model->presumed[i] = false;
	}
	cr_assert(eq(u64, told, expected));
	cr_assert(eq(u64, presumed, guessed));
	for (unsigned int bit = 0; bit < 3; bit++)
		cr_assert_not(bits[0] >> bit & 1);
	for (unsigned int bit = 3 + end - first; bit < sizeof(bits) * 8; bit++)
		cr_assert_not(bits[bit / 64] >> (bit % 64) & 1, "bit %u", bit);
}

Test(tracking, bitmaps_agree_with_a_model)
{
	struct tracker tracker = { .uffd = -1 };
	struct random random = random_begin("bitmaps");
	static struct model model;
	struct track *track;

	TAILQ_INIT(&tracker.tracks);
	track = track_new(1, 2, BASE, addr(PAGES));
	cr_assert_not_null(track);
	TAILQ_INSERT_TAIL(&tracker.tracks, track, link);
	memset(model.written, 1, sizeof(model.written));
	memset(model.presumed, 1, sizeof(model.presumed));
	for (int i = 0; i < 20000; i++) {
		unsigned int a = random_below(&random, PAGES + 1);
		unsigned int b = random_below(&random, PAGES + 1);
		unsigned int first = a < b ? a : b, end = a < b ? b : a;
		enum sight sight = (enum sight)random_below(&random, 4);

		if (first == end)
			continue;
		if (random_below(&random, 3)) {
			/* Beyond the track's ends, too. */
			track_sight(&tracker, first ? addr(first) : BASE - 100 * HMM_PAGE_SIZE,
				    end < PAGES ? addr(end) : addr(PAGES + 100), sight);
			model_sight(&model, first, end, sight);
		} else {
			check_tell(track, &model, first, end, random_below(&random, 2));
		}
	}
	track_free(track);
}

/* ---- the choice -------------------------------------------------------------------- */

static const struct kernel_facts everything = {
	.pagemap_scan = true,
	.soft_dirty = true,
	.uffd_features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC,
};

static const struct tracking_ops *chosen(enum tracking_wish wish, const struct kernel_facts *facts)
{
	struct tracking_choice choice;
	unsigned int silent = 0;

	tracking_choose(&choice, wish, facts);
	for (unsigned int i = 0; i < TRACKING_ENGINES; i++)
		silent += !choice.why[i][0];
	/* For all but the one in use there is a reason. */
	cr_expect(eq(u32, silent, choice.ops != NULL));
	cr_expect_eq(!choice.ops, strlen(tracking_why_none(&choice, wish)) > 0);
	if (choice.ops) {
		cr_expect(eq(str, (char *)tracking_why_not(&choice, choice.ops->feature), ""));
		cr_expect(eq(u64, tracking_feature(&choice), choice.ops->feature));
	}
	cr_expect_null(tracking_why_not(&choice, HMM_FEATURE_MOVE));
	return choice.ops;
}

Test(tracking, the_cheapest_or_the_one_that_is_named)
{
	struct kernel_facts facts = everything, nothing = { 0 };

	cr_expect_eq(chosen(TRACKING_AUTO, &facts), &tracking_pagemap_scan);
	cr_expect_eq(chosen(TRACKING_PAGEMAP_SCAN, &facts), &tracking_pagemap_scan);
	cr_expect_eq(chosen(TRACKING_UFFD_WP, &facts), &tracking_uffd_wp);
	cr_expect_eq(chosen(TRACKING_SOFT_DIRTY, &facts), &tracking_soft_dirty);
	facts.pagemap_scan = false;
	cr_expect_eq(chosen(TRACKING_AUTO, &facts), &tracking_uffd_wp);
	cr_expect_null(chosen(TRACKING_PAGEMAP_SCAN, &facts));
	facts.pagemap_scan = true;
	facts.uffd_features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
	cr_expect_eq(chosen(TRACKING_AUTO, &facts), &tracking_uffd_wp);
	facts.uffd_features = 0;
	cr_expect_eq(chosen(TRACKING_AUTO, &facts), &tracking_soft_dirty);
	cr_expect_null(chosen(TRACKING_UFFD_WP, &facts));
	for (int wish = TRACKING_AUTO; wish <= TRACKING_SOFT_DIRTY; wish++)
		cr_expect_null(chosen((enum tracking_wish)wish, &nothing));
}

/* ---- standing still ------------------------------------------------------------------ */

#define THREADS	5

static atomic_ulong *count;

static void *run(void *data)
{
	for (;;)
		atomic_fetch_add((atomic_ulong *)data, 1);
	return NULL;
}

static void *breed(void *data)
{
	pthread_t thread;

	for (;;) {
		if (!pthread_create(&thread, NULL, (void *(*)(void *))(void *)pthread_self, NULL))
			pthread_join(thread, NULL);
		atomic_fetch_add((atomic_ulong *)data, 1);
	}
	return NULL;
}

static pid_t start(bool breeds)
{
	pthread_t thread;
	pid_t child;

	count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert(count != MAP_FAILED);
	child = fork();
	if (!child) {
		for (int i = 0; i < THREADS; i++)
			if (pthread_create(&thread, NULL, breeds && i == 0 ? breed : run, &count[i]))
				_exit(1);
		pause();
		_exit(0);
	}
	for (int i = 0; i < THREADS; i++)
		while (!atomic_load(&count[i]))
			usleep(100);
	return child;
}

static void stop_one(pid_t child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void stop(pid_t child)
{
	stop_one(child);
	munmap(count, 4096);
}

/* Freezes; -EAGAIN is for a machine that has more to do. */
static void freeze_surely(pid_t child, struct stopped_threads *threads)
{
	int r;

	while ((r = freeze(child, threads)) == -EAGAIN)
		usleep(1000);
	cr_assert(eq(int, r, 0));
}

static void check_standing(pid_t child)
{
	struct stopped_threads threads = { 0 };
	unsigned long before[THREADS];

	freeze_surely(child, &threads);
	for (int i = 0; i < THREADS; i++)
		before[i] = atomic_load(&count[i]);
	usleep(20000);
	for (int i = 0; i < THREADS; i++)
		cr_assert(eq(u64, atomic_load(&count[i]), before[i]), "thread %d runs", i);
	cr_assert(thaw(&threads));
	cr_assert_null(threads.list);
	for (int i = 0; i < THREADS; i++)
		while (atomic_load(&count[i]) == before[i])
			usleep(100);
}

Test(tracking, no_thread_runs)
{
	pid_t child = start(false);

	for (int i = 0; i < 10; i++)
		check_standing(child);
	stop(child);
}

Test(tracking, nor_one_that_is_being_made)
{
	pid_t child = start(true);

	for (int i = 0; i < 20; i++)
		check_standing(child);
	stop(child);
}

Test(tracking, a_stopped_process_stays_stopped)
{
	struct stopped_threads threads = { 0 };
	pid_t child = start(false);
	unsigned long before;
	int status;

	kill(child, SIGSTOP);
	cr_assert_eq(waitpid(child, &status, WUNTRACED), child);
	freeze_surely(child, &threads);
	cr_assert(thaw(&threads));
	before = atomic_load(&count[1]);
	usleep(20000);
	cr_assert(eq(u64, atomic_load(&count[1]), before));
	kill(child, SIGCONT);
	while (atomic_load(&count[1]) == before)
		usleep(100);
	stop(child);
}

Test(tracking, what_cannot_be_stopped)
{
	struct stopped_threads threads = { 0 };
	pid_t child = start(false), tracer;
	int ready[2], status;
	char byte;

	cr_assert(eq(int, freeze(0x7ffffff0, &threads), -ESRCH));
	cr_assert_eq(pipe(ready), 0);
	tracer = fork();
	if (!tracer) {
		if (ptrace(PTRACE_SEIZE, child, NULL, NULL))
			_exit(1);
		if (write(ready[1], "x", 1) != 1)
			_exit(1);
		pause();
	}
	cr_assert_eq(read(ready[0], &byte, 1), 1);
	/* Somebody has its first thread. None of the others is left standing. */
	do {
		status = freeze(child, &threads);
	} while (status == -EAGAIN);
	cr_assert(status == -EBUSY || status == -EPERM);
	cr_assert_null(threads.list);
	for (int i = 0; i < THREADS; i++) {
		unsigned long before = atomic_load(&count[i]);

		while (atomic_load(&count[i]) == before)
			usleep(100);
	}
	stop_one(tracer);
	close(ready[0]);
	close(ready[1]);
	stop(child);
}

/* Of a process that has been killed. */
static void bury(struct stopped_threads *threads)
{
	for (unsigned int i = 0; !thaw(threads) || threads->count; i++) {
		cr_assert(lt(uint, i, 20000), "threads are left over");
		usleep(1000);
	}
}

/* A thread that has a tracer is buried by him alone, and its process is there until it is. */
Test(tracking, who_is_killed_where_it_stands_is_buried)
{
	struct stopped_threads threads = { 0 };
	pid_t child = start(false);
	unsigned int i;

	freeze_surely(child, &threads);
	kill(child, SIGKILL);
	bury(&threads);
	/* With this one, which is its parent as well. */
	for (i = 0; waitpid(child, NULL, WNOHANG) == 0; i++) {
		cr_assert(lt(uint, i, 20000), "it does not end");
		usleep(1000);
	}
	munmap(count, 4096);
}

/* ---- execve() meanwhile ---------------------------------------------------------------- */

/* Not the first one of it. 0: there is none yet. */
static pid_t other_thread(pid_t pid)
{
	struct dirent *entry;
	pid_t tid, found = 0;
	char path[32];
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		tid = (pid_t)atoi(entry->d_name);
		if (tid > 0 && tid != pid)
			found = tid;
	}
	if (dir)
		closedir(dir);
	return found;
}

static bool is_zombie(pid_t pid, pid_t tid)
{
	char path[64], text[512] = "";
	const char *end;
	FILE *file;
	size_t n;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	file = fopen(path, "re");
	n = file ? fread(text, 1, sizeof(text) - 1, file) : 0;
	if (file)
		fclose(file);
	text[n] = '\0';
	end = strrchr(text, ')');
	return end && end[1] && end[2] == 'Z';
}

static void *sleep_on(void *data)
{
	for (;;)
		pause();
	return data;
}

static void *become_another(void *data)
{
	execl("/bin/true", "true", NULL);
	return data;
}

static void execute_when_told(int fd)
{
	pthread_t thread;
	char byte;

	if (pthread_create(&thread, NULL, sleep_on, NULL) || read(fd, &byte, 1) != 1 ||
	    pthread_create(&thread, NULL, become_another, NULL))
		_exit(1);
	sleep_on(NULL);
}

static void trace(pid_t tid, int fd)
{
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) || write(fd, "x", 1) != 1)
		_exit(1);
	sleep_on(NULL);
}

/*
 * It waits until a thread is buried, which is for that one's tracer to do, who does not; and whoever attaches waits
 * until it is over. So must hmmd not.
 */
Test(tracking, an_execve_that_does_not_end_keeps_nobody)
{
	struct stopped_threads threads = { 0 };
	pid_t child, tracer, victim;
	int told[2], ready[2], r;
	char byte;

	cr_assert_eq(pipe(told) | pipe(ready), 0);
	child = fork();
	if (!child)
		execute_when_told(told[0]);
	while (!(victim = other_thread(child)))
		usleep(1000);
	tracer = fork();
	if (!tracer)
		trace(victim, ready[1]);
	cr_assert_eq(read(ready[0], &byte, 1), 1);
	cr_assert_eq(write(told[1], "x", 1), 1);
	while (!is_zombie(child, victim))
		usleep(1000);
	for (int i = 0; i < 3; i++) {
		while ((r = freeze(child, &threads)) == -EAGAIN)
			usleep(1000);
		cr_assert(eq(int, r, -ETIMEDOUT));
		cr_assert(thaw(&threads));
	}
	stop_one(tracer);
	stop_one(child);
	bury(&threads);
	for (int i = 0; i < 2; i++) {
		close(told[i]);
		close(ready[i]);
	}
}

#define LIVES	30U
#define LIVES_VARIABLE	"HMM_TEST_LIVES"

static void *live_again(void *data)
{
	usleep(((unsigned int)(uintptr_t)data * 7919U) % 3000U);
	execl("/proc/thread-self/exe", "lives", NULL);
	return data;
}

/* One that becomes itself again and again, by one of its threads. Its first one may have ended. Counts its lives. */
__attribute__((constructor)) static void live(void)
{
	const char *said = getenv(LIVES_VARIABLE);
	pthread_t thread;
	_Atomic uint32_t *lives;
	uint32_t life;

	if (!said)
		return;
	lives = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(said), 0);
	if (lives == MAP_FAILED)
		_exit(1);
	life = atomic_fetch_add(lives, 1) + 1;
	for (int i = 0; i < 3; i++)
		pthread_create(&thread, NULL, sleep_on, NULL);
	pthread_create(&thread, NULL, live_again, (void *)(uintptr_t)life);
	if (life % 2)
		syscall(SYS_exit, 0);
	sleep_on(NULL);
}

/* However it hits: nobody is left standing, and hmmd does not stand either. */
Test(tracking, an_execve_at_any_moment)
{
	struct stopped_threads threads = { 0 };
	int fd = memfd_create("lives", 0);
	uint32_t seen = 0, idle = 0;
	_Atomic uint32_t *lives;
	char text[16];
	pid_t child;

	cr_assert_eq(ftruncate(fd, 4096), 0);
	lives = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert(lives != MAP_FAILED);
	snprintf(text, sizeof(text), "%d", fd);
	child = fork();
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setenv(LIVES_VARIABLE, text, 1);
		execl("/proc/self/exe", "lives", NULL);
		_exit(1);
	}
	while (atomic_load(lives) < LIVES) {
		freeze(child, &threads);
		while (!thaw(&threads))
			usleep(20);
		usleep(100);
		idle = atomic_load(lives) == seen ? idle + 1 : 0;
		seen = atomic_load(lives);
		cr_assert(lt(uint, idle, 100000), "it stands still in life %u", seen);
	}
	stop_one(child);
	bury(&threads);
	munmap((void *)lives, 4096);
	close(fd);
}
