// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * main.c - `hmmctl [OPTION...] COMMAND [OPTION...] [ADDRESSES...]`.
 *
 * Finds the command, reads the options that it takes (they may stand before or
 * behind it), connects, and lets it do its work. All that can go wrong here is
 * the command line and the connection. One thread.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hmmctl.h"
#include "number.h"

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static const struct command commands[] = {
	{ "status", "", "the whole daemon on one screen", NULL, 0, command_status },
	{ "features", "", "what this hmmd and this kernel can do, and why not",
	  NULL, 0, command_features },
	{ "doctor", "", "what is wrong here, and how to put it right",
	  "Ends with 1 when something that hmmd is for does not work.\n", 0, command_doctor },
	{ "clients", "[--pid PID]", "who is connected", NULL, TAKES_OWNERS, command_clients },
	{ "mirrors", "[SELECTORS]", "owners, their devices, and what lies there",
	  NULL, TAKES_OWNERS | TAKES_MIRRORS, command_mirrors },
	{ "map", "[SELECTORS] [ADDRESSES...]", "where the pages are, one line of cells per range",
	  "One line for each range, divided into at most 64 equal cells:\n"
	  "  .  all at home          s  some are read by both, none is on the device\n"
	  "  D  all on the device    d  some on the device\n"
	  "  c  coherent: CPU and device map the same page\n"
	  "  ~  some are on their way\n"
	  "  !  the device lost some\n"
	  "     (a space) nothing was ever written\n"
	  "With -j also every run of pages that are not simply at home, exactly.\n",
	  TAKES_OWNERS | TAKES_MIRRORS | TAKES_RANGES, command_map },
	{ "advice", "[SELECTORS]", "what programs have said of their memory",
	  NULL, TAKES_OWNERS | TAKES_MIRRORS, command_advice },
	{ "pools", "", "where device memory comes from, and how full it is",
	  NULL, 0, command_pools },
	{ "usage", "", "what users have of what hmmd.conf limits",
	  NULL, 0, command_usage },
	{ "stats", "[--pid PID | --owner ID]", "counters, of all or of some owners",
	  NULL, TAKES_OWNERS | TAKES_MIRRORS, command_stats },
	{ "migrate", "--to device|system [SELECTORS] [ADDRESSES...]", "move pages",
	  "Without addresses everything that can move. A migration is a best effort: what\n"
	  "stayed is counted by reason, and the exit status is then 6.\n"
	  "  --populate  memory that was never written becomes zero pages of the device\n",
	  TAKES_OWNERS | TAKES_MIRRORS | TAKES_RANGES | TAKES_TARGET, command_migrate },
	{ "drain", "[SELECTORS]", "bring everything home",
	  NULL, TAKES_OWNERS | TAKES_MIRRORS, command_drain },
	{ "watch", "[--pid PID | --owner ID]", "what becomes of pages, as it happens",
	  "One line for each event, until interrupted or until the owners are gone. What comes faster\n"
	  "than it can be printed is counted, and the count said, at the end.\n",
	  TAKES_OWNERS, command_watch },
	{ "run", "[OPTIONS] -- PROGRAM [ARG...]", "run a program with its memory mirrored",
	  "The program needs no change: a library is loaded before it. hmmctl ends as it ends.\n"
	  "  --churn SEED          send blocks to the device and home at random meanwhile\n"
	  "  --interval MS         between two such moves (1)\n"
	  "  --device-memory SIZE  of the device (1G)\n"
	  "  --private             with an hmmd of its own, for this program alone\n"
	  "  --verbose             say on stderr what was moved\n",
	  TAKES_PROGRAM | TAKES_NO_LINK, command_run },
	{ "device", "bind|unbind ADDRESS...", "give PCI devices to vfio-pci, and back",
	  "hmmd drives a PCI device through VFIO, behind the IOMMU; for that it must be with vfio-pci.\n"
	  "unbind gives it back to the driver that it had. Needs no hmmd.\n"
	  "  --dry-run  print each write that would be done, and do none\n"
	  "  --force    bind also what is mounted, or a network interface that is up\n",
	  TAKES_CARDS | TAKES_NO_LINK, command_device },
};

enum {
	OPTION_PID = 256,
	OPTION_OWNER,
	OPTION_MIRROR,
	OPTION_DEVICE,
	OPTION_TO,
	OPTION_POPULATE,
	OPTION_CHURN,
	OPTION_INTERVAL,
	OPTION_DEVICE_MEMORY,
	OPTION_PRIVATE,
	OPTION_VERBOSE,
	OPTION_DRY_RUN,
	OPTION_FORCE,
	OPTION_SOCKET,
	OPTION_HELP,
	OPTION_VERSION,
};

static const struct option option_names[] = {
	{ "pid", required_argument, NULL, OPTION_PID },
	{ "owner", required_argument, NULL, OPTION_OWNER },
	{ "mirror", required_argument, NULL, OPTION_MIRROR },
	{ "device", required_argument, NULL, OPTION_DEVICE },
	{ "to", required_argument, NULL, OPTION_TO },
	{ "populate", no_argument, NULL, OPTION_POPULATE },
	{ "churn", required_argument, NULL, OPTION_CHURN },
	{ "interval", required_argument, NULL, OPTION_INTERVAL },
	{ "device-memory", required_argument, NULL, OPTION_DEVICE_MEMORY },
	{ "private", no_argument, NULL, OPTION_PRIVATE },
	{ "verbose", no_argument, NULL, OPTION_VERBOSE },
	{ "dry-run", no_argument, NULL, OPTION_DRY_RUN },
	{ "force", no_argument, NULL, OPTION_FORCE },
	{ "socket", required_argument, NULL, OPTION_SOCKET },
	{ "json", no_argument, NULL, 'j' },
	{ "help", no_argument, NULL, OPTION_HELP },
	{ "version", no_argument, NULL, OPTION_VERSION },
	{ NULL, 0, NULL, 0 },
};

/* What a command must take for an option to be allowed. */
static unsigned int needed_for(int option)
{
	switch (option) {
	case OPTION_PID:
	case OPTION_OWNER:
		return TAKES_OWNERS;
	case OPTION_MIRROR:
	case OPTION_DEVICE:
		return TAKES_MIRRORS;
	case OPTION_TO:
	case OPTION_POPULATE:
		return TAKES_TARGET;
	case OPTION_CHURN:
	case OPTION_INTERVAL:
	case OPTION_DEVICE_MEMORY:
	case OPTION_PRIVATE:
	case OPTION_VERBOSE:
		return TAKES_PROGRAM;
	case OPTION_DRY_RUN:
	case OPTION_FORCE:
		return TAKES_CARDS;
	default:
		return 0;
	}
}

static void print_help(FILE *to)
{
	fputs("Usage: hmmctl [--socket PATH] [-j] COMMAND [OPTION...]\n\n", to);
	for (size_t i = 0; i < COMMANDS; i++)
		fprintf(to, "  %-10s%s\n", commands[i].name, commands[i].summary);
	fputs("\n"
	      "Selectors, the same everywhere: --pid PID, --owner ID, --mirror ID, --device NAME, and\n"
	      "addresses as START-END or START+LENGTH. Any of one kind, and each kind that is given.\n"
	      "-j prints JSON. `hmmctl help COMMAND` tells more; the exit statuses are in hmmctl(1).\n",
	      to);
}

static int print_command_help(const struct command *command, FILE *to)
{
	fprintf(to, "Usage: hmmctl %s%s%s\n\n%s\n", command->name, *command->arguments ? " " : "",
		command->arguments, command->summary);
	if (command->help)
		fprintf(to, "\n%s", command->help);
	return STATUS_OK;
}

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < COMMANDS; i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

static int usage(const char *format, const char *what)
{
	fputs("hmmctl: ", stderr);
	fprintf(stderr, format, what);
	fputs("\n  try: hmmctl help\n", stderr);
	return STATUS_USAGE;
}

static int unknown_command(const char *name)
{
	fprintf(stderr, "hmmctl: no command '%s'; there are:", name);
	for (size_t i = 0; i < COMMANDS; i++)
		fprintf(stderr, " %s", commands[i].name);
	fputs("\n", stderr);
	return STATUS_USAGE;
}

static bool set_number(const char *option, const char *text, uint64_t max, uint64_t *value)
{
	if (parse_number(text, max, value))
		return true;
	fprintf(stderr, "hmmctl: %s '%s': a number up to %lu is wanted\n", option, text, max);
	return false;
}

static bool set_target(struct context *context, const char *text)
{
	uint64_t target;

	if (hmm_value_by_name(hmm_target_names, text, &target)) {
		fprintf(stderr, "hmmctl: --to '%s': device or system is wanted\n", text);
		return false;
	}
	context->target = (uint32_t)target;
	context->target_given = true;
	return true;
}

static bool set_option(struct context *context, int option, const char *text)
{
	struct selection *selection = &context->selection;
	uint64_t value;

	switch (option) {
	case OPTION_PID:
		return selection_add_pid(selection, text);
	case OPTION_OWNER:
		return selection_add_owner(selection, text);
	case OPTION_MIRROR:
		return selection_add_mirror(selection, text);
	case OPTION_DEVICE:
		return selection_add_device(selection, text);
	case OPTION_TO:
		return set_target(context, text);
	case OPTION_POPULATE:
		context->populate = true;
		return true;
	case OPTION_CHURN:
		context->churn = true;
		return set_number("--churn", text, UINT64_MAX, &context->seed);
	case OPTION_INTERVAL:
		if (!set_number("--interval", text, 60000, &value))
			return false;
		context->interval_ms = (unsigned int)value;
		return true;
	case OPTION_DEVICE_MEMORY:
		if (parse_size(text, &context->device_memory) && context->device_memory)
			return true;
		fprintf(stderr, "hmmctl: --device-memory '%s': a size such as 512M is wanted\n",
			text);
		return false;
	case OPTION_PRIVATE:
		context->private_daemon = true;
		return true;
	case OPTION_VERBOSE:
		context->verbose = true;
		return true;
	case OPTION_DRY_RUN:
		context->dry_run = true;
		return true;
	case OPTION_FORCE:
		context->force = true;
		return true;
	case 'j':
		context->json = true;
		return true;
	default:
		return false;
	}
}

/* What the command line asks for. */
struct request {
	const struct command *command;
	const char *socket;
	bool help, version;
	unsigned int takes;	/* what the options that were given need */
	const char *last;	/* the last of them that not every command has */
};

/* Reads options up to the first word that is none. Return: false when one is bad. */
static bool read_options(struct context *context, struct request *request, int argc, char **argv)
{
	int option, index = 0;

	while ((option = getopt_long(argc, argv, "+jh", option_names, &index)) != -1) {
		if (option == OPTION_SOCKET) {
			request->socket = optarg;
		} else if (option == OPTION_HELP || option == 'h') {
			request->help = true;
		} else if (option == OPTION_VERSION) {
			request->version = true;
		} else if (option == '?') {
			fputs("  try: hmmctl help\n", stderr);	/* getopt has said what */
			return false;
		} else {
			if (needed_for(option)) {
				request->takes |= needed_for(option);
				request->last = option_names[index].name;
			}
			if (!set_option(context, option, optarg))
				return false;
		}
	}
	return true;
}

/* `help` and `help COMMAND`. */
static int help(const char *name)
{
	const struct command *command = name ? find_command(name) : NULL;

	if (name && !command)
		return unknown_command(name);
	if (command)
		return print_command_help(command, stdout);
	print_help(stdout);
	return STATUS_OK;
}

static int check(const struct context *context, const struct request *request)
{
	unsigned int takes = request->command->takes;

	if (request->takes & ~takes) {
		fprintf(stderr, "hmmctl: %s does not take --%s\n  try: hmmctl help %s\n",
			request->command->name, request->last, request->command->name);
		return STATUS_USAGE;
	}
	if (takes & TAKES_TARGET && !context->target_given)
		return usage("%s: --to device or --to system is needed", request->command->name);
	if (takes & TAKES_PROGRAM && !*context->program)
		return usage("%s: which program? hmmctl run -- PROGRAM [ARG...]",
			     request->command->name);
	return STATUS_OK;
}

static int execute(struct context *context, const struct request *request)
{
	int ret;

	if (request->socket)
		setenv("HMM_SOCKET", request->socket, 1);
	if (!(request->command->takes & TAKES_NO_LINK) && link_open(&context->link, NULL))
		return report_link_error(&context->link);
	ret = request->command->run(context);
	link_close(&context->link);
	if (fflush(stdout) || ferror(stdout)) {
		perror("hmmctl: cannot write");
		return STATUS_FAILED;
	}
	return ret;
}

static bool add_word(struct context *context, const char *word)
{
	if (context->n_words == MOST_WORDS) {
		fprintf(stderr, "hmmctl: too many words: '%s'\n", word);
		return false;
	}
	context->words[context->n_words++] = word;
	return true;
}

/* Options and addresses behind the command, in any order. */
static int read_rest(struct context *context, struct request *request, int argc, char **argv)
{
	while (read_options(context, request, argc, argv)) {
		if (optind == argc || request->command->takes & TAKES_PROGRAM) {
			context->program = argv + optind;
			return STATUS_OK;
		}
		if (request->command->takes & TAKES_CARDS) {
			if (!add_word(context, argv[optind++]))
				return STATUS_USAGE;
			continue;
		}
		if (!(request->command->takes & TAKES_RANGES))
			return usage("what is '%s'? This command takes no addresses", argv[optind]);
		if (!selection_add_range(&context->selection, argv[optind++]))
			return STATUS_USAGE;
	}
	return STATUS_USAGE;
}

int main(int argc, char **argv)
{
	static struct context context = { .interval_ms = 1, .device_memory = 1UL << 30 };
	struct request request = { 0 };
	const char *name;
	int ret;

	hmm_frame_debug_init("hmmctl");
	link_init(&context.link);
	argv[0] = "hmmctl";	/* so that getopt's words begin like ours */
	if (!read_options(&context, &request, argc, argv))
		return STATUS_USAGE;
	name = argv[optind];
	if (request.version) {
		puts("hmmctl " HMM_VERSION);
		return STATUS_OK;
	}
	if (request.help || (name && !strcmp(name, "help")))
		return help(request.help ? name : argv[optind + 1]);
	if (!name) {
		print_help(stderr);
		return STATUS_USAGE;
	}
	request.command = find_command(name);
	if (!request.command)
		return unknown_command(name);
	optind++;
	ret = read_rest(&context, &request, argc, argv);
	if (ret)
		return ret;
	if (request.help)
		return print_command_help(request.command, stdout);
	ret = check(&context, &request);
	return ret ? ret : execute(&context, &request);
}
