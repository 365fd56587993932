/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * worker.c - the engine's threads and its door to control.
 *
 * A worker sleeps in its reactor until a userfaultfd, an agent's eventfd or a
 * letter wants it, or its alarm rings; nothing else ever blocks it. Each owner
 * belongs to the worker that its id falls on, for life.
 */
#include "engine/worker.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "engine/breakage.h"
#include "engine/evict.h"
#include "engine/far.h"
#include "engine/handover.h"
#include "log.h"
#include "tracking/tracking.h"
#include "uapi.h"

#ifndef __x86_64__
#error "hmmd is for x86-64: 47-bit addresses and its memory ordering are relied on"
#endif

int64_t clock_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

void worker_reply(struct worker *worker, struct letter *letter)
{
	letter->kind = LETTER_REPLY;
	mailbox_post(worker->engine->outbox, letter);
}

bool worker_event(struct worker *worker, uint64_t peer, void *message, int fd)
{
	struct letter *letter = letter_new(LETTER_EVENT);

	if (!letter) {
		free(message);
		if (fd >= 0)
			close(fd);
		return false;
	}
	letter->peer = peer;
	letter->message = message;
	if (fd >= 0) {
		letter->fds[0] = fd;
		letter->nfds = 1;
	}
	mailbox_post(worker->engine->outbox, letter);
	return true;
}

/* ---- drain of everything --------------------------------------------------------- */

static void drain_part_done(struct worker *worker)
{
	struct engine *engine = worker->engine;
	struct letter *letter = NULL;

	pthread_mutex_lock(&engine->lock);
	engine->drain_pages += worker->drain.pages;
	if (--engine->draining == 0) {
		letter = engine->drain;
		engine->drain = NULL;
	}
	pthread_mutex_unlock(&engine->lock);
	if (letter) {
		struct hmm_msg_drain_reply *reply =
			letter_reply(letter, HMM_OP_DRAIN_REPLY, sizeof(*reply));

		if (reply)
			reply->pages = engine->drain_pages;
		else
			letter_fail(letter, -ENOMEM, "out of memory for the answer");
		worker_reply(worker, letter);
	}
}

static void drained_owner(struct owner *owner, void *data, uint64_t pages)
{
	struct worker *worker = data;

	(void)owner;
	worker->drain.pages += pages;
	if (--worker->drain.owners == 0)
		drain_part_done(worker);
}

static void drain_all(struct worker *worker, struct letter *letter)
{
	const struct hmm_msg_drain *message = (const void *)letter->message;
	struct device *device = NULL;
	struct owner *owner;

	if (message->device)
		device = device_by_id(&worker->engine->devices, message->device);
	worker->drain.pages = 0;
	worker->drain.owners = 1;
	TAILQ_FOREACH(owner, &worker->owners, link) {
		/* Nobody knows yet where its pages are; and of a device that is gone nobody has any. */
		if (owner->recovering || (message->device && !device))
			continue;
		worker->drain.owners++;
		if (migrate_drain(owner, device, drained_owner, worker)) {
			log_error("owner %u: out of memory: a drain leaves its pages on the device", owner->id);
			worker->drain.owners--;
		}
	}
	drained_owner(NULL, worker, 0);
}

/* ---- letters ------------------------------------------------------------------------- */

static void begin_shutdown(struct worker *worker, struct letter *letter)
{
	struct owner *owner;

	worker->going = true;
	letter_free(letter);
	TAILQ_FOREACH(owner, &worker->owners, link)
		owner_close(owner);
}

/* The last worker's is control's answer. */
static void report_stopped(struct worker *worker)
{
	struct engine *engine = worker->engine;
	struct letter *letter = NULL;

	worker->stopped = true;
	pthread_mutex_lock(&engine->lock);
	if (--engine->shutting_down == 0) {
		letter = engine->shutdown;
		engine->shutdown = NULL;
	}
	pthread_mutex_unlock(&engine->lock);
	if (!letter)
		return;
	letter->kind = LETTER_STOPPED;
	mailbox_post(engine->outbox, letter);
}

static void check_shutdown(struct worker *worker)
{
	if (worker->going && TAILQ_EMPTY(&worker->owners) && !worker->stopped)
		report_stopped(worker);
}

static void peer_gone(struct worker *worker, uint64_t peer)
{
	struct owner *owner;

	TAILQ_FOREACH(owner, &worker->owners, link)
		owner_peer_gone(owner, peer);
}

static void home_for_debugger(struct owner *owner, void *data, uint64_t pages)
{
	(void)data;
	log_debug("owner %u: a debugger attached to pid %d: %lu pages are home", owner->id, owner->pid,
		 pages);
}

static void traced(struct worker *worker, pid_t pid)
{
	struct owner *owner;

	TAILQ_FOREACH(owner, &worker->owners, link)
		if (owner->pid == pid && !owner->recovering && !owner->closing)
			migrate_home(owner, 0, HMM_VA_END, NULL, home_for_debugger, NULL);
}

static uint64_t pages_away(const struct owner *owner)
{
	uint64_t pages = 0;

	for (unsigned int i = 0; i < MIRRORS_MAX; i++)
		if (owner->mirror[i])
			pages += atomic_load(&owner->mirror[i]->device_pages);
	return pages;
}

static void home_for_dump(struct owner *owner, void *data, uint64_t pages)
{
	uint64_t left = pages_away(owner);

	(void)data;
	if (left)
		log_error("owner %u: the core dump of pid %d holds zeros for %lu pages that could not come home", owner->id,
			  owner->pid, left);
	else
		log_info("owner %u: %lu pages came home for the core dump of pid %d", owner->id, pages, owner->pid);
}

/* It waits for nobody: what it comes to sooner than its pages come home is zeros there. No other way is left to tell of it. */
static void dumps(struct worker *worker, pid_t pid)
{
	struct owner *owner;
	uint64_t away;

	TAILQ_FOREACH(owner, &worker->owners, link) {
		away = pages_away(owner);
		if (owner->pid != pid || owner->recovering || owner->closing || !away)
			continue;
		log_warn("owner %u: pid %d is dumping core while %lu of its pages are on a device: they come home now; for those that the dump reaches sooner it holds zeros",
			 owner->id, pid, away);
		migrate_home(owner, 0, HMM_VA_END, NULL, home_for_dump, NULL);
	}
}

static void request(struct worker *worker, struct letter *letter)
{
	uint16_t op = letter->message->opcode;
	struct owner *owner;

	if (op == HMM_OP_OPEN) {
		owner_open(worker, letter);
		return;
	}
	if (op == HMM_OP_REOPEN) {
		recover_reopen(worker, letter);
		return;
	}
	if (op == HMM_OP_DRAIN && !letter->owner) {
		drain_all(worker, letter);
		letter_free(letter);
		return;
	}
	owner = owner_by_id(worker, letter->owner);
	if (owner && !owner->gone) {
		owner_request(owner, letter);
		return;
	}
	if (op == HMM_OP_ACK) {
		letter_free(letter);
		return;
	}
	/* Its pages are home, and it goes on with the next hmmd, which is to be asked. */
	if (!owner && worker->going)
		letter_fail(letter, -EAGAIN, "owner %u has been left by this hmmd, which ends", letter->owner);
	else
		letter_fail(letter, -ESTALE, "owner %u is gone", letter->owner);
	worker_reply(worker, letter);
}

static void take_letters(struct worker *worker, struct letter *letter)
{
	struct letter *next;
	struct owner *owner;

	for (; letter; letter = next) {
		next = letter->next;
		letter->next = NULL;
		switch (letter->kind) {
		case LETTER_REQUEST:
			request(worker, letter);
			break;
		case LETTER_PEER_GONE:
			peer_gone(worker, letter->peer);
			letter_free(letter);
			break;
		case LETTER_TRACED:
			traced(worker, letter->pid);
			letter_free(letter);
			break;
		case LETTER_DUMPS:
			dumps(worker, letter->pid);
			letter_free(letter);
			break;
		case LETTER_SHUTDOWN:
			begin_shutdown(worker, letter);
			break;
		case LETTER_HAND_OVER:
			handover_begin(worker);
			letter_free(letter);
			break;
		default:
			letter_free(letter);
			while (worker->index == 1 && broken("hang-worker"))
				pause();
		}
	}
	if (worker->handing_over)
		return;
	evict_look(worker);
	TAILQ_FOREACH(owner, &worker->owners, link)
		owner_run(owner);
}

/* What came while the worker had ears for one driver only, in its order. */
static void take_held(struct worker *worker)
{
	struct letter *held = worker->held;

	worker->held = NULL;
	if (held)
		take_letters(worker, held);
}

static void inbox_ready(struct source *source)
{
	struct worker *worker = (struct worker *)((char *)source - offsetof(struct worker, inbox_source));
	struct letter *letters = mailbox_take(&worker->inbox);

	take_held(worker);
	take_letters(worker, letters);
}

/* What brings far pages into the shadow. Any other answer would let pages go home meanwhile, out of the child's reach. */
static bool is_answer(const struct letter *letter, const struct owner *owner)
{
	if (letter->kind != LETTER_REQUEST || letter->owner != owner->id)
		return false;
	if (letter->message->opcode == HMM_OP_ACK)
		return invalidate_is_of_fetch(owner, ((const struct hmm_msg_ack *)(const void *)letter->message)->cookie);
	return letter->message->opcode == HMM_OP_DEVMEM_FETCHED;
}

static bool is_asked(const struct owner *owner, uint64_t peer)
{
	const struct ask *ask;

	TAILQ_FOREACH(ask, &owner->asks, link)
		if (ask->mirror->peer == peer)
			return true;
	return false;
}

bool worker_hear_drivers(struct owner *owner)
{
	struct worker *worker = owner->worker;
	struct pollfd inbox = { .fd = worker->inbox.eventfd, .events = POLLIN };
	struct letter *letter, *next, **tail = &worker->held;
	bool all_live = true;

	while (*tail)
		tail = &(*tail)->next;
	letter = poll(&inbox, 1, 1) > 0 ? mailbox_take(&worker->inbox) : NULL;
	worker->now = clock_now();
	worker_gets_on(worker);
	for (; letter; letter = next) {
		next = letter->next;
		letter->next = NULL;
		if (is_answer(letter, owner)) {
			owner_request(owner, letter);
			continue;
		}
		all_live &= letter->kind != LETTER_PEER_GONE || !is_asked(owner, letter->peer);
		*tail = letter;
		tail = &letter->next;
	}
	/* A bell, too, may have been heard in passing. */
	if (worker->held || atomic_load(&worker->rung))
		worker_alarm(worker, worker->now);
	return all_live;
}

/* ---- the thread -------------------------------------------------------------------------- */

static void tick(struct worker *worker)
{
	struct owner *owner, *next;

	worker->alarm = INT64_MAX;
	take_held(worker);
	if (worker->handing_over) {
		if (handover_tick(worker))
			__atomic_store_n(&worker->stop, true, __ATOMIC_RELEASE);
		return;
	}
	evict_look(worker);
	for (owner = TAILQ_FIRST(&worker->owners); owner; owner = next) {
		next = TAILQ_NEXT(owner, link);
		owner_tick(owner, worker->now);
	}
	tracking_thaw(worker);
	check_shutdown(worker);
}

static void *worker_main(void *data)
{
	struct worker *worker = data;
	int64_t spin = worker->engine->options.spin_us * NS_PER_US, spin_until = 0;

	reactor_start(worker->reactor);
	while (!__atomic_load_n(&worker->stop, __ATOMIC_ACQUIRE)) {
		int64_t timeout = worker->alarm == INT64_MAX ? -1 : worker->alarm - worker->now;
		int n;

		if (worker->now < spin_until)
			timeout = 0;
		else if (timeout < 0 && worker->alarm != INT64_MAX)
			timeout = 0;
		n = reactor_wait(worker->reactor, timeout);
		worker->now = clock_now();
		worker_gets_on(worker);
		if (n < 0)
			log_error("worker %u: %s", worker->index, strerror(-n));
		if (n > 0)
			spin_until = worker->now + spin;
		tick(worker);
	}
	/* From here on owners are the next hmmd's. */
	if (worker->handing_over)
		report_stopped(worker);
	return NULL;
}

static int worker_init(struct worker *worker, struct engine *engine, unsigned int index)
{
	int r;

	worker->engine = engine;
	worker->index = index;
	worker->alarm = INT64_MAX;
	worker->now = clock_now();
	TAILQ_INIT(&worker->owners);
	r = mailbox_init(&worker->inbox);
	if (r)
		return r;
	r = reactor_new(engine->options.no_io_uring, &worker->reactor);
	if (!r)
		r = reactor_add(worker->reactor, &worker->inbox_source, worker->inbox.eventfd, inbox_ready);
	if (!r)
		r = -pthread_create(&worker->thread, NULL, worker_main, worker);
	if (r) {
		reactor_free(worker->reactor);
		mailbox_deinit(&worker->inbox);
	}
	return r;
}

static void worker_deinit(struct worker *worker)
{
	struct owner *owner;

	__atomic_store_n(&worker->stop, true, __ATOMIC_RELEASE);
	eventfd_write(worker->inbox.eventfd, 1);
	pthread_join(worker->thread, NULL);
	/* Only after a shutdown that was given up: their libraries go on without us. */
	while ((owner = TAILQ_FIRST(&worker->owners))) {
		owner->abandoned = true;
		owner_free(owner);
	}
	tracking_forget(worker);
	while (worker->held) {
		struct letter *letter = worker->held;

		worker->held = letter->next;
		letter_free(letter);
	}
	reactor_free(worker->reactor);
	mailbox_deinit(&worker->inbox);
}

/* ---- the engine ----------------------------------------------------------------------------- */

static const struct { uint64_t bit; const char *why_off; } feature_reasons[] = {
	{ HMM_FEATURE_MOVE, "the kernel lacks UFFDIO_MOVE (Linux 6.8 has it): only ranges declared UNPINNED migrate" },
	{ HMM_FEATURE_EVENT_FORK, "hmmd lacks CAP_SYS_PTRACE: only fork() is seen, by the library's hook; after a raw clone() the child "
				  "reads zeros where a page was on a device" },
	{ HMM_FEATURE_WP_SHMEM, "the kernel can't write-protect shared memory (Linux 5.19 can)" },
	{ HMM_FEATURE_POISON, "the kernel lacks UFFDIO_POISON (Linux 6.6 has it): lost pages hang instead of SIGBUS" },
	{ HMM_FEATURE_PAGEMAP_SCAN, "the kernel lacks PAGEMAP_SCAN (Linux 6.7 has it)" },
	{ HMM_FEATURE_PROCMAP_QUERY, "the kernel lacks PROCMAP_QUERY (Linux 6.11 has it): mappings are found by reading text" },
	{ HMM_FEATURE_IO_URING, "io_uring is forbidden (kernel.io_uring_disabled, or seccomp): epoll is used" },
	{ HMM_FEATURE_HUGE_SHMEM, "/sys/kernel/mm/transparent_hugepage/shmem_enabled is never or deny: write advise into it" },
	{ HMM_FEATURE_HUGETLB, "no huge pages are reserved: write their number into /proc/sys/vm/nr_hugepages" },
	{ HMM_FEATURE_GUARD, "the kernel has no guard pages (Linux 6.13 has)" },
	{ HMM_FEATURE_USER_MODE, "hmmd serves everybody in group hmm (--user serves one uid)" },
	{ HMM_FEATURE_COLLAPSE, "MADV_COLLAPSE is missing (Linux 6.1 has it) or huge pages are switched off" },
	{ HMM_FEATURE_NUMA, "there is one memory node" },
};

static uint64_t find_features(const struct engine *engine)
{
	const struct kernel_facts *facts = &engine->facts;
	const struct { bool on; uint64_t bit; } all[] = {
		{ facts->uffd_features & UFFD_FEATURE_MOVE && !engine->options.no_move, HMM_FEATURE_MOVE },
		{ facts->event_fork, HMM_FEATURE_EVENT_FORK },
		{ facts->uffd_features & UFFD_FEATURE_WP_HUGETLBFS_SHMEM, HMM_FEATURE_WP_SHMEM },
		{ facts->uffd_features & UFFD_FEATURE_POISON, HMM_FEATURE_POISON },
		{ facts->pagemap_scan, HMM_FEATURE_PAGEMAP_SCAN },
		{ facts->procmap_query, HMM_FEATURE_PROCMAP_QUERY },
		{ facts->io_uring && !engine->options.no_io_uring, HMM_FEATURE_IO_URING },
		{ facts->shmem_huge, HMM_FEATURE_HUGE_SHMEM },
		{ facts->hugetlb, HMM_FEATURE_HUGETLB },
		{ facts->guard, HMM_FEATURE_GUARD },
		{ engine->options.user_mode, HMM_FEATURE_USER_MODE },
		{ facts->collapse, HMM_FEATURE_COLLAPSE },
		{ facts->nodes > 1, HMM_FEATURE_NUMA },
	};
	uint64_t features = 0;

	for (unsigned int i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		features |= all[i].on ? all[i].bit : 0;
	return features | tracking_feature(&engine->tracking);
}

static void take_kept(struct engine *engine)
{
	const struct engine_options *options = &engine->options;
	const char *name;
	int fd;

	while (options->take_kept && (name = options->take_kept(options->take_kept_data, &fd)))
		fdstore_adopt_consume_fd(engine, name, fd);
}

void engine_review(struct engine *engine)
{
	fdstore_review(engine);
}

int engine_new(const struct engine_options *options, struct mailbox *outbox, struct engine **result)
{
	struct engine *engine;
	int r = 0;

	/* Tables, blocks and bitmaps are made for it. */
	if (sysconf(_SC_PAGESIZE) != (long)HMM_PAGE_SIZE) {
		log_error("this machine has pages of %ld bytes; hmmd needs 4096", sysconf(_SC_PAGESIZE));
		return -EOPNOTSUPP;
	}
	engine = calloc(1, sizeof(*engine));
	if (!engine)
		return -ENOMEM;
	engine->options = *options;
	engine->outbox = outbox;
	kernel_probe(&engine->facts);
	tracking_choose(&engine->tracking, (enum tracking_wish)options->tracking, &engine->facts);
	if (!engine->tracking.ops)
		log_warn("what programs write can't be tracked: %s",
			 tracking_why_none(&engine->tracking, (enum tracking_wish)options->tracking));
	engine->features = find_features(engine);
	/* The one that costs bytes, and whoever loses them hears nothing. */
	if (!(engine->features & HMM_FEATURE_EVENT_FORK))
		log_warn("%s", engine_feature_reason(engine, HMM_FEATURE_EVENT_FORK));
	if (getrandom(&engine->incarnation, sizeof(engine->incarnation), 0) < 0)
		engine->incarnation = (uint64_t)clock_now();
	engine->incarnation &= ~(1ULL << 63);	/* never the rescuer's */
	pthread_mutex_init(&engine->lock, NULL);
	TAILQ_INIT(&engine->owners);
	LIST_INIT(&engine->kept);
	engine->began = clock_now();
	take_kept(engine);
	devices_init(&engine->devices, options->pool_size);
	bars_init(process_is_alive);
	engine->workers = calloc(options->workers, sizeof(*engine->workers));
	if (!engine->workers)
		r = -ENOMEM;
	if (!r && options->reserve)
		r = devices_reserve(&engine->devices, options->reserve);
	while (!r && engine->started < options->workers) {
		r = worker_init(&engine->workers[engine->started], engine, engine->started);
		if (!r)
			engine->started++;
	}
	if (r) {
		engine_free(engine);
		return r;
	}
	*result = engine;
	return 0;
}

void engine_join(struct engine *engine)
{
	for (unsigned int i = 0; i < engine->started; i++)
		pthread_join(engine->workers[i].thread, NULL);
}

void engine_free(struct engine *engine)
{
	if (!engine)
		return;
	for (unsigned int i = 0; i < engine->started; i++)
		worker_deinit(&engine->workers[i]);
	free(engine->workers);
	devices_deinit(&engine->devices);
	fdstore_deinit(engine);
	letter_free(engine->drain);
	letter_free(engine->shutdown);
	pthread_mutex_destroy(&engine->lock);
	free(engine);
}

static struct letter *letter_copy(const struct letter *letter)
{
	struct letter *copy = letter_new(letter->kind);

	if (!copy)
		return NULL;
	copy->peer = letter->peer;
	copy->pid = letter->pid;
	if (letter->message) {
		copy->message = malloc(letter->message->size);
		if (!copy->message)
			return letter_free(copy);
		memcpy(copy->message, letter->message, letter->message->size);
	}
	return copy;
}

/*
 * A worker that is not told of a peer's end would keep what that has for good, or an end of hmmd would wait for it. Told later it
 * might take the end for that of the next connection. So control waits for the memory, with all that it has.
 */
static void to_everyone(struct engine *engine, const struct letter *letter)
{
	const struct timespec pause = { .tv_nsec = NS_PER_MS };

	for (unsigned int i = 0; i < engine->started; i++) {
		struct letter *copy;

		while (!(copy = letter_copy(letter)))
			nanosleep(&pause, NULL);
		mailbox_post(&engine->workers[i].inbox, copy);
	}
}

void engine_wake(struct engine *engine)
{
	for (unsigned int i = 0; i < engine->started; i++)
		eventfd_write(engine->workers[i].inbox.eventfd, 1);
}

int engine_find_stuck(struct engine *engine)
{
	int stuck = -1;

	for (unsigned int i = 0; i < engine->started; i++) {
		struct worker *worker = &engine->workers[i];
		uint64_t turns = atomic_load_explicit(&worker->turns, memory_order_relaxed);

		if (turns == worker->turns_seen && stuck < 0)
			stuck = (int)i;
		worker->turns_seen = turns;
	}
	engine_wake(engine);
	return stuck;
}

/* A free owner id: 16 bits of it travel in windows' names. */
static uint32_t new_owner_id(struct engine *engine)
{
	struct owner *owner;
	uint32_t id;

	pthread_mutex_lock(&engine->lock);
again:
	id = ++engine->next_owner & 0xffff;
	if (!id)
		goto again;
	TAILQ_FOREACH(owner, &engine->owners, registry)
		if (owner->id == id)
			goto again;
	pthread_mutex_unlock(&engine->lock);
	return id;
}

/* Names that clients hold stay good over a restart, unless somebody has taken them. */
static uint32_t reopened_owner_id(struct engine *engine, const struct letter *letter)
{
	const struct hmm_msg_reopen *message = (const void *)letter->message;
	uint32_t id = message->owner & 0xffff;
	bool taken = !id;
	struct owner *owner;

	pthread_mutex_lock(&engine->lock);
	TAILQ_FOREACH(owner, &engine->owners, registry)
		/* Of this hmmd's own it is only the connection that broke. */
		if (owner->id == id && (message->incarnation != engine->incarnation || owner->pid != letter->pid))
			taken = true;
	if (!taken && engine->next_owner < id)
		engine->next_owner = id;
	pthread_mutex_unlock(&engine->lock);
	return taken ? new_owner_id(engine) : id;
}

static bool is_owner(struct engine *engine, pid_t pid)
{
	struct owner *owner;
	bool found = false;

	pthread_mutex_lock(&engine->lock);
	TAILQ_FOREACH(owner, &engine->owners, registry)
		found |= owner->pid == pid;
	pthread_mutex_unlock(&engine->lock);
	return found;
}

void engine_submit(struct engine *engine, struct letter *letter)
{
	uint16_t op = letter->message ? letter->message->opcode : 0;

	switch (letter->kind) {
	case LETTER_SHUTDOWN:
	case LETTER_HAND_OVER:
		pthread_mutex_lock(&engine->lock);
		engine->shutdown = letter;
		engine->shutting_down = engine->started;
		pthread_mutex_unlock(&engine->lock);
		to_everyone(engine, letter);
		return;
	case LETTER_TRACED:
	case LETTER_DUMPS:
		/* Anybody's is heard; only an owner's wakes a worker. */
		if (!is_owner(engine, letter->pid)) {
			letter_free(letter);
			return;
		}
		/* fall through */
	case LETTER_PEER_GONE:
	case LETTER_RELOAD:
		to_everyone(engine, letter);
		letter_free(letter);
		return;
	default:
		break;
	}
	if (op == HMM_OP_OPEN)
		letter->owner = new_owner_id(engine);
	if (op == HMM_OP_REOPEN)
		letter->owner = reopened_owner_id(engine, letter);
	if (op == HMM_OP_DRAIN && !letter->owner) {
		uint32_t device = ((const struct hmm_msg_drain *)letter->message)->device;

		if (device && !device_by_id(&engine->devices, device)) {
			letter_fail(letter, -ENODEV, "no device %u", device);
			letter->kind = LETTER_REPLY;
			mailbox_post(engine->outbox, letter);
			return;
		}
		pthread_mutex_lock(&engine->lock);
		if (engine->drain) {
			pthread_mutex_unlock(&engine->lock);
			letter_fail(letter, -EBUSY, "another drain is running");
			letter->kind = LETTER_REPLY;
			mailbox_post(engine->outbox, letter);
			return;
		}
		engine->drain = letter;
		engine->draining = engine->started;
		engine->drain_pages = 0;
		pthread_mutex_unlock(&engine->lock);
		to_everyone(engine, letter);
		return;
	}
	mailbox_post(&engine->workers[letter->owner % engine->started].inbox, letter);
}

uint64_t engine_features(const struct engine *engine)
{
	return engine->features;
}

uint64_t engine_incarnation(const struct engine *engine)
{
	return engine->incarnation;
}

const char *engine_feature_reason(const struct engine *engine, uint64_t feature)
{
	const char *why = NULL;

	for (unsigned int i = 0; i < sizeof(feature_reasons) / sizeof(feature_reasons[0]); i++)
		if (feature_reasons[i].bit == feature)
			why = feature_reasons[i].why_off;
	if (!why)
		return tracking_why_not(&engine->tracking, feature);
	if (engine->features & feature)
		return "";
	if (feature == HMM_FEATURE_MOVE && engine->options.no_move)
		return "hmmd was told not to use it (--no-move, or move = no): only ranges declared UNPINNED migrate";
	if (feature == HMM_FEATURE_IO_URING && engine->options.no_io_uring)
		return "hmmd was told not to use it (--no-io-uring, or io_uring = no): epoll is used";
	return why;
}
