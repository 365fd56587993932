/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preload_thread.c - threads of a program under `hmmctl run`.
 *
 * The kernel writes into a thread's control block when it exits and into its
 * stack when it gets a signal, and drops what faults: a stack must not be on a
 * device. So every new thread excludes its own before it runs the program's code.
 *
 * Where the exclusion fails the thread runs all the same: hmmd then refuses what
 * it can see to be a stack.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <threads.h>

#include "preload.h"

#define INTERPOSED __attribute__((visibility("default")))

INTERPOSED int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *),
			      void *argument);
INTERPOSED int thrd_create(thrd_t *thread, thrd_start_t start, void *argument);

typedef int create_fn(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *),
		      void *argument);
typedef int thrd_create_fn(thrd_t *thread, thrd_start_t start, void *argument);

struct start {
	void *(*posix)(void *argument);
	thrd_start_t c11;
	void *argument;
};

static struct start begin(void *argument)
{
	struct start start = *(struct start *)argument;
	struct hmm *hmm = preload_space();

	free(argument);
	if (hmm)
		hmm_internal_exclude_thread(hmm);
	return start;
}

static void *run_posix(void *argument)
{
	struct start start = begin(argument);

	return start.posix(start.argument);
}

static int run_c11(void *argument)
{
	struct start start = begin(argument);

	return start.c11(start.argument);
}

/* NULL: the library's own thread, or no memory: then it starts as it is. */
static struct start *wrap(void *argument)
{
	struct start *start;

	if (!preload_space() || hmm_internal_is_library_thread())
		return NULL;
	start = calloc(1, sizeof(*start));
	if (start)
		start->argument = argument;
	return start;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*function)(void *),
		   void *argument)
{
	static create_fn *next;
	struct start *start = wrap(argument);
	create_fn *create = __atomic_load_n(&next, __ATOMIC_RELAXED);
	int error;

	if (!create) {
		create = (create_fn *)(uintptr_t)dlsym(RTLD_NEXT, "pthread_create");
		__atomic_store_n(&next, create, __ATOMIC_RELAXED);
	}
	if (!start)
		return create(thread, attr, function, argument);
	start->posix = function;
	error = create(thread, attr, run_posix, start);
	if (error)
		free(start);
	return error;
}

int thrd_create(thrd_t *thread, thrd_start_t function, void *argument)
{
	static thrd_create_fn *next;
	struct start *start = wrap(argument);
	thrd_create_fn *create = __atomic_load_n(&next, __ATOMIC_RELAXED);
	int result;

	if (!create) {
		create = (thrd_create_fn *)(uintptr_t)dlsym(RTLD_NEXT, "thrd_create");
		__atomic_store_n(&next, create, __ATOMIC_RELAXED);
	}
	if (!start)
		return create(thread, function, argument);
	start->c11 = function;
	result = create(thread, run_c11, start);
	if (result != thrd_success)
		free(start);
	return result;
}
