/* SPDX-License-Identifier: GPL-2.0-or-later */
/* actor.h - choices, and who makes them: what every part of the simulator knows. */
#ifndef TEST_SIM_ACTOR_H
#define TEST_SIM_ACTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define CPUS		2U

/* ---- choices (sim.c) --------------------------------------------------------------------------------------- */

/* One of @n, 0 being the plainest. Everything that is not determined is asked for here. */
unsigned int choose(unsigned int n);
/* True once in @n. */
static inline bool rarely(unsigned int n)
{
	return choose(n) == n - 1;
}

/* The run is over, and this is wrong. Does not return. */
void wrong(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* In the simulator itself: does not return if something was wrong in an actor. */
void run_check(void);
/* A line of the trace, if one is wanted. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* How something is called in the trace. */
const char *addr_name(uint64_t addr);

/* ---- actors (actor.c) --------------------------------------------------------------------------------------- */

enum actor_id {
	ACTOR_HMMD,
	ACTOR_LIBRARY,		/* of the owner: receives, and hands back after a restart */
	ACTOR_AGENT,
	ACTOR_RESCUER,		/* when no hmmd comes back */
	ACTOR_DRIVER,		/* it hears what hmmd tells it, and answers */
	ACTOR_WINDOW_LIBRARY,	/* of a second driver, which has a window */
	ACTOR_DEVICE,		/* it loads and stores; this and all that follow come to an end */
	ACTOR_WINDOW,		/* so does who uses the window */
	ACTOR_MOVER,		/* it asks for migrations */
	ACTOR_CHILD,		/* that one of the following has forked */
	ACTOR_CPU,
	ACTOR_MAX = ACTOR_CPU + CPUS
};

struct actor;
typedef bool (*condition)(void *data);

void actors_init(void);
void actor_start(enum actor_id id, void (*body)(void *), void *data);
/* As if it never had been: whatever it was in the middle of. */
void actor_forget(enum actor_id id);
bool actor_lives(enum actor_id id);
int actor_current(void);		/* -1: none, the simulator itself */
/* Others may come here. Nothing is waited for. */
void step(void);
/* Until @ready(@data), or @deadline. NULL: time alone. False: it is later than @deadline, and not ready. */
bool block(condition ready, void *data, int64_t deadline);
void sleep_ns(int64_t ns);
/* Runs one step of one actor, or lets time pass. False: nothing can ever happen any more. */
bool schedule(void);
/* Runs this actor alone until it ends. */
void actor_finish(enum actor_id id);
const char *actor_name(int id);
/* What those that live wait for. */
void actors_print(FILE *out);

#endif
