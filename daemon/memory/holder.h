/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * holder.h - cards' VFIO descriptors outlive hmmd.
 *
 * The last close of a VFIO device resets it, and a driver's duplicate of the
 * device keeps its group, its container and all its DMA mappings alive when
 * hmmd is killed: the card would go on writing into pages that the next hmmd
 * could not unmap. So a small process, the holder, has a duplicate of each. When hmmd
 * dies it unmaps at once everything that any card could reach, takes their right
 * to start transfers, and waits for the next hmmd of the same socket, which it
 * gives the very same descriptors; after a grace time without one it ends, and
 * the cards reset.
 *
 *	holder_new()			at start: an earlier hmmd's holder is found
 *	holder_name(), holder_take()	... and what it has
 *	holder_keep()			before the first DMA mapping of a card
 *	holder_drop()			when the card is given up
 *	holder_free()			in an orderly end, when no card has a mapping
 *
 * Nothing is started until there is something to keep, and the process ends with its
 * last card. One thread at a time; a call waits for the process, which answers
 * at once or is given up after some seconds (-ETIMEDOUT).
 */
#ifndef HMMD_HOLDER_H
#define HMMD_HOLDER_H

#include <stddef.h>
#include <sys/types.h>

#define HOLDER_GRACE_MS	60000U
#define HOLDER_CARDS	64U		/* as many at once */
#define HOLDER_NAME	32U		/* a name's bytes, with the zero that ends it */
#define HOLDER_ARGUMENT	"--holder"	/* hmmd's first argument when it is to be one */

/*
 * A card's descriptors, in this order. Any may be -1 but the container. Those behind the device are kept, and
 * nothing is done with them. Cards may have the same container and group.
 */
enum holder_fd {
	HOLDER_CONTAINER,	/* all of its DMA is unmapped when hmmd dies */
	HOLDER_GROUP,
	HOLDER_DEVICE,		/* it loses bus mastering then */
	HOLDER_FDS = 8		/* at most */
};

struct holder_options {
	const char *socket;	/* hmmd's own; the holder's is beside it: SOCKET.holder */
	const char *program;	/* becomes the holder, told by HOLDER_ARGUMENT; NULL: this one */
	unsigned int grace_ms;	/* 0: HOLDER_GRACE_MS */
};

struct holder;

/*
 * To be called with the lock on the socket's path held. If an earlier hmmd's holder waits there, it is this
 * one's now, and has unmapped all. Return: 0; -EADDRINUSE: somebody is there, and what he has cannot be had
 * (another hmmd's, another user's, of another release, no answer, out of descriptors): his cards may reach memory,
 * so hmmd must not begin. The others say that nobody is there, and none can be: -ENAMETOOLONG; -EACCES: of the
 * directory; -EMFILE; -ENOMEM. Logged.
 */
int holder_new(const struct holder_options *options, struct holder **result);
/* Orderly: the process closes all that it has and ends. NULL is allowed; returns NULL. */
struct holder *holder_free(struct holder *holder);
/* As if hmmd died, for a start that fails: the process goes on and waits for the next. The same otherwise. */
struct holder *holder_leave(struct holder *holder);

/* Names of what is kept, in order of keeping: @index from 0; NULL behind the last. Valid until the next change. */
const char *holder_name(const struct holder *holder, unsigned int index);

/*
 * Keeps duplicates of @fds, which stay the caller's. @name: the card's PCI address. Starts the process if
 * there is none. Return: 0, and from now on they outlive hmmd; -EEXIST: the name is kept already; -EINVAL;
 * -ENOSPC: HOLDER_CARDS are kept; -ENAMETOOLONG, -EADDRINUSE, -EMFILE, ...: the process cannot be had. Logged.
 */
int holder_keep(struct holder *holder, const char *name, const int *fds, unsigned int n);
/* They are kept no longer. -ENOENT: no such name. */
int holder_drop(struct holder *holder, const char *name);
/*
 * Duplicates of what is kept under that name, the caller's to close; it stays kept. @n: room in @fds. Return:
 * how many; what was -1 is -1. -ENOENT: no such name; -ENOSPC: more than fit; -EMFILE.
 */
int holder_take(struct holder *holder, const char *name, int *fds, unsigned int n);

/*
 * Becomes readable when the process is gone although hmmd lives (somebody killed it); -1: there is no process.
 * Then holder_mend() starts another and gives it all again. 0, or as holder_keep().
 */
int holder_poll_fd(const struct holder *holder);
int holder_mend(struct holder *holder);
/* The process's id, 0: none. */
pid_t holder_pid(const struct holder *holder);

/* The process itself: main() hands over when its first argument is HOLDER_ARGUMENT. Return: exit status. */
int holder_main(int argc, char **argv);

#endif
