/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fork.c - a child that was forked while pages were on the device: raw
 * clone() calls, and forks that raced with a migration; the library's own fork
 * hook brings everything home first.
 *
 * The child inherits the parent's armed mappings and a userfaultfd of its own,
 * which comes with the event. It gets its copy of every page that the parent
 * has on the device (or half way there), then its userfaultfd is closed: that
 * disarms it, lifts the protection it inherited and wakes whoever waited. The
 * parent stays in fork() until the event is read, and nothing else of the
 * owner is served in between, so the copies are of one moment.
 *
 * Runs on the owner's worker; takes as long as copying takes.
 */
#include "engine/fork.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/owner.h"
#include "log.h"

struct child {
	struct owner *owner;
	int uffd;
	struct span_set wiped;		/* WIPEONFORK: zeros, as they should be */
	uint64_t pages;
	char bounce[HMM_PAGE_SIZE];
};

/* Which mappings a child gets empty. smaps is the only place that says so. */
static void find_wiped(struct child *child)
{
	int fd = dup(child->owner->smaps);
	FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
	unsigned long start = 0, end = 0, s, e;
	char *line = NULL;
	size_t size = 0;

	if (!file) {
		if (fd >= 0)
			close(fd);
		return;
	}
	rewind(file);
	while (getline(&line, &size, file) > 0) {
		if (sscanf(line, "%lx-%lx ", &s, &e) == 2) {
			start = s;
			end = e;
		} else if (strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " wf")) {
			span_set_add(&child->wiped, start, end);
		}
	}
	free(line);
	fclose(file);
}

static bool may_hold_pages(const struct block *block)
{
	return block_count(block, HMM_PAGE_DEVICE) || !block_at_rest(block);
}

static void note_pages(struct block *block, void *data)
{
	*(bool *)data |= may_hold_pages(block);
}

static void copy_block(struct block *block, void *data)
{
	struct child *child = data;
	size_t done;

	if (!may_hold_pages(block))
		return;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		uint64_t addr = page_addr(block, i);
		const void *bytes;

		if (page_state(block, i) == HMM_PAGE_SHARED || page_state(block, i) == HMM_PAGE_COHERENT)
			continue;	/* the CPU has it: the child has, too */
		bytes = page_bytes(block, i, child->bounce);
		if (!bytes || span_set_overlaps(&child->wiped, addr, addr + HMM_PAGE_SIZE))
			continue;
		/* ENOENT: DONTFORK, or unmapped by the child's exec or exit. */
		if (kernel->uffd_copy(child->uffd, addr, bytes, HMM_PAGE_SIZE, 0, &done) == 0)
			child->pages++;
	}
}

void fork_child_consume_fd(struct owner *owner, int uffd)
{
	struct child child = { .owner = owner, .uffd = uffd };
	bool any = false;

	block_for_each(owner, 0, HMM_VA_END, note_pages, &any);
	if (any) {
		find_wiped(&child);
		block_for_each(owner, 0, HMM_VA_END, copy_block, &child);
		span_set_deinit(&child.wiped);
		log_info("owner %u: a forked child got its copy of %lu pages", owner->id, child.pages);
	}
	close(uffd);
}
