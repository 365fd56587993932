/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * protection.c - the owner takes rights from its memory and gives them back, while a
 * driver reads and writes it through a window, or through hmmd.
 */
#include "driver.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define DEVICE_MEMORY (64UL << 20)
#define PAGES 64UL
#define READ PROT_READ
#define BOTH (PROT_READ | PROT_WRITE)

static volatile uint64_t *word_of(char *memory, size_t page)
{
	return (volatile uint64_t *)(memory + page * PAGE);
}

static uint64_t draw(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* ---- the driver: does what it is told, one word at a time ---------------------------------- */

enum { LOAD, STORE, MIGRATE, WHERE, ENTRY, RUN, STORED, QUIT };
#define FAULTED 0xfa017edfa017edUL

static sigjmp_buf escape;

static void jump(int signal_number)
{
	siglongjmp(escape, signal_number);
}

static _Atomic unsigned int told;	/* invalidations for PROTECT */

static int note_reason(struct hmm_mirror *me, const struct hmm_update *update)
{
	atomic_fetch_add(&told, update->reason == HMM_REASON_PROTECT);
	return 0;
}

static const struct hmm_mirror_ops operations = { .size = sizeof(operations),
						  .sync_cpu_device_pagetables = note_reason };
static const struct hmm_mirror_ops no_callbacks = { .size = sizeof(no_callbacks) };

/* ---- and writes on its own, until it is told something else */

static uint64_t stored[PAGES];	/* what it knows to have written last */

static bool is_told(void)
{
	struct pollfd poll_fd = { .fd = TEST_DRIVER_SOCKET, .events = POLLIN };

	return poll(&poll_fd, 1, 0) == 1;
}

static uint64_t run(char *memory, uint64_t first)
{
	static uint64_t seed;
	volatile uint64_t faults = 0;

	seed = first;

	while (!is_told()) {
		if (sigsetjmp(escape, 1)) {
			faults++;
			continue;
		}
		for (int i = 0; i < 32; i++) {
			size_t page = draw(&seed) % PAGES;

			*word_of(memory, page) = stored[page] + 1;
			__atomic_store_n(&stored[page], stored[page] + 1, __ATOMIC_RELAXED);
		}
	}
	return faults;
}

static uint64_t obey(char *memory, uint64_t order, size_t page)
{
	if (order == RUN)
		return run(memory, page);
	if (order == STORED)
		return stored[page];
	if (sigsetjmp(escape, 1))
		return FAULTED;
	if (order == LOAD)
		return *word_of(memory, page);
	if (order == STORE)
		return *word_of(memory, page) = page + 1000;
	if (order == WHERE)
		return test_device_pages(memory, PAGES);
	if (order == ENTRY)
		return hmm_mirror_lookup(&mirror, (unsigned long)memory + page * PAGE);
	return (uint64_t)hmm_migrate(&mirror, (unsigned long)memory, PAGES * PAGE, HMM_DEVICE, 0, NULL, NULL);
}

static void serve(const struct hmm_mirror_ops *ops)
{
	struct sigaction action = { .sa_handler = jump };
	char *memory = (char *)test_driver_open(ops);
	struct hmm_window *window;
	uint64_t order;

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	CHECK_EQ(hmm_window_map(&mirror, (unsigned long)memory, PAGES * PAGE, 0, &window), 0);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	while (test_hear(TEST_DRIVER_SOCKET, &order, NULL) && order % 8 != QUIT)
		test_tell(TEST_DRIVER_SOCKET, obey(memory, order % 8, order / 8), -1);
	test_tell(TEST_DRIVER_SOCKET, atomic_load(&told), -1);
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void driver(void)
{
	serve(&operations);
}

static void driver_without_callbacks(void)
{
	serve(&no_callbacks);
}

/* ---- the owner --------------------------------------------------------------------------------- */

static struct { pid_t pid; int socket; char *memory; } it;

static char *begin(const char *name, uint64_t seed)
{
	uint64_t word;

	it.pid = test_driver_start(name, &it.socket);
	test_open(0, DEVICE_MEMORY);
	it.memory = test_map_in_block(PAGES);
	test_fill(it.memory, PAGES, seed);
	test_invite(it.socket, it.memory);
	CHECK(test_hear(it.socket, &word, NULL));
	return it.memory;
}

static uint64_t ask(int order, size_t page)
{
	uint64_t answer = 0;

	test_tell(it.socket, (uint64_t)order | page * 8, -1);
	CHECK(test_hear(it.socket, &answer, NULL));
	return answer;
}

/* Return: how often the driver was told of PROTECT. */
static uint64_t end(void)
{
	uint64_t heard = ask(QUIT, 0);

	test_reap(it.pid, 0);
	return heard;
}

/* A driver is told a moment after the owner goes on that it may have again what it was refused. */
static uint64_t ask_again(int order, size_t page)
{
	uint64_t answer = ask(order, page);

	for (int tries = 0; tries < test_scaled(2000) && answer == FAULTED; tries++) {
		usleep(5000);
		answer = ask(order, page);
	}
	return answer;
}

#define DRIVER_READS_AGAIN(page, seed) CHECK_EQ(ask_again(LOAD, page), test_word(page, 0, seed))
#define DRIVER_WRITES_AGAIN(page) CHECK_EQ(ask_again(STORE, page), (page) + 1000)
#define DRIVER_READS(page, seed) CHECK_EQ(ask(LOAD, page), test_word(page, 0, seed))
#define DRIVER_WRITES(page) CHECK_EQ(ask(STORE, page), (page) + 1000)
#define DRIVER_FAULTS(order, page) CHECK_EQ(ask(order, page), FAULTED)

/* By the ways in which a program, or a library that does not know of us, asks. */
static int by_libc(void *memory, size_t length, int rights)
{
	return mprotect(memory, length, rights);
}

static int by_key(void *memory, size_t length, int rights)
{
	return pkey_mprotect(memory, length, rights, -1);
}

static int by_kernel(void *memory, size_t length, int rights)
{
	return (int)syscall(SYS_mprotect, memory, length, rights);
}

/* Read-only: the driver goes on reading what it had, and writes nothing more. */
static void take_writing(int (*protect)(void *, size_t, int))
{
	char *memory = begin("window", 1);

	DRIVER_READS(3, 1);
	/* The window may show it a moment before hmmd has noted where all of the block is. */
	CHECK_EQ(ask(MIGRATE, 0), PAGES);
	CHECK_EQ(ask(WHERE, 0), PAGES);
	DRIVER_WRITES(5);
	CHECK_EQ(protect(memory, 32 * PAGE, READ), 0);
	/* Nothing may be written by the time that it returns, and nothing is lost. */
	DRIVER_READS(3, 1);
	CHECK_EQ(ask(LOAD, 5), 1005);
	DRIVER_READS(31, 1);
	CHECK_EQ(*word_of(memory, 5), 1005);
	CHECK_EQ(ask(ENTRY, 3) & (HMM_ENTRY_VALID | HMM_ENTRY_WRITE), HMM_ENTRY_VALID);
	CHECK_EQ(ask(ENTRY, 32) & (HMM_ENTRY_VALID | HMM_ENTRY_WRITE), HMM_ENTRY_VALID | HMM_ENTRY_WRITE);
	DRIVER_FAULTS(STORE, 5);
	CHECK_EQ(*word_of(memory, 5), 1005);
	CHECK_EQ(*word_of(memory, 3), test_word(3, 0, 1));
	/* Its neighbour was not meant. */
	DRIVER_WRITES(32);
	CHECK_EQ(*word_of(memory, 32), 1032);
	/* And back: what was refused may be had again. */
	CHECK_EQ(protect(memory, 32 * PAGE, BOTH), 0);
	CHECK_EQ(ask_again(LOAD, 5), 1005);
	DRIVER_WRITES(5);
	DRIVER_WRITES(3);
	CHECK_EQ(*word_of(memory, 3), 1003);
	*word_of(memory, 3) = test_word(3, 0, 1);
	*word_of(memory, 5) = test_word(5, 0, 1);
	*word_of(memory, 32) = test_word(32, 0, 1);
	DRIVER_READS(3, 1);
	test_check(memory, PAGES, 1);
	CHECK(end() > 0);
	test_close();
}

static void read_only(void)
{
	take_writing(by_libc);
}

static void read_only_by_key(void)
{
	take_writing(by_key);
}

/* No access: every page comes home, whoever reads it there may. */
static void take_everything(int (*protect)(void *, size_t, int))
{
	char *memory = begin("window", 2);

	DRIVER_READS(3, 2);
	DRIVER_WRITES(5);
	CHECK_EQ(protect(memory, PAGES * PAGE, PROT_NONE), 0);
	CHECK_EQ(ask(WHERE, 0), 0);
	DRIVER_FAULTS(LOAD, 3);
	DRIVER_FAULTS(STORE, 4);
	CHECK_EQ(protect(memory, PAGES * PAGE, READ), 0);
	CHECK_EQ(*word_of(memory, 5), 1005);
	/* What may not leave the CPU cannot be shown. */
	DRIVER_FAULTS(LOAD, 6);
	CHECK_EQ(protect(memory, PAGES * PAGE, BOTH), 0);
	DRIVER_READS_AGAIN(3, 2);
	DRIVER_READS_AGAIN(4, 2);
	DRIVER_READS_AGAIN(6, 2);
	DRIVER_WRITES(4);
	CHECK_EQ(*word_of(memory, 4), 1004);
	*word_of(memory, 4) = test_word(4, 0, 2);
	*word_of(memory, 5) = test_word(5, 0, 2);
	test_check(memory, PAGES, 2);
	CHECK(end() > 0);
	test_close();
}

static void no_access(void)
{
	take_everything(by_libc);
}

static void no_access_by_key(void)
{
	take_everything(by_key);
}

/* Pages that both read lose reading, too. */
static void no_access_to_a_copy(void)
{
	char *memory = begin("window", 3);

	DRIVER_READS(3, 3);
	test_check(memory, PAGES, 3);
	DRIVER_READS(9, 3);
	CHECK_EQ(mprotect(memory, 8 * PAGE, PROT_NONE), 0);
	DRIVER_FAULTS(LOAD, 3);
	DRIVER_READS(9, 3);
	CHECK_EQ(mprotect(memory, 8 * PAGE, BOTH), 0);
	DRIVER_READS_AGAIN(3, 3);
	test_check(memory, PAGES, 3);
	DRIVER_WRITES(3);
	CHECK_EQ(*word_of(memory, 3), 1003);
	end();
	test_close();
}

/* Piece by piece, with rights that change from page to page. */
static void pieces(void)
{
	static const int rights[] = { PROT_NONE, READ, BOTH };
	char *memory = begin("without-callbacks", 4);

	for (unsigned int round = 0; round < 6; round++) {
		DRIVER_READS(0, 4);
		for (size_t i = 0; i < PAGES; i++)
			CHECK_EQ(mprotect(memory + i * PAGE, PAGE, rights[(i + round) % 3]), 0);
		for (size_t i = 0; i < PAGES; i++) {
			int right = rights[(i + round) % 3];

			if (right == PROT_NONE)
				DRIVER_FAULTS(LOAD, i);
			else
				DRIVER_READS(i, 4);
			if (right == READ)
				DRIVER_FAULTS(STORE, i);
		}
		CHECK_EQ(mprotect(memory, PAGES * PAGE, BOTH), 0);
		for (size_t i = 0; i < PAGES; i++)
			DRIVER_READS_AGAIN(i, 4);
		test_check(memory, PAGES, 4);
		/* From the CPU alone once more, so that the next round begins as the first did. */
		test_home(memory, PAGES);
		CHECK_EQ(ask(MIGRATE, 0), PAGES);
	}
	CHECK_EQ(end(), 0);
	test_close();
}

/* What was closed before anybody had it: the window asked for memory that was protected already. */
static void protected_first(void)
{
	char *memory = begin("window", 5);

	CHECK_EQ(mprotect(memory, 8 * PAGE, PROT_NONE), 0);
	CHECK_EQ(mprotect(memory + 8 * PAGE, 8 * PAGE, READ), 0);
	DRIVER_FAULTS(LOAD, 1);
	DRIVER_FAULTS(LOAD, 9);
	DRIVER_READS(20, 5);
	CHECK_EQ(mprotect(memory, 16 * PAGE, BOTH), 0);
	DRIVER_READS_AGAIN(1, 5);
	DRIVER_READS_AGAIN(9, 5);
	DRIVER_WRITES(9);
	CHECK_EQ(*word_of(memory, 9), 1009);
	end();
	test_close();
}

/* A store that is to be refused, and is allowed before hmmd comes to refuse it (hmmd_broken dawdles: mirror_late_refusal.py). */
static void allowed_meanwhile(void)
{
	char *memory = begin("window", 18);
	uint64_t answer;

	CHECK_EQ(mprotect(memory, 8 * PAGE, READ), 0);
	test_tell(it.socket, STORE | 1 * 8, -1);
	usleep(150000);
	CHECK_EQ(mprotect(memory, 8 * PAGE, BOTH), 0);
	CHECK(test_hear(it.socket, &answer, NULL));
	CHECK_EQ(answer, 1001);
	CHECK_EQ(*word_of(memory, 1), 1001);
	end();
	test_close();
}

/* A call that the kernel refuses changes nothing, and errno is the kernel's. */
static void refused(void)
{
	char *memory = begin("window", 6);

	DRIVER_WRITES(3);
	errno = 0;
	CHECK_EQ(mprotect(memory, (PAGES + 100) * PAGE, PROT_READ | PROT_EXEC | 0x100), -1);
	CHECK_EQ(errno, EINVAL);
	CHECK_EQ(mprotect(memory + 1, PAGE, READ), -1);
	CHECK_EQ(errno, EINVAL);
	CHECK_EQ(pkey_mprotect(memory, PAGE, READ, 77), -1);
	CHECK_EQ(errno, EINVAL);
	CHECK_EQ(mprotect(memory, 0, READ), 0);
	errno = 5;
	CHECK_EQ(mprotect(memory, PAGES * PAGE, BOTH), 0);
	CHECK_EQ(errno, 5);
	DRIVER_WRITES(4);
	CHECK_EQ(*word_of(memory, 3), 1003);
	CHECK_EQ(*word_of(memory, 4), 1004);
	end();
	test_close();
}

/* One that the kernel stops in the middle of has changed what lies before. */
static void refused_half_way(void)
{
	char *memory = begin("window", 16);

	DRIVER_WRITES(5);
	DRIVER_WRITES(40);
	CHECK_EQ(munmap(memory + 32 * PAGE, 4 * PAGE), 0);
	errno = 0;
	CHECK_EQ(mprotect(memory, PAGES * PAGE, READ), -1);
	CHECK_EQ(errno, ENOMEM);
	DRIVER_FAULTS(STORE, 5);
	CHECK_EQ(*word_of(memory, 5), 1005);
	DRIVER_WRITES(40);
	errno = 0;
	CHECK_EQ(pkey_mprotect(memory, PAGES * PAGE, BOTH, -1), -1);
	CHECK_EQ(errno, ENOMEM);
	CHECK_EQ(ask_again(STORE, 5), 1005);
	/* More than there are addresses changes nothing. */
	CHECK_EQ(mprotect(memory, -(4 * PAGE), READ), -1);
	CHECK_EQ(errno, ENOMEM);
	DRIVER_WRITES(6);
	end();
	test_close();
}

/* What may be written and not read is not a device's, which cannot do the one without the other. */
static void write_only(void)
{
	char *memory = begin("window", 17);

	DRIVER_READS(3, 17);
	DRIVER_WRITES(5);
	CHECK_EQ(mprotect(memory, PAGES * PAGE, PROT_WRITE), 0);
	DRIVER_FAULTS(STORE, 5);
	DRIVER_FAULTS(LOAD, 3);
	CHECK_EQ(ask(WHERE, 0), 0);
	CHECK_EQ(mprotect(memory, PAGES * PAGE, BOTH), 0);
	CHECK_EQ(*word_of(memory, 5), 1005);
	DRIVER_READS_AGAIN(3, 17);
	DRIVER_WRITES_AGAIN(5);
	end();
	test_close();
}

/* Asked of the kernel itself, nobody hears of it: found out when the window next asks for the page. */
static void unannounced(void)
{
	char *memory = begin("window", 7);

	DRIVER_READS(3, 7);
	/* A page of the block that the window has to ask for again. */
	CHECK_EQ(*word_of(memory, 8), test_word(8, 0, 7));
	CHECK_EQ(*word_of(memory, 9), test_word(9, 0, 7));
	CHECK_EQ(by_kernel(memory, 32 * PAGE, READ), 0);
	DRIVER_FAULTS(STORE, 8);
	CHECK_EQ(*word_of(memory, 8), test_word(8, 0, 7));
	CHECK_EQ(by_kernel(memory, 32 * PAGE, BOTH), 0);
	/* Closed until something is said of it; including says it. */
	DRIVER_FAULTS(LOAD, 8);
	CHECK_EQ(hmm_include(hmm, (unsigned long)memory, 32 * PAGE), 0);
	DRIVER_READS_AGAIN(8, 7);
	DRIVER_WRITES(8);
	CHECK_EQ(*word_of(memory, 8), 1008);
	end();
	test_close();
}

/* A page of the device that its window asks for is looked at first. */
static void unannounced_on_the_device(void)
{
	char *memory = begin("window", 8);

	DRIVER_READS(3, 8);
	CHECK_EQ(ask(MIGRATE, 0), PAGES);
	/*
	 * Shared, taken back by the driver, and so guarded: what is not mapped is asked for. The
	 * pages behind came with it, those around the third by the kernel's own doing.
	 */
	CHECK_EQ(*word_of(memory, 40), test_word(40, 0, 8));
	DRIVER_WRITES(40);
	/* (A touch of before that is served late finds it out as well: then they are home already.) */
	CHECK_EQ(by_kernel(memory, PAGES * PAGE, PROT_NONE), 0);
	DRIVER_FAULTS(LOAD, 20);
	CHECK_EQ(ask(WHERE, 0), 0);
	CHECK_EQ(by_kernel(memory, PAGES * PAGE, BOTH), 0);
	CHECK_EQ(*word_of(memory, 40), 1040);
	CHECK_EQ(*word_of(memory, 20), test_word(20, 0, 8));
	end();
	test_close();
}

/* Pages that were closed open again when the memory is another's; nothing of the former is seen. */
static void closed_then_mapped_anew(void)
{
	char *memory = begin("window", 9);

	DRIVER_READS(3, 9);
	CHECK_EQ(munmap(memory + 8 * PAGE, 8 * PAGE), 0);
	/* The event is applied before the next request is answered. */
	hmm_device_read(&mirror, (unsigned long)memory, &(char){ 0 }, 1);
	DRIVER_FAULTS(LOAD, 9);
	CHECK(mremap(memory + 24 * PAGE, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 8 * PAGE) ==
	      memory + 8 * PAGE);
	hmm_device_read(&mirror, (unsigned long)memory, &(char){ 0 }, 1);
	CHECK_EQ(ask_again(LOAD, 9), test_word(25, 0, 9));
	DRIVER_WRITES(9);
	CHECK_EQ(*word_of(memory, 9), 1009);
	DRIVER_FAULTS(LOAD, 25);
	end();
	test_close();
}

/* Again and again: what the driver has written when the call returns stays, and no more comes. */
static void storm(void)
{
	char *memory = begin("window", 10);
	uint64_t rounds = 200;

	for (uint64_t round = 0; round < rounds; round++) {
		size_t page = round % PAGES;
		uint64_t before;

		CHECK_EQ(ask_again(STORE, page), page + 1000);
		CHECK_EQ(mprotect(memory, PAGES * PAGE, round % 2 ? READ : PROT_NONE), 0);
		DRIVER_FAULTS(STORE, (page + 1) % PAGES);
		CHECK_EQ(mprotect(memory, PAGES * PAGE, BOTH), 0);
		before = *word_of(memory, page);
		CHECK_EQ(before, page + 1000);
		*word_of(memory, page) = round;
		CHECK_EQ(ask_again(LOAD, page), round);
	}
	end();
	test_close();
}

#define RACE_ROUNDS 300
#define RACE_WRITES 1000U

static uint64_t written(char *memory)
{
	uint64_t writes = 0;

	for (size_t i = 0; i < PAGES; i++)
		writes += *word_of(memory, i);
	return writes;
}

/*
 * A driver writes all the time, while rights come and go: when mprotect() has returned not one
 * write more arrives, and in the end every write that was done is there.
 */
static void race(const char *name)
{
	char *memory = begin(name, 14);
	const char *given = getenv("HMM_TEST_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) | 1 : (uint64_t)getpid() << 20 | 1;
	uint64_t before[PAGES], faults, writes;

	printf("HMM_TEST_SEED=%lu\n", seed);
	for (size_t i = 0; i < PAGES; i++)
		*word_of(memory, i) = 0;
	test_tell(it.socket, RUN | (1 + draw(&seed) % 1000) * 8, -1);
	/* On a busy machine the driver may hardly have run by then. */
	for (int round = 0; round < RACE_ROUNDS || (round < 20 * RACE_ROUNDS && written(memory) <= RACE_WRITES); round++) {
		size_t first = draw(&seed) % PAGES, n = 1 + draw(&seed) % (PAGES - first);
		char *start = memory + first * PAGE;

		usleep(draw(&seed) % 2000);
		if (draw(&seed) % 3 == 0)
			CHECK_EQ(mprotect(start, n * PAGE, PROT_NONE), 0);
		CHECK_EQ(mprotect(start, n * PAGE, READ), 0);
		for (size_t i = first; i < first + n; i++)
			before[i] = *word_of(memory, i);
		usleep(draw(&seed) % 300);
		for (size_t i = first; i < first + n; i++)
			if (*word_of(memory, i) != before[i])
				FAIL("round %d: page %zu was written after mprotect", round, i);
		CHECK_EQ(mprotect(start, n * PAGE, BOTH), 0);
	}
	/* Told something else it first says how it was. */
	test_tell(it.socket, WHERE, -1);
	CHECK(test_hear(it.socket, &faults, NULL));
	CHECK(test_hear(it.socket, &writes, NULL));
	writes = 0;
	for (size_t i = 0; i < PAGES; i++) {
		uint64_t last = ask(STORED, i);

		CHECK_EQ(*word_of(memory, i), last);
		writes += last;
	}
	printf("%lu writes, %lu faults\n", writes, faults);
	CHECK(writes > RACE_WRITES);
	end();
	test_close();
}

static void while_it_writes(void)
{
	race("without-callbacks");
}

static void while_it_writes_and_answers(void)
{
	race("window");
}

/* ---- without a window ---------------------------------------------------------------------- */

static void access_in_the_middle(void)
{
	char bytes[4 * PAGE], *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_in_block(8);
	test_fill(memory, 8, 11);
	test_out(memory, 8);
	CHECK_EQ(mprotect(memory + 2 * PAGE, 2 * PAGE, READ), 0);
	CHECK_EQ(mprotect(memory + 6 * PAGE, PAGE, PROT_NONE), 0);
	memset(bytes, 'x', sizeof(bytes));
	/* Nothing is changed; up to the page that fails; and not behind it. */
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 2 * PAGE, bytes, PAGE), -EPERM);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 6 * PAGE, bytes, PAGE), -EFAULT);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + PAGE, bytes, 4 * PAGE), PAGE);
	CHECK_EQ(memory[PAGE], 'x');
	CHECK_EQ(*word_of(memory, 2), test_word(2, 0, 11));
	CHECK_EQ(*word_of(memory, 4), test_word(4, 0, 11));
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 6 * PAGE, bytes, PAGE), -EFAULT);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 4 * PAGE, bytes, 4 * PAGE), 2 * PAGE);
	CHECK(!memcmp(bytes, memory + 4 * PAGE, 2 * PAGE));
	CHECK_EQ(bytes[2 * PAGE], 'x');
	CHECK_EQ(mprotect(memory, 8 * PAGE, BOTH), 0);
	memset(memory + PAGE, 0, PAGE);
	for (size_t i = 0; i < 512; i++)
		word_of(memory, 1)[i] = test_word(1, i, 11);
	test_check(memory, 8, 11);
	test_close();
}

/*
 * Where nothing was ever mirrored there are pages of a device after mremap(): a protection of theirs is followed, also
 * one that comes the moment after.
 */
static void moved(bool at_once, int rights)
{
	char *memory, *there;
	char byte;

	test_open(0, DEVICE_MEMORY);
	for (uint64_t round = 0; round < (at_once ? 20 : 1); round++) {
		memory = test_map_in_block(PAGES);
		there = test_map_in_block(PAGES);
		test_fill(memory, PAGES, 15);
		test_out(memory, PAGES);
		CHECK(mremap(memory, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there) == there);
		/* Its event is applied before the next request is answered. */
		if (!at_once)
			hmm_device_read(&mirror, (unsigned long)there, &byte, 1);
		CHECK_EQ(mprotect(there, PAGES * PAGE, rights), 0);
		hmm_device_read(&mirror, (unsigned long)there, &byte, 1);
		for (size_t i = 0, tries = 0; i < PAGES; i++) {
			while (at_once && hmm_mirror_lookup(&mirror, (unsigned long)there + i * PAGE) &&
			       tries++ < (size_t)test_scaled(10000))
				usleep(1000);
			CHECK_EQ(hmm_mirror_lookup(&mirror, (unsigned long)there + i * PAGE), 0);
		}
		CHECK_EQ(mprotect(there, PAGES * PAGE, BOTH), 0);
		test_check(there, PAGES, 15);
	}
	test_close();
}

static void moved_then_read_only(void)
{
	moved(false, READ);
}

static void moved_then_no_access(void)
{
	moved(false, PROT_NONE);
}

static void moved_and_read_only_at_once(void)
{
	moved(true, READ);
}

/* In the owner's own callback, too, which hmmd waits for: it must not wait for itself. */
static char *from_inside;

static int protect_inside(struct hmm_mirror *me, const struct hmm_update *update)
{
	if (from_inside)
		CHECK_EQ(mprotect(from_inside, 8 * PAGE, READ), 0);
	return 0;
}

static const struct hmm_mirror_ops protecting = { .size = sizeof(protecting),
						  .sync_cpu_device_pagetables = protect_inside };

static void inside_a_callback(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	mirror.ops = &protecting;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	memory = test_map_in_block(16);
	test_fill(memory, 16, 12);
	test_out(memory, 16);
	from_inside = memory;
	test_home(memory + 8 * PAGE, 8);
	from_inside = NULL;
	CHECK_EQ(mprotect(memory, 16 * PAGE, BOTH), 0);
	test_check(memory, 16, 12);
	test_close();
}

/* One that hmm_close() waits for, with its lock held. */
static void inside_a_callback_at_the_end(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	mirror.ops = &protecting;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
	memory = test_map_in_block(16);
	test_fill(memory, 16, 13);
	test_out(memory, 16);
	from_inside = memory;
	hmm_close(hmm);
	from_inside = NULL;
	CHECK_EQ(mprotect(memory, 16 * PAGE, BOTH), 0);
	test_check(memory, 16, 13);
}

/* ---- around a fork ---------------------------------------------------------------------------- */

static char *forked_memory;

static void protect_both_ways(void)
{
	CHECK_EQ(mprotect(forked_memory, PAGE, PROT_READ), 0);
	CHECK_EQ(mprotect(forked_memory, PAGE, PROT_READ | PROT_WRITE), 0);
}

/* The program's handlers run while the library holds everything for the fork. */
static void in_fork_handlers(void)
{
	pid_t child;

	/* Before the library's own: so the handlers behind a fork run while it still holds its lock. */
	CHECK_EQ(pthread_atfork(protect_both_ways, protect_both_ways, protect_both_ways), 0);
	test_open(0, DEVICE_MEMORY);
	forked_memory = test_map(8);
	test_fill(forked_memory, 8, 3);
	test_out(forked_memory, 8);
	child = fork();
	if (!child) {
		test_check(forked_memory, 8, 3);
		_exit(0);
	}
	test_reap(child, 0);
	test_check(forked_memory, 8, 3);
	test_close();
}

/* No handler runs at all, and what the child has of the library is a copy. */
static void in_a_raw_clone(void)
{
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	forked_memory = test_map(8);
	test_fill(forked_memory, 8, 4);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		protect_both_ways();
		if (mremap(forked_memory + 4 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, forked_memory + 5 * PAGE) ==
		    MAP_FAILED)
			_exit(2);
		_exit(0);
	}
	test_reap(child, 0);
	protect_both_ways();
	test_check(forked_memory, 8, 4);
	test_close();
}

/* Many threads at once, while the handle is opened and closed: each call is done, none hangs. */
static _Atomic int ended;

static void *protect_on(void *data)
{
	char *memory = data;

	while (!atomic_load(&ended)) {
		CHECK_EQ(mprotect(memory, 4 * PAGE, READ), 0);
		CHECK_EQ(mprotect(memory, 4 * PAGE, BOTH), 0);
		*word_of(memory, 1) += 1;
	}
	return NULL;
}

static void while_it_opens_and_closes(void)
{
	pthread_t threads[4];
	char *memory = test_map_in_block(16 + 4 * 4);

	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, protect_on, memory + (16 + 4 * (size_t)i) * PAGE), 0);
	for (uint64_t round = 0; round < 20; round++) {
		test_open(0, DEVICE_MEMORY);
		test_fill(memory, 16, round);
		/* As far as the others' calls let it. */
		test_migrate(memory, 16, HMM_DEVICE, NULL);
		test_migrate(memory + 16 * PAGE, 16, HMM_DEVICE, NULL);
		CHECK_EQ(mprotect(memory, 16 * PAGE, READ), 0);
		test_check(memory, 16, round);
		CHECK_EQ(mprotect(memory, 16 * PAGE, BOTH), 0);
		test_close();
	}
	atomic_store(&ended, 1);
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
}

static const struct test_case cases[] = {
	{ "read-only", read_only, false }, { "read-only-by-key", read_only_by_key, false },
	{ "no-access", no_access, false }, { "no-access-by-key", no_access_by_key, false },
	{ "no-access-to-a-copy", no_access_to_a_copy, false }, { "pieces", pieces, false },
	{ "protected-first", protected_first, false }, { "refused", refused, false },
	{ "allowed-meanwhile", allowed_meanwhile, true },
	{ "refused-half-way", refused_half_way, false }, { "write-only", write_only, false },
	{ "moved-then-read-only", moved_then_read_only, false },
	{ "moved-then-no-access", moved_then_no_access, false },
	{ "moved-and-read-only-at-once", moved_and_read_only_at_once, false },
	{ "unannounced", unannounced, false }, { "unannounced-on-the-device", unannounced_on_the_device, false },
	{ "closed-then-mapped-anew", closed_then_mapped_anew, false }, { "storm", storm, false },
	{ "while-it-writes", while_it_writes, false },
	{ "while-it-writes-and-answers", while_it_writes_and_answers, false },
	{ "access-in-the-middle", access_in_the_middle, false }, { "inside-a-callback", inside_a_callback, false },
	{ "inside-a-callback-at-the-end", inside_a_callback_at_the_end, false },
	{ "in-fork-handlers", in_fork_handlers, false }, { "in-a-raw-clone", in_a_raw_clone, false },
	{ "while-it-opens-and-closes", while_it_opens_and_closes, false }, { NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "window", driver, false }, { "without-callbacks", driver_without_callbacks, false },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
