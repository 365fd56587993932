/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * engine_fixture.h - an owner without its library: this process itself, with a
 * real userfaultfd, a real table, ledger and shadow, on a worker that has no
 * thread. The test decides when the worker runs, and what time it is.
 */
#ifndef TEST_ENGINE_FIXTURE_H
#define TEST_ENGINE_FIXTURE_H

#include "engine/worker.h"

/* Addresses that the owner has: two blocks below a region's end, and two above it. */
#define ROOM		0x2000c0000000ULL
#define ROOM_START	(ROOM - 2 * HMM_BLOCK_SIZE)
#define ROOM_END	(ROOM + 2 * HMM_BLOCK_SIZE)
#define ROOM_PAGES	(4 * HMM_BLOCK_PAGES)

#define POOL		(64UL << 20)
#define SECOND		(1000 * NS_PER_MS)

#define DRIVER		77	/* the driver's connection */

struct fixture {
	struct engine engine;
	struct worker worker;
	struct mailbox outbox;
	struct owner *owner;
	struct device *device;
	struct mirror *mirror;
	int events;		/* fixture_begin_faked(): userfaultfd messages are written here */
};

/* @size: of the device. */
void fixture_begin(struct fixture *fixture, enum hmm_pool_kind kind, uint64_t size);
/* The same, but the userfaultfd is a pipe: the test says what the owner does. */
void fixture_begin_faked(struct fixture *fixture, uint64_t size);
/* The owner may be gone already: then it is NULL. */
void fixture_end(struct fixture *fixture);

/* From now on every change has to be answered by the driver. */
void fixture_callbacks(struct fixture *fixture);
/* The driver answers all that it was asked. Return: how many that were. */
unsigned int fixture_answer(struct fixture *fixture);
/* The same with this status: -EAGAIN where it would have to wait for its device. */
unsigned int fixture_answer_with(struct fixture *fixture, int status);
/* hmmd's answer to a request, its error or 0; 1: there is none yet. Letters to drivers are dropped. */
int fixture_reply(struct fixture *fixture);

/* Bytes of page @page (of the room) as they were written. */
void fixture_bytes(unsigned int page, void *bytes);
/* Pages [first, end) of the room are on the device, and nowhere else. */
void fixture_out(struct fixture *fixture, unsigned int first, unsigned int end);
/* The worker goes on, in real time, until *@done. */
void fixture_drive(struct fixture *fixture, const int *done);
/* The clock goes on by @ns and the worker takes one turn. */
void fixture_later(struct fixture *fixture, int64_t ns);

/* The @n-th block of the room; NULL: hmmd has nothing to do with it. */
struct block *fixture_block(const struct fixture *fixture, unsigned int n);
struct pages pages_from(unsigned int first, unsigned int end);
uint64_t fixture_sequence(const struct block *block);
/* The order of use is this one, and there are no others in it. */
void fixture_expect_use(const struct fixture *fixture, unsigned int count, const unsigned int *order);
#define EXPECT_USE(fixture, ...)                                                                   \
	do {                                                                                       \
		const unsigned int order_[] = { __VA_ARGS__ };                                     \
		fixture_expect_use(fixture, sizeof(order_) / sizeof(order_[0]), order_);           \
	} while (0)
/* What is said twice agrees: ledger, table, counts, charges, what the shadow really holds. */
void fixture_check(struct fixture *fixture);

#endif
