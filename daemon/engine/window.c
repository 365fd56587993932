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
 * What another device holds is taken from it for a write; for a read the window
 * gets a copy (copies.c), as long as there is room for one.
 *
 * What can't be had (a file, a stack) is closed (closure.c): SIGBUS, and an event.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/breakage.h"
#include "engine/copies.h"
#include "engine/notice.h"
#include "engine/owner.h"
#include "engine/protect.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

/* How long a touch is tried again while its page is pinned or its mapping changes. */
#define TOUCH_NS		(5000 * NS_PER_MS)
/* Steps of a read on its way to a copy: to the holder, shared, copied; and somebody may interfere. */
#define COPY_STEPS		6

struct touch {
	struct task task;
	struct touch *next;		/* of its window */
	struct owner *owner;
	uint32_t window;
	uint64_t addr, flags;		/* the owner's address */
	unsigned int tries;
	unsigned int steps;		/* towards a copy */
	int64_t since;			/* asked first */
	bool again;			/* it was refused before: somebody does wait for it */
	bool copied;			/* a copy was sent home, or tried to */
	struct prefetch_span span;	/* what was sent to the device for it */
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
	return window_protect_for(block, block_mirror(block), first, end, protect);
}

int window_protect_for(struct block *block, const struct mirror *mirror, unsigned int first,
		       unsigned int end, bool protect)
{
	struct window *window;
	uint64_t start, length;
	int r = 0;

	TAILQ_FOREACH(window, &block->owner->windows, link) {
		int error;

		if (window->mirror != mirror ||
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

static void touch_serve(struct touch *touch);

static bool touch_writes(const struct touch *touch)
{
	return touch->flags & (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE);
}

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
		log_info("window %u: page %#lx can't be had: %s", window->id, touch_page(touch),
			 hmm_page_result_name(touch->result));
		window_close_page(window, touch->addr, error);
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

/* In the window's own shadow. */
static bool lies_there(const struct window *window, const struct block *block, unsigned int i)
{
	return block_mirror(block) == window->mirror || copies_have(block, window->mirror, i);
}

/* Maps what the shadow has, and the pages behind it that may be had alike. False: it has nothing. */
static bool show(struct window *window, const struct block *block, unsigned int first, uint64_t mode)
{
	enum hmm_page_state state = page_state(block, first);
	unsigned int end = first + 1;
	uint64_t start, length;
	size_t done;
	int r;

	while (end < HMM_BLOCK_PAGES && page_state(block, end) == state && lies_there(window, block, end))
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
	if (block_mirror(block) == window->mirror)
		block_touch(block);
	else if (copies_have(block, window->mirror, i))
		copies_touch(copies_find(block, window->mirror));
	/* Another device's: this window's shadow has nothing of it, or a copy to be read. */
	if (block_mirror(block) != window->mirror && page_state(block, i) != HMM_PAGE_ERROR &&
	    (!copies_have(block, window->mirror, i) || touch_writes(touch)))
		return false;
	switch (page_state(block, i)) {
	case HMM_PAGE_DEVICE:
	case HMM_PAGE_COHERENT:
		if (touch->flags & UFFD_PAGEFAULT_FLAG_WP)
			kernel->uffd_protect(window->uffd, page, HMM_PAGE_SIZE, false);
		if (*guard_of(window, block) && show(window, block, i, 0))
			return true;
		/* A hole in the shadow is zeros, in the one page that all map. */
		if (!kernel->uffd_zero(window->uffd, page, HMM_PAGE_SIZE, &done))
			return true;
		kernel->uffd_wake(window->uffd, page, HMM_PAGE_SIZE);
		return true;
	case HMM_PAGE_SHARED:
		if (touch_writes(touch))
			return false;
		/* Without the mode (before Linux 6.4) it has to be D. */
		if (*guard_of(window, block))
			return show(window, block, i, UFFDIO_CONTINUE_MODE_WP);
		kernel->uffd_wake(window->uffd, page, HMM_PAGE_SIZE);
		return true;
	case HMM_PAGE_ERROR:
		window_close_page(window, touch->addr, -EIO);
		return true;
	case HMM_PAGE_INVALID:
	case HMM_PAGE_REMOTE:
		break;
	}
	return false;
}

void window_arrived(struct block *block)
{
	struct window *window;

	TAILQ_FOREACH(window, &block->owner->windows, link) {
		if (!window->armed || window->mirror != block_mirror(block) || window->revoked)
			continue;
		for (struct touch *touch = window->touches; touch; touch = touch->next)
			if (touch->addr - block->addr < HMM_BLOCK_SIZE)
				touch_present(window, block, touch);
	}
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
 * away from the CPU each time would only make both wait. What was said of the
 * memory comes first.
 */
static struct prefetch_span touch_span(struct window *window, const struct block *block, uint64_t addr)
{
	uint64_t page = addr >> HMM_PAGE_SHIFT, base = block->addr >> HMM_PAGE_SHIFT;
	uint64_t end = base + HMM_BLOCK_PAGES;
	struct prefetch_hint hint = attribute_hint(block->owner, addr, true);
	struct prefetch_span span;
	unsigned int asked;

	if (!hint.off && !hint.granularity && !block_count(block, HMM_PAGE_DEVICE) &&
	    !block_count(block, HMM_PAGE_SHARED) && !block->touched)
		return (struct prefetch_span){ base, end };
	asked = prefetch_ask(&window->prefetch, page, HMM_BLOCK_PAGES / 2);
	span = prefetch_span(page, asked, &hint, base, end);
	prefetch_brought(&window->prefetch, page, span.end, asked);
	return span;
}

/* It came for a read, and both sides are to have it. True: a copy is on its way home. */
static bool touch_leaves_copy(struct window *window, struct block *block, struct touch *touch)
{
	const struct mirror *mirror = window->mirror;
	struct pages pages = { 0 };

	if (touch->copied || !touch->tries || touch->result != HMM_PAGE_RESULT_MOVED ||
	    touch->flags & (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE) ||
	    block_mirror(block) != mirror || mirror->leaving ||
	    !attribute_wants_copy(block->owner, mirror, touch->addr) || !owner_may_share(block->owner))
		return false;
	touch->copied = true;
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (page_state(block, i) == HMM_PAGE_DEVICE &&
		    page_addr(block, i) >= touch->span.start << HMM_PAGE_SHIFT &&
		    page_addr(block, i) < touch->span.end << HMM_PAGE_SHIFT &&
		    attribute_wants_copy(block->owner, mirror, page_addr(block, i)))
			pages_set(&pages, i);
	if (!pages_test(&pages, page_index(touch->addr)))
		return false;
	owner_queue(block->owner, &touch->task);
	home_begin(block, &pages, HMM_BLOCK_PAGES, true, HMM_REASON_MIGRATE, 0, NULL);
	return true;
}

/* Another device holds the block: a read may do with a copy. */
static enum copies_answer touch_copy(struct window *window, struct block *block, struct touch *touch)
{
	struct mirror *mirror = window->mirror;
	enum copies_answer answer;
	struct prefetch_span span;

	if (!block_mirror(block) || block_mirror(block) == mirror || touch_writes(touch) || touch->tries ||
	    touch->steps++ >= COPY_STEPS)
		return COPIES_NONE;
	span = touch_span(window, block, touch->addr);
	answer = copies_get(block, mirror, page_index(touch->addr),
			    (unsigned int)(span.end - (touch->addr >> HMM_PAGE_SHIFT)), &touch->task,
			    &touch->result);
	if (answer != COPIES_MADE ||
	    show(window, block, page_index(touch->addr), UFFDIO_CONTINUE_MODE_WP))
		return answer;
	mirror->blind = true;
	return COPIES_NONE;
}

static void touch_serve(struct touch *touch)
{
	enum copies_answer copy;
	struct owner *owner = touch->owner;
	struct window *window = window_by_id(owner, touch->window);
	struct block *block;

	if (!window || owner->gone)
		goto out;	/* unmapped meanwhile: its driver was woken by that */
	if (owner->recovering)
		goto later;
	if (window->revoked) {
		window_close_page(window, touch->addr, -ETIMEDOUT);
		goto out;
	}
	block = block_get(owner, touch->addr);
	if (!block)
		goto later;
	if (!block_at_rest(block)) {
		block_park(block, &touch->task);
		return;
	}
	/* The program may have asked the kernel itself to protect it. */
	if (protect_is_due(block, touch->addr)) {
		if (owner->worker->now - touch->since > TOUCH_NS) {
			touch_refuse(window, touch, -EPERM);
			goto out;
		}
		protect_follow(block, 0, HMM_BLOCK_PAGES);
		if (block_at_rest(block))
			goto later;
		block_park(block, &touch->task);
		return;
	}
	if (touch_leaves_copy(window, block, touch))
		return;
	if (touch_present(window, block, touch))
		goto out;
	copy = touch_copy(window, block, touch);
	if (copy == COPIES_MADE)
		goto out;
	if (copy == COPIES_COMING)
		return;
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
		touch_refuse(window, touch, page_result_error(touch->result));
		block_settle_later(block);
		goto out;
	}
	/* A discard that may yet take the page: it ends by itself, however often it is asked. */
	block_look_for_zap(block);
	if (pages_test(&block->zapping, page_index(touch->addr)) && !window->mirror->leaving)
		goto later;
	if (owner->worker->now - touch->since > TOUCH_NS || owner->gone || window->mirror->leaving) {
		touch_refuse(window, touch, page_result_error(touch->result));
		goto out;
	}
	if (touch->tries++ > 2) {
		/* Pinned or changing: not in a loop that burns a processor. */
		touch->task.run = touch_run;
		if (touch->tries % 2)
			goto later;
	}
	touch->span = touch_span(window, block, touch->addr);
	migrate_for_window(window->mirror, touch->addr, touch->span, &touch->task, &touch->result);
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
		notice(owner, (struct hmm_notice){
			.kind = HMM_EVENT_KIND_WINDOW_FAULT, .mirror = window->mirror->id,
			.start = touch_page(touch), .end = touch_page(touch) + HMM_PAGE_SIZE, .pages = 1 });
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
	span_set_deinit(&window->closed);
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
	/* Whatever else of the block is under way: these are equal to the CPU's, and stay so. */
	block_pages_in(block, HMM_PAGE_SHARED, 0, HMM_BLOCK_PAGES, &shared);
	for (; pages_run(&shared, &first, &end); first = end)
		window_protect(block, first, end, true);
	copies_protect(block);
	if (!block_at_rest(block))
		return;		/* its end looks at the window itself */
	/* All that is not complete, wherever it came from: khugepaged fills gaps with zeros. */
	for (unsigned int i = 0; i < HMM_BLOCK_PAGES; i++)
		if (!(block->record->page[i] & HMM_PAGE_COMPLETE))
			pages_set(&block->stale, i);
	block_punch_stale(block);
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
