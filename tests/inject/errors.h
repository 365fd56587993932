/* SPDX-License-Identifier: GPL-2.0-or-later */
/* errors.h - names of errors, as plans of inject.c and calls.c spell them. */
#ifndef INJECT_ERRORS_H
#define INJECT_ERRORS_H

#include <errno.h>
#include <stdbool.h>
#include <string.h>

/* Half of it is done. */
#define ERROR_SHORT	0
/* A message comes, and its descriptors are lost. */
#define ERROR_LOST	(-1)

static inline bool error_by_name(const char *name, int *error)
{
	static const struct {
		const char *name;
		int error;
	} errors[] = {
		{"SHORT", ERROR_SHORT}, {"LOST", ERROR_LOST},	{"EAGAIN", EAGAIN},   {"EBUSY", EBUSY},
		{"EEXIST", EEXIST},	{"EFAULT", EFAULT},	{"EINTR", EINTR},     {"EINVAL", EINVAL},
		{"EIO", EIO},		{"EMFILE", EMFILE},	{"ENFILE", ENFILE},   {"ENOBUFS", ENOBUFS},
		{"ENODEV", ENODEV},	{"ENOENT", ENOENT},	{"ENOMEM", ENOMEM},   {"ENOSPC", ENOSPC},
		{"ENOSYS", ENOSYS},	{"EOPNOTSUPP", EOPNOTSUPP}, {"EPERM", EPERM}, {"ECONNABORTED", ECONNABORTED},
		{"ECONNREFUSED", ECONNREFUSED},
	};

	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (strcmp(name, errors[i].name) == 0) {
			*error = errors[i].error;
			return true;
		}
	return false;
}

#endif
