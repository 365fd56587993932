/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * config.h - what hmmd is told: built-in values, then the file, then its
 * drop-ins in order of name, then the command line. Strict: a word that means
 * nothing is an error with file and line, and an error leaves the old values.
 *
 * Thread: control (and main, before it).
 */
#ifndef HMMD_CONFIG_H
#define HMMD_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "daemon/memory/placement.h"

#define CONFIG_FILE_DEFAULT "/etc/hmmd/hmmd.conf"

struct config {
	/* [daemon] */
	char socket[108];		/* what sun_path holds; "": the default of the mode */
	char group[33];			/* who may connect, with root; "": only hmmd's own user */
	bool user;			/* --user */
	uint64_t log;			/* enum log_level */

	/* [engine] */
	uint64_t workers;		/* 0: as many as make sense here */
	bool io_uring;
	bool move;
	uint64_t spin_us;
	uint64_t ack_timeout_ms;
	uint64_t grace_ms;
	uint64_t card_grace_ms;
	uint64_t tracking;		/* enum tracking_wish */

	/* [pool] */
	uint64_t pool_kind;		/* enum hmm_pool_kind */
	uint64_t pool_size;		/* 0: half of the machine's memory */
	uint64_t pool_node;		/* number + 1; 0: any */
	struct placement pool_placement;	/* in more words; not beside pool_node */
	char pool_card[16];		/* kind vfio: its PCI address; "": none */
	uint64_t pool_bar;		/* ... and which of its BARs */
	bool pool_reserve;		/* all of it is taken before anybody is served */
	uint64_t evict_high;		/* percent of a device */
	uint64_t evict_low;		/* percent; 0: as far as need be */

	/* [limits], for each uid */
	uint64_t connections;
	uint64_t owners;
	uint64_t fds;
	uint64_t requests;		/* unanswered ones */
	uint64_t rings;			/* bytes of rings of notices, and of tracks */
	uint64_t mirrors;
	uint64_t memory;		/* bytes of devices' memory; 0: no limit but the pools' */
	uint64_t pinned;		/* bytes of it that never make way; 0: no limit */
	/* ... for each connection */
	uint64_t queue;			/* bytes that wait for a peer which does not read */
	uint64_t stall_ms;		/* how long it may not read */
};

/* One setting of the command line, kept so that a reload can put it on top again. */
struct config_override {
	const char *section, *key;
	const char *value;
	const char *option;		/* "--socket", for errors */
};

struct config_source {
	const char *file;		/* NULL: none */
	bool must_exist;		/* named by the user: its absence is an error */
	const struct config_override *overrides;
	unsigned int n_overrides;
};

void config_defaults(struct config *config);

/*
 * Reads everything into *config. 0, or -EINVAL with every error as a line
 * "FILE:LINE: what is wrong and what is allowed" in @errors, *config untouched.
 */
int config_load(struct config *config, const struct config_source *source, FILE *errors);

/* Names the keys that differ between the two but only take effect at the next start; how many. */
unsigned int config_frozen_changes(const struct config *old, const struct config *new, char *names,
				   size_t size);

/* Takes those keys over from the running values, so that what is shown is what is in force. */
void config_keep_frozen(struct config *new, const struct config *running);

/* What `node` and `placement` say together. */
struct placement config_placement(const struct config *config);

/* A size ("64M"), a time ("250ms"), as the file takes them. 0 or -EINVAL. */
int config_parse_size(const char *text, uint64_t *bytes);
int config_parse_time(const char *text, uint64_t unit_us, uint64_t *value);

#endif
