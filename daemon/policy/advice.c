/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * advice.c - what of a program's advice is in force. Nothing is ignored in
 * silence: each rule that takes something away says what is done instead.
 */
#include "policy/advice.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Where copies at both sides are the point. */
#define COPIES (HMM_ADVISED_READ_MOSTLY | HMM_ADVISED_ACCESSED_BY)

struct verdict {
	uint64_t in_force;
	char *why;
	size_t size;
};

static void take(struct verdict *verdict, uint64_t what, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void take(struct verdict *verdict, uint64_t what, const char *format, ...)
{
	size_t used = strlen(verdict->why);
	va_list arguments;

	if (!(verdict->in_force & what))
		return;
	verdict->in_force &= ~what;
	if (used && used + 2 < verdict->size) {
		memcpy(verdict->why + used, "; ", 3);
		used += 2;
	}
	va_start(arguments, format);
	vsnprintf(verdict->why + used, verdict->size - used, format, arguments);
	va_end(arguments);
}

uint64_t advice_in_force(const struct advice_facts *facts, char *why, size_t size)
{
	struct verdict verdict = { facts->said, why, size };

	why[0] = '\0';
	if (facts->no_memory)
		take(&verdict, HMM_ADVISED_ACCESSED_BY | HMM_ADVISED_PREFERRED_DEVICE,
		     "the device has no memory: it reads and writes the pages at the CPU, through hmmd");
	if (facts->no_faults)
		take(&verdict, HMM_ADVISED_ACCESSED_BY | HMM_ADVISED_PREFERRED_DEVICE,
		     "the device cannot fault: it has what is pinned on it or coherent, and nothing else");
	if (!facts->move && !(facts->said & HMM_ADVISED_UNPINNED))
		take(&verdict, COPIES | HMM_ADVISED_PREFERRED_DEVICE,
		     "without UFFDIO_MOVE only what is declared UNPINNED leaves the CPU: this stays there");
	if (facts->merging)
		take(&verdict, COPIES | HMM_ADVISED_PREFERRED_DEVICE,
		     "while ksmd runs no page is at the CPU and on a device at once: each touch takes it");
	if (facts->windows && !facts->protects)
		take(&verdict, COPIES,
		     "this kernel can't write-protect windows: a page is at the CPU or in the window, not both");
	if (facts->windows)
		take(&verdict, HMM_ADVISED_PREFERRED_SYSTEM,
		     "a window maps only what is on its device: a read there takes a copy, a write takes the page");
	if (facts->on_device < facts->pages)
		take(&verdict, HMM_ADVISED_PIN,
		     "%lu of %lu pages are on the device: the CPU has taken the others, which are pinned again when they are back",
		     facts->on_device, facts->pages);
	if (facts->move)
		take(&verdict, HMM_ADVISED_UNPINNED,
		     "UFFDIO_MOVE leaves pinned pages alone by itself: UNPINNED is not needed");
	return verdict.in_force;
}
