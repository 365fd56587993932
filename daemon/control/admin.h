/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * admin.h - what hmmctl asks: the whole daemon in lists. Each fills the
 * letter's reply or its error.
 *
 * Thread: control.
 */
#ifndef HMMD_ADMIN_H
#define HMMD_ADMIN_H

#include <stdint.h>
#include <sys/types.h>

#include "hmm_protocol.h"

struct letter;
struct server;

void admin_status(struct server *server, struct letter *letter);
/* FEATURE: programs ask it, too. */
void admin_feature(struct server *server, struct letter *letter);
/* Of @only, or (NULL) of every uid. */
void admin_usage(struct server *server, struct letter *letter, const uid_t *only);
/* CLIENTS, OWNERS, MIRRORS, POOLS, STATS, DOCTOR. */
void admin_list(struct server *server, struct letter *letter);

/* doctor.c: up to @max findings of this very moment. */
enum doctor_severity {
	DOCTOR_NOTE = 1,	/* works; could be better */
	DOCTOR_WARNING = 2,	/* something does not work, or works slowly */
	DOCTOR_ERROR = 3,	/* what hmmd is for does not work */
};
unsigned int doctor_examine(struct server *server, struct hmm_record_finding *out,
			    unsigned int max);

#endif
