/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fdstore.h - descriptors that nobody but hmmd has, kept by whoever started it for the hmmd that comes
 * after this one is killed: the userfaultfds of raw forks' children that are being given their pages. What an
 * owner has is not here: its library keeps that itself, and hands it back.
 */
#ifndef HMMD_FDSTORE_H
#define HMMD_FDSTORE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct engine;

#define KEPT_NAME	64

/* One child: its userfaultfd, and a memfd with what it has done since (fork.c). */
struct kept {
	LIST_ENTRY(kept) link;
	char name[KEPT_NAME];		/* "fork.PID.LEDGER.POSITION", for a grandchild with another position behind */
	int uffd, log;			/* -1: not come yet */
};

LIST_HEAD(kept_list, kept);

/* What an earlier hmmd left: one of two. Control thread, before there are workers. */
void fdstore_adopt_consume_fd(struct engine *engine, const char *name, int fd);
/* Has both kept under this name. False: nobody does, and then nothing is. The descriptors stay the caller's. */
bool fdstore_put(struct engine *engine, const char *name, int uffd, int log);
/* This hmmd's own, until fdstore_take(): its log. */
void fdstore_note(struct engine *engine, const char *name, int log);
/*
 * Takes what an earlier hmmd left under this name, or fdstore_note() noted (@uffd is -1 then): both are the caller's. It stays
 * kept until fdstore_drop().
 */
bool fdstore_take(struct engine *engine, const char *name, int *uffd, int *log);
/* The child has its pages. */
void fdstore_drop(struct engine *engine, const char *name);
/* What is left that begins with @prefix will be asked for by nobody: it was done. */
void fdstore_forget(struct engine *engine, const char *prefix);
/* The same of owners that have not come back in time, and are not stopped. Control thread, every few seconds. */
void fdstore_review(struct engine *engine);
void fdstore_deinit(struct engine *engine);

#endif
