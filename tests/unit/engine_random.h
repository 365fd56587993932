/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * engine_random.h - random numbers for tests: from HMM_TEST_SEED or fresh, the
 * seed printed, so that any run can be had again.
 */
#ifndef TEST_ENGINE_RANDOM_H
#define TEST_ENGINE_RANDOM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

struct random {
	uint64_t state;
};

static inline struct random random_begin(const char *what)
{
	const char *given = getenv("HMM_TEST_SEED");
	uint32_t seed = 0;

	if (given && *given)
		seed = (uint32_t)strtoul(given, NULL, 0);
	else if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
		seed = 1;
	fprintf(stderr, "%s: HMM_TEST_SEED=%u\n", what, seed);
	return (struct random){ seed };
}

/* splitmix64 */
static inline uint64_t random_next(struct random *random)
{
	uint64_t z = random->state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

/* 0 .. n - 1 */
static inline unsigned int random_below(struct random *random, unsigned int n)
{
	return (unsigned int)(random_next(random) % n);
}

#endif
