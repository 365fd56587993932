/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef HMMD_CHILD_LOG_H
#define HMMD_CHILD_LOG_H

#include <stdbool.h>
#include <stdint.h>

struct child_log_messages;
struct owner;
struct uffd_msg;

/*
 * What has become of a raw fork's child's map: what the fork itself did not give it, and what the child has done since. The owner's worker's.
 * @fd: a memfd in which all of it lies, so that a successor has it; -1: there is none. @messages: NULL, there was no memory for it: nothing is noted then.
 */
struct child_log {
	int fd;
	unsigned int count;
	struct child_log_messages *messages;
};

/* @log->fd: of an earlier hmmd, or -1: a new one. */
void child_log_map(struct child_log *log);
void child_log_unmap(struct child_log *log);
void child_log_close(struct child_log *log);
/* What was true of @of up to that position is true of this one's child, too. */
void child_log_inherit(struct child_log *log, const struct child_log *of, unsigned int position);

/* To be read into; child_log_added() counts it. NULL: there is no room. */
struct uffd_msg *child_log_next(struct child_log *log);
void child_log_added(struct child_log *log);
/* NULL: it is no fork. */
const struct uffd_msg *child_log_fork(const struct child_log *log, unsigned int position);

/*
 * What the fork did comes first, then child_log_complete(); only then what the child does. What the owner's other threads were moving when it
 * forked, at @position of the journal, in a batch that begins at @from: which was done first nobody tells.
 */
void child_log_note_moves(struct child_log *log, struct owner *owner, uint64_t from, uint64_t position);
/* [@start, @end) it was given empty. False: there is no room. */
bool child_log_note_wiped(struct child_log *log, uint64_t start, uint64_t end);
void child_log_complete(struct child_log *log);
bool child_log_is_complete(const struct child_log *log);
/* It is asked where the child has pages of its parent's. @was_there: at an address, when it was made. */
void child_log_decide_moves(struct child_log *log, bool (*was_there)(void *data, uint64_t addr), void *data);
/* By what it has done since: 1 or 0, whether it was given what is at @addr; -1: it has done nothing there. */
int child_log_was_there(const struct child_log *log, uint64_t addr);

/* Where the child has now what its parent has at @addr; 0: nowhere. */
uint64_t child_log_find(const struct child_log *log, uint64_t addr);

#endif
