// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * holder.c - hmmd's side of the process that keeps cards' descriptors.
 *
 * Happy path: at start nobody answers at SOCKET.holder and nothing is done. The
 * first card starts the process (this very program, by HOLDER_ARGUMENT: hmmd
 * has threads and cannot just fork), with one end of a socket pair and with the
 * listening socket, which is bound here, where errors can be told. From then on
 * each call is one request and one answer. After a crash the process answers at
 * SOCKET.holder, and what it has is fetched at once.
 *
 * hmmd has duplicates of its own of all that is kept, so that a holder which
 * somebody killed can be replaced (holder_mend()): it is noticed by its socket.
 *
 * What can fail: each step of starting it, and then nothing is kept and the
 * card is refused; a holder of another user, another hmmd or another release.
 * Thread: one at a time.
 */
#include "holding.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/log.h"

#define ANSWER_MS	5000
/* It has to be loaded first. */
#define START_MS	30000
/* A hmmd that was killed lets go of its lock a moment before its holder hears of it. */
#define BUSY_TRIES	100
#define BUSY_WAIT_US	10000

struct holder {
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	const char *program;
	unsigned int grace_ms;
	int fd;				/* -1: no process */
	int pidfd;
	pid_t pid;
	struct holding_card cards[HOLDER_CARDS];
	unsigned int n;
};

/* ---- requests ------------------------------------------------------------------------ */

static void let_go(struct holder *holder)
{
	if (holder->fd >= 0)
		close(holder->fd);
	if (holder->pidfd >= 0)
		close(holder->pidfd);
	holder->fd = -1;
	holder->pidfd = -1;
	holder->pid = 0;
}

/*
 * One that does not answer. To let go of it while it lives would silence the cards; its death does not: hmmd
 * has all that it has.
 */
static void end_by_force(struct holder *holder)
{
	struct pollfd wait = { .fd = holder->pidfd, .events = POLLIN };

	if (holder->pidfd >= 0 &&
	    syscall(SYS_pidfd_send_signal, holder->pidfd, SIGKILL, NULL, 0) == 0)
		poll(&wait, 1, ANSWER_MS);
	let_go(holder);
}

/* @came: what descriptors came with the answer, NULL if none are wanted. */
static int request(struct holder *holder, struct holding_message *message,
		   const struct holding_card *card, struct holding_card *came)
{
	uint32_t op = message->op;
	struct holding_card none;
	int r;

	if (card)
		memcpy(message->name, card->name, sizeof(message->name));
	r = holding_send(holder->fd, message, message->op == HOLDING_KEEP ? card : NULL);
	if (r < 0)
		return r;
	r = holding_receive(holder->fd, message, came ? came : &none, ANSWER_MS);
	if (!came)
		holding_close(&none);
	if (!r)
		r = message->op == op ? message->error : -EPROTO;
	/* Before it answers that nothing is left it has let go of everything, and ends. */
	if (!r && !message->cards)
		let_go(holder);
	return r;
}

static int request_keep(struct holder *holder, const struct holding_card *card)
{
	struct holding_message message = { .op = HOLDING_KEEP };

	return request(holder, &message, card, NULL);
}

/* ---- starting it --------------------------------------------------------------------------- */

static void fill_address(struct sockaddr_un *address, const char *path)
{
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	strcpy(address->sun_path, path);
}

/* A connected socket, or a negative errno: -ENOENT, -ECONNREFUSED: nobody is there. */
static int connect_to(const char *path)
{
	struct sockaddr_un address;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), r;

	if (fd < 0)
		return -errno;
	fill_address(&address, path);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		return fd;
	r = -errno;
	close(fd);
	return r;
}

/* What a holder that was killed has left behind. */
static int remove_stale(const char *path)
{
	struct stat st;
	int fd;

	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EADDRINUSE;
	fd = connect_to(path);
	if (fd != -ECONNREFUSED) {
		if (fd >= 0)
			close(fd);
		return -EADDRINUSE;
	}
	return unlink(path) < 0 && errno != ENOENT ? -errno : 0;
}

static int listen_at(const char *path)
{
	struct sockaddr_un address;
	int fd, r;

	r = remove_stale(path);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	fill_address(&address, path);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	/* Nobody connects before listen(), so no mode before this one matters. */
	if (chmod(path, 0600) == 0 && listen(fd, 4) == 0)
		return fd;
	r = -errno;
	unlink(path);
	close(fd);
	return r;
}

/* A duplicate that lies above the places where the process wants its own. */
static int raise_fd(int fd)
{
	int raised = fcntl(fd, F_DUPFD_CLOEXEC, HOLDING_FIRST_FREE);

	return raised < 0 ? -errno : raised;
}

static int spawn(const struct holder *holder, int hmmd, int listener)
{
	const char *program = holder->program ? holder->program : "/proc/self/exe";
	posix_spawn_file_actions_t actions;
	char grace[16];
	char *argv[] = { "hmmd", HOLDER_ARGUMENT, grace, (char *)holder->path, NULL };
	int status, r;
	pid_t pid;

	snprintf(grace, sizeof(grace), "%u", holder->grace_ms);
	r = posix_spawn_file_actions_init(&actions);
	if (r)
		return -r;
	r = posix_spawn_file_actions_adddup2(&actions, hmmd, HOLDING_HMMD);
	if (!r)
		r = posix_spawn_file_actions_adddup2(&actions, listener, HOLDING_LISTENER);
	if (!r)
		r = posix_spawn(&pid, program, &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	if (r)
		return -r;
	/* It goes on in a child of its own, and ends at once. */
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return 0;
}

/* The two sockets, where the process can be given them. */
static int spawn_with(struct holder *holder, int pair_end, int listener)
{
	int hmmd = raise_fd(pair_end), raised = raise_fd(listener);
	int r = hmmd < 0 ? hmmd : raised < 0 ? raised : spawn(holder, hmmd, raised);

	if (hmmd >= 0)
		close(hmmd);
	if (raised >= 0)
		close(raised);
	return r;
}

static int receive_greeting(struct holder *holder, int timeout_ms, uint32_t *cards)
{
	struct holding_message greeting;
	struct holding_card self;
	int r = holding_receive(holder->fd, &greeting, &self, timeout_ms);

	if (!r)
		r = greeting.op == HOLDING_GREETING ? greeting.error : -EPROTO;
	if (!r && self.n == 1) {
		holder->pidfd = self.fds[0];
		holder->pid = (pid_t)greeting.pid;
	} else {
		holding_close(&self);
	}
	*cards = greeting.cards;
	return r;
}

static int start(struct holder *holder)
{
	int pair[2], listener, r;
	uint32_t none;

	listener = listen_at(holder->path);
	if (listener < 0) {
		log_error("no holder for cards can listen at %s: %s", holder->path,
			  strerror(-listener));
		return listener;
	}
	r = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 ? -errno : 0;
	if (!r) {
		r = spawn_with(holder, pair[1], listener);
		close(pair[1]);
		holder->fd = pair[0];
	}
	close(listener);
	if (!r)
		r = receive_greeting(holder, START_MS, &none);
	if (!r)
		return 0;
	log_error("the holder for cards does not start: %s", strerror(-r));
	let_go(holder);
	unlink(holder->path);
	return r;
}

/* Another process, which has all. */
static int replace(struct holder *holder)
{
	int r;

	end_by_force(holder);
	if (!holder->n)
		return 0;
	r = start(holder);
	for (unsigned int i = 0; !r && i < holder->n; i++)
		r = request_keep(holder, &holder->cards[i]);
	if (r < 0)
		end_by_force(holder);
	return r;
}

int holder_mend(struct holder *holder)
{
	int r;

	if (holder->fd >= 0)
		log_warn(
			"the holder for cards is gone although hmmd lives; another takes its place");
	r = replace(holder);
	if (r < 0)
		log_error("cards are not safe if hmmd dies now: no holder has them");
	return r;
}

/* ---- finding one --------------------------------------------------------------------------- */

/* Whoever listens there must be one of ours: what it hands out is mapped and trusted. */
static int check_peer(int fd)
{
	struct ucred peer = { 0 };
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return -errno;
	return peer.uid && peer.uid != geteuid() ? -EACCES : 0;
}

static int fetch(struct holder *holder, uint32_t cards)
{
	struct holding_message message;
	int r;

	if (cards > HOLDER_CARDS)
		return -EPROTO;
	for (uint32_t i = 0; i < cards; i++) {
		struct holding_card *card = &holder->cards[holder->n];

		message = (struct holding_message){ .op = HOLDING_TAKE, .index = i };
		r = request(holder, &message, NULL, card);
		if (r < 0) {
			holding_close(card);
			return r;
		}
		holder->n++;
	}
	return 0;
}

/* @there: somebody is, whatever he says. */
static int attach(struct holder *holder, bool *there)
{
	uint32_t cards = 0;
	int r = connect_to(holder->path);

	*there = r >= 0;
	if (r < 0)
		return r;
	holder->fd = r;
	r = check_peer(holder->fd);
	/* It may be letting go of very many pages. */
	if (!r)
		r = receive_greeting(holder, START_MS, &cards);
	if (!r)
		r = fetch(holder, cards);
	if (r < 0) {
		while (holder->n)
			holding_close(&holder->cards[--holder->n]);
		let_go(holder);
	}
	return r;
}

static int find(struct holder *holder)
{
	bool there;
	int r = attach(holder, &there);

	for (unsigned int i = 0; r == -EBUSY && i < BUSY_TRIES; i++) {
		usleep(BUSY_WAIT_US);
		r = attach(holder, &there);
	}
	if (r == 0) {
		log_info("process %d has kept %u card%s of an earlier hmmd", holder->pid, holder->n,
			 holder->n == 1 ? "" : "s");
		return 0;
	}
	/* ECONNRESET: its grace time was just over. */
	if (there ? r == -ECONNRESET : r == -ENOENT || r == -ECONNREFUSED)
		return 0;
	if (!there) {
		log_error("%s cannot be looked at for cards of an earlier hmmd: %s", holder->path,
			  strerror(-r));
		return r;
	}
	log_error(
		"the cards of an earlier hmmd cannot be had from the process at %s (%s), and may reach "
		"memory that this one would serve: it ends after its grace time, or with SIGTERM",
		holder->path, strerror(-r));
	return -EADDRINUSE;
}

int holder_new(const struct holder_options *options, struct holder **result)
{
	struct holder *holder = calloc(1, sizeof(*holder));
	int n, r;

	if (!holder)
		return -ENOMEM;
	holder->fd = -1;
	holder->pidfd = -1;
	holder->program = options->program;
	holder->grace_ms = options->grace_ms ? options->grace_ms : HOLDER_GRACE_MS;
	n = snprintf(holder->path, sizeof(holder->path), "%s.holder", options->socket);
	if (n >= (int)sizeof(holder->path)) {
		log_error(
			"%s.holder is %d bytes long and a socket's path may have %zu: cards cannot be kept; "
			"choose a shorter path with --socket",
			options->socket, n, sizeof(holder->path) - 1);
		r = -ENAMETOOLONG;
	} else {
		r = find(holder);
	}
	if (r < 0) {
		free(holder);
		return r;
	}
	*result = holder;
	return 0;
}

struct holder *holder_leave(struct holder *holder)
{
	if (!holder)
		return NULL;
	while (holder->n)
		holding_close(&holder->cards[--holder->n]);
	let_go(holder);
	free(holder);
	return NULL;
}

struct holder *holder_free(struct holder *holder)
{
	struct holding_message message = { .op = HOLDING_END };
	int r;

	if (!holder)
		return NULL;
	/* Its close is then the last: when it has answered the cards are anybody's. */
	while (holder->n)
		holding_close(&holder->cards[--holder->n]);
	if (holder->fd >= 0) {
		r = request(holder, &message, NULL, NULL);
		if (r < 0 && r != -ECONNRESET)
			log_warn("the holder for cards does not end as it is told: %s",
				 strerror(-r));
		if (r < 0)
			end_by_force(holder);
	}
	return holder_leave(holder);
}

/* ---- cards --------------------------------------------------------------------------------- */

static struct holding_card *find_card(struct holder *holder, const char *name)
{
	for (unsigned int i = 0; i < holder->n; i++)
		if (!strcmp(holder->cards[i].name, name))
			return &holder->cards[i];
	return NULL;
}

static int duplicate(const int *fds, unsigned int n, struct holding_card *card)
{
	int r = 0;

	card->n = n;
	for (unsigned int i = 0; i < n; i++) {
		card->fds[i] =
			fds[i] < 0 || r ? -1 : fcntl(fds[i], F_DUPFD_CLOEXEC, HOLDING_FIRST_FREE);
		if (card->fds[i] < 0 && fds[i] >= 0 && !r)
			r = -errno;
	}
	if (r < 0)
		holding_close(card);
	return r;
}

const char *holder_name(const struct holder *holder, unsigned int index)
{
	return index < holder->n ? holder->cards[index].name : NULL;
}

int holder_keep(struct holder *holder, const char *name, const int *fds, unsigned int n)
{
	struct holding_card *card;
	int r;

	if (!n || n > HOLDER_FDS || fds[HOLDER_CONTAINER] < 0 || !*name ||
	    strlen(name) >= HOLDER_NAME)
		return -EINVAL;
	if (find_card(holder, name))
		return -EEXIST;
	if (holder->n == HOLDER_CARDS)
		return -ENOSPC;
	card = &holder->cards[holder->n];
	r = duplicate(fds, n, card);
	if (r < 0)
		return r;
	memset(card->name, 0, sizeof(card->name));
	strcpy(card->name, name);
	holder->n++;
	r = holder->fd >= 0 ? request_keep(holder, card) : -ECONNRESET;
	/* None yet, or somebody has ended it, or it is stuck. */
	if (r == -ECONNRESET || r == -ETIMEDOUT)
		r = replace(holder);
	if (r < 0) {
		log_error("card %s cannot be kept: %s", name, strerror(-r));
		holder->n--;
		holding_close(card);
	}
	return r;
}

int holder_drop(struct holder *holder, const char *name)
{
	struct holding_message message = { .op = HOLDING_DROP };
	struct holding_card *card = find_card(holder, name);
	int r;

	if (!card)
		return -ENOENT;
	r = holder->fd >= 0 ? request(holder, &message, card, NULL) : 0;
	holding_close(card);
	memmove(card, card + 1, (size_t)(&holder->cards[--holder->n] - card) * sizeof(*card));
	/* One that still has this card is wrong. */
	return r < 0 ? holder_mend(holder) : 0;
}

int holder_take(struct holder *holder, const char *name, int *fds, unsigned int n)
{
	const struct holding_card *card = find_card(holder, name);
	struct holding_card copy;
	int r;

	if (!card)
		return -ENOENT;
	if (card->n > n)
		return -ENOSPC;
	r = duplicate(card->fds, card->n, &copy);
	if (r < 0)
		return r;
	memcpy(fds, copy.fds, card->n * sizeof(*fds));
	return (int)card->n;
}

int holder_poll_fd(const struct holder *holder)
{
	return holder->fd;
}

pid_t holder_pid(const struct holder *holder)
{
	return holder->pid;
}
