/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * loss.c - pages that a driver has lost, and drivers that die with pages: exactly those are SIGBUS, for
 * the owner and for its children, and never zeros.
 */
#include "copyengine.h"
#include "driver.h"
#include "mirror.h"

#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

static void lost(_Atomic unsigned long *how)
{
	char *memory;

	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	atomic_store(how, (unsigned long)memory + 20 * PAGE);
	CHECK(test_lost(memory + 20 * PAGE));
	CHECK(test_lost(memory + 20 * PAGE));
	test_check(memory, 20, 1);
	test_part(memory, 21, 64, 1);
	CHECK_EQ(engine_entry(memory + 20 * PAGE), HMM_ENTRY_ERROR);
	copyengine_ask(engine, COMMAND_READ, memory + 20 * PAGE, 1);
	CHECK_EQ(board->result, -EIO);
	/* It does not migrate, and nothing else minds. */
	CHECK_EQ(copyengine_ask(engine, COMMAND_OUT, memory, 64), 63);
	CHECK_EQ(board->results[20], HMM_MIGRATE_ERROR);
	CHECK(test_lost(memory + 20 * PAGE));
	/* A program that throws it away has memory again. */
	CHECK_EQ(madvise(memory + 20 * PAGE, PAGE, MADV_DONTNEED), 0);
	test_check_zero(memory + 20 * PAGE, 1);
	test_fill(memory, 64, 2);
	test_check(memory, 64, 2);
}

static void sigbus(void)
{
	engine_begin("sigbus");
	lost(&board->sigbus);
	engine_end();
}

static void liar(void)
{
	engine_begin("liar");
	lost(&board->liar);
	engine_end();
}

/* It stays lost when its owner has nothing to do with hmmd any more. */
static void lost_for_good(void)
{
	char *memory;

	engine_begin("lost-for-good");
	memory = test_map(8);
	test_fill(memory, 8, 1);
	engine_out(memory, 8);
	atomic_store(&board->sigbus, (unsigned long)memory + 3 * PAGE);
	test_check(memory, 3, 1);
	CHECK(test_lost(memory + 3 * PAGE));
	test_part(memory, 4, 8, 1);
	engine_end();
	CHECK(test_lost(memory + 3 * PAGE));
	test_check(memory, 3, 1);
	test_part(memory, 4, 8, 1);
}

static void driver_dies(void)
{
	char *memory;
	unsigned int n = 0;

	engine_begin("driver-dies");
	memory = test_map(600);
	test_fill(memory, 600, 1);
	engine_out(memory + 100 * PAGE, 400);
	test_check(memory, 150, 1);
	kill(driver, SIGKILL);
	test_reap(driver, SIGKILL);
	for (int i = 0; i < 600; i++) {
		bool gone = test_lost(memory + i * PAGE);

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
	engine_out(memory, 600);
	test_check(memory, 600, 2);
	engine_end();
}

static void *touch(void *page)
{
	return (void *)(uintptr_t)test_lost(page);
}

/* Whoever waits for a page finds that it is lost; one that was unmapped meanwhile is nobody's. */
static void driver_dies_in_fetch(void)
{
	pthread_t helper;
	char *memory;
	void *gone;

	engine_begin("driver-dies-in-fetch");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 32);
	atomic_store(&board->hold_fault, true);
	CHECK_EQ(pthread_create(&helper, NULL, touch, memory + 7 * PAGE), 0);
	while (!atomic_load(&board->in_fault))
		usleep(1000);
	CHECK_EQ(munmap(memory + 20 * PAGE, 12 * PAGE), 0);
	kill(driver, SIGKILL);
	test_reap(driver, SIGKILL);
	CHECK_EQ(pthread_join(helper, &gone), 0);
	CHECK(gone);
	test_part(memory, 32, 64, 1);
	for (int i = 0; i < 20; i++)
		CHECK(test_lost(memory + i * PAGE));
	close(engine);
	test_close();
}

/* An answer that comes late: what was unmapped meanwhile is freed, the rest is there. */
static void unmapped_in_fetch(void)
{
	pthread_t helper;
	char *memory;
	void *gone;

	engine_begin("unmapped-in-fetch");
	memory = test_map_huge(1);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	atomic_store(&board->hold_fault, true);
	CHECK_EQ(pthread_create(&helper, NULL, touch, memory + 7 * PAGE), 0);
	while (!atomic_load(&board->in_fault))
		usleep(1000);
	CHECK_EQ(munmap(memory + 20 * PAGE, 12 * PAGE), 0);
	CHECK_EQ(madvise(memory + 8 * PAGE, 2 * PAGE, MADV_DONTNEED), 0);
	atomic_store(&board->hold_fault, false);
	CHECK_EQ(pthread_join(helper, &gone), 0);
	CHECK(!gone);
	test_part(memory, 0, 8, 1);
	test_check_zero(memory + 8 * PAGE, 2);
	test_part(memory, 10, 20, 1);
	test_part(memory, 32, 64, 1);
	engine_end();
}

static void driver_dies_in_store(void)
{
	char *memory;

	engine_begin("driver-dies-in-store");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	atomic_store(&board->hold_store, true);
	board->addr = (unsigned long)memory;
	board->pages = 64;
	test_tell(engine, COMMAND_OUT, -1);
	while (!atomic_load(&board->in_store))
		usleep(1000);
	kill(driver, SIGKILL);
	test_reap(driver, SIGKILL);
	test_check(memory, 64, 1);
	close(engine);
	test_close();
	test_check(memory, 64, 1);
}

/* Onto what another device has: a block has one holder, and hmmd can't ask the driver just then. */
static void remapped_onto_another(void)
{
	struct hmm_mirror other = { 0 };
	struct hmm_device *device;
	char *memory, *room;

	engine_begin("remapped-onto-another");
	device = test_device("the-other", DEVICE_MEMORY);
	test_mirror(&other, device);
	memory = test_map(8);
	room = test_map_huge(1);
	test_fill(memory, 8, 1);
	test_fill(room, 512, 2);
	engine_out(memory, 8);
	CHECK_EQ(hmm_migrate(&other, (unsigned long)room, 512 * PAGE, HMM_DEVICE, 0, NULL, NULL), 512);
	CHECK(mremap(memory, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + 100 * PAGE) ==
	      room + 100 * PAGE);
	for (int i = 0; i < 8; i++)
		CHECK(test_lost(room + (100 + i) * PAGE));
	test_check(room, 100, 2);
	engine_unused();
	CHECK_EQ(hmm_mirror_unregister(&other), 0);
	hmm_device_put(device);
	engine_end();
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
	engine_out(memory, 32);
	atomic_store(&board->hold_fault, late);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		if (late && (!test_lost(memory) || !test_lost(memory + 31 * PAGE)))
			_exit(1);
		test_part(memory, late ? 32 : 0, 64, 1);
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
	engine_begin("cloned");
	clone_raw(false);
	engine_end();
}

/* What is lost just then is lost to both. */
static void cloned_lost(void)
{
	char *memory;
	pid_t child;

	engine_begin("cloned-lost");
	if (!(hmm_features(hmm) & HMM_HAS_EVENT_FORK))
		test_skip("raw forks are not seen here");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 32);
	atomic_store(&board->sigbus, (unsigned long)memory + 5 * PAGE);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		test_part(memory, 0, 5, 1);
		test_part(memory, 6, 64, 1);
		_exit(test_lost(memory + 5 * PAGE) ? 0 : 1);
	}
	test_reap(child, 0);
	test_part(memory, 0, 5, 1);
	CHECK(test_lost(memory + 5 * PAGE));
	test_part(memory, 6, 64, 1);
	engine_end();
}

static void cloned_late(void)
{
	engine_begin("cloned-late");
	clone_raw(true);
	engine_end();
}

/* Others come and go while the driver thinks. */
static void *come_and_go(void *nothing)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", getenv("HMM_SOCKET"));
	for (int i = 0; i < 50; i++) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

		CHECK(fd >= 0 && !connect(fd, (struct sockaddr *)&address, sizeof(address)));
		close(fd);
		usleep(1000);
	}
	atomic_store(&board->hold_fault, false);
	return nothing;
}

static void cloned_among_strangers(void)
{
	pthread_t strangers;
	char *memory;
	pid_t child;

	engine_begin("cloned-among-strangers");
	if (!(hmm_features(hmm) & HMM_HAS_EVENT_FORK))
		test_skip("raw forks are not seen here");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 32);
	atomic_store(&board->hold_fault, true);
	CHECK(!pthread_create(&strangers, NULL, come_and_go, NULL));
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		test_check(memory, 64, 1);
		_exit(0);
	}
	test_reap(child, 0);
	pthread_join(strangers, NULL);
	test_check(memory, 64, 1);
	engine_end();
}

/* What is on its way home, on another device, when the fork comes: the child gets that, too. */
static void cloned_on_the_way_home(void)
{
	char *memory, *elsewhere;
	pthread_t helper;
	pid_t child;
	void *gone;

	engine_begin("cloned-home");
	if (!(hmm_features(hmm) & HMM_HAS_EVENT_FORK))
		test_skip("raw forks are not seen here");
	memory = test_map(64);
	elsewhere = test_map_huge(1);
	test_fill(memory, 64, 1);
	test_fill(elsewhere, 512, 2);
	engine_out(memory, 32);
	test_out(elsewhere, 512);
	/* Its pages wait for the driver's answer. */
	atomic_store(&board->hold_answer, true);
	CHECK_EQ(pthread_create(&helper, NULL, touch, elsewhere + 7 * PAGE), 0);
	while (!atomic_load(&board->in_answer))
		usleep(1000);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		test_part(elsewhere, 0, 512, 2);
		test_part(memory, 0, 64, 1);
		_exit(0);
	}
	usleep(200000);
	atomic_store(&board->hold_answer, false);
	test_reap(child, 0);
	CHECK_EQ(pthread_join(helper, &gone), 0);
	CHECK(!gone);
	test_check(elsewhere, 512, 2);
	test_check(memory, 64, 1);
	engine_end();
}

/* No page to put the bytes in: the driver is told NULL, says so, and is asked again. Nothing is lost by it. */
static void no_page(void)
{
	char *memory;

	engine_begin("no-page");
	memory = test_map(64);
	test_fill(memory, 64, 1);
	engine_out(memory, 64);
	atomic_store(&board->no_page, 5);
	test_check(memory, 64, 1);
	CHECK_EQ(board->no_page, 0);
	CHECK(board->faults >= 6);
	engine_end();
}

static const struct test_case cases[] = {
	{ "no-page", no_page, false },
	{ "sigbus", sigbus, false }, { "liar", liar, false },
	{ "lost-for-good", lost_for_good, false }, { "driver-dies", driver_dies, false },
	{ "driver-dies-in-fetch", driver_dies_in_fetch, false },
	{ "unmapped-in-fetch", unmapped_in_fetch, false },
	{ "driver-dies-in-store", driver_dies_in_store, false },
	{ "remapped-onto-another", remapped_onto_another, false }, { "cloned", cloned, false },
	{ "cloned-among-strangers", cloned_among_strangers, false },
	{ "cloned-on-the-way-home", cloned_on_the_way_home, false },
	{ "cloned-late", cloned_late, false }, { "cloned-lost", cloned_lost, false },
	{ NULL, NULL, false },
};

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[2], "driver")) {
		copyengine_main(argv[1]);
		return 0;
	}
	return test_main(argc, argv, cases);
}
