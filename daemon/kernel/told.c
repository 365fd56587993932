/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * told.c - what a program has told the kernel of its memory: what is locked, left out of core dumps, kept from children. A
 * mapping keeps it while its pages come and go; whoever puts another mapping in its place, or its bytes in another place, has to
 * look here first.
 *
 * smaps is the only file that says so, and it counts all pages of each mapping on the way: from the beginning of
 * the address space to the last mapping that is asked for. So it is read for a request, never for a page.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "private.h"

static const struct {
	const char *name;		/* in a line of VmFlags */
	unsigned int told;
} words[] = {
	{ " lo", KERNEL_TOLD_LOCKED }, { " dd", KERNEL_TOLD_NODUMP }, { " dc", KERNEL_TOLD_NOFORK },
	{ " wf", KERNEL_TOLD_WIPED }, { " nh", KERNEL_TOLD_NOHUGE },
};

static unsigned int parse(const char *flags)
{
	unsigned int told = 0;

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strstr(flags, words[i].name))
			told |= words[i].told;
	return told;
}

int kernel_told(int smaps, uint64_t start, uint64_t end,
		void (*found)(void *data, uint64_t start, uint64_t end, unsigned int told), void *data)
{
	static const char key[] = "VmFlags:";
	int fd = dup(smaps), r = 0;
	FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
	unsigned long from = 0, to = 0, a, b;
	char *line = NULL;
	size_t size = 0;

	if (!file) {
		r = -errno;
		if (fd >= 0)
			close(fd);
		return r;
	}
	rewind(file);
	while (from < end && getline(&line, &size, file) > 0) {
		/* All other lines begin with a capital letter. */
		if (line[0] > 'Z' || line[0] < 'A') {
			if (sscanf(line, "%lx-%lx ", &a, &b) != 2)
				continue;
			from = a;
			to = b;
		} else if (!strncmp(line, key, strlen(key)) && from < end && to > start) {
			unsigned int told = parse(line + strlen(key));

			if (told)
				found(data, from, to, told);
		}
	}
	if (ferror(file))
		r = -EIO;
	free(line);
	fclose(file);
	return r;
}
