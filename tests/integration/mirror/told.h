/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * told.h - mirrors of this process that are told of what becomes of its memory: a thread
 * changes it, and this one dispatches, or the library's does.
 */
#ifndef TEST_TOLD_H
#define TEST_TOLD_H

#include "mirror.h"

#include <pthread.h>
#include <stdatomic.h>

#define DEVICE_MEMORY (64UL << 20)
#define PAGES 64UL
#define TOLD_MAX 3U

extern struct hmm_mirror told[TOLD_MAX];
/* By the callback of these. */
extern const struct hmm_mirror_ops counting;
extern _Atomic unsigned int calls, calls_of[TOLD_MAX];
extern pthread_t caller;
extern struct hmm_update last_update;

/* Each on a device of its own, told-0 and so on. */
void tell_mirrors(unsigned int n, const struct hmm_mirror_ops *operations);
void forget_mirrors(unsigned int n);

/* What the threads change: PAGES pages. */
extern char *changed;
/* This process, which dispatches itself, and @n such mirrors. Return: the descriptor to wait on. */
int open_loop(unsigned int n, const struct hmm_mirror_ops *operations);
/* The same, with memory to change, filled with seed 1. */
int begin_loop(unsigned int n, const struct hmm_mirror_ops *operations);

bool readable(int fd);
void wait_readable(int fd);

/* What a thread does: all pages go to told-0, or as many as can; all are written with seed 2. */
void *migrate_out(void *arg);
void *try_out(void *arg);
void *write_all(void *arg);
/* It dispatches one callback. */
void *dispatch_one(void *arg);
pthread_t start(void *(*change)(void *));
/* Returns when the change waits for a callback that is to be dispatched. */
pthread_t start_and_hear(void *(*change)(void *), int fd);
/* Dispatches, however often its change has to begin anew. */
void run_until_joined(pthread_t thread);

#endif
