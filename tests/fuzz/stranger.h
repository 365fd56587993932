/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * stranger.h - processes that hostile connections come from. Each has memory at known addresses, connects by
 * itself, so that hmmd sees its pid and uid, and hands the connection and its descriptors over to whoever fuzzes.
 */
#ifndef FUZZ_STRANGER_H
#define FUZZ_STRANGER_H

#include <sys/types.h>

/* Where a stranger has memory: blocks of 2 MiB, each of another kind, and its staging slots. */
#define STRANGER_HOME	0x500000000000UL
#define STRANGER_BLOCKS 6
#define STRANGER_SLOTS	0x500100000000UL
#define STRANGER_SLOT_COUNT 4

enum stranger_fd {
	STRANGER_CONNECTION,
	STRANGER_UFFD,		/* fresh ones, of its own memory */
	STRANGER_UFFD_2,
	STRANGER_UFFD_3,
	STRANGER_MEM,
	STRANGER_PAGEMAP,
	STRANGER_MAPS,
	STRANGER_SMAPS,
	STRANGER_FDS
};

struct stranger {
	pid_t pid;
	int pidfd;
	int control;		/* a datagram of one byte is something that it does to its memory; the end of file ends it */
	int fds[STRANGER_FDS];	/* -1: it could not have that one */
};

/*
 * A process that makes strangers, small and without threads. Called while there are none here either.
 * @folder: where the socket hmmd.sock will be.
 */
void strangers_begin(const char *folder);
/* Waits until that process has ended. It does so with this one, and removes @folder and what hmmd has there. */
void strangers_finish(void);
/* One of them; @plain: of an ordinary uid, where that can be. */
void stranger_new(struct stranger *stranger, int plain);
/*
 * It has an agent from now on, the library's: it carries out what hmmd orders. @orders and @bell are of OPEN's reply; each
 * shadow is told as hmmd told it, a struct hmm_msg_region. The descriptors stay the caller's.
 */
void stranger_serve(struct stranger *stranger, int orders, int bell);
void stranger_tell(struct stranger *stranger, const void *region, int shadow);
/* Closes what is still open of it and kills it. */
void stranger_end(struct stranger *stranger);

#endif
