// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * inject.c - hmmd on a kernel that fails at the worst moment. Linked with
 * hmmd's own main.c into hmmd_inject; it puts itself in front of the table of
 * kernel calls (kernel.h) before main() begins.
 *
 *   HMMD_INJECT=CALL:ERROR:N[:TIMES]   the Nth CALL, and the TIMES - 1 behind
 *                   it, fail with ERROR and do nothing. ERROR "SHORT": half of
 *                   it is done, and it answers as the kernel does then, EAGAIN.
 *   HMMD_INJECT_REPORT=FILE            at the end: a line "CALL COUNT" for each,
 *                   and "injected COUNT".
 *
 * Only what the kernel may answer at any time is worth injecting: EEXIST with
 * no page there, or ESRCH with the process alive, would be lies that nothing
 * could survive, and WAKE cannot fail.
 *
 * Any thread of hmmd runs this; the counters are atomic.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "errors.h"
#include "kernel/kernel.h"
#include "layout.h"
#include "uapi.h"

enum call {
	UFFD_COPY,
	UFFD_ZERO,
	UFFD_POISON,
	UFFD_CONTINUE,
	UFFD_PROTECT,
	UFFD_REGISTER,
	UFFD_UNREGISTER,
	UFFD_READ,
	PAGEMAP_READ,
	PAGES_WRITTEN,
	SOFT_DIRTY_CLEAR,
	MEM_READ,
	MEM_WRITE,
	VMA_AT,
	MEMFD_NEW,
	PUNCH,
	COLLAPSE,
	MERGING,
	PAGE_KINDS,
	PLACE,
	POLICY,
	POPULATE,
	NODE_FREE,
	MAPPED,
	TOLD,
	LOCK,
	CALLS
};

static const char *const call_names[CALLS] = {
	"uffd_copy",	   "uffd_zero",	   "uffd_poison", "uffd_continue", "uffd_protect", "uffd_register",
	"uffd_unregister", "uffd_read",	   "pagemap_read", "pages_written", "soft_dirty_clear",
	"mem_read",	   "mem_write",	   "vma_at",
	"memfd_new",	   "punch",	   "collapse",	  "merging",	  "page_kinds",
	"place",	   "policy",	   "populate",	  "node_free",	   "mapped",
	"told",		   "lock",
};

static struct {
	enum call call;
	int error;
	unsigned long first, times;
} plan = { .call = CALLS };

static _Atomic unsigned long counts[CALLS], injected;
static char *report_path;

/* Counts the call; true when it is one that shall fail. */
static bool due(enum call call)
{
	unsigned long n = atomic_fetch_add(&counts[call], 1) + 1;

	if (call != plan.call || n < plan.first || n - plan.first >= plan.times)
		return false;
	atomic_fetch_add(&injected, 1);
	return true;
}

/* Half of the pages, if there are two. */
static size_t half(size_t length)
{
	return length / 2 / HMM_PAGE_SIZE * HMM_PAGE_SIZE;
}

static int copy(int uffd, uint64_t dst, const void *src, size_t length, uint64_t mode, size_t *done)
{
	int r;

	if (!due(UFFD_COPY))
		return kernel_real.uffd_copy(uffd, dst, src, length, mode, done);
	*done = 0;
	if (plan.error)
		return -plan.error;
	r = half(length) ? kernel_real.uffd_copy(uffd, dst, src, half(length), mode, done) : 0;
	return r ? r : -EAGAIN;
}

static int zero(int uffd, uint64_t dst, size_t length, size_t *done)
{
	int r;

	if (!due(UFFD_ZERO))
		return kernel_real.uffd_zero(uffd, dst, length, done);
	*done = 0;
	if (plan.error)
		return -plan.error;
	r = half(length) ? kernel_real.uffd_zero(uffd, dst, half(length), done) : 0;
	return r ? r : -EAGAIN;
}

static int poison(int uffd, uint64_t dst, size_t length, size_t *done)
{
	if (!due(UFFD_POISON))
		return kernel_real.uffd_poison(uffd, dst, length, done);
	*done = 0;
	return -plan.error;
}

static int do_continue(int uffd, uint64_t dst, size_t length, uint64_t mode, size_t *done)
{
	int r;

	if (!due(UFFD_CONTINUE))
		return kernel_real.uffd_continue(uffd, dst, length, mode, done);
	*done = 0;
	if (plan.error)
		return -plan.error;
	r = half(length) ? kernel_real.uffd_continue(uffd, dst, half(length), mode, done) : 0;
	return r ? r : -EAGAIN;
}

static int protect(int uffd, uint64_t start, size_t length, bool on)
{
	return due(UFFD_PROTECT) ? -plan.error : kernel_real.uffd_protect(uffd, start, length, on);
}

static int do_register(int uffd, uint64_t start, size_t length, uint64_t mode)
{
	return due(UFFD_REGISTER) ? -plan.error
				  : kernel_real.uffd_register(uffd, start, length, mode);
}

static int do_unregister(int uffd, uint64_t start, size_t length)
{
	return due(UFFD_UNREGISTER) ? -plan.error
				    : kernel_real.uffd_unregister(uffd, start, length);
}

/* It hears of forks, and may have a child's descriptor to give: for that alone reading needs memory, and a number. */
static bool hears_forks(int uffd)
{
	char path[64];
	unsigned int api, features = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", uffd);
	file = fopen(path, "re");
	while (file && fgets(path, sizeof(path), file))
		if (sscanf(path, "API: %x:%x", &api, &features) == 2)
			break;
	if (file)
		fclose(file);
	return features & UFFD_FEATURE_EVENT_FORK;
}

static ssize_t uffd_read(int uffd, void *messages, size_t length)
{
	return hears_forks(uffd) && due(UFFD_READ) ? -plan.error : kernel_real.uffd_read(uffd, messages, length);
}

static int pages_written(int pagemap, uint64_t start, uint64_t end, struct kernel_region *regions, unsigned int max,
			 uint64_t *walked)
{
	return due(PAGES_WRITTEN) ? -plan.error
				  : kernel_real.pages_written(pagemap, start, end, regions, max, walked);
}

static int soft_dirty_clear(int clear_refs)
{
	return due(SOFT_DIRTY_CLEAR) ? -plan.error : kernel_real.soft_dirty_clear(clear_refs);
}

static int pagemap_read(int pagemap, uint64_t start, unsigned int pages, uint64_t *entries)
{
	return due(PAGEMAP_READ) ? -plan.error
				 : kernel_real.pagemap_read(pagemap, start, pages, entries);
}

static int page_kinds(int pagemap, uint64_t start, unsigned int pages, uint8_t *kinds)
{
	return due(PAGE_KINDS) ? -plan.error : kernel_real.page_kinds(pagemap, start, pages, kinds);
}

static ssize_t mem_read(int mem, uint64_t addr, void *buffer, size_t length)
{
	return due(MEM_READ) ? -plan.error : kernel_real.mem_read(mem, addr, buffer, length);
}

static ssize_t mem_write(int mem, uint64_t addr, const void *buffer, size_t length)
{
	return due(MEM_WRITE) ? -plan.error : kernel_real.mem_write(mem, addr, buffer, length);
}

static int vma_at(int maps, uint64_t addr, struct kernel_vma *vma)
{
	return due(VMA_AT) ? -plan.error : kernel_real.vma_at(maps, addr, vma);
}

static int mapped(int pagemap, uint64_t addr)
{
	return due(MAPPED) ? -plan.error : kernel_real.mapped(pagemap, addr);
}

static int lock(void *start, size_t length)
{
	return due(LOCK) ? -plan.error : kernel_real.lock(start, length);
}

static int told(int smaps, uint64_t start, uint64_t end,
		void (*found)(void *data, uint64_t from, uint64_t to, unsigned int flags), void *data)
{
	return due(TOLD) ? -plan.error : kernel_real.told(smaps, start, end, found, data);
}

static int memfd_new(const char *name, uint64_t size, unsigned int flags)
{
	return due(MEMFD_NEW) ? -plan.error : kernel_real.memfd_new(name, size, flags);
}

static int punch(int fd, uint64_t offset, uint64_t length)
{
	return due(PUNCH) ? -plan.error : kernel_real.punch(fd, offset, length);
}

static int collapse(int pidfd, uint64_t start, size_t length)
{
	return due(COLLAPSE) ? -plan.error : kernel_real.collapse(pidfd, start, length);
}

static int place(void *start, size_t length, int policy, const uint64_t *nodes)
{
	return due(PLACE) ? -plan.error : kernel_real.place(start, length, policy, nodes);
}

static int policy(int mode, uint64_t nodes)
{
	return due(POLICY) ? -plan.error : kernel_real.policy(mode, nodes);
}

static int populate(void *start, size_t length)
{
	return due(POPULATE) ? -plan.error : kernel_real.populate(start, length);
}

static int node_free(unsigned int node, uint64_t *bytes)
{
	return due(NODE_FREE) ? -plan.error : kernel_real.node_free(node, bytes);
}

/* It has no error: injected, it says that ksmd runs. */
static bool merging(void)
{
	return due(MERGING) || kernel_real.merging();
}

static struct kernel_ops injecting;

static void bad_plan(const char *text)
{
	fprintf(stderr, "HMMD_INJECT: '%s' is not CALL:ERROR:N[:TIMES]\n", text);
	exit(2);
}

static void read_plan(const char *text)
{
	char call[32], error[32];

	plan.times = 1;
	if (sscanf(text, "%31[^:]:%31[^:]:%lu:%lu", call, error, &plan.first, &plan.times) < 3 ||
	    !plan.first || !error_by_name(error, &plan.error))
		bad_plan(text);
	for (unsigned int i = 0; i < CALLS; i++)
		if (strcmp(call, call_names[i]) == 0)
			plan.call = (enum call)i;
	/* Half of a call is something for those alone that say how much they did. */
	if (plan.call == CALLS || plan.error < 0 ||
	    (!plan.error && plan.call != UFFD_COPY && plan.call != UFFD_ZERO &&
	     plan.call != UFFD_CONTINUE))
		bad_plan(text);
}

__attribute__((constructor)) static void begin(void)
{
	const char *text = getenv("HMMD_INJECT"), *path = getenv("HMMD_INJECT_REPORT");

	if (text && *text)
		read_plan(text);
	if (path)
		report_path = strdup(path);
	injecting = kernel_real;
	injecting.uffd_copy = copy;
	injecting.uffd_zero = zero;
	injecting.uffd_poison = poison;
	injecting.uffd_continue = do_continue;
	injecting.uffd_protect = protect;
	injecting.uffd_register = do_register;
	injecting.uffd_unregister = do_unregister;
	injecting.uffd_read = uffd_read;
	injecting.pagemap_read = pagemap_read;
	injecting.pages_written = pages_written;
	injecting.soft_dirty_clear = soft_dirty_clear;
	injecting.mem_read = mem_read;
	injecting.mem_write = mem_write;
	injecting.vma_at = vma_at;
	injecting.mapped = mapped;
	injecting.told = told;
	injecting.lock = lock;
	injecting.memfd_new = memfd_new;
	injecting.punch = punch;
	injecting.collapse = collapse;
	injecting.merging = merging;
	injecting.page_kinds = page_kinds;
	injecting.place = place;
	injecting.policy = policy;
	injecting.populate = populate;
	injecting.node_free = node_free;
	kernel = &injecting;
}

__attribute__((destructor)) static void end(void)
{
	FILE *file = report_path ? fopen(report_path, "we") : NULL;

	if (file) {
		for (unsigned int i = 0; i < CALLS; i++)
			fprintf(file, "%s %lu\n", call_names[i], atomic_load(&counts[i]));
		fprintf(file, "injected %lu\n", atomic_load(&injected));
		fclose(file);
	}
	free(report_path);
}
