// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * memory_holder.c - the process that keeps cards' descriptors: it starts with
 * the first and ends with the last, outlives an hmmd that is killed, silences
 * the cards then, and gives the next hmmd, and nobody else, the very same
 * descriptors.
 *
 * This program is itself what becomes the holder. Memory files stand in for
 * VFIO's descriptors: the holder's calls on them note in each when they came.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kernel/kernel.h"
#include "memory/holder.h"
#include "tests/leakcheck.h"

/* Only what hangs meets it. */
#define PATIENCE_MS	60000

/* ---- the holder's kernel ----------------------------------------------------------------- */

/* What a stand-in's file begins with. */
struct mark {
	uint32_t calls;
	uint32_t when;		/* among all calls of that process, from 1 */
};

static int mark(int fd)
{
	static uint32_t clock;
	struct mark mark = { 0 };

	if (pread(fd, &mark, sizeof(mark), 0) < 0)
		return -errno;
	mark.calls++;
	mark.when = ++clock;
	return pwrite(fd, &mark, sizeof(mark), 0) == sizeof(mark) ? 0 : -errno;
}

static int mark_unmap_all(int container)
{
	return mark(container);
}

static int mark_master(int device, bool on)
{
	return on ? -EINVAL : mark(device);
}

/* Before main(), which is Criterion's. */
__attribute__((constructor)) static void become_holder(int argc, char **argv)
{
	struct kernel_ops marking = kernel_real;

	if (argc < 2 || strcmp(argv[1], HOLDER_ARGUMENT))
		return;
	marking.vfio_unmap_all = mark_unmap_all;
	marking.vfio_master = mark_master;
	kernel = &marking;
	exit(holder_main(argc, argv));
}

/* ---- stand-ins -------------------------------------------------------------------------- */

static char folder[64], hmmd_socket[80], path[96];

static void begin(void)
{
	/* A holder that finds these takes itself for one of Criterion's workers. */
	unsetenv("BXFI_MAP");
	strcpy(folder, "/tmp/hmm-holder.XXXXXX");
	cr_assert(ne(ptr, mkdtemp(folder), NULL));
	snprintf(hmmd_socket, sizeof(hmmd_socket), "%s/hmmd.sock", folder);
	snprintf(path, sizeof(path), "%s.holder", hmmd_socket);
	leakcheck_begin();
}

static void finish(void)
{
	leakcheck_end();
	cr_expect(eq(int, rmdir(folder), 0), "something is left in %s", folder);
}

TestSuite(holder, .init = begin, .fini = finish);

struct card {
	int fds[3];
};

static struct card make_card(void)
{
	struct card card = { {
		memfd_create("container", MFD_CLOEXEC),
		eventfd(7, EFD_CLOEXEC),
		memfd_create("device", MFD_CLOEXEC),
	} };

	for (unsigned int i = 0; i < 3; i++)
		cr_assert(ge(int, card.fds[i], 0));
	return card;
}

static void close_card(struct card *card)
{
	for (unsigned int i = 0; i < 3; i++)
		close(card->fds[i]);
}

static struct mark look(const struct card *card, enum holder_fd which)
{
	struct mark mark = { 0 };

	cr_assert(ge(long, pread(card->fds[which], &mark, sizeof(mark), 0), 0L));
	return mark;
}

static struct holder *new_holder(unsigned int grace_ms)
{
	struct holder_options options = { .socket = hmmd_socket, .grace_ms = grace_ms };
	struct holder *holder = NULL;

	cr_assert(eq(int, holder_new(&options, &holder), 0));
	return holder;
}

static void keep(struct holder *holder, const char *name, const struct card *card)
{
	cr_assert(eq(int, holder_keep(holder, name, card->fds, 3), 0), "%s", name);
}

static int open_process(pid_t pid)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

	cr_assert(ge(int, pidfd, 0), "process %d: %m", pid);
	return pidfd;
}

static bool has_ended(int pidfd, int timeout_ms)
{
	struct pollfd wait = { .fd = pidfd, .events = POLLIN };

	return poll(&wait, 1, timeout_ms) == 1;
}

/* It ends; @pidfd is closed. */
static void expect_end(int pidfd)
{
	cr_assert(has_ended(pidfd, PATIENCE_MS), "the holder goes on");
	close(pidfd);
	cr_expect(ne(int, access(path, F_OK), 0), "its socket is left");
}

/* An hmmd that keeps these cards and waits for its end. Its holder is *pidfd. */
static pid_t start_hmmd(const struct card *cards, unsigned int n, unsigned int grace_ms, int *pidfd)
{
	pid_t pid, holder_process = 0;
	int pipe_ends[2];

	cr_assert(eq(int, pipe2(pipe_ends, O_CLOEXEC), 0));
	pid = fork();
	if (!pid) {
		struct holder *holder = new_holder(grace_ms);

		for (unsigned int i = 0; i < n; i++) {
			char name[HOLDER_NAME];

			snprintf(name, sizeof(name), "0000:00:%02x.0", i);
			keep(holder, name, &cards[i]);
		}
		holder_process = holder_pid(holder);
		if (write(pipe_ends[1], &holder_process, sizeof(holder_process)) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	close(pipe_ends[1]);
	cr_assert(eq(sz, (size_t)read(pipe_ends[0], &holder_process, sizeof(holder_process)),
		     sizeof(holder_process)), "the hmmd of this test did not get there");
	close(pipe_ends[0]);
	*pidfd = open_process(holder_process);
	return pid;
}

static void kill_hmmd(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void wait_for_calls(const struct card *card, enum holder_fd which, uint32_t calls)
{
	for (int tries = 0; look(card, which).calls < calls; tries++) {
		cr_assert(lt(int, tries, PATIENCE_MS), "the card was not silenced");
		usleep(1000);
	}
	cr_assert(eq(u32, look(card, which).calls, calls));
}

static bool same_file(int a, int b)
{
	/* KCMP_FILE: the same open file, not one of the same name. */
	long r = syscall(SYS_kcmp, getpid(), getpid(), 0, a, b);
	struct stat x, y;

	if (r >= 0)
		return r == 0;
	cr_assert(eq(int, fstat(a, &x), 0));
	cr_assert(eq(int, fstat(b, &y), 0));
	return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* ---- its life --------------------------------------------------------------------------- */

Test(holder, lives_with_the_cards)
{
	struct holder *holder = new_holder(0);
	struct card a = make_card(), b = make_card();
	int process;

	cr_expect(eq(int, holder_pid(holder), 0), "nothing is started for nothing");
	cr_expect(eq(int, holder_poll_fd(holder), -1));
	keep(holder, "a", &a);
	process = open_process(holder_pid(holder));
	keep(holder, "b", &b);
	cr_expect(eq(str, (char *)holder_name(holder, 0), "a"));
	cr_expect(eq(str, (char *)holder_name(holder, 1), "b"));
	cr_expect(eq(ptr, (void *)holder_name(holder, 2), NULL));
	cr_assert(eq(int, holder_drop(holder, "a"), 0));
	cr_expect(eq(int, holder_drop(holder, "a"), -ENOENT));
	cr_expect(not(has_ended(process, 0)));
	cr_assert(eq(int, holder_drop(holder, "b"), 0));
	cr_expect(eq(int, holder_pid(holder), 0));
	expect_end(process);

	/* ... and again. */
	keep(holder, "a", &a);
	process = open_process(holder_pid(holder));
	cr_assert(eq(int, holder_drop(holder, "a"), 0));
	expect_end(process);
	cr_expect(eq(u32, look(&a, HOLDER_CONTAINER).calls, 0),
		  "a card that is given up is its user's");
	holder_free(holder);
	close_card(&a);
	close_card(&b);
}

Test(holder, an_orderly_end)
{
	struct holder *holder = new_holder(0);
	struct card card = make_card();
	int process;

	keep(holder, "a", &card);
	process = open_process(holder_pid(holder));
	cr_expect(eq(ptr, holder_free(holder), NULL));
	expect_end(process);
	cr_expect(eq(u32, look(&card, HOLDER_CONTAINER).calls, 1));
	cr_expect(eq(ptr, holder_free(NULL), NULL));
	close_card(&card);
}

Test(holder, has_nothing_else)
{
	int stray = open("/dev/zero", O_RDONLY), n = 0, process;	/* not CLOEXEC */
	struct card card = make_card();
	struct holder *holder = new_holder(0);
	struct dirent *entry;
	char name[64], target[128];
	DIR *open_files;
	ssize_t length;

	keep(holder, "a", &card);
	snprintf(name, sizeof(name), "/proc/%d/fd", holder_pid(holder));
	open_files = opendir(name);
	cr_assert(ne(ptr, (void *)open_files, NULL));
	while ((entry = readdir(open_files))) {
		length = readlinkat(dirfd(open_files), entry->d_name, target, sizeof(target) - 1);
		if (length < 0)
			continue;
		target[length] = '\0';
		cr_expect(ne(str, target, "/dev/zero"));
		n++;
	}
	closedir(open_files);
	/* Its output, two sockets, its signals, the card. */
	cr_expect(eq(int, n, 3 + 2 + 1 + 3));
	cr_expect(ne(int, getsid(holder_pid(holder)), getsid(0)));
	process = open_process(holder_pid(holder));
	holder_free(holder);
	expect_end(process);
	close_card(&card);
	close(stray);
}

Test(holder, while_hmmd_lives_it_obeys_no_signal)
{
	static const int signals[] = { SIGTERM, SIGINT, SIGHUP, SIGUSR1 };
	struct holder *holder = new_holder(0);
	struct card card = make_card(), other = make_card();
	int process;

	keep(holder, "a", &card);
	process = open_process(holder_pid(holder));
	for (unsigned int i = 0; i < 4; i++)
		cr_assert(eq(int, kill(holder_pid(holder), signals[i]), 0));
	/* The answer to this comes after them. */
	keep(holder, "b", &other);
	cr_expect(not(has_ended(process, 100)));
	cr_expect(eq(u32, look(&card, HOLDER_CONTAINER).calls, 0));
	holder_free(holder);
	expect_end(process);
	close_card(&card);
	close_card(&other);
}

Test(holder, without_hmmd_a_signal_ends_it)
{
	struct card card = make_card();
	int process;
	pid_t hmmd = start_hmmd(&card, 1, 0, &process);

	kill_hmmd(hmmd);
	wait_for_calls(&card, HOLDER_CONTAINER, 1);
	cr_expect(not(has_ended(process, 0)));
	cr_assert(eq(int, (int)syscall(SYS_pidfd_send_signal, process, SIGTERM, NULL, 0), 0));
	expect_end(process);
	close_card(&card);
}

Test(holder, ends_after_the_grace_time)
{
	struct card card = make_card();
	struct holder *holder;
	int process;
	pid_t hmmd = start_hmmd(&card, 1, 200, &process);

	kill_hmmd(hmmd);
	expect_end(process);
	cr_expect(eq(u32, look(&card, HOLDER_CONTAINER).calls, 1));
	holder = new_holder(0);
	cr_expect(eq(ptr, (void *)holder_name(holder, 0), NULL));
	holder_free(holder);
	close_card(&card);
}

/* ---- from one hmmd to the next -------------------------------------------------------------- */

Test(holder, the_next_hmmd_has_the_same)
{
	struct card cards[3] = { make_card(), make_card(), make_card() };
	struct holder *holder;
	char name[HOLDER_NAME];
	int process, fds[HOLDER_FDS];
	pid_t hmmd = start_hmmd(cards, 3, 0, &process);

	cr_expect(eq(u32, look(&cards[0], HOLDER_CONTAINER).calls, 0),
		  "a card at work is left alone");
	kill_hmmd(hmmd);
	/* No wait: whoever is let in finds it done. */
	holder = new_holder(0);
	for (unsigned int i = 0; i < 3; i++) {
		cr_expect(eq(u32, look(&cards[i], HOLDER_CONTAINER).calls, 1));
		cr_expect(eq(u32, look(&cards[i], HOLDER_DEVICE).calls, 1));
		/* Transfers end everywhere before pages are let go of anywhere. */
		cr_expect(eq(u32, look(&cards[i], HOLDER_DEVICE).when, i + 1));
		cr_expect(eq(u32, look(&cards[i], HOLDER_CONTAINER).when, i + 4));

		snprintf(name, sizeof(name), "0000:00:%02x.0", i);
		cr_expect(eq(str, (char *)holder_name(holder, i), name));
		cr_assert(eq(int, holder_take(holder, name, fds, HOLDER_FDS), 3));
		for (unsigned int k = 0; k < 3; k++) {
			cr_expect(same_file(fds[k], cards[i].fds[k]), "card %u, descriptor %u", i,
				  k);
			cr_expect(ne(int, fcntl(fds[k], F_GETFD) & FD_CLOEXEC, 0));
			close(fds[k]);
		}
		cr_expect(eq(int, holder_take(holder, name, fds, 2), -ENOSPC));
	}
	cr_expect(eq(int, holder_take(holder, "0000:00:03.0", fds, HOLDER_FDS), -ENOENT));
	cr_expect(not(has_ended(process, 0)));

	/* It goes on with that hmmd: another card, and one less. */
	cr_expect(eq(int, holder_keep(holder, "0000:00:01.0", cards[0].fds, 3), -EEXIST));
	cr_assert(eq(int, holder_drop(holder, "0000:00:01.0"), 0));
	keep(holder, "0000:00:01.0", &cards[1]);
	cr_expect(eq(str, (char *)holder_name(holder, 2), "0000:00:01.0"));
	holder_free(holder);
	expect_end(process);
	for (unsigned int i = 0; i < 3; i++)
		close_card(&cards[i]);
}

Test(holder, several_hmmds_die)
{
	struct card card = make_card();
	struct holder *holder;
	int first, again, fds[3];
	pid_t hmmd = start_hmmd(&card, 1, 0, &first);

	for (uint32_t deaths = 1; deaths < 4; deaths++) {
		kill_hmmd(hmmd);
		hmmd = start_hmmd(NULL, 0, 0, &again);
		cr_expect(not(has_ended(first, 0)));
		close(again);
		cr_expect(eq(u32, look(&card, HOLDER_CONTAINER).calls, deaths));
	}
	kill_hmmd(hmmd);
	holder = new_holder(0);
	cr_assert(eq(int, holder_take(holder, "0000:00:00.0", fds, 3), 3));
	for (unsigned int i = 0; i < 3; i++) {
		cr_expect(same_file(fds[i], card.fds[i]));
		close(fds[i]);
	}
	holder_free(holder);
	expect_end(first);
	close_card(&card);
}

Test(holder, a_start_that_fails_leaves_it_waiting)
{
	struct card card = make_card();
	struct holder *holder = new_holder(0);
	int process;

	keep(holder, "a", &card);
	process = open_process(holder_pid(holder));
	cr_expect(eq(ptr, holder_leave(holder), NULL));
	wait_for_calls(&card, HOLDER_CONTAINER, 1);
	holder = new_holder(0);
	cr_expect(eq(str, (char *)holder_name(holder, 0), "a"));
	holder_free(holder);
	expect_end(process);
	close_card(&card);
}

Test(holder, gaps_and_more_descriptors)
{
	struct card card = make_card();
	int fds[HOLDER_FDS] = { card.fds[0], -1, -1, card.fds[1], -1, card.fds[2], -1,
				card.fds[0] };
	struct holder *holder = new_holder(0);
	int process, taken[HOLDER_FDS];

	cr_assert(eq(int, holder_keep(holder, "a", fds, HOLDER_FDS), 0));
	process = open_process(holder_pid(holder));
	holder_leave(holder);
	holder = new_holder(0);
	cr_assert(eq(int, holder_take(holder, "a", taken, HOLDER_FDS), (int)HOLDER_FDS));
	for (unsigned int i = 0; i < HOLDER_FDS; i++) {
		if (fds[i] < 0) {
			cr_expect(eq(int, taken[i], -1));
			continue;
		}
		cr_expect(same_file(taken[i], fds[i]));
		close(taken[i]);
	}
	cr_expect(eq(u32, look(&card, HOLDER_CONTAINER).calls, 1));
	cr_expect(eq(u32, look(&card, HOLDER_DEVICE).calls, 0), "it was not given as the device");
	holder_free(holder);
	expect_end(process);
	close_card(&card);
}

/* ---- who may not ------------------------------------------------------------------------------ */

Test(holder, a_second_hmmd_is_refused)
{
	struct holder_options options = { .socket = hmmd_socket };
	struct card card = make_card();
	struct holder *holder = NULL;
	int process, again;
	pid_t hmmd = start_hmmd(&card, 1, 0, &process);

	cr_expect(eq(int, holder_new(&options, &holder), -EADDRINUSE));
	cr_expect(eq(u32, look(&card, HOLDER_CONTAINER).calls, 0),
		  "the first has its cards undisturbed");
	kill_hmmd(hmmd);
	hmmd = start_hmmd(NULL, 0, 0, &again);
	close(again);
	cr_expect(eq(int, holder_new(&options, &holder), -EADDRINUSE), "nor beside the next");
	cr_expect(eq(u32, look(&card, HOLDER_CONTAINER).calls, 1));
	kill_hmmd(hmmd);
	holder_free(new_holder(0));
	expect_end(process);
	close_card(&card);
}

Test(holder, another_user_is_refused)
{
	struct card card = make_card();
	int process, status;
	pid_t hmmd, stranger;

	if (geteuid())
		cr_skip_test("needs root, to become another user");
	hmmd = start_hmmd(&card, 1, 0, &process);
	kill_hmmd(hmmd);
	wait_for_calls(&card, HOLDER_CONTAINER, 1);
	/* Not by the mode of its socket alone. */
	cr_assert(eq(int, chmod(folder, 0755), 0));
	cr_assert(eq(int, chmod(path, 0666), 0));
	stranger = fork();
	if (!stranger) {
		struct holder_options options = { .socket = hmmd_socket };
		struct holder *holder = NULL;

		if (setresuid(65534, 65534, 65534))
			_exit(1);
		_exit(holder_new(&options, &holder) == -EADDRINUSE ? 0 : 2);
	}
	cr_assert(eq(int, waitpid(stranger, &status, 0), stranger));
	cr_expect(eq(int, status, 0));
	cr_expect(not(has_ended(process, 0)));
	holder_free(new_holder(0));
	expect_end(process);
	close_card(&card);
}

/* At the holder's path: it says this to whoever comes, or closes. */
static pid_t start_other(const void *says, size_t size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), came;
	pid_t pid;

	strcpy(address.sun_path, path);
	cr_assert(eq(int, bind(fd, (struct sockaddr *)&address, sizeof(address)), 0));
	cr_assert(eq(int, listen(fd, 1), 0));
	pid = fork();
	while (!pid) {
		came = accept(fd, NULL, NULL);
		if (came < 0 || (size && send(came, says, size, MSG_NOSIGNAL) < 0))
			_exit(1);
		close(came);
	}
	close(fd);
	return pid;
}

/* Somebody is there who is of another release, or who ends at that moment: only he is nobody. */
Test(holder, what_is_there_is_not_passed_over)
{
	struct holder_options options = { .socket = hmmd_socket };
	struct holder *holder = NULL;
	pid_t other = start_other("another release", 15);

	cr_expect(eq(int, holder_new(&options, &holder), -EADDRINUSE));
	kill_hmmd(other);
	unlink(path);
	other = start_other(NULL, 0);
	holder_free(new_holder(0));
	kill_hmmd(other);
	unlink(path);
}

Test(holder, a_directory_that_cannot_be_entered)
{
	pid_t pid;
	int status;

	if (geteuid())
		cr_skip_test("needs root, to become another user");
	pid = fork();
	if (!pid) {
		struct holder_options options = { .socket = hmmd_socket };
		struct holder *holder = NULL;

		if (setresuid(65534, 65534, 65534))
			_exit(1);
		_exit(holder_new(&options, &holder) == -EACCES ? 0 : 2);
	}
	cr_assert(eq(int, waitpid(pid, &status, 0), pid));
	cr_expect(eq(int, status, 0));
}

Test(holder, a_stranger_is_not_believed)
{
	struct holder_options options = { .socket = hmmd_socket };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct holder *holder = NULL;
	pid_t stranger;
	int ready[2], status;

	if (geteuid())
		cr_skip_test("needs root, to become another user");
	cr_assert(eq(int, chmod(folder, 0777), 0));
	cr_assert(eq(int, pipe2(ready, O_CLOEXEC), 0));
	strcpy(address.sun_path, path);
	stranger = fork();
	if (!stranger) {
		int fd;

		if (setresuid(65534, 65534, 65534))
			_exit(1);
		fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
		if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 1))
			_exit(1);
		close(ready[0]);
		close(ready[1]);
		for (;;)
			pause();
	}
	close(ready[1]);
	cr_assert(eq(long, read(ready[0], &status, 1), 0L));
	close(ready[0]);
	cr_expect(eq(int, holder_new(&options, &holder), -EADDRINUSE));
	kill_hmmd(stranger);
	unlink(path);
}

/* ---- what goes wrong ---------------------------------------------------------------------------- */

Test(holder, one_that_is_killed_is_replaced)
{
	struct card a = make_card(), b = make_card();
	struct holder *holder = new_holder(0);
	struct pollfd wait;
	pid_t first;
	int process;

	keep(holder, "a", &a);
	first = holder_pid(holder);
	process = open_process(first);
	kill(first, SIGKILL);
	cr_assert(has_ended(process, PATIENCE_MS));
	close(process);
	wait = (struct pollfd){ .fd = holder_poll_fd(holder), .events = POLLIN };
	cr_expect(eq(int, poll(&wait, 1, PATIENCE_MS), 1), "hmmd hears of it");
	cr_assert(eq(int, holder_mend(holder), 0));
	cr_expect(ne(int, holder_pid(holder), first));

	/* Not heard of: the next card starts another as well, which has both. */
	first = holder_pid(holder);
	process = open_process(first);
	kill(first, SIGKILL);
	cr_assert(has_ended(process, PATIENCE_MS));
	close(process);
	keep(holder, "b", &b);
	cr_expect(ne(int, holder_pid(holder), first));
	process = open_process(holder_pid(holder));
	cr_expect(eq(u32, look(&a, HOLDER_CONTAINER).calls, 0),
		  "hmmd lives, and so do its mappings");
	holder_leave(holder);
	holder = new_holder(0);
	cr_expect(eq(str, (char *)holder_name(holder, 0), "a"));
	cr_expect(eq(str, (char *)holder_name(holder, 1), "b"));
	holder_free(holder);
	expect_end(process);
	close_card(&a);
	close_card(&b);
}

Test(holder, bad_input)
{
	struct holder *holder = new_holder(0);
	struct card card = make_card();
	int none[3] = { -1, card.fds[1], card.fds[2] }, many[HOLDER_FDS + 1] = { card.fds[0] };
	int closed[2] = { card.fds[0], 900 };
	int process;

	cr_expect(eq(int, holder_keep(holder, "", card.fds, 3), -EINVAL));
	cr_expect(eq(int, holder_keep(holder, "0000:00:00.0-0000:00:00.0-0000:00", card.fds, 3),
		     -EINVAL));
	cr_expect(eq(int, holder_keep(holder, "a", card.fds, 0), -EINVAL));
	cr_expect(eq(int, holder_keep(holder, "a", many, HOLDER_FDS + 1), -EINVAL));
	cr_expect(eq(int, holder_keep(holder, "a", none, 3), -EINVAL), "no container");
	cr_expect(eq(int, holder_keep(holder, "a", closed, 2), -EBADF));
	cr_expect(eq(int, holder_drop(holder, "a"), -ENOENT));
	cr_expect(eq(int, holder_take(holder, "a", none, 3), -ENOENT));
	cr_expect(eq(int, holder_pid(holder), 0), "nothing of it started a process");
	cr_expect(eq(ptr, (void *)holder_name(holder, 0), NULL));
	for (unsigned int i = 0; i < HOLDER_CARDS; i++) {
		char name[HOLDER_NAME];

		snprintf(name, sizeof(name), "card-%u", i);
		keep(holder, name, &card);
	}
	cr_expect(eq(int, holder_keep(holder, "one more", card.fds, 3), -ENOSPC));
	process = open_process(holder_pid(holder));
	holder_free(holder);
	expect_end(process);
	close_card(&card);
}

Test(holder, no_descriptor_is_left)
{
	struct holder *holder = new_holder(0);
	struct card card = make_card();
	struct rlimit before, limit;
	int r = -EMFILE, process;

	cr_assert(eq(int, getrlimit(RLIMIT_NOFILE, &before), 0));
	/* From too few for anything to just enough: what failed has left nothing. */
	for (rlim_t n = (rlim_t)card.fds[2] + 1; r; n++) {
		limit = (struct rlimit){ n, before.rlim_max };
		cr_assert(eq(int, setrlimit(RLIMIT_NOFILE, &limit), 0));
		r = holder_keep(holder, "a", card.fds, 3);
		cr_assert(r == 0 || r == -EMFILE, "with %lu: %s", n, strerror(-r));
		if (r)
			cr_expect(eq(ptr, (void *)holder_name(holder, 0), NULL));
	}
	setrlimit(RLIMIT_NOFILE, &before);
	process = open_process(holder_pid(holder));
	holder_free(holder);
	expect_end(process);
	close_card(&card);
}

Test(holder, a_dead_socket_is_replaced_and_a_file_is_not)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), process;
	struct card card = make_card();
	struct holder *holder;

	strcpy(address.sun_path, path);
	cr_assert(eq(int, bind(fd, (struct sockaddr *)&address, sizeof(address)), 0));
	close(fd);
	holder = new_holder(0);
	keep(holder, "a", &card);
	process = open_process(holder_pid(holder));
	cr_assert(eq(int, holder_drop(holder, "a"), 0));
	expect_end(process);

	fd = open(path, O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	close(fd);
	cr_expect(eq(int, holder_keep(holder, "a", card.fds, 3), -EADDRINUSE));
	cr_expect(eq(int, unlink(path), 0), "what is not ours stays");
	holder_free(holder);
	close_card(&card);
}

Test(holder, what_does_not_start)
{
	struct holder_options options = { .socket = hmmd_socket, .program = "/nonexistent" };
	struct card card = make_card();
	struct holder *holder = NULL;
	char long_path[200];

	cr_assert(eq(int, holder_new(&options, &holder), 0));
	cr_expect(eq(int, holder_keep(holder, "a", card.fds, 3), -ENOENT));
	holder_free(holder);
	/* A program that is something else ends, and says nothing. */
	options.program = "/bin/true";
	cr_assert(eq(int, holder_new(&options, &holder), 0));
	cr_expect(eq(int, holder_keep(holder, "a", card.fds, 3), -ECONNRESET));
	cr_expect(eq(ptr, (void *)holder_name(holder, 0), NULL));
	holder_free(holder);
	memset(long_path, 'x', sizeof(long_path));
	long_path[0] = '/';
	long_path[102] = '\0';
	options.socket = long_path;
	cr_expect(eq(int, holder_new(&options, &holder), -ENAMETOOLONG));
	close_card(&card);
}
