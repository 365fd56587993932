// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * number.c - reads numbers, sizes and addresses. Strict: a sign, a space or
 * anything left over makes it none. No state; any thread.
 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "number.h"

static bool read_digits(const char *text, int base, uint64_t *value, const char **end)
{
	char *stop;

	if (!isxdigit((unsigned char)*text))
		return false;
	errno = 0;
	*value = strtoull(text, &stop, base);
	*end = stop;
	return !errno && stop != text;
}

bool parse_number(const char *text, uint64_t max, uint64_t *value)
{
	const char *end;

	return read_digits(text, 0, value, &end) && !*end && *value <= max;
}

static bool read_size(const char *text, uint64_t *value, const char **end)
{
	static const char units[] = "KMGT";
	const char *unit;

	if (!read_digits(text, 0, value, end))
		return false;
	unit = **end ? strchr(units, toupper((unsigned char)**end)) : NULL;
	if (unit) {
		int shift = 10 * (int)(unit - units + 1);

		if (*value > UINT64_MAX >> shift)
			return false;
		*value <<= shift;
		(*end)++;
	}
	return true;
}

bool parse_size(const char *text, uint64_t *value)
{
	const char *end;

	return read_size(text, value, &end) && !*end;
}

bool parse_range(const char *text, uint64_t *start, uint64_t *end)
{
	const char *rest;
	uint64_t length;

	if (!read_digits(text, 16, start, &rest))
		return false;
	if (*rest == '-')
		return read_digits(rest + 1, 16, end, &rest) && !*rest && *end > *start;
	if (*rest != '+' || !parse_size(rest + 1, &length) || !length)
		return false;
	return !__builtin_add_overflow(*start, length, end);
}
