/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * hmmctl.h - what every command gets and what it gives back.
 *
 * A command is a function in a file of its own name. It asks hmmd through its
 * link, hands what it learnt to output, and returns an exit status; what went
 * wrong is on stderr by then, with what to do about it.
 */
#ifndef HMMCTL_H
#define HMMCTL_H

#include <stdbool.h>
#include <stdint.h>

#include "link.h"
#include "selection.h"

/* A contract: docs/man/hmmctl.1 lists them. */
enum status {
	STATUS_OK = 0,
	STATUS_FAILED = 1,
	STATUS_USAGE = 2,
	STATUS_NO_DAEMON = 3,
	STATUS_NOT_PERMITTED = 4,
	STATUS_NOTHING = 5,	/* no owner, mirror or range is what was selected */
	STATUS_PARTIAL = 6,	/* some of it was done */
};

#define MOST_WORDS	33	/* behind a command: a verb and so many devices as a group can have functions */

struct context {
	struct link link;
	bool json;
	struct selection selection;

	/* Options that only some commands take. */
	uint32_t target;	/* migrate: enum hmm_target */
	bool target_given;
	bool populate;
	bool verbose;
	bool churn;
	uint64_t seed;
	uint64_t device_memory;
	unsigned int interval_ms;
	bool private_daemon;

	bool dry_run;
	bool force;

	char **program;		/* run: the command line, NULL at its end */
	const char *words[MOST_WORDS];	/* what is neither option nor address */
	unsigned int n_words;
};

/* Which options a command takes, beside --socket, --json and --help. */
#define TAKES_OWNERS	(1U << 0)	/* --pid, --owner */
#define TAKES_MIRRORS	(1U << 1)	/* --mirror, --device */
#define TAKES_RANGES	(1U << 2)	/* START-END, START+LENGTH */
#define TAKES_TARGET	(1U << 3)
#define TAKES_PROGRAM	(1U << 4)
#define TAKES_NO_LINK	(1U << 5)	/* the command connects by itself, or needs no hmmd */
#define TAKES_CARDS	(1U << 6)	/* words, --dry-run, --force */

struct command {
	const char *name;
	const char *arguments;
	const char *summary;
	const char *help;	/* NULL, or more lines for `hmmctl help COMMAND` */
	unsigned int takes;
	int (*run)(struct context *context);
};

int command_status(struct context *context);
int command_features(struct context *context);
int command_doctor(struct context *context);
int command_clients(struct context *context);
int command_mirrors(struct context *context);
int command_map(struct context *context);
int command_advice(struct context *context);
int command_pools(struct context *context);
int command_usage(struct context *context);
int command_stats(struct context *context);
int command_migrate(struct context *context);
int command_drain(struct context *context);
int command_watch(struct context *context);
int command_run(struct context *context);
int command_device(struct context *context);

/* Says what the link could not do and what to try next. Return: the exit status that fits. */
int report_link_error(const struct link *link);
/* The same of a request about an owner that was listed; if it has ended since, that is no error: STATUS_OK. */
int report_owner_error(const struct link *link);
/* The selection fits nothing. Return: STATUS_NOTHING. */
int report_nothing(const char *what);
/* Return: STATUS_FAILED. */
int report_no_memory(void);

#endif
