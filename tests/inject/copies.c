// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * copies.c - scenarios of what leaves the owner's memory where it is: a tracked mirror's copies, and what was
 * written; and of what has to bring all of it home: a drain, and forks while a driver has the bytes. As in client.c:
 * hmmd may refuse what it is asked, in words; the bytes are right, and no write is missed.
 */
#include "client.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* The range, which nothing pins; whether hmmd has noted that decides how much is presumed, and nothing else. */
static char *begin_tracked(size_t pages)
{
	struct hmm_advise_options options = { .size = sizeof(options) };
	char *memory = test_map(pages);
	int r;

	fill_and_open(memory, pages);
	r = hmm_advise(hmm, (unsigned long)memory, pages * PAGE, HMM_ADVISE_UNPINNED, &options);
	CHECK(!r || *hmm_last_error());
	return memory;
}

/* ---- copies ------------------------------------------------------------------------------ */

static struct hmm_mirror replica;

/* What hmmd says that it copied is the same by then. */
static void bring_up_to_date(const char *memory, size_t pages)
{
	struct hmm_sync_report report = { 0 };
	long n = -EBUSY;
	const char *copy;

	for (int tries = 0; n < 0 && tries < 3; tries++)
		n = hmm_mirror_sync(&replica, (unsigned long)memory, pages * PAGE, 0, &report);
	if (n < 0) {
		printf("hmm_mirror_sync: %s\n", hmm_last_error());
		CHECK(*hmm_last_error());
		return;
	}
	CHECK_EQ(report.pages, pages);
	CHECK_EQ(n, report.copied + report.zeroed);
	copy = hmm_mirror_copy(&replica, (unsigned long)memory);
	CHECK(copy);
	for (size_t i = 0; i < pages; i++)
		if (memcmp(copy + i * PAGE, memory + i * PAGE, PAGE))
			FAIL("page %zu of the copy differs", i);
}

static bool track(const char *memory, size_t pages)
{
	int r = hmm_mirror_track(&replica, (unsigned long)memory, pages * PAGE, 0);

	CHECK(!r || *hmm_last_error());
	if (r)
		printf("hmm_mirror_track: %s\n", hmm_last_error());
	return !r;
}

void synced(void)
{
	struct hmm_device_options options = {
		.size = sizeof(options), .name = "inject-replica", .memory = DEVICE_MEMORY, .node = -1,
	};
	static const struct hmm_mirror_ops ops = { .size = sizeof(ops), .flags = HMM_MIRROR_TRACKED };
	size_t pages = 700;
	char *memory = begin_tracked(pages);
	int r = hmm_device_new(hmm, &options, &replica.device);

	/* Some of it is on another device. */
	move(memory, 100, HMM_DEVICE);
	replica.ops = &ops;
	if (!r)
		r = hmm_mirror_register(&replica, hmm);
	CHECK(!r || *hmm_last_error());
	for (int round = 0; !r && round < 2; round++) {
		if (!track(memory, pages))
			continue;
		bring_up_to_date(memory, pages);
		for (size_t i = 0; i < pages; i += 1 + i % 5)
			*(volatile uint64_t *)(memory + i * PAGE + 8 * (i % 512)) += 0;
		madvise(memory + 500 * PAGE, 100 * PAGE, MADV_DONTNEED);
		test_check_zero(memory + 550 * PAGE, 20);
		bring_up_to_date(memory, pages);
		test_fill(memory + 500 * PAGE, 100, 7);
		memset(memory + 100 * PAGE, 0x5a, 50 * PAGE);
		bring_up_to_date(memory, 300);
		bring_up_to_date(memory, pages);
		test_check(memory, 100, 1);
		test_check(memory + 500 * PAGE, 100, 7);
		r = hmm_mirror_untrack(&replica, (unsigned long)memory, pages * PAGE);
		CHECK(!r || *hmm_last_error());
	}
	r = replica.device ? hmm_mirror_unregister(&replica) : 0;
	if (r)
		printf("unregister: %s\n", hmm_last_error());
	hmm_device_put(replica.device);
	test_check(memory, 100, 1);
	close_all();
	check_and_rewrite(memory, 100, 1);
}

/* ---- what was written ----------------------------------------------------------------------- */

#define LOOK_PAGES 700U

/* What is written and not yet told by a call that ended well is told by the next one that does. */
static void look(struct hmm_dirty *dirty, const char *memory, bool *written)
{
	static uint64_t bitmap[LOOK_PAGES / 64 + 1];
	struct hmm_dirty_report report = { 0 };
	long n = hmm_dirty_read(dirty, (unsigned long)memory, LOOK_PAGES * PAGE, HMM_DIRTY_CLEAR, bitmap, &report);

	if (n < 0) {
		printf("hmm_dirty_read: %s\n", hmm_last_error());
		CHECK(*hmm_last_error());
		return;
	}
	for (size_t i = 0; i < LOOK_PAGES; i++) {
		CHECK(!written[i] || bitmap[i / 64] >> i % 64 & 1);
		written[i] = false;
	}
}

void watched(void)
{
	char *memory = begin_tracked(LOOK_PAGES);
	static bool written[LOOK_PAGES];
	struct hmm_dirty *dirty = NULL;
	int r;

	move(memory, 100, HMM_DEVICE);
	for (int round = 0; round < 2; round++) {
		r = hmm_dirty_start(hmm, (unsigned long)memory, LOOK_PAGES * PAGE, 0, &dirty);
		CHECK(!r || *hmm_last_error());
		if (r)
			continue;
		memset(written, 1, sizeof(written));
		for (size_t pass = 1; pass < 6; pass++) {
			look(dirty, memory, written);
			for (size_t i = pass; i < LOOK_PAGES; i += pass * 7) {
				*(volatile uint64_t *)(memory + i * PAGE) = test_word(i, 0, 1);
				written[i] = true;
			}
			if (pass == 3)
				CHECK(mprotect(memory + 200 * PAGE, 20 * PAGE, PROT_READ) == 0 &&
				      mprotect(memory + 200 * PAGE, 20 * PAGE, PROT_READ | PROT_WRITE) == 0);
		}
		look(dirty, memory, written);
		test_check(memory, LOOK_PAGES, 1);
		r = hmm_dirty_stop(dirty);
		CHECK(!r || *hmm_last_error());
	}
	close_all();
	check_and_rewrite(memory, LOOK_PAGES, 1);
}

/* ---- all of it comes home ------------------------------------------------------------------- */

/* By this program, and then by an administrator. */
void drained(void)
{
	char *huge = test_map_huge(2), *small = test_map(300), line[16];
	long n;

	test_fill(huge, 2 * 512, 1);
	test_fill(small, 300, 2);
	if (!open_or_refused(DEVICE_MEMORY)) {
		puts("out");
		CHECK(fgets(line, sizeof(line), stdin));
		_exit(REFUSED);
	}
	move(huge, 2 * 512, HMM_DEVICE);
	move(small, 300, HMM_DEVICE);
	n = hmm_drain(&mirror);
	CHECK(n >= 0 || *hmm_last_error());
	test_check(small, 300, 2);
	move(huge, 2 * 512, HMM_DEVICE);
	move(small, 300, HMM_DEVICE);
	puts("out");
	CHECK(fgets(line, sizeof(line), stdin));
	test_check(huge, 2 * 512, 1);
	move(small, 300, HMM_DEVICE);
	test_check(small, 300, 2);
	close_all();
	check_and_rewrite(huge, 2 * 512, 1);
	check_and_rewrite(small, 300, 2);
}

/* ---- a child of an owner whose bytes a driver has ---------------------------------------------- */

/* True: a raw fork's child got SIGBUS, for its driver was not heard in time (LIMITS 31): only with a call that failed. */
static bool give_birth(char *memory, size_t pages, bool raw)
{
	int status = 0;
	pid_t child = raw ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();

	CHECK(child >= 0);
	if (child == 0) {
		test_check(memory, pages, 1);
		test_fill(memory, pages, 2);
		test_check(memory, pages, 2);
		_exit(0);
	}
	test_check(memory, pages / 2, 1);
	CHECK_EQ(waitpid(child, &status, 0), child);
	if (status && !(raw && WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS))
		FAIL("the child ended with status %#x", (unsigned int)status);
	test_check(memory, pages, 1);
	return status;
}

void farfork(void)
{
	size_t pages = 400;
	bool late = false;
	int socket, status;
	pid_t driver;
	char *memory = start_engine(pages, &socket, &driver);

	for (int round = 0; round < 2; round++) {
		driver_takes(socket, memory, pages);
		late |= give_birth(memory, pages, round);
	}
	driver_takes(socket, memory, pages);
	close(socket);
	CHECK_EQ(waitpid(driver, &status, 0), driver);
	if (status != 0 && status != REFUSED << 8)
		FAIL("the driver ended with status %#x", (unsigned int)status);
	test_check(memory, pages, 1);
	close_all();
	check_and_rewrite(memory, pages, 1);
	/* Only with a call that failed. */
	if (status || late)
		_exit(REFUSED);
}
