// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * holding.c - the holder, as a process: keeps cards' VFIO descriptors while
 * hmmd lives, and silences the cards when it does not.
 *
 * Happy path: hmmd starts it with two sockets, one that leads to hmmd and one
 * that listens for the next hmmd. It leaves hmmd's session and lets go of all
 * else, so that a signal to hmmd's process group does not reach it, and answers
 * requests one at a time. It ends when hmmd says so or drops the last card.
 *
 * When the socket to hmmd closes without a word, hmmd is dead, and what cards
 * still do is nobody's wish: they lose bus mastering, which is quick, and then
 * all that their containers map. Only then is the next hmmd let in: it finds
 * every container empty. If none comes within the grace time the process ends,
 * and with its descriptors the kernel resets the cards.
 *
 * It has no memory of any owner: it is a fresh image of the program, and maps nothing.
 *
 * What can fail: a descriptor that cannot be received (-EMFILE, the request is
 * refused), a container that does not unmap (logged; closing it later is all
 * that is left). A newcomer is let in only if it is root or hmmd's own user, and
 * alone.
 *
 * Threads: one, and the log's.
 */
#include "holding.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "daemon/log.h"
#include "daemon/privileges.h"
#include "kernel/kernel.h"

/* A request has arrived when it is received: both ends send whole ones, or die. */
#define ARRIVED_MS 1000

struct holding {
	int hmmd;			/* -1: none, the grace time runs */
	int listener;			/* -1: nobody is to come any more */
	int signals;
	const char *path;		/* of the listener */
	dev_t socket_dev;
	ino_t socket_ino;
	int grace_ms;
	uint64_t deadline_ms;
	bool ending;
	struct holding_card cards[HOLDER_CARDS];
	unsigned int n;
};

/* ---- messages ------------------------------------------------------------------------ */

union control {
	struct cmsghdr header;
	char room[CMSG_SPACE(sizeof(int) * HOLDER_FDS)];
};

int holding_send(int socket, struct holding_message *message, const struct holding_card *card)
{
	union control control = { 0 };
	struct iovec iov = { .iov_base = message, .iov_len = sizeof(*message) };
	struct msghdr header = { .msg_iov = &iov, .msg_iovlen = 1 };
	int fds[HOLDER_FDS];
	unsigned int n = 0;

	message->version = HOLDING_VERSION;
	message->n = card ? card->n : 0;
	message->present = 0;
	for (unsigned int i = 0; i < message->n; i++) {
		if (card->fds[i] < 0)
			continue;
		message->present |= 1U << i;
		fds[n++] = card->fds[i];
	}
	if (n) {
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int) * n);
		memcpy(CMSG_DATA(&control.header), fds, sizeof(int) * n);
		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE(sizeof(int) * n);
	}
	while (sendmsg(socket, &header, MSG_NOSIGNAL) < 0) {
		if (errno != EINTR)
			return errno == EPIPE ? -ECONNRESET : -errno;
	}
	return 0;
}

static int await(int socket, int timeout_ms)
{
	struct pollfd wait = { .fd = socket, .events = POLLIN };
	int r;

	do {
		r = poll(&wait, 1, timeout_ms);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r ? 0 : -ETIMEDOUT;
}

/* Into the places that @message says; what has none is closed. */
static int place(const struct holding_message *message, struct holding_card *card, const int *fds,
		 unsigned int n)
{
	unsigned int taken = 0;

	card->n = message->n <= HOLDER_FDS ? message->n : 0;
	for (unsigned int i = 0; i < card->n; i++)
		if (message->present & 1U << i && taken < n)
			card->fds[i] = fds[taken++];
	for (unsigned int i = taken; i < n; i++)
		close(fds[i]);
	return message->n <= HOLDER_FDS && taken == n &&
	       n == (unsigned int)__builtin_popcount(message->present) ? 0 : -EPROTO;
}

int holding_receive(int socket, struct holding_message *message, struct holding_card *card,
		    int timeout_ms)
{
	union control control;
	struct iovec iov = { .iov_base = message, .iov_len = sizeof(*message) };
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *at;
	int fds[HOLDER_FDS], r;
	unsigned int n = 0;
	ssize_t size;

	card->n = 0;
	for (unsigned int i = 0; i < HOLDER_FDS; i++)
		card->fds[i] = -1;
	memset(message, 0, sizeof(*message));
	r = await(socket, timeout_ms);
	if (r < 0)
		return r;
	do {
		size = recvmsg(socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	} while (size < 0 && errno == EINTR);
	if (size <= 0)
		return size && errno != ECONNRESET ? -errno : -ECONNRESET;
	for (at = CMSG_FIRSTHDR(&header); at; at = CMSG_NXTHDR(&header, at)) {
		if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS)
			continue;
		n = (unsigned int)((at->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(at), sizeof(int) * n);
	}
	r = place(message, card, fds, n);
	if (header.msg_flags & MSG_CTRUNC)
		return -EMFILE;
	if (size != sizeof(*message) || message->version != HOLDING_VERSION)
		return -EPROTO;
	message->name[HOLDER_NAME - 1] = '\0';
	memcpy(card->name, message->name, sizeof(card->name));
	return r;
}

void holding_close(struct holding_card *card)
{
	for (unsigned int i = 0; i < card->n; i++)
		if (card->fds[i] >= 0)
			close(card->fds[i]);
	card->n = 0;
}

/* ---- cards --------------------------------------------------------------------------- */

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static struct holding_card *find_card(struct holding *holding, const char *name)
{
	for (unsigned int i = 0; i < holding->n; i++)
		if (!strcmp(holding->cards[i].name, name))
			return &holding->cards[i];
	return NULL;
}

static void drop_card(struct holding *holding, struct holding_card *card)
{
	holding_close(card);
	memmove(card, card + 1, (size_t)(&holding->cards[--holding->n] - card) * sizeof(*card));
}

static int card_fd(const struct holding_card *card, enum holder_fd which)
{
	return which < card->n ? card->fds[which] : -1;
}

/* The quick part of every card first: it ends all transfers; unmapping lets go of pages one by one. */
static void silence(struct holding *holding)
{
	int r;

	for (unsigned int i = 0; i < holding->n; i++) {
		const struct holding_card *card = &holding->cards[i];

		r = card_fd(card, HOLDER_DEVICE) < 0
			    ? 0
			    : kernel->vfio_master(card_fd(card, HOLDER_DEVICE), false);
		if (r < 0)
			log_warn("holder: %s may still start transfers: %s", card->name,
				 strerror(-r));
	}
	for (unsigned int i = 0; i < holding->n; i++) {
		const struct holding_card *card = &holding->cards[i];

		r = kernel->vfio_unmap_all(card_fd(card, HOLDER_CONTAINER));
		if (r < 0)
			log_error(
				"holder: %s still reaches memory: its container does not unmap: %s",
				card->name, strerror(-r));
	}
}

/* ---- requests ------------------------------------------------------------------------ */

/* The name in the file system is free for another holder from here on. */
static void stop_listening(struct holding *holding)
{
	struct stat st;

	if (holding->listener < 0)
		return;
	if (!lstat(holding->path, &st) && st.st_dev == holding->socket_dev &&
	    st.st_ino == holding->socket_ino)
		unlink(holding->path);
	close(holding->listener);
	holding->listener = -1;
}

static void end(struct holding *holding)
{
	while (holding->n)
		drop_card(holding, &holding->cards[0]);
	stop_listening(holding);
	holding->ending = true;
}

/* Takes over what came in @card when it returns 0. */
static int keep(struct holding *holding, const struct holding_card *card)
{
	if (!*card->name || card_fd(card, HOLDER_CONTAINER) < 0)
		return -EINVAL;
	if (find_card(holding, card->name))
		return -EEXIST;
	if (holding->n == HOLDER_CARDS)
		return -ENOSPC;
	holding->cards[holding->n++] = *card;
	return 0;
}

static int drop(struct holding *holding, const char *name)
{
	struct holding_card *card = find_card(holding, name);

	if (!card)
		return -ENOENT;
	drop_card(holding, card);
	if (!holding->n)
		end(holding);
	return 0;
}

static void answer(struct holding *holding, const struct holding_message *request,
		   struct holding_card *came)
{
	struct holding_message reply = { .op = request->op, .index = request->index };
	const struct holding_card *card = NULL;

	switch (request->op) {
	case HOLDING_KEEP:
		reply.error = keep(holding, came);
		if (!reply.error)
			came->n = 0;
		break;
	case HOLDING_DROP:
		reply.error = drop(holding, request->name);
		break;
	case HOLDING_TAKE:
		if (request->index < holding->n)
			card = &holding->cards[request->index];
		else
			reply.error = -ENOENT;
		break;
	case HOLDING_END:
		/* hmmd has unmapped what it mapped; if it has forgotten something, then not for the cards. */
		silence(holding);
		end(holding);
		break;
	default:
		reply.error = -EPROTO;
		break;
	}
	if (card)
		memcpy(reply.name, card->name, sizeof(reply.name));
	reply.cards = holding->n;
	holding_send(holding->hmmd, &reply, card);
}

static void hmmd_died(struct holding *holding)
{
	close(holding->hmmd);
	holding->hmmd = -1;
	if (!holding->n) {
		end(holding);
		return;
	}
	silence(holding);
	holding->deadline_ms = now_ms() + (uint64_t)holding->grace_ms;
	log_warn(
		"holder: hmmd is gone: %u card%s may reach no memory, and wait%s %d ms for the next",
		holding->n, holding->n == 1 ? "" : "s", holding->n == 1 ? "s" : "",
		holding->grace_ms);
}

static void serve(struct holding *holding)
{
	struct holding_message request;
	struct holding_card came;
	int r = holding_receive(holding->hmmd, &request, &came, ARRIVED_MS);

	if (r == -EMFILE || r == -EPROTO) {
		struct holding_message reply = {
			.op = request.op, .error = r, .cards = holding->n,
		};

		holding_send(holding->hmmd, &reply, NULL);
	} else if (r < 0) {
		hmmd_died(holding);
	} else {
		answer(holding, &request, &came);
	}
	holding_close(&came);
}

/* ---- the next hmmd ---------------------------------------------------------------------- */

static bool hmmd_is_there(struct holding *holding)
{
	struct pollfd look = { .fd = holding->hmmd };

	/* What it said last is not heard: it was not told that it happened, and the card is silenced. */
	if (holding->hmmd >= 0 && poll(&look, 1, 0) > 0 && look.revents & (POLLHUP | POLLERR))
		hmmd_died(holding);
	return holding->hmmd >= 0;
}

/* The first word to an hmmd. It gets a pidfd, to be sure of whom it ends when the process does not answer. */
static int greet(int fd, int error, unsigned int cards)
{
	struct holding_message greeting = {
		.op = HOLDING_GREETING, .error = error, .pid = (uint32_t)getpid(), .cards = cards,
	};
	struct holding_card self = { .n = 1, .fds = { -1 } };
	int r;

	if (!error) {
		self.fds[0] = (int)syscall(SYS_pidfd_open, getpid(), 0);
		if (self.fds[0] < 0)
			greeting.error = -errno;
	}
	r = holding_send(fd, &greeting, &self);
	holding_close(&self);
	return greeting.error ? greeting.error : r;
}

static void greet_newcomer(struct holding *holding)
{
	struct ucred peer = { 0 };
	int error = 0;
	socklen_t size = sizeof(peer);
	int fd = accept4(holding->listener, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 ||
	    (peer.uid && peer.uid != geteuid())) {
		log_warn("holder: process %d of user %u asked for cards, which are not theirs",
			 peer.pid, peer.uid);
		error = -EACCES;
	} else if (hmmd_is_there(holding)) {
		log_warn("holder: process %d asked for cards that another hmmd has", peer.pid);
		error = -EBUSY;
	}
	if (greet(fd, error, error ? 0 : holding->n) < 0) {
		close(fd);
		return;
	}
	holding->hmmd = fd;
	log_info("holder: hmmd is back, as process %d: it has its cards again", peer.pid);
}

/* Alone with its cards it obeys; while hmmd lives, hmmd is who decides. */
static void obey_signal(struct holding *holding)
{
	struct signalfd_siginfo info;

	if (read(holding->signals, &info, sizeof(info)) != sizeof(info) || hmmd_is_there(holding))
		return;
	log_warn("holder: signal %u and no hmmd: the cards are given up, and reset",
		 info.ssi_signo);
	end(holding);
}

/* ---- the process --------------------------------------------------------------------------- */

static int time_left(const struct holding *holding)
{
	uint64_t now = now_ms();

	if (holding->hmmd >= 0)
		return -1;
	return now < holding->deadline_ms ? (int)(holding->deadline_ms - now) : 0;
}

static void hold(struct holding *holding)
{
	struct pollfd waits[3];

	while (!holding->ending) {
		waits[0] = (struct pollfd){ .fd = holding->hmmd, .events = POLLIN };
		waits[1] = (struct pollfd){ .fd = holding->signals, .events = POLLIN };
		waits[2] = (struct pollfd){ .fd = holding->listener, .events = POLLIN };
		if (poll(waits, 3, time_left(holding)) < 0) {
			if (errno == EINTR)
				continue;
			log_error("holder: cannot wait: %m");
			return;
		}
		if (waits[0].revents)
			serve(holding);
		else if (waits[1].revents)
			obey_signal(holding);
		else if (waits[2].revents)
			greet_newcomer(holding);
		else if (holding->hmmd < 0 && !time_left(holding)) {
			log_warn("holder: no hmmd came in %d ms: the cards are given up, and reset",
				 holding->grace_ms);
			end(holding);
		}
	}
}

/* Out of hmmd's session and of its sight: hmmd has no child to wait for, and its terminal's signals pass by. */
static int leave_hmmd(void)
{
	int null;
	pid_t pid = fork();

	if (pid)
		_exit(pid < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
	if (setsid() < 0)
		return -errno;
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0)
		return -errno;
	close(null);
	prctl(PR_SET_NAME, "hmmd-holder");
	return 0;
}

static int take_signals(void)
{
	sigset_t ours;

	signal(SIGPIPE, SIG_IGN);
	sigfillset(&ours);
	sigdelset(&ours, SIGSEGV);
	sigdelset(&ours, SIGBUS);
	sigdelset(&ours, SIGABRT);
	sigdelset(&ours, SIGFPE);
	sigdelset(&ours, SIGILL);
	sigprocmask(SIG_SETMASK, &ours, NULL);
	sigemptyset(&ours);
	sigaddset(&ours, SIGTERM);
	sigaddset(&ours, SIGINT);
	sigaddset(&ours, SIGHUP);
	return signalfd(-1, &ours, SFD_CLOEXEC | SFD_NONBLOCK);
}

static bool are_sockets(void)
{
	int value;
	socklen_t size = sizeof(value);

	for (int fd = HOLDING_HMMD; fd < HOLDING_FIRST_FREE; fd++) {
		if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &size) < 0 ||
		    value != SOCK_SEQPACKET || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
			return false;
	}
	return true;
}

int holder_main(int argc, char **argv)
{
	static struct holding holding = { .hmmd = HOLDING_HMMD, .listener = HOLDING_LISTENER };
	struct stat st;
	int r;

	if (argc != 4 || !are_sockets() || lstat(argv[3], &st) < 0) {
		fputs("hmmd: " HOLDER_ARGUMENT " is what hmmd starts by itself, for cards\n",
		      stderr);
		return 2;
	}
	close_range(HOLDING_FIRST_FREE, ~0U, 0);
	holding.grace_ms = (int)strtol(argv[2], NULL, 10);
	holding.path = argv[3];
	holding.socket_dev = st.st_dev;
	holding.socket_ino = st.st_ino;
	r = leave_hmmd();
	holding.signals = take_signals();
	if (!r && holding.signals < 0)
		r = -errno;
	if (!r)
		r = log_init(LOG_LEVEL_INFO);
	/* All that it does it does to descriptors. */
	if (!r)
		r = privileges_keep(PRIVILEGES_NONE);
	if (greet(holding.hmmd, r, 0) < 0) {
		stop_listening(&holding);
		return EXIT_FAILURE;
	}
	hold(&holding);
	log_deinit();
	return EXIT_SUCCESS;
}
