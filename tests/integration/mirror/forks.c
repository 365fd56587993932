/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * forks.c - an owner that forks while a driver in another process wants its pages all the time,
 * and knows of no fork: every child begins with its parent's bytes.
 */
#include "driver.h"
#include "mirror.h"

#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>

#define DEVICE_MEMORY (64UL << 20)
#define PAGES 256U
#define FORKS 40

static const struct hmm_mirror_ops none = { .size = sizeof(none) };

static bool is_told(int socket)
{
	struct pollfd wait = { .fd = socket, .events = POLLIN };

	return poll(&wait, 1, 0) != 0;
}

/* Writes word 1 of each page, in turn, until it is told that it is enough; tells how often each. */
static void under_a_driver_driver(void)
{
	char *memory = (char *)test_driver_open(&none);
	struct hmm_window *window;
	uint64_t rounds = 0, enough;

	CHECK_EQ(hmm_window_map(&mirror, (unsigned long)memory, PAGES * PAGE, 0, &window), 0);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	/* Once, however late it is. */
	do {
		for (size_t i = 0; i < PAGES; i++) {
			volatile uint64_t *word = (volatile uint64_t *)(memory + i * PAGE) + 1;

			CHECK_EQ(*word, rounds);
			*word = rounds + 1;
		}
		rounds++;
	} while (!is_told(TEST_DRIVER_SOCKET));
	/* A socket that is closed with something unread takes the answer with it. */
	CHECK(test_hear(TEST_DRIVER_SOCKET, &enough, NULL));
	test_tell(TEST_DRIVER_SOCKET, rounds, -1);
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static uint64_t word_of(const char *memory, size_t page, size_t word)
{
	return ((const volatile uint64_t *)(memory + page * PAGE))[word];
}

/* In the child. The driver goes from page to page: what it has written is of one round, or of two that follow each other. */
static void expect_one_moment(const char *memory)
{
	uint64_t first = word_of(memory, 0, 1);
	bool behind = false;

	for (size_t i = 0; i < PAGES; i++) {
		uint64_t round = word_of(memory, i, 1);

		CHECK_EQ(word_of(memory, i, 0), test_word(i, 0, 5));
		behind |= round != first;
		CHECK_EQ(round, behind ? first - 1 : first);
	}
}

/* The driver, which has them too, is at work. */
static char *lend_pages(int socket)
{
	uint64_t word;
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_apart(PAGES);
	for (size_t i = 0; i < PAGES; i++)
		*(uint64_t *)(memory + i * PAGE) = test_word(i, 0, 5);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	return memory;
}

static void fork_once(const char *memory)
{
	pid_t child = fork();

	if (!child) {
		expect_one_moment(memory);
		_exit(0);
	}
	CHECK(child > 0);
	test_reap(child, 0);
}

static void end_with(const char *memory, int socket, pid_t driver)
{
	uint64_t word;

	test_tell(socket, 2, -1);
	CHECK(test_hear(socket, &word, NULL));
	for (size_t i = 0; i < PAGES; i++) {
		CHECK_EQ(word_of(memory, i, 0), test_word(i, 0, 5));
		CHECK_EQ(word_of(memory, i, 1), word);
	}
	CHECK(word > 0);
	test_reap(driver, 0);
	test_close();
}

static void under_a_driver(void)
{
	char *memory;
	int socket;
	pid_t driver = test_driver_start("under-a-driver", &socket);

	memory = lend_pages(socket);
	for (int i = 0; i < FORKS; i++)
		fork_once(memory);
	end_with(memory, socket, driver);
}

/* Runs behind the library's own handler, which has had everything brought home. */
static void wait_in_fork(void)
{
	char line[64];

	printf("forking\n");
	fflush(stdout);
	CHECK(fgets(line, sizeof(line), stdin));
}

/* hmmd dies meanwhile, and another comes, which the driver asks for pages at once. */
static void over_a_restart(void)
{
	char *memory;
	int socket;
	pid_t driver = test_driver_start("under-a-driver", &socket);

	CHECK_EQ(pthread_atfork(wait_in_fork, NULL, NULL), 0);
	memory = lend_pages(socket);
	fork_once(memory);
	end_with(memory, socket, driver);
}

static const struct test_case cases[] = {
	{ "under-a-driver", under_a_driver, false }, { "over-a-restart", over_a_restart, true }, { NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "under-a-driver", under_a_driver_driver, false }, { "over-a-restart", under_a_driver_driver, true }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
