/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * space.c - address spaces: opening, sharing, closing, and what becomes of them when
 * hmmd goes away.
 *
 * hmm_open() makes one connection and one owner per process; hmm_open_peer() one
 * connection per key. When the connection breaks, hmmc_space_restore() tells the next
 * hmmd what the last one knew, in the order in which one thing needs another: the
 * owner, devices, mirrors and shadows, what was said of ranges, keys; or the key,
 * devices, mirrors, windows. Two processes may wait for each other here (a driver's
 * key for its owner, an owner's mirror for a driver's device), so what is merely not
 * there yet is asked for again on the same connection. The lists of a handle change in
 * the receiver alone, when hmmd's answer comes, so that they agree with what the hmmd
 * at the other end was told, or where there is none any more; others read them under
 * hmm->lock.
 *
 * After the grace period a handle is lost: calls give -ESTALE until it is closed.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "arena.h"
#include "devmem.h"
#include "dispatch.h"
#include "fork.h"
#include "group.h"
#include "log.h"
#include "mapping.h"
#include "migrate.h"
#include "space.h"

/*
 * Two locks. Who opens holds @opening until it is done, and who forks until there are two processes, with the
 * program's own fork handlers in between. @lock, under it or alone, guards the rest, for a moment: all that
 * remaps, protects, and closes takes it, and none of those may wait for a program's handler.
 */
static struct {
	struct futex_lock opening;
	struct futex_lock lock;
	struct hmm *own;
	uint32_t closing;	/* futex: 1: own is being closed, or has just been taken away and watches memory still */
	pid_t pid;		/* whose it is */
	uint32_t generation;
} process LIBRARY_DATA = { .generation = 1 };

_Static_assert(
	offsetof(struct hmm_msg_exclude, owner) == offsetof(struct hmm_msg_drain, owner) &&
		offsetof(struct hmm_msg_advise, owner) == offsetof(struct hmm_msg_drain, owner) &&
		offsetof(struct hmm_msg_attribute, owner) == offsetof(struct hmm_msg_drain, owner) &&
		offsetof(struct hmm_msg_export, owner) == offsetof(struct hmm_msg_drain, owner) &&
		offsetof(struct hmm_msg_layout, owner) == offsetof(struct hmm_msg_drain, owner) &&
		offsetof(struct hmm_msg_notices_open, owner) == offsetof(struct hmm_msg_drain, owner) &&
		offsetof(struct hmm_msg_protect, owner) == offsetof(struct hmm_msg_drain, owner) &&
		offsetof(struct hmm_msg_notices_close, owner) == offsetof(struct hmm_msg_drain, owner) &&
		offsetof(struct hmm_msg_prepare_fork, owner) == offsetof(struct hmm_msg_drain, owner) &&
		offsetof(struct hmm_msg_forked, owner) == offsetof(struct hmm_msg_drain, owner),
	"hmmc_prepare_owner() is for all of them");

int hmmc_prepare_owner(struct request *request)
{
	((struct hmm_msg_drain *)request->message)->owner = request->connection->hmm->id;
	return 0;
}

uint32_t hmmc_space_generation(void)
{
	return process.generation;
}

int hmmc_space_check_handle(const struct hmm *hmm)
{
	if (!hmm)
		return hmmc_fail(-EINVAL, "the handle is NULL");
	if (hmm->generation != process.generation)
		return hmmc_fail(
			-ESTALE,
			"the handle belongs to the process that forked this one; open anew");
	return 0;
}

int hmmc_space_check(const struct hmm *hmm)
{
	int error = hmmc_space_check_handle(hmm);

	if (error)
		return error;
	if (__atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE))
		return hmmc_fail(-ESTALE,
				 "the owner or its hmmd is gone; close the handle and open anew");
	return 0;
}

/*
 * How often this thread has taken each: a fork handler may open, and a signal's handler, on top of anything,
 * may protect. Nobody waits for a callback with either: callbacks, too, remap, protect and fork.
 */
static __thread unsigned int opens __attribute__((tls_model("initial-exec")));
static __thread unsigned int locks __attribute__((tls_model("initial-exec")));

static void lock_process(void)
{
	if (!locks++)
		futex_lock(&process.lock);
}

static void unlock_process(void)
{
	/* A signal's handler in between finds it held. */
	if (locks == 1)
		futex_unlock(&process.lock);
	locks--;
}

/* A child of a raw clone(), where no handler ran: a copy of all this, and nobody behind it. */
static bool is_copy(void)
{
	return __atomic_load_n(&process.own, __ATOMIC_ACQUIRE) && process.pid != getpid();
}

void hmmc_space_lock(void)
{
	if (!opens++ && !is_copy())
		futex_lock(&process.opening);
}

void hmmc_space_unlock(void)
{
	if (opens == 1 && !is_copy())
		futex_unlock(&process.opening);
	opens--;
}

struct hmm *hmmc_space_enter_any(void)
{
	struct hmm *hmm = __atomic_load_n(&process.own, __ATOMIC_ACQUIRE);

	/* Not even the lock, where nothing is mirrored. */
	if (!hmm || opens || locks || is_copy())
		return NULL;
	lock_process();
	hmm = process.own;
	if (hmm)
		__atomic_add_fetch(&hmm->users, 1, __ATOMIC_ACQ_REL);
	unlock_process();
	return hmm;
}

struct hmm *hmmc_space_enter_own(void)
{
	struct hmm *hmm = hmmc_space_enter_any();

	if (!hmm || !__atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE))
		return hmm;
	hmmc_space_leave(hmm);
	return NULL;
}

void hmmc_space_leave(struct hmm *hmm)
{
	/* It may be freed at once: its address alone is used for the wake-up. */
	__atomic_sub_fetch(&hmm->users, 1, __ATOMIC_ACQ_REL);
	futex_wake(&hmm->users, INT32_MAX);
}

/* This thread is the one that closes. */
static __thread bool closes __attribute__((tls_model("initial-exec")));

void hmmc_space_await_close(void)
{
	if (closes || opens || locks || __atomic_load_n(&process.own, __ATOMIC_ACQUIRE) ||
	    !__atomic_load_n(&process.closing, __ATOMIC_ACQUIRE))
		return;
	hmmc_dispatch_wait_zero(&process.closing);
}

void hmmc_space_forget(void)
{
	uint32_t generation = process.generation + 1;

	memset(&process, 0, sizeof(process));
	process.generation = generation;
	hmmc_devmem_forget();
	hmmc_mirror_forget();
	opens = locks = 0;
	closes = false;
}

static int check_options(const struct hmm_open_options *given, struct hmm_open_options *options)
{
	int error = hmmc_take_options(given, options, sizeof(*options));

	if (error)
		return error;
	if (options->flags & ~(HMM_OPEN_BASE_ENGINE | HMM_OPEN_PRELOADED))
		return hmmc_fail(-EINVAL, "options.flags has unknown bits");
	if (options->slots > HMM_SLOTS_MAX)
		return hmmc_fail(-EINVAL, "options.slots is %u, at most %d are possible",
				 options->slots, HMM_SLOTS_MAX);
	return 0;
}

static int new_space(enum hmm_role role, const struct hmm_open_options *options,
		     struct hmm **result)
{
	struct hmm *hmm;
	int error = hmmc_clerk_start();

	if (error)
		return error;
	hmm = hmmc_arena_alloc(sizeof(*hmm));
	if (!hmm)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	hmm->references = 1;
	hmm->generation = process.generation;
	hmm->key = -1;
	error = hmmc_connection_new(hmm, role, options->socket, options->name, options->timeout_ms,
				    &hmm->connection);
	if (error) {
		hmmc_arena_free(hmm, sizeof(*hmm));
		return error;
	}
	hmm->features = hmm->connection->features;
	*result = hmm;
	return 0;
}

static int close_key(void *argument)
{
	struct key *key = argument;

	return close(key->fd);
}

static int drop_staging(void *argument)
{
	hmmc_region_drop(argument, HMM_NO_MIRROR);
	return 0;
}

static void free_space(struct hmm *hmm)
{
	hmmc_dispatch_free(hmm->dispatch);
	hmmc_connection_free(hmm->connection);
	if (hmm->staging)
		hmmc_clerk_call(drop_staging, hmm->staging);
	hmmc_arena_free(hmm->staging, sizeof(*hmm->staging));
	if (hmm->owner) {
		hmmc_owner_free(hmm->owner);
	} else {
		if (hmm->table)
			munmap((void *)(uintptr_t)hmm->table, HMM_TABLE_SIZE);
		if (hmm->pulse)
			munmap(hmm->pulse, sizeof(*hmm->pulse));
	}
	while (hmm->keys) {
		struct key *key = hmm->keys;

		hmm->keys = key->next;
		hmmc_clerk_call(close_key, key);
		hmmc_arena_free(key, sizeof(*key));
	}
	hmmc_statement_free(hmm);
	hmmc_alloc_forget(hmm);
	hmmc_arena_free(hmm, sizeof(*hmm));
}

/*
 * hmmd and the kernel know one owner per process. One that no hmmd came back for makes way for the next
 * when all of its pages are home. Return: 1, and one more reference of the one that there is; 0, there is
 * none, and nobody else opens one until hmmc_space_unlock(); -EDEADLK.
 */
static int join_own(struct hmm **result)
{
	struct hmm *own;
	bool closing, lost;

	for (;;) {
		hmmc_space_lock();
		lock_process();
		own = process.own;
		closing = process.closing;
		lost = own && __atomic_load_n(&own->lost, __ATOMIC_ACQUIRE);
		if (!closing && (!lost || __atomic_load_n(&own->owner->rescuer.done, __ATOMIC_ACQUIRE)))
			break;
		if (!closing)
			__atomic_add_fetch(&own->users, 1, __ATOMIC_ACQ_REL);
		unlock_process();
		hmmc_space_unlock();
		if (!closing) {
			hmmc_dispatch_wait(&own->owner->rescuer.done);
			hmmc_space_leave(own);
		} else if (hmmc_dispatch_is_current() || opens) {
			return hmmc_fail(-EDEADLK,
					 "this process's handle is being closed, which may wait for this callback, or fork handler");
		} else {
			hmmc_dispatch_pause(&process.closing, 1, NULL);
		}
	}
	if (!own || lost) {
		__atomic_store_n(&process.own, NULL, __ATOMIC_RELEASE);
		unlock_process();
		return 0;
	}
	own->references++;
	*result = own;
	unlock_process();
	hmmc_space_unlock();
	return 1;
}

static void set_own(struct hmm *own, uint32_t closing)
{
	lock_process();
	__atomic_store_n(&process.own, own, __ATOMIC_RELEASE);
	__atomic_store_n(&process.closing, closing, __ATOMIC_RELEASE);
	unlock_process();
	futex_wake(&process.closing, INT32_MAX);
}

int hmm_open(const struct hmm_open_options *given, struct hmm **result)
{
	struct hmm_open_options options;
	struct hmm *hmm = NULL;
	uint64_t flags = 0;
	int error;

	if (!result)
		return hmmc_fail(-EINVAL, "result is NULL");
	error = check_options(given, &options);
	if (error)
		return error;
	if (options.flags & HMM_OPEN_BASE_ENGINE)
		flags |= HMM_OPEN_FLAGS_BASE_ENGINE;
	if (options.flags & HMM_OPEN_PRELOADED)
		flags |= HMM_OPEN_FLAGS_PRELOADED;
	hmmc_fork_watch();
	error = join_own(result);
	if (error)
		return error < 0 ? error : 0;
	error = new_space(HMM_ROLE_OWNER, &options, &hmm);
	if (!error) {
		error = hmmc_owner_new(hmm, flags, options.slots, &hmm->owner);
		if (!error)
			error = hmmc_exclude_library(hmm);
		if (!error)
			error = hmmc_exclude_thread(hmm);
		if (error) {
			free_space(hmm);
		} else {
			process.pid = getpid();
			set_own(hmm, 0);
			*result = hmm;
		}
	}
	hmmc_space_unlock();
	return error;
}

/* ---- another process's ---------------------------------------------------------- */

static int map_peer(struct hmm *hmm, struct hmm_frame *frame)
{
	const struct hmm_msg_open_peer_reply *reply = (const void *)frame->data;
	int table_fd = hmm_frame_take_fd(frame, 0), pulse_fd = hmm_frame_take_fd(frame, 1);
	void *table, *pulse;

	/* Whether or not the numbers begin anew. */
	__atomic_add_fetch(&hmm->tables, 1, __ATOMIC_SEQ_CST);
	table = hmmc_map((void *)(uintptr_t)hmm->table, HMM_TABLE_SIZE, PROT_READ, MAP_SHARED,
			 table_fd, 0);
	pulse = hmmc_map(hmm->pulse, sizeof(*hmm->pulse), PROT_READ, MAP_SHARED, pulse_fd, 0);
	close(table_fd);
	close(pulse_fd);
	if (table) {
		madvise(table, HMM_TABLE_SIZE, MADV_DONTDUMP);
		/* Where it was, if it was: others look there by now. */
		if (hmm->table != table)
			hmm->table = table;
	}
	if (pulse && hmm->pulse != pulse)
		hmm->pulse = pulse;
	if (!table || !pulse)
		return -ENOMEM;
	hmm->id = reply->owner;
	__atomic_store_n(&hmm->features, reply->features, __ATOMIC_RELAXED);
	return 0;
}

static int take_key(struct request *request)
{
	struct hmm *hmm = request->data;

	if (hmm->key < 0) {
		int fd = hmmc_clerk_take_fd(request->fds[0]);

		if (fd < 0) {
			snprintf(request->text, sizeof(request->text), "the key cannot be used: %s",
				 strerror(-fd));
			return fd;
		}
		hmm->key = fd;
	}
	request->fds[0] = hmm->key;
	return 0;
}

static int finish_peer(struct request *request, struct hmm_frame *frame)
{
	int error = map_peer(request->data, frame);

	if (error)
		snprintf(request->text, sizeof(request->text),
			 "no address space for the owner's table");
	return error;
}

static int drop_key(void *argument)
{
	struct hmm *hmm = argument;

	if (hmm->key >= 0)
		close(hmm->key);
	hmm->key = -1;
	return 0;
}

int hmm_open_peer(int key, const struct hmm_open_options *given, struct hmm **result)
{
	struct hmm_open_options options;
	struct request *request;
	struct hmm *hmm = NULL;
	int error;

	if (!result)
		return hmmc_fail(-EINVAL, "result is NULL");
	if (key < 0 || fcntl(key, F_GETFD) < 0)
		return hmmc_fail(-EBADF, "the key is not an open descriptor");
	error = check_options(given, &options);
	if (error)
		return error;
	hmmc_fork_watch();
	error = new_space(HMM_ROLE_DRIVER, &options, &hmm);
	if (error)
		return error;
	request = hmmc_request_new(hmm->connection, HMM_OP_OPEN_PEER,
				   sizeof(struct hmm_msg_open_peer));
	if (!request) {
		free_space(hmm);
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	}
	request->data = hmm;
	request->prepare = take_key;
	request->finish = finish_peer;
	request->fds[0] = key;
	request->nfds = 1;
	request->borrowed = true;
	error = hmmc_request_call(request);
	/*
	 * The key is all that the question consists of, and hmmd forgets those whose owner is
	 * gone.
	 */
	if (error == -EINVAL)
		error = -EBADF;
	else if (error == -ENOENT)
		error = -ESTALE;
	hmmc_request_free(request);
	if (error) {
		hmmc_clerk_call(drop_key, hmm);
		free_space(hmm);
		return error;
	}
	*result = hmm;
	return 0;
}

/* ---- keys ------------------------------------------------------------------------- */

static int finish_export(struct request *request, struct hmm_frame *frame)
{
	struct hmm *hmm = request->connection->hmm;
	struct key *key = request->data;

	futex_lock(&hmm->lock);
	key->next = hmm->keys;
	hmm->keys = key;
	futex_unlock(&hmm->lock);
	return 0;
}

static int take_export(struct request *request)
{
	struct key *key = request->data;

	hmmc_prepare_owner(request);
	if (request->fds[0] < 0) {
		request->fds[0] = hmmc_clerk_take_fd(key->fd);
		if (request->fds[0] < 0) {
			snprintf(request->text, sizeof(request->text),
				 "cannot take the key over: %s", strerror(-request->fds[0]));
			return request->fds[0];
		}
		key->fd = request->fds[0];
	}
	return 0;
}

int hmm_export(struct hmm *hmm)
{
	struct request *request;
	struct key *key;
	int fd, error = hmmc_space_check(hmm);

	if (error)
		return error;
	if (!hmm->owner)
		return hmmc_fail(-EPERM, "only the owner itself can export its address space");
	fd = memfd_create("hmm-key", MFD_CLOEXEC);
	if (fd < 0)
		return hmmc_fail(-errno, "cannot make a key: %s", strerror(errno));
	key = hmmc_arena_alloc(sizeof(*key));
	request = hmmc_request_new(hmm->connection, HMM_OP_EXPORT, sizeof(struct hmm_msg_export));
	if (!key || !request) {
		error = hmmc_fail(-ENOMEM, "the library's memory is used up");
	} else {
		key->fd = fd;
		request->data = key;
		request->prepare = take_export;
		request->finish = finish_export;
		request->nfds = 1;
		request->borrowed = true;
		error = hmmc_request_call(request);
	}
	/* Without the library's own copy a restarted hmmd could not be told of it. */
	if (error) {
		if (request && request->fds[0] >= 0)
			hmmc_clerk_call(close_key, key);
		hmmc_arena_free(key, sizeof(*key));
		close(fd);
	}
	hmmc_request_free(request);
	return error ? error : fd;
}

static int export_again(struct hmm *hmm)
{
	struct hmm_msg_export message;
	int error = 0;

	for (struct key *key = hmm->keys; key && !error; key = key->next) {
		HMM_MSG_INIT(message, HMM_OP_EXPORT, 0);
		message.owner = hmm->id;
		error = hmmc_connection_exchange(hmm->connection, &message, &key->fd, 1);
	}
	return error;
}

/* ---- closing ------------------------------------------------------------------------ */

static void drain_all(struct hmm *hmm)
{
	struct request *request;

	hmmc_state(hmm, 0, HMM_VA_END, true);
	request = hmmc_request_new(hmm->connection, HMM_OP_DRAIN, sizeof(struct hmm_msg_drain));
	if (!request)
		return;
	request->prepare = hmmc_prepare_owner;
	hmmc_request_call(request);
	hmmc_request_free(request);
}

/* All that was made with it, which waits for callbacks. Those may go on remapping and forking as before. */
static void close_all(struct hmm *hmm)
{
	hmmc_prefetch_stop(hmm, NULL);
	while (hmm->events)
		hmm_event_close(hmm->events);
	while (hmm->dirties)
		hmm_dirty_stop(hmm->dirties);
	while (hmm->windows)
		hmm_window_unmap(hmm->windows);
	while (hmm->mirrors)
		if (hmm_mirror_unregister(hmmc_mirror_whole(hmm->mirrors)) == -EBUSY)
			hmmc_dispatch_nap(10000000);
	/* Nobody may bring anything to a device between here and the end: then all is home. */
	if (hmm->owner && !__atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE))
		drain_all(hmm);
	if (hmm->owner && __atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE))
		hmmc_dispatch_wait(&hmm->owner->rescuer.done);
	while (hmm->groups) {
		hmm->groups->references = 1;
		hmm_device_put(hmm->groups);
	}
	while (hmm->devices)
		hmmc_device_close(hmm->devices);
}

/* True: it was the last reference. */
static bool put_reference(struct hmm *hmm, bool *own)
{
	bool last = false;

	lock_process();
	if (hmm->references > 1)
		hmm->references--;
	else
		last = hmmc_dispatch_check() == 0;
	*own = last && process.own == hmm;
	if (*own)
		process.closing = 1;
	unlock_process();
	return last;
}

void hmm_close(struct hmm *hmm)
{
	bool own;

	/* A fork's child has no part in it: everything is the parent's. */
	if (!hmm || hmm->generation != process.generation || !put_reference(hmm, &own))
		return;
	close_all(hmm);
	if (own) {
		closes = true;
		set_own(NULL, 1);
	}
	hmmc_dispatch_wait_zero(&hmm->users);
	if (hmm->key >= 0)
		hmmc_clerk_call(drop_key, hmm);
	free_space(hmm);
	if (own) {
		set_own(NULL, 0);
		closes = false;
	}
}

/* ---- what hmmd says and when it goes away: in the receiver -------------------------------- */

void hmmc_space_event(struct hmm *hmm, struct hmm_frame *frame)
{
	const void *event = frame->data;
	const struct hmm_msg_region *region = event;
	bool renew = false;

	switch (frame->header.opcode) {
	case HMM_OP_REGION:
		if (region->window == HMM_REGION_STAGING)
			renew = hmmc_devmem_region(hmm, region, hmm_frame_take_fd(frame, 0));
		else if (region->window)
			hmmc_window_region(hmm, region, hmm_frame_take_fd(frame, 0));
		else if (hmm->owner)
			renew = hmmc_region_add(&hmm->owner->regions, region, hmm_frame_take_fd(frame, 0));
		break;
	case HMM_OP_INVALIDATE:
		hmmc_dispatch_invalidate(hmm, event);
		break;
	case HMM_OP_SETTLED:
		hmmc_dispatch_settled(hmm, event);
		break;
	case HMM_OP_DEVMEM_STORE:
	case HMM_OP_DEVMEM_FETCH:
	case HMM_OP_DEVMEM_FREE:
		renew = hmmc_devmem_event(hmm, event);
		break;
	case HMM_OP_WINDOW_REVOKED:
		hmmc_window_revoked(hmm, event);
		break;
	case HMM_OP_NOTICES:
		hmmc_event_signal(hmm, ((const struct hmm_msg_notices *)event)->notices);
		break;
	case HMM_OP_TRACK_WANTED:
		hmmc_dirty_wanted(hmm);
		break;
	case HMM_OP_OWNER_GONE:
		if (!hmm->owner) {
			__atomic_store_n(&hmm->lost, 1, __ATOMIC_RELEASE);
			hmmc_event_signal(hmm, 0);
			hmmc_dispatch_release(hmm);
		}
		break;
	}
	if (renew)
		hmmc_connection_renew(hmm->connection);
}

static int reopen_peer(struct hmm *hmm)
{
	uint64_t end = hmmc_connection_end(hmm->connection);
	struct hmm_msg_open_peer message;
	int error;

	for (;;) {
		HMM_MSG_INIT(message, HMM_OP_OPEN_PEER, 0);
		error = hmmc_connection_exchange(hmm->connection, &message, &hmm->key, 1);
		if ((error != -ESTALE && error != -ENOENT && error != -EBADF) ||
		    clock_ms() >= end ||
		    __atomic_load_n(&hmm->connection->closing, __ATOMIC_ACQUIRE))
			break;
		/* Its owner has not come back yet. */
		nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
	}
	return error ? error : map_peer(hmm, hmm->connection->frame);
}

/* A restarted hmmd makes the devices of an owner's mirrors itself, from the ledger. */
static int restore_owner(struct hmm *hmm, bool anew)
{
	int error = anew ? hmmc_owner_open_anew(hmm->owner) : hmmc_owner_reopen(hmm->owner);

	/* Closed in good order, which nobody could be told: the connection was broken too long, or hmmd killed in the middle of its farewell. */
	if (error == -ENODATA && !anew && hmmc_owner_is_home(hmm->owner)) {
		anew = hmm->connection->parted = true;
		error = hmmc_owner_open_anew(hmm->owner);
	}
	if (!error)
		error = hmmc_device_restore(hmm);
	if (!error)
		error = hmmc_mirror_restore(hmm, !anew);
	if (!error)
		error = hmmc_event_restore(hmm);
	if (!error && anew)
		error = hmmc_advice_restate(hmm);
	if (!error)
		hmmc_dispatch_anew(hmm);
	/* What must not move is known before a driver can come by the key and ask for it. */
	if (!error)
		error = hmmc_statement_restore(hmm);
	if (!error)
		error = export_again(hmm);
	if (!error && !anew)
		error = hmmc_owner_reopen_done(hmm->owner);
	return error;
}

static int restore_peer(struct hmm *hmm)
{
	int error = reopen_peer(hmm);

	if (!error)
		error = hmmc_device_restore(hmm);
	if (!error)
		error = hmmc_mirror_restore(hmm, false);
	if (!error)
		error = hmmc_event_restore(hmm);
	if (!error)
		hmmc_dispatch_anew(hmm);
	if (!error)
		error = hmmc_window_restore(hmm);
	return error;
}

static int restore(struct hmm *hmm)
{
	if (hmm->owner && hmm->owner->orders)
		return restore_owner(hmm, hmm->connection->parted && hmmc_owner_is_home(hmm->owner));
	if (!hmm->owner && hmm->table)
		return restore_peer(hmm);
	return 0;	/* it is still being opened, and its request will be sent again */
}

int hmmc_space_restore(struct hmm *hmm)
{
	int error;

	/* Held where lists lose an entry, so that none goes while it is being told. */
	futex_lock(&hmm->restore_lock);
	error = restore(hmm);
	futex_unlock(&hmm->restore_lock);
	if (error && error != EXCHANGE_LOST)
		hmmc_log(HMMC_LOG_WARNING, "a new hmmd does not take over: %s",
			 hmm->connection->text[0] ? hmm->connection->text : strerror(-error));
	return error;
}

void hmmc_space_down(struct hmm *hmm)
{
	hmmc_log(HMMC_LOG_WARNING, "hmmd is gone; waiting %u ms for another",
		 hmm->connection->grace_ms);
	/* Acknowledgements that the dead hmmd waited for are void: the next asks again. */
}

void hmmc_space_late(struct hmm *hmm)
{
	/* Before the owner takes its pages back, so that no store of the driver gets lost. */
	hmmc_window_freeze(hmm, true);
}

void hmmc_space_lost(struct hmm *hmm)
{
	__atomic_store_n(&hmm->lost, 1, __ATOMIC_RELEASE);
	hmmc_window_freeze(hmm, true);
	hmmc_window_abandon(hmm);
	if (hmm->owner && hmm->owner->orders)
		hmmc_rescuer_call(&hmm->owner->rescuer);
	hmmc_event_signal(hmm, 0);
	hmmc_dispatch_release(hmm);
}
