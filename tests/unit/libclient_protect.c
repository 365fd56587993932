/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The library's mprotect(), alone: what the rest of it would answer is up to the test.
 */
#define _GNU_SOURCE
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "libclient/clerk.h"
#include "libclient/dispatch.h"
#include "libclient/protect.h"
#include "libclient/space.h"

static struct hmm space;
static struct owner owner;
static struct request request;
static struct hmm_msg_protect message;
static char page[HMM_PAGE_SIZE] __attribute__((aligned(4096)));

static struct {
	bool begun;
	bool in_callback;
	unsigned int fail_new;		/* so many times there is no memory for the request */
	unsigned int lose_after;	/* hmmd is gone for good after so many naps; 0: never */
	unsigned int naps, asked;
} story;

struct request *hmmc_request_new(struct connection *connection, uint16_t op, size_t size)
{
	if (story.fail_new && story.fail_new--)
		return NULL;
	cr_assert_eq(op, HMM_OP_PROTECT);
	memset(&request, 0, sizeof(request));
	request.message = (struct hmm_wire_header *)&message;
	return &request;
}

void hmmc_request_post(struct request *asked)
{
	cr_assert(asked->insists);
	cr_assert_eq(message.addr, (uintptr_t)page);
	cr_assert_eq(message.length, HMM_PAGE_SIZE);
	story.asked++;
}

int hmmc_request_call(struct request *asked)
{
	hmmc_request_post(asked);
	return 0;
}

void hmmc_request_free(struct request *asked)
{
}

int hmmc_prepare_owner(struct request *asked)
{
	return 0;
}

struct hmm *hmmc_space_enter_own(void)
{
	return story.begun ? &space : NULL;
}

void hmmc_space_leave(struct hmm *hmm)
{
}

bool hmmc_dispatch_is_current(void)
{
	return story.in_callback;
}

void hmmc_dispatch_nap(long ns)
{
	if (++story.naps == story.lose_after)
		space.lost = 1;
}

bool hmmc_thread_is_private(void)
{
	return false;
}

/* hmmd is asked about all: the owner has no MOVE. */
static void protect(void)
{
	space.owner = &owner;
	story.begun = true;
	cr_assert_eq(hmm_internal_mprotect(page, sizeof(page), PROT_READ), 0);
	story.begun = false;
}

/* Windows have the rights of before as long as hmmd has not been asked. */
Test(protect, it_waits_for_memory_to_ask_with_for_as_long_as_it_takes)
{
	story.fail_new = 1000;
	protect();
	cr_assert_eq(story.fail_new, 0);
	cr_assert_eq(story.asked, 1);
	story.in_callback = true;
	story.fail_new = 1000;
	protect();
	cr_assert_eq(story.fail_new, 0);
	cr_assert_eq(story.asked, 2);
}

/* Then the windows are closed. */
Test(protect, not_when_there_is_nobody_to_ask_any_more)
{
	story.fail_new = 1000;
	story.lose_after = 500;
	protect();
	cr_assert_eq(story.naps, 500);
	cr_assert_eq(story.asked, 0);
}
