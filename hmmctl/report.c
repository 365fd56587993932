// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * report.c - what went wrong, why, and what to do next, on stderr; and the exit
 * status that says the same to a script. Main thread.
 */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hmmctl.h"

static int no_daemon(const struct link *link)
{
	fprintf(stderr, "hmmctl: no hmmd answers at %s: %s\n"
		"  start it:           systemctl start hmmd\n"
		"  or one of your own: hmmd --user\n"
		"  or name its socket: --socket PATH, or HMM_SOCKET in the environment\n",
		link->path, link->text);
	return STATUS_NO_DAEMON;
}

/* Return: true if the socket is closed to this user, who has been told whom it is open to. */
static bool not_a_member(const struct link *link)
{
	const struct passwd *user = getpwuid(getuid());
	const struct group *group;
	struct stat socket;

	if (!access(link->path, W_OK) || stat(link->path, &socket) || !(socket.st_mode & S_IWGRP))
		return false;
	group = getgrgid(socket.st_gid);
	if (!group)
		return false;
	fprintf(stderr, "hmmctl: not permitted: %s is open to group %s\n"
		"  let root make this user a member: usermod -aG %s %s\n"
		"  then log in again: id shows whether it holds\n",
		link->path, group->gr_name, group->gr_name, user ? user->pw_name : "USER");
	return true;
}

static int not_permitted(const struct link *link)
{
	if (link->fd < 0 && not_a_member(link))
		return STATUS_NOT_PERMITTED;
	fprintf(stderr, "hmmctl: not permitted: %s\n"
		"  members of the group of %s may connect; owners of other users are root's to touch\n",
		link->text, link->path);
	return STATUS_NOT_PERMITTED;
}

int report_link_error(const struct link *link)
{
	switch (-link->error) {
	case ENOENT:
	case ESTALE:
	case ENODEV:
	case ESRCH:
		if (link->fd < 0)
			return no_daemon(link);
		fprintf(stderr, "hmmctl: %s\n  see what there is: hmmctl mirrors\n", link->text);
		return STATUS_NOTHING;
	case ECONNREFUSED:
	case ECONNRESET:
	case EPIPE:
	case ENOTCONN:
		return no_daemon(link);
	case EACCES:
	case EPERM:
		return not_permitted(link);
	case EPROTO:
		fprintf(stderr, "hmmctl: %s\n  hmmctl and hmmd must come from the same release:"
			" see hmmctl --version and hmmd --version\n", link->text);
		return STATUS_FAILED;
	default:
		fprintf(stderr, "hmmctl: %s\n", link->text);
		return STATUS_FAILED;
	}
}

int report_owner_error(const struct link *link)
{
	if (link->fd >= 0 && (link->error == -ESRCH || link->error == -ESTALE))
		return STATUS_OK;
	return report_link_error(link);
}

int report_nothing(const char *what)
{
	fprintf(stderr, "hmmctl: no %s fits what was selected\n  see what there is: hmmctl mirrors\n",
		what);
	return STATUS_NOTHING;
}

int report_no_memory(void)
{
	fputs("hmmctl: out of memory\n", stderr);
	return STATUS_FAILED;
}
