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
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/owner.h"
#include "log.h"
#include "uapi.h"

/* Tries of one page while the child's map is changing, or memory is short; each a yield apart. */
#define TRIES_MAX	20000

/* A range that the child has moved since it was forked. */
struct moved {
	uint64_t from, to, length;
};

struct child {
	struct owner *owner;
	int uffd;
	struct span_set wiped;		/* WIPEONFORK, or thrown away by the child since: nothing goes there */
	struct moved *moved;		/* by the child, oldest first */
	unsigned int moved_count;
	uint64_t pages, lost;
	char bounce[HMM_PAGE_SIZE];
};

static void copy_to_child(struct child *child);

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

/* The child runs already: what it does to its map comes by its userfaultfd and must be followed. */
static void follow_child(struct child *child)
{
	struct uffd_msg message;

	while (read(child->uffd, &message, sizeof(message)) == (ssize_t)sizeof(message)) {
		struct moved *moved;

		switch (message.event) {
		case UFFD_EVENT_UNMAP:
		case UFFD_EVENT_REMOVE:
			span_set_add(&child->wiped, message.arg.remove.start, message.arg.remove.end);
			break;
		case UFFD_EVENT_REMAP:
			moved = realloc(child->moved, (child->moved_count + 1) * sizeof(*moved));
			if (!moved)
				break;
			child->moved = moved;
			moved[child->moved_count++] = (struct moved){
				.from = message.arg.remap.from,
				.to = message.arg.remap.to,
				.length = message.arg.remap.len,
			};
			break;
		case UFFD_EVENT_FORK: {
			/* A grandchild: the pages that the child has not got yet, it has not either. */
			struct child grandchild = {
				.owner = child->owner, .uffd = (int)message.arg.fork.ufd,
			};

			for (unsigned int i = 0; i < child->wiped.count; i++)
				span_set_add(&grandchild.wiped, child->wiped.list[i].start,
					     child->wiped.list[i].end);
			copy_to_child(&grandchild);
			break;
		}
		default:
			break;	/* a fault: the copy, or the end, wakes it */
		}
	}
}

/* Where the child has the page now; 0: nowhere. */
static uint64_t address_in_child(const struct child *child, uint64_t addr)
{
	for (unsigned int i = 0; i < child->moved_count; i++)
		if (addr >= child->moved[i].from && addr - child->moved[i].from < child->moved[i].length)
			addr = addr - child->moved[i].from + child->moved[i].to;
	return span_set_overlaps(&child->wiped, addr, addr + HMM_PAGE_SIZE) ? 0 : addr;
}

static void copy_page(struct child *child, uint64_t page, const void *bytes)
{
	for (int tries = 0; tries < TRIES_MAX; tries++) {
		uint64_t addr = address_in_child(child, page);
		size_t done;
		int r;

		if (!addr)
			return;
		r = kernel->uffd_copy(child->uffd, addr, bytes, HMM_PAGE_SIZE, 0, &done);
		switch (r) {
		case 0:
			child->pages++;
			return;
		case -EAGAIN:
			follow_child(child);
			sched_yield();
			break;
		case -ENOMEM:
			sched_yield();
			break;
		default:
			return;		/* DONTFORK, there already, or the child is gone */
		}
	}
	child->lost++;
}

static void copy_block(struct block *block, void *data)
{
	struct child *child = data;

	if (!may_hold_pages(block))
		return;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		const void *bytes;

		if (page_state(block, i) == HMM_PAGE_SHARED || page_state(block, i) == HMM_PAGE_COHERENT)
			continue;	/* the CPU has it: the child has, too */
		bytes = page_bytes(block, i, child->bounce);
		if (bytes)
			copy_page(child, page_addr(block, i), bytes);
	}
}

/* Gives the child its pages and lets it go: consumes its userfaultfd. */
static void copy_to_child(struct child *child)
{
	fcntl(child->uffd, F_SETFL, O_NONBLOCK);
	block_for_each(child->owner, 0, HMM_VA_END, copy_block, child);
	if (child->lost)
		log_error("owner %u: a forked child could not be given %lu pages: they read zeros there",
			  child->owner->id, child->lost);
	else if (child->pages)
		log_info("owner %u: a forked child got its copy of %lu pages", child->owner->id,
			 child->pages);
	span_set_deinit(&child->wiped);
	free(child->moved);
	close(child->uffd);
}

void fork_child_consume_fd(struct owner *owner, int uffd)
{
	struct child child = { .owner = owner, .uffd = uffd };
	bool any = false;

	block_for_each(owner, 0, HMM_VA_END, note_pages, &any);
	if (!any) {
		close(uffd);
		return;
	}
	find_wiped(&child);
	copy_to_child(&child);
}
