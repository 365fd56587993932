/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fdstore.c - what outlives hmmd with whoever started it (systemd's descriptor store).
 *
 * Happy path: a child is put before the first of its pages is copied, and dropped when it has all: the store
 * is empty but for moments. After a kill in such a moment the next hmmd is given both descriptors, and the owner's
 * journal, whose replay comes to the fork that was not done, takes them (event.c).
 *
 * What can fail: the store may refuse; then it is as without one. An owner may not come back; its children are let
 * go, and the log says what that means. As long as something is kept, the child's userfaultfd is open and it waits.
 * Any thread, under the engine's lock.
 */
#include "engine/fdstore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/owner.h"
#include "engine/worker.h"
#include "log.h"

/* Beyond the grace time: by then a library that could come has come, or has begun its rescue. */
#define LATE_NS		(5000 * NS_PER_MS)

static struct kept *find(struct engine *engine, const char *name)
{
	struct kept *kept;

	LIST_FOREACH(kept, &engine->kept, link)
		if (!strcmp(kept->name, name))
			break;
	return kept;
}

static void close_both(struct kept *kept)
{
	if (kept->uffd >= 0)
		close(kept->uffd);
	if (kept->log >= 0)
		close(kept->log);
	kept->uffd = kept->log = -1;
}

void fdstore_adopt_consume_fd(struct engine *engine, const char *name, int fd)
{
	struct kept *kept = find(engine, name);
	int *to;

	if (!kept) {
		kept = calloc(1, sizeof(*kept));
		if (!kept) {
			log_error("out of memory: '%s' of an earlier hmmd is given up; a forked child may read zeros", name);
			close(fd);
			return;
		}
		snprintf(kept->name, sizeof(kept->name), "%s", name);
		kept->uffd = kept->log = -1;
		LIST_INSERT_HEAD(&engine->kept, kept, link);
	}
	to = owner_is_userfaultfd(fd) ? &kept->uffd : &kept->log;
	if (*to >= 0)
		close(*to);
	*to = fd;
}

void fdstore_note(struct engine *engine, const char *name, int log)
{
	struct kept *kept = calloc(1, sizeof(*kept));

	if (!kept) {
		close(log);
		fdstore_drop(engine, name);
		return;
	}
	snprintf(kept->name, sizeof(kept->name), "%s", name);
	kept->uffd = -1;
	kept->log = log;
	pthread_mutex_lock(&engine->lock);
	LIST_INSERT_HEAD(&engine->kept, kept, link);
	pthread_mutex_unlock(&engine->lock);
}

bool fdstore_put(struct engine *engine, const char *name, int uffd, int log)
{
	const int fds[] = { uffd, log };
	int r;

	if (!engine->options.keep)
		return false;
	r = engine->options.keep(name, fds, 2);
	if (r < 0)
		log_warn("the service manager cannot keep a forked child's userfaultfd: %s", strerror(-r));
	return r == 0;
}

bool fdstore_take(struct engine *engine, const char *name, int *uffd, int *log)
{
	struct kept *kept;

	pthread_mutex_lock(&engine->lock);
	kept = find(engine, name);
	if (kept) {
		*uffd = kept->uffd;
		*log = kept->log;
		LIST_REMOVE(kept, link);
	} else {
		kept = NULL;
	}
	pthread_mutex_unlock(&engine->lock);
	free(kept);
	return kept;
}

void fdstore_drop(struct engine *engine, const char *name)
{
	int r = engine->options.drop ? engine->options.drop(name) : 0;

	if (r < 0)
		log_error("the service manager cannot be told to let go of '%s' (%s): that child waits where it has no page",
			  name, strerror(-r));
}

/* With the lock held. */
static void let_go(struct engine *engine, struct kept *kept)
{
	LIST_REMOVE(kept, link);
	close_both(kept);
	fdstore_drop(engine, kept->name);
	free(kept);
}

static void give_up(struct engine *engine, struct kept *kept, const char *why)
{
	log_error("a raw fork was being served when hmmd died, and %s: its child may read zeros", why);
	let_go(engine, kept);
}

void fdstore_forget(struct engine *engine, const char *prefix)
{
	struct kept *kept, *next;

	pthread_mutex_lock(&engine->lock);
	for (kept = LIST_FIRST(&engine->kept); kept; kept = next) {
		next = LIST_NEXT(kept, link);
		if (!strncmp(kept->name, prefix, strlen(prefix)))
			let_go(engine, kept);
	}
	pthread_mutex_unlock(&engine->lock);
}

void fdstore_review(struct engine *engine)
{
	struct kept *kept, *next;
	int pid;

	if (clock_now() < engine->began + engine->options.grace_ms * NS_PER_MS + LATE_NS)
		return;
	pthread_mutex_lock(&engine->lock);
	for (kept = LIST_FIRST(&engine->kept); kept; kept = next) {
		next = LIST_NEXT(kept, link);
		if (sscanf(kept->name, "fork.%d.", &pid) != 1)
			give_up(engine, kept, "nobody knows of whom it was");
		else if (!process_is_alive(pid))
			give_up(engine, kept, "its parent has ended, too");
		else if (!process_is_stopped(pid))
			give_up(engine, kept, "its parent did not come back");
	}
	pthread_mutex_unlock(&engine->lock);
}

void fdstore_deinit(struct engine *engine)
{
	struct kept *kept;

	/* They stay kept: the next one may be asked for them. */
	while ((kept = LIST_FIRST(&engine->kept))) {
		LIST_REMOVE(kept, link);
		close_both(kept);
		free(kept);
	}
}
