// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * socket.c - one path, one hmmd.
 *
 * A lock file beside the socket decides who may serve the path; it is held by
 * flock() for as long as hmmd lives, so a killed hmmd leaves no lock. Under the
 * lock a socket file left by a killed hmmd is removed, but only when connecting
 * to it shows that nobody answers: another program may listen there without our lock.
 *
 * The socket is born 0600 and opened to the group only when it belongs to it.
 *
 * What can fail: a path that is too long, taken, or in a folder that does not
 * exist or is not ours. Each is logged with what to do.
 * Thread: control.
 */
#include "daemon/control/socket.h"

#include <errno.h>
#include <stdio.h>
#include <fcntl.h>
#include <grp.h>
#include <libgen.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/control/server.h"
#include "daemon/log.h"

#define BACKLOG 128

static void fill_address(struct sockaddr_un *address, const char *path)
{
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	memcpy(address->sun_path, path, strlen(path));
}

/*
 * /run is empty after a boot: make the last folder of the path, for ourselves to write and all to
 * pass.
 */
static int make_folder(const char *path)
{
	char copy[108];
	const char *folder;

	memcpy(copy, path, strlen(path) + 1);
	folder = dirname(copy);
	if (mkdir(folder, 0755) < 0 && errno != EEXIST) {
		log_error("cannot make the folder %s: %m", folder);
		return -errno;
	}
	return 0;
}

static void lock_path(char *out, size_t room, const char *path)
{
	snprintf(out, room, "%s.lock", path);
}

/*
 * The file that is locked must still be the one that the name leads to: the last holder removes it.
 */
static int take_lock(const char *path, int *result)
{
	char name[128];
	struct stat held, named;
	int fd;

	lock_path(name, sizeof(name), path);
	for (;;) {
		fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0) {
			log_error("cannot make %s: %m", name);
			return -errno;
		}
		if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
			int error = errno;

			close(fd);
			if (error != EWOULDBLOCK) {
				log_error("cannot lock %s: %s", name, strerror(error));
				return -error;
			}
			log_error("another hmmd serves %s; choose another path with --socket",
				  path);
			return -EADDRINUSE;
		}
		if (!fstat(fd, &held) && !stat(name, &named) && held.st_dev == named.st_dev &&
		    held.st_ino == named.st_ino)
			break;
		close(fd);
	}
	*result = fd;
	return 0;
}

static int remove_stale(const char *path)
{
	struct sockaddr_un address;
	struct stat st;
	int fd, r;

	if (lstat(path, &st) < 0) {
		if (errno == ENOENT)
			return 0;
		log_error("cannot look at %s: %m", path);
		return -errno;
	}
	if (!S_ISSOCK(st.st_mode)) {
		log_error(
			"%s exists and is no socket; remove it or choose another path with --socket",
			path);
		return -EADDRINUSE;
	}

	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		log_error("cannot make a socket: %m");
		return -errno;
	}
	fill_address(&address, path);
	r = connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
	close(fd);
	/* EAGAIN: a listener with a full queue. EPROTOTYPE: one of another type. Both are alive. */
	if (r != -ECONNREFUSED) {
		log_error("somebody else answers on %s; choose another path with --socket", path);
		return -EADDRINUSE;
	}
	if (unlink(path) < 0) {
		log_error("cannot remove the stale socket %s: %m", path);
		return -errno;
	}
	log_info("removed the stale socket %s", path);
	return 0;
}

/* 0660 for the group where it exists; else 0600 stays. */
static int open_to_group(const char *path, const char *name)
{
	struct group *group;

	if (!*name)
		return 0;
	errno = 0;
	group = getgrnam(name);
	if (!group) {
		log_warn(
			"there is no group '%s', so only %s can connect; make it with: groupadd --system %s",
			name, geteuid() ? "this user and root" : "root", name);
		return 0;
	}
	if (chown(path, -1, group->gr_gid) < 0) {
		log_error("cannot give %s to group '%s': %m", path, name);
		return -errno;
	}
	if (chmod(path, 0660) < 0) {
		log_error("cannot set the mode of %s: %m", path);
		return -errno;
	}
	return 0;
}

static int bind_path(struct server *server)
{
	struct sockaddr_un address;
	struct stat st;
	mode_t mask;
	int r;

	server->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (server->listen_fd < 0) {
		log_error("cannot make a socket: %m");
		return -errno;
	}
	fill_address(&address, server->path);
	mask = umask(0177);
	r = bind(server->listen_fd, (struct sockaddr *)&address, sizeof(address));
	umask(mask);
	if (r < 0) {
		log_error("cannot bind %s: %m", server->path);
		return -errno;
	}
	if (lstat(server->path, &st) < 0) {
		log_error("%s vanished while it was bound: %m", server->path);
		return -errno;
	}
	server->socket_dev = st.st_dev;
	server->socket_ino = st.st_ino;
	return 0;
}

int socket_open(struct server *server)
{
	int r;

	r = make_folder(server->path);
	if (!r)
		r = take_lock(server->path, &server->lock_fd);
	if (!r)
		r = remove_stale(server->path);
	if (!r)
		r = bind_path(server);
	if (!r)
		r = open_to_group(server->path, server->config.user ? "" : server->config.group);
	if (!r && listen(server->listen_fd, BACKLOG) < 0) {
		r = -errno;
		log_error("cannot listen on %s: %m", server->path);
	}
	if (r < 0)
		socket_close(server);
	return r;
}

void socket_close(struct server *server)
{
	char name[128];
	struct stat st;

	if (server->listen_fd >= 0) {
		close(server->listen_fd);
		server->listen_fd = -1;
	}
	if (server->socket_ino && !lstat(server->path, &st) && st.st_dev == server->socket_dev &&
	    st.st_ino == server->socket_ino)
		unlink(server->path);
	server->socket_ino = 0;
	if (server->lock_fd >= 0) {
		lock_path(name, sizeof(name), server->path);
		unlink(name);
		close(server->lock_fd);
		server->lock_fd = -1;
	}
}
