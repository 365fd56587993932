// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * churn.c - keeps blocks of the index on the move while owner and driver use
 * them.
 *
 * First every block goes out once, in random order; then one at random goes to
 * the device or home, until told to stop. A migration is a best effort: what
 * does not move now, or while hmmd is being restarted, is tried again later.
 * churn_finish() insists on every block. Its own thread; finish: the caller's.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <hmm/hmm.h>

#include "churn.h"
#include "index.h"

#define PAGES		(BLOCK_SIZE / 4096)
#define PAUSE_NS	(20 * 1000 * 1000)
#define TRIES		100

static void pause_a_little(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
}

static uint64_t next_random(struct churn *churn)
{
	return scramble(churn->random++);
}

/* Moves one block. Return: pages that are at the target now, or a negative errno. */
static long move(struct churn *churn, struct block *block, enum hmm_target target, uint8_t *results)
{
	struct figures *figures = &churn->board->figures;
	struct hmm_migrate_report report = { 0 };
	long there = hmm_migrate(churn->mirror, block->address, BLOCK_SIZE, target, 0, results,
				 &report);

	if (there < 0)
		return there;
	figures->moves++;
	figures->left_pages += report.failed;
	if (target == HMM_DEVICE) {
		figures->out_pages += report.moved;
		block->out += there > 0;
	} else {
		figures->home_pages += report.moved;
		block->home += block->out && there > 0;
	}
	return there;
}

static void *churn_main(void *data)
{
	struct churn *churn = data;
	struct blocks *blocks = &churn->board->blocks;
	uint32_t first = blocks->count;
	uint32_t *order = malloc(first * sizeof(*order));

	for (uint32_t i = 0; order && i < first; i++) {	/* a shuffle */
		uint32_t j = (uint32_t)(next_random(churn) % (i + 1));

		order[i] = order[j];
		order[j] = i;
	}
	for (uint32_t i = 0; order && i < first && !churn->stop; i++)
		move(churn, &blocks->block[order[i]], HMM_DEVICE, NULL);
	free(order);

	while (!churn->stop) {
		uint64_t random = next_random(churn);

		move(churn, &blocks->block[(random >> 1) % blocks->count],
		     random & 1 ? HMM_DEVICE : HMM_SYSTEM, NULL);
		pause_a_little();
	}
	return NULL;
}

int churn_start(struct churn *churn, struct hmm_mirror *mirror, struct board *board)
{
	churn->mirror = mirror;
	churn->board = board;
	churn->random = board->options.seed;
	churn->stop = 0;
	return -pthread_create(&churn->thread, NULL, churn_main, churn);
}

static void say_why(const struct block *block, const uint8_t *results, long ret)
{
	int left[HMM_MIGRATE_ERROR + 1] = { 0 };

	fprintf(stderr, "demo: block %#lx does not move:", block->address);
	if (ret < 0)
		fprintf(stderr, " %s", hmm_last_error());
	for (unsigned int i = 0; ret >= 0 && i < PAGES; i++)
		if (results[i] <= HMM_MIGRATE_ERROR)
			left[results[i]]++;
	for (int i = 0; i <= HMM_MIGRATE_ERROR; i++)
		if (left[i])
			fprintf(stderr, " %d pages %s;", left[i], hmm_migrate_result_name(i));
	fputc('\n', stderr);
}

/* The owner and the driver go on touching it: what was brought may be gone again at once. */
static int insist(struct churn *churn, struct block *block, enum hmm_target target,
		  const uint32_t *times)
{
	uint8_t results[PAGES] = { 0 };
	long ret = 0;

	for (int i = 0; i < TRIES && !*times; i++) {
		ret = move(churn, block, target, results);
		if (!*times)
			pause_a_little();
	}
	if (!*times)
		say_why(block, results, ret);
	return *times ? 0 : -1;
}

int churn_finish(struct churn *churn)
{
	struct blocks *blocks = &churn->board->blocks;
	int ret = 0;

	churn->stop = 1;
	pthread_join(churn->thread, NULL);
	for (uint32_t i = 0; !ret && i < blocks->count; i++) {
		struct block *block = &blocks->block[i];

		ret = insist(churn, block, HMM_DEVICE, &block->out);
		if (!ret)
			ret = insist(churn, block, HMM_SYSTEM, &block->home);
	}
	return ret;
}
