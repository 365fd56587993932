/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vma.c - what of an owner's memory may be migrated, and why not. Asked anew
 * for every block: mprotect and guard pages raise no event, so nothing about
 * mappings is remembered.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/owner.h"
#include "engine/worker.h"
#include "tracking/tracking.h"

/* So often a mapping is there by one look, and by the other there is none; the second time is rare. */
#define LOOKS_MAX	16U

/*
 * Where mremap() puts a mapping in another's place the kernel takes the old one away first, and a look that
 * waits for nobody sees none though none is ever missing to the program (contract-pagemap). What
 * is not there is therefore asked for a second time, in a way that waits for such a change as every other
 * call on the owner's memory does. Of what is mapped, nothing more is asked.
 */
int mapping_at(struct owner *owner, uint64_t addr, struct kernel_vma *vma)
{
	int r;

	for (unsigned int looks = 0; looks < LOOKS_MAX; looks++) {
		r = kernel->vma_at(owner->maps, addr, vma);
		if (r ? r != -ENOENT : vma->start <= addr)
			return r;
		/* Or this kernel can't be asked so; its first look waits. */
		if (kernel->mapped(owner->pagemap, addr) != 1)
			return r;
	}
	return -EAGAIN;
}

static uint8_t verdict(const struct kernel_vma *vma)
{
	if (vma->shared)
		return vma->file ? HMM_PAGE_RESULT_SHARED : HMM_PAGE_RESULT_SPECIAL;
	if (vma->file)
		return HMM_PAGE_RESULT_FILE;
	if (strncmp(vma->name, "[stack", 6) == 0)
		return HMM_PAGE_RESULT_EXCLUDED;
	if (strncmp(vma->name, "[v", 2) == 0)	/* vdso, vvar, vsyscall */
		return HMM_PAGE_RESULT_SPECIAL;
	/* Reserved address space; or it may be written alone, and a device reads what it writes to. */
	if (!vma->read)
		return HMM_PAGE_RESULT_HOLE;
	if (!vma->write)
		return HMM_PAGE_RESULT_READONLY;
	if (vma->exec)
		return HMM_PAGE_RESULT_SPECIAL;	/* UFFDIO_MOVE refuses it */
	return HMM_PAGE_RESULT_MOVED;
}

/* What a thread's stack is at most taken for, below its control block. */
#define STACK_MAX	(8UL << 20)

/*
 * An exiting thread's kernel stores to its control block (CLEARTID, robust
 * futexes) are dropped where the page is missing, and join hangs. The head of
 * a thread's robust list lies in that block, and its stack lies below; the first thread's block lies in a mapping of libc's, so there only
 * the pages around it are meant.
 */
static void exclude_thread(struct owner *owner, pid_t tid)
{
	struct kernel_vma vma;
	size_t length;
	uint64_t head, start, end;
	void *list;

	if (syscall(SYS_get_robust_list, tid, &list, &length) < 0 || !list)
		return;
	head = (uint64_t)(uintptr_t)list;
	if (head >= HMM_VA_END)
		return;
	start = (head & ~(HMM_PAGE_SIZE - 1)) - HMM_PAGE_SIZE;
	end = start + 4 * HMM_PAGE_SIZE;
	/*
	 * Not the whole mapping: the kernel merges it with whatever lies above.
	 * A library thread's stack lies in memory that is excluded already.
	 */
	if (tid != owner->pid && !span_set_overlaps(&owner->excluded, head, head + 1) &&
	    mapping_at(owner, head, &vma) == 0 && vma.start <= head)
		start = head - vma.start < STACK_MAX ? vma.start :
						       (head & ~(HMM_PAGE_SIZE - 1)) - STACK_MAX;
	span_set_add(&owner->threads, start, end);
}

void vma_refresh_threads(struct owner *owner, int64_t age_ns)
{
	struct dirent *entry;
	char path[32];
	DIR *dir;

	if (owner->threads_found && owner->worker->now - owner->threads_found < age_ns)
		return;
	owner->threads_found = owner->worker->now;
	owner->threads.count = 0;
	snprintf(path, sizeof(path), "/proc/%d/task", owner->pid);
	dir = opendir(path);
	if (!dir)
		return;
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			exclude_thread(owner, (pid_t)atoi(entry->d_name));
	closedir(dir);
}

/* Cuts the segment where @set begins, or says EXCLUDED as far as it has @addr. */
static void clip_set(const struct span_set *set, uint64_t addr, struct segment *segment)
{
	for (unsigned int i = 0; i < set->count; i++) {
		uint64_t start = set->list[i].start, end = set->list[i].end;

		if (end <= addr)
			continue;
		if (start > addr) {
			if (segment->end > start)
				segment->end = start;
			return;
		}
		segment->result = HMM_PAGE_RESULT_EXCLUDED;
		if (segment->end > end)
			segment->end = end;
		return;
	}
}

/*
 * Anonymous memory right behind a library's data is its .bss. Those of libc,
 * ld.so and the library itself are touched by the very threads that have to
 * work when there is no hmmd.
 */
static bool is_library_bss(struct owner *owner, uint64_t start)
{
	static const char *const libraries[] = { "/libc.so", "/libc-", "/ld-linux", "/libhmm", "/libpthread" };
	struct kernel_vma before;

	if (!start || mapping_at(owner, start - 1, &before) || before.start >= start ||
	    !before.file)
		return false;
	for (unsigned int i = 0; i < sizeof(libraries) / sizeof(libraries[0]); i++)
		if (strstr(before.name, libraries[i]))
			return true;
	return false;
}

static void clip_excluded(const struct owner *owner, uint64_t addr, struct segment *segment)
{
	uint64_t slots_end = owner->slots_addr + owner->slots * HMM_BLOCK_SIZE;

	if (addr >= owner->slots_addr && addr < slots_end) {
		segment->result = HMM_PAGE_RESULT_EXCLUDED;
		if (segment->end > slots_end)
			segment->end = slots_end;
		return;
	}
	if (addr < owner->slots_addr && segment->end > owner->slots_addr)
		segment->end = owner->slots_addr;
	clip_set(&owner->excluded, addr, segment);
	if (segment->result == HMM_PAGE_RESULT_MOVED)
		clip_set(&owner->threads, addr, segment);
}

int segment_of_map(struct owner *owner, uint64_t addr, uint64_t end, struct segment *segment)
{
	struct kernel_vma vma;
	int r = mapping_at(owner, addr, &vma);

	segment->start = addr;
	segment->end = end;
	segment->result = HMM_PAGE_RESULT_HOLE;
	if (r == -ENOENT)
		return 0;
	if (r)
		return r;
	if (vma.start > addr) {
		if (vma.start < end)
			segment->end = vma.start;
		return 0;
	}
	if (vma.end < end)
		segment->end = vma.end;
	segment->result = verdict(&vma);
	if (segment->result != HMM_PAGE_RESULT_MOVED)
		return 0;
	if (!vma.name[0] && is_library_bss(owner, vma.start))
		segment->result = HMM_PAGE_RESULT_EXCLUDED;
	else
		clip_excluded(owner, addr, segment);
	return 0;
}

int segment_at(struct owner *owner, uint64_t addr, uint64_t end, struct segment *segment)
{
	int r = segment_of_map(owner, addr, end, segment);

	if (!r && segment->result == HMM_PAGE_RESULT_MOVED && tracking_clip(owner, addr, &segment->end))
		segment->result = HMM_PAGE_RESULT_TRACKED;
	return r;
}

/* What drivers and the kernel itself map: frames that are nobody's memory. */
bool vma_is_special(const struct kernel_vma *vma)
{
	static const char *const memory[] = { "/dev/zero", "/dev/shm/", "/dev/hugepages" };
	static const char *const others[] = { "[v", "/dev/", "/dmabuf", "/proc/", "/sys/", "anon_inode:",
					      "socket:" };

	if (!vma->file)
		return strncmp(vma->name, "[v", 2) == 0;
	for (unsigned int i = 0; i < sizeof(memory) / sizeof(memory[0]); i++)
		if (strncmp(vma->name, memory[i], strlen(memory[i])) == 0)
			return false;
	for (unsigned int i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		if (strncmp(vma->name, others[i], strlen(others[i])) == 0)
			return true;
	return false;
}

/* The mapping as far as it goes in the block of @addr, unless parts of that are not to be armed. */
static void widen(const struct owner *owner, uint64_t addr, const struct kernel_vma *vma, struct view *view)
{
	uint64_t start = addr & ~(HMM_BLOCK_SIZE - 1), end = start + HMM_BLOCK_SIZE;

	view->watch_start = addr;
	view->watch_end = view->end;
	if (span_set_overlaps(&owner->excluded, start, end) || span_set_overlaps(&owner->threads, start, end) ||
	    (start < owner->slots_addr + owner->slots * HMM_BLOCK_SIZE && end > owner->slots_addr))
		return;
	view->watch_start = start > vma->start ? start : vma->start;
	view->watch_end = end < vma->end ? end : vma->end;
}

int view_at(struct owner *owner, uint64_t addr, uint64_t end, struct view *view)
{
	struct segment part = { .start = addr, .end = end, .result = HMM_PAGE_RESULT_MOVED };
	struct kernel_vma vma;
	int r = mapping_at(owner, addr, &vma);

	if (r || vma.start > addr)
		return !r || r == -ENOENT ? -EFAULT : r;
	if (part.end > vma.end)
		part.end = vma.end;
	clip_excluded(owner, addr, &part);
	view->end = part.end;
	view->page_size = vma.page_size;
	view->read = vma.read;
	view->write = vma.write;
	view->special = vma_is_special(&vma);
	view->excluded = part.result == HMM_PAGE_RESULT_EXCLUDED;
	widen(owner, addr, &vma, view);
	return 0;
}
