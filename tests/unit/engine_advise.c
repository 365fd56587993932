// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_advise.c - advice of ranges that are far longer than what is there of them:
 * neither memory nor a block's record is needed for the rest.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "engine_fixture.h"
#include "tests/leakcheck.h"

LEAKCHECKED_SUITE(advise);

#define TIB	(1ULL << 40)
#define GIB	(1ULL << 30)
/* Memory that nobody has touched, and nothing for long before and behind it. */
#define SPARSE	(ROOM_START + 256 * GIB)

static struct fixture fixture;

static void ask(uint32_t advice, uint64_t addr, uint64_t length)
{
	struct letter *letter = letter_new(LETTER_REQUEST);
	struct hmm_msg_advise *message = calloc(1, sizeof(*message));

	HMM_MSG_INIT(*message, HMM_OP_ADVISE, 0);
	message->owner = fixture.owner->id;
	message->advice = advice;
	message->addr = addr;
	message->length = length;
	message->mirror = fixture.mirror->id;
	letter->message = &message->header;
	letter->owner = fixture.owner->id;
	advise_request(fixture.owner, letter);
	owner_run(fixture.owner);
}

/* The answer, after so many turns of the worker at most. */
static struct letter *answer(unsigned int turns)
{
	struct letter *letter;

	while (!(letter = mailbox_take(&fixture.outbox)) && turns--)
		fixture_later(&fixture, NS_PER_MS);
	cr_assert(ne(ptr, letter, NULL));
	cr_assert(eq(ptr, letter->next, NULL));
	cr_assert(eq(int, letter->kind, LETTER_REPLY));
	return letter;
}

/* Bytes that this process may still allocate. */
static void allow(uint64_t more)
{
	FILE *file = fopen("/proc/self/status", "re");
	struct rlimit limit = { 0 };
	char line[256];
	unsigned long kib = 0;

	cr_assert(ne(ptr, file, NULL));
	while (fgets(line, sizeof(line), file))
		sscanf(line, "VmData: %lu kB", &kib);
	fclose(file);
	cr_assert(lt(u64, 0, kib));
	limit.rlim_cur = limit.rlim_max = kib * 1024 + more;
	cr_assert(eq(int, setrlimit(RLIMIT_DATA, &limit), 0));
}

static uint64_t allocated(int fd)
{
	struct stat stat;

	cr_assert(eq(int, fstat(fd, &stat), 0));
	return (uint64_t)stat.st_blocks * 512;
}

static void begin(uint64_t size)
{
	fixture_begin(&fixture, HMM_POOL_KIND_MEMFD, size);
	fixture.owner->peer = DRIVER;
	cr_assert(eq(ptr, mmap((void *)SPARSE, 4 * GIB, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0),
		     (void *)SPARSE));
}

static void end(void)
{
	fixture.owner->peer = 0;
	munmap((void *)SPARSE, 4 * GIB);
	fixture_end(&fixture);
}

/* A byte for each page would be 128 MiB. */
Test(advise, accessed_by_passes_by_what_is_not_there)
{
	struct letter *letter;
	uint64_t ledger;

	begin(TIB);
	ledger = allocated(fixture.owner->ledger_fd);
	allow(16UL << 20);
	ask(HMM_ADVICE_SET_ACCESSED_BY, ROOM_START, 512 * GIB);
	cr_expect(eq(ptr, mailbox_take(&fixture.outbox), NULL), "others have their turn in between");
	letter = answer(200);
	cr_expect(eq(int, letter->error, 0), "%s", letter->text);
	letter_free(letter);
	cr_expect(eq(uint, fixture.owner->span_count, 0));
	/* What was said of it, in one place. */
	cr_expect(le(u64, allocated(fixture.owner->ledger_fd), ledger + 8 * HMM_PAGE_SIZE));
	cr_expect(eq(uint, fixture.owner->jobs, 0));
	cr_expect(eq(uint, fixture.mirror->migrations, 0));
	end();
}

/* An owner that goes, in the middle of it: it is answered. */
Test(advise, of_an_owner_that_is_gone)
{
	struct letter *letter;

	begin(TIB);
	ask(HMM_ADVICE_SET_ACCESSED_BY, ROOM_START, 512 * GIB);
	fixture_later(&fixture, NS_PER_MS);
	owner_gone(fixture.owner);
	letter = answer(0);
	letter_free(letter);
	cr_expect(eq(uint, fixture.owner->jobs, 0));
	end();
}

/* The first piece that can't be pinned is the last that is tried. */
Test(advise, pin_does_not_remember_its_range)
{
	struct letter *letter;

	begin(TIB);
	allow(16UL << 20);
	/* Nothing is mapped there. */
	ask(HMM_ADVICE_PIN, ROOM_END + 2 * GIB, 250 * GIB);
	letter = answer(200);
	cr_expect(eq(int, letter->error, -EFAULT), "%s", letter->text);
	cr_expect(ne(ptr, strstr(letter->text, "16384 of 16384 pages"), NULL), "%s", letter->text);
	letter_free(letter);
	cr_expect(eq(ptr, TAILQ_FIRST(&fixture.owner->pinnings), NULL));
	cr_expect(eq(uint, fixture.owner->attributes.count, 0));
	cr_expect(eq(uint, fixture.owner->jobs, 0));
	cr_expect(eq(uint, fixture.mirror->migrations, 0));
	end();
}
