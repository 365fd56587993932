// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * stranger.c - the processes of stranger.h.
 *
 * Happy path: strangers_begin() forks a process that waits for wishes, before anything here has threads or
 * much memory; each wish makes it fork a stranger, which maps its memory, connects, sends its descriptors over
 * a socket pair, and then does to its memory what the bytes on that socket say, until the end of file.
 * It may well be blocked in that: hmmd, or nobody, reads its events. So it is killed in the end. Orders of hmmd's
 * are carried out by the library's own agent, in a thread of its own and without the rest of the library.
 *
 * What can fail: everything that the machine lacks; that ends the fuzzer with a line. All of them die with it.
 */
#include "stranger.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libclient/agent.h"
#include "libclient/arena.h"
#include "hmm_protocol.h"
#include "layout.h"

#define PLAIN_ID 65534

static pid_t maker;			/* of strangers */
static int wishes = -1;			/* ... to it */
static struct sockaddr_un address = { .sun_family = AF_UNIX };

static void give_up(const char *what)
{
	fprintf(stderr, "fuzz: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static void die_with_parent(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
}

/* ---- descriptors over a socket ---------------------------------------------------- */

/* False: the other end is gone. */
static bool send_with_fds(int socket, const void *data, size_t size, const int *fds, unsigned int count)
{
	char control[CMSG_SPACE(sizeof(int) * STRANGER_FDS)] = { 0 };
	struct iovec bytes = { (void *)(uintptr_t)data, size };
	struct msghdr message = { .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = CMSG_SPACE(sizeof(int) * count) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int) * count);
	memcpy(CMSG_DATA(header), fds, sizeof(int) * count);
	return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

static void send_fds(int socket, pid_t pid, const int *fds, unsigned int count)
{
	if (!send_with_fds(socket, &pid, sizeof(pid), fds, count))
		give_up("sending descriptors");
}

static pid_t receive_fds(int socket, int *fds, unsigned int count)
{
	char control[CMSG_SPACE(sizeof(int) * STRANGER_FDS)];
	pid_t pid = 0;
	struct iovec bytes = { &pid, sizeof(pid) };
	struct msghdr message = { .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header;
	ssize_t n;

	do {
		n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	header = n == sizeof(pid) ? CMSG_FIRSTHDR(&message) : NULL;
	if (!header || header->cmsg_len != CMSG_LEN(sizeof(int) * count))
		give_up("a stranger did not get on its feet");
	memcpy(fds, CMSG_DATA(header), sizeof(int) * count);
	return pid;
}

/* ---- a stranger -------------------------------------------------------------------- */

static void *map_at(unsigned long at, size_t size, int protection, int flags)
{
	void *map = mmap((void *)at, size, protection, flags | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (map == MAP_FAILED)
		give_up("a stranger's memory");
	return map;
}

static void map_memory(void)
{
	char *home = map_at(STRANGER_HOME, STRANGER_BLOCKS * HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);

	map_at(STRANGER_SLOTS, STRANGER_SLOT_COUNT * HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	/* The first two blocks are ordinary memory with pages here and there; then come odder ones. */
	for (size_t at = 0; at < 2 * HMM_BLOCK_SIZE; at += 16 * HMM_PAGE_SIZE)
		memset(home + at, (int)(at / HMM_PAGE_SIZE), HMM_PAGE_SIZE);
	map_at(STRANGER_HOME + 2 * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	map_at(STRANGER_HOME + 3 * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE, PROT_READ, MAP_PRIVATE);
	if (munmap(home + 4 * HMM_BLOCK_SIZE, HMM_BLOCK_SIZE) < 0)
		give_up("munmap");
}

/* What a program may do to its memory at any time. Many of these wait for hmmd. */
static void act(unsigned char what)
{
	unsigned long at = STRANGER_HOME + (what >> 4) % STRANGER_BLOCKS * HMM_BLOCK_SIZE;
	void *block = (void *)at;
	pid_t child;

	switch (what & 15) {
	case 0:
		madvise(block, HMM_BLOCK_SIZE, MADV_DONTNEED);
		break;
	case 1:
		munmap(block, HMM_BLOCK_SIZE);
		break;
	case 2:
		map_at(at, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE);
		break;
	case 3:
		mprotect(block, HMM_BLOCK_SIZE, PROT_NONE);
		break;
	case 4:
		mprotect(block, HMM_BLOCK_SIZE, PROT_READ | PROT_WRITE);
		break;
	case 5:
		mremap(block, HMM_BLOCK_SIZE, HMM_BLOCK_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
		       (void *)(STRANGER_HOME + 8 * HMM_BLOCK_SIZE));
		break;
	case 6:
		/* A touch, by a system call: it fails where nothing is, and ends nobody. */
		(void)!getcwd(block, HMM_PAGE_SIZE);
		break;
	case 7:
		child = fork();
		if (!child)
			_exit(0);
		break;
	case 8:
		munmap((void *)STRANGER_SLOTS, STRANGER_SLOT_COUNT * HMM_BLOCK_SIZE);
		break;
	default:
		madvise(block, HMM_BLOCK_SIZE, MADV_PAGEOUT);
		break;
	}
}

/* ---- its agent ----------------------------------------------------------------------- */

static struct agent *agent;
static int agents_files[3];	/* userfaultfd, pagemap, mem */

static void *carry_out(void *data)
{
	for (;;)
		if (!hmmc_agent_step(data))
			usleep(100);
	return NULL;
}

/* The shadows may be told first. */
static void have_agent(void)
{
	if (agent)
		return;
	agent = hmmc_arena_alloc(sizeof(*agent));
	if (!agent)
		give_up("no memory for an agent");
	agent->regions = hmmc_arena_alloc(sizeof(*agent->regions));
	agent->uffd = agents_files[0];
	agent->pagemap = agents_files[1];
	agent->mem = agents_files[2];
	agent->slots = (char *)STRANGER_SLOTS;
	agent->slots_count = STRANGER_SLOT_COUNT;
	if (!agent->regions || pipe2(agent->pipe, O_CLOEXEC) < 0)
		give_up("an agent's belongings");
}

static void start_agent(int orders, int bell)
{
	void *map = mmap(NULL, HMM_ORDERS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, orders, 0);
	pthread_t thread;

	have_agent();
	close(orders);
	agent->eventfd = bell;
	/* One is enough: whoever opens a second time goes without. */
	if (map == MAP_FAILED || agent->orders)
		return;
	agent->orders = map;
	if (pthread_create(&thread, NULL, carry_out, agent))
		give_up("no thread for an agent");
}

/* False: the end. */
static bool hear_word(int control)
{
	char space[CMSG_SPACE(2 * sizeof(int))];
	struct hmm_msg_region region;
	struct iovec bytes = { &region, sizeof(region) };
	struct msghdr message = { .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = space,
				  .msg_controllen = sizeof(space) };
	ssize_t n = recvmsg(control, &message, MSG_CMSG_CLOEXEC);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int fds[2];

	if (n <= 0)
		return false;
	if (n == 1) {
		act(*(unsigned char *)&region);
		return true;
	}
	if (!header)
		give_up("a word without its descriptors");
	if (n == sizeof(region)) {
		memcpy(fds, CMSG_DATA(header), sizeof(int));
		have_agent();
		hmmc_region_add(agent->regions, &region, fds[0]);
	} else {
		memcpy(fds, CMSG_DATA(header), sizeof(fds));
		start_agent(fds[0], fds[1]);
	}
	return true;
}

/* ---- its life ------------------------------------------------------------------------ */

static void be_stranger(int control, int plain)
{
	static const char *const proc[] = { "mem", "pagemap", "maps", "smaps" };
	int fds[STRANGER_FDS];
	char path[32];

	map_memory();
	for (unsigned int i = STRANGER_UFFD; i <= STRANGER_UFFD_3; i++)
		fds[i] = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	/* Its own files stay its own: changing the uid gives them to root. */
	if (plain && !setgid(PLAIN_ID) && !setuid(PLAIN_ID))
		prctl(PR_SET_DUMPABLE, 1);
	for (unsigned int i = 0; i < 4; i++) {
		snprintf(path, sizeof(path), "/proc/self/%s", proc[i]);
		fds[STRANGER_MEM + i] = open(path, (i ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	}
	fds[STRANGER_CONNECTION] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (connect(fds[STRANGER_CONNECTION], (struct sockaddr *)&address, sizeof(address)) < 0)
		give_up("connecting to hmmd");
	for (unsigned int i = 0; i < STRANGER_FDS; i++)
		if (fds[i] < 0)
			give_up("a stranger's descriptors");
	send_fds(control, getpid(), fds, STRANGER_FDS);
	agents_files[0] = fds[STRANGER_UFFD];
	agents_files[1] = fds[STRANGER_PAGEMAP];
	agents_files[2] = fds[STRANGER_MEM];
	/* Its connection must end with whoever fuzzes. */
	close(fds[STRANGER_CONNECTION]);
	while (hear_word(control))
		;
	_exit(0);
}

/* ---- who makes them ----------------------------------------------------------------- */

static void remove_folder(const char *folder)
{
	char path[sizeof(address.sun_path) + 8];

	unlink(address.sun_path);
	snprintf(path, sizeof(path), "%s.lock", address.sun_path);
	unlink(path);
	rmdir(folder);
}

static void make_strangers(int socket, const char *folder)
{
	unsigned char plain;
	pid_t self = getpid();

	signal(SIGCHLD, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	while (recv(socket, &plain, 1, 0) == 1) {
		int pair[2];
		pid_t child;

		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
			give_up("socketpair");
		child = fork();
		if (child < 0)
			give_up("fork");
		if (!child) {
			die_with_parent(self);
			close(pair[0]);
			be_stranger(pair[1], plain);
		}
		close(pair[1]);
		if (!send_with_fds(socket, &child, sizeof(child), pair, 1))
			break;
		close(pair[0]);
	}
	remove_folder(folder);
	_exit(0);
}

void strangers_begin(const char *folder)
{
	int pair[2];

	snprintf(address.sun_path, sizeof(address.sun_path), "%s/hmmd.sock", folder);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		give_up("socketpair");
	maker = fork();
	if (maker < 0)
		give_up("fork");
	if (!maker) {
		close(pair[0]);
		make_strangers(pair[1], folder);
	}
	close(pair[1]);
	wishes = pair[0];
}

void strangers_finish(void)
{
	close(wishes);
	waitpid(maker, NULL, 0);
}

void stranger_new(struct stranger *stranger, int plain)
{
	unsigned char wish = plain && getuid() == 0;

	if (send(wishes, &wish, 1, MSG_NOSIGNAL) != 1)
		give_up("no strangers any more");
	stranger->pid = receive_fds(wishes, &stranger->control, 1);
	/* It waits for the end of control, so the number is still its own. */
	stranger->pidfd = (int)syscall(SYS_pidfd_open, stranger->pid, 0);
	if (stranger->pidfd < 0)
		give_up("pidfd_open");
	receive_fds(stranger->control, stranger->fds, STRANGER_FDS);
}

void stranger_serve(struct stranger *stranger, int orders, int bell)
{
	const int fds[2] = { orders, bell };

	send_with_fds(stranger->control, "go", 2, fds, 2);
}

void stranger_tell(struct stranger *stranger, const void *region, int shadow)
{
	send_with_fds(stranger->control, region, sizeof(struct hmm_msg_region), &shadow, 1);
}

void stranger_end(struct stranger *stranger)
{
	if (!stranger->pid)
		return;
	for (unsigned int i = 0; i < STRANGER_FDS; i++)
		if (stranger->fds[i] >= 0)
			close(stranger->fds[i]);
	close(stranger->control);
	syscall(SYS_pidfd_send_signal, stranger->pidfd, SIGKILL, NULL, 0);
	close(stranger->pidfd);
	stranger->pid = 0;
}
