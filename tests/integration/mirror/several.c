/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * several.c - one owner on several devices: a page that is S lies on each of
 * them, a page that is D on one.
 *
 * Two drivers with a device and a window each do what the owner tells them, one
 * thing at a time, and answer with a word. That nothing moves behind their backs
 * is read from hmmd's counters.
 */
#include "driver.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define DEVICE_MEMORY (16UL << 20)
#define PAGES 64UL
#define ROOM (4 * BLOCK / PAGE)		/* pages that the windows cover */
#define ROUNDS 5UL			/* of the driver of two owners */

/* ---- a driver: it obeys -------------------------------------------------------- */

enum order { LOAD = 1, TRY, STORE, LOOKUP, READ, WRITE, OUT, HOME, ASKED, COUNT, COUNTED, MAP, LEAVE, DIE };

#define ORDER(op, page, value) ((uint64_t)(op) << 56 | (uint64_t)(page) << 32 | (uint32_t)(value))

static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

static _Atomic uint64_t asked_for_room;

static int let_go(struct hmm_mirror *me, const struct hmm_update *update)
{
	CHECK(update->start < update->end);
	if (update->reason == HMM_REASON_EVICT && !update->blockable)
		atomic_fetch_add(&asked_for_room, 1);
	return 0;
}

static const struct hmm_mirror_ops told = { .size = sizeof(told),
					    .sync_cpu_device_pagetables = let_go };

static sigjmp_buf back;

static void jump_back(int number)
{
	siglongjmp(back, number);
}

#define SIGNALLED UINT64_MAX

/* A load that may find the window closed. */
static uint64_t try_load(volatile uint64_t *here)
{
	uint64_t value = SIGNALLED;

	signal(SIGBUS, jump_back);
	signal(SIGSEGV, jump_back);
	if (!sigsetjmp(back, 1))
		value = *here;
	signal(SIGBUS, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	return value;
}

/* Pages that a driver's thread counts in, without end: behind those of everything else, in two blocks. */
#define COUNTERS 16UL

static size_t counter_page(size_t i)
{
	return (2 + i % 2) * (BLOCK / PAGE) + i;
}

static struct {
	struct hmm_window *window;
	unsigned long memory;
	_Atomic uint64_t stored;	/* in all of them, at least */
} counting;

/* What it has stored it finds again: nothing is lost, and nothing is zero. */
static void *count(void *nothing)
{
	CHECK_EQ(pthread_setname_np(pthread_self(), "counts"), 0);
	for (uint64_t last = 0;; last++) {
		for (size_t i = 0; i < COUNTERS; i++) {
			volatile uint64_t *here = hmm_window_ptr(counting.window,
								 counting.memory + counter_page(i) * PAGE);

			CHECK_EQ(*here, last);
			*here = last + 1;
		}
		atomic_store(&counting.stored, last + 1);
	}
	return nothing;
}

static void begin_to_count(struct hmm_window *window, unsigned long memory)
{
	pthread_t thread;

	counting.window = window;
	counting.memory = memory;
	CHECK_EQ(pthread_create(&thread, NULL, count, NULL), 0);
}

#define MAPPED 8UL

/* Windows that come and go, whatever becomes of hmmd: each is there and shows what there is, or it is not to be had now. */
static uint64_t map_and_look(unsigned long memory, uint64_t base)
{
	uint64_t mapped = 0;

	for (unsigned long n = 0; n < MAPPED; n++) {
		struct hmm_window *window = NULL;
		int error = hmm_window_map(&mirror, memory, ROOM * PAGE, HMM_WINDOW_OFFSET, &window);

		if (error == -EAGAIN)
			continue;
		CHECK_EQ(error, 0);
		for (size_t i = 0; i < PAGES; i++)
			CHECK_EQ(*(volatile uint64_t *)hmm_window_ptr(window, memory + i * PAGE), base + i);
		CHECK_EQ(hmm_window_unmap(window), 0);
		mapped++;
	}
	return mapped;
}

static uint64_t obey(struct hmm_window *window, unsigned long memory, uint64_t order)
{
	unsigned long page = (order >> 32 & 0xffffff) * PAGE;
	volatile uint64_t *here = hmm_window_ptr(window, memory + page);
	uint64_t value = (uint32_t)order;

	switch (order >> 56) {
	case LOAD:
		return *here;
	case TRY:
		return try_load(here);
	case STORE:
		*here = value;
		return value;
	case LOOKUP:
		return hmm_mirror_lookup(&mirror, memory + page);
	case READ:
		CHECK_EQ(hmm_device_read(&mirror, memory + page, &value, 8), 8);
		return value;
	case WRITE:
		CHECK_EQ(hmm_device_write(&mirror, memory + page, &value, 8), 8);
		return value;
	case OUT:
	case HOME:
		return (uint64_t)hmm_migrate(&mirror, memory + page, value * PAGE,
					     order >> 56 == OUT ? HMM_DEVICE : HMM_SYSTEM, 0, NULL, NULL);
	case ASKED:
		return atomic_load(&asked_for_room);
	case COUNT:
		begin_to_count(window, memory);
		return 0;
	case COUNTED:
		return atomic_load(&counting.stored);
	case MAP:
		return map_and_look(memory, value);
	case DIE:
		raise(SIGKILL);
	}
	FAIL("what is %#lx?", order);
}

static void drive(const struct hmm_mirror_ops *operations)
{
	unsigned long memory = test_driver_open(operations);
	struct hmm_window *window;
	uint64_t order;

	CHECK_EQ(hmm_window_map(&mirror, memory, ROOM * PAGE, HMM_WINDOW_OFFSET, &window), 0);
	test_tell(TEST_DRIVER_SOCKET, 0, -1);
	while (test_hear(TEST_DRIVER_SOCKET, &order, NULL) && order >> 56 != LEAVE)
		test_tell(TEST_DRIVER_SOCKET, obey(window, memory, order), -1);
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void quiet_driver(void)
{
	drive(&quiet);
}

static void told_driver(void)
{
	drive(&told);
}

/* ---- the owner: it tells ----------------------------------------------------------- */

struct driver {
	pid_t pid;
	int socket;
};

static struct driver one, two;
static struct hmm_device *second;
static char *memory;

static uint64_t ask(const struct driver *driver, enum order op, size_t page, uint64_t value)
{
	uint64_t answer;

	test_tell(driver->socket, ORDER(op, page, value), -1);
	CHECK(test_hear(driver->socket, &answer, NULL));
	return answer;
}

/* "device-NUMBER" is its name; the first of a process is what test_open() made. */
static uint64_t device_number(pid_t owner, unsigned int device)
{
	return (uint64_t)device << 32 | (uint32_t)owner;
}

static void invite(int socket, pid_t owner, unsigned int device)
{
	int key = hmm_export(hmm);

	CHECK(key >= 0);
	test_tell(socket, (uint64_t)memory, key);
	test_tell(socket, device_number(owner, device), -1);
	close(key);
}

static void join(struct driver *driver, const char *name, unsigned int device)
{
	uint64_t word;

	driver->pid = test_driver_start(name, &driver->socket);
	invite(driver->socket, getpid(), device);
	CHECK(test_hear(driver->socket, &word, NULL));
}

static void part(struct driver *driver)
{
	test_tell(driver->socket, ORDER(LEAVE, 0, 0), -1);
	test_reap(driver->pid, 0);
	close(driver->socket);
}

static volatile uint64_t *word_of(size_t page)
{
	return (volatile uint64_t *)(memory + page * PAGE);
}

static void write_all(uint64_t base)
{
	for (size_t i = 0; i < PAGES; i++)
		*word_of(i) = base + i;
}

static void reads(const struct driver *driver, uint64_t base)
{
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(ask(driver, LOAD, i, 0), base + i);
}

static uint64_t lookup(const struct driver *driver, size_t page)
{
	return ask(driver, LOOKUP, page, 0);
}

#define SHARED (HMM_ENTRY_VALID | HMM_ENTRY_DEVICE)

static void want_shared(const struct driver *driver, size_t first, size_t end)
{
	for (size_t i = first; i < end; i++)
		CHECK_EQ(lookup(driver, i), SHARED);
}

static void want_nothing(const struct driver *driver, size_t first, size_t end)
{
	for (size_t i = first; i < end; i++)
		CHECK_EQ(lookup(driver, i), 0);
}

/* A counter of hmmd's, which serves nobody else. */
static uint64_t counted(const char *name)
{
	char path[4096], command[8192], line[256], seen[64];
	ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
	uint64_t value = 0, number;
	bool found = false;
	FILE *pipe;

	CHECK(length > 0);
	path[length] = 0;
	*strrchr(path, '/') = 0;
	snprintf(command, sizeof(command), "exec '%s/../../hmmctl/hmmctl' stats", path);
	pipe = popen(command, "re");
	CHECK(pipe);
	while (fgets(line, sizeof(line), pipe))
		if (sscanf(line, "%63s %lu", seen, &number) == 2 && !strcmp(seen, name)) {
			value = number;
			found = true;
		}
	CHECK_EQ(pclose(pipe), 0);
	if (!found)
		FAIL("no counter %s", name);
	return value;
}

/* Both windows are there and nothing has moved. @operations: the name of the drivers' part. */
static void begin_on(const char *operations, void *room, uint64_t size)
{
	char name[32];

	test_open(0, DEVICE_MEMORY);
	snprintf(name, sizeof(name), "device-%lu", device_number(getpid(), 1));
	second = test_device(name, size);
	memory = room;
	write_all(1000);
	join(&one, operations, 0);
	join(&two, operations, 1);
}

static void begin(const char *operations)
{
	begin_on(operations, test_map_apart(ROOM), DEVICE_MEMORY);
}

static void end(void)
{
	part(&two);
	part(&one);
	hmm_device_put(second);
	test_close();
}

/* All pages to the first driver's device, and read by both. */
static void read_all(uint64_t base)
{
	uint64_t out = 0;

	write_all(base);
	/* hmmd may just be coming back. */
	for (int tries = 0; tries < 500 && out != PAGES; tries++) {
		out = ask(&one, OUT, 0, PAGES);
		if (out != PAGES)
			usleep(20000);
	}
	CHECK_EQ(out, PAGES);
	reads(&two, base);
	reads(&one, base);
}

/* All pages are S then, with the first device the holder; the second has a copy of each. */
static void share_all(uint64_t base)
{
	read_all(base);
	want_shared(&one, 0, PAGES);
	want_shared(&two, 0, PAGES);
}

/* ---- cases -------------------------------------------------------------------------- */

static void read_by_both(const char *operations)
{
	static const char *const still[] = { "pages_to_device", "pages_home", "window_faults",
					     "copies_made", "copies_dropped", "faults" };
	uint64_t before[sizeof(still) / sizeof(still[0])];

	begin(operations);
	share_all(1);
	CHECK_EQ(counted("copies_made"), PAGES);
	CHECK_EQ(hmm_mirror_lookup(&mirror, (unsigned long)memory), 0);
	for (size_t i = 0; i < sizeof(still) / sizeof(still[0]); i++)
		before[i] = counted(still[i]);
	for (int round = 0; round < 5; round++) {
		reads(&one, 1);
		reads(&two, 1);
		for (size_t i = 0; i < PAGES; i++)
			CHECK_EQ(*word_of(i), 1 + i);
	}
	for (size_t i = 0; i < sizeof(still) / sizeof(still[0]); i++)
		if (counted(still[i]) != before[i])
			FAIL("%s went from %lu to %lu", still[i], before[i], counted(still[i]));
	want_shared(&one, 0, PAGES);
	want_shared(&two, 0, PAGES);
	/* The CPU writes some: these leave both, the others stay. */
	for (size_t i = 20; i-- > 10;)
		*word_of(i) = 500 + i;
	want_nothing(&one, 10, 20);
	want_nothing(&two, 10, 20);
	CHECK_EQ(counted("copies_dropped"), 10);
	want_shared(&two, 0, 10);
	want_shared(&two, 20, PAGES);
	for (size_t i = 0; i < PAGES; i++) {
		CHECK_EQ(ask(&two, LOAD, i, 0), i >= 10 && i < 20 ? 500 + i : 1 + i);
		CHECK_EQ(ask(&one, LOAD, i, 0), i >= 10 && i < 20 ? 500 + i : 1 + i);
	}
	/* What was I in a block that the first holds is on both again; nothing else has moved. */
	want_shared(&one, 0, PAGES);
	want_shared(&two, 0, PAGES);
	for (uint64_t round = 0; round < 20; round++) {
		write_all(round * 1000);
		reads(&two, round * 1000);
		reads(&one, round * 1000);
	}
	end();
}

static void both_read(void)
{
	read_by_both("quiet");
}

/* The same, and each change has to be answered by both. */
static void both_read_and_answer(void)
{
	read_by_both("told");
}

static void written_by_devices(void)
{
	begin("quiet");
	share_all(1);
	/* The holder: the page is D there, and nowhere else. */
	ask(&one, STORE, 3, 77);
	CHECK_EQ(lookup(&one, 3), SHARED | HMM_ENTRY_WRITE);
	CHECK_EQ(lookup(&two, 3), 0);
	CHECK_EQ(ask(&two, LOAD, 3, 0), 77);
	CHECK_EQ(lookup(&one, 3), SHARED);
	CHECK_EQ(lookup(&two, 3), SHARED);
	CHECK_EQ(*word_of(3), 77);
	want_shared(&two, 0, PAGES);
	/* The other: it takes the block, and the first may read it then. */
	ask(&two, STORE, 5, 88);
	CHECK_EQ(lookup(&two, 5), SHARED | HMM_ENTRY_WRITE);
	CHECK_EQ(lookup(&one, 5), 0);
	CHECK_EQ(ask(&one, LOAD, 5, 0), 88);
	CHECK_EQ(lookup(&one, 5), SHARED);
	CHECK_EQ(lookup(&two, 5), SHARED);
	CHECK_EQ(*word_of(5), 88);
	/* Without a window, by any mirror. */
	ask(&one, WRITE, 5, 99);
	CHECK_EQ(ask(&two, LOAD, 5, 0), 99);
	CHECK_EQ(ask(&one, LOAD, 5, 0), 99);
	CHECK_EQ(ask(&two, WRITE, 6, 100), 100);
	CHECK_EQ(ask(&one, READ, 6, 0), 100);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)word_of(5), &(uint64_t){ 101 }, 8), 8);
	CHECK_EQ(ask(&one, LOAD, 5, 0), 101);
	CHECK_EQ(ask(&two, LOAD, 5, 0), 101);
	CHECK_EQ(*word_of(5), 101);
	end();
}

/* Each has the pages in turn and sees what the other wrote, whoever reads in between. */
static void stolen(void)
{
	begin("told");
	for (uint64_t round = 0; round < 40; round++) {
		const struct driver *writer = round % 2 ? &one : &two, *reader = round % 2 ? &two : &one;
		size_t page = round % PAGES;

		if (round % 3 == 0)
			CHECK_EQ(ask(writer, OUT, 0, PAGES), PAGES);
		ask(writer, STORE, page, 5000 + round);
		CHECK_EQ(ask(reader, LOAD, page, 0), 5000 + round);
		if (round % 4 == 1)
			CHECK_EQ(*word_of(page), 5000 + round);
		CHECK_EQ(ask(writer, LOAD, page, 0), 5000 + round);
		if (round % 5 == 2)
			CHECK_EQ(ask(reader, OUT, 0, PAGES), PAGES);
	}
	end();
}

/* Four want the same block at the same time, each for a word of its own: all get it. */
static void wrestled(void)
{
	struct driver more[2];
	const struct driver *all[4] = { &one, &two, &more[0], &more[1] };

	begin("quiet");
	join(&more[0], "quiet", 0);
	join(&more[1], "told", 1);
	for (uint64_t round = 0; round < 100; round++) {
		for (size_t i = 0; i < 4; i++)
			test_tell(all[i]->socket, ORDER(round % 3 ? STORE : LOAD, i, 4 * round + i), -1);
		for (size_t i = 0; i < 4; i++) {
			uint64_t answer;

			CHECK(test_hear(all[i]->socket, &answer, NULL));
			if (round)
				CHECK_EQ(answer, 4 * (round % 3 ? round : round - 1) + i);
		}
	}
	for (size_t i = 0; i < 4; i++)
		CHECK_EQ(*word_of(i), 4 * 98 + i);
	part(&more[0]);
	part(&more[1]);
	end();
}

/* One migrates while the other reads: first the tables of both, then the pages. */
static void migrated_under_a_reader(void)
{
	begin("told");
	share_all(1);
	for (int round = 0; round < 30; round++) {
		const struct driver *mover = round % 3 ? &one : &two, *reader = round % 3 ? &two : &one;
		uint64_t answer;

		test_tell(mover->socket, ORDER(round % 4 == 3 ? HOME : OUT, 0, PAGES), -1);
		reads(reader, 1);
		CHECK(test_hear(mover->socket, &answer, NULL));
		CHECK((long)answer >= 0);
		reads(mover, 1);
	}
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(*word_of(i), 1 + i);
	/* D on one device: the other's table has nothing. */
	CHECK_EQ(ask(&two, OUT, 0, PAGES), PAGES);
	want_nothing(&one, 0, PAGES);
	end();
}

/* Back to the CPU on the reader's behalf: its copies go, the holder keeps what is its own. */
static void copies_go_home(void)
{
	begin("quiet");
	share_all(1);
	CHECK_EQ(ask(&two, HOME, 0, 32), 32);
	want_nothing(&two, 0, 32);
	want_shared(&two, 32, PAGES);
	reads(&two, 1);
	CHECK_EQ(ask(&one, HOME, 0, PAGES), PAGES);
	want_nothing(&two, 0, PAGES);
	want_nothing(&one, 0, PAGES);
	reads(&two, 1);
	reads(&one, 1);
	end();
}

static void in_child(uint64_t base)
{
	pid_t child = fork();

	if (!child) {
		for (size_t i = 0; i < PAGES; i++)
			if (*word_of(i) != base + i)
				_exit(1);
		for (size_t i = 0; i < PAGES; i++)
			*word_of(i) = 1;
		_exit(0);
	}
	test_reap(child, 0);
}

static void changed_by_the_owner(void)
{
	char *moved;

	begin("told");
	share_all(1);
	CHECK_EQ(madvise(memory, 8 * PAGE, MADV_DONTNEED), 0);
	/* Asked for, a page of zeros would be there, and be taken for the one that goes. */
	CHECK_EQ(ask(&two, READ, 9, 0), 10);
	for (size_t i = 0; i < 8; i++) {
		CHECK_EQ(ask(&two, LOAD, i, 0), 0);
		CHECK_EQ(ask(&one, LOAD, i, 0), 0);
		CHECK_EQ(*word_of(i), 0);
	}
	share_all(100);
	in_child(100);
	reads(&two, 100);
	share_all(200);
	/* To other addresses of the windows, and something new in their place. */
	moved = mremap(memory, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 128 * PAGE);
	CHECK(moved == memory + 128 * PAGE);
	CHECK_EQ(ask(&two, READ, 128, 0), 200);
	want_nothing(&two, 0, 16);
	for (size_t i = 0; i < 16; i++) {
		CHECK_EQ(ask(&two, LOAD, 128 + i, 0), 200 + i);
		CHECK_EQ(ask(&one, LOAD, 128 + i, 0), 200 + i);
	}
	CHECK(mmap(memory, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		   0) == memory);
	for (size_t i = 0; i < 16; i++)
		*word_of(i) = 300 + i;
	CHECK_EQ(ask(&one, READ, 0, 0), 300);
	for (size_t i = 0; i < 16; i++) {
		CHECK_EQ(ask(&two, LOAD, i, 0), 300 + i);
		CHECK_EQ(ask(&one, LOAD, i, 0), 300 + i);
	}
	CHECK_EQ(munmap(memory + 32 * PAGE, 16 * PAGE), 0);
	CHECK_EQ(ask(&one, READ, 20, 0), 220);
	want_nothing(&two, 32, 48);
	want_nothing(&one, 32, 48);
	end();
}

/* The reader dies: its copies are nobody's, and the next driver of that device is served. */
static void reader_dies(void)
{
	begin("told");
	share_all(1);
	test_tell(two.socket, ORDER(DIE, 0, 0), -1);
	test_reap(two.pid, SIGKILL);
	close(two.socket);
	for (size_t i = 0; i < 10; i++)
		*word_of(i) = 50 + i;
	for (size_t i = 0; i < 10; i++)
		CHECK_EQ(ask(&one, LOAD, i, 0), 50 + i);
	join(&two, "quiet", 1);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(ask(&two, LOAD, i, 0), i < 10 ? 50 + i : 1 + i);
	want_shared(&two, 0, PAGES);
	/* And the holder. */
	test_tell(one.socket, ORDER(DIE, 0, 0), -1);
	test_reap(one.pid, SIGKILL);
	close(one.socket);
	write_all(70);
	reads(&two, 70);
	join(&one, "told", 0);
	reads(&one, 70);
	end();
}

/* A holder that leaves takes the copies of its pages with it, not the bytes. */
static void holder_leaves(void)
{
	begin("quiet");
	share_all(1);
	part(&one);
	want_nothing(&two, 0, PAGES);
	reads(&two, 1);
	join(&one, "quiet", 0);
	reads(&one, 1);
	part(&two);
	for (size_t i = 0; i < PAGES; i++)
		*word_of(i) = 9 + i;
	reads(&one, 9);
	join(&two, "quiet", 1);
	reads(&two, 9);
	end();
}

/*
 * The reader's device has room for a quarter of it: copies come and go, and the
 * room that they take is there for pages.
 */
static void no_room_for_copies(void)
{
	const size_t all = ROOM, some = BLOCK / PAGE;

	begin_on("quiet", test_map_huge(all / some), BLOCK);
	for (size_t i = 0; i < all; i++)
		*word_of(i) = 7 + i;
	CHECK_EQ(ask(&one, OUT, 0, all), all);
	for (int round = 0; round < 2; round++)
		for (size_t i = 0; i < all; i++)
			CHECK_EQ(ask(&two, LOAD, i, 0), 7 + i);
	CHECK(counted("copies_made") >= 2 * all - some);
	CHECK(counted("copies_dropped") >= 2 * all - 2 * some);
	/* Its own page goes before a copy. */
	CHECK_EQ(ask(&two, OUT, 0, some), some);
	for (size_t i = 0; i < all; i++)
		CHECK_EQ(ask(&one, LOAD, i, 0), 7 + i);
	/* Now there is none for a copy; it is read in place. */
	CHECK_EQ(ask(&two, READ, all - 1, 0), 7 + all - 1);
	for (size_t i = 0; i < all; i++)
		CHECK_EQ(*word_of(i), 7 + i);
	end();
}

/* A block for the device that the other owner's copies have filled. */
static void neighbour(pid_t first, int begin_fd, int end_fd)
{
	const size_t some = BLOCK / PAGE;
	char byte, name[32];

	CHECK_EQ(read(begin_fd, &byte, 1), 1);
	CHECK_EQ(hmm_open(NULL, &hmm), 0);
	snprintf(name, sizeof(name), "device-%lu", device_number(first, 1));
	CHECK_EQ(hmm_device_open(hmm, name, &mirror.device), 0);
	test_mirror(&mirror, mirror.device);
	memory = test_map_huge(1);
	test_fill(memory, some, 5);
	test_out(memory, some);
	test_device_check(memory, some, 5);
	CHECK_EQ(write(end_fd, "x", 1), 1);
	CHECK_EQ(read(begin_fd, &byte, 1), 1);
	test_check(memory, some, 5);
	test_close();
	_exit(0);
}

/*
 * The second device is full of copies of what the first holds. They make way for another owner:
 * its drivers are asked, nothing comes home, and they are there again when they are read.
 */
static void copies_make_way(void)
{
	static const char *const still[] = { "pages_home", "evictions", "faults" };
	uint64_t before[sizeof(still) / sizeof(still[0])];
	const size_t some = BLOCK / PAGE;
	int begin_pipe[2], end_pipe[2];
	pid_t first = getpid(), other;
	char byte;

	CHECK_EQ(pipe2(begin_pipe, O_CLOEXEC), 0);
	CHECK_EQ(pipe2(end_pipe, O_CLOEXEC), 0);
	other = fork();
	if (!other)
		neighbour(first, begin_pipe[0], end_pipe[1]);
	begin_on("told", test_map_huge(ROOM / some), BLOCK);
	for (size_t i = 0; i < ROOM; i++)
		*word_of(i) = 7 + i;
	CHECK_EQ(ask(&one, OUT, 0, some), some);
	for (size_t i = 0; i < some; i++)
		CHECK_EQ(ask(&two, LOAD, i, 0), 7 + i);
	want_shared(&two, 0, some);
	for (size_t i = 0; i < sizeof(still) / sizeof(still[0]); i++)
		before[i] = counted(still[i]);
	CHECK_EQ(write(begin_pipe[1], "x", 1), 1);
	CHECK_EQ(read(end_pipe[0], &byte, 1), 1);
	CHECK(ask(&one, ASKED, 0, 0) > 0);
	CHECK(ask(&two, ASKED, 0, 0) > 0);
	want_nothing(&two, 0, some);
	for (size_t i = 0; i < sizeof(still) / sizeof(still[0]); i++)
		if (counted(still[i]) != before[i])
			FAIL("%s went from %lu to %lu", still[i], before[i], counted(still[i]));
	for (size_t i = 0; i < some; i += 7) {
		CHECK_EQ(ask(&one, LOAD, i, 0), 7 + i);
		CHECK_EQ(ask(&two, LOAD, i, 0), 7 + i);
		CHECK_EQ(*word_of(i), 7 + i);
	}
	CHECK_EQ(write(begin_pipe[1], "x", 1), 1);
	test_reap(other, 0);
	for (size_t i = 0; i < some; i++)
		CHECK_EQ(ask(&two, LOAD, i, 0), 7 + i);
	end();
}

/* Two owners on one device, and one driver of both: neither sees the other's bytes. */
static void both_owners_driver(void)
{
	struct hmm_mirror mirrors[2] = { 0 };
	struct hmm_window *windows[2];
	unsigned long addresses[2];
	struct hmm *spaces[2];
	uint64_t word;

	for (int i = 0; i < 2; i++) {
		addresses[i] = test_driver_open(&told);
		mirrors[i] = (struct hmm_mirror){ .ops = &told, .device = mirror.device };
		CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
		CHECK_EQ(hmm_mirror_register(&mirrors[i], hmm), 0);
		spaces[i] = hmm;
		CHECK_EQ(hmm_window_map(&mirrors[i], addresses[i], ROOM * PAGE, HMM_WINDOW_OFFSET, &windows[i]), 0);
	}
	for (uint64_t round = 0; round < ROUNDS; round++)
		for (size_t page = 0; page < PAGES; page++)
			for (uint64_t i = 0; i < 2; i++) {
				unsigned long address = addresses[i] + page * PAGE;
				volatile uint64_t *here = hmm_window_ptr(windows[i], address);
				uint64_t expected = (i + 1) * 10000 + page + round;

				CHECK_EQ(*here, expected);
				CHECK_EQ(hmm_device_read(&mirrors[i], address, &word, 8), 8);
				CHECK_EQ(word, expected);
				if (page % 2)
					*here = expected + 1;
				word = expected + 1;
				if (!(page % 2))
					CHECK_EQ(hmm_device_write(&mirrors[i], address, &word, 8), 8);
			}
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(hmm_window_unmap(windows[i]), 0);
		CHECK_EQ(hmm_mirror_unregister(&mirrors[i]), 0);
		hmm_device_put(mirrors[i].device);
		hmm_close(spaces[i]);
	}
}

/* Until @over, nothing but what the driver wrote. */
static void watch(uint64_t base, bool (*over)(int), int argument)
{
	static uint64_t seen[PAGES];
	bool last;

	do {
		last = over(argument);
		for (size_t i = 0; i < PAGES; i++) {
			uint64_t value = *word_of(i) - base - i;

			if (value > ROUNDS || value < seen[i] || (last && value != ROUNDS))
				FAIL("page %zu: %lu after %lu", i, value, seen[i]);
			seen[i] = value;
		}
		usleep(100);
	} while (!last);
}

static bool has_ended(int pid)
{
	siginfo_t info = { 0 };

	return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
}

static bool has_been_told(int fd)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

	return poll(&poll_fd, 1, 0) == 1;
}

static void second_owner(pid_t first, int begin_fd, int end_fd)
{
	char byte, name[32];

	CHECK_EQ(read(begin_fd, &byte, 1), 1);
	CHECK_EQ(hmm_open(NULL, &hmm), 0);
	snprintf(name, sizeof(name), "device-%d", first);
	CHECK_EQ(hmm_device_open(hmm, name, &mirror.device), 0);
	test_mirror(&mirror, mirror.device);
	memory = test_map(ROOM);
	write_all(20000);
	invite(one.socket, first, 0);
	watch(20000, has_been_told, end_fd);
	test_close();
	_exit(0);
}

static void two_owners_and_one_driver(void)
{
	int begin_pipe[2], end_pipe[2];
	pid_t other;

	CHECK_EQ(pipe2(begin_pipe, O_CLOEXEC), 0);
	CHECK_EQ(pipe2(end_pipe, O_CLOEXEC), 0);
	one.pid = test_driver_start("both-owners", &one.socket);
	other = fork();
	if (!other)
		second_owner(getppid(), begin_pipe[0], end_pipe[0]);
	test_open(0, DEVICE_MEMORY);
	memory = test_map(ROOM);
	write_all(10000);
	invite(one.socket, getpid(), 0);
	CHECK_EQ(write(begin_pipe[1], "x", 1), 1);
	watch(10000, has_ended, one.pid);
	test_reap(one.pid, 0);
	CHECK_EQ(write(end_pipe[1], "x", 1), 1);
	test_reap(other, 0);
	test_close();
}

/* The CPU sees what its thread had stored before; with @wait: and it gets further. */
static void counts_go_on(bool wait)
{
	uint64_t before = ask(&two, COUNTED, 0, 0);

	while (wait && ask(&two, COUNTED, 0, 0) == before)
		usleep(1000);
	before = ask(&two, COUNTED, 0, 0);
	for (size_t i = 0; i < COUNTERS; i++) {
		uint64_t seen = *word_of(counter_page(i));

		if (seen < before)
			FAIL("%lu is there, and %lu was stored", seen, before);
	}
}

/* hmmd is killed, or a driver's connection is, while pages are on both: the test that starts this does it, and says so. */
static void outage(void)
{
	char line[64];

	begin("told");
	share_all(1);
	printf("shared\n");
	while (fgets(line, sizeof(line), stdin) && strcmp(line, "end\n")) {
		static uint64_t base = 1;

		if (!strcmp(line, "read\n")) {
			reads(&two, base);
			reads(&one, base);
		} else if (!strcmp(line, "write\n")) {
			base += 1000;
			write_all(base);
		} else if (!strcmp(line, "store\n")) {
			base += 1000;
			for (size_t i = 0; i < PAGES; i++)
				ask(&two, STORE, i, base + i);
			for (size_t i = 0; i < PAGES; i++)
				CHECK_EQ(*word_of(i), base + i);
		} else if (!strcmp(line, "map\n")) {
			CHECK(ask(&two, MAP, 0, base) && ask(&one, MAP, 0, base));
		} else if (!strcmp(line, "closed\n")) {
			/* What the owner writes alone is not for its drivers, but nor is what was there before. */
			for (size_t i = 0; i < PAGES; i++) {
				CHECK_EQ(ask(&one, TRY, i, 0), SIGNALLED);
				CHECK_EQ(ask(&two, TRY, i, 0), SIGNALLED);
			}
		} else if (!strcmp(line, "second-closed\n")) {
			for (size_t i = 0; i < PAGES; i++)
				CHECK_EQ(ask(&two, TRY, i, 0), SIGNALLED);
		} else if (!strcmp(line, "count\n")) {
			ask(&two, COUNT, 0, 0);
		} else if (!strcmp(line, "counted\n")) {
			counts_go_on(false);
		} else if (!strcmp(line, "count-on\n")) {
			counts_go_on(true);
		} else if (!strcmp(line, "share\n")) {
			base += 1000;
			read_all(base);
		}
		printf("done\n");
	}
	end();
}

static const struct test_case cases[] = {
	{ "both-read", both_read, false },
	{ "both-read-and-answer", both_read_and_answer, false },
	{ "written-by-devices", written_by_devices, false },
	{ "stolen", stolen, false },
	{ "wrestled", wrestled, false },
	{ "migrated-under-a-reader", migrated_under_a_reader, false },
	{ "copies-go-home", copies_go_home, false },
	{ "changed-by-the-owner", changed_by_the_owner, false },
	{ "reader-dies", reader_dies, false },
	{ "holder-leaves", holder_leaves, false },
	{ "no-room-for-copies", no_room_for_copies, false },
	{ "copies-make-way", copies_make_way, false },
	{ "two-owners-and-one-driver", two_owners_and_one_driver, false },
	{ "outage", outage, true },
	{ NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "quiet", quiet_driver, false }, { "told", told_driver, false },
	{ "both-owners", both_owners_driver, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
