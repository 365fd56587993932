/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * keep.c - windows whose driver has lost its connection and lives. Runs on the
 * owner's worker.
 *
 * A driver that is stopped, or does not read, is disconnected, and uses its windows on
 * when it goes on: what it stores there must not be lost, and it must not read what is
 * no more. So an armed window stays in the list, and everything is done to it as before:
 * protected, punched, its touches served. Nobody can be told anything meanwhile.
 *
 * Happy path: the driver's library comes back, maps the same window and arms it; the
 * new one takes the place of what was kept, with all that is known of it.
 *
 * It ends without that when the driver's memory is gone, and at the latest when the grace
 * time is over, by which its library has made the window inaccessible; a driver that is stopped
 * has not looked at a clock, so its time begins anew. What is let go of then counts as
 * strayed, as after a restart: what leaves its device is punched at once.
 */
#include <errno.h>
#include <linux/kcmp.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/owner.h"
#include "engine/window.h"
#include "engine/worker.h"
#include "log.h"

#define KEEP_LOOK_NS	(20 * NS_PER_MS)

/*
 * Asks for something harmless: a page where nothing is ever mapped. Only an mm that is gone
 * says ESRCH (else ENOENT); its process may have gone on to another one.
 */
static bool is_gone(const struct window *window)
{
	return kernel->uffd_protect(window->uffd, HMM_VA_END - 2 * HMM_PAGE_SIZE, HMM_PAGE_SIZE, false) == -ESRCH;
}

void window_peer_gone(struct owner *owner, uint64_t peer)
{
	struct window *window, *next;

	for (window = TAILQ_FIRST(&owner->windows); window; window = next) {
		next = TAILQ_NEXT(window, link);
		if (window->peer != peer)
			continue;
		if (!window->armed || is_gone(window)) {
			window_free(window);
			continue;
		}
		log_info("window %u: its driver, pid %d, has lost its connection and lives: the window is kept",
			 window->id, window->driver);
		window->peer = 0;
		window->keep_until = owner->worker->now + owner_grace_ns(owner);
		worker_alarm(owner->worker, owner->worker->now + KEEP_LOOK_NS);
	}
}

void window_tick(struct owner *owner, int64_t now)
{
	struct window *window, *next;
	bool kept = false;

	for (window = TAILQ_FIRST(&owner->windows); window; window = next) {
		next = TAILQ_NEXT(window, link);
		if (window->peer && window->untold)
			window_tell_revoked(window);
		if (window->peer)
			continue;
		if (is_gone(window)) {
			window_free(window);
			continue;
		}
		if (process_is_stopped(window->driver))
			window->keep_until = now + owner_grace_ns(owner);
		if (now < window->keep_until) {
			kept = true;
			continue;
		}
		log_warn("window %u: its driver, pid %d, did not come back: it is not waited for any longer",
			 window->id, window->driver);
		window->mirror->strayed = true;
		window_free(window);
	}
	if (kept)
		worker_alarm(owner->worker, now + KEEP_LOOK_NS);
}

/* Of drivers whose pids hmmd can't see all have 0: what comes back with its userfaultfd is the same. */
static bool is_same_driver(const struct window *kept, const struct window *window)
{
	if (kept->driver || window->driver)
		return kept->driver == window->driver;
	return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, kept->uffd, window->uffd) == 0;
}

/* The same addresses of the same process: whatever was kept there is not there any more. */
static bool is_in_place(const struct window *kept, const struct window *window)
{
	return !kept->peer && is_same_driver(kept, window) &&
	       kept->at < window->at + (window->end - window->start) &&
	       kept->at + (kept->end - kept->start) > window->at;
}

void window_replace_kept(struct window *window)
{
	struct owner *owner = window->mirror->owner;
	struct window *kept, *next;

	for (kept = TAILQ_FIRST(&owner->windows); kept; kept = next) {
		next = TAILQ_NEXT(kept, link);
		if (!is_in_place(kept, window))
			continue;
		if (kept->mirror == window->mirror && kept->start == window->start &&
		    kept->end == window->end && kept->at == window->at) {
			bool *guarded = window->guarded;
			struct span_set closed = window->closed;

			window->guarded = kept->guarded;
			kept->guarded = guarded;
			window->closed = kept->closed;
			kept->closed = closed;
			/* Its library may not have heard. */
			if (kept->revoked)
				window_revoke_one(window, -ETIMEDOUT);
			else
				window_reopen(owner, window->start, window->end);
		}
		window_free(kept);
	}
}
