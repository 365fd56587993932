/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * touch.c - a touch by a driver, of a window's page that is not there as it wants
 * it. Runs on the owner's worker.
 *
 * Happy path: a touch of a hole in the shadow is a MISSING fault; the block goes
 * to the device (migrate_for_window) and the driver is woken. In a block that is
 * guarded (window.c) the touch of a page that lies in the shadow is a MINOR
 * fault, and of one that the CPU may read too a write's protection fault.
 *
 * What another device holds is taken from it for a write; for a read the window
 * gets a copy (copies.c), as long as there is room for one.
 *
 * While the owner or the mirror ends nothing goes out any more: touches sleep.
 *
 * What can't be had (a file, a stack) is closed (closure.c): SIGBUS, and an event.
 */
#include <errno.h>
#include <stdlib.h>

#include "engine/breakage.h"
#include "engine/copies.h"
#include "engine/notice.h"
#include "engine/owner.h"
#include "engine/protect.h"
#include "engine/window.h"
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

static void touch_serve(struct touch *touch);

static bool touch_writes(const struct touch *touch)
{
	return touch->flags & (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE);
}

static uint64_t touch_page(const struct touch *touch)
{
	return touch->addr & ~(HMM_PAGE_SIZE - 1);
}

/* For a reason that lies in the mapping, which may have changed since the migration looked. */
static bool is_out_of_date(const struct window *window, const struct touch *touch)
{
	return (touch->result == HMM_PAGE_RESULT_READONLY || touch->result == HMM_PAGE_RESULT_HOLE) &&
	       window_may_show_by_now(window, touch_page(touch));
}

/*
 * A touch may be long over: its thread was woken on behalf of the block and went
 * on, and the page has been unmapped since. So the page is only woken at
 * first; it is closed for a thread that comes back for it.
 */
static void touch_refuse(struct window *window, const struct touch *touch, int error)
{
	if (touch->again && !is_out_of_date(window, touch)) {
		log_info("window %u: page %#lx can't be had: %s", window->id, touch_page(touch),
			 hmm_page_result_name(touch->result));
		window_close_page(window, touch->addr, error);
		return;
	}
	window->refused[window->refusals++ % WINDOW_REFUSALS] = touch_page(touch);
	kernel->uffd_wake(window->uffd, driver_addr(window, touch_page(touch)), HMM_PAGE_SIZE);
}

/* Of a device that cannot fault: what is neither coherent nor pinned on it is not fetched. */
static void touch_unreachable(struct window *window, struct touch *touch)
{
	if (!touch->again)
		owner_count(touch->owner, COUNTER_UNREACHABLE, 1);
	touch->result = HMM_PAGE_RESULT_ERROR;
	touch_refuse(window, touch, -EFAULT);
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
	if (!window_overlap(window, block, first, end, &start, &length))
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
	struct copy *copy = copies_find(block, window->mirror);
	unsigned int i = page_index(touch->addr);
	uint64_t page = driver_addr(window, touch->addr & ~(HMM_PAGE_SIZE - 1));
	size_t done;

	if (copy && !pages_test(&copy->pages, i))
		copy = NULL;
	/* It was guarded before hmmd started anew. */
	if (touch->flags & UFFD_PAGEFAULT_FLAG_MINOR)
		*window_guarded(window, block) = true;
	if (block_mirror(block) == window->mirror)
		block_touch(block);
	else if (copy)
		copies_touch(copy);
	/* Another device's: this window's shadow has nothing of it, or a copy to be read. */
	if (block_mirror(block) != window->mirror && page_state(block, i) != HMM_PAGE_ERROR &&
	    (!copy || touch_writes(touch)))
		return false;
	switch (page_state(block, i)) {
	case HMM_PAGE_DEVICE:
	case HMM_PAGE_COHERENT:
		if (touch->flags & UFFD_PAGEFAULT_FLAG_WP)
			kernel->uffd_protect(window->uffd, page, HMM_PAGE_SIZE, false);
		if (*window_guarded(window, block) && show(window, block, i, 0))
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
		if (*window_guarded(window, block))
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

	/* What lies beside it may not be pinned there. */
	if (!device_faults(window->mirror->device))
		return (struct prefetch_span){ page, page + 1 };
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
	    block_mirror(block) != mirror ||
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

/*
 * All that is out is on its way home: what lies in the shadow is shown until it goes, and whoever
 * asks for more sleeps, until there is another hmmd or its library has closed the window.
 */
static bool is_ending(const struct window *window)
{
	return window->mirror->leaving || window->mirror->owner->closing;
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
	block = is_ending(window) ? block_find(owner, touch->addr) : block_get(owner, touch->addr);
	if (!block) {
		if (is_ending(window))
			goto out;
		goto later;
	}
	if (!block_at_rest(block)) {
		block_park(block, &touch->task);
		return;
	}
	if (is_ending(window)) {
		if (!protect_is_due(block, touch->addr))
			touch_present(window, block, touch);
		goto out;
	}
	/* The program may have asked the kernel itself to protect it. */
	if (protect_is_due(block, touch->addr)) {
		if (owner->worker->now - touch->since > TOUCH_NS) {
			touch_refuse(window, touch, -EPERM);
			block_settle_later(block);
			goto out;
		}
		protect_follow(block, 0, HMM_BLOCK_PAGES);
		if (block_at_rest(block))
			goto later;
		block_park(block, &touch->task);
		return;
	}
	/* Before the page is looked at: what lies elsewhere is not brought to a device that cannot wait for it. */
	if (!reach_page_to_read(window->mirror, block, page_index(touch->addr)) &&
	    page_state(block, page_index(touch->addr)) != HMM_PAGE_ERROR) {
		touch_unreachable(window, touch);
		block_settle_later(block);
		goto out;
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
		if (touch->again && broken("late-refusal") && owner->worker->now - touch->since < 300 * NS_PER_MS)
			goto later;
		touch_refuse(window, touch, page_result_error(touch->result));
		block_settle_later(block);
		goto out;
	}
	/* A discard that may yet take the page: it ends by itself, however often it is asked. */
	block_look_for_zap(block);
	if (pages_test(&block->zapping, page_index(touch->addr)))
		goto later;
	if (owner->worker->now - touch->since > TOUCH_NS) {
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

void touch_ready(struct source *source)
{
	struct window *window =
		(struct window *)((char *)source - offsetof(struct window, source));
	struct owner *owner = window->mirror->owner;
	uint32_t id = window->id;
	struct uffd_msg message;

	/* Unread, they are the next hmmd's. */
	if (owner->worker->handing_over)
		return;
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
