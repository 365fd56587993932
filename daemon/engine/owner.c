/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * owner.c - owners: how they come, what they are asked, how they go. Runs on
 * the owner's worker.
 *
 * Coming: the library opens its own userfaultfd, mem, pagemap and maps and
 * passes them; hmmd shakes hands with the userfaultfd (fork events need hmmd's
 * privilege, not the owner's), registers the staging slots, makes the shared
 * memory and answers.
 *
 * Going: an owner is gone when its mm is, which ioctls say with ESRCH; a closed
 * connection is only a hint. While the mm lives, everything comes home first, and
 * windows stay until it has.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/breakage.h"
#include "engine/dma.h"
#include "engine/evict.h"
#include "engine/fork.h"
#include "engine/graft.h"
#include "engine/notice.h"
#include "engine/owner.h"
#include "engine/protect.h"
#include "engine/worker.h"
#include "log.h"
#include "tracking/tracking.h"
#include "uapi.h"

/* A process that exits closes its descriptors a moment before its mm is gone. */
#define ORPHAN_NS	(100 * NS_PER_MS)
#define TICK_NS		(2 * NS_PER_MS)
/* Blocks settle when no fault came for so long; but no later than this. */
#define QUIET_NS	(20 * NS_PER_MS)
#define LAST_NS		(2000 * NS_PER_MS)

const char *const counter_names[COUNTER_MAX] = {
	[COUNTER_FAULTS] = "faults",
	[COUNTER_FAULT_PAGES_HOME] = "fault_pages_home",
	[COUNTER_WRITE_FAULTS] = "write_faults",
	[COUNTER_HOLE_FAULTS] = "hole_faults",
	[COUNTER_RETRIES] = "retries",
	[COUNTER_EVENTS] = "events",
	[COUNTER_FORKS] = "forks",
	[COUNTER_PAGES_TO_DEVICE] = "pages_to_device",
	[COUNTER_PAGES_HOME] = "pages_home",
	[COUNTER_HUGE_TO_DEVICE] = "huge_to_device",
	[COUNTER_HUGE_HOME] = "huge_home",
	[COUNTER_ORDERS] = "orders",
	[COUNTER_ORDERS_CANCELLED] = "orders_cancelled",
	[COUNTER_WINDOW_FAULTS] = "window_faults",
	[COUNTER_COPIES_MADE] = "copies_made",
	[COUNTER_COPIES_DROPPED] = "copies_dropped",
	[COUNTER_INVALIDATIONS] = "invalidations",
	[COUNTER_LATE_DRIVERS] = "late_drivers",
	[COUNTER_REVOKED_WINDOWS] = "revoked_windows",
	[COUNTER_PINS_BROKEN] = "pins_broken",
	[COUNTER_ERRORS] = "errors",
	[COUNTER_RANGE_LOOKS] = "range_looks",
	[COUNTER_EVICTIONS] = "evictions",
	[COUNTER_PAGES_EVICTED] = "pages_evicted",
	[COUNTER_EVICTIONS_REFUSED] = "evictions_refused",
	[COUNTER_UNREACHABLE] = "unreachable",
	[COUNTER_QUIESCES] = "quiesces",
	[COUNTER_TRACK_FAULTS] = "track_faults",
	[COUNTER_TRACK_WRITTEN] = "track_written",
	[COUNTER_TRACK_PRESUMED] = "track_presumed",
	[COUNTER_SYNC_COPIED] = "sync_copied",
	[COUNTER_SYNC_ZEROED] = "sync_zeroed",
	[COUNTER_DMA_PAGES] = "dma_pages",
	[COUNTER_DMA_CUTS] = "dma_cuts",
};

void owner_count(struct owner *owner, enum counter counter, uint64_t n)
{
	atomic_fetch_add_explicit(&owner->counter[counter], n, memory_order_relaxed);
}

void owner_run(struct owner *owner)
{
	struct task *task;

	/* While it is taken over, what is queued waits: its windows may not be known. When it is handed over nothing is begun. */
	if (owner->running || owner->recovering || owner->worker->handing_over)
		return;
	owner->running = true;
	while ((task = TAILQ_FIRST(&owner->runnable))) {
		TAILQ_REMOVE(&owner->runnable, task, link);
		task->run(task);
	}
	owner->running = false;
}

struct owner *owner_by_id(struct worker *worker, uint32_t id)
{
	struct owner *owner;

	TAILQ_FOREACH(owner, &worker->owners, link)
		if (owner->id == id)
			return owner;
	return NULL;
}

/* ---- coming ------------------------------------------------------------------- */

struct owner *owner_new(struct worker *worker, struct letter *letter)
{
	struct owner *owner = calloc(1, sizeof(*owner));
	int *fds[] = {
		&owner->uffd, &owner->mem, &owner->pagemap, &owner->maps, &owner->smaps,
		&owner->pidfd, &owner->done.fd, &owner->table_fd, &owner->ledger_fd,
		&owner->orders_fd, &owner->pulse_fd,
	};

	if (owner)
		owner->farewell = letter_new(LETTER_OWNER_GONE);
	if (!owner || !owner->farewell) {
		free(owner);
		return NULL;
	}
	for (unsigned int i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		*fds[i] = -1;
	owner->worker = worker;
	owner->id = letter->owner;
	owner->peer = letter->peer;
	owner->uid = letter->uid;
	owner->pid = letter->pid;
	memcpy(owner->name, letter->name, sizeof(owner->name));
	owner->pidfd = letter->pidfd;
	letter->pidfd = -1;
	TAILQ_INIT(&owner->windows);
	TAILQ_INIT(&owner->listeners);
	TAILQ_INIT(&owner->slot_waiters);
	TAILQ_INIT(&owner->fork_waiters);
	LIST_INIT(&owner->forks);
	TAILQ_INIT(&owner->runnable);
	TAILQ_INIT(&owner->acks);
	TAILQ_INIT(&owner->asks);
	TAILQ_INIT(&owner->retry);
	TAILQ_INIT(&owner->settling);
	LIST_INIT(&owner->protections);
	TAILQ_INIT(&owner->holds);
	TAILQ_INIT(&owner->pinnings);
	TAILQ_INIT(&owner->outgoing);
	TAILQ_INIT(&owner->room_waiters);
	TAILQ_INSERT_TAIL(&worker->owners, owner, link);
	pthread_mutex_lock(&worker->engine->lock);
	TAILQ_INSERT_TAIL(&worker->engine->owners, owner, registry);
	pthread_mutex_unlock(&worker->engine->lock);
	return owner;
}

int owner_handshake(struct owner *owner, uint64_t open_flags)
{
	const struct engine *engine = owner->worker->engine;
	uint64_t want = UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
			UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			UFFD_FEATURE_THREAD_ID;
	bool move = engine->features & HMM_FEATURE_MOVE && !(open_flags & HMM_OPEN_FLAGS_BASE_ENGINE);
	int r = -EPERM;

	owner->features = engine->features & ~(HMM_FEATURE_MOVE | HMM_FEATURE_EVENT_FORK);
	owner->open_flags = open_flags;
	if (move)
		owner->features |= HMM_FEATURE_MOVE;
	if (engine->facts.event_fork) {
		r = kernel_uffd_api(owner->uffd, want | UFFD_FEATURE_EVENT_FORK, NULL);
		if (!r)
			owner->features |= HMM_FEATURE_EVENT_FORK;
	}
	if (r == -EPERM)
		r = kernel_uffd_api(owner->uffd, want, NULL);
	return r;
}

static int shared_memfd(int *fd, const char *name, uint64_t size)
{
	if (*fd >= 0)
		return 0;
	*fd = kernel->memfd_new(name, size, 0);
	return *fd < 0 ? *fd : 0;
}

static int map_all(int fd, uint64_t size, void *result)
{
	void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);

	if (map == MAP_FAILED)
		return -errno;
	madvise(map, size, MADV_DONTDUMP);
	*(void **)result = map;
	return 0;
}

/* Table, ledger, orders and pulse: made unless a restart brought them. */
int owner_map_shared(struct owner *owner)
{
	int r = shared_memfd(&owner->table_fd, "hmm-table", HMM_TABLE_SIZE);

	if (!r)
		r = shared_memfd(&owner->ledger_fd, "hmm-ledger", HMM_LEDGER_SIZE);
	if (!r)
		r = shared_memfd(&owner->orders_fd, "hmm-orders", HMM_ORDERS_SIZE);
	if (!r)
		r = shared_memfd(&owner->pulse_fd, "hmm-pulse", sizeof(struct hmm_pulse));
	if (!r)
		r = map_all(owner->table_fd, HMM_TABLE_SIZE, &owner->table);
	if (!r)
		r = map_all(owner->ledger_fd, HMM_LEDGER_SIZE, &owner->ledger);
	if (!r)
		r = map_all(owner->orders_fd, HMM_ORDERS_SIZE, &owner->orders);
	if (!r)
		r = map_all(owner->pulse_fd, sizeof(struct hmm_pulse), &owner->pulse);
	if (!r)
		owner->journal = (struct hmm_journal *)((char *)owner->ledger + HMM_JOURNAL_OFFSET);
	return r;
}

void owner_open_attributes(struct owner *owner)
{
	void *shared = (char *)owner->ledger + HMM_ATTRIBUTES_OFFSET;

	if (!attribute_map_open(&owner->attributes, shared))
		log_error("owner %u: what was said of its ranges is damaged, and forgotten", owner->id);
}

static void owner_ready(struct source *source)
{
	struct owner *owner = (struct owner *)((char *)source - offsetof(struct owner, source));

	event_read(owner);
	owner_run(owner);
}

static void agent_ready(struct source *source)
{
	struct owner *owner = (struct owner *)((char *)source - offsetof(struct owner, done));
	uint64_t n;

	if (read(source->fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		log_warn("owner %u: its agent's eventfd: %m", owner->id);
	order_reap(owner);
	owner_run(owner);
}

int owner_watch(struct owner *owner)
{
	struct reactor *reactor = owner->worker->reactor;
	int r;

	/* The client shares the description: hmmd never reads it but after a poll. */
	fcntl(owner->uffd, F_SETFL, O_NONBLOCK);
	r = reactor_add(reactor, &owner->source, owner->uffd, owner_ready);
	if (!r)
		r = reactor_add(reactor, &owner->done, owner->done.fd, agent_ready);
	return r;
}

int owner_read_only(int fd)
{
	char path[32];
	int copy;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	copy = open(path, O_RDONLY | O_CLOEXEC);
	return copy < 0 ? -errno : copy;
}

static int reply_open(struct owner *owner, struct letter *letter)
{
	struct hmm_msg_open_reply *reply = letter_reply(letter, HMM_OP_OPEN_REPLY, sizeof(*reply));
	int *fds = letter->reply_fds;

	if (!reply)
		return -ENOMEM;
	fds[0] = owner_read_only(owner->table_fd);
	fds[1] = owner_read_only(owner->ledger_fd);
	fds[2] = fcntl(owner->orders_fd, F_DUPFD_CLOEXEC, 3);
	fds[3] = fcntl(owner->pulse_fd, F_DUPFD_CLOEXEC, 3);
	fds[4] = fcntl(owner->done.fd, F_DUPFD_CLOEXEC, 3);
	letter->n_reply_fds = 5;
	for (unsigned int i = 0; i < 5; i++)
		if (fds[i] < 0)
			return -EMFILE;
	reply->owner = owner->id;
	reply->features = owner->features;
	return 0;
}

static int check_descriptors(struct owner *owner)
{
	struct kernel_vma vma;
	uint64_t entry;
	char byte;
	ssize_t n;

	if (!owner_is_userfaultfd(owner->uffd) || owner_check_proc(owner) ||
	    kernel->pagemap_read(owner->pagemap, owner->slots_addr, 1, &entry))
		return -EBADF;
	if (mapping_at(owner, owner->slots_addr, &vma) || vma.start > owner->slots_addr)
		return -EBADF;
	/* Not from a slot: a read would put a page where MOVE wants none. */
	if (mapping_at(owner, 0, &vma))
		return -EBADF;
	n = kernel->mem_read(owner->mem, vma.start, &byte, 1);
	return n == 1 ? 0 : -EBADF;
}

void owner_take_policy(struct owner *owner)
{
	switch (owner->journal->policy) {
	case MPOL_PREFERRED:
	case MPOL_BIND:
	case MPOL_INTERLEAVE:
	case MPOL_PREFERRED_MANY:
	case 6:				/* MPOL_WEIGHTED_INTERLEAVE, Linux 6.9 */
		if (owner->journal->policy_nodes)
			break;
		/* fall through */
	default:
		/* Local to whoever allocates: that is hmmd here, whose processor may be of another node. */
		owner->policy = MPOL_DEFAULT;
		return;
	}
	owner->policy = (int)owner->journal->policy;
	owner->policy_nodes = owner->journal->policy_nodes;
}

void owner_policy(struct owner *owner, bool follow)
{
	int r;

	if (owner->policy == MPOL_DEFAULT)
		return;
	r = follow ? kernel->policy(owner->policy, owner->policy_nodes) : kernel->policy(MPOL_DEFAULT, 0);
	if (!r)
		return;
	/* Its nodes may be gone, or hmmd may not have them. */
	log_warn("owner %u: its memory policy is not hmmd's to follow: %s", owner->id, strerror(-r));
	owner->policy = MPOL_DEFAULT;
}

static int owner_begin(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_open *message = (const void *)letter->message;
	int r;

	owner->uffd = letter_take_fd(letter, 0);
	owner->mem = letter_take_fd(letter, 1);
	owner->pagemap = letter_take_fd(letter, 2);
	owner->maps = letter_take_fd(letter, 3);
	owner->smaps = letter_take_fd(letter, 4);
	owner->slots_addr = message->slots_addr;
	owner->slots = message->slots_count;
	if (!owner->slots || owner->slots > HMM_SLOTS_MAX || owner->slots_addr % HMM_BLOCK_SIZE ||
	    owner->slots_addr >= HMM_VA_END - owner->slots * HMM_BLOCK_SIZE)
		return letter_fail(letter, -EINVAL, "%u staging slots at %#lx: 1 to %u, aligned to 2 MiB",
				   owner->slots, owner->slots_addr, HMM_SLOTS_MAX);
	r = check_descriptors(owner);
	if (r)
		return letter_fail(letter, r,
				   "a descriptor is not what it should be: a userfaultfd, and the owner's own files in /proc/self");
	r = owner_handshake(owner, message->flags);
	if (r)
		return letter_fail(letter, r, "the userfaultfd refused the handshake: %s%s", strerror(-r),
				   r == -EINVAL ? " (is it one, and fresh?)" : "");
	owner->done.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = owner->done.fd < 0 ? -errno : owner_map_shared(owner);
	if (r)
		return letter_fail(letter, r, "no shared memory for the owner: %s", strerror(-r));
	r = kernel->uffd_register(owner->uffd, owner->slots_addr, owner->slots * HMM_BLOCK_SIZE,
				  UFFDIO_REGISTER_MODE_MISSING);
	if (r)
		return letter_fail(letter, r, "the staging slots can't be registered: %s", strerror(-r));
	owner->orders->magic = HMM_ORDERS_MAGIC;
	owner->orders->version = HMM_ORDERS_VERSION + (broken("newer-orders") ? 1 : 0);
	owner->orders->incarnation = owner->worker->engine->incarnation;
	owner->orders->agent_tid = message->agent_tid;
	owner->orders->slots_addr = owner->slots_addr;
	owner->orders->slots_count = owner->slots;
	owner->journal->magic = HMM_LEDGER_MAGIC;
	owner->journal->version = HMM_LEDGER_VERSION + (broken("newer-ledger") ? 1 : 0) - (broken("older-ledger") ? 1 : 0);
	owner->journal->incarnation = owner->worker->engine->incarnation;
	owner->journal->features = owner->features;
	owner->journal->open_flags = message->flags;
	owner->journal->policy = message->policy;
	owner->journal->policy_nodes = message->policy_nodes;
	owner_note_grace(owner);
	owner_take_policy(owner);
	owner_open_attributes(owner);
	r = owner_watch(owner);
	if (!r)
		r = reply_open(owner, letter);
	return r ? letter_fail(letter, r, "no room for another owner: %s", strerror(-r)) : 0;
}

void owner_open(struct worker *worker, struct letter *letter)
{
	struct owner *owner = worker->going ? NULL : owner_new(worker, letter);

	if (!owner) {
		if (worker->going)
			letter_fail(letter, -ESHUTDOWN, "hmmd is going away");
		else
			letter_fail(letter, -ENOMEM, "out of memory for another owner");
	} else if (owner_begin(owner, letter)) {
		owner->peer = 0;
		owner_free(owner);
	} else {
		log_info("owner %u: %s, pid %d, uid %u: mirrored by %s", owner->id, owner->name,
			 owner->pid, owner->uid,
			 owner->features & HMM_FEATURE_MOVE ? "UFFDIO_MOVE" : "protect and zap");
	}
	worker_reply(worker, letter);
}

/* ---- what it is asked ------------------------------------------------------------ */

static int open_peer(struct owner *owner, struct letter *letter)
{
	struct hmm_msg_open_peer_reply *reply =
		letter_reply(letter, HMM_OP_OPEN_PEER_REPLY, sizeof(*reply));

	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	letter->reply_fds[0] = owner_read_only(owner->table_fd);
	letter->reply_fds[1] = owner_read_only(owner->pulse_fd);
	letter->n_reply_fds = 2;
	if (letter->reply_fds[0] < 0 || letter->reply_fds[1] < 0)
		return letter_fail(letter, -EMFILE, "out of descriptors");
	reply->owner = owner->id;
	reply->pid = (uint32_t)owner->pid;
	reply->features = owner->features;
	return 0;
}

static void reply_pages(struct owner *owner, struct letter *letter, uint64_t pages)
{
	/* Who asked may count the pages of its own memory next. */
	far_flush_all(owner);
	if (letter->message->opcode == HMM_OP_DRAIN) {
		struct hmm_msg_drain_reply *reply =
			letter_reply(letter, HMM_OP_DRAIN_REPLY, sizeof(*reply));

		if (reply)
			reply->pages = pages;
	} else {
		struct hmm_msg_prepare_fork_reply *reply =
			letter_reply(letter, HMM_OP_PREPARE_FORK_REPLY, sizeof(*reply));

		if (reply)
			reply->pages = pages;
	}
	if (!letter->reply)
		letter_fail(letter, -ENOMEM, "out of memory for the answer; the pages are home");
	worker_reply(owner->worker, letter);
}

static void home_done(struct owner *owner, void *data, uint64_t pages)
{
	reply_pages(owner, data, pages);
}

static void drain_owner(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_drain *message = (const void *)letter->message;
	const struct device *device = NULL;

	if (message->device)
		device = device_by_id(&owner->worker->engine->devices, message->device);
	if (message->device && !device) {
		letter_fail(letter, -ENODEV, "no device %u", message->device);
		worker_reply(owner->worker, letter);
		return;
	}
	if (!migrate_drain(owner, device, home_done, letter))
		return;
	letter_fail(letter, -ENOMEM, "out of memory: nothing was brought home; try again");
	worker_reply(owner->worker, letter);
}

struct preparation {
	struct letter *letter;
	uint64_t moves, pages;
};

/* Another thread's mremap() may have taken a page from a block that was looked at later to one that had been. */
static void home_for_fork_done(struct owner *owner, void *data, uint64_t pages)
{
	struct preparation *preparation = data;

	preparation->pages += pages;
	if (preparation->moves != owner->moves && !owner->gone) {
		preparation->moves = owner->moves;
		migrate_home_for_fork(owner, home_for_fork_done, preparation);
		return;
	}
	reply_pages(owner, preparation->letter, preparation->pages);
	free(preparation);
}

static void prepare_fork(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_prepare_fork *message = (const void *)letter->message;
	struct preparation *preparation = malloc(sizeof(*preparation));
	int r = preparation ? fork_hold(owner, message->fork) : -ENOMEM;

	if (!r) {
		*preparation = (struct preparation){ .letter = letter, .moves = owner->moves };
		migrate_home_for_fork(owner, home_for_fork_done, preparation);
		return;
	}
	free(preparation);
	letter_fail(letter, r, "pages may leave while the owner forks: %s", strerror(-r));
	worker_reply(owner->worker, letter);
}

static void forked(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_forked *message = (const void *)letter->message;

	fork_release(owner, message->fork);
	if (!letter_reply(letter, HMM_OP_FORKED_REPLY, sizeof(struct hmm_msg_forked_reply)))
		letter_fail(letter, -ENOMEM, "out of memory for the answer");
	worker_reply(owner->worker, letter);
}

void owner_request(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_ack *ack = (const void *)letter->message;

	if (owner->recovering && !recover_serves(owner, letter->message->opcode)) {
		recover_request(owner, letter);
		return;
	}
	switch (letter->message->opcode) {
	case HMM_OP_MIGRATE:
		migrate_request(owner, letter);
		return;
	case HMM_OP_DRAIN:
		drain_owner(owner, letter);
		return;
	case HMM_OP_PREPARE_FORK:
		prepare_fork(owner, letter);
		return;
	case HMM_OP_FORKED:
		forked(owner, letter);
		return;
	case HMM_OP_EXCLUDE:
		exclude_request(owner, letter);
		return;
	case HMM_OP_ADVISE:
	case HMM_OP_ATTRIBUTE:
	case HMM_OP_ATTRIBUTES:
	case HMM_OP_RESTATE:
		advise_request(owner, letter);
		return;
	case HMM_OP_MIRROR_REGISTER:
	case HMM_OP_MIRROR_UNREGISTER:
		mirror_request(owner, letter);
		return;
	case HMM_OP_DEVICE_READ:
	case HMM_OP_DEVICE_WRITE:
	case HMM_OP_ALLOC:
	case HMM_OP_FREE:
		access_request(owner, letter);
		return;
	case HMM_OP_SHARE:
	case HMM_OP_UNSHARE:
		share_request(owner, letter);
		return;
	case HMM_OP_WINDOW_MAP:
	case HMM_OP_WINDOW_ARMED:
	case HMM_OP_WINDOW_UNMAP:
		window_request(owner, letter);
		return;
	case HMM_OP_PROTECT:
		protect_request(owner, letter);
		return;
	case HMM_OP_NOTICES_OPEN:
	case HMM_OP_NOTICES_CLOSE:
		notice_request(owner, letter);
		return;
	case HMM_OP_TRACK_OPEN:
	case HMM_OP_DIRTY_START:
	case HMM_OP_DIRTY_READ:
	case HMM_OP_DIRTY_STOP:
	case HMM_OP_DIRTY_MARK:
	case HMM_OP_MIRROR_SYNC:
	case HMM_OP_COPY_OPEN:
		tracking_request(owner, letter);
		return;
	case HMM_OP_DEVMEM_READY:
	case HMM_OP_DEVMEM_STORED:
	case HMM_OP_DEVMEM_FETCHED:
		far_request(owner, letter);
		return;
	case HMM_OP_LAYOUT:
	case HMM_OP_RANGES:
	case HMM_OP_CELLS:
		residency_request(owner, letter);
		return;
	case HMM_OP_RANGE_FAULT:
	case HMM_OP_RANGE_RELEASE:
		range_request(owner, letter);
		return;
	case HMM_OP_DMA_MAP:
	case HMM_OP_DMA_UNMAP:
		dma_request(owner, letter);
		return;
	case HMM_OP_ACK:
		invalidate_ack(owner, ack->cookie, ack->status);
		letter_free(letter);
		return;
	case HMM_OP_REOPEN_MIRROR:
	case HMM_OP_REOPEN_REGION:
	case HMM_OP_REOPEN_DONE:
		recover_request(owner, letter);
		return;
	case HMM_OP_OPEN_PEER:
		open_peer(owner, letter);
		break;
	case HMM_OP_MIRROR_READY:
		mirror_ready(owner, letter);
		break;
	case HMM_OP_EXCLUSIVE_END:
		exclusive_end(owner, letter);
		break;
	default:
		letter_fail(letter, -EOPNOTSUPP, "%s is not for an owner",
			    hmm_opcode_name(letter->message->opcode));
	}
	worker_reply(owner->worker, letter);
}

/* ---- going ----------------------------------------------------------------------------- */

void owner_peer_gone(struct owner *owner, uint64_t peer)
{
	invalidate_peer_gone(owner, peer);
	window_peer_gone(owner, peer);
	mirror_peer_gone(owner, peer);
	range_peer_gone(owner, peer);
	dma_peer_gone(owner, peer);
	notice_peer_gone(owner, peer);
	tracking_peer_gone(owner, peer);
	if (owner->peer != peer)
		return;
	owner->peer = 0;
	owner->orphan_since = owner->worker->now;
	worker_alarm(owner->worker, owner->worker->now + NS_PER_MS);
}

/* Asks for something harmless; only an mm that is gone says ESRCH. */
bool owner_mm_is_gone(struct owner *owner)
{
	return kernel->uffd_protect(owner->uffd, owner->slots_addr, HMM_PAGE_SIZE, false) == -ESRCH;
}

/* What was handed back need not be what hmmd once made. */
int64_t owner_grace_ns(const struct owner *owner)
{
	const uint64_t ours = owner->worker->engine->options.grace_ms, said = owner->journal->grace_ms;
	const uint64_t longer = said > ours ? said : ours;

	return (int64_t)(longer < ENGINE_GRACE_MAX_MS ? longer : ENGINE_GRACE_MAX_MS) * NS_PER_MS;
}

void owner_note_grace(struct owner *owner)
{
	const uint64_t ours = owner->worker->engine->options.grace_ms;

	if (owner->journal->grace_ms < ours)
		owner->journal->grace_ms = ours;
}

static void close_done(struct owner *owner, void *data, uint64_t pages)
{
	(void)data;
	if (pages)
		log_debug("owner %u: %lu pages came home", owner->id, pages);
}

void owner_close(struct owner *owner)
{
	if (owner->closing)
		return;
	if (owner->recovering) {
		/* Its pages are where only its ledger knows: settled first, then closed. */
		owner->close_after = true;
		return;
	}
	owner->closing = true;
	/* The agent may be stopped, and the copies go with the owner. */
	order_cancel_syncs(owner, NULL);
	migrate_home(owner, 0, HMM_VA_END, NULL, close_done, NULL);
	worker_alarm(owner->worker, owner->worker->now + NS_PER_MS);
}

static void settle_now(struct block *block, void *data)
{
	(void)data;
	if (!block_at_rest(block))
		return;
	if (block_count(block, HMM_PAGE_COHERENT))
		block_let_go_coherent(block);
	else if (far_let_go_lost(block))
		block_settle(block);
}

/* Of an owner whose mm is gone: no call on it makes sense any more. */
static void drop_block(struct block *block, void *data)
{
	(void)data;
	block_uncharge(block, block->charged);
	block->remote = false;
	block->record->transit = HMM_TRANSIT_REST;
	block_forget(block);
}

/* Of an owner that goes on without this hmmd: its ledger stays as it is. */
static void leave_block(struct block *block, void *data)
{
	(void)data;
	block_uncharge(block, block->charged);
	block_free(block);
}

void owner_gone(struct owner *owner)
{
	owner->gone = true;
	owner->closing = true;
	/* Nobody's any more, and a mirror that leaves waits for them. */
	graft_drop(owner, 0, HMM_VA_END);
	do {
		order_abandon(owner);
		invalidate_answer_all(owner);
		far_abandon(owner);
		TAILQ_CONCAT(&owner->runnable, &owner->retry, link);
		TAILQ_CONCAT(&owner->runnable, &owner->slot_waiters, link);
		fork_release_all(owner);
		evict_wait_no_more(owner);
		owner_run(owner);
	} while (!TAILQ_EMPTY(&owner->retry) || !TAILQ_EMPTY(&owner->acks) || !owner_agent_idle(owner) ||
		 !TAILQ_EMPTY(&owner->asks));
}

static void unmap(void *map, uint64_t size)
{
	if (map)
		munmap(map, size);
}

void owner_free(struct owner *owner)
{
	struct worker *worker = owner->worker;
	int fds[] = {
		owner->uffd, owner->mem, owner->pagemap, owner->maps, owner->smaps, owner->pidfd,
		owner->done.fd, owner->table_fd, owner->ledger_fd, owner->orders_fd, owner->pulse_fd,
	};

	window_close_all(owner, NULL);
	for (unsigned int i = 0; owner->ledger && i < MIRRORS_MAX; i++)
		if (owner->mirror[i])
			dma_close(owner->mirror[i]);
	far_deinit(owner);
	if (owner->ledger)
		block_for_each(owner, 0, HMM_VA_END, owner->abandoned ? leave_block : drop_block, NULL);
	invalidate_deinit(owner);
	range_deinit(owner);
	notice_deinit(owner);
	tracking_deinit(owner);
	fork_deinit(owner);
	for (unsigned int i = 0; i < MIRRORS_MAX; i++)
		if (owner->mirror[i])
			mirror_free(owner->mirror[i]);
	reactor_remove(worker->reactor, &owner->source);
	reactor_remove(worker->reactor, &owner->done);
	if (!owner->gone && !owner->abandoned && owner->uffd >= 0 && owner->slots)
		kernel->uffd_unregister(owner->uffd, owner->slots_addr, owner->slots * HMM_BLOCK_SIZE);
	unmap(owner->table, HMM_TABLE_SIZE);
	unmap(owner->ledger, HMM_LEDGER_SIZE);
	unmap(owner->orders, HMM_ORDERS_SIZE);
	unmap(owner->pulse, sizeof(struct hmm_pulse));
	for (unsigned int i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	owner_release_pins(owner);
	/* Last: they are in the lists of tasks, which nothing looks at any more. */
	protect_deinit(owner);
	span_set_deinit(&owner->excluded);
	span_set_deinit(&owner->threads);
	free(owner->spans);

	TAILQ_REMOVE(&worker->owners, owner, link);
	pthread_mutex_lock(&worker->engine->lock);
	TAILQ_REMOVE(&worker->engine->owners, owner, registry);
	pthread_mutex_unlock(&worker->engine->lock);
	owner->farewell->owner = owner->id;
	mailbox_post(worker->engine->outbox, owner->farewell);
	free(owner);
}

static void find_out(struct block *block, void *data)
{
	if (!block_at_rest(block) || block_count(block, HMM_PAGE_DEVICE) ||
	    block_count(block, HMM_PAGE_SHARED))
		*(bool *)data = true;
}

static bool anything_is_out(struct owner *owner)
{
	bool out = false;

	block_for_each(owner, 0, HMM_VA_END, find_out, &out);
	return out;
}

/*
 * A task that waits has a letter to answer, and the owner in its hands. What is parked in a block
 * keeps that from being forgotten; whatever else waits does so in one of these lists.
 */
static bool anything_waits(const struct owner *owner)
{
	return owner->jobs || !TAILQ_EMPTY(&owner->runnable) || !TAILQ_EMPTY(&owner->retry) ||
	       !TAILQ_EMPTY(&owner->slot_waiters) || !TAILQ_EMPTY(&owner->room_waiters) ||
	       !TAILQ_EMPTY(&owner->fork_waiters);
}

static void tick_closing(struct owner *owner, int64_t now)
{
	if (owner->jobs == 0) {
		block_for_each(owner, 0, HMM_VA_END, settle_now, NULL);
		/* What cannot be punched, for a driver holds on to it, does not hold up the end. */
		if (!TAILQ_EMPTY(&owner->windows) && !anything_is_out(owner))
			window_close_all(owner, NULL);
		if (!owner->span_count && !anything_waits(owner)) {
			log_info("owner %u: everything is home", owner->id);
			owner->journal->magic = HMM_LEDGER_CLOSED;
			owner_free(owner);
			return;
		}
		if (owner->jobs == 0)
			migrate_home(owner, 0, HMM_VA_END, NULL, close_done, NULL);
	}
	worker_alarm(owner->worker, now + TICK_NS);
}

void owner_get_on(struct owner *owner, int64_t now)
{
	if (!owner_agent_idle(owner)) {
		order_reap(owner);
		order_unstick(owner, now);
	}
	if (owner->deferred_read)
		event_read(owner);
	invalidate_expire(owner, now);
	if (invalidate_deadline(owner) != INT64_MAX)
		worker_alarm(owner->worker, invalidate_deadline(owner));
}

void owner_tick(struct owner *owner, int64_t now)
{
	struct block *block;

	owner_get_on(owner, now);
	if (owner->recovering && !recover_tick(owner, now)) {
		log_warn("owner %u: its library did not finish handing things back; it may try again",
			 owner->id);
		owner->abandoned = true;
		owner_free(owner);
		return;
	}
	/* Nothing is taken from a device while its windows may not be known. */
	if (owner->recovering)
		return;
	while ((block = TAILQ_FIRST(&owner->settling))) {
		int64_t when = block->settle_at;

		/* Tidying can wait while the owner is waiting for its pages. */
		if (when < owner->last_fault + QUIET_NS && when + LAST_NS > now)
			when = owner->last_fault + QUIET_NS;
		if (when > now) {
			worker_alarm(owner->worker, when);
			break;
		}
		block_settle(block);
	}
	/* A driver that could not be told. */
	if (owner->restarting)
		invalidate_restart(owner);
	window_tick(owner, now);
	far_tick(owner, now);
	dma_tick(owner);
	fork_tick(owner, now);
	tracking_tick(owner);
	fault_retry(owner);
	evict_tick(owner, now);
	owner_run(owner);
	owner_count_pins(owner, NULL);
	if (!TAILQ_EMPTY(&owner->retry))
		worker_alarm(owner->worker, now + 50 * NS_PER_US);

	if (owner->peer == 0 && !owner->gone && !owner->recovering && owner_mm_is_gone(owner))
		owner->gone = true;
	if (owner->gone) {
		owner_gone(owner);
		log_info("owner %u: pid %d is gone", owner->id, owner->pid);
		owner_free(owner);
		return;
	}
	if (owner->peer == 0 && !owner->closing && !owner->recovering) {
		if (now - owner->orphan_since >= ORPHAN_NS)
			owner_close(owner);
		else
			worker_alarm(owner->worker, now + TICK_NS);
	}
	if (owner->closing)
		tick_closing(owner, now);
}
