// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * view.c - the owner's memory without a window.
 *
 * hmm_device_read() fetches a line of 64 KiB into a cache, and every further
 * read of that line is served from it; hmm_device_write() goes through, field by
 * field, because the owner is writing the fields beside it. The cache is a hash
 * table: allocators put sizes that are used together at multiples of a large power of
 * two, which would push each other out of a place that low bits of the address choose.
 * An access that fails is remembered in the view. One thread per view.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <hmm/hmm.h>

#include "index.h"
#include "view.h"

#define LINE	65536UL
#define LINES	8192UL
#define PAGE	4096UL

int view_init_remote(struct view *view, struct hmm_mirror *mirror)
{
	memset(view, 0, sizeof(*view));
	view->cache = mmap(NULL, LINES * LINE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (view->cache == MAP_FAILED)
		return -errno;
	view->cached = calloc(LINES, sizeof(*view->cached));
	if (!view->cached) {
		munmap(view->cache, LINES * LINE);
		return -ENOMEM;
	}
	view->mirror = mirror;
	return 0;
}

void view_deinit(struct view *view)
{
	if (!view->mirror)
		return;
	free(view->cached);
	munmap(view->cache, LINES * LINE);
	view->mirror = NULL;
}

/* Where the line is, or can be put. */
static size_t place_of(const struct view *view, const char *start)
{
	size_t home = scramble((uintptr_t)start / LINE) % LINES;

	for (size_t i = 0; i < LINES; i++) {
		size_t number = (home + i) % LINES;

		if (!view->cached[number] || view->cached[number] == start)
			return number;
	}
	return home;
}

/* At the edge of a mapping a line is short; what it lacks is zeros here. */
static const char *line_of(struct view *view, const char *start)
{
	size_t number = place_of(view, start);
	char *line = view->cache + number * LINE;
	size_t done = 0;
	ssize_t got = 0;

	if (view->cached[number] == start)
		return line;
	while (done < LINE) {
		got = hmm_device_read(view->mirror, (uintptr_t)start + done, line + done,
				      LINE - done);
		if (got <= 0 && got != -EFAULT)
			break;
		/* A page that is not mapped: go on behind it. */
		done += got > 0 ? (size_t)got : PAGE;
	}
	if (done < LINE && !view->error)
		view->error = got ? (int)got : -EIO;
	view->cached[number] = view->error ? NULL : start;
	return line;
}

void view_fetch(struct view *view, const void *from, void *to, size_t size)
{
	const char *at = from;
	char *out = to;

	while (size) {
		size_t offset = (uintptr_t)at % LINE;
		size_t piece = LINE - offset < size ? LINE - offset : size;
		const char *line = line_of(view, at - offset);

		if (view->error)
			memset(out, 0, size);
		else
			memcpy(out, line + offset, piece);
		at += piece;
		out += piece;
		size -= piece;
	}
}

void view_put(struct view *view, void *to, const void *from, size_t size)
{
	const char *line = (const char *)((uintptr_t)to & ~(LINE - 1));
	size_t number = place_of(view, line);
	ssize_t written = hmm_device_write(view->mirror, (uintptr_t)to, from, size);

	if (written != (ssize_t)size && !view->error)
		view->error = written < 0 ? (int)written : -EIO;
	/* A field lies within one line: malloc() aligns it. */
	if (view->cached[number] == line)
		memcpy(view->cache + number * LINE + (uintptr_t)to % LINE, from, size);
}
