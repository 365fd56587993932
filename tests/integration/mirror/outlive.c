// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * outlive.c - hmmd dies while a tracked mirror has copies: its script kills it, and the next sync has all
 * that was written; or none comes back, and the handle says so.
 */
#include <fcntl.h>
#include <sys/wait.h>

#include "dirty.h"
#include "driver.h"
#include "replica.h"

/* Pages 256 to 299, which nobody writes, as test_fill() left them. */
static void test_check_end(const char *copy)
{
	for (size_t i = 256; i < 300; i++)
		for (size_t w = 0; w < PAGE / 8; w += 61) {
			uint64_t word;

			memcpy(&word, copy + i * PAGE + w * 8, 8);
			if (word != test_word(i, w, 1))
				FAIL("page %zu of the copy has gone", i);
		}
}

/* Another process that only looks at its copy, until the pipe is closed. */
static pid_t fork_driver(char *memory, int over[2])
{
	int key = hmm_export(hmm), ready[2];
	pid_t child;
	char byte;

	CHECK(key >= 0 && !pipe(ready));
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		struct hmm_mirror its = { .ops = &tracked_ops };
		struct hmm_device *its_device;
		const char *copy;
		struct hmm *peer;

		close(over[1]);
		fcntl(over[0], F_SETFL, O_NONBLOCK);
		CHECK_EQ(hmm_open_peer(key, NULL, &peer), 0);
		CHECK_EQ(hmm_device_open(peer, "replica", &its_device), 0);
		its.device = its_device;
		CHECK_EQ(hmm_mirror_register(&its, peer), 0);
		CHECK_EQ(hmm_mirror_track(&its, (unsigned long)memory, 300 * PAGE, 0), 0);
		CHECK_EQ(hmm_mirror_sync(&its, (unsigned long)memory, 300 * PAGE, 0, NULL), 300);
		copy = hmm_mirror_copy(&its, (unsigned long)memory);
		CHECK_EQ(write(ready[1], "", 1), 1);
		while (read(over[0], &byte, 1)) {
			test_check_end(copy);
			usleep(200);
		}
		hmm_close(peer);
		_exit(0);
	}
	CHECK_EQ(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
	close(over[0]);
	close(key);
	return child;
}

/* Its script kills hmmd, and the next sync has all that was written. @kept: the copy is there all the time. */
static void outlive(bool kept)
{
	struct hmm_sync_report report;
	char line[64], *memory;
	pid_t driver = 0;
	int over[2];

	open_replica(64 * BLOCK);
	memory = test_map(300);
	test_fill(memory, 300, 1);
	begin(memory, 300);
	CHECK(!pipe(over));
	if (kept)
		driver = fork_driver(memory, over);
	steady_begin(memory);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) && !strncmp(line, "more", 4)) {
		if (kept)
			test_check_end(copy_of(memory));
		report = sync_all(memory, 256);
		printf("told %lu of which %lu, at %lu\n", (unsigned long)report.written, (unsigned long)report.presumed,
		       steady_written());
		fflush(stdout);
	}
	steady_end();
	sync_all(memory, 300);
	check_equal(memory, 300);
	close(over[1]);
	if (driver)
		test_reap(driver, 0);
	close_replica();
}

static void outage(void)
{
	outlive(false);
}

static void kept(void)
{
	outlive(true);
}

/* No hmmd comes back: the handle says so, and what was copied can be read. */
static void abandoned(void)
{
	char line[64], *memory = open_and_begin(256);
	const char *copy = copy_of(memory);

	printf("ready\n");
	fflush(stdout);
	CHECK(fgets(line, sizeof(line), stdin));
	while (hmm_mirror_sync(&replica, (unsigned long)memory, 256 * PAGE, 0, NULL) != -ESTALE)
		usleep(1000);
	test_check(memory, 256, 1);
	test_check(copy, 256, 1);
	CHECK_EQ(hmm_mirror_unregister(&replica), 0);
	hmm_close(hmm);
	hmm = NULL;
}

int main(int argc, char **argv)
{
	static const struct test_case cases[] = {
		{ "outage", outage, .special = true },
		{ "kept", kept, .special = true },
		{ "abandoned", abandoned, .special = true },
		{ NULL, NULL, false },
	};

	return test_main(argc, argv, cases);
}
