/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * changes.c - the program changes its address space while pages are on the
 * device: they go where the kernel's own pages would have gone.
 */
#include "mirror.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define DEVICE_MEMORY (256UL << 20)

/* 64 pages of which all are on the device, filled with @seed. */
static char *taken_out(char *memory, size_t pages, uint64_t seed)
{
	test_fill(memory, pages, seed);
	test_out(memory, pages);
	return memory;
}

static char *on_device(size_t pages, uint64_t seed)
{
	return taken_out(test_map(pages), pages, seed);
}

/* For whom a hole must stay one. */
static char *on_device_apart(size_t pages, uint64_t seed)
{
	return taken_out(test_map_apart(pages), pages, seed);
}

static void device_faults(const void *address)
{
	char byte;

	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)address, &byte, 1), -EFAULT);
	CHECK_EQ(hmm_mirror_lookup(&mirror, (unsigned long)address), 0);
}

static void unmap(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device_apart(64, 1);
	CHECK_EQ(munmap(memory + 16 * PAGE, 16 * PAGE), 0);
	device_faults(memory + 16 * PAGE);
	device_faults(memory + 31 * PAGE);
	test_check(memory, 16, 1);
	/* What is mapped there next has nothing of what was. */
	CHECK(mmap(memory + 16 * PAGE, 16 * PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == memory + 16 * PAGE);
	test_check_zero(memory + 16 * PAGE, 16);
	test_fill(memory + 16 * PAGE, 16, 2);
	test_out(memory + 16 * PAGE, 16);
	test_check(memory + 16 * PAGE, 16, 2);
	CHECK_EQ(munmap(memory, 64 * PAGE), 0);
	device_faults(memory);
	test_close();
}

static void unmap_many(void)
{
	test_open(0, DEVICE_MEMORY);
	for (uint64_t i = 0; i < 60; i++) {
		char *memory = on_device(64, i);

		test_device_check(memory, 64, i);
		CHECK_EQ(munmap(memory, 64 * PAGE), 0);
	}
	/* The pool got everything back: 60 times 64 pages may not pile up. */
	for (uint64_t i = 0; i < 8; i++) {
		char *memory = test_map_huge(32);

		test_fill(memory, 32 * 512, i);
		test_out(memory, 32 * 512);
		CHECK_EQ(munmap(memory, 32 * BLOCK), 0);
	}
	test_close();
}

static void map_over(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 3);
	CHECK(mmap(memory + 8 * PAGE, 32 * PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory + 8 * PAGE);
	test_check_zero(memory + 8 * PAGE, 32);
	test_check(memory, 8, 3);
	test_fill(memory + 8 * PAGE, 32, 4);
	test_device_check(memory + 8 * PAGE, 32, 4);
	test_out(memory + 8 * PAGE, 32);
	test_check(memory + 8 * PAGE, 32, 4);
	/* A file, over pages of the device. */
	test_out(memory, 8);
	CHECK(mmap(memory, 8 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, memfd_create("x", MFD_CLOEXEC), 0) ==
	      memory);
	/* The event is read before mmap returns, and applied before the next request is answered. */
	hmm_device_read(&mirror, (unsigned long)memory, &(char){ 0 }, 1);
	CHECK_EQ(hmm_mirror_lookup(&mirror, (unsigned long)memory), 0);
	test_close();
}

static void brk_shrink(void)
{
	char *start, *memory;

	test_open(0, DEVICE_MEMORY);
	start = sbrk(0);
	memory = (char *)(((uintptr_t)start + PAGE - 1) & ~(PAGE - 1));
	CHECK_EQ(brk(memory + 64 * PAGE), 0);
	test_fill(memory, 64, 5);
	test_migrate(memory, 64, HMM_DEVICE, NULL);
	CHECK(test_device_pages(memory, 64) > 32);
	CHECK_EQ(brk(memory + 32 * PAGE), 0);
	device_faults(memory + 40 * PAGE);
	CHECK_EQ(brk(memory + 64 * PAGE), 0);
	test_check(memory, 32, 5);
	test_check_zero(memory + 32 * PAGE, 32);
	CHECK_EQ(brk(start), 0);
	test_close();
}

static void remap_grow(void)
{
	char *memory, *grown;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 6);
	grown = mremap(memory, 64 * PAGE, 128 * PAGE, MREMAP_MAYMOVE);
	CHECK(grown != MAP_FAILED);
	test_check(grown, 64, 6);
	test_check_zero(grown + 64 * PAGE, 64);
	test_close();
}

static void remap_grow_in_place(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_apart(128);
	CHECK_EQ(munmap(memory + 64 * PAGE, 64 * PAGE), 0);
	test_fill(memory, 64, 7);
	test_out(memory, 64);
	CHECK(mremap(memory, 64 * PAGE, 128 * PAGE, 0) == memory);
	test_check_zero(memory + 64 * PAGE, 64);
	test_fill(memory + 64 * PAGE, 64, 8);
	test_out(memory + 64 * PAGE, 64);
	test_check(memory, 64, 7);
	test_check(memory + 64 * PAGE, 64, 8);
	test_close();
}

/* Over the borders of blocks: what was watched stays so as far as the mapping goes, and nothing tells of it. */
static void remap_grow_far(void)
{
	const size_t pages = 300, grown = 2 * 512 + 100;

	test_open(0, DEVICE_MEMORY);
	for (int touched = 0; touched < 2; touched++) {
		char *memory = test_map_huge(3), *room = test_map_huge(3), byte = 'x';

		CHECK_EQ(munmap(memory + pages * PAGE, 3 * BLOCK - pages * PAGE), 0);
		CHECK_EQ(munmap(room, 3 * BLOCK), 0);
		test_fill(memory, pages, 31);
		test_out(memory, pages);
		CHECK(mremap(memory, pages * PAGE, grown * PAGE, 0) == memory);
		if (touched) {
			/* A device is there first. */
			CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 700 * PAGE, &byte, 1), 1);
			CHECK_EQ(byte, 0);
			byte = 'y';
			CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 1100 * PAGE, &byte, 1), 1);
			CHECK_EQ(memory[1100 * PAGE], 'y');
			memory[1100 * PAGE] = 0;
		}
		test_home(memory, pages);
		/* Once it is left alone it is one mapping. */
		usleep(300000);
		CHECK(mremap(memory, grown * PAGE, grown * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
			     room) == room);
		test_check(room, pages, 31);
		test_check_zero(room + pages * PAGE, grown - pages);
		test_check_zero(memory, grown);
		CHECK_EQ(munmap(memory, grown * PAGE), 0);
		CHECK_EQ(munmap(room, grown * PAGE), 0);
	}
	test_close();
}

static void remap_shrink(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device_apart(64, 9);
	CHECK(mremap(memory, 64 * PAGE, 16 * PAGE, 0) == memory);
	device_faults(memory + 16 * PAGE);
	device_faults(memory + 63 * PAGE);
	test_check(memory, 16, 9);
	test_close();
}

static void remap_move(void)
{
	char *memory, *room;

	test_open(0, DEVICE_MEMORY);
	room = test_map_apart(64);
	CHECK_EQ(munmap(room, 64 * PAGE), 0);
	memory = on_device_apart(64, 10);
	CHECK(mremap(memory, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
	device_faults(memory);
	test_device_check(room, 64, 10);
	test_check(room, 64, 10);
	/* And it goes on at the new address as it did at the old. */
	test_out(room, 64);
	test_device_check(room, 64, 10);
	test_check(room, 64, 10);
	test_close();
}

/* Some on the device, some shared, some at home, over block borders both here and there. */
static void remap_move_mixed(void)
{
	size_t pages = 3 * 512 - 100;
	char *memory, *room;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(3);
	room = test_map_huge(4);
	CHECK_EQ(munmap(room, 4 * BLOCK), 0);
	room += 37 * PAGE;
	test_fill(memory, pages, 11);
	test_out(memory, pages);
	for (size_t i = 0; i < pages; i += 3) {
		CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 11));
		if (i % 2)
			*(volatile uint64_t *)(memory + i * PAGE) = test_word(i, 0, 11);
	}
	CHECK(mremap(memory, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
	test_device_check(room, pages, 11);
	test_check(room, pages, 11);
	for (size_t i = 0; i < pages; i++)
		*(volatile uint64_t *)(room + i * PAGE) = i;
	for (size_t i = 0; i < pages; i++) {
		uint64_t seen;

		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)room + i * PAGE, &seen, 8), 8);
		CHECK_EQ(seen, i);
	}
	test_close();
}

/*
 * The library moves one mapping, and a device asks for a part of it just then. Were that watched, the kernel would stop
 * after the first block, and somebody may map something where that was before the library goes on.
 */
static struct {
	char *old;			/* NULL: not now */
	char *other;			/* what was mapped there; NULL: all has moved */
	_Atomic bool taken, over;
	bool told;			/* the script has its turn instead */
} meddle;

static void *take_a_block(void *memory)
{
	while (!meddle.over && !meddle.taken)
		if (hmm_migrate(&mirror, (unsigned long)memory, BLOCK, HMM_DEVICE, 0, NULL, NULL) > 0)
			meddle.taken = true;
	return NULL;
}

static long raw_syscall(long number, const long *a)
{
	register long r10 __asm__("r10") = a[3];
	register long r8 __asm__("r8") = a[4];
	register long r9 __asm__("r9") = a[5];
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

static long remap_meanwhile(const long *a)
{
	char *old = meddle.old;
	pthread_t thread;
	long result;
	int error;

	meddle.old = NULL;
	if (meddle.told) {
		char line[16];

		printf("moving\n");
		fflush(stdout);
		CHECK(fgets(line, sizeof(line), stdin));
		return raw_syscall(SYS_mremap, a);
	}
	CHECK_EQ(pthread_create(&thread, NULL, take_a_block, old + BLOCK), 0);
	/* It is put off until this is over; or it has gone by then. */
	for (int i = 0; i < 300 && !meddle.taken; i++)
		usleep(1000);
	result = raw_syscall(SYS_mremap, a);
	error = errno;
	meddle.over = true;
	if (result == -1) {
		meddle.other = mmap(old, BLOCK, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		if (meddle.other == MAP_FAILED)
			meddle.other = NULL;
		else
			memset(meddle.other, 0x77, BLOCK);
	}
	CHECK_EQ(pthread_join(thread, NULL), 0);
	errno = error;
	return result;
}

__attribute__((visibility("default"))) long syscall(long number, ...)
{
	va_list list;
	long a[6];

	va_start(list, number);
	for (unsigned int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_mremap && meddle.old && a[0] == (long)meddle.old)
		return remap_meanwhile(a);
	return raw_syscall(number, a);
}

static void remap_in_one(void)
{
	char *memory, *room;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(4);
	room = test_map_huge(4);
	test_fill(memory, 4 * 512, 16);
	meddle.old = memory;
	CHECK(mremap(memory, 4 * BLOCK, 4 * BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
	CHECK(!meddle.old);
	test_check(room, 4 * 512, 16);
	for (size_t i = 0; meddle.other && i < BLOCK; i++)
		CHECK_EQ(meddle.other[i], 0x77);
	test_out(room, 4 * 512);
	test_device_check(room, 4 * 512, 16);
	test_check(room, 4 * 512, 16);
	test_close();
}

/* hmmd is stopped and another one started in the middle of it. */
static void remap_over_a_stop(void)
{
	char *memory, *room;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	room = test_map_huge(2);
	test_fill(memory, 2 * 512, 17);
	meddle.old = memory;
	meddle.told = true;
	CHECK(mremap(memory, 2 * BLOCK, 2 * BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
	test_check(room, 2 * 512, 17);
	test_out(room, 2 * 512);
	test_device_check(room, 2 * 512, 17);
	test_check(room, 2 * 512, 17);
	printf("moved\n");
	test_close();
}

static void remap_onto(void)
{
	char *memory, *other;

	test_open(0, DEVICE_MEMORY);
	memory = on_device_apart(64, 12);
	other = on_device(96, 13);
	CHECK(mremap(memory, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other + 16 * PAGE) ==
	      other + 16 * PAGE);
	test_check(other, 16, 13);
	test_device_check(other + 16 * PAGE, 64, 12);
	test_check(other + 16 * PAGE, 64, 12);
	for (size_t i = 80; i < 96; i++)
		CHECK_EQ(*(volatile uint64_t *)(other + i * PAGE), test_word(i, 0, 13));
	device_faults(memory);
	test_close();
}

static void remap_dontunmap(void)
{
	char *memory, *moved;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 14);
	moved = mremap(memory, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	if (moved == MAP_FAILED)
		FAIL("mremap: %m");
	test_check(moved, 64, 14);
	test_check_zero(memory, 64);
	test_fill(memory, 64, 15);
	test_out(memory, 64);
	test_check(memory, 64, 15);
	test_check(moved, 64, 14);
	test_close();
}

/* One mapping of which hmmd watches a part: no mremap() may tell. */
static void remap_partly_out(void)
{
	const size_t whole = 3 * 512, pages = whole - 200;
	static const int flags[] = { MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE,
				     MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP };

	test_open(0, DEVICE_MEMORY);
	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		bool fixed = flags[i] & MREMAP_FIXED;
		char *memory = test_map_huge(3), *room = test_map_huge(3), *moved;

		CHECK_EQ(munmap(room, 3 * BLOCK), 0);
		test_fill(memory, whole, 20 + i);
		/* The first block never, the last one also behind what is moved. */
		test_out(memory + BLOCK, 1024);
		moved = mremap(memory, pages * PAGE, (fixed ? pages : whole + 512) * PAGE, flags[i], room);
		if (moved == MAP_FAILED || (fixed && moved != room))
			FAIL("mremap with flags %#x: %m", flags[i]);
		test_check(moved, pages, 20 + i);
		for (size_t page = pages; page < whole; page++)
			CHECK_EQ(((uint64_t *)(memory + page * PAGE))[9], test_word(page, 9, 20 + i));
		test_fill(moved, pages, 30 + i);
		test_out(moved, pages);
		test_check(moved, pages, 30 + i);
		if (flags[i] & MREMAP_DONTUNMAP)
			test_check_zero(memory, pages);
		CHECK_EQ(munmap(moved, pages * PAGE), 0);
		CHECK_EQ(munmap(memory, 3 * BLOCK), 0);
	}
	test_close();
}

/* What DONTUNMAP left is one mapping. Watched in part before it is written again, it is never one again for the kernel. */
static char *left_behind(uint32_t seed)
{
	char *room = test_map_apart(32), *memory = test_map_apart(32);

	/* Room to grow into. */
	CHECK_EQ(munmap(memory + 16 * PAGE, 16 * PAGE), 0);
	test_fill(memory, 16, seed);
	CHECK(mremap(memory, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, room) == room);
	test_check(room, 16, seed);
	CHECK_EQ(munmap(room, 32 * PAGE), 0);
	CHECK_EQ(hmm_migrate(&mirror, (unsigned long)memory + 4 * PAGE, PAGE, HMM_DEVICE, HMM_MIGRATE_POPULATE, NULL, NULL), 1);
	test_fill(memory, 1, seed + 1);
	((volatile char *)memory)[8 * PAGE] = 1;
	test_fill(memory, 16, seed + 1);
	return memory;
}

static void check_grown(char *from, char *memory, uint32_t seed)
{
	if (memory == MAP_FAILED)
		FAIL("mremap: %m");
	CHECK(memory == from);
	test_check(memory, 16, seed);
	test_check_zero(memory + 16 * PAGE, 16);
	test_fill(memory, 32, seed + 1);
	test_out(memory, 32);
	test_device_check(memory, 32, seed + 1);
	test_check(memory, 32, seed + 1);
	CHECK_EQ(munmap(memory, 32 * PAGE), 0);
}

static void remap_left_behind(void)
{
	char *memory, *stop;

	test_open(0, DEVICE_MEMORY);
	if (!(hmm_features(hmm) & HMM_HAS_PROCMAP_QUERY))
		test_skip("the kernel tells nothing of mappings");
	memory = left_behind(50);
	check_grown(memory, mremap(memory, 16 * PAGE, 32 * PAGE, 0), 51);

	/* No room where it is: it is not moved in parts. */
	memory = left_behind(60);
	stop = mmap(memory + 16 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(stop == memory + 16 * PAGE);
	CHECK(mremap(memory, 16 * PAGE, 32 * PAGE, 0) == MAP_FAILED);
	CHECK_EQ(errno, ENOMEM);
	CHECK(mremap(memory, 16 * PAGE, 32 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED);
	CHECK_EQ(errno, EFAULT);
	test_check(memory, 16, 61);
	CHECK_EQ(munmap(stop, PAGE), 0);
	check_grown(memory, mremap(memory, 16 * PAGE, 32 * PAGE, MREMAP_MAYMOVE), 61);

	memory = left_behind(70);
	CHECK(mremap(memory, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE) == memory);
	test_check(memory, 16, 71);
	/* Onto itself, which is refused with nothing changed. */
	CHECK(mremap(memory, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory + 8 * PAGE) == MAP_FAILED);
	CHECK_EQ(errno, EINVAL);
	test_check(memory, 16, 71);

	/* Two mappings of its own making stay two. */
	memory = left_behind(110);
	CHECK_EQ(mprotect(memory + 12 * PAGE, 4 * PAGE, PROT_READ), 0);
	CHECK(mremap(memory, 16 * PAGE, 32 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED);
	CHECK_EQ(errno, EFAULT);
	test_check(memory, 16, 111);
	test_close();
}

static void dontneed(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 16);
	CHECK_EQ(madvise(memory + 8 * PAGE, 16 * PAGE, MADV_DONTNEED), 0);
	test_check_zero(memory + 8 * PAGE, 16);
	test_check(memory, 8, 16);
	/* Of shared pages too. */
	CHECK_EQ(madvise(memory, 8 * PAGE, MADV_DONTNEED), 0);
	test_check_zero(memory, 8);
	CHECK_EQ(madvise(memory, 64 * PAGE, MADV_DONTNEED), 0);
	{
		static char copy[64 * PAGE];

		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, copy, sizeof(copy)), sizeof(copy));
		test_check_zero(copy, 64);
	}
	test_check_zero(memory, 64);
	test_close();
}

static void lazily_freed(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 17);
	CHECK_EQ(madvise(memory, 32 * PAGE, MADV_FREE), 0);
	for (size_t i = 0; i < 32; i++) {
		uint64_t seen = *(volatile uint64_t *)(memory + i * PAGE);

		CHECK(!seen || seen == test_word(i, 0, 17));
	}
	for (size_t i = 32; i < 64; i++)
		CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 17));
	test_fill(memory, 64, 18);
	test_check(memory, 64, 18);
	/* They may be asked to wait: the kernel does not say when it is done with a discard. */
	for (int tries = 0; tries < test_scaled(1000) && test_migrate(memory, 64, HMM_DEVICE, NULL) < 64; tries++)
		usleep(10000);
	test_out(memory, 64);
	test_check(memory, 64, 18);
	test_close();
}

/* Holes punched into shared memory, which stays in place whatever happens. */
static void removed(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	test_fill(memory, 16, 19);
	test_refused(memory, 16, HMM_SHARED_MEMORY);
	CHECK_EQ(madvise(memory, 8 * PAGE, MADV_REMOVE), 0);
	test_check_zero(memory, 8);
	{
		static char copy[8 * PAGE];

		CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory, copy, sizeof(copy)), sizeof(copy));
		test_check_zero(copy, 8);
	}
	CHECK_EQ(*(volatile uint64_t *)(memory + 8 * PAGE), test_word(8, 0, 19));
	test_close();
}

/* By fork(), which waits for what is away, and by a clone() that nobody announces: the same of both kinds. */
static pid_t split(bool raw)
{
	return raw ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
}

static void wipe(bool raw)
{
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	CHECK_EQ(madvise(memory, 16 * PAGE, MADV_WIPEONFORK), 0);
	test_fill(memory, 16, 20);
	test_out(memory, 16);
	child = split(raw);
	if (!child) {
		test_check_zero(memory, 16);
		test_fill(memory, 16, 21);
		test_check(memory, 16, 21);
		_exit(0);
	}
	test_reap(child, 0);
	CHECK_EQ(test_device_pages(memory, 16), raw ? 16 : 0);
	test_check(memory, 16, 20);
	test_close();
}

static void wipe_on_fork(void)
{
	wipe(false);
}

static void wipe_on_clone(void)
{
	wipe(true);
}

static void dont(bool raw)
{
	char *memory;
	pid_t child;

	test_open(0, DEVICE_MEMORY);
	memory = test_map(16);
	CHECK_EQ(madvise(memory, 16 * PAGE, MADV_DONTFORK), 0);
	test_fill(memory, 16, 21);
	test_out(memory, 16);
	child = split(raw);
	if (!child)
		_exit(write(memfd_create("x", 0), memory, 1) == -1 && errno == EFAULT ? 0 : 1);
	test_reap(child, 0);
	CHECK_EQ(test_device_pages(memory, 16), raw ? 16 : 0);
	test_check(memory, 16, 21);
	test_close();
}

static void dont_fork(void)
{
	dont(false);
}

static void dont_clone(void)
{
	dont(true);
}

static void protect(void)
{
	int nowhere = memfd_create("nowhere", MFD_CLOEXEC);
	char *memory, byte = 'x';

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 22);
	CHECK_EQ(mprotect(memory, 32 * PAGE, PROT_READ), 0);
	CHECK_EQ(hmm_device_write(&mirror, (unsigned long)memory + 8 * PAGE, &byte, 1), -EPERM);
	test_device_check(memory, 64, 22);
	test_check(memory, 64, 22);
	CHECK_EQ(pread(nowhere, memory, 1, 0), 0);
	CHECK_EQ(mprotect(memory, 32 * PAGE, PROT_NONE), 0);
	CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + 8 * PAGE, &byte, 1), -EFAULT);
	CHECK_EQ(write(nowhere, memory, 1), -1);
	CHECK_EQ(errno, EFAULT);
	CHECK_EQ(mprotect(memory, 32 * PAGE, PROT_READ | PROT_WRITE), 0);
	test_check(memory, 64, 22);
	test_fill(memory, 64, 23);
	test_out(memory, 64);
	test_check(memory, 64, 23);
	test_close();
}

/* Protected by single pages: the mapping is in pieces, the block is not. */
static void protect_pieces(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(1);
	test_fill(memory, 512, 24);
	test_out(memory, 512);
	for (size_t i = 0; i < 512; i += 8)
		CHECK_EQ(mprotect(memory + i * PAGE, PAGE, PROT_READ), 0);
	test_check(memory, 512, 24);
	for (size_t i = 4; i < 512; i += 8)
		memset(memory + i * PAGE, (int)i, PAGE);
	CHECK_EQ(mprotect(memory, BLOCK, PROT_READ | PROT_WRITE), 0);
	test_fill(memory, 512, 25);
	test_out(memory, 512);
	test_home(memory, 512);
	test_check(memory, 512, 25);
	test_close();
}

static void protect_on_device(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 26);
	CHECK_EQ(mprotect(memory, 64 * PAGE, PROT_NONE), 0);
	/* Home, although nobody may look. */
	test_migrate(memory, 64, HMM_SYSTEM, NULL);
	CHECK_EQ(mprotect(memory, 64 * PAGE, PROT_READ), 0);
	test_check(memory, 64, 26);
	test_close();
}

static void guard_over(void)
{
	int nowhere = memfd_create("nowhere", MFD_CLOEXEC);
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 27);
	if (madvise(memory + 8 * PAGE, 8 * PAGE, MADV_GUARD_INSTALL))
		test_skip("the kernel has no guard pages");
	/* Its neighbours come home and the guard stays a guard. */
	test_check(memory, 8, 27);
	test_migrate(memory, 64, HMM_SYSTEM, NULL);
	CHECK_EQ(write(nowhere, memory + 8 * PAGE, 1), -1);
	CHECK_EQ(errno, EFAULT);
	CHECK_EQ(write(nowhere, memory + 15 * PAGE, 1), -1);
	for (size_t i = 16; i < 64; i++)
		CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), test_word(i, 0, 27));
	CHECK_EQ(madvise(memory + 8 * PAGE, 8 * PAGE, MADV_GUARD_REMOVE), 0);
	test_check_zero(memory + 8 * PAGE, 8);
	test_close();
}

/* Of blocks of small pages, of which @away are on the device: none of those may be invented, or come home by it. */
static bool collapse_blocks(char *memory, size_t blocks, size_t away)
{
	bool done = !madvise(memory, blocks * BLOCK, MADV_COLLAPSE);

	CHECK_EQ(test_device_pages(memory, blocks * 512), away);
	return done;
}

static void collapse(void)
{
	char *memory, *at_home;

	test_open(0, DEVICE_MEMORY);
	memory = test_map_huge(2);
	at_home = memory + BLOCK;
	CHECK_EQ(madvise(memory, 2 * BLOCK, MADV_NOHUGEPAGE), 0);
	test_fill(memory, 1024, 28);
	CHECK_EQ(madvise(memory, 2 * BLOCK, MADV_HUGEPAGE), 0);
	CHECK_EQ(test_smaps(memory, 2 * BLOCK, "AnonHugePages"), 0);
	test_out(memory + 10 * PAGE, 40);
	if (!collapse_blocks(at_home, 1, 0))
		test_skip("the system gives no huge pages");
	CHECK_EQ(test_smaps(memory, 2 * BLOCK, "AnonHugePages"), BLOCK >> 10);
	CHECK(!collapse_blocks(memory, 1, 40));
	CHECK_EQ(test_smaps(memory, 2 * BLOCK, "AnonHugePages"), BLOCK >> 10);
	test_check(memory, 1024, 28);
	/* All is there again: as the kernel likes it. */
	collapse_blocks(memory, 2, 0);
	test_check(memory, 1024, 28);
	test_out(memory, 1024);
	CHECK(!collapse_blocks(memory, 2, 1024));
	CHECK_EQ(test_smaps(memory, 2 * BLOCK, "AnonHugePages"), 0);
	test_device_check(memory, 1024, 28);
	test_check(memory, 1024, 28);
	test_close();
	/* Nobody watches it any more. */
	if (madvise(memory, 2 * BLOCK, MADV_COLLAPSE) && (errno == ENOMEM || errno == EAGAIN))
		test_skip("the system gives no huge pages");
	CHECK_EQ(test_smaps(memory, 2 * BLOCK, "AnonHugePages"), 2 * BLOCK >> 10);
	test_check(memory, 1024, 28);
}

static void lock_later(void)
{
	char *memory;

	test_open(0, DEVICE_MEMORY);
	memory = on_device(64, 29);
	if (mlock(memory, 32 * PAGE))
		test_skip("mlock is not allowed here");
	CHECK_EQ(test_device_pages(memory, 32), 0);
	test_refused(memory, 32, HMM_LOCKED);
	test_check(memory, 64, 29);
	CHECK_EQ(munlock(memory, 32 * PAGE), 0);
	test_out(memory, 64);
	test_check(memory, 64, 29);
	test_close();
}

static long number_in(const char *path)
{
	char text[32] = "";
	int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = file < 0 ? -1 : read(file, text, sizeof(text) - 1);

	if (file >= 0)
		close(file);
	return got > 0 ? atol(text) : -1;
}

/* ksmd makes one page of many equal ones, and drops what userfaultfd had protected. */
static void merged_by_ksm(void)
{
	size_t pages = 256;
	char *memory;

	if (number_in("/sys/kernel/mm/ksm/run") != 1)
		test_skip("ksmd does not run here");
	test_open(0, DEVICE_MEMORY);
	memory = test_map(pages);
	CHECK_EQ(madvise(memory, pages * PAGE, MADV_MERGEABLE), 0);
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < pages; i++)
			memset(memory + i * PAGE, 0x5a, PAGE);
		test_migrate(memory, pages, HMM_DEVICE, NULL);
		/* Shared with the device where it left at all. */
		for (size_t i = 0; i < pages; i++)
			CHECK_EQ(memory[i * PAGE], 0x5a);
		for (int tries = 0; tries < 300 && number_in("/sys/kernel/mm/ksm/pages_sharing") < 100; tries++)
			usleep(10000);
		if (number_in("/sys/kernel/mm/ksm/pages_sharing") < 100)
			printf("nothing was merged in round %d\n", round);
		for (size_t i = 0; i < pages; i++) {
			uint64_t seen;

			*(volatile uint64_t *)(memory + i * PAGE) = i;
			CHECK_EQ(hmm_device_read(&mirror, (unsigned long)memory + i * PAGE, &seen, 8), 8);
			CHECK_EQ(seen, i);
		}
		test_migrate(memory, pages, HMM_DEVICE, NULL);
		for (size_t i = 0; i < pages; i++) {
			CHECK_EQ(*(volatile uint64_t *)(memory + i * PAGE), i);
			CHECK_EQ(memory[i * PAGE + 100], 0x5a);
		}
	}
	test_close();
}

static const struct test_case cases[] = {
	{ "unmap", unmap, false }, { "unmap-many", unmap_many, false }, { "map-over", map_over, false },
	{ "brk-shrink", brk_shrink, false }, { "remap-grow", remap_grow, false },
	{ "remap-grow-in-place", remap_grow_in_place, false }, { "remap-grow-far", remap_grow_far, false }, { "remap-shrink", remap_shrink, false },
	{ "remap-move", remap_move, false }, { "remap-move-mixed", remap_move_mixed, false },
	{ "remap-onto", remap_onto, false }, { "remap-partly-out", remap_partly_out, false },
	{ "remap-left-behind", remap_left_behind, false }, { "remap-in-one", remap_in_one, false }, { "remap-over-a-stop", remap_over_a_stop, true },
	{ "remap-dontunmap", remap_dontunmap, false },
	{ "dontneed", dontneed, false }, { "lazily-freed", lazily_freed, false }, { "removed", removed, false },
	{ "wipe-on-fork", wipe_on_fork, false }, { "dont-fork", dont_fork, false },
	{ "wipe-on-clone", wipe_on_clone, false }, { "dont-clone", dont_clone, false }, { "protect", protect, false },
	{ "protect-pieces", protect_pieces, false }, { "protect-on-device", protect_on_device, false },
	{ "guard-over", guard_over, false }, { "collapse", collapse, false }, { "lock-later", lock_later, false },
	{ "merged-by-ksm", merged_by_ksm, true }, { NULL, NULL, false },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
