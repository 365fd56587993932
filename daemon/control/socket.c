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
 * Or the service manager has made it, and passed it (passed.h): path, mode and group are
 * its units' matter, and so is its end. The lock is taken all the same: another hmmd may be
 * started at that path by hand. Only then can there be a second socket, for administration.
 *
 * What can fail: a path that is too long, taken, or in a folder that does not
 * exist or is not ours; a passed socket that is of another kind. Each is logged with what to do.
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

#include "daemon/control/passed.h"
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

	server->programs.fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (server->programs.fd < 0) {
		log_error("cannot make a socket: %m");
		return -errno;
	}
	fill_address(&address, server->path);
	mask = umask(0177);
	r = bind(server->programs.fd, (struct sockaddr *)&address, sizeof(address));
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

/* ---- sockets that were passed ------------------------------------------------------- */

static int socket_option(int fd, int which)
{
	int value = -1;
	socklen_t size = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, which, &value, &size) < 0 ? -1 : value;
}

/* Its path, which is where the holder of cards and the lock have their names from. */
static int look_at_passed(int fd, char *path, size_t room)
{
	struct sockaddr_un address = { .sun_family = AF_UNSPEC };
	socklen_t size = sizeof(address);
	const size_t most = sizeof(address.sun_path);

	if (getsockname(fd, (struct sockaddr *)&address, &size) < 0 || address.sun_family != AF_UNIX ||
	    socket_option(fd, SO_TYPE) != SOCK_SEQPACKET || socket_option(fd, SO_ACCEPTCONN) != 1) {
		log_error("a socket that the service manager passed (descriptor %d) is of the wrong kind: "
			  "its unit has to say ListenSequentialPacket= and Accept=no", fd);
		return -EINVAL;
	}
	if (address.sun_path[0] != '/' || strnlen(address.sun_path, most) >= room) {
		log_error("a socket that the service manager passed (descriptor %d) has no path of at most %zu bytes: "
			  "ListenSequentialPacket= in its unit has to name one, such as /run/hmmd/hmmd.sock",
			  fd, room - 1);
		return -EINVAL;
	}
	memcpy(path, address.sun_path, strnlen(address.sun_path, most) + 1);
	return fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0 ? -errno : 0;
}

static int adopt_programs(struct server *server)
{
	char path[sizeof(server->path)];
	int r = look_at_passed(server->programs.fd, path, sizeof(path));

	if (r < 0)
		return r;
	if (strcmp(path, server->path))
		log_warn("the service manager's socket is %s: 'socket', which says %s, has no say beside hmmd.socket",
			 path, server->path);
	memcpy(server->path, path, sizeof(path));
	return take_lock(server->path, &server->lock_fd);
}

static int adopt_administration(struct server *server)
{
	char path[sizeof(server->path)];

	return server->administration.fd < 0 ? 0 : look_at_passed(server->administration.fd, path, sizeof(path));
}

int socket_open(struct server *server, struct passed *passed)
{
	int r;

	server->programs.fd = passed_take_socket(passed, false);
	server->administration.fd = passed_take_socket(passed, true);
	r = adopt_administration(server);
	if (r < 0 || server->programs.fd >= 0) {
		r = r < 0 ? r : adopt_programs(server);
		if (r < 0)
			socket_close(server);
		return r;
	}

	r = make_folder(server->path);
	if (!r)
		r = take_lock(server->path, &server->lock_fd);
	if (!r)
		r = remove_stale(server->path);
	if (!r)
		r = bind_path(server);
	if (!r)
		r = open_to_group(server->path, server->config.user ? "" : server->config.group);
	if (!r && listen(server->programs.fd, BACKLOG) < 0) {
		r = -errno;
		log_error("cannot listen on %s: %m", server->path);
	}
	if (r < 0)
		socket_close(server);
	return r;
}

void socket_stop_listening(struct server *server)
{
	if (server->programs.fd >= 0)
		close(server->programs.fd);
	if (server->administration.fd >= 0)
		close(server->administration.fd);
	server->programs.fd = -1;
	server->administration.fd = -1;
}

void socket_close(struct server *server)
{
	char name[128];
	struct stat st;

	socket_stop_listening(server);
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
