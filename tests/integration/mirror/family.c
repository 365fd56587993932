/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * family.c - processes and threads come and go while pages are on the device:
 * every child begins with the bytes its parent had, and nobody waits for ever.
 */
#include "mirror.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#define DEVICE_MEMORY (128UL << 20)

extern char **environ;

static char *on_device(size_t pages, uint64_t seed)
{
	char *memory = test_map(pages);

	test_fill(memory, pages, seed);
	test_out(memory, pages);
	return memory;
}

static void forked(void)
{
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(200, 1);
	test_check(memory, 20, 1);	/* some are shared by now */
	child = fork();
	if (!child) {
		test_check(memory, 200, 1);
		test_fill(memory, 200, 2);
		test_check(memory, 200, 2);
		_exit(0);
	}
	test_fill(memory, 100, 3);
	test_reap(child, 0);
	test_check(memory, 100, 3);
	for (size_t i = 100; i < 200; i++)
		CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 1));
	test_fill(memory, 200, 4);
	test_out(memory, 200);
	test_check(memory, 200, 4);
	test_close();
}

/* What a child of a raw clone() begins with: zeros where its parent's page was @away and hmmd can't see it. */
static void check_cloned(const char *memory, size_t pages, uint64_t seed, const bool *away)
{
	bool seen = hmm_features(hmm) & HMM_HAS_EVENT_FORK;

	for (size_t i = 0; i < pages; i++)
		for (size_t w = 0; w < 512; w++)
			CHECK_EQ(((const volatile uint64_t *)memory)[i * 512 + w],
				 seen || !away[i] ? test_word(i, w, seed) : 0);
}

static void find_away(const char *memory, size_t pages, bool *away)
{
	for (size_t i = 0; i < pages; i++)
		away[i] = test_on_device(memory + i * PAGE);
}

/* What both read when a child came, and has for itself since, leaves as ever. So does what a child has still. */
/* A child that changes its map before it looks, and a child of its own in the middle of that. */
static void changed_child(char *memory, uint64_t seed)
{
	const size_t discarded = 20, moved = 60, unmapped = 120, some = 20;
	char *place = mmap(NULL, some * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t grandchild;
	int status = -1;

	CHECK(place != MAP_FAILED);
	CHECK_EQ(madvise(memory + discarded * PAGE, some * PAGE, MADV_DONTNEED), 0);
	grandchild = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	/* A raw call: the library's own is for who has its threads. */
	CHECK_EQ(syscall(SYS_mremap, memory + moved * PAGE, some * PAGE, some * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place),
		 (long)place);
	CHECK_EQ(munmap(memory + unmapped * PAGE, some * PAGE), 0);
	test_check_zero(memory + discarded * PAGE, some);
	for (size_t i = 0; i < 200; i++) {
		const char *page = memory + i * PAGE;

		if (i >= moved && i < moved + some)
			page = place + (i - moved) * PAGE;
		else if ((i >= discarded && i < discarded + some) || (i >= unmapped && i < unmapped + some))
			continue;
		for (size_t w = 0; w < 512; w++)
			CHECK_EQ(((const volatile uint64_t *)page)[w], test_word(i, w, seed));
	}
	if (grandchild) {
		CHECK_EQ(waitpid(grandchild, &status, 0), grandchild);
		CHECK_EQ(status, 0);
	}
	_exit(0);
}

static void cloned_and_changes(void)
{
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	/* Of one that is not seen `cloned` says all that can be said. */
	if (!(hmm_features(hmm) & HMM_HAS_EVENT_FORK)) {
		test_close();
		return;
	}
	memory = on_device(200, 5);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child)
		changed_child(memory, 5);
	test_reap(child, 0);
	test_check(memory, 200, 5);
	test_close();
}

static void cloned_while_shared(void)
{
	int ended[2];
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	for (int lives = 0; lives < 2; lives++) {
		char *memory = on_device(200, 7), byte;

		/* Both have each page. */
		CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, 200 * PAGE, HMM_ADVISE_SET_READ_MOSTLY, NULL), 0);
		test_check(memory, 200, 7);
		CHECK(hmm_mirror_lookup(&mirror, (unsigned long)memory) & HMM_ENTRY_VALID);
		CHECK_EQ(pipe(ended), 0);
		child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (!child) {
			close(ended[1]);
			if (lives && read(ended[0], &byte, 1) != 0)
				_exit(1);
			test_check(memory, 200, 7);
			_exit(0);
		}
		close(ended[0]);
		if (!lives)
			test_reap(child, 0);
		test_out(memory, 200);
		test_device_check(memory, 200, 7);
		test_fill(memory, 200, 8);
		test_check(memory, 200, 8);
		close(ended[1]);
		if (lives)
			test_reap(child, 0);
	}
	test_close();
}

static void cloned(void)
{
	bool away[200];
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(200, 5);
	find_away(memory, 200, away);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		check_cloned(memory, 200, 5, away);
		test_fill(memory, 200, 6);
		test_check(memory, 200, 6);
		_exit(0);
	}
	test_reap(child, 0);
	test_device_check(memory, 200, 5);
	test_check(memory, 200, 5);
	test_close();
}

/* Generations: the children's memory is nobody's mirror. */
static void grandchildren(void)
{
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 7);
	child = fork();
	if (!child) {
		pid_t grandchild = fork();

		if (!grandchild) {
			test_check(memory, 64, 7);
			_exit(0);
		}
		test_reap(grandchild, 0);
		test_check(memory, 64, 7);
		_exit(0);
	}
	test_reap(child, 0);
	test_check(memory, 64, 7);
	test_close();
}

static void many_forks(void)
{
	bool away[1024] = { false };
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	test_fill(memory, 1024, 8);
	for (uint64_t i = 0; i < 40; i++) {
		pid_t child;

		test_migrate(memory + i * 13 * PAGE, 1024 - i * 13, HMM_DEVICE, NULL);
		if (i % 2 == 0)
			find_away(memory, 1024, away);
		child = i % 2 ? fork() : (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (!child && i % 2) {
			test_check(memory, 1024, 8 + i);
			_exit(0);
		} else if (!child) {
			check_cloned(memory, 1024, 8 + i, away);
			_exit(0);
		}
		test_fill(memory, 1024, 9 + i);
		test_reap(child, 0);
	}
	test_check(memory, 1024, 48);
	test_close();
}

/* The odd or the even pages, written by the device. */
static void device_fills(char *memory, size_t first, uint64_t seed)
{
	for (size_t i = first; i < 64; i += 2) {
		uint64_t word = test_word(i, 0, seed);

		CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + i * PAGE, &word, 8), 8);
	}
}

static void check_first_words(const char *memory, uint64_t even, uint64_t odd)
{
	for (size_t i = 0; i < 64; i++)
		CHECK_EQ(*(const volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, i % 2 ? odd : even));
}

/* The child of an owner opens for itself: an owner with a device of its own, at the same addresses. */
static void owner_of_its_own(char *memory, int here, int there)
{
	char byte = 'c';

	memset(&mirror, 0, sizeof(mirror));
	test_open(0, DEVICE_MEMORY / 2);
	test_device_check(memory, 64, 27);
	test_out(memory, 64);
	test_device_check(memory, 64, 27);
	device_fills(memory, 0, 28);
	CHECK_EQ(write(there, &byte, 1), 1);
	CHECK_EQ(read(here, &byte, 1), 1);
	/* Both have their pages away and have written to them. */
	check_first_words(memory, 28, 27);
	test_fill(memory, 64, 29);
	test_out(memory, 64);
	test_check(memory, 64, 29);
	test_out(memory, 64);
	test_close();
	test_check(memory, 64, 29);
	_exit(0);
}

static void migrated_on_either_side(void)
{
	int to[2], from[2];
	char *memory, byte;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 27);
	CHECK_EQ(pipe(to), 0);
	CHECK_EQ(pipe(from), 0);
	child = fork();
	if (!child)
		owner_of_its_own(memory, to[0], from[1]);
	test_out(memory, 64);
	device_fills(memory, 1, 30);
	CHECK_EQ(read(from[0], &byte, 1), 1);
	CHECK_EQ(test_device_pages(memory, 64), 64);
	check_first_words(memory, 27, 30);
	test_out(memory, 64);
	CHECK_EQ(write(to[1], &byte, 1), 1);
	test_fill(memory, 64, 31);
	test_out(memory, 64);
	test_reap(child, 0);
	test_check(memory, 64, 31);
	test_close();
}

#define DYING (4 * 512UL)

/* Killed while they are given their bytes, or while they wait for what is on its way; some at once. */
static void dying_children(void)
{
	bool away[DYING];
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(4);
	test_fill(memory, DYING, 32);
	for (unsigned int i = 0; i < 24; i++) {
		pid_t child;

		test_migrate(memory, DYING, HMM_DEVICE, NULL);
		find_away(memory, DYING, away);
		child = i % 2 ? fork() : (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (!child) {
			if (i % 2)
				test_check(memory, DYING, 32);
			else
				check_cloned(memory, DYING, 32, away);
			for (;;)
				pause();
		}
		usleep(i % 3 * 700);
		kill(child, SIGKILL);
		test_reap(child, SIGKILL);
		CHECK_EQ(*(volatile uint64_t *)(memory + i * 37 * PAGE), test_word(i * 37, 0, 32));
	}
	test_device_check(memory, DYING, 32);
	test_check(memory, DYING, 32);
	test_close();
}

static void vforked(void)
{
	char *memory, program[] = "/bin/true";
	char *const arguments[] = { program, NULL };
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 10);
	child = vfork();
	if (!child) {
		execve(program, arguments, environ);
		_exit(1);
	}
	test_reap(child, 0);
	CHECK_EQ(test_device_pages(memory, 64), 64);
	test_check(memory, 64, 10);
	test_close();
}

/* It touches the parent's pages from the child that shares them. */
static void vfork_touches(void)
{
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 11);
	child = vfork();
	if (!child) {
		*(volatile uint64_t *)(memory + 3 * PAGE) = 99;
		_exit(*(volatile uint64_t *)(memory + 5 * PAGE) != test_word(5, 0, 11));
	}
	test_reap(child, 0);
	CHECK_EQ(*(volatile uint64_t *)(memory + 3 * PAGE), 99);
	*(volatile uint64_t *)(memory + 3 * PAGE) = test_word(3, 0, 11);
	test_check(memory, 64, 11);
	test_close();
}

static void spawned(void)
{
	char *memory, *path, *arguments[2] = { NULL, NULL };
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 12);
	/* The very strings of the call are on the device. */
	path = memory + 8 * PAGE;
	strcpy(path, "/bin/true");
	arguments[0] = path;
	test_out(memory, 64);
	CHECK_EQ(posix_spawn(&child, path, NULL, NULL, arguments, environ), 0);
	test_reap(child, 0);
	CHECK(!strcmp(path, "/bin/true"));
	test_close();
}

static void executes(void)
{
	char *memory, *path, *arguments[2] = { NULL, NULL };

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 13);
	path = memory + 8 * PAGE;
	strcpy(path, "/bin/true");
	arguments[0] = path;
	test_out(memory, 64);
	execve(path, arguments, environ);
	FAIL("execve: %m");
}

static void exits(void)
{
	test_open(0, DEVICE_MEMORY);
	on_device(64, 14);
	exit(0);
}

static void dies(void)
{
	pid_t child = fork();

	if (!child) {
		test_open(0, DEVICE_MEMORY);
		on_device(64, 15);
		raise(SIGKILL);
	}
	test_reap(child, SIGKILL);
}

/* ---- threads ---------------------------------------------------------------- */

static void *touch_and_end(void *argument)
{
	char *page = argument;

	return (void *)(uintptr_t)(*(volatile uint64_t *)page);
}

static void threads_end(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 16);
	for (size_t i = 0; i < 64; i++) {
		pthread_t thread;
		void *result;

		CHECK_EQ(pthread_create(&thread, NULL, touch_and_end, memory + i * PAGE), 0);
		CHECK_EQ(pthread_join(thread, &result), 0);
		CHECK_EQ((uintptr_t)result, test_word(i, 0, 16));
	}
	test_check(memory, 64, 16);
	test_close();
}

static char *wide;
static _Atomic bool enough;
#define WIDE (640UL << 20)	/* ten requests, of which a few are under way at a time */

static void *migrate_wide(void *argument)
{
	while (!atomic_load(&enough))
		CHECK(hmm_migrate(&mirror, (unsigned long)wide, WIDE, HMM_DEVICE, 0, NULL, NULL) >= 0);
	return argument;
}

/* A fork waits for what is under way, and what is under way for nothing that waits for the fork. */
static void fork_amid_requests(void)
{
	pthread_t thread;

	test_open(0, DEVICE_MEMORY);
	wide = mmap(NULL, WIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(wide != MAP_FAILED);
	CHECK_EQ(pthread_create(&thread, NULL, migrate_wide, NULL), 0);
	for (int i = 0; i < 6; i++) {
		pid_t child = fork();

		if (!child)
			_exit(0);
		CHECK(child > 0);
		test_reap(child, 0);
		usleep(3000);
	}
	atomic_store(&enough, true);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	munmap(wide, WIDE);
	test_close();
}

static pthread_mutex_t handlers_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t taken;
static _Atomic bool forking;

static void want_the_lock(void)
{
	atomic_store(&forking, true);
	pthread_mutex_lock(&handlers_lock);
}

static void let_it_go(void)
{
	pthread_mutex_unlock(&handlers_lock);
}

/* With the lock that a fork waits for: what remaps and protects must not wait for the fork. */
static void *change_meanwhile(void *argument)
{
	char *memory = argument, *moved = test_map(4);
	struct hmm *again;

	CHECK_EQ(hmm_open(NULL, &again), 0);
	pthread_mutex_lock(&handlers_lock);
	pthread_barrier_wait(&taken);
	while (!atomic_load(&forking))
		usleep(100);
	CHECK_EQ(mprotect(memory, 4 * PAGE, PROT_READ), 0);
	CHECK_EQ(mprotect(memory, 4 * PAGE, PROT_READ | PROT_WRITE), 0);
	CHECK(mremap(memory + 4 * PAGE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved) == moved);
	hmm_close(again);
	pthread_mutex_unlock(&handlers_lock);
	return moved;
}

/* A program's own handler, older than the library's, runs behind it. */
static void fork_handler_waits(void)
{
	pthread_t thread;
	void *moved;
	char *memory;
	pid_t child;

	CHECK_EQ(pthread_atfork(want_the_lock, let_it_go, let_it_go), 0);
	pthread_barrier_init(&taken, NULL, 2);
	test_open(0, DEVICE_MEMORY);
	memory = on_device(8, 26);
	CHECK_EQ(pthread_create(&thread, NULL, change_meanwhile, memory), 0);
	pthread_barrier_wait(&taken);
	child = fork();
	if (!child) {
		test_check(memory, 4, 26);
		_exit(0);
	}
	test_reap(child, 0);
	CHECK_EQ(pthread_join(thread, &moved), 0);
	test_check(memory, 4, 26);
	for (size_t i = 4; i < 8; i++)
		CHECK_EQ(*(volatile uint64_t *)((char *)moved + (i - 4) * PAGE), test_word(i, 0, 26));
	test_close();
}

static void *wait_to_end(void *argument)
{
	pthread_barrier_wait(argument);
	pthread_barrier_wait(argument);
	return argument;
}

/* What glibc mapped for its threads is sent away; what must stay, stays, and join does not hang. */
static void thread_memory_leaves(void)
{
	pthread_barrier_t barrier;
	pthread_t threads[4];
	unsigned long start, end;
	char line[512], protection[5];
	FILE *maps;

	test_open(0, DEVICE_MEMORY);
	pthread_barrier_init(&barrier, NULL, 5);
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, wait_to_end, &barrier), 0);
	pthread_barrier_wait(&barrier);
	maps = fopen("/proc/self/maps", "re");
	CHECK(maps);
	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx %4s", &start, &end, protection) != 3 || strcmp(protection, "rw-p"))
			continue;
		if (end - start > 64UL << 20)
			end = start + (64UL << 20);
		hmm_migrate(&mirror, start, end - start, HMM_DEVICE, 0, NULL, NULL);
	}
	fclose(maps);
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < 4; i++) {
		void *result;

		CHECK_EQ(pthread_join(threads[i], &result), 0);
		CHECK(result == &barrier);
	}
	test_close();
}

/* The leader of the process ends first; the mm lives on in the other thread. */
static void *survive(void *argument)
{
	char *memory = argument;

	usleep(200000);
	test_check(memory, 64, 17);
	test_fill(memory, 64, 18);
	test_out(memory, 64);
	test_check(memory, 64, 18);
	printf("the survivor is content\n");
	_exit(0);
}

static void leader_ends(void)
{
	pthread_t thread;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 17);
	CHECK_EQ(pthread_create(&thread, NULL, survive, memory), 0);
	pthread_exit(NULL);
}

/* A process that shares the memory but is no thread: after the owner's death the pages are still its own. */
static char survivor_stack[128 << 10];

struct survivor {
	char *memory;
	int told;	/* a pipe that the owner's parent reads */
	pid_t owner;
};

static int survive_alone(void *argument)
{
	struct survivor *survivor = argument;
	char verdict = 'y';

	while (getppid() == survivor->owner)
		usleep(10000);
	usleep(100000);
	for (size_t i = 0; i < 64 * 512; i++)
		if (((volatile uint64_t *)survivor->memory)[i] != test_word(i / 512, i % 512, 19))
			verdict = 'n';
	if (write(survivor->told, &verdict, 1) != 1)
		_exit(1);
	_exit(0);
}

static void memory_outlives_process(void)
{
	char verdict = 0;
	int told[2];
	pid_t child;

	CHECK_EQ(pipe(told), 0);
	child = fork();
	if (!child) {
		static struct survivor survivor;

		close(told[0]);
		test_open(0, DEVICE_MEMORY);
		survivor.memory = on_device(64, 19);
		survivor.told = told[1];
		survivor.owner = getpid();
		CHECK(clone(survive_alone, survivor_stack + sizeof(survivor_stack), CLONE_VM | SIGCHLD,
			    &survivor) > 0);
		usleep(100000);
		_exit(0);
	}
	close(told[1]);
	test_reap(child, 0);
	CHECK_EQ(read(told[0], &verdict, 1), 1);
	CHECK_EQ(verdict, 'y');
}

/* ---- who stops or interferes -------------------------------------------------- */

static void closes_all(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 20);
	CHECK_EQ(syscall(SYS_close_range, 3, ~0U, 0), 0);
	test_check(memory, 64, 20);
	test_fill(memory, 64, 21);
	test_out(memory, 64);
	test_device_check(memory, 64, 21);
	test_check(memory, 64, 21);
	test_close();
}

/* Descriptors of the library are nowhere among the program's. */
static void no_descriptor(void)
{
	int before, after;

	before = open("/dev/null", O_RDONLY | O_CLOEXEC);
	test_open(0, DEVICE_MEMORY);
	on_device(64, 22);
	after = open("/dev/null", O_RDONLY | O_CLOEXEC);
	CHECK_EQ(after, before + 1);
	test_close();
}

/*
 * The tracer stops every thread that is called the agent's, and the owner's
 * faults are served all the same: pages in the slot are read by hmmd itself.
 */
static pid_t agent_of(pid_t owner)
{
	char path[64], name[32];
	struct dirent *entry;
	pid_t found = 0;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", owner);
	tasks = opendir(path);
	CHECK(tasks);
	while (!found && (entry = readdir(tasks))) {
		pid_t tid = atoi(entry->d_name);
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%d/task/%d/comm", owner, tid);
		file = tid ? fopen(path, "re") : NULL;
		if (!file)
			continue;
		name[0] = 0;
		if (fgets(name, sizeof(name), file) && strstr(name, "agent"))
			found = tid;
		fclose(file);
	}
	closedir(tasks);
	return found;
}

static void traced_agent(void)
{
	int from[2], to[2];
	char byte = 0;
	pid_t owner, agent;

	CHECK_EQ(pipe(from), 0);
	CHECK_EQ(pipe(to), 0);
	owner = fork();
	if (!owner) {
		char *memory;

		test_open(0, DEVICE_MEMORY);
		memory = on_device(600, 23);
		CHECK_EQ(write(from[1], "x", 1), 1);
		CHECK_EQ(read(to[0], &byte, 1), 1);
		test_check(memory, 600, 23);
		test_fill(memory, 600, 24);
		CHECK_EQ(write(from[1], "y", 1), 1);
		CHECK_EQ(read(to[0], &byte, 1), 1);
		test_out(memory, 600);
		test_check(memory, 600, 24);
		test_close();
		_exit(0);
	}
	CHECK_EQ(read(from[0], &byte, 1), 1);
	agent = agent_of(owner);
	if (!agent) {
		kill(owner, SIGKILL);
		FAIL("the owner has no thread with 'agent' in its name");
	}
	CHECK_EQ(ptrace(PTRACE_SEIZE, agent, NULL, NULL), 0);
	CHECK_EQ(ptrace(PTRACE_INTERRUPT, agent, NULL, NULL), 0);
	CHECK_EQ(waitpid(agent, NULL, __WALL), agent);
	CHECK_EQ(write(to[1], "x", 1), 1);
	CHECK_EQ(read(from[0], &byte, 1), 1);
	CHECK_EQ(byte, 'y');
	CHECK_EQ(ptrace(PTRACE_DETACH, agent, NULL, NULL), 0);
	CHECK_EQ(write(to[1], "y", 1), 1);
	test_reap(owner, 0);
}

/* Another process looks with process_vm_readv: that is a fault in the owner, and is served. */
static void read_by_another(void)
{
	char *memory;
	pid_t child, owner = getpid();

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 25);
	child = fork();
	if (!child) {
		static char copy[64 * PAGE];
		struct iovec to = { copy, sizeof(copy) }, from = { memory, sizeof(copy) };

		usleep(200000);
		if (process_vm_readv(owner, &to, 1, &from, 1, 0) != sizeof(copy))
			FAIL("process_vm_readv: %m");
		test_check(copy, 64, 25);
		_exit(0);
	}
	test_out(memory, 64);
	test_reap(child, 0);
	test_device_check(memory, 64, 25);
	test_close();
}

static const struct test_case cases[] = {
	{ "forked", forked, false }, { "cloned", cloned, false },
	{ "cloned-and-changes", cloned_and_changes, false }, { "cloned-while-shared", cloned_while_shared, false }, { "grandchildren", grandchildren, false },
	{ "many-forks", many_forks, false },
	{ "migrated-on-either-side", migrated_on_either_side, false }, { "dying-children", dying_children, false },
	{ "vforked", vforked, false }, { "vfork-touches", vfork_touches, false },
	{ "spawned", spawned, false }, { "executes", executes, false }, { "exits", exits, false }, { "dies", dies, false },
	{ "threads-end", threads_end, false }, { "thread-memory-leaves", thread_memory_leaves, false },
	{ "fork-amid-requests", fork_amid_requests, false }, { "fork-handler-waits", fork_handler_waits, false },
	{ "leader-ends", leader_ends, false }, { "memory-outlives-process", memory_outlives_process, false },
	{ "closes-all", closes_all, false }, { "no-descriptor", no_descriptor, false },
	{ "traced-agent", traced_agent, false }, { "read-by-another", read_by_another, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
