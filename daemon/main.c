// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * main.c - hmmd's command line, and the process it runs in.
 *
 * Happy path: options and configuration are read, limits raised, the log and
 * the server started; the server runs until a signal ends it and every page is
 * home, or left to the next hmmd. Exit status: 0 ended in good order, 1 could not start, 2 bad usage or
 * configuration.
 *
 * Thread: the main thread, which becomes the control thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/config.h"
#include "daemon/control/passed.h"
#include "daemon/control/server.h"
#include "daemon/log.h"
#include "daemon/memory/holder.h"
#include "frame.h"

#define SOCKET_DEFAULT "/run/hmmd/hmmd.sock"
#define NOFILE_WANTED (1 << 20)

enum {
	EXIT_USAGE = 2,
};

/* Options that are settings, in struct option's words. Value NULL: the option takes one. */
static const struct {
	const char *option, *section, *key, *value;
} settings[] = {
	{ "--socket", "daemon", "socket", NULL },
	{ "--user", "daemon", "user", "yes" },
	{ "--log", "daemon", "log", NULL },
	{ "--workers", "engine", "workers", NULL },
	{ "--no-io-uring", "engine", "io_uring", "no" },
	{ "--no-move", "engine", "move", "no" },
	{ "--spin", "engine", "spin", NULL },
	{ "--grace", "engine", "grace", NULL },
	{ "--ack-timeout", "engine", "ack_timeout", NULL },
	{ "--tracking", "engine", "tracking", NULL },
	{ "--pool", "pool", "kind", NULL },
	{ "--pool-size", "pool", "size", NULL },
	{ "--pool-node", "pool", "node", NULL },
	{ "--pool-placement", "pool", "placement", NULL },
	{ "--pool-card", "pool", "card", NULL },
	{ "--pool-bar", "pool", "bar", NULL },
	{ "--pool-reserve", "pool", "reserve", "yes" },
	{ "--evict-high", "pool", "evict_high", NULL },
	{ "--evict-low", "pool", "evict_low", NULL },
};
#define N_SETTINGS (sizeof(settings) / sizeof(settings[0]))

enum {
	OPTION_CONFIG = N_SETTINGS,
	OPTION_NO_CONFIG,
	OPTION_CHECK_CONFIG,
	OPTION_READY_FD,
	OPTION_HELP,
	OPTION_VERSION,
	N_OPTIONS
};

struct command {
	struct config_override overrides[64];
	struct config_source source;
	bool check;
	int ready_fd;
};

static const char help[] =
	"Usage: hmmd [OPTION...]\n"
	"Heterogeneous memory management in userspace: mirrors processes for devices.\n"
	"\n"
	"  --socket PATH        listen there (/run/hmmd/hmmd.sock; with --user $XDG_RUNTIME_DIR/hmmd.sock)\n"
	"  --user               serve your own processes alone, without privileges\n"
	"  --config FILE        configuration (" CONFIG_FILE_DEFAULT
	" when it exists), with FILE.d/*.conf\n"
	"  --no-config          read no configuration\n"
	"  --check-config       say what is wrong with it, and end\n"
	"  --pool KIND          device memory: memfd, memfd-huge, hugetlb, dax or vfio\n"
	"  --pool-size SIZE     for all devices together, such as 4G (half of the memory)\n"
	"  --pool-node NODE     on that memory node, or any\n"
	"  --pool-placement P   on several: bind:NODES, preferred:NODES or interleave:NODES, such as interleave:0-1\n"
	"  --pool-card ADDRESS  with --pool vfio: the PCI card\n"
	"  --pool-bar N         ... and which of its BARs (0)\n"
	"  --pool-reserve       have all of it before serving anybody\n"
	"  --evict-high N       above so many percent of a device its coldest blocks go home (100: at need)\n"
	"  --evict-low N        down to so many percent (auto: as far as need be, and some blocks)\n"
	"  --workers N          engine threads (by the number of processors)\n"
	"  --no-io-uring        run the engine on epoll\n"
	"  --no-move            do without UFFDIO_MOVE, as on kernels before 6.8\n"
	"  --spin TIME          how long a worker polls before it sleeps\n"
	"  --ack-timeout TIME   how long a driver may take to let go of a range\n"
	"  --grace TIME         after how long without hmmd programs bring their pages home themselves\n"
	"  --tracking ENGINE    how written pages are found: auto, pagemap-scan, uffd-wp or soft-dirty\n"
	"  --log LEVEL          error, warning, info or debug\n"
	"  --ready-fd N         write READY=1 there when serving, and close it\n"
	"  --help, --version\n"
	"\n"
	"SIGTERM ends hmmd when every page is home; SIGUSR2 ends it at once, for another that follows;\n"
	"SIGHUP reads the configuration again.\n"
	"HMMD_DEBUG=wire prints every message. See hmmd(8) and hmmd.conf(5).\n";

static void build_options(struct option *options)
{
	static const struct option others[] = {
		{ "config", required_argument, NULL, OPTION_CONFIG },
		{ "no-config", no_argument, NULL, OPTION_NO_CONFIG },
		{ "check-config", no_argument, NULL, OPTION_CHECK_CONFIG },
		{ "ready-fd", required_argument, NULL, OPTION_READY_FD },
		{ "help", no_argument, NULL, OPTION_HELP },
		{ "version", no_argument, NULL, OPTION_VERSION },
		{ NULL, 0, NULL, 0 },
	};
	int i;

	for (i = 0; i < (int)N_SETTINGS; i++) {
		options[i] = (struct option) {
			.name = settings[i].option + 2,
			.has_arg = settings[i].value ? no_argument : required_argument,
			.val = i,
		};
	}
	memcpy(options + N_SETTINGS, others, sizeof(others));
}

static int parse_ready_fd(const char *text, int *fd)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 10);
	if (errno || end == text || *end || n < 0 || n > INT_MAX || fcntl((int)n, F_GETFD) < 0) {
		fprintf(stderr, "hmmd: --ready-fd: '%s' is no open descriptor\n", text);
		return -EINVAL;
	}
	*fd = (int)n;
	fcntl(*fd, F_SETFD, FD_CLOEXEC);
	return 0;
}

/* 0 to go on, 1 when all is said and done, -EINVAL for bad usage. */
static int parse_command(struct command *command, int argc, char **argv)
{
	struct option options[N_OPTIONS + 1];
	unsigned int *n = &command->source.n_overrides;
	int which;

	build_options(options);
	command->source = (struct config_source) {
		.file = CONFIG_FILE_DEFAULT,
		.overrides = command->overrides,
	};
	while ((which = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (which) {
		case OPTION_CONFIG:
			command->source.file = optarg;
			command->source.must_exist = true;
			break;
		case OPTION_NO_CONFIG:
			command->source.file = NULL;
			break;
		case OPTION_CHECK_CONFIG:
			command->check = true;
			break;
		case OPTION_READY_FD:
			if (parse_ready_fd(optarg, &command->ready_fd) < 0)
				return -EINVAL;
			break;
		case OPTION_HELP:
			fputs(help, stdout);
			return 1;
		case OPTION_VERSION:
			puts("hmmd " HMM_VERSION);
			return 1;
		case '?':
			fputs("hmmd: --help lists the options\n", stderr);
			return -EINVAL;
		default:
			if (*n == sizeof(command->overrides) / sizeof(command->overrides[0])) {
				fputs("hmmd: too many options\n", stderr);
				return -EINVAL;
			}
			command->overrides[(*n)++] = (struct config_override) {
				.section = settings[which].section,
				.key = settings[which].key,
				.value = settings[which].value ? settings[which].value : optarg,
				.option = settings[which].option,
			};
			break;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "hmmd: what is '%s'? --help lists the options\n", argv[optind]);
		return -EINVAL;
	}
	return 0;
}

static int choose_socket(struct config *config)
{
	const char *runtime;
	int n;

	if (*config->socket)
		return 0;
	if (!config->user) {
		strcpy(config->socket, SOCKET_DEFAULT);
		return 0;
	}
	runtime = getenv("XDG_RUNTIME_DIR");
	if (!runtime || !*runtime) {
		fputs("hmmd: XDG_RUNTIME_DIR is not set; say where to listen with --socket PATH\n",
		      stderr);
		return -EINVAL;
	}
	n = snprintf(config->socket, sizeof(config->socket), "%s/hmmd.sock", runtime);
	if (n >= (int)sizeof(config->socket)) {
		fprintf(stderr,
			"hmmd: %s/hmmd.sock is %d bytes long and a socket's path may have %zu; "
			"choose another with --socket PATH\n",
			runtime, n, sizeof(config->socket) - 1);
		return -EINVAL;
	}
	return 0;
}

/*
 * A descriptor 0, 1 or 2 that is closed would be given to a socket, and a stray print would go
 * there.
 */
static void fill_standard_fds(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	} while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

static void raise_limits(void)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		struct rlimit wanted = { NOFILE_WANTED, NOFILE_WANTED };

		if (limit.rlim_max < NOFILE_WANTED && setrlimit(RLIMIT_NOFILE, &wanted) == 0)
			return;
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	if (!getrlimit(RLIMIT_FSIZE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_FSIZE, &limit);
	}
}

/*
 * Programs wait on hmmd inside page faults, and what it has mapped of devices makes it look large: it must not be the one
 * that is killed for memory. A service manager says so by itself; who may not, or was told another number, leaves it.
 */
static void keep_from_oom(void)
{
	static const char path[] = "/proc/self/oom_score_adj", wanted[] = "-900";
	char text[16] = "";
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return;
	if (read(fd, text, sizeof(text) - 1) > 0 && !atoi(text) && pwrite(fd, wanted, sizeof(wanted) - 1, 0) < 0)
		log_debug("hmmd may be killed for memory like anybody else: %m");
	close(fd);
}

/*
 * hmmd has the memory of programs in its mappings, its buffers, its threads' stacks, and a few bytes in their registers. So there is no
 * core of it, be it written to a file or (which takes a limit of 1, not of 0) to a program; and in one that a
 * debugger makes there is no memory. Unless somebody looks for a mistake: HMMD_DEBUG=core.
 */
static void leave_no_core(void)
{
	const struct rlimit none = { 1, 1 };
	const char *debug = getenv("HMMD_DEBUG");
	int fd;

	if (debug && strstr(debug, "core"))
		return;
	/* Fails where it is 0 already. */
	setrlimit(RLIMIT_CORE, &none);
	fd = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) != 1)
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (fd >= 0)
		close(fd);
}

static void explain_user_mode(void)
{
	log_info(
		"--user: works for processes of uid %u: mirrors, migration both ways, windows, hmm_alloc()",
		geteuid());
	log_info(
		"--user: does not: other users' processes, raw forks that bypass libc, huge pages that only "
		"root can reserve; hmmctl doctor tells more");
}

static int serve(struct command *command, const struct config *config, struct passed *passed)
{
	struct server_options options = {
		.version = HMM_VERSION,
		.config = *config,
		.source = command->source,
		.ready_fd = command->ready_fd,
		.passed = passed,
	};
	struct server *server;
	int r;

	r = log_init((enum log_level)config->log);
	if (r < 0) {
		fprintf(stderr, "hmmd: the log does not start: %s\n", strerror(-r));
		return EXIT_FAILURE;
	}
	keep_from_oom();
	if (config->user)
		explain_user_mode();
	r = server_new(&options, &server);
	passed_deinit(passed);
	if (!r) {
		r = server_run(server);
		/* As a crash would: what is freed in good order is taken from who goes on with the next hmmd. */
		if (r == SERVER_HANDED_OVER) {
			log_deinit();
			_exit(EXIT_SUCCESS);
		}
		server_free(server);
	}
	log_deinit();
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	struct command command = { .ready_fd = -1 };
	struct passed passed;
	struct config config;
	int r;

	if (argc > 1 && !strcmp(argv[1], HOLDER_ARGUMENT))
		return holder_main(argc, argv);
	passed_collect(&passed);
	fill_standard_fds();
	leave_no_core();
	umask(0077);
	r = parse_command(&command, argc, argv);
	if (r)
		return r < 0 ? EXIT_USAGE : EXIT_SUCCESS;
	if (config_load(&config, &command.source, stderr) < 0)
		return EXIT_USAGE;
	if (command.check) {
		printf("%s: good\n",
		       command.source.file ? command.source.file : "built-in configuration");
		return EXIT_SUCCESS;
	}
	if (choose_socket(&config) < 0)
		return EXIT_USAGE;

	signal(SIGPIPE, SIG_IGN);
	/* A limit on file sizes shall be an error that is reported, not the end. */
	signal(SIGXFSZ, SIG_IGN);
	raise_limits();
	hmm_frame_debug_init("hmmd");
	return serve(&command, &config, &passed);
}
