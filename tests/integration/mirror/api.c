/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * api.c - what the calls of the headers refuse, and for which reasons drivers are told to let go, as far as
 * no other program of this folder has it: windows, what is the owner's alone, mremap, fork, and a write.
 */
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "driver.h"
#include "mirror.h"

#define DEVICE_MEMORY (64UL << 20)

static _Atomic unsigned int reasons;
static _Atomic int window_inside = 1;

static int note_reason(struct hmm_mirror *me, const struct hmm_update *update)
{
	struct hmm_window *window = NULL;

	CHECK_EQ(update->event, HMM_UPDATE_INVALIDATE);
	CHECK(update->start < update->end);
	window_inside = hmm_window_map(me, update->start, PAGE, 0, &window);
	reasons |= 1U << update->reason;
	return 0;
}

static const struct hmm_mirror_ops noting = { .size = sizeof(noting),
					      .sync_cpu_device_pagetables = note_reason };

static void open_noting(void)
{
	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	mirror.ops = &noting;
	CHECK_EQ(hmm_mirror_register(&mirror, hmm), 0);
}

static void told_of_a_remap(void)
{
	char *memory, *to;

	open_noting();
	memory = test_map(16);
	to = test_map(16);
	test_fill(memory, 16, 1);
	test_out(memory, 16);
	reasons = 0;
	CHECK(mremap(memory, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	test_check(to, 16, 1);
	CHECK(reasons & 1U << HMM_REASON_REMAP);
	CHECK_EQ(window_inside, -EDEADLK);
	test_close();
}

static void told_of_a_fork(void)
{
	char *memory;
	pid_t child;

	open_noting();
	memory = test_map(16);
	test_fill(memory, 16, 2);
	test_out(memory, 16);
	reasons = 0;
	child = fork();
	if (child == 0) {
		test_check(memory, 16, 2);
		_exit(0);
	}
	test_reap(child, 0);
	CHECK_EQ(reasons, 1U << HMM_REASON_FORK);
	test_check(memory, 16, 2);
	test_close();
}

/* A page that CPU and device read, and that the CPU writes then. */
static void told_of_a_write(void)
{
	char *memory;

	open_noting();
	memory = test_map_in_block(16);
	test_fill(memory, 16, 1);
	/* Copies that nobody reads are given up after a while: then it is nothing to tell. */
	for (int tries = 0; tries < 100 && !(reasons & 1U << HMM_REASON_CPU_WRITE); tries++) {
		test_out(memory, 16);
		reasons = 0;
		CHECK_EQ(*(volatile uint64_t *)(void *)(memory + 4 * PAGE), test_word(4, 0, 1));
		CHECK(reasons & 1U << HMM_REASON_CPU_FAULT);
		*(volatile uint64_t *)(void *)(memory + 4 * PAGE) = test_word(4, 0, 1);
	}
	CHECK(reasons & 1U << HMM_REASON_CPU_WRITE);
	test_check(memory, 16, 1);
	test_close();
}

/* ---- windows ------------------------------------------------------------------------ */

static const struct hmm_mirror_ops quiet = { .size = sizeof(quiet) };

static void window_driver(void)
{
	unsigned long address = test_driver_open(&quiet);
	struct hmm_window *window = NULL;
	const uint64_t *word;
	void *taken;

	CHECK_EQ(hmm_window_map(NULL, address, PAGE, 0, &window), -EINVAL);
	CHECK_EQ(hmm_window_map(&mirror, address, PAGE, 0, NULL), -EINVAL);
	CHECK_EQ(hmm_window_map(&mirror, address, PAGE, 2, &window), -EINVAL);
	CHECK_EQ(hmm_window_map(&mirror, address + 1, PAGE, 0, &window), -EINVAL);
	CHECK_EQ(hmm_window_map(&mirror, address, PAGE + 1, 0, &window), -EINVAL);
	CHECK_EQ(hmm_window_map(&mirror, address, 0, 0, &window), -EINVAL);
	CHECK_EQ(hmm_window_map(&mirror, ~0UL - PAGE + 1, 2 * PAGE, 0, &window), -EINVAL);
	CHECK_EQ(hmm_window_map(&mirror, (1UL << 47) - PAGE, 2 * PAGE, 0, &window), -EINVAL);
	/* Its addresses are taken here. */
	taken = mmap((void *)address, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(taken == (void *)address);
	CHECK_EQ(hmm_window_map(&mirror, address, 4 * PAGE, 0, &window), -EEXIST);
	CHECK(strstr(hmm_last_error(), "0x"));
	CHECK(!window);
	CHECK_EQ(*(volatile char *)taken, 0);
	/* Elsewhere there is room. */
	CHECK_EQ(hmm_window_map(&mirror, address, 4 * PAGE, HMM_WINDOW_OFFSET, &window), 0);
	word = hmm_window_ptr(window, address);
	CHECK(word && (unsigned long)word != address);
	CHECK_EQ(*word, test_word(0, 0, 3));
	CHECK(!hmm_window_ptr(window, address - 1));
	CHECK(!hmm_window_ptr(window, address + 4 * PAGE));
	CHECK(!hmm_window_ptr(NULL, address));
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(munmap(taken, PAGE), 0);
	CHECK_EQ(hmm_window_map(&mirror, address, 4 * PAGE, 0, &window), 0);
	CHECK_EQ(((const uint64_t *)address)[1], test_word(0, 1, 3));
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(hmm_window_unmap(NULL), 0);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void windows(void)
{
	struct hmm_window *window = NULL;
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start("windows", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map_apart(4);
	test_fill(memory, 4, 3);
	CHECK_EQ(hmm_window_map(&mirror, (unsigned long)memory, PAGE, 0, &window), -EBUSY);
	CHECK_EQ(hmm_window_map(&mirror, (unsigned long)memory, PAGE, HMM_WINDOW_OFFSET, &window), -EBUSY);
	CHECK(!window);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	test_reap(driver, 0);
	test_check(memory, 4, 3);
	test_close();
}

/* ---- what is the owner's alone --------------------------------------------------------- */

static void asking_driver(void)
{
	unsigned long address = test_driver_open(&quiet);
	void *memory = (void *)address, *made = NULL;

	CHECK_EQ(hmm_export(hmm), -EPERM);
	CHECK_EQ(hmm_alloc(&mirror, PAGE, &made), -EPERM);
	CHECK(!made);
	CHECK(hmm_free(&mirror, memory, PAGE) < 0);
	CHECK_EQ(hmm_share(&mirror, memory, BLOCK), -EPERM);
	CHECK_EQ(hmm_unshare(&mirror, memory, BLOCK), -EPERM);
	CHECK_EQ(hmm_exclude(hmm, address, PAGE), -EPERM);
	CHECK_EQ(hmm_include(hmm, address, PAGE), -EPERM);
	CHECK_EQ(hmm_advise(hmm, address, PAGE, HMM_ADVISE_UNPINNED, NULL), -EPERM);
	CHECK_EQ(hmm_advise(hmm, address, PAGE, HMM_ADVISE_SET_READ_MOSTLY, NULL), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), -EINVAL);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void owner_only(void)
{
	int socket;
	pid_t driver = test_driver_start("owner-only", &socket);
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(1);
	test_fill(memory, 512, 4);
	test_invite(socket, memory);
	test_reap(driver, 0);
	CHECK_EQ(hmm_include(hmm, (unsigned long)memory + 1, PAGE), -EINVAL);
	CHECK_EQ(hmm_include(hmm, (unsigned long)memory, 0), -EINVAL);
	CHECK_EQ(hmm_free(&mirror, memory, PAGE), -EINVAL);
	/* Nothing of it was done. */
	test_out(memory, 512);
	test_check(memory, 512, 4);
	test_close();
}

/* A device without memory: everything is reached where it is. */
static void no_pool(void)
{
	uint64_t word = 7;
	char *memory;

	test_open(0, 0);
	memory = test_map(4);
	test_fill(memory, 4, 5);
	CHECK_EQ(hmm_device_memory(mirror.device), 0);
	test_refused(memory, 4, HMM_POOL_FULL);
	test_device_check(memory, 4, 5);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory, &word, 8), 8);
	CHECK_EQ(*(volatile uint64_t *)memory, 7);
	test_close();
}

/*
 * Where a window is not to be had, which its own test arranges: it is refused with the reason, nothing
 * is left of it, and the device reaches the memory all the same.
 */
static void no_window_driver(const char *why)
{
	unsigned long address = test_driver_open(&quiet);
	struct hmm_window *window = NULL;
	uint64_t word = 5;

	for (int i = 0; i < 3; i++) {
		CHECK_EQ(hmm_window_map(&mirror, address, 4 * PAGE, i ? HMM_WINDOW_OFFSET : 0, &window), -EOPNOTSUPP);
		CHECK(strstr(hmm_last_error(), why));
		CHECK(!window);
	}
	/* Its addresses are free still. */
	CHECK(mmap((void *)address, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
	      (void *)address);
	test_device_check((const void *)address, 4, 6);
	CHECK_EQ(hmm_migrate(&mirror, address, 4 * PAGE, HMM_DEVICE, 0, NULL, NULL), 4);
	CHECK_EQ(hmm_device_write(&mirror, address + PAGE, &word, 8), 8);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void no_window(const char *name)
{
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start(name, &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map_apart(4);
	test_fill(memory, 4, 6);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	CHECK_EQ(*(volatile uint64_t *)(memory + PAGE), 5);
	*(volatile uint64_t *)(memory + PAGE) = test_word(1, 0, 6);
	test_check(memory, 4, 6);
	test_tell(socket, 1, -1);
	test_reap(driver, 0);
	test_close();
}

static void window_over_hugetlb(void)
{
	no_window("window-over-hugetlb");
}

static void window_over_hugetlb_driver(void)
{
	no_window_driver("hugetlb");
}

static void window_huge_unasked(void)
{
	no_window("window-huge-unasked");
}

static void window_huge_unasked_driver(void)
{
	no_window_driver("shmem_enabled");
}

/*
 * A huge page of the device that somebody holds, here a pipe, can't be parted: what has gone home reads as zeros there.
 * A window must ask for it all the same. tests/coherence/test_broken.py breaks that.
 */
static void held_huge_driver(void)
{
	unsigned long address = test_driver_open(&quiet);
	struct iovec page = { (void *)(address + 5 * PAGE), PAGE };
	struct hmm_window *window = NULL;
	uint64_t words[PAGE / 8], word;
	int pipes[2];

	CHECK_EQ(hmm_window_map(&mirror, address, BLOCK, 0, &window), 0);
	/* Page by page, since the window looks on; and then one huge page is made of them. */
	CHECK_EQ(hmm_migrate(&mirror, address, BLOCK, HMM_DEVICE, 0, NULL, NULL), BLOCK / PAGE);
	for (size_t i = 0; i < BLOCK / PAGE; i++)
		CHECK_EQ(*(volatile uint64_t *)(address + i * PAGE), test_word(i, 0, 8));
	CHECK_EQ(pipe(pipes), 0);
	CHECK_EQ(vmsplice(pipes[1], &page, 1, 0), PAGE);
	test_tell(TEST_DRIVER_SOCKET, 1, -1);
	CHECK(test_hear(TEST_DRIVER_SOCKET, &word, NULL));
	/* Else the whole huge page were gone, held or not. */
	CHECK(hmm_mirror_lookup(&mirror, address + 5 * PAGE) & HMM_ENTRY_DEVICE);
	CHECK_EQ(*(volatile uint64_t *)(address + 200 * PAGE), 200);
	CHECK_EQ(read(pipes[0], words, PAGE), PAGE);
	CHECK_EQ(words[0], test_word(5, 0, 8));
	CHECK_EQ(hmm_window_unmap(window), 0);
	CHECK_EQ(hmm_mirror_unregister(&mirror), 0);
	hmm_device_put(mirror.device);
	hmm_close(hmm);
}

static void held_huge(void)
{
	struct hmm_advise_options alone = { .size = sizeof(alone), .value = 1 };
	uint64_t word;
	char *memory;
	int socket;
	pid_t driver = test_driver_start("held-huge", &socket);

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(1);
	test_fill(memory, BLOCK / PAGE, 8);
	CHECK_EQ(hmm_advise(hmm, (unsigned long)memory, BLOCK, HMM_ADVISE_GRANULARITY, &alone), 0);
	test_invite(socket, memory);
	CHECK(test_hear(socket, &word, NULL));
	*(volatile uint64_t *)(memory + 200 * PAGE) = 200;
	test_tell(socket, 1, -1);
	test_reap(driver, 0);
	CHECK_EQ(*(volatile uint64_t *)(memory + 200 * PAGE), 200);
	test_check(memory, 200, 8);
	test_close();
}

static const struct test_case cases[] = {
	{ "window-over-hugetlb", window_over_hugetlb, true },
	{ "window-huge-unasked", window_huge_unasked, true },
	{ "told-of-a-remap", told_of_a_remap, false },
	{ "told-of-a-fork", told_of_a_fork, false },
	{ "told-of-a-write", told_of_a_write, false },
	{ "windows", windows, false },
	{ "held-huge", held_huge, false },
	{ "owner-only", owner_only, false },
	{ "no-pool", no_pool, false },
	{ 0 },
};

static const struct test_case drivers[] = {
	{ "window-over-hugetlb", window_over_hugetlb_driver, false },
	{ "window-huge-unasked", window_huge_unasked_driver, false },
	{ "windows", window_driver, false },
	{ "held-huge", held_huge_driver, false },
	{ "owner-only", asking_driver, false },
	{ 0 },
};

int main(int argc, char **argv)
{
	return test_driver_main(argc, argv, cases, drivers);
}
