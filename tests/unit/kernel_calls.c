// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * kernel_calls.c - the table of kernel calls, on this process itself: mappings
 * by PROCMAP_QUERY and by text say the same; what the probe found is so.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel/kernel.h"
#include "layout.h"
#include "tests/leakcheck.h"
#include "uapi.h"

LEAKCHECKED_SUITE(maps);
LEAKCHECKED_SUITE(calls);
LEAKCHECKED_SUITE(probe);

/* ---- mappings ---------------------------------------------------------------------- */

static char snapshot_text[1 << 20];

static int open_self(const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/%s", name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fd = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert(ge(int, fd, 0), "%s", path);
	return fd;
}

/* Text in a file that PROCMAP_QUERY does not work on: the parser has to. */
static int text_file(const char *text, size_t length)
{
	int fd = memfd_create("maps", MFD_CLOEXEC);

	cr_assert(ge(int, fd, 0));
	cr_assert(eq(sz, (size_t)write(fd, text, length), length));
	return fd;
}

/* Mappings of every kind, beside those that the process has. */
static void make_variety(void)
{
	static const int protections[] = {
		PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC,
		PROT_READ | PROT_WRITE | PROT_EXEC,
	};
	char name[300] = "/tmp/hmm test ";
	char *room;
	int fd;

	for (unsigned int i = 0; i < 5; i++) {
		cr_assert(ne(ptr,
			     mmap(NULL, 8 * HMM_PAGE_SIZE, protections[i],
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
			     MAP_FAILED));
		cr_assert(ne(ptr,
			     mmap(NULL, 8 * HMM_PAGE_SIZE, protections[i],
				  MAP_SHARED | MAP_ANONYMOUS, -1, 0),
			     MAP_FAILED));
	}
	/* Neighbours that differ, holes of one page. */
	room = mmap(NULL, 600 * HMM_PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert(ne(ptr, room, MAP_FAILED));
	for (unsigned int i = 0; i < 600; i += 3) {
		munmap(room + i * HMM_PAGE_SIZE, HMM_PAGE_SIZE);
		mprotect(room + (i + 1) * HMM_PAGE_SIZE, HMM_PAGE_SIZE, PROT_READ | PROT_WRITE);
	}
	/* A path with spaces, and longer than a name has room for. */
	memset(name + strlen(name), 'x', 200);
	fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	cr_assert(ge(int, fd, 0), "%s: %m", name);
	unlink(name);
	cr_assert(eq(int, ftruncate(fd, 1 << 20), 0));
	cr_assert(ne(ptr, mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE, fd, 0), MAP_FAILED));
	cr_assert(ne(ptr, mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0),
		     MAP_FAILED));
	close(fd);
}

static void check_same(int maps, int text, uint64_t addr)
{
	struct kernel_vma query = { 0 }, parsed = { 0 };
	int a = kernel->vma_at(maps, addr, &query), b = kernel->vma_at(text, addr, &parsed);

	/* The text alone has the gate page, above all that a program can map. */
	if (b == 0 && parsed.start >= HMM_VA_END)
		b = -ENOENT;
	cr_assert(eq(int, a, b), "at %#lx", addr);
	if (a)
		return;
	cr_assert(eq(u64, query.start, parsed.start), "at %#lx", addr);
	cr_assert(eq(u64, query.end, parsed.end), "at %#lx", addr);
	cr_assert(lt(u64, addr, query.end));
	cr_assert(eq(int, query.read, parsed.read), "at %#lx", addr);
	cr_assert(eq(int, query.write, parsed.write), "at %#lx", addr);
	cr_assert(eq(int, query.exec, parsed.exec), "at %#lx", addr);
	cr_assert(eq(int, query.shared, parsed.shared), "at %#lx", addr);
	cr_assert(eq(int, query.file, parsed.file), "at %#lx", addr);
	/* A path that does not fit is cut, or only said to be one. */
	if (strcmp(query.name, "/") == 0)
		cr_assert(eq(chr, parsed.name[0], '/'));
	else
		cr_assert(eq(str, query.name, parsed.name), "at %#lx", addr);
}

Test(maps, text_and_query_agree)
{
	struct kernel_facts facts;
	struct kernel_vma vma;
	int maps, text;
	size_t length = 0;
	ssize_t n;
	unsigned int seen = 0;
	uint64_t at = 0;

	kernel_probe(&facts);
	make_variety();
	maps = open_self("maps");
	/* Nothing may change from here on: no allocation between the snapshot and the looks. */
	text = memfd_create("maps", MFD_CLOEXEC);
	while ((n = read(maps, snapshot_text + length, sizeof(snapshot_text) - length)) > 0)
		length += (size_t)n;
	cr_assert(lt(sz, length, sizeof(snapshot_text)));
	cr_assert(eq(sz, (size_t)write(text, snapshot_text, length), length));

	while (kernel->vma_at(maps, at, &vma) == 0 && vma.start < HMM_VA_END) {
		check_same(maps, text, vma.start - 1);
		check_same(maps, text, vma.start);
		check_same(maps, text, vma.start + 1);
		check_same(maps, text, vma.end - 1);
		check_same(maps, text, vma.end);
		at = vma.end;
		seen++;
	}
	check_same(maps, text, 0);
	check_same(maps, text, HMM_VA_END - 1);
	cr_expect(lt(uint, 400, seen), "only %u mappings were looked at", seen);
	cr_expect(facts.procmap_query,
		  "only the text was tested: this kernel has no PROCMAP_QUERY");
	close(text);
	close(maps);
}

Test(maps, kinds)
{
	int maps = open_self("maps");
	char *private = mmap(NULL, HMM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *shared = mmap(NULL, HMM_PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *heap = sbrk(4096);
	struct kernel_vma vma;

	cr_assert(eq(int, kernel->vma_at(maps, (uintptr_t)private, &vma), 0));
	cr_expect(vma.read && vma.write && !vma.exec && !vma.shared && !vma.file);
	cr_assert(eq(int, kernel->vma_at(maps, (uintptr_t)shared, &vma), 0));
	cr_expect(vma.read && !vma.write && vma.shared && vma.file,
		  "shared anonymous memory has an inode");
	cr_assert(eq(int, kernel->vma_at(maps, (uintptr_t)&make_variety, &vma), 0));
	cr_expect(vma.exec && vma.file && vma.name[0] == '/');
	cr_assert(eq(int, kernel->vma_at(maps, (uintptr_t)__builtin_frame_address(0), &vma), 0));
	cr_expect(eq(str, vma.name, "[stack]"));
	cr_assert(eq(int, kernel->vma_at(maps, (uintptr_t)heap, &vma), 0));
	cr_expect(eq(str, vma.name, "[heap]"));
	munmap(private, HMM_PAGE_SIZE);
	munmap(shared, HMM_PAGE_SIZE);
	close(maps);
}

/* Both looks at the map agree where nobody changes it, whatever is mapped and whatever its pages have. */
Test(maps, both_looks_agree)
{
	int maps = open_self("maps"), pagemap = open_self("pagemap");
	struct kernel_vma vma = { 0 };
	unsigned int seen = 0, gaps = 0;
	uint64_t at = 0;
	int r;

	make_variety();
	r = kernel->mapped(pagemap, (uint64_t)&vma);
	if (r < 0)
		cr_skip_test("this kernel has no PAGEMAP_SCAN");
	cr_assert(eq(int, r, 1));
	for (; kernel->vma_at(maps, at, &vma) == 0 && vma.start < HMM_VA_END; at = vma.end) {
		if (vma.start > at) {
			cr_assert(eq(int, kernel->mapped(pagemap, at), 0), "at %#lx", at);
			r = kernel->mapped(pagemap, vma.start - 1);
			cr_assert(eq(int, r, 0), "at %#lx", vma.start - 1);
			gaps++;
		}
		/* The kernel's own frames aside. */
		if (strncmp(vma.name, "[v", 2) == 0)
			continue;
		cr_assert(eq(int, kernel->mapped(pagemap, vma.start), 1), "at %#lx", vma.start);
		cr_assert(eq(int, kernel->mapped(pagemap, vma.end - 1), 1), "at %#lx", vma.end - 1);
		seen++;
	}
	cr_expect(lt(uint, 400, seen));
	cr_expect(lt(uint, 100, gaps));
	cr_expect(lt(int, kernel->mapped(maps, (uint64_t)&vma), 0));
	close(pagemap);
	close(maps);
}

/* Text that no kernel of ours writes, but that must do no harm. */
Test(maps, strange_text)
{
	static char line[20000];
	struct kernel_vma vma;
	size_t n;
	int fd;

	fd = text_file("", 0);
	cr_expect(eq(int, kernel->vma_at(fd, 0, &vma), -ENOENT));
	close(fd);
	fd = text_file("\n\nnonsense\n1000-2000 rw-p 00000000 00:00 0\n", 43);
	cr_assert(eq(int, kernel->vma_at(fd, 0, &vma), 0));
	cr_expect(eq(u64, vma.start, 0x1000));
	cr_expect(eq(str, vma.name, ""));
	cr_expect(eq(int, kernel->vma_at(fd, 0x2000, &vma), -ENOENT));
	close(fd);

	/* Lines that end exactly where a read does, whatever its size. */
	for (unsigned int pad = 0; pad < 130; pad++) {
		n = 0;
		for (unsigned int i = 0; i < 140; i++)
			n += (size_t)snprintf(
				line + n, sizeof(line) - n, "%x-%x r--s 00000000 00:01 77 %*s/f\n",
				0x100000 + i * 0x2000, 0x101000 + i * 0x2000, (int)pad % 60, "");
		fd = text_file(line, n);
		for (unsigned int i = 0; i < 140; i += 13) {
			cr_assert(eq(int, kernel->vma_at(fd, 0x100000 + i * 0x2000 + 5, &vma), 0));
			cr_assert(eq(u64, vma.start, 0x100000 + i * 0x2000));
			cr_assert(vma.read && vma.shared && vma.file && !vma.write);
		}
		close(fd);
	}

	/* A path longer than the parser's buffer: the mapping behind it is found. */
	n = (size_t)snprintf(line, sizeof(line), "1000-2000 r--p 00000000 00:01 5 /");
	memset(line + n, 'a', 12000);
	n += 12000;
	n += (size_t)snprintf(line + n, sizeof(line) - n, "\n5000-6000 rw-p 00000000 00:00 0\n");
	fd = text_file(line, n);
	cr_assert(eq(int, kernel->vma_at(fd, 0x4000, &vma), 0));
	cr_expect(eq(u64, vma.start, 0x5000));
	cr_expect(vma.write);
	cr_assert(eq(int, kernel->vma_at(fd, 0x1000, &vma), 0));
	cr_expect(eq(u64, vma.start, 0x1000), "a mapping with a long path was passed over");
	close(fd);
}

/* ---- calls ------------------------------------------------------------------------------ */

#define ROOM (4 * HMM_BLOCK_SIZE)

struct armed {
	int uffd;
	char *memory;
};

static struct armed arm(void)
{
	const uint64_t modes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
	struct armed armed = { .uffd = kernel_uffd_new() };

	cr_assert(ge(int, armed.uffd, 0));
	cr_assert(eq(int, kernel_uffd_api(armed.uffd, UFFD_FEATURE_PAGEFAULT_FLAG_WP, NULL), 0));
	armed.memory = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(armed.memory, ROOM, MADV_NOHUGEPAGE);
	cr_assert(eq(int, kernel->uffd_register(armed.uffd, (uintptr_t)armed.memory, ROOM, modes),
		     0));
	return armed;
}

static void disarm(struct armed *armed)
{
	cr_assert(eq(int, kernel->uffd_unregister(armed->uffd, (uintptr_t)armed->memory, ROOM), 0));
	munmap(armed->memory, ROOM);
	close(armed->uffd);
}

static void page_of(char *page, int value)
{
	memset(page, value, HMM_PAGE_SIZE);
}

Test(calls, copy_says_what_it_did)
{
	struct armed armed = arm();
	uint64_t at = (uintptr_t)armed.memory;
	static char bytes[8 * HMM_PAGE_SIZE];
	size_t done = 99;

	for (unsigned int i = 0; i < 8; i++)
		page_of(bytes + i * HMM_PAGE_SIZE, (int)i + 1);
	cr_expect(
		eq(int, kernel->uffd_copy(armed.uffd, at, bytes, 4 * HMM_PAGE_SIZE, 0, &done), 0));
	cr_expect(eq(sz, done, 4 * HMM_PAGE_SIZE));
	/* Half-way into pages that are there. */
	cr_expect(eq(int, kernel->uffd_copy(armed.uffd, at, bytes, HMM_PAGE_SIZE, 0, &done),
		     -EEXIST));
	cr_expect(eq(sz, done, 0));
	cr_assert(eq(int,
		     kernel->uffd_copy(armed.uffd, at + 6 * HMM_PAGE_SIZE,
				       bytes + 6 * HMM_PAGE_SIZE, HMM_PAGE_SIZE, 0, &done),
		     0));
	cr_expect(lt(int,
		     kernel->uffd_copy(armed.uffd, at + 4 * HMM_PAGE_SIZE,
				       bytes + 4 * HMM_PAGE_SIZE, 4 * HMM_PAGE_SIZE, 0, &done),
		     0));
	cr_expect(eq(sz, done, 2 * HMM_PAGE_SIZE), "what was copied before it stopped");
	/* Not registered; not mapped. */
	cr_expect(eq(int,
		     kernel->uffd_copy(armed.uffd, (uintptr_t)bytes & ~4095UL, armed.memory,
				       HMM_PAGE_SIZE, 0, &done),
		     -ENOENT));
	cr_expect(eq(sz, done, 0));
	for (unsigned int i = 0; i < 7; i++)
		cr_expect(eq(int, armed.memory[i * HMM_PAGE_SIZE + 77], (int)i + 1), "page %u", i);
	disarm(&armed);
}

Test(calls, zero_protect_pagemap)
{
	struct armed armed = arm();
	uint64_t at = (uintptr_t)armed.memory, entries[4];
	int pagemap = open_self("pagemap");
	size_t done;

	cr_assert(eq(int, kernel->pagemap_read(pagemap, at, 4, entries), 0));
	cr_expect(eq(u64, entries[0] & PM_PRESENT, 0));
	cr_expect(eq(int,
		     kernel->uffd_zero(armed.uffd, at + HMM_PAGE_SIZE, 2 * HMM_PAGE_SIZE, &done),
		     0));
	cr_expect(eq(sz, done, 2 * HMM_PAGE_SIZE));
	cr_assert(eq(int, kernel->pagemap_read(pagemap, at, 4, entries), 0));
	cr_expect(eq(u64, entries[0] & PM_PRESENT, 0));
	cr_expect(ne(u64, entries[1] & PM_PRESENT, 0));
	cr_expect(ne(u64, entries[2] & PM_PRESENT, 0));
	cr_expect(eq(u64, entries[3] & PM_PRESENT, 0));
	cr_expect(eq(int, armed.memory[HMM_PAGE_SIZE], 0));
	cr_expect(eq(int, kernel->uffd_protect(armed.uffd, at, ROOM, true), 0));
	cr_expect(eq(int, kernel->uffd_protect(armed.uffd, at, ROOM, false), 0));
	armed.memory[HMM_PAGE_SIZE] = 5;
	cr_expect(eq(int, kernel->uffd_wake(armed.uffd, at, ROOM), 0));
	close(pagemap);
	disarm(&armed);
}

static long resident_pages(void)
{
	FILE *file = fopen("/proc/self/statm", "re");
	long size = 0, resident = 0;

	cr_assert(file && fscanf(file, "%ld %ld", &size, &resident) == 2);
	fclose(file);
	return resident;
}

/* Whether reading untouched memory costs none: the page of zeros counts nowhere. */
static bool pages_of_zeros(void)
{
	size_t length = 1024 * HMM_PAGE_SIZE;
	const volatile char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long before = resident_pages(), after;

	for (size_t at = 0; at < length; at += HMM_PAGE_SIZE)
		(void)memory[at];
	after = resident_pages();
	munmap((void *)(uintptr_t)memory, length);
	return after - before < 512;
}

Test(calls, page_kinds)
{
	const volatile char *memory = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t kinds[4] = { 9, 9, 9, 9 };
	int pagemap = open_self("pagemap"), r;

	cr_expect(eq(int, memory[HMM_PAGE_SIZE], 0));
	r = kernel->page_kinds(pagemap, (uintptr_t)memory, 4, kinds);
	if (r == -ENOTTY)
		cr_skip_test("this kernel has no PAGEMAP_SCAN");
	cr_assert(eq(int, r, 0));
	cr_expect(eq(int, kinds[0], 0));
	/* Some kernels have a page of its own for whoever reads what was never written. */
	cr_expect(kinds[1] == KERNEL_PAGE_ZERO || !pages_of_zeros());
	cr_expect(eq(int, kinds[2], 0));
	cr_expect(eq(int, kernel->page_kinds(-1, (uintptr_t)memory, 4, kinds), -EBADF));
	close(pagemap);
	munmap((void *)(uintptr_t)memory, ROOM);
}

/* Present pages only: what is armed and missing is an error, not a wait. */
Test(calls, bytes_of_another)
{
	struct armed armed = arm();
	uint64_t at = (uintptr_t)armed.memory;
	int mem = open_self("mem");
	char bytes[HMM_PAGE_SIZE], back[HMM_PAGE_SIZE];
	size_t done;

	page_of(bytes, 9);
	cr_expect(lt(int, (int)kernel->mem_read(mem, at, back, sizeof(back)), 0));
	cr_expect(lt(int, (int)kernel->mem_write(mem, at, bytes, sizeof(bytes)), 0));
	cr_assert(eq(int, kernel->uffd_copy(armed.uffd, at, bytes, HMM_PAGE_SIZE, 0, &done), 0));
	cr_expect(eq(int, (int)kernel->mem_read(mem, at, back, sizeof(back)), (int)HMM_PAGE_SIZE));
	cr_expect(eq(int, memcmp(back, bytes, sizeof(back)), 0));
	bytes[3] = 4;
	cr_expect(eq(int, (int)kernel->mem_write(mem, at + 3, bytes + 3, 1), 1));
	cr_expect(eq(int, armed.memory[3], 4));
	close(mem);
	disarm(&armed);
}

Test(calls, memfds_cannot_change_size_and_are_ours)
{
	int fd = kernel->memfd_new("test", 8 * HMM_PAGE_SIZE, 0), again;
	struct stat stat;
	char path[64], byte = 1;

	cr_assert(ge(int, fd, 0));
	cr_assert(eq(int, fstat(fd, &stat), 0));
	cr_expect(eq(i64, stat.st_size, 8 * HMM_PAGE_SIZE));
	cr_expect(eq(uint, stat.st_mode & 0777, 0600));
	cr_expect(lt(int, ftruncate(fd, 0), 0));
	cr_expect(lt(int, ftruncate(fd, 16 * HMM_PAGE_SIZE), 0));
	cr_expect(lt(int, fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0),
		  "nobody can seal it against hmmd");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert(ge(int, again, 0));
	cr_expect(lt(int, (int)write(again, &byte, 1), 0));
	cr_expect(eq(int, kernel->punch(fd, 0, HMM_PAGE_SIZE), 0));
	cr_expect(lt(int, kernel->punch(again, 0, HMM_PAGE_SIZE), 0),
		  "not through a read-only copy");
	close(again);
	close(fd);
	cr_expect(lt(int, kernel->memfd_new("test", (uint64_t)INT64_MAX + 1, 0), 0));
}

Test(calls, collapse_makes_one_page_of_many)
{
	struct kernel_facts facts;
	char *room = mmap(NULL, 2 * HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *block = (char *)(((uintptr_t)room + HMM_BLOCK_SIZE - 1) & ~(HMM_BLOCK_SIZE - 1));
	int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0), tries = 0, result = 0;

	kernel_probe(&facts);
	cr_assert(ge(int, pidfd, 0));
	madvise(room, 2 * HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < HMM_BLOCK_SIZE; i += HMM_PAGE_SIZE)
		block[i] = (char)(i / HMM_PAGE_SIZE);
	madvise(room, 2 * HMM_BLOCK_SIZE, MADV_HUGEPAGE);
	if (facts.collapse)
		while ((result = kernel->collapse(pidfd, (uintptr_t)block, HMM_BLOCK_SIZE)) && tries++ < 2000)
			usleep(1000);
	cr_expect(
		lt(int, kernel->collapse(pidfd, (uintptr_t)room - (1UL << 40), HMM_BLOCK_SIZE), 0));
	for (size_t i = 0; i < HMM_BLOCK_SIZE; i += HMM_PAGE_SIZE)
		cr_assert(eq(int, block[i], (char)(i / HMM_PAGE_SIZE)));
	munmap(room, 2 * HMM_BLOCK_SIZE);
	close(pidfd);
	if (result == -ENOMEM || result == -EAGAIN || result == -EBUSY)
		cr_skip_test("the system gives no huge pages");
	cr_assert(eq(int, result, 0));
}

/* ---- the probe ------------------------------------------------------------------------------ */

/* What it says is off would be a silent downgrade on a kernel that has it. */
Test(probe, what_it_found_is_so)
{
	struct kernel_facts facts, again;
	uint64_t have = 0;
	int fd = kernel_uffd_new();

	memset(&facts, 0xff, sizeof(facts));
	kernel_probe(&facts);
	kernel_probe(&again);
	cr_expect(eq(u64, facts.uffd_features, again.uffd_features));
	cr_expect(eq(int, facts.io_uring, again.io_uring));
	cr_expect(eq(int, facts.collapse, again.collapse));
	cr_assert(ge(int, fd, 0));
	cr_expect(ne(int, fcntl(fd, F_GETFD) & FD_CLOEXEC, 0));
	cr_expect(ne(int, fcntl(fd, F_GETFL) & O_NONBLOCK, 0));
	cr_assert(eq(int, kernel_uffd_api(fd, 0, &have), 0));
	cr_expect(eq(u64, facts.uffd_features, have));
	cr_expect(ne(u64, have & UFFD_FEATURE_EVENT_UNMAP, 0));
	cr_expect(ne(u64, have & UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0));
	cr_expect(ge(uint, facts.nodes, 1));
	cr_expect(lt(int, kernel_uffd_api(fd, 1ULL << 63, NULL), 0),
		  "what does not exist is refused");
	close(fd);
	if (geteuid() == 0)
		cr_expect(facts.event_fork, "root may ask for fork events");
	cr_expect(eq(int, kernel->merging(), kernel->merging()));
}

/* ---- memory nodes -------------------------------------------------------------------- */

/* The first that there is, and the first that is not. Skips where the kernel has no policies. */
static void find_nodes(unsigned int *there, unsigned int *absent)
{
	uint64_t nodes[HMM_NODE_WORDS];

	if (kernel_nodes(nodes))
		cr_skip_test("this kernel has no memory policies");
	cr_assert(ne(u64, nodes[0], 0));
	cr_assert(ne(u64, ~nodes[0], 0));
	*there = (unsigned int)__builtin_ctzll(nodes[0]);
	*absent = (unsigned int)__builtin_ctzll(~nodes[0]);
}

Test(calls, memory_of_nodes)
{
	uint64_t bytes = 1, size = 0, huge, dax[HMM_NODE_WORDS];
	unsigned int there, absent, others;
	struct kernel_facts facts;
	int count;

	find_nodes(&there, &absent);
	kernel_probe(&facts);
	cr_expect(eq(uint, facts.nodes, kernel_count_nodes()));
	cr_assert(eq(int, kernel->node_free(there, &bytes), 0));
	cr_assert(eq(int, kernel_node_size(there, &size), 0));
	cr_expect(lt(u64, bytes, size), "something is left alone");
	cr_expect(eq(int, kernel_node_huge(there, &huge), 0));
	cr_expect(eq(int, kernel->node_free(1023, &bytes), -ENOENT));
	cr_expect(eq(int, kernel_node_size(1023, &size), -ENOENT));
	count = kernel_dax_nodes(dax, &others);
	cr_assert(ge(int, count, 0));
	/* A node of a processor's own memory is none of dax devices alone. */
	cr_expect(not(dax[0] >> there & 1));
}

Test(calls, placing)
{
	uint64_t good[HMM_NODE_WORDS] = { 0 }, bad[HMM_NODE_WORDS] = { 0 }, seen[HMM_NODE_WORDS] = { 0 };
	unsigned int there, absent;
	int fd = memfd_create("placed", MFD_CLOEXEC), mode = -1;
	unsigned char core[4] = { 0 };
	char *map, *fixed;

	find_nodes(&there, &absent);
	good[there / 64] = 1ULL << (there % 64);
	bad[absent / 64] = 1ULL << (absent % 64);
	cr_assert(eq(int, ftruncate(fd, 4 * HMM_PAGE_SIZE), 0));
	map = mmap(NULL, 4 * HMM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	fixed = mmap(NULL, 4 * HMM_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	cr_assert(map != MAP_FAILED && fixed != MAP_FAILED);
	cr_expect(eq(int, kernel->place(map, 4 * HMM_PAGE_SIZE, MPOL_BIND, good), 0));
	cr_expect(eq(int, kernel->place(map, 4 * HMM_PAGE_SIZE, MPOL_BIND, bad), -EINVAL));
	cr_expect(eq(int, kernel->populate(map, 2 * HMM_PAGE_SIZE), 0));
	cr_assert(eq(int, mincore(map, 4 * HMM_PAGE_SIZE, core), 0));
	cr_expect(core[0] & core[1] & ~core[2] & 1);
	cr_expect(lt(int, kernel->populate(fixed, HMM_PAGE_SIZE), 0));
	cr_expect(eq(int, kernel->policy(MPOL_BIND, good[0]), 0));
	cr_assert(eq(long, syscall(SYS_get_mempolicy, &mode, seen, 1024, NULL, 0), 0L));
	cr_expect(eq(int, mode, MPOL_BIND));
	cr_expect(eq(u64, seen[0], good[0]));
	cr_expect(eq(int, kernel->policy(MPOL_BIND, bad[0]), -EINVAL));
	cr_expect(eq(int, kernel->policy(MPOL_DEFAULT, 0), 0));
	cr_assert(eq(long, syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0), 0L));
	cr_expect(eq(int, mode, MPOL_DEFAULT));
	munmap(map, 4 * HMM_PAGE_SIZE);
	munmap(fixed, 4 * HMM_PAGE_SIZE);
	close(fd);
}

/* It began with a policy, as all of hmmd does where numactl(8) starts it. */
static void *follow_another(void *argument)
{
	uint64_t *nodes = argument, seen[HMM_NODE_WORDS] = { 0 };
	int mode = -1;

	for (int i = 0; i < 2; i++) {
		cr_expect(eq(int, kernel->policy(MPOL_BIND, nodes[0]), 0));
		cr_expect(eq(int, kernel->policy(MPOL_DEFAULT, 0), 0));
		cr_expect(eq(long, syscall(SYS_get_mempolicy, &mode, seen, 1024, NULL, 0), 0L));
		cr_expect(eq(int, mode, MPOL_INTERLEAVE));
		cr_expect(eq(u64, seen[0], nodes[0]));
	}
	return NULL;
}

Test(calls, the_policy_that_hmmd_was_started_with)
{
	uint64_t nodes[HMM_NODE_WORDS] = { 0 };
	unsigned int there, absent;
	pthread_t thread;

	find_nodes(&there, &absent);
	nodes[there / 64] = 1ULL << (there % 64);
	cr_assert(eq(long, syscall(SYS_set_mempolicy, MPOL_INTERLEAVE, nodes, 1025), 0L));
	cr_assert(eq(int, pthread_create(&thread, NULL, follow_another, nodes), 0));
	pthread_join(thread, NULL);
	follow_another(nodes);
}

/* The same with fork events: refused without the privilege, never a handshake half done. */
Test(probe, a_handshake_can_be_tried_again)
{
	int fd = kernel_uffd_new();

	cr_assert(ge(int, fd, 0));
	cr_expect(lt(int, kernel_uffd_api(fd, 1ULL << 62, NULL), 0));
	cr_expect(eq(int, kernel_uffd_api(fd, UFFD_FEATURE_EVENT_REMOVE, NULL), 0));
	cr_expect(lt(int, kernel_uffd_api(fd, UFFD_FEATURE_EVENT_REMOVE, NULL), 0),
		  "once and for all");
	close(fd);
}
