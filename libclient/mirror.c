/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mirror.c - mirrors: registering, and accesses without a window.
 *
 * device_read and device_write go in pieces of at most one message; a piece that
 * fails ends the call, which returns what was done before it. A lookup is one
 * load from the table that hmmd shares.
 */
#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "devmem.h"
#include "dirty.h"
#include "dispatch.h"
#include "fork.h"
#include "group.h"
#include "migrate.h"
#include "space.h"

#define LEAVE_AGAIN_NS 10000000L
#define PIECE (64UL << 10)	/* HMM_WIRE_MAX leaves room for it */

_Static_assert(HMM_ENTRY_VALID == HMM_TABLE_VALID && HMM_ENTRY_WRITE == HMM_TABLE_WRITE &&
	       HMM_ENTRY_DEVICE == HMM_TABLE_DEVICE && HMM_ENTRY_COHERENT == HMM_TABLE_COHERENT &&
	       HMM_ENTRY_ERROR == HMM_TABLE_ERROR, "a lookup returns the table's own bits");

struct hmm_mirror_private *hmmc_mirror_find(struct hmm *hmm, uint32_t id)
{
	struct hmm_mirror_private *mirror;

	for (mirror = hmm->mirrors; mirror; mirror = mirror->next)
		if (mirror->id == id)
			break;
	return mirror;
}

int hmmc_mirror_check(const struct hmm_mirror *mirror)
{
	if (hmmc_mirror_is_group(mirror))
		return hmmc_fail(-EINVAL,
				 "this takes one device: name one of the group by hmm_mirror_member()");
	return hmmc_mirror_check_any(mirror);
}

int hmmc_mirror_check_any(const struct hmm_mirror *mirror)
{
	int error;

	if (!mirror || !mirror->priv)
		return hmmc_fail(-EINVAL, "the mirror is NULL or not registered");
	error = hmmc_space_check(mirror->priv->hmm);
	if (error)
		return error;
	if (__atomic_load_n(&mirror->priv->gone, __ATOMIC_ACQUIRE))
		return hmmc_fail(-ESTALE, "the mirror's owner is gone");
	return 0;
}

/* The program's struct may be on a device: it is not touched with the lock held. */
struct hmm_mirror_private *hmmc_mirror_get(struct hmm_mirror *mirror)
{
	struct hmm_mirror_private *private = __atomic_load_n(&mirror->priv, __ATOMIC_ACQUIRE), *found;
	struct hmm *hmm = mirror->hmm;

	if (!private)
		return NULL;
	futex_lock(&hmm->lock);
	for (found = hmm->mirrors; found; found = found->next)
		if (found == private && (found->mirror == mirror || found->told == mirror))
			break;
	if (found)
		__atomic_add_fetch(&found->references, 1, __ATOMIC_RELAXED);
	futex_unlock(&hmm->lock);
	return found;
}

void hmmc_mirror_put(struct hmm_mirror_private *private)
{
	if (!__atomic_sub_fetch(&private->references, 1, __ATOMIC_ACQ_REL))
		hmmc_arena_free(private, sizeof(*private));
}

/*
 * Those of all handles, to know a struct that is registered: it may not be taken twice, and what it holds when
 * it is not, nobody knows.
 */
static struct {
	struct futex_lock lock;
	struct hmm_mirror_private *list;
} registered LIBRARY_DATA = { .lock = { 0 } };

static bool is_registered(const struct hmm_mirror *mirror)
{
	const struct hmm_mirror_private *private;

	futex_lock(&registered.lock);
	for (private = registered.list; private; private = private->next_registered)
		if (private->mirror == mirror || private->told == mirror)
			break;
	futex_unlock(&registered.lock);
	return private;
}

static void note(struct hmm_mirror_private *private)
{
	futex_lock(&registered.lock);
	private->next_registered = registered.list;
	registered.list = private;
	futex_unlock(&registered.lock);
}

static void strike(const struct hmm_mirror_private *private)
{
	struct hmm_mirror_private **at;

	futex_lock(&registered.lock);
	for (at = &registered.list; *at && *at != private; at = &(*at)->next_registered)
		;
	if (*at)
		*at = private->next_registered;
	futex_unlock(&registered.lock);
}

void hmmc_mirror_forget(void)
{
	memset(&registered, 0, sizeof(registered));
}

static int prepare_register(struct request *request)
{
	struct hmm_mirror_private *mirror = request->data;
	struct hmm_msg_mirror_register *message =
		(struct hmm_msg_mirror_register *)request->message;

	message->owner = mirror->hmm->id;
	message->device = mirror->device->id;
	message->flags = mirror->flags;
	return 0;
}

static int finish_register(struct request *request, struct hmm_frame *frame)
{
	const struct hmm_msg_mirror_register_reply *reply = (const void *)frame->data;
	struct hmm_mirror_private *mirror = request->data;
	struct hmm *hmm = mirror->hmm;

	mirror->id = reply->mirror;
	futex_lock(&hmm->lock);
	mirror->next = hmm->mirrors;
	hmm->mirrors = mirror;
	futex_unlock(&hmm->lock);
	return 0;
}

static int check_ops(const struct hmm_mirror_ops *ops, const struct hmm_device *device)
{
	if (ops->flags & ~HMM_MIRROR_TRACKED)
		return hmmc_fail(-EINVAL, "ops->flags has unknown bits");
	if (ops->flags & HMM_MIRROR_TRACKED) {
		if (ops->sync_cpu_device_pagetables || ops->quiesce || ops->resume)
			return hmmc_fail(-EINVAL, "nothing is taken from a tracked mirror: of the calls it has release alone");
		return 0;
	}
	if (!ops->quiesce != !ops->resume)
		return hmmc_fail(-EINVAL, "ops->quiesce and ops->resume go together: what stops has to go on");
	if (!(device->caps & HMM_DEVICE_FAULTS) && ops->release && !ops->quiesce && !ops->sync_cpu_device_pagetables)
		return hmmc_fail(-EINVAL,
				 "the device was made without HMM_DEVICE_FAULTS: it has to be stopped for changes, by ops->quiesce or ops->sync_cpu_device_pagetables");
	return 0;
}

int hmmc_mirror_join(struct hmm_mirror *mirror, struct hmm *hmm, struct group *group,
		     struct hmm_mirror *whole)
{
	struct hmm_mirror_private *private;
	struct hmm_mirror_ops ops;
	struct request *request;
	int error;

	error = hmmc_take_options(mirror->ops, &ops, sizeof(ops));
	if (!error)
		error = check_ops(&ops, mirror->device);
	if (!error && group && ops.flags & HMM_MIRROR_TRACKED)
		error = hmmc_fail(-EINVAL, "a tracked mirror has one device, not a group");
	if (error)
		return error;
	private = hmmc_arena_alloc(sizeof(*private));
	request = hmmc_request_new(hmm->connection, HMM_OP_MIRROR_REGISTER,
				   sizeof(struct hmm_msg_mirror_register));
	error = private && request ? 0 : hmmc_fail(-ENOMEM, "the library's memory is used up");
	if (!error && (ops.release || ops.sync_cpu_device_pagetables || ops.quiesce ||
		       mirror->device->caps & HMM_DEVICE_COPY_ENGINE)) {
		error = hmmc_dispatch_start(hmm);
		if (error)
			hmmc_fail(error, "cannot start the thread for callbacks: %s",
				  strerror(-error));
	}
	if (!error) {
		private->references = 1;
		private->mirror = mirror;
		private->told = whole ? whole : mirror;
		private->group = group;
		private->ops = ops;
		private->hmm = hmm;
		private->device = mirror->device;
		hmmc_device_reference(private->device);
		private->faults = mirror->device->caps & HMM_DEVICE_FAULTS;
		private->quiesces = ops.quiesce && !(mirror->device->caps & HMM_DEVICE_FAULTS);
		if (ops.sync_cpu_device_pagetables || private->quiesces)
			private->flags |= HMM_MIRROR_FLAGS_CALLBACKS;
		if (ops.flags & HMM_MIRROR_TRACKED)
			private->flags |= HMM_MIRROR_FLAGS_TRACKED;
		note(private);
		mirror->hmm = private->told->hmm = hmm;
		mirror->priv = private->told->priv = private;
		request->data = private;
		request->prepare = prepare_register;
		request->finish = finish_register;
		error = hmmc_devmem_join(private);
		if (error)
			hmmc_fail(error, "the library's memory is used up");
		else
			error = hmmc_request_call(request);
		if (error) {
			hmmc_devmem_leave(private);
			strike(private);
			mirror->priv = private->told->priv = NULL;
			hmm_device_put(private->device);
		}
	}
	hmmc_request_free(request);
	if (error) {
		hmmc_arena_free(private, sizeof(*private));
		return error;
	}
	error = hmmc_devmem_ready(private);
	if (error)
		hmmc_mirror_leave_surely(mirror);
	return error;
}

int hmm_mirror_register(struct hmm_mirror *mirror, struct hmm *hmm)
{
	int error;

	if (!mirror || !hmm || !mirror->ops || !mirror->device)
		return hmmc_fail(-EINVAL, "mirror, hmm, mirror->ops or mirror->device is NULL");
	error = hmmc_space_check(hmm);
	if (error)
		return error;
	if (is_registered(mirror))
		return hmmc_fail(-EINVAL, "the mirror is registered already");
	if (mirror->device->hmm != hmm)
		return hmmc_fail(
			-EINVAL,
			"the device was opened on another address space's handle; open it on this one");
	return mirror->device->count ? hmmc_group_join(mirror, hmm)
				     : hmmc_mirror_join(mirror, hmm, NULL, NULL);
}

static void forget(struct hmm *hmm, struct hmm_mirror_private *mirror)
{
	struct hmm_mirror_private **at;

	futex_lock(&hmm->restore_lock);
	futex_lock(&hmm->lock);
	for (at = &hmm->mirrors; *at && *at != mirror; at = &(*at)->next)
		;
	if (*at)
		*at = mirror->next;
	futex_unlock(&hmm->lock);
	futex_unlock(&hmm->restore_lock);
}

static int prepare_unregister(struct request *request)
{
	const struct hmm_mirror_private *mirror = request->data;

	((struct hmm_msg_mirror_unregister *)request->message)->mirror = mirror->id;
	return 0;
}

/* All is home: nobody orders anything about its shadows any more. */
static int finish_unregister(struct request *request, struct hmm_frame *frame)
{
	struct hmm_mirror_private *mirror = request->data;
	struct hmm *hmm = mirror->hmm;

	forget(hmm, mirror);
	if (hmm->owner)
		hmmc_region_drop(&hmm->owner->regions, mirror->id & 0xff);
	return 0;
}

/* What waits for an answer gets it; a driver that leaves has let go of everything. */
static void stop_callbacks(struct hmm_mirror_private *mirror, bool stop)
{
	futex_lock(&mirror->hmm->lock);
	__atomic_store_n(&mirror->leaving, stop, __ATOMIC_RELEASE);
	futex_unlock(&mirror->hmm->lock);
	if (stop)
		hmmc_dispatch_drop(mirror->hmm, mirror, false);
}

int hmmc_mirror_leave(struct hmm_mirror *mirror)
{
	struct hmm_mirror_private *private = mirror->priv;
	struct hmm *hmm = private->hmm;
	struct request *request = NULL;
	int error = 0;

	if (hmmc_mirror_check(mirror) == 0) {
		request = hmmc_request_new(hmm->connection, HMM_OP_MIRROR_UNREGISTER,
					   sizeof(struct hmm_msg_mirror_unregister));
		if (!request)
			return hmmc_fail(-ENOMEM, "the library's memory is used up");
	}
	stop_callbacks(private, true);
	hmmc_prefetch_stop(hmm, private);
	hmmc_sync_leave(private);
	if (request) {
		request->data = private;
		request->prepare = prepare_unregister;
		request->finish = finish_unregister;
		request->insists = true;
		error = hmmc_request_call(request);
		hmmc_request_free(request);
		if (error == -EBUSY) {
			/* Pages that cannot come home yet. What the device stopped for it had let go of. */
			if (private->quiesces) {
				hmmc_dispatch_wait_zero(&private->callbacks);
				hmmc_dispatch_forget_changes(private);
			}
			stop_callbacks(private, false);
			return error;
		}
		if (error == -ESTALE)
			error = 0;	/* gone is gone */
	}
	forget(hmm, private);
	hmmc_dispatch_drop(hmm, private, true);
	hmmc_dispatch_wait_zero(&private->callbacks);
	strike(private);
	__atomic_store_n(&private->unregistered, 1, __ATOMIC_RELEASE);
	__atomic_store_n(&mirror->priv, NULL, __ATOMIC_RELEASE);
	hmmc_dispatch_forget_changes(private);
	hmmc_devmem_leave(private);
	hmm_device_put(private->device);
	hmmc_mirror_put(private);
	return error;
}

void hmmc_mirror_leave_surely(struct hmm_mirror *mirror)
{
	int error;

	while ((error = hmmc_mirror_leave(mirror)) == -EBUSY || error == -ENOMEM)
		hmmc_dispatch_nap(LEAVE_AGAIN_NS);
}

int hmm_mirror_unregister(struct hmm_mirror *mirror)
{
	if (!mirror || !mirror->priv)
		return hmmc_fail(-EINVAL, "the mirror is NULL or not registered");
	if (hmmc_dispatch_check())
		return -EDEADLK;
	/* In a fork's child it is the parent's, with locks as they were then: only this pointer is the child's. */
	if (hmmc_space_check_handle(mirror->priv->hmm)) {
		mirror->priv = NULL;
		return 0;
	}
	if (hmmc_mirror_is_group(mirror))
		return hmmc_group_leave(mirror);
	if (mirror->priv->group)
		return hmmc_fail(-EINVAL, "it is a member of a group, whose mirror is unregistered whole");
	return hmmc_mirror_leave(mirror);
}

/* After a restart of hmmd, in the receiver. */
int hmmc_mirror_restore(struct hmm *hmm, bool same)
{
	const struct hmm_msg_mirror_register_reply *reply =
		(const void *)hmm->connection->frame->data;
	const struct hmm_msg_reopen_mirror_reply *reopened =
		(const void *)hmm->connection->frame->data;
	int error = 0;

	for (struct hmm_mirror_private *mirror = hmm->mirrors; mirror && !error;
	     mirror = mirror->next) {
		struct hmm_msg_reopen_mirror again;
		struct hmm_msg_mirror_register anew;

		if (same) {
			HMM_MSG_INIT(again, HMM_OP_REOPEN_MIRROR, 0);
			again.owner = hmm->id;
			again.mirror = mirror->id;
			again.flags = mirror->flags;
			HMM_MSG_TEXT(again.device, mirror->device->name);
			error = hmmc_connection_exchange(hmm->connection, &again, NULL, 0);
			if (!error)
				mirror->id = reopened->mirror;
		} else {
			HMM_MSG_INIT(anew, HMM_OP_MIRROR_REGISTER, 0);
			anew.owner = hmm->id;
			anew.device = mirror->device->id;
			anew.flags = mirror->flags;
			error = hmmc_connection_exchange(hmm->connection, &anew, NULL, 0);
			if (!error) {
				mirror->id = reply->mirror;
				error = hmmc_devmem_return(mirror);
			}
		}
	}
	return error;
}

/* ---- accesses ---------------------------------------------------------------- */

static int prepare_read(struct request *request)
{
	const struct hmm_mirror_private *mirror = request->data;

	((struct hmm_msg_device_read *)request->message)->mirror = mirror->id;
	return 0;
}

static ssize_t read_piece(struct hmm_mirror_private *mirror, unsigned long addr, void *buffer,
			  size_t length)
{
	const struct hmm_msg_device_read_reply *reply;
	struct hmm_msg_device_read *message;
	struct request *request;
	ssize_t done;

	request = hmmc_request_new_expecting(mirror->hmm->connection, HMM_OP_DEVICE_READ, sizeof(*message), length);
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	message = (struct hmm_msg_device_read *)request->message;
	message->addr = addr;
	message->length = (uint32_t)length;
	request->data = mirror;
	request->prepare = prepare_read;
	done = hmmc_request_call(request);
	if (!done) {
		reply = (const struct hmm_msg_device_read_reply *)request->reply;
		done = reply->count <= length
			       ? (ssize_t)reply->count
			       : hmmc_fail(-EPROTO, "hmmd sent more than was asked for");
		if (done > 0)
			memcpy(buffer, reply->data, (size_t)done);
	}
	hmmc_request_free(request);
	return done;
}

static int prepare_write(struct request *request)
{
	const struct hmm_mirror_private *mirror = request->data;

	((struct hmm_msg_device_write *)request->message)->mirror = mirror->id;
	return 0;
}

static ssize_t write_piece(struct hmm_mirror_private *mirror, unsigned long addr,
			   const void *buffer, size_t length)
{
	struct hmm_msg_device_write *message;
	struct request *request;
	ssize_t done;

	request = hmmc_request_new(mirror->hmm->connection, HMM_OP_DEVICE_WRITE,
				   sizeof(*message) + length);
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	message = (struct hmm_msg_device_write *)request->message;
	message->addr = addr;
	message->count = (uint32_t)length;
	memcpy(message->data, buffer, length);
	request->data = mirror;
	request->prepare = prepare_write;
	done = hmmc_request_call(request);
	if (!done)
		done = (ssize_t)((const struct hmm_msg_device_write_reply *)request->reply)
			       ->written;
	hmmc_request_free(request);
	return done;
}

static ssize_t access_pieces(struct hmm_mirror *mirror, unsigned long addr, void *buffer,
			     size_t length, bool write)
{
	size_t total = 0;
	int error = hmmc_mirror_check_any(mirror);

	if (!error)
		error = hmmc_dispatch_check();
	if (error)
		return error;
	if (!length)
		return 0;
	if (!buffer || addr + length < addr || addr + length > HMM_VA_END)
		return hmmc_fail(-EINVAL,
				 "the buffer is NULL, or the range wraps or ends above user space");
	while (total < length) {
		/* Up to the next multiple, so that all pieces but the first begin at a page. */
		size_t piece = PIECE - ((addr + total) & (PIECE - 1));
		ssize_t done;

		if (piece > length - total)
			piece = length - total;
		done = write ? write_piece(mirror->priv, addr + total, (char *)buffer + total,
					   piece)
			     : read_piece(mirror->priv, addr + total, (char *)buffer + total,
					  piece);
		if (done < 0)
			return total ? (ssize_t)total : done;
		total += (size_t)done;
		if ((size_t)done < piece)
			break;
	}
	return (ssize_t)total;
}

ssize_t hmm_device_read(struct hmm_mirror *mirror, unsigned long addr, void *buffer, size_t length)
{
	return access_pieces(mirror, addr, buffer, length, false);
}

ssize_t hmm_device_write(struct hmm_mirror *mirror, unsigned long addr, const void *buffer,
			 size_t length)
{
	return access_pieces(mirror, addr, (void *)(uintptr_t)buffer, length, true);
}

/* The owner's mirrors share one table; a device page's number says whose it is. */
static bool is_foreign(const struct hmm_mirror_private *mirror, uint64_t entry)
{
	return entry & HMM_TABLE_DEVICE &&
	       (entry >> HMM_TABLE_PFN_SHIFT) / HMM_TABLE_DEVICE_PFN != (mirror->id & 0xff) + 1;
}

bool hmmc_mirror_has_copy(const struct hmm_mirror_private *mirror, unsigned long addr, uint64_t entry)
{
	const uint16_t *sharers =
		(const uint16_t *)((const char *)mirror->hmm->table + HMM_TABLE_SHARERS_OFFSET);

	return entry & HMM_TABLE_VALID && !(entry & HMM_TABLE_WRITE) &&
	       __atomic_load_n(&sharers[addr >> HMM_PAGE_SHIFT], __ATOMIC_ACQUIRE) >>
		       (mirror->id & 0xff) & 1;
}

uint64_t hmm_mirror_lookup(const struct hmm_mirror *mirror, unsigned long addr)
{
	const struct hmm_mirror_private *private = mirror ? mirror->priv : NULL;
	uint64_t entry;

	if (!private || addr >= HMM_VA_END || hmmc_space_check(private->hmm) ||
	    __atomic_load_n(&private->hmm->pulse->dead, __ATOMIC_ACQUIRE))
		return 0;
	if (hmmc_mirror_is_group(mirror))
		return hmmc_group_lookup(mirror, addr);
	entry = __atomic_load_n(&private->hmm->table[addr >> HMM_PAGE_SHIFT], __ATOMIC_ACQUIRE);
	/* What is not on it a device that cannot fault has no use for. */
	if (!private->faults && !(entry & (HMM_TABLE_DEVICE | HMM_TABLE_ERROR)))
		return 0;
	if (is_foreign(private, entry) && !hmmc_mirror_has_copy(private, addr, entry))
		return 0;
	return entry & HMM_TABLE_FLAGS;
}
