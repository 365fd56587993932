/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * access.c - a device's access without a window (state R for whatever is not
 * in a shadow), and coherent memory. Runs on the owner's worker.
 *
 * An access goes page by page: where the page is in the shadow, there; where
 * the CPU has it, in place, through the owner's own /proc/self/mem. That file
 * ignores protection, so the mapping is looked at first. A page in transit
 * parks the access; it goes on from where it was.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/evict.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"
#include "tracking/tracking.h"

/* An access finds what it filled zapped again, or something that is never there: how often it asks. */
#define ZAPPED_TRIES	20U
/* So long it waits for the map to come to rest: an owner may be stopped in the middle of an mremap(), or say that it is in one. */
#define PATIENCE_NS	(3000 * NS_PER_MS)

struct access {
	struct task task;
	struct owner *owner;
	struct letter *letter;
	struct mirror *mirror;
	uint64_t addr;
	size_t length, done;
	bool write;
	char *buffer;			/* in the reply (read) or in the message (write) */
	struct kernel_vma vma;		/* the mapping looked at last; end 0: none */
	unsigned int tries;
	int64_t since;			/* the map has been changing, at this page; 0 */
};

static void access_run(struct task *task);

static void access_finish(struct access *access, int error)
{
	struct letter *letter = access->letter;

	if (error && !access->done) {
		const char *why = error == -EPERM ? "the mapping is read-only" :
				  error == -EIO ? "the page is lost" :
				  error == -EBUSY ? "the map there does not stop changing: its program may be stopped in an mremap()" :
				  error == -EFAULT ? "nothing is mapped there, or it may not be read" :
						     strerror(-error);

		letter_fail(letter, error, "%#lx: %s", access->addr + access->done, why);
	} else if (access->write) {
		struct hmm_msg_device_write_reply *reply =
			letter_reply(letter, HMM_OP_DEVICE_WRITE_REPLY, sizeof(*reply));

		if (reply)
			reply->written = access->done;
		else
			letter_fail(letter, -ENOMEM, "out of memory for the answer");
	} else {
		struct hmm_msg_device_read_reply *reply = (void *)letter->reply;

		/* The fixed part's size and what was read: no more leaves hmmd. */
		reply->count = (uint32_t)access->done;
		reply->header.size = (uint32_t)(sizeof(*reply) + access->done);
	}
	access->mirror->migrations--;
	worker_reply(access->owner->worker, letter);
	free(access);
}

static int look_at_mapping(struct access *access, uint64_t addr)
{
	struct kernel_vma *vma = &access->vma;
	int r;

	if (addr >= vma->end || addr < vma->start) {
		r = mapping_at(access->owner, addr, vma);
		if (!r && vma->start > addr)
			r = -ENOENT;
		if (r) {
			vma->end = 0;
			return r == -ENOENT ? -EFAULT : r;
		}
	}
	if (!vma->read)
		return -EFAULT;
	return access->write && !vma->write ? -EPERM : 0;
}

/*
 * A write is looked at anew for each page, since it goes behind the mapping's back; and once more where its block had no
 * number: from then on the library asks before it returns from an mprotect(), and is answered when this is done.
 */
static int check_mapping(struct access *access, uint64_t addr)
{
	int r;

	if (access->write)
		access->vma.end = 0;
	r = look_at_mapping(access, addr);
	if (r || !access->write || !transit_note_written(access->owner, addr))
		return r;
	access->vma.end = 0;
	return look_at_mapping(access, addr);
}

/*
 * What can't be read, though it is mapped, may be missing in a mapping that is registered here where nobody
 * has noted it: one that was, and grew. Registering proves it, since what the program watches itself is refused.
 * -EAGAIN: not just now, for as long as the owner says that it is in an mremap(); whoever asks again has to stop some time (access_later(), and
 * a range's look, range.c).
 */
static int watch_page(struct owner *owner, uint64_t addr)
{
	uint64_t page = addr & ~(HMM_PAGE_SIZE - 1);
	struct view view;
	int r;

	if (owner->closing || view_at(owner, page, page + HMM_PAGE_SIZE, &view) || view.special || view.excluded)
		return -EFAULT;
	r = block_watch(owner, view.watch_start, view.watch_end);
	return r == -EAGAIN || !r ? r : -EFAULT;
}

ssize_t access_in_place(struct owner *owner, const struct block *block, uint64_t addr, void *buffer,
			size_t n, bool write)
{
	ssize_t r = 0;

	for (int tries = 0; tries < 2; tries++) {
		int filled, lifted;
		size_t done;

		r = write ? kernel->mem_write(owner->mem, addr, buffer, n)
			  : kernel->mem_read(owner->mem, addr, buffer, n);
		if (r != -EIO && r != -EFAULT && r != 0)
			return r;
		if (write && tracking_lift(owner, addr))
			continue;
		if (!block || !pages_test(&block->armed, page_index(addr))) {
			int watched = watch_page(owner, addr);

			if (watched == -EAGAIN)
				return watched;
			if (watched)
				break;
			block = block_find(owner, addr);
		}
		/* Armed and never touched: nobody fills it but hmmd. Or protected from a former S. */
		filled = kernel->uffd_zero(owner->uffd, addr & ~(HMM_PAGE_SIZE - 1), HMM_PAGE_SIZE, &done);
		lifted = kernel->uffd_protect(owner->uffd, addr & ~(HMM_PAGE_SIZE - 1), HMM_PAGE_SIZE,
					      false);
		if (filled == -EAGAIN || lifted == -EAGAIN)
			return -EAGAIN;
	}
	return r < 0 ? (r == -EIO ? -EFAULT : r) : -EFAULT;
}

/* The map may be changing: when its event has been read. 1: it is parked; or -EBUSY. */
static int access_later(struct access *access)
{
	struct owner *owner = access->owner;
	int64_t now = owner->worker->now;

	if (!access->since)
		access->since = now;
	if (now - access->since > PATIENCE_NS)
		return -EBUSY;
	TAILQ_INSERT_TAIL(&owner->retry, &access->task, link);
	worker_alarm(owner->worker, now + 50 * NS_PER_US);
	return 1;
}

/* One page's worth. 0: done; 1: parked; or -errno. */
static int access_step(struct access *access)
{
	uint64_t addr = access->addr + access->done;
	size_t n = HMM_PAGE_SIZE - addr % HMM_PAGE_SIZE;
	struct block *block = block_find(access->owner, addr);
	enum hmm_page_state state = HMM_PAGE_INVALID;
	struct shadow *shadow;
	struct pages pages = { 0 };
	ssize_t r;

	if (n > access->length - access->done)
		n = access->length - access->done;
	/* First: while its mapping is exchanged the map may seem to have nothing there. */
	if (block && !block_at_rest(block)) {
		block_park(block, &access->task);
		return 1;
	}
	r = check_mapping(access, addr);
	if (r == -EAGAIN && access->tries++ < ZAPPED_TRIES)
		return access_later(access);
	if (r)
		return (int)r;
	if (block)
		state = page_state(block, page_index(addr));
	switch (state) {
	case HMM_PAGE_SHARED:
		if (access->write) {
			/* The device takes it: the copy goes, then the page is written in place. */
			pages_set(&pages, page_index(addr));
			owner_queue(access->owner, &access->task);
			unshare_begin(block, &pages, HMM_REASON_CPU_WRITE, NULL);
			return 1;
		}
		/* fall through */
	case HMM_PAGE_DEVICE:
	case HMM_PAGE_COHERENT:
		if (block_mirror(block) != access->mirror && exclusive_page(block, page_index(addr))) {
			exclusive_take_back(block, page_index(addr), HMM_BLOCK_PAGES, 0);
			if (block_at_rest(block))
				return access_later(access);
			block_park(block, &access->task);
			return 1;
		}
		pages_set(&pages, page_index(addr));
		if (far_fetch(block, &pages, page_index(addr), 0, HMM_REASON_MIGRATE, &access->task))
			return 1;
		shadow = block_shadow(block);
		if (!shadow)
			return -EIO;
		block_touch(block);
		if (access->write)
			memcpy(shadow_at(shadow, addr), access->buffer + access->done, n);
		else
			memcpy(access->buffer + access->done, shadow_at(shadow, addr), n);
		break;
	case HMM_PAGE_ERROR:
		return -EIO;
	case HMM_PAGE_INVALID:
	case HMM_PAGE_REMOTE:
		r = access_in_place(access->owner, block, addr, access->buffer + access->done, n,
				    access->write);
		/* What was just filled may have been zapped, by a discard whose event was read before. */
		if (r == -EFAULT && block && block->record->flags & HMM_BLOCK_ARMED &&
		    access->tries++ < ZAPPED_TRIES)
			r = -EAGAIN;
		if (r == -EAGAIN)
			return access_later(access);
		if (r < 0)
			return (int)r;
		n = (size_t)r;
		break;
	}
	access->done += n;
	access->since = 0;
	return 0;
}

static void access_run(struct task *task)
{
	struct access *access = (struct access *)task;
	int r = 0;

	access->vma.end = 0;
	if (access->owner->gone)
		r = -ESTALE;
	while (!r && access->done < access->length) {
		r = access_step(access);
		if (r == 1)
			return;
		if (r)
			break;
	}
	access_finish(access, r);
}

static int access_begin(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_device_write *write = (const void *)letter->message;
	const struct hmm_msg_device_read *read = (const void *)letter->message;
	bool is_write = letter->message->opcode == HMM_OP_DEVICE_WRITE;
	uint32_t id = is_write ? write->mirror : read->mirror;
	size_t length = is_write ? write->count : read->length;
	uint64_t addr = is_write ? write->addr : read->addr;
	struct mirror *mirror = mirror_by_id(owner, id);
	struct access *access;

	if (!mirror || mirror->leaving)
		return letter_fail(letter, -ENOENT, "no mirror %u", id);
	if (mirror_refuse_tracked(mirror, letter))
		return letter->error;
	if (!length || length > 65536 || addr >= HMM_VA_END || length > HMM_VA_END - addr)
		return letter_fail(letter, -EINVAL,
				   "%zu bytes at %#lx: 1 to 65536 bytes below the 47-bit end are possible",
				   length, addr);
	access = calloc(1, sizeof(*access));
	if (!access)
		return letter_fail(letter, -ENOMEM, "out of memory");
	access->task.run = access_run;
	access->owner = owner;
	access->letter = letter;
	access->mirror = mirror;
	access->addr = addr;
	access->length = length;
	access->write = is_write;
	if (is_write) {
		access->buffer = (char *)((struct hmm_msg_device_write *)letter->message)->data;
	} else {
		struct hmm_msg_device_read_reply *reply =
			letter_reply(letter, HMM_OP_DEVICE_READ_REPLY, sizeof(*reply) + length);

		if (!reply) {
			free(access);
			return letter_fail(letter, -ENOMEM, "out of memory for %zu bytes", length);
		}
		access->buffer = (char *)reply->data;
	}
	mirror->migrations++;	/* the mirror stays while it runs */
	owner_queue(owner, &access->task);
	return 0;
}

/* ---- coherent memory --------------------------------------------------------------- */

struct coherent {
	struct task task;
	struct owner *owner;
	struct letter *letter;
	struct mirror *mirror;
	struct room_wait room;
};

static int make_coherent(struct owner *owner, struct mirror *mirror, uint64_t addr, uint64_t *promise)
{
	struct shadow *shadow;
	int r = mirror_shadow(mirror, addr, &shadow);
	struct block *block = r ? NULL : block_get(owner, addr);

	if (!block)
		return r ? r : -ENOMEM;
	block->record->mirror = (uint16_t)mirror->index;
	r = block_charge(block, mirror->device, HMM_BLOCK_PAGES);
	if (r) {
		block_forget(block);
		return r;
	}
	/* The system may have fewer huge pages than the pool is large: whoever touched a missing one would be killed. */
	r = shadow_commit(shadow, addr);
	if (r) {
		block_uncharge(block, HMM_BLOCK_PAGES);
		block_forget(block);
		return r;
	}
	block_keep(block, promise);
	block_set_state(block, 0, HMM_BLOCK_PAGES, HMM_PAGE_COHERENT);
	/* Its number says to the library that mprotect() there is to be told: a card follows it. */
	if (mirror->device->card_number)
		transit_note(block);
	return 0;
}

static void unmake_coherent(struct owner *owner, uint64_t start, uint64_t end)
{
	for (; start < end; start += HMM_BLOCK_SIZE) {
		struct block *block = block_find(owner, start);
		struct pages coherent;

		block_pages_in(block, HMM_PAGE_COHERENT, 0, HMM_BLOCK_PAGES, &coherent);
		transit_withdraw(block, &coherent);
		block_set_state(block, 0, HMM_BLOCK_PAGES, HMM_PAGE_INVALID);
		block_settle(block);
	}
}

/* All of it, or none. */
static int coherent_try(struct owner *owner, struct mirror *mirror, struct letter *letter)
{
	const struct hmm_msg_alloc *message = (const void *)letter->message;
	uint64_t end = message->addr + message->length, promise = 0, at;
	struct hmm_msg_alloc_reply *reply;
	int r = 0;

	if (mirror->leaving || owner->closing || owner->gone)
		return letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
	if (owner_ask_quota(owner, letter, QUOTA_MEMORY, message->length))
		return letter->error;
	for (at = message->addr; at < end; at += HMM_BLOCK_SIZE)
		if (block_find(owner, at))
			return letter_fail(letter, -EEXIST, "block %#lx is in use", at);
	if (owner_promise_pins(owner, letter, message->length, &promise))
		return letter->error;
	for (at = message->addr; at < end && !r; at += r ? 0 : HMM_BLOCK_SIZE)
		r = make_coherent(owner, mirror, at, &promise);
	owner_break_promise(owner, &promise);
	reply = r ? NULL : letter_reply(letter, HMM_OP_ALLOC_REPLY, sizeof(*reply));
	if (!reply) {
		unmake_coherent(owner, message->addr, at);
		return r ? r : letter_fail(letter, -ENOMEM, "out of memory for the answer");
	}
	reply->regions = (uint32_t)((end - 1) / HMM_REGION_SIZE - message->addr / HMM_REGION_SIZE + 1);
	return 0;
}

static void coherent_run(struct task *task)
{
	struct coherent *coherent = (struct coherent *)task;
	const struct hmm_msg_alloc *message = (const void *)coherent->letter->message;
	struct mirror *mirror = coherent->mirror;
	struct owner *owner = coherent->owner;
	int r = coherent_try(owner, mirror, coherent->letter);
	char text[200];

	if (r == -ENOSPC && !evict_wait(owner, mirror->device, message->length, 0, task, &coherent->room))
		return;
	if (r == -ENOSPC) {
		evict_explain(owner->worker, mirror->device, message->length, text, sizeof(text));
		letter_fail(coherent->letter, r, "nothing more can make way: %s", text);
	} else if (r && !coherent->letter->error) {
		letter_fail(coherent->letter, r, "%lu bytes of coherent memory: %s", message->length,
			    strerror(-r));
	}
	mirror->migrations--;
	evict_released(owner->worker, mirror->device);
	worker_reply(owner->worker, coherent->letter);
	free(coherent);
}

static int coherent_alloc(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_alloc *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);
	struct coherent *coherent;

	if (!mirror || mirror->leaving || owner->closing)
		return letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
	if (mirror_refuse_tracked(mirror, letter))
		return letter->error;
	if ((message->addr | message->length) % HMM_BLOCK_SIZE)
		return letter_fail(letter, -EINVAL, "coherent memory comes in blocks of 2 MiB");
	if (device_is_far(mirror->device))
		return letter_fail(letter, -EOPNOTSUPP,
				   "%s has memory that only %s: no CPU can share it", mirror->device->name, device_reached_by(mirror->device));
	coherent = calloc(1, sizeof(*coherent));
	if (!coherent)
		return letter_fail(letter, -ENOMEM, "out of memory");
	coherent->task.run = coherent_run;
	coherent->owner = owner;
	coherent->letter = letter;
	coherent->mirror = mirror;
	mirror->migrations++;	/* the mirror stays while it waits for room */
	owner_queue(owner, &coherent->task);
	return 0;
}

static void free_block(struct block *block, void *data)
{
	(void)data;
	if (block_at_rest(block) && block_count(block, HMM_PAGE_COHERENT)) {
		block_discard(block, 0, HMM_BLOCK_PAGES, HMM_REASON_UNMAP);
		/* Looked up anew by the settling that the discard asked for. */
	}
}

static int coherent_free(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_free *message = (const void *)letter->message;

	if ((message->addr | message->length) % HMM_BLOCK_SIZE)
		return letter_fail(letter, -EINVAL, "coherent memory comes in blocks of 2 MiB");
	block_for_each(owner, message->addr, message->addr + message->length, free_block, NULL);
	if (!letter_reply(letter, HMM_OP_FREE_REPLY, sizeof(struct hmm_msg_free_reply)))
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	return 0;
}

void access_request(struct owner *owner, struct letter *letter)
{
	int r;

	switch (letter->message->opcode) {
	case HMM_OP_ALLOC:
		if (!coherent_alloc(owner, letter))
			return;
		break;
	case HMM_OP_FREE:
		coherent_free(owner, letter);
		break;
	default:
		r = access_begin(owner, letter);
		if (!r)
			return;		/* answered when it is done */
	}
	worker_reply(owner->worker, letter);
}
