/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * maps.c - one mapping of an owner, by the owner's own /proc/self/maps
 * descriptor: PROCMAP_QUERY where the kernel has it (0.6 us), else by reading
 * the text, which costs as much as the owner has mappings.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "private.h"
#include "uapi.h"

static int query(int maps, uint64_t addr, struct kernel_vma *vma)
{
	struct procmap_query q = {
		.size = sizeof(q),
		.query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA,
		.query_addr = addr,
		.vma_name_size = sizeof(vma->name),
		.vma_name_addr = (uint64_t)(uintptr_t)vma->name,
	};

	vma->name[0] = '\0';
	if (ioctl(maps, PROCMAP_QUERY, &q) < 0) {
		if (errno != ENAMETOOLONG)
			return -errno;
		/* A long path: that it has a name is all that matters. */
		strcpy(vma->name, "/");
		q.vma_name_size = 0;
		q.vma_name_addr = 0;
		if (ioctl(maps, PROCMAP_QUERY, &q) < 0)
			return -errno;
	}
	vma->start = q.vma_start;
	vma->end = q.vma_end;
	vma->page_size = q.vma_page_size;
	vma->read = q.vma_flags & PROCMAP_QUERY_VMA_READABLE;
	vma->write = q.vma_flags & PROCMAP_QUERY_VMA_WRITABLE;
	vma->exec = q.vma_flags & PROCMAP_QUERY_VMA_EXECUTABLE;
	vma->shared = q.vma_flags & PROCMAP_QUERY_VMA_SHARED;
	vma->file = q.inode != 0;
	return 0;
}

/* Parses one line of maps; false when it is none. */
static bool parse_line(const char *line, struct kernel_vma *vma)
{
	unsigned long start, end, inode;
	char perms[5];
	int name = 0;

	if (sscanf(line, "%lx-%lx %4s %*x %*x:%*x %lu %n", &start, &end, perms, &inode, &name) < 4)
		return false;
	vma->start = start;
	vma->end = end;
	vma->page_size = 0;
	vma->read = perms[0] == 'r';
	vma->write = perms[1] == 'w';
	vma->exec = perms[2] == 'x';
	vma->shared = perms[3] == 's';
	vma->file = inode != 0;
	snprintf(vma->name, sizeof(vma->name), "%.*s", (int)(sizeof(vma->name) - 1),
		 name ? line + name : "");
	return true;
}

/* Moves @offset behind the end of the line that it is in. */
static int skip_line(int maps, off_t *offset)
{
	char c = 0;

	while (c != '\n') {
		ssize_t n = pread(maps, &c, 1, *offset);

		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENOENT;
		(*offset)++;
	}
	return 0;
}

static int read_text(int maps, uint64_t addr, struct kernel_vma *vma)
{
	char buffer[8192];
	size_t have = 0;
	off_t offset = 0;

	for (;;) {
		ssize_t n = pread(maps, buffer + have, sizeof(buffer) - 1 - have, offset);
		char *line = buffer, *end;

		if (n < 0)
			return -errno;
		offset += n;
		have += (size_t)n;
		buffer[have] = '\0';
		while ((end = strchr(line, '\n'))) {
			*end = '\0';
			if (parse_line(line, vma) && vma->end > addr)
				return 0;
			line = end + 1;
		}
		if (n == 0)
			return -ENOENT;
		have -= (size_t)(line - buffer);
		memmove(buffer, line, have);
		if (have == sizeof(buffer) - 1) {
			/* A path longer than the buffer: its start says all that counts. */
			buffer[have] = '\0';
			if (parse_line(buffer, vma) && vma->end > addr)
				return 0;
			n = skip_line(maps, &offset);
			if (n)
				return (int)n;
			have = 0;
		}
	}
}

int kernel_vma_at(int maps, uint64_t addr, struct kernel_vma *vma)
{
	int r = query(maps, addr, vma);

	return r == -ENOTTY || r == -EINVAL ? read_text(maps, addr, vma) : r;
}
