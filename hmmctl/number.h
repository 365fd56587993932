/* SPDX-License-Identifier: GPL-2.0-or-later */
/* number.h - numbers, sizes and addresses as people write them. */
#ifndef HMMCTL_NUMBER_H
#define HMMCTL_NUMBER_H

#include <stdbool.h>
#include <stdint.h>

/* All of @text must be the number. */
bool parse_number(const char *text, uint64_t max, uint64_t *value);
/* 4096, 64K, 512M, 2G. */
bool parse_size(const char *text, uint64_t *value);
/* START-END or START+LENGTH: hexadecimal addresses, a size. */
bool parse_range(const char *text, uint64_t *start, uint64_t *end);

#endif
