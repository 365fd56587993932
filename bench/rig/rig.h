/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rig.h - what the benchmarks share: a mirror, the bare handler, memory, time and how figures are told. */
#ifndef BENCH_RIG_H
#define BENCH_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include <hmm/hmm.h>

#define PAGE	4096UL
#define BLOCK	(2UL << 20)
#define MIB	(1UL << 20)
#define GIB	(1UL << 30)

/* ---- ending: a benchmark that can't measure says why and prints no figure ---- */

void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* @ret negative: fails with hmm_last_error(). */
void hmm_check(long ret, const char *what);

/* ---- time -------------------------------------------------------------------- */

double now(void);			/* seconds */
/*
 * How long a thread of this process has waited for a processor so far, seconds.
 * Taken off a time, other programs' load falls out; waiting for hmmd does not.
 */
double waited(pid_t tid);
/* now() less what the calling thread waited for a processor. */
double now_served(void);
/* The library's thread of that name, or 0. */
pid_t library_thread(const char *name);
uint64_t now_ns(void);

/* ---- memory ------------------------------------------------------------------ */

/*
 * Every page of memory that is measured was touched before: a virtual machine's
 * memory may be backed by its host at its first touch only, twenty times slower, and
 * what is free for two seconds may be given back to the host (free page reporting).
 */
void warm_up(size_t bytes);
/* Private anonymous memory, block-aligned, filled; @huge: must be huge pages. */
void *memory_new(size_t bytes, bool huge);
/* The same within [addr, addr + bytes + 4 MiB), where no other process of the benchmark has anything. */
void *memory_at(unsigned long addr, size_t bytes, bool huge);
/* Each page of it begins with @seed + its number. */
void memory_mark(void *memory, size_t bytes, uint64_t seed);
void memory_compare(const void *memory, size_t bytes, uint64_t seed);
/* A field of /proc/self/smaps for the mappings inside, in bytes. */
size_t memory_field(const void *memory, size_t bytes, const char *field);

/* The numbers 0..n-1 in random order. */
uint32_t *permutation(uint32_t n, uint64_t seed);
uint64_t random_next(uint64_t *state);

/* ---- processors -------------------------------------------------------------- */

/* The calling thread only here. A negative one: anywhere. */
void pin(int cpu);

/* ---- our side ------------------------------------------------------------------ */

struct mirrored {
	struct hmm *hmm;
	struct hmm_mirror mirror;
};

/* An address space of this process and a mirror on a device of its own with @bytes. */
void mirrored_open(struct mirrored *mirrored, size_t bytes);
void mirrored_close(struct mirrored *mirrored);
/* Moves all of it, or fails saying what stayed. */
void move_all(struct mirrored *mirrored, void *memory, size_t bytes, enum hmm_target target);

/* ---- an hmmd that is killed and started again ------------------------------------- */

struct hmmd {
	pid_t pid;
	char command[4096];	/* its words, each with its end */
	size_t length;
};
/* The one that runs already, as which others are started. */
void hmmd_adopt(struct hmmd *hmmd, pid_t pid);
/* Returns when it is gone. */
void hmmd_end(struct hmmd *hmmd, int signal);
/* At @socket, or NULL: where the first one was. Returns the seconds until it said READY. */
double hmmd_start(struct hmmd *hmmd, const char *socket);

/* ---- the floor of faults: a bare handler ----------------------------------------- */

struct handler {
	pid_t pid;
	int uffd;
	char *range;		/* what it serves; mark n of page n */
	size_t bytes;
	int commands;
};

/*
 * Another process that serves faults of @bytes with UFFDIO_COPY of @around
 * pages from resident memory. It waits as hmmd does: after each event it polls
 * without sleeping for @spin_us. Call it before mirrored_open().
 */
void handler_start(struct handler *handler, size_t bytes, int cpu, unsigned int spin_us);
/* Empties the range. */
void handler_reset(struct handler *handler, unsigned int around);
void handler_stop(struct handler *handler);

/* ---- another process of the benchmark, over a SOCK_SEQPACKET pair ------------------ */

/* It dies with this one. @run has the other end of @socket, and does not come back. Fails, or returns its pid. */
pid_t process_start(void (*run)(int socket, const void *data), const void *data, int *socket);
void word_send(int socket, double word, int fd);	/* @fd: -1: none */
double word_wait(int socket, int *fd);			/* @fd: NULL: none is expected */

/* ---- telling --------------------------------------------------------------------- */

double quantile(double *values, size_t n, double q);	/* sorts */

/* One line of JSON: pairs of values, measured next to each other. */
struct figures {
	const char *row;
	const char *unit;
	double ours[512], floor[512];
	unsigned int count;
};
void figures_add(struct figures *figures, double ours, double floor);
/* @note: more for the reader, a JSON object's inside, or NULL. */
void figures_print(const struct figures *figures, const char *note);

/* ---- arguments ------------------------------------------------------------------- */

struct arguments {
	unsigned int rounds;
	size_t bytes;
	unsigned int spin_us;
	int fault_cpu, handler_cpu;	/* -1: anywhere */
	unsigned int threads;
	bool huge;
	const char *pool;	/* what hmmd was started with: memfd, memfd-huge, hugetlb */
	pid_t hmmd;
	unsigned int seconds;
};
void arguments_read(struct arguments *arguments, int argc, char **argv);

#endif
