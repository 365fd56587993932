/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * descriptor.c - whether what a client hands over is what it should be, before hmmd reads of it. Runs on the
 * owner's worker, and nothing here waits: names are asked of hmmd's own procfs.
 *
 * Whose memory a userfaultfd is of the kernel does not tell. Who hands over another process's harms himself and
 * who gave it to him: nobody else's can be had.
 */
#include <linux/magic.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "engine/owner.h"

/* What it leads to, as far as there is room. */
static bool name_of(int fd, char *name, size_t room)
{
	char path[32];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, name, room - 1);
	if (n < 0)
		return false;
	name[n] = '\0';
	return true;
}

bool owner_is_userfaultfd(int fd)
{
	char name[32];

	return name_of(fd, name, sizeof(name)) && strcmp(name, "anon_inode:[userfaultfd]") == 0;
}

/* Whether it is that file of a process, as its procfs names it, wherever that is mounted. @folder: of which one. */
static bool is_proc_file(int fd, const char *name, char *folder, size_t room)
{
	char target[128], *slash, *before;
	struct statfs st;

	/* Nothing that somebody's own file system serves when it likes. */
	if (fstatfs(fd, &st) < 0 || st.f_type != PROC_SUPER_MAGIC)
		return false;
	if (!name_of(fd, target, sizeof(target)))
		return false;
	slash = strrchr(target, '/');
	if (!slash || strcmp(slash + 1, name) != 0)
		return false;
	*slash = '\0';
	before = strrchr(target, '/');
	return before && snprintf(folder, room, "%s", before + 1) < (int)room;
}

/* They are of one process. (Of whichever the client can have opened them; his own, in the library.) */
int owner_check_proc(const struct owner *owner)
{
	const struct { int fd; const char *name; } files[] = {
		{ owner->mem, "mem" }, { owner->pagemap, "pagemap" }, { owner->maps, "maps" }, { owner->smaps, "smaps" },
	};
	char first[16], folder[16];

	for (unsigned int i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		if (!is_proc_file(files[i].fd, files[i].name, i ? folder : first, sizeof(folder)) ||
		    (i && strcmp(folder, first) != 0))
			return -EBADF;
	return 0;
}
