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
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/breakage.h"
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

/* Events of one child; beyond that what it does to its map is not followed. */
#define LOG_MESSAGES	65536U

/*
 * What a child has done to its map since (or by) the fork, oldest first: messages as the kernel writes them, up to the
 * first that has no event or is a fault. All of it lies in a memfd.
 */
struct child_log {
	uint64_t wiped_known;		/* the ones that the fork itself wiped are noted */
	uint64_t reserved[3];
	struct uffd_msg message[LOG_MESSAGES];
};

struct child {
	struct owner *owner;
	int uffd;
	int log_fd;
	struct child_log *log;		/* NULL: there was no memory */
	unsigned int logged;
	char name[KEPT_NAME];		/* under which both are kept; "": nobody keeps them */
	uint64_t pages, lost;
	uint64_t poisoned;		/* that only a driver reaches */
	char bounce[HMM_PAGE_SIZE];
};

static void copy_to_child(struct child *child);

/* ---- its log, and where it is kept --------------------------------------------------- */

static void map_log(struct child *child)
{
	struct stat st;
	void *map;

	/* One of another release is not understood; and beyond the end of a shorter one there is nothing to read. */
	if (child->log_fd >= 0 && (fstat(child->log_fd, &st) < 0 || st.st_size != sizeof(struct child_log))) {
		close(child->log_fd);
		child->log_fd = -1;
	}
	if (child->log_fd < 0)
		child->log_fd = kernel->memfd_new("hmm-child", sizeof(struct child_log), 0);
	/* Without a descriptor it is this hmmd's alone. */
	map = mmap(NULL, sizeof(struct child_log), PROT_READ | PROT_WRITE,
		   child->log_fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED | MAP_NORESERVE, child->log_fd, 0);
	if (map == MAP_FAILED)
		return;
	child->log = map;
	while (child->logged < LOG_MESSAGES && child->log->message[child->logged].event &&
	       child->log->message[child->logged].event != UFFD_EVENT_PAGEFAULT)
		child->logged++;
}

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
	if (!*child->name || !child->log || child->log_fd < 0 ||
	    !fdstore_put(child->owner->worker->engine, child->name, child->uffd, child->log_fd))
		child->name[0] = '\0';
}

static struct uffd_msg *next_message(struct child *child)
{
	if (!child->log || child->logged == LOG_MESSAGES)
		return NULL;
	return &child->log->message[child->logged];
}

static void note_wiped(struct child *child, uint64_t start, uint64_t end)
{
	struct uffd_msg *message = next_message(child);

	if (!message) {
		log_error("owner %u: out of memory: a forked child may find old bytes at %#lx", child->owner->id, start);
		return;
	}
	message->arg.remove.start = start;
	message->arg.remove.end = end;
	message->event = UFFD_EVENT_UNMAP;
	child->logged++;
}

/* Which mappings a child gets empty. */
static void find_wiped(void *data, uint64_t start, uint64_t end, unsigned int told)
{
	if (told & KERNEL_TOLD_WIPED)
		note_wiped(data, start, end);
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

/* The child runs already: what it does to its map comes by its userfaultfd and must be followed. */
static void follow_child(struct child *child)
{
	struct uffd_msg spare, *message;

	for (;;) {
		message = next_message(child);
		if (!message)
			message = &spare;
		if (read(child->uffd, message, sizeof(*message)) != (ssize_t)sizeof(*message))
			return;
		if (message->event == UFFD_EVENT_PAGEFAULT)
			continue;	/* the copy, or the end, wakes it */
		if (message != &spare)
			child->logged++;
		else if (message->event != UFFD_EVENT_FORK)
			log_error("owner %u: a forked child changes its map more than can be noted: it may find old bytes",
				  child->owner->id);
		/* A grandchild: the pages that the child has not got yet, it has not either. */
		if (message->event == UFFD_EVENT_FORK)
			copy_to_grandchild(child, child->logged - (message != &spare), (int)message->arg.fork.ufd, -1);
	}
}

/* Where the child has the page now; 0: nowhere. */
static uint64_t address_in_child(const struct child *child, uint64_t addr)
{
	for (unsigned int i = 0; i < child->logged; i++) {
		const struct uffd_msg *message = &child->log->message[i];

		switch (message->event) {
		case UFFD_EVENT_UNMAP:
		case UFFD_EVENT_REMOVE:
			if (addr >= message->arg.remove.start && addr < message->arg.remove.end)
				return 0;
			break;
		case UFFD_EVENT_REMAP:
			if (addr >= message->arg.remap.from && addr - message->arg.remap.from < message->arg.remap.len)
				addr = addr - message->arg.remap.from + message->arg.remap.to;
			break;
		default:
			break;
		}
	}
	return addr;
}

/* Its driver did not bring it in time, or has lost it: SIGBUS, and never zeros. */
static void poison_page(struct child *child, uint64_t page)
{
	for (int tries = 0; tries < TRIES_MAX; tries++) {
		uint64_t addr = address_in_child(child, page);
		size_t done;
		int r;

		if (!addr)
			return;
		r = kernel->uffd_poison(child->uffd, addr, HMM_PAGE_SIZE, &done);
		child->poisoned += r == 0;
		if (r != -EAGAIN)
			return;
		follow_child(child);
		sched_yield();
	}
}

static void copy_page(struct child *child, uint64_t page, const void *bytes)
{
	worker_gets_on(child->owner->worker);
	for (int tries = 0; tries < TRIES_MAX; tries++) {
		uint64_t addr = address_in_child(child, page);
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
			follow_child(child);
			sched_yield();
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
	if (!shadow || child->logged || end - first < 2)
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
	if (child->log)
		munmap(child->log, sizeof(*child->log));
	if (child->log_fd >= 0)
		close(child->log_fd);
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
	grandchild->log_fd = log_fd;
	map_log(grandchild);
	if (grandchild->log && child->log && !grandchild->log->wiped_known) {
		memcpy(grandchild->log->message, child->log->message, position * sizeof(struct uffd_msg));
		grandchild->logged = position;
		grandchild->log->wiped_known = 1;
	}
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

	for (unsigned int i = 0; i < child->logged; i++) {
		if (child->log->message[i].event != UFFD_EVENT_FORK)
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
	struct child child = { .owner = owner, .uffd = uffd, .log_fd = -1 };

	if (!owner->worker->engine->options.keep || !has_pages_out(owner))
		return;
	map_log(&child);
	keep(&child, NULL, position);
	if (!*child.name) {
		if (child.log_fd >= 0)
			close(child.log_fd);
	} else {
		/* With what it has, it is served as one that was left by somebody else. */
		fdstore_note(owner->worker->engine, child.name, child.log_fd);
	}
	if (child.log)
		munmap(child.log, sizeof(*child.log));
}

/* Into @child what is known of the one at that position. False: nobody has its userfaultfd any more. */
static bool find_child(struct child *child, uint64_t position)
{
	struct engine *engine = child->owner->worker->engine;
	int uffd = -1, log_fd = -1;

	name_child(child->owner, NULL, position, child->name);
	if (!fdstore_take(engine, child->name, &uffd, &log_fd))
		child->name[0] = '\0';
	child->log_fd = log_fd;
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

void fork_child_consume_fd(struct owner *owner, uint64_t position, int uffd)
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
	map_log(&child);
	if (child.log && !child.log->wiped_known) {
		int r = kernel->told(owner->smaps, 0, HMM_VA_END, find_wiped, &child);

		if (r)
			log_error("owner %u: a forked child may find bytes that were to be wiped: smaps: %s", owner->id, strerror(-r));
		child.log->wiped_known = 1;
	}
	fcntl(child.uffd, F_SETFL, O_NONBLOCK);
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
