/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * access.h - who may touch which owner, and the keys that open one.
 *
 * A key is a memfd that the owner made and exported. Only its identity counts:
 * whoever holds a descriptor of that very inode may open the owner. hmmd keeps
 * a descriptor of its own, so that the inode number is not given to another
 * file while it is a key.
 *
 * Thread: control.
 */
#ifndef HMMD_ACCESS_H
#define HMMD_ACCESS_H

#include <stdint.h>
#include <sys/types.h>

/* Each includes the ones before it. */
enum access_right {
	ACCESS_NONE,
	ACCESS_LOOK,		/* where its pages are, and where they should be: no content */
	ACCESS_DRIVE,		/* its memory, as a device */
	ACCESS_OWN,		/* everything */
};

/* A peer's right to one owner. */
struct access_grant {
	uint32_t owner;
	enum access_right right;
};

struct access_key {
	struct access_key *next;
	int fd;
	dev_t dev;
	ino_t ino;
};

/* What control remembers of an owner, from the engine's answer to `open` until it says the owner is gone. */
struct access_owner {
	struct access_owner *next;
	uint32_t id;
	uid_t uid;
	pid_t pid;
	uint64_t fds;		/* charged to uid for it */
	struct access_key *keys;
};

struct access {
	struct access_owner *owners;
};

/* NULL when out of memory. One that is known already is returned as it is. */
struct access_owner *access_add(struct access *access, uint32_t id, uid_t uid, pid_t pid);
struct access_owner *access_find(struct access *access, uint32_t id);
void access_remove(struct access *access, uint32_t id);
void access_deinit(struct access *access);

/* The most keys of one owner. */
#define ACCESS_KEYS_MAX 64

/*
 * Makes @fd a key of the owner. 0 when @fd was taken over; 1 when it is a key of this
 * owner already, -EINVAL when it is no memfd of @uid, -EEXIST when it opens another
 * owner, -EMFILE, -ENOMEM: @fd stays the caller's.
 */
int access_export_consume_fd(struct access *access, struct access_owner *owner, uid_t uid, int fd);
/* The owner that the key opens; -EINVAL when @fd is no memfd, -ENOENT when it opens nothing. */
int access_open(struct access *access, int fd, uint32_t *owner);

#endif
