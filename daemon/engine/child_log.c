/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * child_log.c - where a raw fork's child has its parent's pages: what other threads of the parent were moving when it was made, what the
 * fork itself wiped, and what the child has done to its map since. Messages, oldest first, in a memfd that outlives hmmd.
 *
 * A fork and an mremap() of another thread are told of after they are done, each by its own thread: the order of the messages does not
 * say which came first. Both wait until they are read, so the two stand in one batch of the journal, and the child's own map tells: it has
 * pages of its parent's where they were, or where they were moved to. Until that is asked such a move is undecided.
 *
 * Runs on the owner's worker.
 */
#include "engine/child_log.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/owner.h"
#include "uapi.h"

/* Beyond that what a child does to its map is not followed. */
#define MESSAGES	65536U

/* As the kernel writes them, up to the first that has no event or is a fault. */
struct child_log_messages {
	uint64_t complete;		/* what the fork did is noted */
	uint64_t moves;			/* so many at the beginning are the parent's */
	uint64_t own;			/* from there on they are the child's */
	uint64_t reserved;
	struct uffd_msg at[MESSAGES];
};

/* Moves that are undecided; no events of the kernel's, and nothing until they are REMAP. */
enum {
	MOVE_AHEAD = 0x60,		/* told of before the fork; the other way round: it had not been done yet */
	MOVE_BEHIND,			/* told of after it, and done before it */
	MOVE_BEHIND_COVERING,		/* the same; and that something was unmapped for it is told of after the fork, too */
	MOVE_NOT_DONE,
};

void child_log_map(struct child_log *log)
{
	struct stat st;
	void *map;

	/* One of another release is not understood; and beyond the end of a shorter one there is nothing to read. */
	if (log->fd >= 0 && (fstat(log->fd, &st) < 0 || st.st_size != sizeof(*log->messages))) {
		close(log->fd);
		log->fd = -1;
	}
	if (log->fd < 0)
		log->fd = kernel->memfd_new("hmm-child", sizeof(*log->messages), 0);
	/* Without a descriptor it is this hmmd's alone. */
	map = mmap(NULL, sizeof(*log->messages), PROT_READ | PROT_WRITE,
		   log->fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED | MAP_NORESERVE, log->fd, 0);
	if (map == MAP_FAILED)
		return;
	log->messages = map;
	while (log->count < MESSAGES && log->messages->at[log->count].event &&
	       log->messages->at[log->count].event != UFFD_EVENT_PAGEFAULT)
		log->count++;
}

void child_log_unmap(struct child_log *log)
{
	if (log->messages)
		munmap(log->messages, sizeof(*log->messages));
	log->messages = NULL;
}

void child_log_close(struct child_log *log)
{
	child_log_unmap(log);
	if (log->fd >= 0)
		close(log->fd);
	log->fd = -1;
}

bool child_log_is_complete(const struct child_log *log)
{
	return !log->messages || log->messages->complete;
}

void child_log_complete(struct child_log *log)
{
	if (!log->messages)
		return;
	log->messages->own = log->count;
	__atomic_store_n(&log->messages->complete, 1, __ATOMIC_RELEASE);
}

void child_log_inherit(struct child_log *log, const struct child_log *of, unsigned int position)
{
	if (!log->messages || !of->messages || log->messages->complete)
		return;
	memcpy(log->messages->at, of->messages->at, position * sizeof(struct uffd_msg));
	log->count = position;
	child_log_complete(log);
}

struct uffd_msg *child_log_next(struct child_log *log)
{
	return log->messages && log->count < MESSAGES ? &log->messages->at[log->count] : NULL;
}

void child_log_added(struct child_log *log)
{
	log->count++;
}

const struct uffd_msg *child_log_fork(const struct child_log *log, unsigned int position)
{
	const struct uffd_msg *message = &log->messages->at[position];

	return message->event == UFFD_EVENT_FORK ? message : NULL;
}

static bool note_gone(struct child_log *log, uint8_t event, uint64_t start, uint64_t end)
{
	struct uffd_msg *message = child_log_next(log);

	if (!message)
		return false;
	message->arg.remove.start = start;
	message->arg.remove.end = end;
	message->event = event;
	child_log_added(log);
	return true;
}

bool child_log_note_wiped(struct child_log *log, uint64_t start, uint64_t end)
{
	return note_gone(log, UFFD_EVENT_UNMAP, start, end);
}

/* ---- moves ------------------------------------------------------------------------------- */

static void note_move(struct child_log *log, uint8_t event, uint64_t from, uint64_t to, uint64_t length)
{
	struct uffd_msg *message;

	/* What was there before, where it was done. */
	if (!note_gone(log, MOVE_NOT_DONE, to, to + length))
		return;
	message = child_log_next(log);
	if (!message)
		return;
	message->arg.remap.from = from;
	message->arg.remap.to = to;
	message->arg.remap.len = length;
	message->event = event;
	child_log_added(log);
	log->messages->moves = log->count;
}

static bool is_unmapped(struct owner *owner, uint64_t from, uint64_t end, uint64_t addr)
{
	for (uint64_t n = from; n < end; n++) {
		const struct uffd_msg *message = journal_message(owner, n);

		if (message->event == UFFD_EVENT_UNMAP && addr >= message->arg.remove.start && addr < message->arg.remove.end)
			return true;
	}
	return false;
}

/* The child may have been made before that: that it has nothing armed there tells nothing then. */
static bool was_armed_since(struct owner *owner, uint64_t position, uint64_t addr)
{
	const struct block *block = block_find(owner, addr);

	return block && block->armed_at >= position;
}

void child_log_note_moves(struct child_log *log, struct owner *owner, uint64_t from, uint64_t position)
{
	const struct uffd_msg *message;

	if (!log->messages)
		return;
	for (uint64_t n = position; n-- > from;) {
		message = journal_message(owner, n);
		if (message->event == UFFD_EVENT_REMAP)
			note_move(log, MOVE_AHEAD, message->arg.remap.to, message->arg.remap.from, message->arg.remap.len);
	}
	for (uint64_t n = position + 1; n < owner->journal_read; n++) {
		message = journal_message(owner, n);
		if (message->event != UFFD_EVENT_REMAP)
			continue;
		if (!is_unmapped(owner, position + 1, n, message->arg.remap.to))
			note_move(log, MOVE_BEHIND, message->arg.remap.from, message->arg.remap.to, message->arg.remap.len);
		else if (!was_armed_since(owner, from, message->arg.remap.from))
			note_move(log, MOVE_BEHIND_COVERING, message->arg.remap.from, message->arg.remap.to, message->arg.remap.len);
	}
}

/* Of a mapping that MREMAP_DONTUNMAP left there, or of one that was there, the child has something on both sides. */
static bool was_done(const struct uffd_msg *move, bool from, bool to)
{
	switch (move->event) {
	case MOVE_AHEAD:
		return to && !from;
	case MOVE_BEHIND:
		return to || !from;
	default:
		return !from;
	}
}

void child_log_decide_moves(struct child_log *log, bool (*was_there)(void *data, uint64_t addr), void *data)
{
	for (unsigned int i = 0; log->messages && i < log->messages->moves; i++) {
		struct uffd_msg *move = &log->messages->at[i], *covered = move - 1;
		bool done;

		if (move->event < MOVE_AHEAD || move->event >= MOVE_NOT_DONE)
			continue;
		done = was_done(move, was_there(data, move->arg.remap.from), was_there(data, move->arg.remap.to));
		/* Told of ahead of the fork it has been noted in the ledger that nothing is left there. */
		if (done && move->event != MOVE_AHEAD)
			covered->event = UFFD_EVENT_UNMAP;
		move->event = done ? UFFD_EVENT_REMAP : MOVE_NOT_DONE;
	}
}

static bool lies_in(uint64_t addr, uint64_t start, uint64_t length)
{
	return addr >= start && addr - start < length;
}

int child_log_was_there(const struct child_log *log, uint64_t addr)
{
	for (unsigned int i = (unsigned int)log->messages->own; i < log->count; i++) {
		const struct uffd_msg *message = &log->messages->at[i];

		if (message->event == UFFD_EVENT_REMAP) {
			if (lies_in(addr, message->arg.remap.from, message->arg.remap.len))
				return 1;
			if (lies_in(addr, message->arg.remap.to, message->arg.remap.len))
				return 0;
		} else if (message->event == UFFD_EVENT_UNMAP && addr >= message->arg.remove.start && addr < message->arg.remove.end) {
			return 1;
		}
	}
	return -1;
}

uint64_t child_log_find(const struct child_log *log, uint64_t addr)
{
	for (unsigned int i = 0; i < log->count; i++) {
		const struct uffd_msg *message = &log->messages->at[i];

		switch (message->event) {
		case UFFD_EVENT_UNMAP:
		case UFFD_EVENT_REMOVE:
			if (addr >= message->arg.remove.start && addr < message->arg.remove.end)
				return 0;
			break;
		case UFFD_EVENT_REMAP:
			if (lies_in(addr, message->arg.remap.from, message->arg.remap.len))
				addr = addr - message->arg.remap.from + message->arg.remap.to;
			break;
		default:
			break;
		}
	}
	return addr;
}
