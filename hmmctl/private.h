/* SPDX-License-Identifier: GPL-2.0-or-later */
/* private.h - an hmmd for one program alone: `run --private`. */
#ifndef HMMCTL_PRIVATE_H
#define HMMCTL_PRIVATE_H

#include <stdint.h>
#include <sys/types.h>

struct private_daemon {
	pid_t pid;		/* 0: none was started */
	char folder[64];
	char socket[96];
};

/*
 * Starts hmmd on memory of its own (memfd) and waits until it serves.
 * Return: 0; -1, with the reason on stderr.
 */
int private_start(struct private_daemon *daemon, uint64_t pool_size);
/* Ends it in good order. Return: 0, or -1 when it did not leave well. */
int private_stop(struct private_daemon *daemon);

#endif
