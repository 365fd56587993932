/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rights.h - who may touch which owner, and the keys that open one.
 *
 * A key is a memfd that the owner made and exported. Only its identity counts:
 * whoever holds a descriptor of that very inode may open the owner. hmmd keeps
 * a descriptor of its own, so that the inode number is not given to another
 * file while it is a key.
 *
 * Thread: control.
 */
#ifndef HMMD_RIGHTS_H
#define HMMD_RIGHTS_H

#include <stdint.h>
#include <sys/types.h>

/* Each includes the ones before it. */
enum right {
	RIGHT_NONE,
	RIGHT_LOOK,		/* where its pages are, and where they should be: no content */
	RIGHT_DRIVE,		/* its memory, as a device */
	RIGHT_OWN,		/* everything */
};

/* A peer's right to one owner. */
struct rights_grant {
	uint32_t owner;
	enum right right;
};

struct rights_key {
	struct rights_key *next;
	int fd;
	dev_t dev;
	ino_t ino;
};

/*
 * What control remembers of an owner, from the engine's answer to `open` until it says the owner is
 * gone.
 */
struct rights_owner {
	struct rights_owner *next;
	uint32_t id;
	uid_t uid;
	pid_t pid;
	uint64_t fds;		/* charged to uid for it */
	struct rights_key *keys;
};

struct rights {
	struct rights_owner *owners;
};

/* NULL when out of memory. One that is known already is returned as it is. */
struct rights_owner *rights_add(struct rights *rights, uint32_t id, uid_t uid, pid_t pid);
struct rights_owner *rights_find(struct rights *rights, uint32_t id);
void rights_remove(struct rights *rights, uint32_t id);
void rights_deinit(struct rights *rights);

/* The most keys of one owner. */
#define RIGHTS_KEYS_MAX 64

/*
 * Makes @fd a key of the owner. 0 when @fd was taken over; 1 when it is a key of this
 * owner already, -EINVAL when it is no memfd of @uid, -EEXIST when it opens another
 * owner, -EMFILE, -ENOMEM: @fd stays the caller's.
 */
int rights_export_consume_fd(struct rights *rights, struct rights_owner *owner, uid_t uid, int fd);
/* The owner that the key opens; -EINVAL when @fd is no memfd, -ENOENT when it opens nothing. */
int rights_open(struct rights *rights, int fd, uint32_t *owner);

#endif
