/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * secrets.c - what a program has told the kernel of its memory holds wherever its bytes are: what is left out of core dumps,
 * what is locked, what no child has.
 */
#include "mirror.h"

#include "dirty.h"
#include "driver.h"
#include "replica.h"

#include <fcntl.h>
#include <sys/wait.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#define MADV_KEEPONFORK 19
#endif

#define DEVICE_MEMORY (64UL << 20)
#define BLOCK_PAGES 512UL

/* ---- what smaps says ------------------------------------------------------------------- */

struct mapping {
	unsigned long start, end;
	char name[256];
	char flags[256];
};

static FILE *smaps_open(void)
{
	FILE *file = fopen("/proc/self/smaps", "r");

	CHECK(file);
	return file;
}

static bool smaps_next(FILE *file, struct mapping *mapping)
{
	unsigned long start, end;
	char line[512];
	int at;

	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %n", &start, &end, &at) == 2) {
			mapping->start = start;
			mapping->end = end;
			snprintf(mapping->name, sizeof(mapping->name), "%.*s", (int)strcspn(line + at, "\n"), line + at);
		} else if (sscanf(line, "VmFlags:%255[^\n]", mapping->flags) == 1) {
			return true;
		}
	}
	return false;
}

/* All of it, or none; anything else fails. */
static bool is_told(const char *memory, size_t bytes, const char *flag)
{
	unsigned long start = (unsigned long)memory, end = start + bytes, with = 0, without = 0;
	FILE *file = smaps_open();
	struct mapping one;

	while (smaps_next(file, &one)) {
		unsigned long from = one.start > start ? one.start : start, to = one.end < end ? one.end : end;

		if (from < to)
			*(strstr(one.flags, flag) ? &with : &without) += to - from;
	}
	fclose(file);
	CHECK_EQ(with + without, bytes);
	if (with && without)
		FAIL("%#lx of %#lx bytes have%s", with, bytes, flag);
	return with;
}

/* Where else in this process the bytes are; 0: nowhere. */
static unsigned long where_else(const char *memory, size_t bytes, const char *secret, size_t length)
{
	unsigned long found = 0;
	FILE *file = smaps_open();
	int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC), pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	static char page[PAGE] __attribute__((aligned(PAGE)));
	unsigned char resident;
	struct mapping one;

	CHECK(mem >= 0 && pagemap >= 0);
	while (!found && smaps_next(file, &one)) {
		if (one.end - one.start > 2UL << 30 || strstr(one.name, "[v"))
			continue;
		for (unsigned long at = one.start; at < one.end; at += PAGE) {
			uint64_t entry = 0;

			if ((at >= (unsigned long)memory && at < (unsigned long)memory + bytes) ||
			    (at >= (unsigned long)page && at < (unsigned long)page + PAGE) ||
			    (at <= (unsigned long)secret && at + PAGE > (unsigned long)secret))
				continue;
			CHECK_EQ(pread(pagemap, &entry, 8, (off_t)(at / PAGE * 8)), 8);
			/* Device memory may have it, and nobody mapped it: never read a hole, which would be none then. */
			if (strstr(one.name, "hmm-shadow") && !mincore((void *)at, PAGE, &resident) && resident & 1)
				entry = 1UL << 63;
			if (!(entry >> 62) || pread(mem, page, PAGE, (off_t)at) != (ssize_t)PAGE)
				continue;
			if (memmem(page, PAGE, secret, length))
				found = at;
		}
	}
	memset(page, 0, PAGE);
	close(mem);
	close(pagemap);
	fclose(file);
	return found;
}

static char *map_block(void)
{
	char *memory = test_map_huge(1);

	madvise(memory, BLOCK, MADV_NOHUGEPAGE);
	return memory;
}

/* ---- core dumps and children -------------------------------------------------------------- */

static void there_and_back(int advice, const char *flag)
{
	char *memory = map_block();

	test_fill(memory, BLOCK_PAGES, 3);
	CHECK_EQ(madvise(memory, BLOCK, advice), 0);
	test_out(memory, BLOCK_PAGES);
	CHECK(is_told(memory, BLOCK, flag));
	test_home(memory, BLOCK_PAGES);
	CHECK(is_told(memory, BLOCK, flag));
	CHECK_EQ(test_share(memory, 1), 0);
	CHECK(is_told(memory, BLOCK, flag));
	test_check(memory, BLOCK_PAGES, 3);
	CHECK_EQ(test_unshare(memory, 1), 0);
	CHECK(is_told(memory, BLOCK, flag));
	test_home(memory, BLOCK_PAGES);
	test_check(memory, BLOCK_PAGES, 3);
	CHECK(is_told(memory, BLOCK, flag));
}

static void kept(void)
{
	test_open(0, DEVICE_MEMORY);
	there_and_back(MADV_DONTDUMP, " dd");
	there_and_back(MADV_DONTFORK, " dc");
	there_and_back(MADV_NOHUGEPAGE, " nh");
	test_close();
}

/* And what was told nothing is told nothing. */
static void untold(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = map_block();
	test_fill(memory, BLOCK_PAGES, 3);
	CHECK_EQ(test_share(memory, 1), 0);
	CHECK(!is_told(memory, BLOCK, " dd"));
	CHECK(!is_told(memory, BLOCK, " dc"));
	CHECK_EQ(test_unshare(memory, 1), 0);
	CHECK(!is_told(memory, BLOCK, " dd"));
	CHECK(!is_told(memory, BLOCK, " dc"));
	test_close();
}

/* What a part of a block was told all of it is told then: its new mapping is one. */
static void kept_in_part(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	test_fill(memory, 2 * BLOCK_PAGES, 4);
	CHECK_EQ(madvise(memory + BLOCK + 7 * PAGE, PAGE, MADV_DONTDUMP), 0);
	CHECK_EQ(test_share(memory, 2), 0);
	CHECK(!is_told(memory, BLOCK, " dd"));
	CHECK(is_told(memory + BLOCK, BLOCK, " dd"));
	test_check(memory, 2 * BLOCK_PAGES, 4);
	test_close();
}

static void wiped(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = map_block();
	test_fill(memory, BLOCK_PAGES, 5);
	CHECK_EQ(madvise(memory, PAGE, MADV_WIPEONFORK), 0);
	CHECK_EQ(hmm_share(&mirror, memory, BLOCK), -EOPNOTSUPP);
	CHECK(strstr(hmm_last_error(), "MADV_WIPEONFORK"));
	CHECK(is_told(memory, PAGE, " wf"));
	CHECK_EQ(madvise(memory, PAGE, MADV_KEEPONFORK), 0);
	CHECK_EQ(test_share(memory, 1), 0);
	test_check(memory, BLOCK_PAGES, 5);
	test_close();
}

/* The library maps here, and a program of this room elsewhere (mapping.c, mirror.c): not every kernel names anonymous memory. */
#define LIBRARY_START 0x200000000000UL
#define LIBRARY_END 0x300000000000UL

/* Of the library's own mappings, and a driver's windows, nothing is in a core. */
static void expect_all_left_out(bool window)
{
	bool seen[4] = { false };
	FILE *file = smaps_open();
	struct mapping one;

	while (smaps_next(file, &one)) {
		bool own = one.start >= LIBRARY_START && one.start < LIBRARY_END;

		if (!own && !strstr(one.name, "hmm-"))
			continue;
		seen[0] |= own && !strstr(one.name, "hmm-");
		seen[1] |= strstr(one.name, "hmm-table") != NULL;
		seen[2] |= strstr(one.name, "hmm-shadow") != NULL;
		/* One page that says that hmmd has died. */
		if (!strstr(one.flags, " dd") && !strstr(one.name, "hmm-pulse"))
			FAIL("%s at %#lx is in a core", one.name, one.start);
	}
	fclose(file);
	CHECK(seen[0] && seen[1]);
	CHECK(seen[2] || !window);
}

static void left_out(void)
{
	int socket;
	pid_t child = test_driver_start("left-out", &socket);
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_lend(socket, 64, 6);
	expect_all_left_out(true);
	test_tell(socket, 0, -1);
	test_reap(child, 0);
	test_check(memory, 64, 6);
	test_close();
	close(socket);
}

static void left_out_driver(void)
{
	static const struct hmm_mirror_ops ops = { .size = sizeof(ops) };
	unsigned long address = test_driver_open(&ops);
	struct hmm_window *window;
	uint64_t word;

	CHECK_EQ(hmm_window_map(&mirror, address, 64 * PAGE, 0, &window), 0);
	test_check((const void *)address, 64, 6);
	expect_all_left_out(true);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	CHECK_EQ(hmm_window_unmap(window), 0);
	test_close();
}

/* ---- locked memory --------------------------------------------------------------------------- */

static void locked_stays(uint64_t flags)
{
	char secret[64], *memory;

	test_open(flags, DEVICE_MEMORY);
	memory = map_block();
	if (flags)
		CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, BLOCK, HMM_ADVISE_UNPINNED, NULL), 0);
	CHECK_EQ(getentropy(secret, sizeof(secret)), 0);
	memcpy(memory + 9 * PAGE + 100, secret, sizeof(secret));
	if (mlock2(memory, BLOCK, MLOCK_ONFAULT))
		test_skip("this user may not lock 2 MiB of memory");
	/* Also where nothing is yet: a device would write there what the program wants locked. */
	test_refused(memory, BLOCK_PAGES, HMM_LOCKED);
	CHECK_EQ(hmm_share(&mirror, memory, BLOCK), -EOPNOTSUPP);
	CHECK(strstr(hmm_last_error(), "munlock()"));
	CHECK(is_told(memory, BLOCK, " lo"));
	CHECK_EQ(where_else(memory, BLOCK, secret, sizeof(secret)), 0);
	CHECK(!memcmp(memory + 9 * PAGE + 100, secret, sizeof(secret)));
	CHECK_EQ(munlock(memory, BLOCK), 0);
	test_close();
}

static void locked(void)
{
	locked_stays(0);
}

static void locked_base(void)
{
	locked_stays(HMM_OPEN_BASE_ENGINE);
}

/* It was on the device, and both have read it. Then it is brought home, and locked: soon no copy is left. */
static void locked_later(void)
{
	char secret[64], *memory;

	test_open(0, DEVICE_MEMORY);
	memory = map_block();
	test_fill(memory, BLOCK_PAGES, 9);
	CHECK_EQ(getentropy(secret, sizeof(secret)), 0);
	memcpy(memory + 9 * PAGE + 100, secret, sizeof(secret));
	test_out(memory, BLOCK_PAGES);
	CHECK(!memcmp(memory + 9 * PAGE + 100, secret, sizeof(secret)));
	CHECK(where_else(memory, BLOCK, secret, sizeof(secret)));
	test_home(memory, BLOCK_PAGES);
	if (mlock(memory, BLOCK))
		test_skip("this user may not lock 2 MiB of memory");
	for (int tries = 0; where_else(memory, BLOCK, secret, sizeof(secret)); tries++) {
		CHECK(tries < test_scaled(100));
		usleep(50000);
	}
	CHECK(!memcmp(memory + 9 * PAGE + 100, secret, sizeof(secret)));
	CHECK_EQ(munlock(memory, BLOCK), 0);
	test_close();
}

/* Coherent memory may be locked: it is the program's own mapping of it. But it has to be unlocked before it is ordinary again. */
static void locked_coherent(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = map_block();
	test_fill(memory, BLOCK_PAGES, 7);
	CHECK_EQ(test_share(memory, 1), 0);
	if (mlock(memory, BLOCK))
		test_skip("this user may not lock 2 MiB of memory");
	CHECK_EQ(hmm_unshare(&mirror, memory, BLOCK), -EOPNOTSUPP);
	CHECK(strstr(hmm_last_error(), "munlock()"));
	CHECK(is_told(memory, BLOCK, " lo"));
	CHECK_EQ(munlock(memory, BLOCK), 0);
	CHECK_EQ(test_unshare(memory, 1), 0);
	test_check(memory, BLOCK_PAGES, 7);
	test_close();
}

/* A copy of it would be one on a disk. */
static void locked_copies(void)
{
	char *memory;

	open_replica(16 * BLOCK);
	memory = test_map(64);
	test_fill(memory, 64, 8);
	declare(memory, 64);
	if (mlock(memory + 5 * PAGE, PAGE))
		test_skip("this user may not lock a page of memory");
	CHECK_EQ(hmm_mirror_track(&replica, (unsigned long)memory, 64 * PAGE, 0), -EOPNOTSUPP);
	CHECK(strstr(hmm_last_error(), "locked"));
	track(memory, 5);
	CHECK_EQ(munlock(memory + 5 * PAGE, PAGE), 0);
	track(memory + 5 * PAGE, 59);
	sync_all(memory, 5);
	sync_all(memory + 5 * PAGE, 59);
	check_equal(memory, 5);
	check_equal(memory + 5 * PAGE, 59);
	close_replica();
}

/*
 * For secrets.py: what the device reads of locked memory, and writes there, passes through hmmd and the library. The program keeps
 * no other copy: what it writes comes from memory that is locked, too.
 */
static void in_place(void)
{
	char *memory, *own;
	uint64_t seed;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(4);
	own = test_map(4);
	CHECK(!mlock(memory, 4 * PAGE) && !mlock(own, 4 * PAGE));
	CHECK_EQ(scanf("%lx", &seed), 1);
	for (size_t i = 0; i < 8192; i += 8) {
		*(uint64_t *)(void *)(memory + i) = seed * (2 * i + 3);
		*(uint64_t *)(void *)(own + 8192 + i) = seed * (2 * i + 5);
	}
	for (int i = 0; i < 20; i++) {
		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, own, 8192), 8192);
		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 96, own + 96, 32), 32);
		CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 8192, own + 8192, 8192), 8192);
		CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 8192, own + 8192, 48), 48);
	}
	CHECK(!memcmp(own, memory, 4 * PAGE));
	puts("ready");
	while (getchar() != EOF)
		;
	test_close();
}

static const struct test_case cases[] = {
	{ "kept", kept, false }, { "untold", untold, false }, { "kept-in-part", kept_in_part, false }, { "wiped", wiped, false },
	{ "left-out", left_out, false }, { "locked", locked, false }, { "locked-base", locked_base, false },
	{ "locked-later", locked_later, false },
	{ "locked-coherent", locked_coherent, false }, { "locked-copies", locked_copies, false }, { "in-place", in_place, true },
	{ NULL, NULL, false },
};

static const struct test_case drivers[] = {
	{ "left-out", left_out_driver, false }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
