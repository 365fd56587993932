// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The journal: messages of a userfaultfd read straight into a memfd outlive their reader.
 *
 * A child process is the daemon, the test's process the owner and the successor. What can
 * fail: an event that was consumed and that nobody applied.
 */
#include "contract.h"

TestSuite(journal, .init = contract_begin);

#define RING	(1L << 20)	/* messages; more than a test can make */

struct shared {
	struct uffd_msg *ring;
	atomic_long done;	/* changes that their caller saw completed */
	atomic_long head;	/* messages that some daemon has applied */
	atomic_int stop;
	int fd;
	char *mem;
};

static struct shared *shared_new(void)
{
	struct shared *shared = map_shared(sizeof(*shared));
	int memfd = memfd_new("journal", RING * sizeof(struct uffd_msg), 0);

	shared->ring = map_memfd(memfd, RING * sizeof(struct uffd_msg), 0);
	shared->fd = uffd_open(UFFD_FEATURE_EVENT_REMOVE);
	shared->mem = map_pages(1);
	cr_assert_eq(uffd_register(shared->fd, shared->mem, PAGE, MISSING), 0);
	return shared;
}

/* Reads one message into the ring and dies before it looks at it. */
static void reads_into_the_ring(void *arg)
{
	struct shared *shared = arg;
	struct pollfd pfd = { .fd = shared->fd, .events = POLLIN };

	child_check(poll(&pfd, 1, deadline_ms()) == 1);
	child_check(read(shared->fd, shared->ring, RING * sizeof(*shared->ring)) ==
		    sizeof(*shared->ring));
	kill(getpid(), SIGKILL);
}

static void reads_into_its_own_memory(void *arg)
{
	struct shared *shared = arg;
	struct pollfd pfd = { .fd = shared->fd, .events = POLLIN };
	struct uffd_msg msg;

	child_check(poll(&pfd, 1, deadline_ms()) == 1);
	child_check(read(shared->fd, &msg, sizeof(msg)) == sizeof(msg));
	kill(getpid(), SIGKILL);
}

Test(journal, message_is_in_the_ring_when_the_reader_dies)
{
	struct shared *shared = shared_new();
	struct call call;

	CALL(&call, SYS_madvise, (long)shared->mem, PAGE, MADV_DONTNEED);
	cr_assert(WIFSIGNALED(child_end(child_start(reads_into_the_ring, shared))));
	cr_assert_eq(call_end(&call), 0, "the caller went on when it was read");
	cr_assert_eq(shared->ring[0].event, UFFD_EVENT_REMOVE);
	cr_assert_eq(shared->ring[0].arg.remove.start, (uintptr_t)shared->mem);
	cr_assert_eq(shared->ring[1].event, 0);
}

Test(journal, without_it_the_event_is_lost)
{
	struct shared *shared = shared_new();
	struct call call;

	CALL(&call, SYS_madvise, (long)shared->mem, PAGE, MADV_DONTNEED);
	cr_assert(WIFSIGNALED(child_end(child_start(reads_into_its_own_memory, shared))));
	cr_assert_eq(call_end(&call), 0);
	cr_assert(no_event(shared->fd), "consumed, and nobody has it");
}

/* A daemon that reads into the ring behind what it finds there, until it is killed. */
static void daemon_run(void *arg)
{
	struct shared *shared = arg;
	struct pollfd pfd = { .fd = shared->fd, .events = POLLIN };

	for (;;) {
		struct uffd_msg *tail = &shared->ring[atomic_load(&shared->head)];

		while (tail->event) {
			atomic_fetch_add(&shared->head, 1);
			tail++;
		}
		poll(&pfd, 1, 1000);
		/* A message is 32 bytes, and copied whole: its first byte says it is there. */
		if (read(shared->fd, tail, sizeof(*tail)) == sizeof(*tail))
			atomic_fetch_add(&shared->head, 1);
	}
}

static void *owner_run(void *arg)
{
	struct shared *shared = arg;

	while (!atomic_load(&shared->stop)) {
		madvise(shared->mem, PAGE, MADV_DONTNEED);
		atomic_fetch_add(&shared->done, 1);
	}
	return NULL;
}

Test(journal, no_kill_loses_an_event)
{
	struct shared *shared = shared_new();
	const char *seed_env = getenv("HMM_TEST_SEED");
	unsigned int seed = seed_env ? (unsigned int)atoi(seed_env) : (unsigned int)getpid();
	long messages = 0;
	pthread_t owner;
	pid_t last;

	fprintf(stderr, "HMM_TEST_SEED=%u\n", seed);
	cr_assert_eq(pthread_create(&owner, NULL, owner_run, shared), 0);
	for (int kills = 0; kills < 300 && atomic_load(&shared->head) < RING / 64; kills++) {
		pid_t pid = child_start(daemon_run, shared);

		usleep(300 + (useconds_t)rand_r(&seed) % 1500);
		child_kill(pid);
	}
	atomic_store(&shared->stop, 1);
	last = child_start(daemon_run, shared);
	cr_assert_eq(pthread_join(owner, NULL), 0);
	child_kill(last);
	while (messages < RING && shared->ring[messages].event)
		messages++;
	cr_assert_lt(messages, RING);
	cr_assert_gt(messages, 0);
	cr_assert_eq(messages, atomic_load(&shared->done));
}
