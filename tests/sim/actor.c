// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * actor.c - who takes the next step. An actor is a stack of its own; it runs until it says that others may come,
 * or that it waits for something. The choice is choose()'s, so a run is a function of the choices.
 *
 * Time is what an actor waits for and nothing else: it passes when nobody can run, or, rarely, while somebody could: then
 * that one was slow.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "sim.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

#ifdef SANITIZED
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define STACK_SIZE	(512UL << 10)
#define STEP_NS		200
/* So many steps of one that could go on for ever, and another has its turn. */
#define TURN_STEPS	300U

struct actor {
	ucontext_t context;
	char *stack;
	void (*body)(void *);
	void *data;
	bool lives;
	bool waits;
	condition ready;
	void *ready_data;
	int64_t deadline;
#ifdef SANITIZED
	void *fake;
#endif
};

static struct actor actors[ACTOR_MAX];
static ucontext_t simulator;
static int current = -1, last = -1;
static unsigned int turn;
#ifdef SANITIZED
static void *simulator_fake;
static const void *simulator_stack;
static size_t simulator_size;
#endif

static const char *const names[ACTOR_MAX] = {
	[ACTOR_HMMD] = "hmmd", [ACTOR_LIBRARY] = "library", [ACTOR_AGENT] = "agent", [ACTOR_RESCUER] = "rescuer", [ACTOR_DRIVER] = "driver",
	[ACTOR_WINDOW_LIBRARY] = "wlibrary", [ACTOR_WINDOW] = "window", [ACTOR_DEVICE] = "device", [ACTOR_MOVER] = "mover", [ACTOR_CHILD] = "child", [ACTOR_CPU] = "cpu0", [ACTOR_CPU + 1] = "cpu1",
};

void actors_init(void)
{
	for (unsigned int i = 0; i < ACTOR_MAX; i++) {
		actors[i].stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (actors[i].stack == MAP_FAILED)
			abort();
	}
}

int actor_current(void)
{
	return current;
}

bool actor_lives(enum actor_id id)
{
	return actors[id].lives;
}

static void leave(struct actor *actor, bool dies)
{
	current = -1;
#ifdef SANITIZED
	__sanitizer_start_switch_fiber(dies ? NULL : &actor->fake, simulator_stack, simulator_size);
#endif
	if (dies)
		setcontext(&simulator);
	swapcontext(&actor->context, &simulator);
#ifdef SANITIZED
	__sanitizer_finish_switch_fiber(actor->fake, &simulator_stack, &simulator_size);
#endif
}

static void enter(int id)
{
	struct actor *actor = &actors[id];

	current = id;
	actor->waits = false;
#ifdef SANITIZED
	__sanitizer_start_switch_fiber(&simulator_fake, actor->stack, STACK_SIZE);
#endif
	swapcontext(&simulator, &actor->context);
#ifdef SANITIZED
	__sanitizer_finish_switch_fiber(simulator_fake, NULL, NULL);
#endif
	run_check();
}

static void begin(void)
{
	struct actor *actor = &actors[current];

#ifdef SANITIZED
	__sanitizer_finish_switch_fiber(NULL, &simulator_stack, &simulator_size);
#endif
	actor->body(actor->data);
	actor->lives = false;
	leave(actor, true);
}

void actor_start(enum actor_id id, void (*body)(void *), void *data)
{
	struct actor *actor = &actors[id];

	actor->body = body;
	actor->data = data;
	actor->lives = true;
	actor->waits = false;
	getcontext(&actor->context);
	actor->context.uc_stack.ss_sp = actor->stack;
	actor->context.uc_stack.ss_size = STACK_SIZE;
	actor->context.uc_link = NULL;
	makecontext(&actor->context, begin, 0);
#ifdef SANITIZED
	/* What an actor that was forgotten left on its stack. */
	__asan_unpoison_memory_region(actor->stack, STACK_SIZE);
	actor->fake = NULL;
#endif
}

void actor_forget(enum actor_id id)
{
	actors[id].lives = false;
	if (last == (int)id)
		last = -1;
	turn = 0;
	/* The simulator is where it was left from, or goes there next. */
	if (current == (int)id)
		leave(&actors[id], true);
}

void step(void)
{
	if (current < 0)
		return;
	if (hmmd_dies())
		actor_forget(ACTOR_HMMD);
	leave(&actors[current], false);
}

static bool is_ready(struct actor *actor)
{
	return !actor->waits || (actor->ready && actor->ready(actor->ready_data)) || actor->deadline <= world.now;
}

bool block(condition ready, void *data, int64_t deadline)
{
	struct actor *actor = &actors[current];

	if (ready && ready(data))
		return true;
	actor->waits = true;
	actor->ready = ready;
	actor->ready_data = data;
	actor->deadline = deadline;
	leave(actor, false);
	return ready && ready(data);
}

void sleep_ns(int64_t ns)
{
	block(NULL, NULL, world.now + ns);
}

static int64_t next_deadline(void)
{
	int64_t next = INT64_MAX;

	for (unsigned int i = 0; i < ACTOR_MAX; i++)
		if (actors[i].lives && actors[i].waits && actors[i].deadline < next)
			next = actors[i].deadline;
	return next;
}

static unsigned int find_ready(int *ready)
{
	unsigned int n = 0;

	for (int i = 0; i < (int)ACTOR_MAX; i++)
		if (actors[i].lives && is_ready(&actors[i]))
			ready[n++] = i;
	return n;
}

/* The one that ran last stays, if it can, as often as this run's character says. */
static int pick(const int *ready, unsigned int n)
{
	unsigned int at = 0;

	for (unsigned int i = 0; i < n; i++)
		if (ready[i] == last && turn < TURN_STEPS && choose(world.sticky + 1) < world.sticky)
			return last;
	if (turn >= TURN_STEPS)
		/* By turns, whatever is chosen: nobody spins for ever while another could help him. */
		while (at + 1 < n && ready[at] <= last)
			at++;
	else if (n > 1)
		at = choose(n);
	return ready[at];
}

bool schedule(void)
{
	int ready[ACTOR_MAX], id;
	unsigned int n = find_ready(ready);
	int64_t next = next_deadline();

	if (!n || (next != INT64_MAX && rarely(40))) {
		if (next == INT64_MAX)
			return false;
		if (next > world.now)
			world.now = next;
		n = find_ready(ready);
		if (!n)
			return true;
	}
	id = pick(ready, n);
	turn = id == last ? turn + 1 : 0;
	last = id;
	/* One that goes on alone, looking at the clock again and again, is told that it is later. */
	world.now += turn > 60 ? NS_PER_MS : STEP_NS;
	enter(id);
	return true;
}

void actor_finish(enum actor_id id)
{
	for (unsigned int steps = 0; actors[id].lives; steps++) {
		if (steps > 100000)
			wrong("%s does not end", names[id]);
		if (actors[id].waits && !is_ready(&actors[id]))
			world.now = actors[id].deadline;
		enter((int)id);
	}
}

void actors_print(FILE *out)
{
	for (unsigned int i = 0; i < ACTOR_MAX; i++)
		if (actors[i].lives)
			fprintf(out, "  %s %s%s\n", names[i], actors[i].waits ? "waits" : "could go on",
				actors[i].waits && actors[i].deadline != INT64_MAX ? ", for a time" : "");
}

const char *actor_name(int id)
{
	return id < 0 ? "-" : names[id];
}
