/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * recover.c - an owner that outlived an earlier hmmd. Runs on the owner's
 * worker.
 *
 * The library hands back what it held: userfaultfd, table, ledger, orders,
 * shadows. Then, in this order: nobody may begin anything (the hold is up);
 * what the agent has not begun is taken back, what it has begun is waited for;
 * every block in transit is settled (settle.c); the journal is replayed; sequence
 * numbers become even.
 *
 * Then the windows have to come back before anything else happens: their drivers
 * go on meanwhile, and a page that came home unprotected would lose what they
 * write. The ledger says how many there were and whose; a driver that has died is
 * not waited for, nor one that stays away for longer than its library keeps
 * windows open. A driver that is called back was perhaps not told of the last
 * change, so its library has it let go of everything, and says so (MIRROR_READY).
 * Last, everybody is woken, since faults that the dead hmmd had read are
 * not delivered again.
 *
 * A ledger that an earlier hmmd wrote is read (remake_adapt()). One of a version that this hmmd does not know is refused: the
 * library brings everything home by itself.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/copies.h"
#include "engine/fork.h"
#include "engine/graft.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

#define AGENT_LOOK_NS	(200 * NS_PER_US)
#define WINDOWS_LOOK_NS	(2 * NS_PER_MS)

/* All that can be mapped: the kernel refuses ranges that end higher. */
#define WAKE_START	0x10000UL
#define WAKE_END	(HMM_VA_END - HMM_PAGE_SIZE)

static int reply_empty(struct letter *letter, uint16_t op, size_t size)
{
	return letter_reply(letter, op, size) ? 0 : letter_fail(letter, -ENOMEM, "out of memory");
}

/* A memfd of this size that can't shrink under us, made by an hmmd of this uid; or -EBADF. */
static int check_memfd(int fd, uint64_t size)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != size || st.st_uid != geteuid() || seals < 0 ||
	    !(seals & F_SEAL_SHRINK))
		return -EBADF;
	return 0;
}

/* The library holds it read-only; its mode lets hmmd's uid have more. */
static int reopen_writable_consume_fd(int fd, uint64_t size)
{
	char path[32];
	int r = check_memfd(fd, size), writable = -1;

	if (!r) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		writable = open(path, O_RDWR | O_CLOEXEC);
		r = writable < 0 ? -errno : 0;
	}
	close(fd);
	return r ? r : writable;
}

/* Again and again, until the grace period is over and the library does what this hmmd can't. Said of the first. */
static int refuse(const struct owner *owner, struct letter *letter, const char *what, uint32_t version, uint32_t low, uint32_t high)
{
	if (!owner->worker->refused)
		log_warn("%s, pid %d: its %s has version %u, this hmmd knows %u to %u: it is not taken over, and brings everything home by itself",
			 owner->name, owner->pid, what, version, low, high);
	owner->worker->refused = true;
	return letter_fail(letter, -EPROTO, "the %s has version %u, this hmmd knows %u to %u: the library brings everything home",
			   what, version, low, high);
}

static int take_over(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_reopen *message = (const void *)letter->message;
	uint64_t seen;
	int r;

	owner->uffd = letter_take_fd(letter, 0);
	owner->mem = letter_take_fd(letter, 1);
	owner->pagemap = letter_take_fd(letter, 2);
	owner->maps = letter_take_fd(letter, 3);
	owner->smaps = letter_take_fd(letter, 4);
	owner->table_fd = reopen_writable_consume_fd(letter_take_fd(letter, 5), HMM_TABLE_SIZE);
	owner->ledger_fd = reopen_writable_consume_fd(letter_take_fd(letter, 6), HMM_LEDGER_SIZE);
	owner->orders_fd = letter_take_fd(letter, 7);
	owner->pulse_fd = letter_take_fd(letter, 8);
	owner->done.fd = letter_take_fd(letter, 9);
	owner->slots_addr = message->slots_addr;
	owner->slots = message->slots_count;
	if (owner->table_fd < 0 || owner->ledger_fd < 0 || check_memfd(owner->orders_fd, HMM_ORDERS_SIZE) ||
	    check_memfd(owner->pulse_fd, sizeof(struct hmm_pulse)) ||
	    !owner->slots || owner->slots > HMM_SLOTS_MAX || owner->slots_addr % HMM_BLOCK_SIZE ||
	    owner->slots_addr >= HMM_VA_END - owner->slots * HMM_BLOCK_SIZE)
		return letter_fail(letter, -EBADF, "what was handed back is not what hmmd once made");
	/* A userfaultfd that has shaken hands refuses to do so again; anything else is none. */
	if (owner_check_proc(owner) || !owner_is_userfaultfd(owner->uffd) ||
	    kernel_uffd_api(owner->uffd, 0, NULL) != -EINVAL)
		return letter_fail(letter, -EBADF, "a descriptor is not what it should be");
	r = owner_map_shared(owner);
	if (r)
		return letter_fail(letter, r, "no room to map the owner's state: %s", strerror(-r));
	if (owner->journal->magic == HMM_LEDGER_CLOSED)
		return letter_fail(letter, -ENODATA, "all of it is home, and its mirrors are no more: open anew");
	if (owner->journal->magic != HMM_LEDGER_MAGIC || owner->journal->version < HMM_LEDGER_OLDEST ||
	    owner->journal->version > HMM_LEDGER_VERSION)
		return refuse(owner, letter, "ledger", owner->journal->version, HMM_LEDGER_OLDEST, HMM_LEDGER_VERSION);
	/* Its library writes there, too; but what it says of this is believed to its own harm alone. */
	if (owner->orders->magic != HMM_ORDERS_MAGIC || owner->orders->version != HMM_ORDERS_VERSION)
		return refuse(owner, letter, "ring of orders", owner->orders->version, HMM_ORDERS_VERSION, HMM_ORDERS_VERSION);
	/* A rescuer that has begun, or a daemon that is not dead, keeps it. */
	seen = __atomic_load_n(&owner->orders->incarnation, __ATOMIC_SEQ_CST);
	if (seen == HMM_INCARNATION_RESCUE || owner->pulse->dead ||
	    !__atomic_compare_exchange_n(&owner->orders->incarnation, &seen,
					 owner->worker->engine->incarnation, false, __ATOMIC_SEQ_CST,
					 __ATOMIC_SEQ_CST))
		return letter_fail(letter, -ESTALE, "the owner is being rescued without a daemon");
	remake_adapt(owner->journal);
	fcntl(owner->uffd, F_SETFL, O_NONBLOCK);
	owner->journal->incarnation = owner->worker->engine->incarnation;
	owner->features = (owner->worker->engine->features & ~(HMM_FEATURE_MOVE | HMM_FEATURE_EVENT_FORK)) |
			  (owner->journal->features & (HMM_FEATURE_MOVE | HMM_FEATURE_EVENT_FORK));
	owner->open_flags = owner->journal->open_flags;
	owner_note_grace(owner);
	owner_take_policy(owner);
	owner_open_attributes(owner);
	journal_take_over(owner);
	owner->orders->agent_tid = message->agent_tid;
	__atomic_store_n(&owner->orders->splitting, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&owner->orders->hold, 1, __ATOMIC_SEQ_CST);
	return 0;
}

/* The last hmmd may have died between an order and the bell: nobody else wakes the agent for it. */
static void take_back_orders(struct owner *owner)
{
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++) {
		uint32_t *state = &owner->orders->ring[i].state;
		uint32_t expected = HMM_ORDER_QUEUED;

		if (!__atomic_compare_exchange_n(state, &expected, HMM_ORDER_CANCELLED, false,
						 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
			expected = HMM_ORDER_RUNNING;
			__atomic_compare_exchange_n(state, &expected, HMM_ORDER_CANCELLED, false,
						    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		}
	}
	order_ring(owner);
}

static int reply_reopen(struct owner *owner, struct letter *letter)
{
	struct hmm_msg_reopen_reply *reply = letter_reply(letter, HMM_OP_REOPEN_REPLY, sizeof(*reply));

	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	reply->owner = owner->id;
	reply->features = owner->features;
	return 0;
}

/* It comes again as one that this hmmd does not know: under its number there may be another. */
static void give_back(struct owner *owner, const struct letter *letter)
{
	const struct hmm_msg_reopen *message = (const void *)letter->message;
	uint64_t seen = owner->worker->engine->incarnation;

	if (owner->orders)
		__atomic_compare_exchange_n(&owner->orders->incarnation, &seen, message->incarnation, false,
					    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	owner->peer = 0;
	owner->abandoned = true;
	owner_free(owner);
}

/* What was on its way when the connection broke may not have come. */
static void tell_again(struct owner *owner)
{
	for (unsigned int i = 0; i < MIRRORS_MAX; i++)
		if (owner->mirror[i])
			mirror_tell_again(owner->mirror[i]);
	owner->tracker_asked = 0;
}

void recover_reopen(struct worker *worker, struct letter *letter)
{
	struct owner *owner = owner_by_id(worker, letter->owner);

	if (worker->going) {
		letter_fail(letter, -ESHUTDOWN, "hmmd is going away");
	} else if (owner) {
		/* Only its connection broke; this hmmd has kept everything. */
		if (owner->peer || owner->closing || owner->uid != letter->uid) {
			letter_fail(letter, -ESTALE, "owner %u is gone, or somebody else's", owner->id);
		} else {
			owner->peer = letter->peer;
			if (!reply_reopen(owner, letter))
				tell_again(owner);
		}
	} else {
		owner = owner_new(worker, letter);
		if (!owner) {
			letter_fail(letter, -ENOMEM, "out of memory for another owner");
		} else if (take_over(owner, letter) || remake_mirrors(owner, letter)) {
			give_back(owner, letter);
		} else {
			owner->recovering = true;
			settle_registrations(owner);
			take_back_orders(owner);
			reply_reopen(owner, letter);
		}
	}
	worker_reply(worker, letter);
}

/* ---- what follows REOPEN ------------------------------------------------------------ */

static int reopen_mirror(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_reopen_mirror *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, owner->id << 8 | (message->mirror & 0xff));
	struct hmm_msg_reopen_mirror_reply *reply;

	if (!mirror)
		return letter_fail(letter, -ENOENT, "the ledger knows no mirror %u", message->mirror & 0xff);
	reply = letter_reply(letter, HMM_OP_REOPEN_MIRROR_REPLY, sizeof(*reply));
	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	/* Whether it is tracked was said when it was registered. */
	mirror_note_driver(mirror, letter->peer,
			   (message->flags & ~HMM_MIRROR_FLAGS_TRACKED) | (mirror->flags & HMM_MIRROR_FLAGS_TRACKED),
			   letter->pid);
	reply->mirror = mirror->id;
	return 0;
}

static int reopen_region(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_reopen_region *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, owner->id << 8 | (message->mirror & 0xff));
	int r;

	if (!owner->recovering || owner->settled)
		return reply_empty(letter, HMM_OP_REOPEN_REGION_REPLY,
				   sizeof(struct hmm_msg_reopen_region_reply));
	if (!mirror)
		return letter_fail(letter, -ENOENT, "the ledger knows no mirror %u", message->mirror & 0xff);
	if (message->base % HMM_REGION_SIZE || message->base >= HMM_VA_END)
		return letter_fail(letter, -EINVAL, "%#lx is no region's address", message->base);
	/* Its connection broke in the middle of this: handed over before. */
	if (shadow_find(&mirror->shadows, message->base))
		return reply_empty(letter, HMM_OP_REOPEN_REGION_REPLY,
				   sizeof(struct hmm_msg_reopen_region_reply));
	r = check_memfd(letter->fds[0], HMM_REGION_SIZE);
	if (!r)
		r = shadow_adopt_consume_fd(&mirror->shadows, mirror->device->pool, message->base,
					    letter_take_fd(letter, 0));
	if (r)
		return letter_fail(letter, r, "the shadow of %#lx can't be taken over: %s", message->base,
				   strerror(-r));
	return reply_empty(letter, HMM_OP_REOPEN_REGION_REPLY,
			   sizeof(struct hmm_msg_reopen_region_reply));
}

/* What a driver needs to come back. */
bool recover_serves(const struct owner *owner, uint16_t opcode)
{
	switch (opcode) {
	case HMM_OP_NOTICES_OPEN:
	case HMM_OP_NOTICES_CLOSE:
		return true;	/* so that a listener sees what is settled */
	case HMM_OP_OPEN_PEER:
	case HMM_OP_MIRROR_REGISTER:
	case HMM_OP_WINDOW_MAP:
	case HMM_OP_WINDOW_ARMED:
	case HMM_OP_ACK:
	case HMM_OP_DEVMEM_READY:
	case HMM_OP_DEVMEM_STORED:	/* of the last hmmd: before what it says here can come up */
	case HMM_OP_DEVMEM_FETCHED:
		return owner->settled;
	default:
		return false;
	}
}

/* They were prepared while the last hmmd lived. */
static void hold_forks(struct owner *owner, const struct hmm_msg_reopen_done *message)
{
	for (uint32_t i = 0; i < message->count; i++) {
		if (fork_hold(owner, message->forks[i]) == 0)
			continue;
		log_error("owner %u: it forks more than can be noted: a child may find zeros where a device takes a page",
			  owner->id);
		return;
	}
}

void recover_request(struct owner *owner, struct letter *letter)
{
	switch (letter->message->opcode) {
	case HMM_OP_REOPEN_MIRROR:
		reopen_mirror(owner, letter);
		break;
	case HMM_OP_REOPEN_REGION:
		reopen_region(owner, letter);
		break;
	case HMM_OP_REOPEN_DONE:
		if (owner->recovering && !owner->settled) {
			/* Of a connection that broke meanwhile. */
			if (owner->reopen_done) {
				letter_fail(owner->reopen_done, -ESTALE, "asked again");
				worker_reply(owner->worker, owner->reopen_done);
			}
			owner->reopen_done = letter;
			hold_forks(owner, (const void *)letter->message);
			worker_alarm(owner->worker, owner->worker->now);
			return;		/* answered when everything is settled */
		}
		reply_empty(letter, HMM_OP_REOPEN_DONE_REPLY, sizeof(struct hmm_msg_reopen_done_reply));
		break;
	case HMM_OP_MIRROR_READY:
		mirror_ready(owner, letter);
		break;
	case HMM_OP_EXCLUDE:
		/* What it said before is known before a driver can ask for anything. */
		exclude_restate(owner, letter);
		break;
	default:
		/* Not before its pages are where the ledger says. The library asks again. */
		letter_fail(letter, -EAGAIN, "the owner is being taken over after a restart; try again");
	}
	worker_reply(owner->worker, letter);
}

/* ---- settling ------------------------------------------------------------------------- */

static bool agent_idle(const struct owner *owner)
{
	const struct hmm_orders *orders = owner->orders;
	uint32_t consumed = __atomic_load_n(&orders->consumed, __ATOMIC_SEQ_CST);
	uint32_t produced = __atomic_load_n(&orders->produced, __ATOMIC_SEQ_CST);

	if (consumed != produced)
		return false;
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++) {
		uint32_t state = __atomic_load_n(&orders->ring[i].state, __ATOMIC_SEQ_CST);

		if (state == HMM_ORDER_RUNNING || state == HMM_ORDER_COMMIT || state == HMM_ORDER_FILLING)
			return false;
	}
	return true;
}

static void wake_block(struct block *block, void *data)
{
	(void)data;
	if (block->record->flags & HMM_BLOCK_ARMED)
		fault_wake(block->owner, block->addr, HMM_BLOCK_SIZE);
}

/*
 * Everybody, for more is registered than the ledger knows of: what was mapped anew while the map was changing (register_again()), what a
 * mapping has grown by. Who waits there is as good as forgotten, if the dead hmmd had read his fault. The kernel refuses a range that begins
 * below vm.mmap_min_addr, which may be higher than usual: then what is known at least.
 */
static void wake_all(struct owner *owner)
{
	if (kernel->uffd_wake(owner->uffd, WAKE_START, WAKE_END - WAKE_START) == -EINVAL)
		block_for_each(owner, 0, HMM_VA_END, wake_block, NULL);
}

static void note_order(struct owner *owner, const struct hmm_order *order)
{
	if (owner->next_serial < order->serial)
		owner->next_serial = order->serial;
	if (owner->next_epoch < order->epoch)
		owner->next_epoch = order->epoch;
}

/*
 * What they did is in the ledger, and their events are applied. An event that is read from now on is the program's doing, whatever
 * order was given for those pages once.
 */
static void forget_orders(struct owner *owner)
{
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++)
		owner->orders->ring[i].epoch = 0;
}

static void settle(struct owner *owner)
{
	owner->produced = owner->reaped = __atomic_load_n(&owner->orders->produced, __ATOMIC_SEQ_CST);
	for (unsigned int i = 0; i < HMM_ORDERS_RING; i++)
		note_order(owner, &owner->orders->ring[i]);
	copies_recover_table(owner);
	owner->pages_settled = settle_ledger(owner);
	graft_recover(owner);
	far_recover(owner);
	journal_replay(owner);
	forget_orders(owner);
}

/* The first thread's state, and how many threads there are; 0 or -errno. */
static int look_at_process(pid_t pid, char *state, unsigned int *threads)
{
	char path[32], line[128];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	file = fopen(path, "re");
	if (!file)
		return -errno;
	while (fgets(line, sizeof(line), file)) {
		sscanf(line, "State: %c", state);
		sscanf(line, "Threads: %u", threads);
	}
	fclose(file);
	return 0;
}

bool process_is_alive(pid_t pid)
{
	unsigned int threads = 2;
	char state = 'R';

	if (look_at_process(pid, &state, &threads) == -ENOENT)
		return false;
	/* A first thread that has ended may have left others. */
	return (state != 'Z' && state != 'X') || threads > 1;
}

bool process_is_stopped(pid_t pid)
{
	struct dirent *entry;
	bool stopped = false;
	char path[32];
	DIR *folder;

	if (!pid)
		return false;
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	folder = opendir(path);
	/* The first may have ended, and others may be in the kernel, which a stop waits for. */
	while (folder && !stopped && (entry = readdir(folder))) {
		pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);
		unsigned int threads;
		char state = 'R';

		stopped = thread && look_at_process(thread, &state, &threads) == 0 &&
			  (state == 'T' || state == 't');
	}
	if (folder)
		closedir(folder);
	return stopped;
}

static void stop_waiting(struct mirror *mirror)
{
	struct hmm_journal_mirror *note = &mirror->owner->journal->mirror[mirror->index];

	note->windows -= mirror->awaited < note->windows ? mirror->awaited : note->windows;
	mirror->awaited = 0;
	mirror->unready = false;
}

static bool drivers_are_awaited(struct owner *owner, int64_t now)
{
	bool any = false;

	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		struct mirror *mirror = owner->mirror[i];
		pid_t driver;

		if (!mirror || (!mirror->awaited && !mirror->unready))
			continue;
		driver = owner->journal->mirror[i].driver;
		/* 0: it lives where hmmd can't see pids. */
		if (driver && !process_is_alive(driver)) {
			stop_waiting(mirror);
		} else if (now >= owner->windows_deadline) {
			log_warn("owner %u: the driver with pid %d did not come back to its windows or callbacks: it is not waited for any longer",
				 owner->id, driver);
			mirror->strayed |= mirror->awaited > 0;
			stop_waiting(mirror);
		} else {
			any = true;
		}
	}
	return any;
}

static void answer_done(struct owner *owner)
{
	struct letter *letter = owner->reopen_done;
	struct hmm_msg_reopen_done_reply *reply =
		letter_reply(letter, HMM_OP_REOPEN_DONE_REPLY, sizeof(*reply));

	if (reply)
		reply->settled = owner->pages_settled;
	else
		letter_fail(letter, -ENOMEM, "out of memory for the answer");
	worker_reply(owner->worker, letter);
	owner->reopen_done = NULL;
}

static void go_on(struct owner *owner)
{
	owner->recovering = false;
	for (unsigned int i = 0; i < owner->slots; i++)
		slot_release(owner, i);
	if (owner_watch(owner))
		log_error("owner %u: its userfaultfd can't be watched", owner->id);
	order_release_hold(owner);
	mirror_empty_copies(owner);
	wake_all(owner);
	event_read(owner);
	invalidate_restart(owner);
	log_info("owner %u: %s, pid %d: taken over, %lu pages were in transit", owner->id, owner->name,
		 owner->pid, owner->pages_settled);
	if (owner->close_after)
		owner_close(owner);
}

/* Its library took the pages back meanwhile: whatever is known here is void. */
static bool is_rescued(const struct owner *owner)
{
	return __atomic_load_n(&owner->orders->incarnation, __ATOMIC_SEQ_CST) == HMM_INCARNATION_RESCUE;
}

bool recover_tick(struct owner *owner, int64_t now)
{
	if (is_rescued(owner)) {
		if (owner->reopen_done) {
			letter_fail(owner->reopen_done, -ESTALE, "its library has brought everything home");
			worker_reply(owner->worker, owner->reopen_done);
			owner->reopen_done = NULL;
		}
		return false;
	}
	/* However long it takes: only its library knows where its pages are. */
	if (!owner->settled && !owner->reopen_done)
		return owner->peer;
	if (!owner->gone && !owner->peer)
		owner->gone = owner_mm_is_gone(owner);
	if (!owner->gone && !owner->settled) {
		if (!agent_idle(owner)) {
			/* One that was about to commit has stepped back since, and waits for the hold to end. */
			take_back_orders(owner);
			/*
			 * The zap of the base engine waits for its event to be read: read, apply later. Not while a MOVE
			 * may be on its way: it would take what is mapped there the moment that the event is read.
			 */
			if (!order_commits(owner))
				journal_read_only(owner);
			worker_alarm(owner->worker, now + AGENT_LOOK_NS);
			return true;
		}
		settle(owner);
		owner->settled = true;
		/* The grace period: by then its library has closed a driver's windows. */
		owner->windows_deadline = now + owner_grace_ns(owner);
		if (!owner->gone)
			answer_done(owner);
	}
	if (owner->gone) {
		owner->recovering = false;
		if (owner->reopen_done) {
			letter_fail(owner->reopen_done, -ESTALE, "the owner is gone");
			worker_reply(owner->worker, owner->reopen_done);
			owner->reopen_done = NULL;
		}
	} else if (drivers_are_awaited(owner, now)) {
		worker_alarm(owner->worker, now + WINDOWS_LOOK_NS);
	} else {
		go_on(owner);
	}
	return true;
}
