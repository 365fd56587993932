/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef HMMD_REMAP_H
#define HMMD_REMAP_H

#include <stdint.h>

struct owner;

/* mremap moved [from, from + length) to @to: what is on the device follows. */
void remap_move(struct owner *owner, uint64_t from, uint64_t to, uint64_t length);

#endif
