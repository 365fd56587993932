/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * doctor.h - one examination, as the checks of doctor.c and doctor_cards.c see it.
 *
 * Thread: control.
 */
#ifndef HMMD_DOCTOR_H
#define HMMD_DOCTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/control/admin.h"

struct examination {
	struct server *server;
	const char *root;	/* stands before the paths of doctor_cards(): "" but in its test */
	uint64_t features;
	struct hmm_msg_status_reply totals;
	struct hmm_record_finding *out;
	unsigned int count, max;
};

/* One more finding. Text and fix are cut at what a finding holds. */
void doctor_find(struct examination *exam, enum doctor_severity severity, uint64_t feature,
		 const char *name, const char *fix, const char *format, ...)
	__attribute__((format(printf, 6, 7)));
/* A small file as text. False when it cannot be read. */
bool doctor_read(const char *path, char *out, size_t room);

/* doctor_cards.c: the IOMMU, VFIO, and which cards are there to be driven. */
void doctor_cards(struct examination *exam);

/* doctor_surroundings.c: what containers, service managers and their filters keep from hmmd. */
void doctor_surroundings(struct examination *exam);
/* Whether hmmd is under a seccomp filter, and one that most likely its programs are under as well: a container's. */
bool doctor_is_filtered(void);

#endif
