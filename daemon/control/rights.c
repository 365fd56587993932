// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * rights.c - owners as control knows them, and their keys.
 *
 * What can fail: a descriptor that is no memfd, a key that is taken, memory.
 * A key must belong to the uid that exports it: otherwise a driver that was
 * given a key could, after a restart of hmmd, export it as its own first.
 *
 * Thread: control.
 */
#include "daemon/control/rights.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

struct rights_owner *rights_find(struct rights *rights, uint32_t id)
{
	struct rights_owner *owner;

	for (owner = rights->owners; owner; owner = owner->next) {
		if (owner->id == id)
			return owner;
	}
	return NULL;
}

struct rights_owner *rights_add(struct rights *rights, uint32_t id, uid_t uid, pid_t pid)
{
	struct rights_owner *owner = rights_find(rights, id);

	if (owner)
		return owner;
	owner = calloc(1, sizeof(*owner));
	if (!owner)
		return NULL;
	owner->id = id;
	owner->uid = uid;
	owner->pid = pid;
	owner->next = rights->owners;
	rights->owners = owner;
	return owner;
}

static void free_owner(struct rights_owner *owner)
{
	struct rights_key *key;

	while ((key = owner->keys)) {
		owner->keys = key->next;
		close(key->fd);
		free(key);
	}
	free(owner);
}

void rights_remove(struct rights *rights, uint32_t id)
{
	struct rights_owner **link, *owner;

	for (link = &rights->owners; (owner = *link); link = &owner->next) {
		if (owner->id != id)
			continue;
		*link = owner->next;
		free_owner(owner);
		return;
	}
}

void rights_deinit(struct rights *rights)
{
	struct rights_owner *owner;

	while ((owner = rights->owners)) {
		rights->owners = owner->next;
		free_owner(owner);
	}
}

/* Seals exist on memfds alone, of shmem and of hugetlb. */
static bool is_memfd(int fd, struct stat *st)
{
	return !fstat(fd, st) && S_ISREG(st->st_mode) && fcntl(fd, F_GET_SEALS) >= 0;
}

static struct rights_owner *find_key(struct rights *rights, const struct stat *st)
{
	struct rights_owner *owner;
	struct rights_key *key;

	for (owner = rights->owners; owner; owner = owner->next) {
		for (key = owner->keys; key; key = key->next) {
			if (key->dev == st->st_dev && key->ino == st->st_ino)
				return owner;
		}
	}
	return NULL;
}

int rights_export_consume_fd(struct rights *rights, struct rights_owner *owner, uid_t uid, int fd)
{
	struct rights_owner *holder;
	struct rights_key *key;
	unsigned int count = 0;
	struct stat st;

	if (!is_memfd(fd, &st) || st.st_uid != uid)
		return -EINVAL;
	holder = find_key(rights, &st);
	if (holder)
		return holder == owner ? 1 : -EEXIST;
	for (key = owner->keys; key; key = key->next)
		count++;
	if (count >= RIGHTS_KEYS_MAX)
		return -EMFILE;

	key = malloc(sizeof(*key));
	if (!key)
		return -ENOMEM;
	*key = (struct rights_key) {
		.next = owner->keys,
		.fd = fd,
		.dev = st.st_dev,
		.ino = st.st_ino,
	};
	owner->keys = key;
	return 0;
}

int rights_open(struct rights *rights, int fd, uint32_t *owner)
{
	struct rights_owner *holder;
	struct stat st;

	if (!is_memfd(fd, &st))
		return -EINVAL;
	holder = find_key(rights, &st);
	if (!holder)
		return -ENOENT;
	*owner = holder->id;
	return 0;
}
