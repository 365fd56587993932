// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * main.c - hmmd in one picture: real texts, real pointers, two processes.
 *
 * The owner (this process) builds an index of this machine's documentation in
 * malloc() memory. The driver, another process, walks it by the owner's raw
 * pointers and writes results into it, while the owner goes on changing it and
 * hmmd moves its blocks to device memory and home. A third process does the
 * same work without hmmd. All three must agree to the byte, and every block
 * must have been on the device: then the exit status is 0.
 */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "roles.h"

#define MIB (1UL << 20)

static const char usage[] =
	"Usage: demo [--size MIB] [--seed N] [--socket PATH] [--no-window]\n"
	"\n"
	"  --size MIB     how large the index becomes (256)\n"
	"  --seed N       what the random choices follow; printed by every run\n"
	"  --socket PATH  where hmmd listens ($HMM_SOCKET, /run/hmmd/hmmd.sock, ...)\n"
	"  --no-window    the driver reads and writes through hmmd, not through pointers\n"
	"\n"
	"It needs a running hmmd: see `hmmctl status`.\n";

static unsigned long number(const char *text, unsigned long low, unsigned long high)
{
	char *end;
	unsigned long value = strtoul(text, &end, 0);

	if (*text < '0' || *text > '9' || *end || value < low || value > high) {
		fprintf(stderr, "demo: %s: a number from %lu to %lu is wanted\n", text, low, high);
		exit(2);
	}
	return value;
}

static void parse_options(int argc, char **argv, struct options *options)
{
	static const struct option names[] = {
		{ "size", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'r' },
		{ "socket", required_argument, NULL, 'S' },
		{ "no-window", no_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	options->size = 256 * MIB;
	options->seed = (uint64_t)time(NULL);
	options->score_every = 1;
	while ((option = getopt_long(argc, argv, "h", names, NULL)) != -1) {
		switch (option) {
		case 's':
			options->size = number(optarg, 4, 16384) * MIB;
			break;
		case 'r':
			options->seed = number(optarg, 0, ~0UL);
			break;
		case 'S':
			if (strlen(optarg) >= sizeof(options->socket)) {
				fprintf(stderr, "demo: %s: too long for a socket\n", optarg);
				exit(2);
			}
			strcpy(options->socket, optarg);
			break;
		case 'n':
			/* A message for every score would take all day: write some. */
			options->no_window = true;
			options->score_every = 256;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	if (optind != argc) {
		fputs(usage, stderr);
		exit(2);
	}
}

/* A child that dies with this process. Return: 0 in the child. */
static pid_t child(int *socket)
{
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -1;
	pid = fork();
	*socket = pair[pid == 0];
	close(pair[pid != 0]);
	if (pid == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

/* Executed, not only forked: its own mappings must lie elsewhere than the owner's. */
static void become_driver(int socket, int memfd)
{
	char socket_text[16], memfd_text[16];
	char *argv[] = { "demo", "--driver", socket_text, memfd_text, NULL };

	socket = dup(socket);	/* the copy survives execution */
	snprintf(socket_text, sizeof(socket_text), "%d", socket);
	snprintf(memfd_text, sizeof(memfd_text), "%d", memfd);
	execv("/proc/self/exe", argv);
	perror("demo: cannot execute the driver");
	_exit(EXIT_FAILURE);
}

static bool ended_well(pid_t pid, const char *who)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		return false;
	if (WIFSIGNALED(status))
		fprintf(stderr, "demo: %s died: %s\n", who, strsignal(WTERMSIG(status)));
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int judge(struct board *board)
{
	const struct figures *figures = &board->figures;

	printf("moved: %lu pages to the device and %lu home in %lu migrations, besides what faults"
	       " brought; every one of %u blocks both ways\n", figures->out_pages,
	       figures->home_pages, figures->moves, board->blocks.count);
	if (!figures->out_pages || !figures->home_pages) {
		fprintf(stderr, "demo: nothing was migrated: `hmmctl doctor` may know why\n");
		return EXIT_FAILURE;
	}
	if (!board_agree(board, OWNER, THIRD) || !board_agree(board, DRIVER, THIRD) ||
	    !board_agree(board, OWNER, DRIVER))
		return EXIT_FAILURE;
	printf("owner, driver and a count without hmmd agree on all %zu words\n",
	       board->words[THIRD]);
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	struct options options = { 0 };
	struct board *board;
	int memfd, to_driver, to_third, ret;
	struct corpus corpus;
	pid_t driver, third;

	if (argc == 4 && !strcmp(argv[1], "--driver")) {
		board = board_open(atoi(argv[3]));
		return board ? driver_run(board, atoi(argv[2]), argv) : EXIT_FAILURE;
	}

	parse_options(argc, argv, &options);
	ret = corpus_read(&corpus, options.size / 4);
	if (ret) {
		fprintf(stderr, "demo: no texts to index: %s\n", strerror(-ret));
		return EXIT_FAILURE;
	}
	board = board_new(&options, &memfd);
	if (!board) {
		perror("demo: no memory to share");
		return EXIT_FAILURE;
	}
	printf("demo: %zu texts of this machine, %zu MiB; seed %lu\n", corpus.count,
	       corpus.bytes >> 20, options.seed);
	fflush(stdout);

	driver = child(&to_driver);
	if (driver == 0)
		become_driver(to_driver, memfd);
	third = child(&to_third);
	if (third == 0) {
		close(to_driver);
		ret = third_run(board, &corpus, to_third);
		corpus_free(&corpus);
		return ret;
	}
	ret = EXIT_FAILURE;
	if (driver > 0 && third > 0)
		ret = owner_run(board, &corpus, to_driver, to_third);

	corpus_free(&corpus);
	/* Closed, they tell whoever still waits that there is nothing to wait for. */
	close(to_driver);
	close(to_third);
	if (!ended_well(driver, "the driver"))
		ret = EXIT_FAILURE;
	if (!ended_well(third, "the count without hmmd"))
		ret = EXIT_FAILURE;
	return ret ? ret : judge(board);
}
