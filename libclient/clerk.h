/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * clerk.h - the first library thread. It owns the private descriptor table that
 * all library threads share, does jobs that need a descriptor of it, and starts
 * the other threads, which inherit it.
 */
#ifndef HMMC_CLERK_H
#define HMMC_CLERK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct job {
	struct job *next;
	/* Runs in the clerk. The job may be freed by run() itself if nobody waits for it. */
	void (*run)(struct job *job);
};

/* Starts the clerk if there is none. Return: 0 or a negative errno. */
int hmmc_clerk_start(void);
void hmmc_clerk_post(struct job *job);

/*
 * Runs fn(argument) in the clerk and waits for it. @argument must not be memory
 * that can be on the device: arena memory, or a plain value.
 */
int hmmc_clerk_call(int (*fn)(void *argument), void *argument);

/* The descriptor @fd of the program, as one in the private table. In the clerk only. */
int hmmc_clerk_take_fd(int fd);

struct thread {
	pthread_t id;
	void *stack;
	size_t stack_size;
	bool started;
	bool private;			/* has the private descriptor table */
	void (*main)(void *argument);
	void *argument;
	char name[16];
};

/*
 * Starts a thread on arena memory with every signal blocked. It has the
 * caller's descriptor table: in the clerk that is the private one.
 */
int hmmc_thread_start(struct thread *thread, const char *name, void (*main)(void *),
		      void *argument);
void hmmc_thread_join(struct thread *thread);
/*
 * Does the calling thread have the private descriptor table? Such a thread must not wait
 * for requests.
 */
bool hmmc_thread_is_private(void);

/* After fork, in the child: there is no clerk. */
void hmmc_clerk_forget(void);

#endif
