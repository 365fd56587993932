/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The hooks around fork(), alone: what the rest of the library would answer is up to the test.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libclient/arena.h"
#include "libclient/clerk.h"
#include "libclient/dispatch.h"
#include "libclient/fork.h"
#include "libclient/log.h"
#include "libclient/space.h"
#include "libclient/told.h"

#define ANSWERS 8

static struct hmm space;
static struct owner owner;
static struct request request;
static struct hmm_msg_forked message;

/* What became of it, in the order in which it was asked. */
static struct {
	unsigned int fail_new;		/* so many times there is no memory for the request */
	int answers[ANSWERS];
	unsigned int asked;
	uint16_t op[ANSWERS];
	uint32_t fork[ANSWERS];
	unsigned int waited;		/* for the rescuer */
} story;

struct request *hmmc_request_new(struct connection *connection, uint16_t op, size_t size)
{
	if (story.fail_new && story.fail_new--)
		return NULL;
	memset(&message, 0, sizeof(message));
	message.header.opcode = op;
	request.message = (struct hmm_wire_header *)&message;
	return &request;
}

int hmmc_request_call(struct request *asked)
{
	unsigned int i = story.asked++;

	cr_assert_lt(i, ANSWERS);
	story.op[i] = message.header.opcode;
	story.fork[i] = message.fork;
	if (story.answers[i] == -ESTALE)
		space.lost = 1;
	return story.answers[i];
}

void hmmc_request_free(struct request *asked)
{
}

int hmmc_prepare_owner(struct request *asked)
{
	return 0;
}

struct hmm *hmmc_space_enter_any(void)
{
	return &space;
}

struct hmm *hmmc_space_enter_own(void)
{
	return space.lost ? NULL : &space;
}

void hmmc_space_leave(struct hmm *hmm)
{
}

void hmmc_space_lock(void)
{
}

void hmmc_space_unlock(void)
{
}

void hmmc_space_forget(void)
{
}

bool hmmc_dispatch_is_current(void)
{
	return false;
}

void hmmc_dispatch_pause(const uint32_t *word, uint32_t value, const struct timespec *timeout)
{
	futex_wait((uint32_t *)word, value, timeout);
}

void hmmc_dispatch_wait(const uint32_t *latch)
{
	cr_assert_eq(latch, &owner.rescuer.done);
	story.waited++;
}

void hmmc_dispatch_nap(long ns)
{
}

void hmmc_dispatch_forget(void)
{
}

void hmmc_log_forget(void)
{
}

void hmmc_clerk_forget(void)
{
}

void hmmc_told_forget(void)
{
}

void hmmc_arena_forget(void)
{
}

static void begin(void)
{
	space.owner = &owner;
	hmmc_fork_watch();
}

static void fork_and_wait(void)
{
	pid_t child = fork();
	int status = -1;

	if (child == 0)
		_exit(0);
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert_eq(status, 0);
}

Test(fork, hmmd_hears_of_the_fork_and_of_its_end)
{
	begin();
	fork_and_wait();
	cr_assert_eq(story.asked, 2);
	cr_assert_eq(story.op[0], HMM_OP_PREPARE_FORK);
	cr_assert_eq(story.op[1], HMM_OP_FORKED);
	cr_assert_eq(story.fork[0], story.fork[1]);
	cr_assert_eq(story.waited, 0);
}

/* Else nothing is home, and a child that hmmd doesn't see has zeros. */
Test(fork, whatever_is_short_the_fork_waits_until_hmmd_has_answered)
{
	const int answers[] = { -ENOMEM, -EDQUOT, -ENOSPC, 0, -EDQUOT, 0 };

	begin();
	story.fail_new = 2;
	memcpy(story.answers, answers, sizeof(answers));
	fork_and_wait();
	cr_assert_eq(story.fail_new, 0);
	cr_assert_eq(story.asked, 6, "asked %u times", story.asked);
	for (unsigned int i = 0; i < 6; i++) {
		cr_assert_eq(story.op[i], i < 4 ? HMM_OP_PREPARE_FORK : HMM_OP_FORKED);
		cr_assert_eq(story.fork[i], story.fork[0]);
	}
	cr_assert_eq(story.waited, 0);
}

Test(fork, where_hmmd_is_gone_for_good_the_rescuer_is_waited_for)
{
	begin();
	story.answers[0] = -ENOMEM;
	story.answers[1] = -ESTALE;
	fork_and_wait();
	cr_assert_eq(story.asked, 2);
	cr_assert_eq(story.waited, 1);
}
