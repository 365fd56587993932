/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mirror.c - mirrors: one owner x one device. Runs on the owner's worker.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/copies.h"
#include "engine/dma.h"
#include "engine/far_bar.h"
#include "engine/worker.h"
#include "log.h"
#include "tracking/tracking.h"

struct mirror *mirror_by_id(struct owner *owner, uint32_t id)
{
	unsigned int index = id & 0xff;
	struct mirror *mirror = index < MIRRORS_MAX ? owner->mirror[index] : NULL;

	return mirror && mirror->id == id ? mirror : NULL;
}

bool mirror_send_region(struct mirror *mirror, const struct shadow *shadow, uint64_t peer,
			uint32_t window, uint32_t index, uint64_t base, uint64_t length)
{
	struct hmm_msg_region *message = malloc(sizeof(*message));
	int fd = message ? fcntl(shadow->fd, F_DUPFD_CLOEXEC, 3) : -1;

	if (fd < 0) {
		log_error("owner %u: a shadow could not be announced: out of %s", mirror->owner->id,
			  message ? "descriptors" : "memory");
		free(message);
		return false;
	}
	HMM_MSG_INIT(*message, HMM_OP_REGION, 0);
	message->owner = mirror->owner->id;
	message->mirror = mirror->id;
	message->window = window;
	message->index = index;
	message->base = base;
	message->length = length;
	message->offset = base - shadow->base;
	message->kind = (uint32_t)shadow->kind;
	return worker_event(mirror->owner->worker, peer, message, fd);
}

/* Its owner fills it, and keeps it should hmmd die. One that it could not be told of is of no use: next time it is. */
static int tell_owner(struct mirror *mirror, struct shadow *shadow)
{
	if (shadow->known || !mirror->owner->peer)
		return 0;
	shadow->known = mirror_send_region(mirror, shadow, mirror->owner->peer, 0, 0, shadow->base, HMM_REGION_SIZE);
	return shadow->known ? 0 : -ENOMEM;
}

int mirror_shadow(struct mirror *mirror, uint64_t addr, struct shadow **result)
{
	int r;

	*result = shadow_find(&mirror->shadows, addr);
	r = *result ? 0 : shadow_get(&mirror->shadows, mirror->device->pool, addr, result);
	return r ? r : tell_owner(mirror, *result);
}

void mirror_tell_again(struct mirror *mirror)
{
	for (unsigned int i = 0; i < mirror->shadows.count; i++) {
		mirror->shadows.list[i]->known = false;
		/* Or when it is used next. */
		tell_owner(mirror, mirror->shadows.list[i]);
	}
}

static void registry_add(struct mirror *mirror)
{
	struct engine *engine = mirror->owner->worker->engine;

	pthread_mutex_lock(&engine->lock);
	mirror->owner->mirror[mirror->index] = mirror;
	pthread_mutex_unlock(&engine->lock);
}

/* So that a successor can make it again before its driver comes back. */
static void note_in_journal(const struct mirror *mirror)
{
	struct hmm_journal_mirror *note = &mirror->owner->journal->mirror[mirror->index];
	const struct device *device = mirror->device;

	note->kind = (uint32_t)device->pool->kind;
	note->placement = (uint32_t)device->pool->placement.mode;
	note->node = device->pool->placement.node;
	note->nodes = device->pool->placement.nodes;
	note->size = device->size;
	note->caps = device->caps;
	note->card = device->card_number;
	note->memory_card = device->bar_card;
	note->bar = device->bar_index;
	note->bar_pages = device->bar_pages;
	memcpy(note->device, device->name, sizeof(note->device));
	__atomic_store_n(&note->used, 1, __ATOMIC_RELEASE);
}

/* Whoever registers it pays for it, as long as it is there. Of one that was there before a restart: its owner. */
static int charge_mirror(struct mirror *mirror, struct letter *letter)
{
	struct quota *quota = mirror->owner->worker->engine->options.quota;
	char why[200];
	int r = 0;

	mirror->uid = letter ? letter->uid : mirror->owner->uid;
	if (quota && letter)
		r = quota_charge(quota, mirror->uid, QUOTA_MIRRORS, 1, why, sizeof(why));
	else if (quota)
		quota_charge_anyway(quota, mirror->uid, QUOTA_MIRRORS, 1);
	mirror->charged = quota && !r;
	return r ? letter_fail(letter, r, "%s", why) : 0;
}

struct mirror *mirror_new(struct owner *owner, unsigned int index, struct device *device, struct letter *letter)
{
	struct mirror *mirror = calloc(1, sizeof(*mirror));

	if (!mirror)
		return NULL;
	mirror->owner = owner;
	if (charge_mirror(mirror, letter)) {
		free(mirror);
		return NULL;
	}
	mirror->index = index;
	mirror->id = owner->id << 8 | index;
	mirror->device = device;
	TAILQ_INIT(&mirror->use);
	TAILQ_INIT(&mirror->copies);
	TAILQ_INIT(&mirror->transfers);
	mirror->ready = device_has_bar(device);
	note_in_journal(mirror);
	registry_add(mirror);
	return mirror;
}

void mirror_free(struct mirror *mirror)
{
	struct engine *engine = mirror->owner->worker->engine;

	if (mirror->charged)
		quota_release(engine->options.quota, mirror->uid, QUOTA_MIRRORS, 1);
	range_mirror_gone(mirror);
	tracking_mirror_gone(mirror);
	dma_mirror_gone(mirror);
	far_bar_end(mirror);
	pthread_mutex_lock(&engine->lock);
	mirror->owner->mirror[mirror->index] = NULL;
	pthread_mutex_unlock(&engine->lock);
	if (!mirror->owner->abandoned)
		mirror->owner->journal->mirror[mirror->index] = (struct hmm_journal_mirror){ 0 };
	far_flush(mirror);
	free(mirror->freed);
	shadows_deinit(&mirror->shadows);
	device_unuse(&engine->devices, mirror->device);
	free(mirror);
}

void mirror_note_driver(struct mirror *mirror, uint64_t peer, uint64_t flags, pid_t pid)
{
	struct hmm_journal_mirror *note = &mirror->owner->journal->mirror[mirror->index];

	mirror->peer = peer;
	mirror->flags = flags;
	note->tracked = mirror_is_tracked(mirror);
	/* Who has copies is waited for, so that he does not find them empty meanwhile. */
	note->callbacks = flags & (HMM_MIRROR_FLAGS_CALLBACKS | HMM_MIRROR_FLAGS_TRACKED) ? 1 : 0;
	if (note->callbacks)
		note->driver = pid;
	if (!(flags & HMM_MIRROR_FLAGS_CALLBACKS))
		mirror->unready = false;
}

int mirror_refuse_tracked(const struct mirror *mirror, struct letter *letter)
{
	if (!mirror_is_tracked(mirror))
		return 0;
	return letter_fail(letter, -EOPNOTSUPP,
			   "mirror %u is tracked: its device has copies, by hmm_mirror_sync(), and nothing else; register another one for this",
			   mirror->id);
}

void mirror_empty_copies(struct owner *owner)
{
	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		struct mirror *mirror = owner->mirror[i];

		if (!mirror || !mirror_is_tracked(mirror) || mirror->peer)
			continue;
		for (unsigned int k = 0; k < mirror->shadows.count; k++)
			kernel->punch(mirror->shadows.list[k]->fd, 0, HMM_REGION_SIZE);
	}
}

void mirror_ready(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_mirror_ready *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);

	if (!mirror || mirror->peer != letter->peer) {
		letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
		return;
	}
	mirror->unready = false;
	if (!device_faults(mirror->device)) {
		mirror->restarting = owner->restarting = true;
		invalidate_restart(owner);
	}
	if (!letter_reply(letter, HMM_OP_MIRROR_READY_REPLY, sizeof(struct hmm_msg_mirror_ready_reply)))
		letter_fail(letter, -ENOMEM, "out of memory for the answer");
}

/* The driver may come back once more while this hmmd takes over; else there is nobody to wait for. */
static void note_gone(struct mirror *mirror)
{
	struct hmm_journal_mirror *note = &mirror->owner->journal->mirror[mirror->index];

	if (mirror->owner->recovering)
		mirror->unready = note->callbacks;
	else if (!mirror->owner->abandoned)
		note->callbacks = 0;
}

/* Of several, the one that this driver had: another one's windows are still waited for. */
static struct mirror *find_orphan(struct owner *owner, uint32_t device, uint64_t flags, const struct letter *letter)
{
	struct mirror *found = NULL;

	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		struct mirror *mirror = owner->mirror[i];

		if (!mirror || mirror->leaving || mirror->device->id != device ||
		    (mirror->flags ^ flags) & HMM_MIRROR_FLAGS_TRACKED)
			continue;
		/* After a restart even if the end of an earlier connection was not heard of yet. */
		if (owner->journal->mirror[i].driver == letter->pid &&
		    (!mirror->peer || (owner->recovering && mirror->peer != letter->peer)))
			return mirror;
		if (mirror->peer)
			continue;
		if (!found || found->awaited)
			found = mirror;
	}
	return found;
}

/* Copies are written into its pool by 4 KiB, and read there. */
static int check_copies(const struct device *device, struct letter *letter)
{
	if (device_is_far(device))
		return letter_fail(letter, -EOPNOTSUPP,
				   "%s has memory that only %s: nobody else can keep copies there", device->name, device_reached_by(device));
	if (device->pool->kind == HMM_POOL_KIND_HUGETLB)
		return letter_fail(letter, -EOPNOTSUPP,
				   "copies in a hugetlb pool are not possible: it can't be punched by 4 KiB; use memfd-huge");
	return 0;
}

/* @device: held, and the mirror's from now on if a new one is made; @made says so. */
static int register_on(struct owner *owner, struct device *device, struct letter *letter, bool *made)
{
	const struct hmm_msg_mirror_register *message = (const void *)letter->message;
	struct hmm_msg_mirror_register_reply *reply;
	struct mirror *mirror;
	unsigned int index = 0;

	if (far_check_driver(owner, device, letter) || dma_check_driver(device, letter))
		return letter->error;
	if (message->flags & HMM_MIRROR_FLAGS_TRACKED && check_copies(device, letter))
		return letter->error;
	mirror = find_orphan(owner, message->device, message->flags, letter);
	if (mirror) {
		far_peer_gone(mirror);
		/* Its driver died, or hmmd did: the pages are there still. */
		reply = letter_reply(letter, HMM_OP_MIRROR_REGISTER_REPLY, sizeof(*reply));
		if (!reply)
			return letter_fail(letter, -ENOMEM, "out of memory for the answer");
		mirror_note_driver(mirror, letter->peer, message->flags, letter->pid);
		reply->mirror = mirror->id;
		reply->index = mirror->index;
		return 0;
	}
	while (index < MIRRORS_MAX && owner->mirror[index])
		index++;
	if (index == MIRRORS_MAX)
		return letter_fail(letter, -ENOSPC, "owner %u has %u mirrors, the most there can be",
				   owner->id, MIRRORS_MAX);
	reply = letter_reply(letter, HMM_OP_MIRROR_REGISTER_REPLY, sizeof(*reply));
	/* Of one that could not be made again after a restart. */
	owner->journal->mirror[index] = (struct hmm_journal_mirror){ 0 };
	mirror = reply ? mirror_new(owner, index, device, letter) : NULL;
	if (!mirror)
		return letter->error ? letter->error : letter_fail(letter, -ENOMEM, "out of memory for a mirror");
	*made = true;
	if (far_bar_begin(mirror)) {
		mirror_free(mirror);
		return letter_fail(letter, -ENOSPC, "%u mirrors have pages in that BAR, the most there can be", CLAIMS_MAX);
	}
	mirror_note_driver(mirror, letter->peer, message->flags, letter->pid);
	reply->mirror = mirror->id;
	reply->index = mirror->index;
	return 0;
}

static int mirror_register(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_mirror_register *message = (const void *)letter->message;
	struct devices *devices = &owner->worker->engine->devices;
	struct device *device;
	bool made = false;

	if (owner->gone || owner->closing)
		return letter_fail(letter, -ESTALE, "owner %u is gone", owner->id);
	device = device_use(devices, message->device);
	if (!device)
		return letter_fail(letter, -ENODEV, "no device %u", message->device);
	register_on(owner, device, letter, &made);
	if (!made)
		device_unuse(devices, device);
	return letter->error;
}

static void leave_coherent(struct block *block, void *data)
{
	if (block_mirror(block) == data)
		block_let_go_coherent(block);
}

static void leave_block(struct block *block, void *data)
{
	if (block_mirror(block) != data)
		return;
	block_forget_mirror(block);
	block_settle_later(block);
}

struct leaving {
	struct task task;
	struct owner *owner;
	struct letter *letter;
};

static void unregister_done(struct owner *owner, void *data, uint64_t pages);

static void leaving_run(struct task *task)
{
	struct leaving leaving = *(struct leaving *)task;
	const struct hmm_msg_mirror_unregister *message = (const void *)leaving.letter->message;
	struct mirror *mirror = mirror_by_id(leaving.owner, message->mirror);

	free(task);
	migrate_home(leaving.owner, 0, HMM_VA_END, mirror ? mirror->device : NULL, unregister_done,
		     leaving.letter);
}

static void unregister_later(struct owner *owner, struct letter *letter)
{
	struct leaving *leaving = malloc(sizeof(*leaving));

	if (!leaving) {
		letter_fail(letter, -ENOMEM, "out of memory; try again");
		worker_reply(owner->worker, letter);
		return;
	}
	leaving->task.run = leaving_run;
	leaving->owner = owner;
	leaving->letter = letter;
	TAILQ_INSERT_TAIL(&owner->retry, &leaving->task, link);
	worker_alarm(owner->worker, owner->worker->now + NS_PER_MS);
}

static void unregister_done(struct owner *owner, void *data, uint64_t pages)
{
	struct letter *letter = data;
	const struct hmm_msg_mirror_unregister *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);

	(void)pages;
	if (mirror && !mirror->leaving) {
		letter_fail(letter, -EBUSY, "its driver was lost meanwhile, and may have come back; try again");
		worker_reply(owner->worker, letter);
		return;
	}
	if (mirror && mirror->migrations) {
		/* Pages may still be going out on its behalf: they are seen to again. */
		unregister_later(owner, data);
		return;
	}
	if (mirror)
		block_for_each(owner, 0, HMM_VA_END, leave_coherent, mirror);
	if (mirror && (atomic_load(&mirror->device_pages) || atomic_load(&mirror->shared_pages)) &&
	    !owner->gone) {
		mirror->leaving = false;
		mirror->flags = mirror->flags_before;
		window_wake_all(owner, mirror);
		letter_fail(letter, -EBUSY,
			    "%lu pages could not come home yet: the owner's memory is full or changing; try again",
			    atomic_load(&mirror->device_pages));
		worker_reply(owner->worker, letter);
		return;
	}
	if (mirror) {
		window_close_all(owner, mirror);
		block_for_each(owner, 0, HMM_VA_END, leave_block, mirror);
		attribute_forget_mirror(&owner->attributes, mirror->index);
		copies_forget_mirror(mirror);
		mirror_free(mirror);
	}
	if (!letter_reply(letter, HMM_OP_MIRROR_UNREGISTER_REPLY,
			  sizeof(struct hmm_msg_mirror_unregister_reply)))
		letter_fail(letter, -ENOMEM, "out of memory for the answer");
	worker_reply(owner->worker, letter);
}

static void mirror_unregister(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_mirror_unregister *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);

	if (!mirror || mirror->leaving) {
		letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
		worker_reply(owner->worker, letter);
		return;
	}
	mirror->leaving = true;
	mirror->flags_before = mirror->flags;
	mirror->flags &= ~HMM_MIRROR_FLAGS_CALLBACKS;
	/* Its windows stay until nothing is out: one may be of a driver that has lost its connection. */
	dma_close(mirror);
	migrate_home(owner, 0, HMM_VA_END, mirror->device, unregister_done, letter);
}

void mirror_request(struct owner *owner, struct letter *letter)
{
	if (letter->message->opcode == HMM_OP_MIRROR_UNREGISTER) {
		mirror_unregister(owner, letter);
		return;
	}
	mirror_register(owner, letter);
	worker_reply(owner->worker, letter);
}

void mirror_peer_gone(struct owner *owner, uint64_t peer)
{
	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		struct mirror *mirror = owner->mirror[i];

		if (!mirror || mirror->peer != peer)
			continue;
		/* The pages stay where they are: the owner's touch brings them home. */
		far_peer_gone(mirror);
		mirror->peer = 0;
		mirror->flags &= ~HMM_MIRROR_FLAGS_CALLBACKS;
		mirror->restarting = false;
		exclusive_forget(mirror);
		note_gone(mirror);
	}
}
