/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fork.c - a child that was forked while pages were on the device: raw
 * clone() calls, and forks that raced with a migration; the library's own fork
 * hook brings everything home first.
 *
 * The child inherits the parent's armed mappings and a userfaultfd of its own,
 * which comes with the event. It gets its copy of every page that the parent
 * has on the device (or half way there), then its userfaultfd is closed: that
 * disarms it, lifts the protection it inherited and wakes whoever waited. The
 * parent stays in fork() until the event is read, and nothing else of the
 * owner is served in between, so the copies are of one moment.
 *
 * hmmd alone has that userfaultfd. So it is kept by whoever started hmmd (fdstore.h) from the moment that the event is
 * read, with a memfd into which the child's own events are read: what it has unmapped, moved and discarded since. A
 * successor's replay of the journal comes to the fork again, and goes on by both. What has its bytes has them (EEXIST).
 *
 * And the fork that the library told of: nothing leaves until it is over.
 *
 * Runs on the owner's worker; takes as long as copying takes.
 */
#include "engine/fork.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/breakage.h"
#include "engine/child_log.h"
#include "engine/dma.h"
#include "engine/far_bar.h"
#include "engine/graft.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

/* Tries of one page: while the child's map is changing, a yield apart; while memory is short, 1 ms. */
#define TRIES_MAX	20000

/* How many answers' time an owner that nobody can see forking may take between its library's fork handlers. */
#define UNSEEN_PATIENCE	30

/* Threads of an owner that fork at the same time. */
#define HOLDS_MAX	1024U

struct child {
	struct owner *owner;
	int uffd;
	struct child_log log;
	bool deciding;			/* where it has what was being moved: its own children wait for that */
	char name[KEPT_NAME];		/* under which both are kept; "": nobody keeps them */
	uint64_t pages, lost;
	uint64_t poisoned;		/* that only a driver reaches */
	char bounce[HMM_PAGE_SIZE];
};

static void copy_to_child(struct child *child);

/* ---- where it is kept --------------------------------------------------------------- */

/* @parent: the name of whose child's child it is; NULL: of the owner's. @position: where the fork stands in the journal, or in that child's log. */
static void name_child(const struct owner *owner, const char *parent, uint64_t position, char *name)
{
	struct stat ledger = { 0 };
	int n;

	fstat(owner->ledger_fd, &ledger);
	if (parent)
		n = snprintf(name, KEPT_NAME, "%s.%lu", parent, position);
	else
		n = snprintf(name, KEPT_NAME, "fork.%d.%lu.%lu", owner->pid, ledger.st_ino, position);
	/* Of many generations at once; two must not have one name. */
	if (n >= KEPT_NAME)
		name[0] = '\0';
}

static void keep(struct child *child, const char *parent, uint64_t position)
{
	name_child(child->owner, parent, position, child->name);
	if (!*child->name || !child->log.messages || child->log.fd < 0 ||
	    !fdstore_put(child->owner->worker->engine, child->name, child->uffd, child->log.fd))
		child->name[0] = '\0';
}

/* Which mappings a child gets empty. */
static void find_wiped(void *data, uint64_t start, uint64_t end, unsigned int told)
{
	struct child *child = data;

	if (told & KERNEL_TOLD_WIPED && !child_log_note_wiped(&child->log, start, end))
		log_error("owner %u: out of memory: a forked child may find old bytes at %#lx", child->owner->id, start);
}

static bool may_hold_pages(const struct block *block)
{
	return block_count(block, HMM_PAGE_DEVICE) || block_count(block, HMM_PAGE_ERROR) || !block_at_rest(block);
}

static void note_pages(struct block *block, void *data)
{
	*(bool *)data |= may_hold_pages(block);
}

static void copy_to_grandchild(const struct child *child, unsigned int position, int uffd, int log_fd);

/*
 * The child runs already: what it does to its map comes by its userfaultfd and must be followed. False: there is no room for the
 * descriptor of a child of its own, behind which all else waits.
 */
static bool follow_child(struct child *child)
{
	struct uffd_msg spare, *message;
	unsigned int position;
	ssize_t n;

	for (;;) {
		message = child_log_next(&child->log);
		if (!message)
			message = &spare;
		n = read(child->uffd, message, sizeof(*message));
		if (n != (ssize_t)sizeof(*message))
			return n >= 0 || (errno != EMFILE && errno != ENFILE && errno != ENOMEM);
		if (message->event == UFFD_EVENT_PAGEFAULT)
			continue;	/* the copy, or the end, wakes it */
		position = child->log.count;
		if (message != &spare)
			child_log_added(&child->log);
		else if (message->event != UFFD_EVENT_FORK)
			log_error("owner %u: a forked child changes its map more than can be noted: it may find old bytes",
				  child->owner->id);
		/* A grandchild: the pages that the child has not got yet, it has not either. */
		if (message->event == UFFD_EVENT_FORK && (!child->deciding || message == &spare))
			copy_to_grandchild(child, position, (int)message->arg.fork.ufd, -1);
	}
}

/* Before the same page is tried again. */
static void follow_and_wait(struct child *child)
{
	if (follow_child(child))
		sched_yield();
	else
		usleep(1000);
}

static bool was_there(void *data, uint64_t addr)
{
	struct child *child = data;
	int before, r = -EAGAIN;

	for (int tries = 0; r == -EAGAIN && tries < TRIES_MAX; tries++) {
		r = kernel->uffd_protect(child->uffd, addr, HMM_PAGE_SIZE, false);
		if (r == -EAGAIN)
			follow_and_wait(child);
	}
	before = child_log_was_there(&child->log, addr);
	return before < 0 ? r != -ENOENT : before;
}

static void decide_moves(struct child *child)
{
	unsigned int first = child->log.count;

	child->deciding = true;
	child_log_decide_moves(&child->log, was_there, child);
	child->deciding = false;
	for (unsigned int i = first; i < child->log.count; i++) {
		const struct uffd_msg *message = child_log_fork(&child->log, i);

		if (message)
			copy_to_grandchild(child, i, (int)message->arg.fork.ufd, -1);
	}
}

/* @from: as for fork_child_consume_fd(). */
static void begin_log(struct child *child, uint64_t from, uint64_t position)
{
	const struct owner *owner = child->owner;
	int r;

	child_log_map(&child->log);
	if (!child_log_is_complete(&child->log)) {
		event_read_on(child->owner);
		child_log_note_moves(&child->log, child->owner, from, position);
		r = kernel->told(owner->smaps, 0, HMM_VA_END, find_wiped, child);
		if (r)
			log_error("owner %u: a forked child may find bytes that were to be wiped: smaps: %s", owner->id, strerror(-r));
		child_log_complete(&child->log);
	}
	decide_moves(child);
}

/* Its driver did not bring it in time, or has lost it: SIGBUS, and never zeros. */
static void poison_page(struct child *child, uint64_t page)
{
	for (int tries = 0; tries < TRIES_MAX; tries++) {
		uint64_t addr = child_log_find(&child->log, page);
		size_t done;
		int r;

		if (!addr)
			return;
		r = kernel->uffd_poison(child->uffd, addr, HMM_PAGE_SIZE, &done);
		child->poisoned += r == 0;
		if (r != -EAGAIN)
			return;
		follow_and_wait(child);
	}
}

static void copy_page(struct child *child, uint64_t page, const void *bytes)
{
	worker_gets_on(child->owner->worker);
	for (int tries = 0; tries < TRIES_MAX; tries++) {
		uint64_t addr = child_log_find(&child->log, page);
		size_t done;
		int r;

		if (!addr)
			return;
		r = kernel->uffd_copy(child->uffd, addr, bytes, HMM_PAGE_SIZE, 0, &done);
		switch (r) {
		case 0:
			child->pages++;
			return;
		case -EAGAIN:
			follow_and_wait(child);
			break;
		case -EFAULT:
			if (shadow_is_lost(bytes)) {
				poison_page(child, page);
				return;
			}
			/* fall through */
		case -ENOMEM:
			usleep(1000);
			break;
		default:
			return;		/* DONTFORK, there already, or the child is gone */
		}
	}
	child->lost++;
}

/* A run of D pages at once, as long as the child has not changed its map. Return: pages done. */
static unsigned int copy_pages(struct child *child, struct block *block, unsigned int first)
{
	const struct shadow *shadow = block_shadow(block);
	uint64_t addr = page_addr(block, first);
	unsigned int end = first;
	size_t done;

	while (end < HMM_BLOCK_PAGES && page_state(block, end) == HMM_PAGE_DEVICE && !page_is_far(block, end) &&
	       block_at_rest(block))
		end++;
	if (!shadow || child->log.count || end - first < 2)
		return 0;
	if (broken("die-in-fork") && end > first + 16)
		end = first + 16;
	kernel->uffd_copy(child->uffd, addr, shadow_at(shadow, addr),
			  (size_t)(end - first) << HMM_PAGE_SHIFT, 0, &done);
	child->pages += done >> HMM_PAGE_SHIFT;
	return (unsigned int)(done >> HMM_PAGE_SHIFT);
}

/*
 * By the base engine: what the agent is throwing away, or has, with its order not counted yet. It was filled before. Where the child was
 * made earlier than that it has the page (EEXIST).
 */
static const void *zapped_bytes(const struct block *block, unsigned int i)
{
	const struct block_order *order = block->order;
	const struct shadow *shadow = block_shadow(block);
	const struct hmm_order *shared;
	uint32_t state;

	if (!order || order->kind != HMM_ORDER_OUT_ZAP || !pages_test(&order->want, i) || pages_test(&block->dead, i) || !shadow)
		return NULL;
	shared = order_shared(block->owner, order);
	state = __atomic_load_n(&shared->state, __ATOMIC_ACQUIRE);
	if ((state != HMM_ORDER_COMMIT && state != HMM_ORDER_DONE) || !(shared->moved[i / 64] >> (i % 64) & 1))
		return NULL;
	return shadow_at(shadow, page_addr(block, i));
}

static void copy_block(struct block *block, void *data)
{
	struct child *child = data;

	if (!may_hold_pages(block) || (broken("skip-child") && !block_at_rest(block)))
		return;
	worker_gets_on(block->owner->worker);
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++) {
		const void *bytes;
		unsigned int n;

		if (child->pages >= 16 && broken("die-in-fork"))
			raise(SIGKILL);
		if (page_state(block, i) == HMM_PAGE_COHERENT && block_at_rest(block))
			continue;	/* the CPU has it: the child has, too */
		/* An S page, too, unless it is on its way out: EEXIST then says that the child has it. */
		if (page_state(block, i) == HMM_PAGE_SHARED && !(block->order && block->order->kind == HMM_ORDER_DROP))
			continue;
		if (page_is_far(block, i) || page_state(block, i) == HMM_PAGE_ERROR) {
			poison_page(child, page_addr(block, i));
			continue;
		}
		n = copy_pages(child, block, i);
		if (n) {
			i += n - 1;
			continue;
		}
		bytes = page_bytes(block, i, child->bounce);
		if (!bytes)
			bytes = zapped_bytes(block, i);
		if (bytes)
			copy_page(child, page_addr(block, i), bytes);
	}
}

/* One that mremap has moved into a block which is in transit. */
static void copy_graft(uint64_t addr, const void *bytes, void *data)
{
	if (bytes)
		copy_page(data, addr, bytes);
	else
		poison_page(data, addr);
}

/* Lets it go: the last close of its userfaultfd disarms it. Until the manager's it waits where it has no page. */
static void forget_child(struct child *child)
{
	child_log_close(&child->log);
	close(child->uffd);
	if (*child->name)
		fdstore_drop(child->owner->worker->engine, child->name);
}

/* Gives the child its pages and lets it go: consumes its userfaultfd. */
static void copy_to_child(struct child *child)
{
	fcntl(child->uffd, F_SETFL, O_NONBLOCK);
	owner_policy(child->owner, true);
	block_for_each(child->owner, 0, HMM_VA_END, copy_block, child);
	graft_for_each(child->owner, copy_graft, child);
	owner_policy(child->owner, false);
	if (child->poisoned)
		log_error("owner %u: a raw fork's child gets SIGBUS for %lu pages that their driver has lost, or did not bring in time",
			  child->owner->id, child->poisoned);
	if (child->lost)
		log_error("owner %u: a forked child could not be given %lu pages: they read zeros there",
			  child->owner->id, child->lost);
	else if (child->pages)
		log_info("owner %u: a forked child got its copy of %lu pages", child->owner->id,
			 child->pages);
	forget_child(child);
}

/* Up to @position of its log the child's changes are the grandchild's, too. */
static void copy_to_grandchild(const struct child *child, unsigned int position, int uffd, int log_fd)
{
	struct child *grandchild = calloc(1, sizeof(*grandchild));

	if (!grandchild) {
		log_error("owner %u: out of memory: a forked child's child reads zeros", child->owner->id);
		close(uffd);
		return;
	}
	grandchild->owner = child->owner;
	grandchild->uffd = uffd;
	grandchild->log.fd = log_fd;
	child_log_map(&grandchild->log);
	child_log_inherit(&grandchild->log, &child->log, position);
	if (*child->name)
		keep(grandchild, child->name, position);
	copy_to_child(grandchild);
	free(grandchild);
}

/* Of a child that an earlier hmmd was serving: those of its own children that it had not served. */
static void take_grandchildren(const struct child *child)
{
	char name[KEPT_NAME];
	int uffd, log_fd;

	for (unsigned int i = 0; i < child->log.count; i++) {
		if (!child_log_fork(&child->log, i))
			continue;
		name_child(child->owner, child->name, i, name);
		if (*name && fdstore_take(child->owner->worker->engine, name, &uffd, &log_fd))
			copy_to_grandchild(child, i, uffd, log_fd);
	}
}

/* ---- pages that only a driver reaches --------------------------------------------- */

static void forget_task(struct task *task)
{
	free(task);
}

static void fetch_block(struct block *block, void *data)
{
	struct pages far;
	struct task *task;

	(void)data;
	if (!block_at_rest(block) || !block_far_pages(block, &far))
		return;
	task = calloc(1, sizeof(*task));
	if (!task)
		return;
	task->run = forget_task;
	far_fetch(block, &far, HMM_BLOCK_PAGES, 0, HMM_REASON_FORK, task);
}

/*
 * They are brought into the shadow first, for as long as a driver may take to answer anything. The
 * child runs meanwhile, and waits where it touches one.
 */
static void fetch_all(struct child *child)
{
	struct owner *owner = child->owner;
	struct worker *worker = owner->worker;
	int64_t end = worker->now + worker->engine->options.ack_timeout_ms * NS_PER_MS;

	/* What was being stored meanwhile is to be fetched, too; nothing more leaves. */
	do {
		block_for_each(owner, 0, HMM_VA_END, fetch_block, NULL);
		if (TAILQ_EMPTY(&owner->asks))
			return;
		while (!TAILQ_EMPTY(&owner->asks)) {
			bool bar = false;

			/* hmmd's own copies depend on nobody, and take what they take. */
			if (far_bar_is_due(owner, &bar))
				worker->now = clock_now();
			else if (worker->now >= end || (!worker_hear_drivers(owner) && !bar))
				return;
			far_bar_tick(owner, worker->now);
			follow_child(child);
		}
	} while (worker->now < end);
}

static void withdraw_block(struct block *block, void *data)
{
	(void)data;
	if (block_count(block, HMM_PAGE_DEVICE))
		dma_withdraw(block, HMM_REASON_FORK);
}

static bool has_pages_out(struct owner *owner)
{
	bool any = false;

	block_for_each(owner, 0, HMM_VA_END, note_pages, &any);
	return any;
}

void fork_keep_child(struct owner *owner, uint64_t position, int uffd)
{
	struct child child = { .owner = owner, .uffd = uffd, .log = { .fd = -1 } };

	if (!owner->worker->engine->options.keep || !has_pages_out(owner))
		return;
	child_log_map(&child.log);
	keep(&child, NULL, position);
	if (!*child.name) {
		child_log_close(&child.log);
	} else {
		/* With what it has, it is served as one that was left by somebody else. */
		fdstore_note(owner->worker->engine, child.name, child.log.fd);
		child_log_unmap(&child.log);
	}
}

/* Into @child what is known of the one at that position. False: nobody has its userfaultfd any more. */
static bool find_child(struct child *child, uint64_t position)
{
	struct engine *engine = child->owner->worker->engine;
	int uffd = -1, log_fd = -1;

	name_child(child->owner, NULL, position, child->name);
	if (!fdstore_take(engine, child->name, &uffd, &log_fd))
		child->name[0] = '\0';
	child->log.fd = log_fd;
	if (child->uffd < 0)
		child->uffd = uffd;
	else if (uffd >= 0)
		close(uffd);
	if (child->uffd >= 0)
		return true;
	if (log_fd >= 0)
		close(log_fd);
	if (*child->name)
		fdstore_drop(engine, child->name);
	return false;
}

void fork_child_consume_fd(struct owner *owner, uint64_t from, uint64_t position, int uffd)
{
	struct child child = { .owner = owner, .uffd = uffd };
	bool replayed = uffd < 0;

	if (!find_child(&child, position)) {
		log_error("owner %u: a raw fork was being served when hmmd died; its child may read zeros", owner->id);
		return;
	}
	if (!replayed && !has_pages_out(owner)) {
		forget_child(&child);
		return;
	}
	fcntl(child.uffd, F_SETFL, O_NONBLOCK);
	begin_log(&child, from, position);
	if (replayed) {
		log_info("owner %u: a raw fork was being served when hmmd died; its child gets its pages now", owner->id);
		take_grandchildren(&child);
	} else {
		/* What a card writes from now on is the parent's alone. */
		block_for_each(owner, 0, HMM_VA_END, withdraw_block, NULL);
		fetch_all(&child);
	}
	copy_to_child(&child);
}

void fork_recovered(struct owner *owner)
{
	char prefix[KEPT_NAME];
	struct stat ledger = { 0 };

	fstat(owner->ledger_fd, &ledger);
	snprintf(prefix, sizeof(prefix), "fork.%d.%lu.", owner->pid, ledger.st_ino);
	fdstore_forget(owner->worker->engine, prefix);
}

/* ---- nothing leaves while a fork is under way ---------------------------------------- */

struct fork_hold {
	LIST_ENTRY(fork_hold) link;	/* owner->forks */
	uint32_t fork;
};

static void let_go(struct owner *owner)
{
	TAILQ_CONCAT(&owner->runnable, &owner->fork_waiters, link);
}

static void forget(struct owner *owner, struct fork_hold *hold)
{
	owner->fork_holds--;
	LIST_REMOVE(hold, link);
	free(hold);
}

static struct fork_hold *find(const struct owner *owner, uint32_t fork)
{
	struct fork_hold *hold;

	LIST_FOREACH(hold, &owner->forks, link)
		if (hold->fork == fork)
			break;
	return hold;
}

int fork_hold(struct owner *owner, uint32_t fork)
{
	const struct worker *worker = owner->worker;
	int64_t patience = worker->engine->options.ack_timeout_ms * NS_PER_MS;
	struct fork_hold *hold = find(owner, fork);

	if (!hold) {
		if (owner->fork_holds == HOLDS_MAX)
			return -ENOSPC;
		hold = malloc(sizeof(*hold));
		if (!hold)
			return -ENOMEM;
		owner->fork_holds++;
		hold->fork = fork;
		LIST_INSERT_HEAD(&owner->forks, hold, link);
	}
	/* A child that is seen gets its pages all the same. */
	if (!(owner->features & HMM_FEATURE_EVENT_FORK))
		patience *= UNSEEN_PATIENCE;
	owner->fork_until = worker->now + patience;
	worker_alarm(owner->worker, owner->fork_until);
	return 0;
}

void fork_release(struct owner *owner, uint32_t fork)
{
	struct fork_hold *hold = find(owner, fork);

	if (!hold)
		return;
	forget(owner, hold);
	if (LIST_EMPTY(&owner->forks))
		let_go(owner);
}

void fork_deinit(struct owner *owner)
{
	while (!LIST_EMPTY(&owner->forks))
		forget(owner, LIST_FIRST(&owner->forks));
}

void fork_release_all(struct owner *owner)
{
	fork_deinit(owner);
	let_go(owner);
}

bool fork_holds(struct owner *owner, struct task *task)
{
	if (LIST_EMPTY(&owner->forks) || owner->gone || owner->closing || broken("skip-hold"))
		return false;
	TAILQ_INSERT_TAIL(&owner->fork_waiters, task, link);
	return true;
}

void fork_tick(struct owner *owner, int64_t now)
{
	if (LIST_EMPTY(&owner->forks))
		return;
	if (now < owner->fork_until) {
		worker_alarm(owner->worker, owner->fork_until);
		return;
	}
	log_warn("owner %u: its fork takes long: devices get pages again, and the child %s", owner->id,
		 owner->features & HMM_FEATURE_EVENT_FORK ? "its copies of them" : "zeros where one has them then");
	fork_release_all(owner);
}
