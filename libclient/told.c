/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * told.c - what a program has told the kernel of its memory (madvise(), mlock()) is the mapping's, and hmm_share() puts another
 * mapping in its place. So it is looked up first, and told the new one: left out of core dumps, kept from children, of small
 * pages. What cannot hold there is refused: device memory may be swapped out, so nothing locked becomes coherent, nor
 * becomes ordinary memory again, which would not be locked; and children share it, so nothing that is wiped in them.
 *
 * smaps is the only file that says so, and it counts all pages of each mapping on the way, from the first one on. So this process
 * reads it for itself, once for a call: hmmd's workers have others to serve.
 *
 * Happy path: the caller has the clerk read; the blocks' marks stay in a list while hmmd is asked; the agent, when it
 * is ordered to exchange a block, finds its marks there.
 *
 * A block's new mapping is one: what a part of it was told all of it is.
 *
 * What can fail: memory of the library's, /proc. Nothing has changed then.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arena.h"
#include "clerk.h"
#include "futex.h"
#include "owner.h"
#include "space.h"
#include "told.h"

enum { NODUMP = 1, NOFORK = 2, NOHUGE = 4 };

struct told {
	struct told *next;
	const struct owner *owner;
	uint64_t start, end;
	uint64_t locked, wiped;		/* the first such address; 0: there is none */
	char buffer[16384];		/* of the file: whole lines from its beginning on */
	uint64_t from, to;		/* the mapping that the lines are about */
	uint8_t marks[];		/* of each block */
};

static struct {
	struct futex_lock lock;
	struct told *first;
} all LIBRARY_DATA = { .lock = { 0 } };

static size_t size_of(uint64_t start, uint64_t end)
{
	return sizeof(struct told) + (size_t)((end - start) / HMM_BLOCK_SIZE);
}

/* ---- smaps, in the clerk: no stdio, whose memory is the program's ------------------------ */

static bool has_word(const char *line, const char *word)
{
	const char *at = line;

	while ((at = strstr(at, word))) {
		if (at[-1] == ' ' && (at[2] == ' ' || !at[2]))
			return true;
		at++;
	}
	return false;
}

static void note_flags(struct told *told, const char *line)
{
	uint64_t from = told->from > told->start ? told->from : told->start, to = told->to < told->end ? told->to : told->end;
	uint8_t marks = (uint8_t)((has_word(line, "dd") ? NODUMP : 0) | (has_word(line, "dc") ? NOFORK : 0) |
				  (has_word(line, "nh") ? NOHUGE : 0));

	if (from >= to)
		return;
	if (!told->locked && has_word(line, "lo"))
		told->locked = from;
	if (!told->wiped && has_word(line, "wf"))
		told->wiped = from;
	for (uint64_t at = from & ~(HMM_BLOCK_SIZE - 1); at < to; at += HMM_BLOCK_SIZE)
		told->marks[(at - told->start) / HMM_BLOCK_SIZE] |= marks;
}

static uint64_t take_hex(const char **at)
{
	uint64_t value = 0;

	for (;; (*at)++) {
		if (**at >= '0' && **at <= '9')
			value = value * 16 + (uint64_t)(**at - '0');
		else if (**at >= 'a' && **at <= 'f')
			value = value * 16 + (uint64_t)(**at - 'a' + 10);
		else
			return value;
	}
}

static void take_line(struct told *told, const char *line)
{
	static const char key[] = "VmFlags:";

	/* A mapping begins with its addresses, all that is said of it with a capital letter. */
	if (*line < 'A' || *line > 'Z') {
		told->from = take_hex(&line);
		if (*line++ == '-')
			told->to = take_hex(&line);
	} else if (!strncmp(line, key, strlen(key))) {
		note_flags(told, line);
	}
}

/* With an offset: hmmd has the same open file, and a position of its own would be its, too. */
static int read_smaps(void *argument)
{
	struct told *told = argument;
	size_t have = 0;
	off_t offset = 0;

	while (told->from < told->end) {
		ssize_t n = pread(told->owner->smaps, told->buffer + have, sizeof(told->buffer) - 1 - have, offset);
		char *line = told->buffer, *end;

		if (n <= 0)
			return n < 0 ? -errno : 0;
		offset += n;
		have += (size_t)n;
		told->buffer[have] = '\0';
		for (; (end = memchr(line, '\n', have - (size_t)(line - told->buffer))); line = end + 1) {
			*end = '\0';
			take_line(told, line);
		}
		have -= (size_t)(line - told->buffer);
		memmove(told->buffer, line, have);
		/* No path is as long as that. */
		if (have == sizeof(told->buffer) - 1)
			return -EIO;
	}
	return 0;
}

/* ---- in the program's thread ---------------------------------------------------------------- */

struct told *hmmc_told_begin(struct hmm *hmm, uint64_t start, uint64_t end, int *error)
{
	struct told *told = hmmc_arena_alloc(size_of(start, end));

	if (!told) {
		*error = hmmc_fail(-ENOMEM, "the library's memory is used up");
		return NULL;
	}
	told->owner = hmm->owner;
	told->start = start;
	told->end = end;
	*error = hmmc_clerk_call(read_smaps, told);
	if (*error) {
		hmmc_fail(*error, "what the program has told the kernel of its memory can't be read (smaps): %s", strerror(-*error));
		hmmc_arena_free(told, size_of(start, end));
		return NULL;
	}
	futex_lock(&all.lock);
	told->next = all.first;
	all.first = told;
	futex_unlock(&all.lock);
	return told;
}

int hmmc_told_check(const struct told *told, int cohere)
{
	if (told->locked)
		return hmmc_fail(-EOPNOTSUPP, cohere ?
				 "0x%llx is locked, and device memory may be swapped out: munlock() it first" :
				 "0x%llx is locked, and would not be locked as ordinary memory: munlock() it first",
				 (unsigned long long)told->locked);
	if (cohere && told->wiped)
		return hmmc_fail(-EOPNOTSUPP,
				 "0x%llx is wiped in children (MADV_WIPEONFORK), and they share coherent memory: MADV_KEEPONFORK first",
				 (unsigned long long)told->wiped);
	return 0;
}

void hmmc_told_end(struct told *told)
{
	struct told **link;

	if (!told)
		return;
	futex_lock(&all.lock);
	for (link = &all.first; *link && *link != told; link = &(*link)->next)
		;
	if (*link)
		*link = told->next;
	futex_unlock(&all.lock);
	hmmc_arena_free(told, size_of(told->start, told->end));
}

void hmmc_told_forget(void)
{
	memset(&all, 0, sizeof(all));
}

/* ---- in the agent ------------------------------------------------------------------------------ */

void hmmc_told_pass_on(uint64_t block, void *map)
{
	uint8_t marks = 0;

	futex_lock(&all.lock);
	for (const struct told *told = all.first; told; told = told->next)
		if (block >= told->start && block < told->end)
			marks |= told->marks[(block - told->start) / HMM_BLOCK_SIZE];
	futex_unlock(&all.lock);
	if (marks & NODUMP)
		madvise(map, HMM_BLOCK_SIZE, MADV_DONTDUMP);
	if (marks & NOFORK)
		madvise(map, HMM_BLOCK_SIZE, MADV_DONTFORK);
	if (marks & NOHUGE)
		madvise(map, HMM_BLOCK_SIZE, MADV_NOHUGEPAGE);
}
