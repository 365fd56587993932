/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef HMMD_FORK_H
#define HMMD_FORK_H

#include <stdbool.h>
#include <stdint.h>

struct owner;
struct task;

/*
 * From PREPARE_FORK until FORKED nothing leaves for a device, whoever wants it: a driver in another process
 * knows of no fork. What would is kept in owner->fork_waiters. Not for longer than the owner can be waited for.
 * @fork: the library's number for it; one that holds already begins its time anew. Return: 0; -ENOMEM;
 * -ENOSPC: more than threads there can be.
 */
int fork_hold(struct owner *owner, uint32_t fork);
/* @fork is over. One that has taken too long holds nothing any more: others' holds stay. */
void fork_release(struct owner *owner, uint32_t fork);
/* All are; and whoever waits for them goes on. */
void fork_release_all(struct owner *owner);
void fork_deinit(struct owner *owner);
/* True: @task is run again when it is over. */
bool fork_holds(struct owner *owner, struct task *task);
void fork_tick(struct owner *owner, int64_t now);

/* A child was forked: EVENT_FORK with @uffd has just been read to that position of the journal. If hmmd is killed now, its successor has it. */
void fork_keep_child(struct owner *owner, uint64_t position, int uffd);
/*
 * It gets its pages. @from: where the batch begins that is being applied. @uffd: -1, the earlier hmmd's that read the event, which may have
 * left it with the service manager.
 */
void fork_child_consume_fd(struct owner *owner, uint64_t from, uint64_t position, int uffd);
/* The journal is replayed: no other child will be asked for. */
void fork_recovered(struct owner *owner);

#endif
