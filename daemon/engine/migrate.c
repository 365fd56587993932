/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * migrate.c - migrations: ranges of pages to the device and home, best effort,
 * with a result per page. Runs on the owner's worker.
 *
 * A migration is cut into jobs, one per block; a few run at a time. A job is a
 * task: it looks at its block, does the next thing that can be done (bring S
 * pages home, give one mapping's pages to the agent, copy), and is run again
 * when that is finished, until nothing is left to do.
 *
 * What a job does to the device is in out.c, on the way back in homeward.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/copies.h"
#include "engine/job.h"
#include "engine/worker.h"
#include "log.h"

/* Jobs of one migration that run at a time; more than slots, so that one is always waiting. */
#define JOBS_AT_A_TIME	10

/* ---- results ------------------------------------------------------------------ */

void result_set(struct job *job, unsigned int i, enum hmm_page_result result)
{
	struct migration *migration = job->migration;
	uint64_t addr = job->block + ((uint64_t)i << HMM_PAGE_SHIFT);

	if (pages_test(&job->reported, i))
		return;
	pages_set(&job->reported, i);
	if (migration->results)
		migration->results[(addr - migration->start) >> HMM_PAGE_SHIFT] = (uint8_t)result;
	if (migration->one_result && addr == migration->one_page)
		*migration->one_result = (uint8_t)result;
	if (result == HMM_PAGE_RESULT_MOVED)
		migration->moved++;
	else if (result == HMM_PAGE_RESULT_ALREADY)
		migration->already++;
	else
		migration->failed++;
}

void result_range(struct job *job, unsigned int first, unsigned int end,
			 enum hmm_page_result result)
{
	for (unsigned int i = first; i < end; i++)
		result_set(job, i, result);
}

int page_result_error(uint8_t result)
{
	switch (result) {
	case HMM_PAGE_RESULT_HOLE:
		return -EFAULT;
	case HMM_PAGE_RESULT_FULL:
		return -ENOSPC;
	case HMM_PAGE_RESULT_QUOTA:
		return -EDQUOT;
	case HMM_PAGE_RESULT_READONLY:
		return -EPERM;
	case HMM_PAGE_RESULT_PINNED:
	case HMM_PAGE_RESULT_CHANGED:
		return -EBUSY;
	default:
		return -EOPNOTSUPP;
	}
}

/* ---- the migration --------------------------------------------------------------- */

static void migration_start_jobs(struct migration *migration);

static void answer(struct migration *migration)
{
	struct hmm_msg_migrate_reply *reply;
	struct letter *letter = migration->letter;
	uint32_t count = (uint32_t)((migration->end - migration->start) >> HMM_PAGE_SHIFT);

	reply = letter_reply(letter, HMM_OP_MIGRATE_REPLY, sizeof(*reply) + count);
	if (!reply) {
		letter_fail(letter, -ENOMEM, "out of memory for the answer; the pages did move");
	} else {
		reply->pages = count;
		reply->moved = migration->moved;
		reply->already = migration->already;
		reply->failed = migration->failed;
		reply->count = count;
		memcpy(reply->results, migration->results, count);
	}
	worker_reply(migration->owner->worker, letter);
}

static void migration_finish(struct task *task)
{
	struct migration *migration =
		(struct migration *)((char *)task - offsetof(struct migration, finish));
	struct owner *owner = migration->owner;

	owner->jobs--;
	if (migration->unless_pinned)
		migration->unless_pinned->migrations--;
	if (migration->to_device) {
		migration->mirror->migrations--;
		TAILQ_REMOVE(&owner->outgoing, migration, link);
		evict_released(owner->worker, migration->mirror->device);
	}
	if (migration->exclusive && !owner->gone)
		exclusive_grant(migration);
	if (migration->letter)
		answer(migration);
	if (migration->done)
		migration->done(owner, migration->data, migration->moved);
	if (!migration->results_lent)
		free(migration->results);
	free(migration);
}

static void migration_check(struct migration *migration)
{
	if (migration->running || migration->next < migration->end || migration->finishing)
		return;
	migration->finishing = true;
	migration->finish.run = migration_finish;
	owner_queue(migration->owner, &migration->finish);
}

void job_finish(struct job *job)
{
	struct migration *migration = job->migration;

	migration->running--;
	free(job);
	migration_start_jobs(migration);
	migration_check(migration);
}

void job_again(struct job *job)
{
	/* Before the faults that waited for it: they would bring home what is to stay. */
	if (job->migration->share)
		TAILQ_INSERT_HEAD(&job->migration->owner->runnable, &job->task, link);
	else
		owner_queue(job->migration->owner, &job->task);
}

static void job_run(struct task *task)
{
	struct job *job = (struct job *)task;

	if (job->migration->to_device)
		job_run_out(job);
	else
		job_run_home(job);
}

bool job_is_cheap(const struct job *job)
{
	return job->migration->cheap;
}

void job_refused(struct block *block)
{
	block->move.job->refused = true;
	owner_count(block->owner, COUNTER_EVICTIONS_REFUSED, 1);
	job_again(block->move.job);
}

void job_block_done(struct job *job, int result)
{
	struct owner *owner = job->migration->owner;

	if (result != -EAGAIN && result != -ENOMEM) {
		job_again(job);
		return;
	}
	if (result == -EAGAIN && !job->migration->to_device && !job->since)
		job->since = owner->worker->now;
	/* When the event has been read, or the owner's cgroup has room again. */
	TAILQ_INSERT_TAIL(&owner->retry, &job->task, link);
	worker_alarm(owner->worker,
		     owner->worker->now + (result == -EAGAIN ? 50 * NS_PER_US : NS_PER_MS));
}

/* ---- beginning ------------------------------------------------------------------------------ */

static int start_job(struct migration *migration, uint64_t block, uint64_t from, uint64_t to)
{
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return -ENOMEM;
	job->task.run = job_run;
	job->migration = migration;
	job->block = block;
	job->first = job->begin = (unsigned int)((from - block) >> HMM_PAGE_SHIFT);
	job->end = (unsigned int)((to - block) >> HMM_PAGE_SHIFT);
	migration->running++;
	owner_queue(migration->owner, &job->task);
	return 0;
}

static void migration_start_jobs(struct migration *migration)
{
	while (migration->running < JOBS_AT_A_TIME && migration->next < migration->end) {
		uint64_t block = migration->next & ~(HMM_BLOCK_SIZE - 1);
		uint64_t to = block + HMM_BLOCK_SIZE;

		if (!migration->results && !migration->to_device) {
			/* All that there is, however far apart. */
			struct block *next = block_next(migration->owner, block, migration->end);

			if (!next) {
				migration->next = migration->end;
				return;
			}
			block = next->addr;
			to = block + HMM_BLOCK_SIZE;
			if (migration->next < block)
				migration->next = block;
		}
		if (to > migration->end)
			to = migration->end;
		if (start_job(migration, block, migration->next, to)) {
			log_error("owner %u: out of memory: a migration ends early", migration->owner->id);
			migration->next = migration->end;
			return;
		}
		migration->next = to;
	}
}

uint64_t migrate_new_journey(struct owner *owner)
{
	return (uint64_t)owner->id << 32 | ++owner->next_journey;
}

struct migration *migration_new(struct owner *owner, uint64_t start, uint64_t end, bool results)
{
	struct migration *migration = calloc(1, sizeof(*migration));

	if (!migration)
		return NULL;
	migration->owner = owner;
	migration->start = migration->next = start;
	migration->end = end;
	migration->reason = HMM_REASON_MIGRATE;
	if (results) {
		size_t pages = (end - start) >> HMM_PAGE_SHIFT;

		migration->results = malloc(pages);
		if (!migration->results) {
			free(migration);
			return NULL;
		}
		memset(migration->results, HMM_PAGE_RESULT_ERROR, pages);
	}
	return migration;
}

void migration_begin(struct migration *migration)
{
	migration->owner->jobs++;
	if (migration->unless_pinned)
		migration->unless_pinned->migrations++;	/* the mirror stays while it runs */
	if (migration->to_device) {
		migration->mirror->migrations++;
		TAILQ_INSERT_TAIL(&migration->owner->outgoing, migration, link);
		if (!migration->journey)
			migration->journey = migrate_new_journey(migration->owner);
	}
	if (migration->to_device)
		vma_refresh_threads(migration->owner, migration->letter || migration->share ? 0 : NS_PER_MS);
	migration_start_jobs(migration);
	migration_check(migration);
}

bool migrate_is_under_way(const struct owner *owner, uint64_t journey)
{
	const struct migration *migration;

	TAILQ_FOREACH(migration, &owner->outgoing, link)
		if (migration->journey == journey)
			return true;
	return false;
}

/* That of the request that this one goes on from, if it is remembered; else a new one. */
static uint64_t journey_of(struct mirror *mirror, const struct hmm_msg_migrate *message)
{
	struct journey *journey = mirror->journeys;
	unsigned int i = 0;

	while (i < JOURNEYS && (!(message->flags & HMM_MIGRATE_FLAGS_ONWARD) || !journey[i].number ||
				journey[i].next != message->addr))
		i++;
	if (i == JOURNEYS) {
		i = mirror->next_journey++ % JOURNEYS;
		journey[i].number = migrate_new_journey(mirror->owner);
	}
	journey[i].next = message->addr + message->length;
	return journey[i].number;
}

void migrate_request(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_migrate *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);
	struct migration *migration;

	if (!mirror) {
		letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
		worker_reply(owner->worker, letter);
		return;
	}
	if (message->target == HMM_TARGET_DEVICE && mirror_refuse_tracked(mirror, letter)) {
		worker_reply(owner->worker, letter);
		return;
	}
	/* Who only looks and steers sets no marks, which it could not take away. */
	if (message->flags & HMM_MIGRATE_FLAGS_EXCLUSIVE && mirror->peer != letter->peer) {
		letter_fail(letter, -EPERM, "only the driver of mirror %u may have pages for itself", mirror->id);
		worker_reply(owner->worker, letter);
		return;
	}
	if (message->target == HMM_TARGET_DEVICE && message->flags & HMM_MIGRATE_FLAGS_EXCLUSIVE &&
	    device_is_far(mirror->device)) {
		letter_fail(letter, -EOPNOTSUPP,
			    "%s has memory that only %s: what lies there is its alone as it is",
			    mirror->device->name, device_reached_by(mirror->device));
		worker_reply(owner->worker, letter);
		return;
	}
	if (message->target == HMM_TARGET_DEVICE && !device_faults(mirror->device)) {
		letter_fail(letter, -EOPNOTSUPP,
			    "%s cannot fault: it has what is pinned on it or coherent, and nothing that comes and goes",
			    mirror->device->name);
		worker_reply(owner->worker, letter);
		return;
	}
	migration = migration_new(owner, message->addr, message->addr + message->length, true);
	if (!migration) {
		letter_fail(letter, -ENOMEM, "out of memory for a migration of %lu bytes",
			    message->length);
		worker_reply(owner->worker, letter);
		return;
	}
	migration->letter = letter;
	migration->to_device = message->target == HMM_TARGET_DEVICE;
	migration->populate = message->flags & HMM_MIGRATE_FLAGS_POPULATE;
	migration->exclusive = migration->to_device && message->flags & HMM_MIGRATE_FLAGS_EXCLUSIVE;
	migration->mirror = mirror;
	if (migration->to_device)
		migration->journey = journey_of(mirror, message);
	migration_begin(migration);
}

static void home(struct owner *owner, uint64_t start, uint64_t end, const struct device *device,
		 struct mirror *unless_pinned, enum hmm_reason reason, migrate_done done, void *data)
{
	struct migration *migration = migration_new(owner, start, end, false);

	if (!migration) {
		log_error("owner %u: out of memory: its pages stay on the device for now", owner->id);
		if (done)
			done(owner, data, 0);
		return;
	}
	migration->only = device;
	migration->unless_pinned = unless_pinned;
	migration->reason = reason;
	migration->done = done;
	migration->data = data;
	migration_begin(migration);
}

void migrate_home(struct owner *owner, uint64_t start, uint64_t end, const struct device *device,
		  migrate_done done, void *data)
{
	home(owner, start, end, device, NULL, HMM_REASON_MIGRATE, done, data);
}

int migrate_drain(struct owner *owner, const struct device *device, migrate_done done, void *data)
{
	struct migration *migration = migration_new(owner, 0, HMM_VA_END, false);

	if (!migration)
		return -ENOMEM;
	migration->only = device;
	migration->hurried = true;
	migration->done = done;
	migration->data = data;
	migration_begin(migration);
	return 0;
}

void migrate_home_unless_pinned(struct mirror *mirror, uint64_t start, uint64_t end, migrate_done done,
				void *data)
{
	home(mirror->owner, start, end, mirror->device, mirror, HMM_REASON_MIGRATE, done, data);
}

void migrate_home_for_fork(struct owner *owner, migrate_done done, void *data)
{
	home(owner, 0, HMM_VA_END, NULL, NULL, HMM_REASON_FORK, done, data);
}

bool migrate_is_sent(const struct mirror *mirror, uint64_t addr)
{
	const struct migration *migration;

	TAILQ_FOREACH(migration, &mirror->owner->outgoing, link)
		if (migration->mirror == mirror && migration->start <= addr && addr < migration->end)
			return true;
	return false;
}

int migrate_to(struct mirror *mirror, uint64_t start, uint64_t end, bool populate, uint8_t *results,
	       uint64_t journey, migrate_done done, void *data)
{
	struct migration *migration = migration_new(mirror->owner, start, end, false);

	if (!migration)
		return -ENOMEM;
	migration->to_device = true;
	migration->populate = populate;
	migration->mirror = mirror;
	migration->results = results;
	migration->results_lent = true;
	migration->journey = journey;
	migration->done = done;
	migration->data = data;
	migration_begin(migration);
	return 0;
}

int migrate_copies(struct mirror *mirror, uint64_t start, uint64_t end, migrate_done done, void *data)
{
	struct migration *migration = migration_new(mirror->owner, start, end, false);

	if (!migration)
		return -ENOMEM;
	migration->copies = true;
	migration->only = mirror->device;
	migration->done = done;
	migration->data = data;
	migration_begin(migration);
	return 0;
}

/* @returns: only the copies that this mirror has. @chosen: when it, or they, were used last. */
static int make_room(struct block *block, const struct device *device, uint32_t returns, uint64_t chosen,
		     bool cheap, migrate_done done, void *data)
{
	struct migration *migration =
		migration_new(block->owner, block->addr, block->addr + HMM_BLOCK_SIZE, false);

	if (!migration)
		return -ENOMEM;
	migration->only = device;
	migration->returns = returns;
	migration->chosen = chosen;
	migration->reason = HMM_REASON_EVICT;
	migration->cheap = cheap;
	migration->done = done;
	migration->data = data;
	migration_begin(migration);
	return 0;
}

int migrate_evict(struct block *block, const struct device *device, bool cheap, migrate_done done, void *data)
{
	return make_room(block, device, 0, block->used, cheap, done, data);
}

int migrate_return(const struct copy *copy, bool cheap, migrate_done done, void *data)
{
	return make_room(copy->block, copy->mirror->device, copy->mirror->id, copy->used, cheap, done, data);
}

static void window_migrated(struct owner *owner, void *data, uint64_t pages)
{
	(void)pages;
	owner_queue(owner, data);
}

void migrate_for_window(struct mirror *mirror, uint64_t addr, struct prefetch_span span,
			struct task *task, uint8_t *result)
{
	struct owner *owner = mirror->owner;
	struct migration *migration;

	*result = HMM_PAGE_RESULT_ERROR;
	migration = migration_new(owner, span.start << HMM_PAGE_SHIFT, span.end << HMM_PAGE_SHIFT, false);
	if (!migration) {
		owner_queue(owner, task);
		return;
	}
	migration->to_device = true;
	migration->populate = true;
	migration->mirror = mirror;
	migration->one_result = result;
	migration->one_page = addr & ~(HMM_PAGE_SIZE - 1);
	migration->done = window_migrated;
	migration->data = task;
	migration_begin(migration);
}
