/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mirror.h - what the small test programs of this folder share: one mirror of
 * this process, memory with a known pattern, and checks that say what they saw.
 *
 * A program holds several cases and runs the one it is told to; the Python
 * script beside the folder starts it under a private hmmd. Exit 0: as it
 * should be. 1: not. 77: cannot be tried here, the last line says why.
 */
#ifndef TEST_MIRROR_H
#define TEST_MIRROR_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <hmm/hmm.h>

#define PAGE 4096UL
#define BLOCK (2UL << 20)

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition))                                                                  \
			FAIL("%s", #condition);                                                    \
	} while (0)
#define CHECK_EQ(seen, expected)                                                                   \
	do {                                                                                       \
		long seen_ = (long)(seen), expected_ = (long)(expected);                           \
		if (seen_ != expected_)                                                            \
			FAIL("%s is %ld, not %s (%ld)", #seen, seen_, #expected, expected_);       \
	} while (0)

struct test_case {
	const char *name;
	void (*run)(void);
	bool special;		/* needs what only its own test arranges: not listed */
};

/*
 * Runs the case that the command line names; --list prints them, --list-all the special ones, too.
 * @cases is an array, and its last entry has no name: a table that ends before its end, or names
 * a case twice, runs nothing.
 */
#define test_main(argc, argv, cases) test_main_of(argc, argv, cases, sizeof(cases) / sizeof(*(cases)))
int test_main_of(int argc, char **argv, const struct test_case *cases, size_t count);
void test_fail(const char *file, int line, const char *format, ...)
	__attribute__((noreturn, format(printf, 3, 4)));
void test_skip(const char *why) __attribute__((noreturn));
/* A deadline, or as many tries, times HMM_TEST_SCALE: it only ends what hangs. */
int test_scaled(int most);

extern struct hmm *hmm;
extern struct hmm_mirror mirror;

/* This process, mirrored on a device of its own with @memory bytes. */
void test_open(uint64_t flags, uint64_t memory);
void test_close(void);
/* A device and a mirror of this process on it. */
struct hmm_device *test_device(const char *name, uint64_t memory);
void test_mirror(struct hmm_mirror *other, struct hmm_device *device);

/* Private anonymous memory with 4 KiB pages, or aligned and of huge pages. */
char *test_map(size_t pages);
char *test_map_huge(size_t blocks);
/*
 * The same where nobody else's mmap() comes: for tests that leave a hole in it, or whose driver has a window at
 * its very addresses.
 */
char *test_map_apart(size_t pages);
/* With a multiple of 64 MiB in the middle, which is as good a place as any other. */
char *test_map_across(size_t pages);
/* At most 480 pages of 4 KiB, all in one block, apart as well: for tests that count what happens. */
char *test_map_in_block(size_t pages);
/* Word w of page p, as fill() with @seed wrote it. */
uint64_t test_word(size_t page, size_t word, uint64_t seed);
void test_fill(void *memory, size_t pages, uint64_t seed);
void test_check(const void *memory, size_t pages, uint64_t seed);
void test_check_zero(const void *memory, size_t pages);
/* The same, read by the device. */
void test_device_check(const void *memory, size_t pages, uint64_t seed);

/* hmm_migrate() of whole pages; out() and home() want every page at the target afterwards. */
long test_migrate(void *memory, size_t pages, enum hmm_target target, uint8_t *results);
void test_out(void *memory, size_t pages);
void test_home(void *memory, size_t pages);
/* Wants each of @pages to answer @expected, whichever way the call ends. */
void test_refused(void *memory, size_t pages, enum hmm_migrate_result expected);

/*
 * hmm_share() and hmm_unshare() of blocks that somebody goes on using: on a busy machine a page may be wanted for
 * three seconds without a pause; that is said, and asked again. Any other answer comes back.
 */
int test_share(char *memory, size_t blocks);
int test_unshare(char *memory, size_t blocks);

bool test_on_device(const void *page);
size_t test_device_pages(const void *memory, size_t pages);
/* KiB of a field of /proc/self/smaps, summed over the mappings that lie in the range. */
long test_smaps(const void *memory, size_t bytes, const char *field);

/* What holds of these pages, by hmm_range_get_attribute(); and whatever does not hold says why. */
struct hmm_policy test_policy(const void *memory, size_t pages);

/* Waits for a child and wants it to have ended with @status as waitpid reports it. */
void test_reap(pid_t child, int status);

#endif
