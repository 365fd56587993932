/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * prefetch.c - sequential walks among an owner's faults.
 *
 * Several threads may walk at once, so eight walks are remembered and the one
 * that was quiet longest makes room. A walk that crosses into the next block
 * keeps its length: from its tenth fault on it takes whole blocks.
 */
#include "policy/prefetch.h"

unsigned int prefetch_ask(struct prefetch *prefetch, uint64_t page, unsigned int max)
{
	for (unsigned int i = 0; i < PREFETCH_WALKS; i++) {
		unsigned int length = prefetch->walk[i].length * 2;

		if (prefetch->walk[i].next != page || !page)
			continue;
		return length < max ? length : max;
	}
	return 1;
}

struct prefetch_span prefetch_span(uint64_t page, unsigned int asked, const struct prefetch_hint *hint,
				   uint64_t start, uint64_t end)
{
	uint64_t group = hint->granularity ? hint->granularity : 1;
	struct prefetch_span span = { .start = page & ~(group - 1) };

	span.end = span.start + group;
	if (!hint->off && span.end < page + asked)
		span.end = page + asked;
	if (start < hint->start)
		start = hint->start;
	if (end > hint->end)
		end = hint->end;
	if (span.start < start)
		span.start = start;
	if (span.end > end)
		span.end = end;
	return span;
}

void prefetch_brought(struct prefetch *prefetch, uint64_t page, uint64_t next, unsigned int asked)
{
	unsigned int oldest = 0, at = PREFETCH_WALKS;

	for (unsigned int i = 0; i < PREFETCH_WALKS; i++) {
		if (prefetch->walk[i].next == page)
			at = i;
		if (prefetch->clock - prefetch->walk[i].age > prefetch->clock - prefetch->walk[oldest].age)
			oldest = i;
	}
	if (at == PREFETCH_WALKS)
		at = oldest;
	prefetch->walk[at].next = next;
	prefetch->walk[at].length = asked;
	prefetch->walk[at].age = ++prefetch->clock;
}
