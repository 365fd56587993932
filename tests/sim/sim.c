// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sim.c - a simulator of the coherence protocol: hmmd's own code (engine, policy, memory) and the library's agent, over a
 * simulated kernel, owner and driver. One thread, time of its own, and one list of choices, so a run is a function of its seed,
 * or of the list.
 *
 *   sim --runs N --seed S          so many schedules; seed 0: another each time
 *   sim --seed S --run N           one of them again, told step by step
 *   sim --choices 3,0,1/...        the same of a list, as a failure prints it
 *   sim_broken --broken MISTAKE    of breakage.h: has to be found
 *
 * Real are: hmmd's worker with all that it calls, its letters, its ledger, table and orders in memfds; the agent. Simulated are:
 * the kernel's userfaultfd, pagemap and mappings of the owner, by the page (kernel.c); threads of the owner (cpu.c); a driver that is called
 * back and a device (driver.c); another one with a window (window.c); a child that is forked (child.c); who reads hmmd's socket, and hands things back after it has died (library.c). An actor can
 * be interrupted by the others before each of its system calls, and hmmd also where it posts a letter; what lies between is one
 * step. So two stores of hmmd to shared memory without a call between them are seen together, which is not so on two processors: that
 * is tests/coherence's to find, and the model's.
 *
 * Rooms: sim.c choices, runs, shrinking; actor.c who goes on; kernel.c the address space; process.c hmmd as a process, and what is put in
 * the place of libc; library.c, driver.c, window.c, cpu.c, child.c who acts; oracle.c what must hold.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

struct world world;

#define CHOICES_MAX	8192U
#define STREAMS		(ACTOR_MAX + 1U)
#define STEPS_MAX	20000U
#define TIME_MAX	(300000 * NS_PER_MS)

/* Each actor has choices of its own, and the simulator has: taking one away changes nothing of the others. */
struct list {
	unsigned int n[STREAMS];
	uint16_t choice[STREAMS][CHOICES_MAX];
};

static struct list made;		/* of this run, so far */
static const struct list *given;	/* to be followed; NULL: from the seed */
static uint64_t random_state;
static bool telling;
static bool failed;
static char failure[400];
static sigjmp_buf run_over;
static unsigned int steps;

/* ---- choices ---------------------------------------------------------------------------------------------------- */

static uint64_t next_random(void)
{
	uint64_t z = random_state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

unsigned int choose(unsigned int n)
{
	unsigned int stream = (unsigned int)(actor_current() + 1), at = made.n[stream], choice;

	if (n < 2 || at == CHOICES_MAX)
		return 0;
	if (given)
		choice = at < given->n[stream] ? given->choice[stream][at] % n : 0;
	else
		choice = (unsigned int)(next_random() % n);
	made.choice[stream][at] = (uint16_t)choice;
	made.n[stream]++;
	return choice;
}

/* ---- what is said -------------------------------------------------------------------------------------------------- */

const char *addr_name(uint64_t addr)
{
	static char names[8][40];
	static unsigned int at;
	char *name = names[at++ % 8];

	if (addr >= ROOM && addr < ROOM_END)
		snprintf(name, sizeof(names[0]), "%c%lu", 'A' + (int)((addr - ROOM) >> HMM_BLOCK_SHIFT),
			 (addr >> HMM_PAGE_SHIFT) % HMM_BLOCK_PAGES);
	else if (addr >= SLOTS_ADDR && addr < SLOTS_END)
		snprintf(name, sizeof(names[0]), "slot%lu.%lu", (addr - SLOTS_ADDR) >> HMM_BLOCK_SHIFT,
			 (addr >> HMM_PAGE_SHIFT) % HMM_BLOCK_PAGES);
	else
		snprintf(name, sizeof(names[0]), "%#lx", addr);
	return name;
}

void say(const char *format, ...)
{
	va_list args;

	if (!telling)
		return;
	printf("%6u %10.3f ms  %-8s ", steps, (double)world.now / 1e6, actor_name(actor_current()));
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

void wrong(const char *format, ...)
{
	va_list args;

	if (!failed) {
		failed = true;
		va_start(args, format);
		vsnprintf(failure, sizeof(failure), format, args);
		va_end(args);
		say("WRONG: %s", failure);
	}
	if (actor_current() >= 0)
		actor_forget((enum actor_id)actor_current());
	siglongjmp(run_over, 1);
}

void run_check(void)
{
	if (failed)
		siglongjmp(run_over, 1);
}

static void crashed(int signal)
{
	failed = true;
	snprintf(failure, sizeof(failure), "%s, in %s", strsignal(signal), actor_name(actor_current()));
	siglongjmp(run_over, 1);
}

/* ---- one run --------------------------------------------------------------------------------------------------------- */

static void go(void)
{
	if (!schedule()) {
		if (telling)
			actors_print(stdout);
		wrong("everybody waits, for ever");
	}
	if (world.killed)
		hmmd_kill();
	if (++steps > STEPS_MAX || world.now > TIME_MAX) {
		if (telling)
			actors_print(stdout);
		wrong("it does not come to an end");
	}
	oracle_step();
}

static bool programs_run(void)
{
	for (unsigned int i = ACTOR_DEVICE; i < ACTOR_MAX; i++)
		if (actor_lives((enum actor_id)i))
			return true;
	return false;
}

static void run_world(void)
{
	static const unsigned int cpu[CPUS] = { 0, 1 };
	static const unsigned int rates[] = { 0, 0, 60, 15 }, stickies[] = { 1, 0, 6 };

	static const uint64_t sizes[] = { 4UL << 20, 4UL << 20, 3 * HMM_PAGE_SIZE };

	world.failing = 0;
	world.no_move = choose(4) == 3;
	world.device_size = sizes[choose(3)];
	world.windows = choose(2);
	world.forks_unseen = choose(5) == 4;
	world.huge = !world.windows && choose(5) == 4;
	if (world.huge)
		space_make_huge();
	hmmd_start();
	actor_start(ACTOR_LIBRARY, library_body, NULL);
	while (!world.open)
		go();
	world.no_return = choose(8) == 7;
	world.kills_max = world.no_return ? 1 : choose(3);
	world.failing = rates[choose(4)];
	world.sticky = stickies[choose(3)];
	say("kills at most: %u; calls fail one in: %u; sticky: %u; %s; %lu bytes on a device%s%s%s", world.kills_max, world.failing,
	    world.sticky, world.no_move ? "without MOVE" : "by MOVE", world.device_size, world.windows ? "; a window" : "",
	    world.forks_unseen ? "; forks are not seen" : "", world.huge ? "; a huge page" : "");
	if (world.windows) {
		actor_start(ACTOR_WINDOW_LIBRARY, window_library_body, NULL);
		actor_start(ACTOR_WINDOW, window_body, NULL);
	}
	actor_start(ACTOR_DRIVER, driver_body, NULL);
	actor_start(ACTOR_DEVICE, device_body, NULL);
	actor_start(ACTOR_MOVER, mover_body, NULL);
	for (unsigned int i = 0; i < CPUS; i++)
		actor_start((enum actor_id)(ACTOR_CPU + i), cpu_body, (void *)&cpu[i]);
	while (programs_run())
		go();
	world.kills_max = 0;
	world.failing = 0;
	while (!world.lost && (!world.open || (world.windows && !world.window_ready)))
		go();
	if (world.lost) {
		while (!rescue_is_done() || world.engine)
			go();
		say("the rescuer has brought %lu pages home", rescue_pages());
		oracle_end();
		return;
	}
	say("all programs have ended: hmmd is to stop");
	world.leaving = true;
	engine_submit(world.engine, letter_new(LETTER_SHUTDOWN));
	while (!world.stopped)
		go();
	hmmd_end();
	oracle_end();
}

static void clean_up(void)
{
	for (unsigned int i = 0; i < ACTOR_MAX; i++)
		actor_forget((enum actor_id)i);
	library_reset();
	hmmd_kill();
	slot_discard(SLOTS_ADDR, SLOTS_END - SLOTS_ADDR);
}

static void begin_world(void)
{
	memset(&world, 0, sizeof(world));
	rescue_reset();
	world.agent = rescue_agent();
	world.regions = rescue_regions();
	world.now = 1000 * NS_PER_MS;
	for (unsigned int i = 0; i < REGIONS_HELD; i++)
		world.held[i].fd = -1;
	space_reset();
	oracle_reset();
}

/* False: something was wrong; `failure` says what, and `made` how it came to it. */
static bool run(const struct list *choices, uint64_t seed)
{
	given = choices;
	random_state = seed;
	memset(made.n, 0, sizeof(made.n));
	steps = 0;
	failed = false;
	begin_world();
	if (!sigsetjmp(run_over, 1))
		run_world();
	clean_up();
	return !failed;
}

/* What it came to, in one number: the same each time. */
static uint64_t fingerprint(void)
{
	uint64_t sum = steps;

	for (unsigned int i = 0; i < STREAMS; i++)
		for (unsigned int k = 0; k < made.n[i]; k++)
			sum = (sum ^ made.choice[i][k]) * 0x100000001b3ULL + i;
	return sum ^ (uint64_t)world.now;
}

static struct {
	uint64_t seed, runs, run;
	const char *choices, *mistake, *program;
	bool expected;
} options = { .seed = 1, .runs = 1000, .run = UINT64_MAX };

/* ---- shrinking --------------------------------------------------------------------------------------------------------- */

static struct list best, trial;
static unsigned int tries;

/* Where somebody is to read it. */
#define TRIES_MAX	(options.mistake ? 300U : 30000U)

static void copy(struct list *to, const struct list *from)
{
	for (unsigned int i = 0; i < STREAMS; i++) {
		to->n[i] = from->n[i];
		memcpy(to->choice[i], from->choice[i], from->n[i] * sizeof(uint16_t));
	}
}

static unsigned int length(const struct list *list)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < STREAMS; i++)
		n += list->n[i];
	return n;
}

/* The mistake has to be of the same kind: as it is said, up to the first name or figure. */
static bool same_kind(const char *a, const char *b)
{
	size_t n = strcspn(a, "0123456789");

	return strncmp(a, b, n < 10 ? n : 10) == 0;
}

static bool still_fails(const char *kind)
{
	if (tries++ >= TRIES_MAX || run(&trial, 0) || !same_kind(kind, failure))
		return false;
	copy(&best, &trial);
	for (unsigned int i = 0; i < STREAMS; i++) {
		/* What was not asked for is no part of it, and what is the plainest need not be said. */
		if (made.n[i] < best.n[i])
			best.n[i] = made.n[i];
		while (best.n[i] && !best.choice[i][best.n[i] - 1])
			best.n[i]--;
	}
	return true;
}

/* Parts of a stream away, large ones first. */
static bool cut(unsigned int stream, const char *kind)
{
	bool any = false;

	for (unsigned int size = best.n[stream]; size; size /= 2)
		for (unsigned int at = 0; at + size <= best.n[stream];) {
			unsigned int rest = best.n[stream] - at - size;

			copy(&trial, &best);
			memmove(trial.choice[stream] + at, trial.choice[stream] + at + size, rest * sizeof(uint16_t));
			trial.n[stream] -= size;
			if (still_fails(kind))
				any = true;
			else
				at += size;
		}
	return any;
}

static bool is_plain(unsigned int stream, unsigned int at, unsigned int size)
{
	for (unsigned int i = at; i < at + size; i++)
		if (best.choice[stream][i])
			return false;
	return true;
}

/* ... or plain. */
static bool flatten(unsigned int stream, const char *kind)
{
	bool any = false;

	for (unsigned int size = best.n[stream]; size; size /= 2)
		for (unsigned int at = 0; at + size <= best.n[stream]; at += size) {
			if (is_plain(stream, at, size))
				continue;
			copy(&trial, &best);
			memset(trial.choice[stream] + at, 0, size * sizeof(uint16_t));
			any |= still_fails(kind);
		}
	return any;
}

static void shrink(void)
{
	char kind[sizeof(failure)];
	bool any = true;

	strcpy(kind, failure);
	copy(&best, &made);
	for (tries = 0; any && tries < TRIES_MAX;) {
		any = false;
		for (unsigned int i = STREAMS; i--;)
			any |= cut(i, kind) | flatten(i, kind);
	}
}

/* ---- all of them ----------------------------------------------------------------------------------------------------------- */

static void print_choices(void)
{
	for (unsigned int i = 0; i < STREAMS; i++) {
		printf("%s", i ? "/" : "");
		for (unsigned int k = 0; k < best.n[i]; k++)
			printf("%s%u", k ? "," : "", best.choice[i][k]);
	}
}

static void read_choices(struct list *list, const char *text)
{
	unsigned int stream = 0;
	char *end;

	memset(list->n, 0, sizeof(list->n));
	for (; *text && stream < STREAMS; text = end) {
		end = (char *)text + 1;
		if (*text == '/')
			stream++;
		else if (*text != ',' && list->n[stream] < CHOICES_MAX)
			list->choice[stream][list->n[stream]++] = (uint16_t)strtoul(text, &end, 10);
	}
}

static void tell_failure(void)
{
	unsigned int before = length(&made), steps_before = steps;

	shrink();
	printf("shrunk in %u tries from %u choices and %u steps to %u; this is what is left:\n\n", tries, before, steps_before,
	       length(&best));
	telling = true;
	copy(&trial, &best);
	run(&trial, 0);
	telling = false;
	printf("\n%s\nagain: %s%s%s --choices ", failure, options.program, options.mistake ? " --broken " : "",
	       options.mistake ? options.mistake : "");
	print_choices();
	putchar('\n');
	fflush(stdout);
}

static void set_up(void)
{
	struct sigaction action = { .sa_handler = crashed, .sa_flags = SA_ONSTACK | SA_NODEFER };
	static char stack[65536];
	const stack_t alternative = { .ss_sp = stack, .ss_size = sizeof(stack) };
	void *slots = mmap((void *)SLOTS_ADDR, SLOTS * HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (slots != (void *)SLOTS_ADDR)
		abort();
	sigaltstack(&alternative, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	actors_init();
	process_init();
}

static uint64_t mix(uint64_t seed, uint64_t n)
{
	random_state = seed * 0x9e3779b97f4a7c15ULL + n;
	return next_random();
}

static bool parse(int argc, char **argv)
{
	const char *environment = getenv("HMM_TEST_SEED");

	options.program = argv[0];
	if (environment)
		options.seed = strtoull(environment, NULL, 0);
	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[++i] : "";

		if (!strcmp(argv[i - 1], "--seed")) {
			options.seed = strtoull(value, NULL, 0);
		} else if (!strcmp(argv[i - 1], "--runs")) {
			options.runs = strtoull(value, NULL, 0);
		} else if (!strcmp(argv[i - 1], "--run")) {
			options.run = strtoull(value, NULL, 0);
		} else if (!strcmp(argv[i - 1], "--choices")) {
			options.choices = value;
		} else if (!strcmp(argv[i - 1], "--broken")) {
			options.mistake = value;
			setenv("HMMD_BREAK", value, 1);
		} else {
			fprintf(stderr, "sim: what is %s? --runs, --seed, --run, --choices and --broken are known, each with a value\n",
				argv[i - 1]);
			return false;
		}
	}
	return true;
}

static int run_one(void)
{
	bool fine;

	telling = true;
	if (options.choices)
		read_choices(&best, options.choices);
	fine = run(options.choices ? &best : NULL, mix(options.seed, options.run));
	printf("%s\n", fine ? "nothing is wrong" : failure);
	return !fine;
}

int main(int argc, char **argv)
{
	uint64_t total = 0;

	if (!parse(argc, argv))
		return 2;
	if (!options.seed)
		options.seed = (uint64_t)time(NULL) << 16 ^ (uint64_t)getpid();
	set_up();
	if (options.choices || options.run != UINT64_MAX)
		return run_one();
	printf("seed %lu\n", options.seed);
	for (uint64_t n = 0; n < options.runs; n++) {
		if (run(NULL, mix(options.seed, n))) {
			uint64_t first = fingerprint();

			total += steps;
			if (n % 50 || (run(NULL, mix(options.seed, n)) && fingerprint() == first))
				continue;
			printf("schedule %lu of seed %lu is another one the second time: something is not simulated\n", n, options.seed);
			return 1;
		}
		printf("schedule %lu: %s\nagain: %s%s%s --seed %lu --run %lu\n", n, failure, options.program,
		       options.mistake ? " --broken " : "", options.mistake ? options.mistake : "", options.seed, n);
		fflush(stdout);
		tell_failure();
		return !options.mistake;
	}
	printf("%lu schedules, %lu steps: nothing is wrong\n", options.runs, total);
	return options.mistake != NULL;
}
