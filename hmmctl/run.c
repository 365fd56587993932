// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * run.c - `hmmctl run -- PROGRAM`: an unmodified program with its anonymous
 * memory mirrored.
 *
 * hmmctl makes a device, starts the program with libhmmpreload.so loaded before
 * it, and waits; with --churn it keeps the program's blocks moving meanwhile.
 * The program's output, exit status and signals are the program's own, so that
 * a comparison with a run without hmmd means something. Nothing of hmmctl's is
 * on stdout; on stderr only errors, and a summary with --verbose. Main thread.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "churn.h"
#include "hmmctl.h"
#include "private.h"

/* As shells have it. */
#define STATUS_CANNOT_EXECUTE	126
#define STATUS_NOT_FOUND	127
#define STATUS_SIGNAL		128

static volatile sig_atomic_t program;

static void pass_on(int signal)
{
	if (program > 0)
		kill(program, signal);
}

/* An interrupt at the terminal reaches the program by itself; hmmctl stays to see how it ends. */
static void arrange_signals(void)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN };
	struct sigaction forward = { .sa_handler = pass_on, .sa_flags = SA_RESTART };

	sigaction(SIGINT, &ignore, NULL);
	sigaction(SIGQUIT, &ignore, NULL);
	sigaction(SIGTERM, &forward, NULL);
	sigaction(SIGHUP, &forward, NULL);
}

static const char *find_preload(void)
{
	if (*HMM_PRELOAD_BUILD && !access(HMM_PRELOAD_BUILD, R_OK))
		return HMM_PRELOAD_BUILD;
	if (!access(HMM_PRELOAD_INSTALL, R_OK))
		return HMM_PRELOAD_INSTALL;
	fprintf(stderr, "hmmctl: %s is missing: install the library's package again\n",
		HMM_PRELOAD_INSTALL);
	return NULL;
}

static int make_device(struct context *context, const char *name)
{
	struct hmm_msg_device_new request;

	HMM_MSG_INIT(request, HMM_OP_DEVICE_NEW, 0);
	request.pool = HMM_POOL_KIND_CONFIGURED;
	request.node = -1;
	request.size = context->device_memory;
	request.caps = HMM_DEVICE_CAPS_FAULTS;
	HMM_MSG_TEXT(request.name, name);
	if (link_request(&context->link, &request))
		return STATUS_OK;
	report_link_error(&context->link);
	fputs("  a smaller one: --device-memory SIZE\n", stderr);
	return STATUS_FAILED;
}

static void set_environment(const struct context *context, const char *preload, const char *device)
{
	const char *others = getenv("LD_PRELOAD");
	char *all = NULL;

	if (others && *others && asprintf(&all, "%s:%s", preload, others) > 0)
		preload = all;
	setenv("LD_PRELOAD", preload, 1);
	setenv("HMM_PRELOAD_DEVICE", device, 1);
	setenv("HMM_SOCKET", context->link.path, 1);
	free(all);
}

static void become_program(struct context *context, const char *preload, const char *device)
{
	static const int arranged[] = { SIGINT, SIGQUIT, SIGTERM, SIGHUP };
	int error;

	for (size_t i = 0; i < sizeof(arranged) / sizeof(arranged[0]); i++)
		signal(arranged[i], SIG_DFL);
	set_environment(context, preload, device);
	execvp(context->program[0], context->program);
	error = errno;
	fprintf(stderr, "hmmctl: %s: %s\n", context->program[0], strerror(error));
	_exit(error == ENOENT ? STATUS_NOT_FOUND : STATUS_CANNOT_EXECUTE);
}

static void wait_with_churn(struct context *context, struct churn *churn, int *status)
{
	struct timespec pause = {
		.tv_sec = context->interval_ms / 1000,
		.tv_nsec = context->interval_ms % 1000 * 1000000L,
	};

	while (waitpid(program, status, WNOHANG) == 0) {
		churn_step(churn);
		nanosleep(&pause, NULL);
	}
}

static void summarise(const struct context *context, const struct churn *churn)
{
	fprintf(stderr, "hmmctl: seed %" PRIu64 ": %" PRIu64 " moves: %" PRIu64
		" pages went to the device, %" PRIu64 " were fetched home\n",
		context->seed, churn->moves, churn->out.moved, churn->home.moved);
}

static int run_program(struct context *context, const char *preload)
{
	struct churn churn;
	char device[32];
	int status = 0;

	snprintf(device, sizeof(device), "run-%d", getpid());
	if (make_device(context, device))
		return STATUS_FAILED;
	arrange_signals();
	fflush(NULL);
	program = fork();
	if (program < 0) {
		perror("hmmctl: cannot start a process");
		return STATUS_FAILED;
	}
	if (program == 0)
		become_program(context, preload, device);

	churn_init(&churn, &context->link, device, context->seed);
	if (context->churn)
		wait_with_churn(context, &churn, &status);
	else
		waitpid(program, &status, 0);
	if (context->verbose)
		summarise(context, &churn);
	churn_deinit(&churn);
	return WIFEXITED(status) ? WEXITSTATUS(status) : STATUS_SIGNAL + WTERMSIG(status);
}

int command_run(struct context *context)
{
	const char *preload = find_preload();
	struct private_daemon daemon = { 0 };
	int ret;

	if (!preload)
		return STATUS_FAILED;
	if (context->private_daemon) {
		if (private_start(&daemon, context->device_memory))
			return STATUS_FAILED;
		setenv("HMM_SOCKET", daemon.socket, 1);
	}
	if (link_open(&context->link, NULL))
		ret = report_link_error(&context->link);
	else
		ret = run_program(context, preload);
	link_close(&context->link);
	if (context->private_daemon && private_stop(&daemon) && !ret)
		ret = STATUS_FAILED;
	return ret;
}
