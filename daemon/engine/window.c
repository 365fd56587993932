/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * window.c - shadows mapped at the owner's addresses in a driver process, with
 * a userfaultfd of the driver's: how they are mapped and armed, and how what they show
 * is taken away. What their drivers touch is served in touch.c. Runs on the
 * owner's worker.
 *
 * Happy path: a driver asks for a window, is told of its shadows, maps them, and
 * says that it has; the window is armed. From then on the kernel maps the pages
 * by itself, whole huge pages if it can. It also maps pages that the agent is
 * still filling, so under a window a fill lets each page appear with its bytes; a
 * window is armed when no other fill, and no way home by slot, is going on in its
 * range.
 *
 * Taking pages away needs no help of the driver: protect, copy home, punch,
 * wake. Punching a part of a huge page has it zeroed first and split then, and
 * the split fails while somebody holds it: zeros stay where the hole should be.
 * So before anything is taken from a block the block is guarded: registered for
 * protection, and for MINOR faults, which ask for each page that lies in the
 * shadow and is not mapped. That splits the mapping into 4K for good, which
 * blocks that nobody contends for are spared.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/breakage.h"
#include "engine/copies.h"
#include "engine/owner.h"
#include "engine/window.h"
#include "engine/worker.h"
#include "log.h"
#include "uapi.h"

struct window *window_by_id(struct owner *owner, uint32_t id)
{
	struct window *window;

	TAILQ_FOREACH(window, &owner->windows, link)
		if (window->id == id)
			return window;
	return NULL;
}

/* [first, end) of the block as far as the window has it; false: not at all. */
bool window_overlap(const struct window *window, const struct block *block, unsigned int first,
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

bool *window_guarded(struct window *window, const struct block *block)
{
	uint64_t base = window->start & ~(HMM_BLOCK_SIZE - 1);

	return &window->guarded[(block->addr - base) >> HMM_BLOCK_SHIFT];
}

/* At its first need, and for good. */
static int guard(struct window *window, const struct block *block)
{
	const uint64_t modes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP |
			       (broken("skip-guard") ? 0 : UFFDIO_REGISTER_MODE_MINOR);
	bool *guarded = window_guarded(window, block);
	uint64_t start, length;
	int r;

	if (*guarded || !window_overlap(window, block, 0, HMM_BLOCK_PAGES, &start, &length))
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
		    !window_overlap(window, block, 0, HMM_BLOCK_PAGES, &start, &length))
			continue;
		r = guard(window, block);
		if (r && !is_leaving(window, start, r))
			window_revoke_one(window, r);
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
		    !window_overlap(window, block, first, end, &start, &length))
			continue;
		if (!protect && !*window_guarded(window, block))
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
		if (window_overlap(window, block, first, end, &start, &length))
			kernel->uffd_wake(window->uffd, start, length);
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

void window_free(struct window *window)
{
	struct owner *owner = window->mirror->owner;

	note_gone(window);
	if (window->farewell)
		mailbox_post(owner->worker->engine->outbox, window->farewell);
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

/* With all that its end takes. */
static struct window *window_new(const struct letter *letter, uint64_t length)
{
	struct window *window = calloc(1, sizeof(*window));

	if (!window)
		return NULL;
	window->guarded = calloc((length >> HMM_BLOCK_SHIFT) + 2, sizeof(*window->guarded));
	window->farewell = letter_new(LETTER_WINDOW_GONE);
	if (!window->guarded || !window->farewell) {
		letter_free(window->farewell);
		free(window->guarded);
		free(window);
		return NULL;
	}
	window->farewell->peer = letter->peer;
	window->farewell->uid = letter->uid;
	return window;
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
	/* The library maps the copies themselves: COPY_OPEN. */
	if (mirror_refuse_tracked(mirror, letter))
		return letter->error;
	if (device_is_far(mirror->device))
		return letter_fail(letter, -EOPNOTSUPP,
				   "%s has memory that only %s: there is nothing to map", mirror->device->name, device_reached_by(mirror->device));
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
	reply = letter_reply(letter, HMM_OP_WINDOW_MAP_REPLY, sizeof(*reply));
	window = reply ? window_new(letter, end - message->addr) : NULL;
	if (!window)
		return letter_fail(letter, -ENOMEM, "out of memory for a window of %lu bytes",
				   message->length);
	do
		window->id = owner->id << 16 | (++owner->next_window & 0xffff);
	while (window_by_id(owner, window->id) || !(window->id & 0xffff));
	window->mirror = mirror;
	window->peer = letter->peer;
	window->driver = letter->pid;
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
		if (!r && !mirror_send_region(mirror, shadow, letter->peer, window->id, index++, at,
					      (stop < end ? stop : end) - at))
			r = -ENOMEM;
		if (r) {
			/* An error is not charged for. */
			window->farewell = letter_free(window->farewell);
			window_free(window);
			return letter_fail(letter, r, "no shadow for %#lx: %s", at, strerror(-r));
		}
	}
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
	if (!block_at_rest(block)) {
		/* Its end looks at the window itself; what lingers of pages that are home must not be seen until then. */
		struct pages stale = block->stale;

		for (unsigned int w = 0; w < HMM_BITMAP_WORDS; w++)
			stale.word[w] &= ~block->record->pending[w];
		block_punch_void(block, &stale);
		return;
	}
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
 * zeros before bytes, or pages that the CPU still has, and pages that go home with nothing protected.
 */
static void find_blind_order(struct block *block, void *data)
{
	if (block->order && (block->order->flags & HMM_ORDER_WHOLE || block->order->kind == HMM_ORDER_HOME_SLOT ||
			     block->order->kind == HMM_ORDER_OUT_ZAP))
		*(struct block **)data = block;
}

static int arm(struct owner *owner, struct window *window, struct letter *letter)
{
	int r = kernel->uffd_register(window->uffd, window->at, window->end - window->start,
				      UFFDIO_REGISTER_MODE_MISSING);

	if (!r)
		r = reactor_add(owner->worker->reactor, &window->source, window->uffd, touch_ready);
	if (r)
		return letter_fail(letter, r,
				   "the window's userfaultfd could not be registered at %#lx: %s",
				   window->at, strerror(-r));
	window->armed = true;
	window_replace_kept(window);
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

void window_wake_all(struct owner *owner, struct mirror *mirror)
{
	struct window *window;

	TAILQ_FOREACH(window, &owner->windows, link)
		if (window->mirror == mirror && window->armed)
			kernel->uffd_wake(window->uffd, window->at, window->end - window->start);
}
