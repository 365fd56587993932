// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * access.c - owners as control knows them, and their keys.
 *
 * What can fail: a descriptor that is no memfd, a key that is taken, memory.
 * A key must belong to the uid that exports it: otherwise a driver that was
 * given a key could, after a restart of hmmd, export it as its own first.
 *
 * Thread: control.
 */
#include "daemon/control/access.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

struct access_owner *access_find(struct access *access, uint32_t id)
{
	struct access_owner *owner;

	for (owner = access->owners; owner; owner = owner->next) {
		if (owner->id == id)
			return owner;
	}
	return NULL;
}

struct access_owner *access_add(struct access *access, uint32_t id, uid_t uid, pid_t pid)
{
	struct access_owner *owner = access_find(access, id);

	if (owner)
		return owner;
	owner = calloc(1, sizeof(*owner));
	if (!owner)
		return NULL;
	owner->id = id;
	owner->uid = uid;
	owner->pid = pid;
	owner->next = access->owners;
	access->owners = owner;
	return owner;
}

static void free_owner(struct access_owner *owner)
{
	struct access_key *key;

	while ((key = owner->keys)) {
		owner->keys = key->next;
		close(key->fd);
		free(key);
	}
	free(owner);
}

void access_remove(struct access *access, uint32_t id)
{
	struct access_owner **link, *owner;

	for (link = &access->owners; (owner = *link); link = &owner->next) {
		if (owner->id != id)
			continue;
		*link = owner->next;
		free_owner(owner);
		return;
	}
}

void access_deinit(struct access *access)
{
	struct access_owner *owner;

	while ((owner = access->owners)) {
		access->owners = owner->next;
		free_owner(owner);
	}
}

/* Seals exist on memfds alone, of shmem and of hugetlb. */
static bool is_memfd(int fd, struct stat *st)
{
	return !fstat(fd, st) && S_ISREG(st->st_mode) && fcntl(fd, F_GET_SEALS) >= 0;
}

static struct access_owner *find_key(struct access *access, const struct stat *st)
{
	struct access_owner *owner;
	struct access_key *key;

	for (owner = access->owners; owner; owner = owner->next) {
		for (key = owner->keys; key; key = key->next) {
			if (key->dev == st->st_dev && key->ino == st->st_ino)
				return owner;
		}
	}
	return NULL;
}

int access_export_consume_fd(struct access *access, struct access_owner *owner, uid_t uid, int fd)
{
	struct access_owner *holder;
	struct access_key *key;
	unsigned int count = 0;
	struct stat st;

	if (!is_memfd(fd, &st) || st.st_uid != uid)
		return -EINVAL;
	holder = find_key(access, &st);
	if (holder)
		return holder == owner ? 1 : -EEXIST;
	for (key = owner->keys; key; key = key->next)
		count++;
	if (count >= ACCESS_KEYS_MAX)
		return -EMFILE;

	key = malloc(sizeof(*key));
	if (!key)
		return -ENOMEM;
	*key = (struct access_key) {
		.next = owner->keys,
		.fd = fd,
		.dev = st.st_dev,
		.ino = st.st_ino,
	};
	owner->keys = key;
	return 0;
}

int access_open(struct access *access, int fd, uint32_t *owner)
{
	struct access_owner *holder;
	struct stat st;

	if (!is_memfd(fd, &st))
		return -EINVAL;
	holder = find_key(access, &st);
	if (!holder)
		return -ENOENT;
	*owner = holder->id;
	return 0;
}
