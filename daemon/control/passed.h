/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * passed.h - what the service manager gives hmmd at its start: the sockets of its
 * socket units, and what an hmmd before this one had it keep (notify_keep()).
 */
#ifndef HMMD_PASSED_H
#define HMMD_PASSED_H

/* FileDescriptorName= of the socket units. Any other socket is the programs', too. */
#define PASSED_ADMINISTRATION "administration"
/* What names of kept descriptors begin with. */
#define PASSED_KEPT "fork."
/* The name of those that are a pool's reserve. */
#define PASSED_RESERVE "reserve"

struct passed_fd {
	char name[64];		/* of the manager's alphabet, "" where it gave none */
	int fd;			/* -1: taken */
};

struct passed {
	struct passed_fd *fds;
	unsigned int n;
};

/* Takes over all that was passed, and out of the environment what says so. Call it before anything opens descriptors. */
void passed_collect(struct passed *passed);
/* The first listening socket for programs (@administration: for administration); -1: none is left. The caller's. */
int passed_take_socket(struct passed *passed, int administration);
/* What notify_keep() had kept: a descriptor that is the caller's, and its name, good until passed_deinit(). NULL: no more. */
const char *passed_take_kept(struct passed *passed, int *fd);
/* The next one of exactly this name, the caller's; -1: no more. */
int passed_take_named(struct passed *passed, const char *name);
/* Closes what nobody has taken, with a line in the log for each. */
void passed_deinit(struct passed *passed);

#endif
