/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * window.c - shadows mapped at the owner's addresses in a driver process, with
 * a userfaultfd of the driver's. Runs on the owner's worker.
 *
 * Happy path: a touch of a hole in the shadow is a MISSING fault; the block
 * goes to the device (migrate_for_window) and the driver is woken. From then
 * on the kernel maps the pages by itself, whole huge pages if it can. It also
 * maps pages that the agent is still filling, so under a window a fill lets each
 * page appear with its bytes; a window is armed when no other fill, and no way
 * home by slot, is going on in its range.
 *
 * Taking pages away needs no help of the driver: protect, copy home, punch,
 * wake. Punching a part of a huge page has it zeroed first and split then, and
 * the split fails while somebody holds it: zeros stay where the hole should be.
 * So before anything is taken from a block the block is guarded: registered for
 * protection, and for MINOR faults, which ask for each page that lies in the
 * shadow and is not mapped. That splits the mapping into 4K for good, which
 * blocks that nobody contends for are spared.
 *
 * What can't be had (a file, a stack) is poisoned: SIGBUS, and an event.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/breakage.h"
#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

/* How long a touch is tried again while its page is pinned or its mapping changes. */
#define TOUCH_NS		(5000 * NS_PER_MS)

struct touch {
	struct task task;
	struct touch *next;		/* of its window */
	struct owner *owner;
	uint32_t window;
	uint64_t addr, flags;		/* the owner's address */
	unsigned int tries;
	int64_t since;			/* asked first */
	bool again;			/* it was refused before: somebody does wait for it */
	uint8_t result;			/* enum hmm_page_result of the migration */
};

static struct window *window_by_id(struct owner *owner, uint32_t id)
{
	struct window *window;

	TAILQ_FOREACH(window, &owner->windows, link)
		if (window->id == id)
			return window;
	return NULL;
}

static uint64_t driver_addr(const struct window *window, uint64_t addr)
{
	return window->at + (addr - window->start);
}

/* [first, end) of the block as far as the window has it; false: not at all. */
static bool overlap(const struct window *window, const struct block *block, unsigned int first,
		    unsigned int end, uint64_t *start, uint64_t *length)
{
	uint64_t from = page_addr(block, first), to = block->addr + (uint64_t)end * HMM_PAGE_SIZE;

	if (!window->armed)
		return false;
	if (from < window->start)
		from = window->start;
	if (to > window->end)
		to = window->end;
	if (from >= to)
		return false;
	*start = driver_addr(window, from);
	*length = to - from;
	return true;
}

static bool *guard_of(struct window *window, const struct block *block)
{
	uint64_t base = window->start & ~(HMM_BLOCK_SIZE - 1);

	return &window->guarded[(block->addr - base) >> HMM_BLOCK_SHIFT];
}

/* At its first need, and for good. */
static int guard(struct window *window, const struct block *block)
{
	const uint64_t modes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP |
			       (broken("skip-guard") ? 0 : UFFDIO_REGISTER_MODE_MINOR);
	bool *guarded = guard_of(window, block);
	uint64_t start, length;
	int r;

	if (*guarded || !overlap(window, block, 0, HMM_BLOCK_PAGES, &start, &length))
		return 0;
	r = kernel->uffd_register(window->uffd, start, length, modes);
	if (!r)
		*guarded = true;
	return r;
}

/* A process that is going away has no memory for a registration: it can't access anything any more. */
static bool is_leaving(const struct window *window, uint64_t start, int error)
{
	return error == -ESRCH || error == -ENOENT ||
	       (error == -ENOMEM &&
		kernel->uffd_protect(window->uffd, start, HMM_PAGE_SIZE, false) == -ESRCH);
}

void window_guard(struct block *block)
{
	struct owner *owner = block->owner;
	uint64_t start, length;
	struct window *window;
	int r;

	TAILQ_FOREACH(window, &owner->windows, link) {
		if (window->mirror != block_mirror(block) ||
		    !overlap(window, block, 0, HMM_BLOCK_PAGES, &start, &length))
			continue;
		r = guard(window, block);
		if (r && !is_leaving(window, start, r))
			window_revoke(owner, window->peer, block->addr, block->addr + HMM_BLOCK_SIZE, r);
	}
}

int window_protect(struct block *block, unsigned int first, unsigned int end, bool protect)
{
	struct window *window;
	uint64_t start, length;
	int r = 0;

	TAILQ_FOREACH(window, &block->owner->windows, link) {
		int error;

		if (window->mirror != block_mirror(block) ||
		    !overlap(window, block, first, end, &start, &length))
			continue;
		if (!protect && !*guard_of(window, block))
			continue;
		error = guard(window, block);
		if (!error)
			error = kernel->uffd_protect(window->uffd, start, length, protect);
		if (error && !is_leaving(window, start, error)) {
			log_warn("window %u: %s of %#lx failed: %s", window->id,
				 protect ? "protection" : "release", start, strerror(-error));
			r = error;
		}
	}
	return r;
}

void window_wake(struct block *block, unsigned int first, unsigned int end)
{
	struct window *window;
	uint64_t start, length;

	TAILQ_FOREACH(window, &block->owner->windows, link)
		if (overlap(window, block, first, end, &start, &length))
			kernel->uffd_wake(window->uffd, start, length);
}

/* ---- touches ------------------------------------------------------------------ */

static void poison(struct window *window, uint64_t addr, int error)
{
	uint64_t page = addr & ~(HMM_PAGE_SIZE - 1);
	struct hmm_msg_window_revoked *message;
	size_t done;
	int r;

	/* Poison is refused where a write-protect marker stands. */
	kernel->uffd_protect(window->uffd, driver_addr(window, page), HMM_PAGE_SIZE, false);
	r = kernel->uffd_poison(window->uffd, driver_addr(window, page), HMM_PAGE_SIZE, &done);
	if (r == -EEXIST || r == -EAGAIN) {
		/* Something is there after all: the driver asks again. */
		kernel->uffd_wake(window->uffd, driver_addr(window, page), HMM_PAGE_SIZE);
		return;
	}
	if (r && r != -ESRCH)
		log_error("window %u: %#lx can't be had (%s) nor poisoned (%s): the driver waits",
			  window->id, page, strerror(-error), strerror(-r));
	message = malloc(sizeof(*message));
	if (!message)
		return;
	HMM_MSG_INIT(*message, HMM_OP_WINDOW_REVOKED, 0);
	message->window = window->id;
	message->error = error;
	message->start = page;
	message->end = page + HMM_PAGE_SIZE;
	worker_event(window->mirror->owner->worker, window->peer, message, -1);
	owner_count(window->mirror->owner, COUNTER_REVOKED_WINDOWS, 1);
}

static int touch_error(uint8_t result)
{
	switch (result) {
	case HMM_PAGE_RESULT_HOLE:
		return -EFAULT;
	case HMM_PAGE_RESULT_FULL:
		return -ENOSPC;
	case HMM_PAGE_RESULT_READONLY:
		return -EPERM;
	case HMM_PAGE_RESULT_PINNED:
	case HMM_PAGE_RESULT_CHANGED:
		return -EBUSY;
	default:
		return -EOPNOTSUPP;
	}
}

static void touch_serve(struct touch *touch);

static uint64_t touch_page(const struct touch *touch)
{
	return touch->addr & ~(HMM_PAGE_SIZE - 1);
}

/*
 * A touch may be long over: its thread was woken on behalf of the block and went
 * on, and the page has been unmapped since. So the page is only woken at
 * first; it is closed for a thread that comes back for it.
 */
static void touch_refuse(struct window *window, const struct touch *touch, int error)
{
	if (touch->again) {
		poison(window, touch->addr, error);
		return;
	}
	window->refused[window->refusals++ % WINDOW_REFUSALS] = touch_page(touch);
	kernel->uffd_wake(window->uffd, driver_addr(window, touch_page(touch)), HMM_PAGE_SIZE);
}

static bool was_refused(struct window *window, uint64_t page)
{
	for (unsigned int i = 0; i < WINDOW_REFUSALS; i++) {
		if (window->refused[i] != page)
			continue;
		window->refused[i] = 0;
		return true;
	}
	return false;
}

/* A thread that is woken with its block asks again while its first touch is still being served. */
static bool touch_joins(struct window *window, uint64_t addr, uint64_t flags)
{
	for (struct touch *touch = window->touches; touch; touch = touch->next) {
		if (touch_page(touch) != (addr & ~(HMM_PAGE_SIZE - 1)))
			continue;
		touch->flags |= flags;
		return true;
	}
	return false;
}

static void touch_free(struct window *window, struct touch *touch)
{
	struct touch **at = window ? &window->touches : NULL;

	while (at && *at && *at != touch)
		at = &(*at)->next;
	if (at && *at)
		*at = touch->next;
	free(touch);
}

static void touch_run(struct task *task)
{
	touch_serve((struct touch *)task);
}

/* Maps what the shadow has, and the pages behind it that may be had alike. False: it has nothing. */
static bool show(struct window *window, const struct block *block, unsigned int first, uint64_t mode)
{
	enum hmm_page_state state = page_state(block, first);
	unsigned int end = first + 1;
	uint64_t start, length;
	size_t done;
	int r;

	while (end < HMM_BLOCK_PAGES && page_state(block, end) == state)
		end++;
	if (!overlap(window, block, first, end, &start, &length))
		return false;
	r = kernel->uffd_continue(window->uffd, start, length, mode, &done);
	if (!r || done)
		return true;
	/* Mapped already, or to be asked again. */
	if (r != -EFAULT && r != -EINVAL)
		kernel->uffd_wake(window->uffd, start, HMM_PAGE_SIZE);
	return r != -EFAULT && r != -EINVAL;
}

/* It lies in the shadow: the driver may have it, or has to get it from the CPU first. */
static bool touch_present(struct window *window, struct block *block, struct touch *touch)
{
	unsigned int i = page_index(touch->addr);
	uint64_t page = driver_addr(window, touch->addr & ~(HMM_PAGE_SIZE - 1));
	size_t done;

	/* It was guarded before hmmd started anew. */
	if (touch->flags & UFFD_PAGEFAULT_FLAG_MINOR)
		*guard_of(window, block) = true;
	/* Another device's: this window's shadow has nothing of it. */
	if (block_mirror(block) != window->mirror && page_state(block, i) != HMM_PAGE_ERROR)
		return false;
	switch (page_state(block, i)) {
	case HMM_PAGE_DEVICE:
		if (touch->flags & UFFD_PAGEFAULT_FLAG_WP)
			kernel->uffd_protect(window->uffd, page, HMM_PAGE_SIZE, false);
		/* fall through */
	case HMM_PAGE_COHERENT:
		if (*guard_of(window, block) && show(window, block, i, 0))
			return true;
		/* A hole in the shadow is zeros, in the one page that all map. */
		if (!kernel->uffd_zero(window->uffd, page, HMM_PAGE_SIZE, &done))
			return true;
		kernel->uffd_wake(window->uffd, page, HMM_PAGE_SIZE);
		return true;
	case HMM_PAGE_SHARED:
		if (touch->flags & (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE))
			return false;
		/* Without the mode (before Linux 6.4) it has to be D. */
		if (*guard_of(window, block))
			return show(window, block, i, UFFDIO_CONTINUE_MODE_WP);
		kernel->uffd_wake(window->uffd, page, HMM_PAGE_SIZE);
		return true;
	case HMM_PAGE_ERROR:
		poison(window, touch->addr, -EIO);
		return true;
	case HMM_PAGE_INVALID:
	case HMM_PAGE_REMOTE:
		break;
	}
	return false;
}

/* Reasons that may be gone in a moment: I/O ends, a map comes to rest, memory is found. */
static bool may_change(uint8_t result)
{
	return result == HMM_PAGE_RESULT_PINNED || result == HMM_PAGE_RESULT_CHANGED ||
	       result == HMM_PAGE_RESULT_ERROR;
}

/*
 * A block that the CPU has to itself comes whole. One that both are using comes
 * page by page, or as far as the touches look like a walk: to pull all of it
 * away from the CPU each time would only make both wait.
 */
static unsigned int touch_pages(struct window *window, const struct block *block, uint64_t addr)
{
	uint64_t page = addr >> HMM_PAGE_SHIFT;
	unsigned int asked;

	if (!block_count(block, HMM_PAGE_DEVICE) && !block_count(block, HMM_PAGE_SHARED) &&
	    !block->touched)
		return HMM_BLOCK_PAGES;
	asked = prefetch_ask(&window->prefetch, page, HMM_BLOCK_PAGES / 2);
	prefetch_brought(&window->prefetch, page, page + asked, asked);
	return asked;
}

static void touch_serve(struct touch *touch)
{
	struct owner *owner = touch->owner;
	struct window *window = window_by_id(owner, touch->window);
	struct block *block;

	if (!window || owner->gone)
		goto out;	/* unmapped meanwhile: its driver was woken by that */
	if (owner->recovering)
		goto later;
	if (window->revoked) {
		poison(window, touch->addr, -ETIMEDOUT);
		goto out;
	}
	block = block_get(owner, touch->addr);
	if (!block)
		goto later;
	if (!block_at_rest(block)) {
		block_park(block, &touch->task);
		return;
	}
	if (touch_present(window, block, touch))
		goto out;
	if (touch->tries && (touch->result == HMM_PAGE_RESULT_MOVED ||
			     touch->result == HMM_PAGE_RESULT_ALREADY)) {
		/*
		 * It was here, and another device or the CPU has it again. Its thread was
		 * woken and may be content: it asks again if it came too late. A touch that
		 * nobody waits for must not take pages from those who do.
		 */
		kernel->uffd_wake(window->uffd, driver_addr(window, touch_page(touch)), HMM_PAGE_SIZE);
		goto out;
	}
	if (touch->tries && !may_change(touch->result)) {
		if (page_state(block, page_index(touch->addr)) == HMM_PAGE_SHARED) {
			/* The CPU won't give it up: then the window lets go of its copy. */
			struct pages page = { 0 };

			pages_set(&page, page_index(touch->addr));
			owner_queue(owner, &touch->task);
			unshare_begin(block, &page, HMM_REASON_CPU_WRITE, NULL);
			return;
		}
		touch_refuse(window, touch, touch_error(touch->result));
		block_settle_later(block);
		goto out;
	}
	/* A discard that may yet take the page: it ends by itself, however often it is asked. */
	block_look_for_zap(block);
	if (pages_test(&block->zapping, page_index(touch->addr)) && !window->mirror->leaving)
		goto later;
	if (owner->worker->now - touch->since > TOUCH_NS || owner->gone || window->mirror->leaving) {
		touch_refuse(window, touch, touch_error(touch->result));
		goto out;
	}
	if (touch->tries++ > 2) {
		/* Pinned or changing: not in a loop that burns a processor. */
		touch->task.run = touch_run;
		if (touch->tries % 2)
			goto later;
	}
	migrate_for_window(block, window->mirror, touch->addr, touch_pages(window, block, touch->addr),
			   &touch->task, &touch->result);
	return;
later:
	TAILQ_INSERT_TAIL(&owner->retry, &touch->task, link);
	worker_alarm(owner->worker, owner->worker->now + NS_PER_MS);
	return;
out:
	touch_free(window, touch);
}

static void window_ready(struct source *source)
{
	struct window *window =
		(struct window *)((char *)source - offsetof(struct window, source));
	struct owner *owner = window->mirror->owner;
	uint32_t id = window->id;
	struct uffd_msg message;

	while (window && kernel->uffd_read(window->uffd, &message, sizeof(message)) ==
		       (ssize_t)sizeof(message)) {
		uint64_t at = message.arg.pagefault.address;
		struct touch *touch;

		if (message.event != UFFD_EVENT_PAGEFAULT || at < window->at ||
		    at - window->at >= window->end - window->start)
			continue;
		at = window->start + (at - window->at);
		if (touch_joins(window, at, message.arg.pagefault.flags))
			continue;
		touch = calloc(1, sizeof(*touch));
		if (!touch) {
			kernel->uffd_wake(window->uffd, driver_addr(window, at & ~(HMM_PAGE_SIZE - 1)),
					  HMM_PAGE_SIZE);
			continue;
		}
		touch->task.run = touch_run;
		touch->owner = owner;
		touch->window = id;
		touch->addr = at;
		touch->flags = message.arg.pagefault.flags;
		touch->since = owner->worker->now;
		touch->again = was_refused(window, touch_page(touch));
		touch->next = window->touches;
		window->touches = touch;
		owner_count(owner, COUNTER_WINDOW_FAULTS, 1);
		touch_serve(touch);
		window = window_by_id(owner, id);
	}
}

/* ---- mapping --------------------------------------------------------------------- */

/* How many serve, so that a successor knows for how many to wait. */
static void note_armed(struct window *window, pid_t driver)
{
	struct mirror *mirror = window->mirror;
	struct hmm_journal_mirror *note = &mirror->owner->journal->mirror[mirror->index];

	note->driver = driver;
	if (mirror->awaited)
		mirror->awaited--;
	else
		note->windows++;
}

static void note_gone(struct window *window)
{
	struct mirror *mirror = window->mirror;
	struct hmm_journal_mirror *note = &mirror->owner->journal->mirror[mirror->index];

	if (!window->armed || mirror->owner->abandoned)
		return;
	/* Its driver comes back once more, or has died: recover.c finds out. */
	if (mirror->owner->recovering)
		mirror->awaited++;
	else if (note->windows)
		note->windows--;
}

static void window_free(struct window *window)
{
	struct owner *owner = window->mirror->owner;

	note_gone(window);
	TAILQ_REMOVE(&owner->windows, window, link);
	window->mirror->windows--;
	reactor_remove(owner->worker->reactor, &window->source);
	close(window->uffd);
	free(window->guarded);
	free(window);
}

static int handshake(int uffd)
{
	const uint64_t want = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
			      UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
	int r = kernel_uffd_api(uffd, want, NULL);

	/* -EINVAL: shaken already, by the hmmd before this one; registering will tell. */
	return r == -EINVAL ? 0 : r;
}

static int window_map(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_window_map *message = (const void *)letter->message;
	struct mirror *mirror = mirror_by_id(owner, message->mirror);
	struct hmm_msg_window_map_reply *reply;
	uint64_t end = message->addr + message->length, at;
	struct window *window;
	uint32_t index = 0;
	int r;

	if (!mirror || mirror->leaving || owner->closing)
		return letter_fail(letter, -ENOENT, "no mirror %u", message->mirror);
	if (device_is_far(mirror->device))
		return letter_fail(letter, -EOPNOTSUPP,
				   "%s has memory that only its driver reaches: there is nothing to map", mirror->device->name);
	if (mirror->device->pool->kind == HMM_POOL_KIND_HUGETLB)
		return letter_fail(letter, -EOPNOTSUPP,
				   "windows over a hugetlb pool are not possible: it can't be punched by 4 KiB; use memfd-huge");
	if (owner->worker->engine->facts.shmem_unasked)
		return letter_fail(letter, -EOPNOTSUPP,
				   "shmem_enabled puts huge pages of zeros where nobody asked for them: windows need it at advise or never");
	if (letter->pid == owner->pid)
		return letter_fail(letter, -EBUSY,
				   "a window in the owner itself would lie on the very memory it shows");
	r = owner_is_userfaultfd(letter->fds[0]) ? handshake(letter->fds[0]) : -EBADF;
	if (r)
		return letter_fail(letter, r, "the descriptor is no usable userfaultfd: %s", strerror(-r));
	window = calloc(1, sizeof(*window));
	if (window)
		window->guarded = calloc(((end - message->addr) >> HMM_BLOCK_SHIFT) + 2,
					 sizeof(*window->guarded));
	if (!window || !window->guarded) {
		free(window);
		return letter_fail(letter, -ENOMEM, "out of memory for a window of %lu bytes",
				   message->length);
	}
	do
		window->id = owner->id << 16 | (++owner->next_window & 0xffff);
	while (window_by_id(owner, window->id) || !(window->id & 0xffff));
	window->mirror = mirror;
	window->peer = letter->peer;
	window->uffd = letter_take_fd(letter, 0);
	window->start = message->addr;
	window->end = end;
	window->at = message->at ? message->at : message->addr;
	fcntl(window->uffd, F_SETFL, O_NONBLOCK);
	TAILQ_INSERT_TAIL(&owner->windows, window, link);
	mirror->windows++;

	for (at = message->addr; at < end; at = (at & ~(HMM_REGION_SIZE - 1)) + HMM_REGION_SIZE) {
		uint64_t stop = (at & ~(HMM_REGION_SIZE - 1)) + HMM_REGION_SIZE;
		struct shadow *shadow;

		r = mirror_shadow(mirror, at, &shadow);
		if (r) {
			window_free(window);
			return letter_fail(letter, r, "no shadow for %#lx: %s", at, strerror(-r));
		}
		mirror_send_region(mirror, shadow, letter->peer, window->id, index++, at,
				   (stop < end ? stop : end) - at);
	}
	reply = letter_reply(letter, HMM_OP_WINDOW_MAP_REPLY, sizeof(*reply));
	if (!reply)
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	reply->window = window->id;
	reply->regions = index;
	return 0;
}

/* What the shadow holds already must look right before the driver's first touch. */
static void arm_block(struct block *block, void *data)
{
	struct pages shared;
	unsigned int first = 0, end;

	(void)data;
	if (!block_at_rest(block))
		return;		/* its end looks at the window itself */
	/* All that is not complete, wherever it came from: khugepaged fills gaps with zeros. */
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (!(block->record->page[i] & HMM_PAGE_COMPLETE))
			pages_set(&block->stale, i);
	block_punch_stale(block);
	block_pages_in(block, HMM_PAGE_SHARED, 0, HMM_BLOCK_PAGES, &shared);
	for (; pages_run(&shared, &first, &end); first = end)
		window_protect(block, first, end, true);
}

struct arming {
	struct task task;
	struct owner *owner;
	struct letter *letter;
};

/*
 * What began before the window was there and does not mind it: a fill that shows
 * zeros before bytes, and pages that go home with nothing protected.
 */
static void find_blind_order(struct block *block, void *data)
{
	if (block->order && (block->order->flags & HMM_ORDER_WHOLE || block->order->kind == HMM_ORDER_HOME_SLOT))
		*(struct block **)data = block;
}

static int arm(struct owner *owner, struct window *window, struct letter *letter)
{
	int r = kernel->uffd_register(window->uffd, window->at, window->end - window->start,
				      UFFDIO_REGISTER_MODE_MISSING);

	if (!r)
		r = reactor_add(owner->worker->reactor, &window->source, window->uffd, window_ready);
	if (r)
		return letter_fail(letter, r,
				   "the window's userfaultfd could not be registered at %#lx: %s",
				   window->at, strerror(-r));
	window->armed = true;
	note_armed(window, letter->pid);
	block_for_each(owner, window->start, window->end, arm_block, NULL);
	/* After a restart: faults that the dead hmmd had read are asked again. */
	kernel->uffd_wake(window->uffd, window->at, window->end - window->start);
	if (!letter_reply(letter, HMM_OP_WINDOW_ARMED_REPLY, sizeof(struct hmm_msg_window_armed_reply)))
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	return 0;
}

static void arming_run(struct task *task)
{
	struct arming *arming = (struct arming *)task;
	const struct hmm_msg_window_armed *message = (const void *)arming->letter->message;
	struct owner *owner = arming->owner;
	struct window *window = window_by_id(owner, message->window);
	struct block *busy = NULL;

	if (!window || window->peer != arming->letter->peer || owner->gone) {
		letter_fail(arming->letter, -ENOENT, "no window %u", message->window);
	} else if (window->armed) {
		letter_fail(arming->letter, -EALREADY, "window %u is armed", message->window);
	} else {
		block_for_each(owner, window->start, window->end, find_blind_order, &busy);
		if (busy) {
			block_park(busy, &arming->task);
			return;
		}
		arm(owner, window, arming->letter);
	}
	worker_reply(owner->worker, arming->letter);
	free(arming);
}

static void window_armed(struct owner *owner, struct letter *letter)
{
	struct arming *arming = calloc(1, sizeof(*arming));

	if (!arming) {
		letter_fail(letter, -ENOMEM, "out of memory");
		worker_reply(owner->worker, letter);
		return;
	}
	arming->task.run = arming_run;
	arming->owner = owner;
	arming->letter = letter;
	/* While the owner is taken over nothing is under way, and nothing queued is run. */
	if (owner->recovering)
		arming_run(&arming->task);
	else
		owner_queue(owner, &arming->task);
}

static int window_unmap(struct owner *owner, struct letter *letter)
{
	const struct hmm_msg_window_unmap *message = (const void *)letter->message;
	struct window *window = window_by_id(owner, message->window);

	if (!window || window->peer != letter->peer)
		return letter_fail(letter, -ENOENT, "no window %u", message->window);
	window_free(window);
	if (!letter_reply(letter, HMM_OP_WINDOW_UNMAP_REPLY, sizeof(struct hmm_msg_window_unmap_reply)))
		return letter_fail(letter, -ENOMEM, "out of memory for the answer");
	return 0;
}

void window_request(struct owner *owner, struct letter *letter)
{
	switch (letter->message->opcode) {
	case HMM_OP_WINDOW_MAP:
		window_map(owner, letter);
		break;
	case HMM_OP_WINDOW_ARMED:
		window_armed(owner, letter);
		return;		/* answered when it is */
	default:
		window_unmap(owner, letter);
	}
	worker_reply(owner->worker, letter);
}

void window_peer_gone(struct owner *owner, uint64_t peer)
{
	struct window *window, *next;

	for (window = TAILQ_FIRST(&owner->windows); window; window = next) {
		next = TAILQ_NEXT(window, link);
		if (window->peer == peer)
			window_free(window);
	}
}

void window_close_all(struct owner *owner, struct mirror *mirror)
{
	struct window *window, *next;

	for (window = TAILQ_FIRST(&owner->windows); window; window = next) {
		next = TAILQ_NEXT(window, link);
		if (!mirror || window->mirror == mirror) {
			/* The driver holds its userfaultfd: it waits, and never sees zeros. */
			window_free(window);
		}
	}
}

void window_revoke(struct owner *owner, uint64_t peer, uint64_t start, uint64_t end, int error)
{
	struct window *window;

	TAILQ_FOREACH(window, &owner->windows, link) {
		struct hmm_msg_window_revoked *message;

		if (window->peer != peer || window->start >= end || window->end <= start ||
		    window->revoked)
			continue;
		window->revoked = true;
		owner_count(owner, COUNTER_REVOKED_WINDOWS, 1);
		message = malloc(sizeof(*message));
		if (!message)
			continue;
		HMM_MSG_INIT(*message, HMM_OP_WINDOW_REVOKED, 0);
		message->window = window->id;
		message->error = error;
		message->start = window->start;
		message->end = window->end;
		worker_event(owner->worker, peer, message, -1);
	}
}
