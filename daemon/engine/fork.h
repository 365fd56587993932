/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef HMMD_FORK_H
#define HMMD_FORK_H

struct owner;

/* A child was forked; @uffd is its userfaultfd, by EVENT_FORK. */
void fork_child_consume_fd(struct owner *owner, int uffd);

#endif
