// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * watch.c - `hmmctl watch`: what becomes of some owners' pages, a line for each event.
 *
 * A ring for each owner; hmmd sends a message when one is not empty any more, and then all of
 * it is printed. What hmmd said while the rings were being opened was not heard, so
 * all are looked at once before the first wait.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hmmctl.h"
#include "layout.h"
#include "output.h"

struct watched {
	uint32_t owner, pid, id;
	uint32_t entries;
	bool closed;		/* and that was seen */
	const struct hmm_notices *ring;
	struct hmm_notices_reader *reader;
};

struct watch {
	struct context *context;
	struct watched *list;
	size_t n, open;
};

static int watch_owner(struct watch *watch, struct watched *watched)
{
	struct link *link = &watch->context->link;
	const struct hmm_msg_notices_open_reply *reply;
	struct hmm_msg_notices_open request;
	void *ring, *reader;
	int fds[2];

	HMM_MSG_INIT(request, HMM_OP_NOTICES_OPEN, 0);
	request.owner = watched->owner;
	request.entries = HMM_NOTICES_MAX;
	reply = link_request(link, &request);
	if (!reply) {
		watched->closed = true;		/* it has ended before this could begin */
		watch->open--;
		return report_owner_error(link);
	}
	watched->id = reply->notices;
	watched->entries = reply->entries;
	fds[0] = link_take_fd(link, 0);
	fds[1] = link_take_fd(link, 1);
	ring = mmap(NULL, HMM_NOTICES_SIZE(watched->entries), PROT_READ, MAP_SHARED, fds[0], 0);
	reader = mmap(NULL, sizeof(*watched->reader), PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
	close(fds[0]);
	close(fds[1]);
	if (ring == MAP_FAILED || reader == MAP_FAILED)
		return report_no_memory();
	watched->ring = ring;
	watched->reader = reader;
	return STATUS_OK;
}

static void print_json(const struct watched *watched, const struct hmm_notice *notice)
{
	struct json_object *object = json_object_new_object();

	json_object_object_add(object, "time", json_object_new_uint64(notice->time));
	json_object_object_add(object, "owner", json_object_new_uint64(watched->owner));
	json_object_object_add(object, "pid", json_object_new_uint64(watched->pid));
	json_object_object_add(object, "kind", json_object_new_string(hmm_event_kind_name(notice->kind)));
	json_object_object_add(object, "reason", notice->reason ?
			       json_object_new_string(hmm_reason_name(notice->reason)) : NULL);
	json_object_object_add(object, "error", json_object_new_int(notice->error));
	json_object_object_add(object, "mirror", json_object_new_uint64(notice->mirror));
	json_object_object_add(object, "start", json_object_new_uint64(notice->start));
	json_object_object_add(object, "end", json_object_new_uint64(notice->end));
	json_object_object_add(object, "pages", json_object_new_uint64(notice->pages));
	puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN));
	json_object_put(object);
}

static void print_line(const struct watched *watched, const struct hmm_notice *notice)
{
	printf("%" PRIu64 ".%06" PRIu64 "  %-6" PRIu32 " %-12s %#" PRIx64 "-%#" PRIx64 " %6" PRIu64 " pages",
	       notice->time / 1000000000, notice->time / 1000 % 1000000, watched->pid,
	       hmm_event_kind_name(notice->kind), notice->start, notice->end, notice->pages);
	if (notice->mirror)
		printf("  mirror %" PRIu32, notice->mirror);
	if (notice->reason)
		printf("  %s", hmm_reason_name(notice->reason));
	if (notice->error)
		printf("  %s", strerror(-notice->error));
	putchar('\n');
}

static void end_ring(struct watch *watch, struct watched *watched)
{
	if (watched->ring->dropped)
		fprintf(stderr, "hmmctl: %" PRIu64 " events of owner %" PRIu32 " came too fast and are missing\n",
			watched->ring->dropped, watched->owner);
	watched->closed = true;
	watch->open--;
}

/* Until it is empty, which is looked at after what was read has been given back. */
static void print_ring(struct watch *watch, struct watched *watched)
{
	bool closed = __atomic_load_n(&watched->ring->closed, __ATOMIC_ACQUIRE);
	uint64_t consumed = watched->reader->consumed;

	while (consumed != __atomic_load_n(&watched->ring->produced, __ATOMIC_SEQ_CST)) {
		const struct hmm_notice notice = watched->ring->ring[consumed % watched->entries];

		__atomic_store_n(&watched->reader->consumed, ++consumed, __ATOMIC_SEQ_CST);
		if (watch->context->json)
			print_json(watched, &notice);
		else
			print_line(watched, &notice);
	}
	fflush(stdout);
	if (closed && !watched->closed)
		end_ring(watch, watched);
}

static void print_all(struct watch *watch)
{
	for (size_t i = 0; i < watch->n; i++)
		if (watch->list[i].ring)
			print_ring(watch, &watch->list[i]);
}

static int watch_all(struct watch *watch)
{
	const struct hmm_wire_header *event;
	int ret = STATUS_OK;

	for (size_t i = 0; !ret && i < watch->n; i++)
		ret = watch_owner(watch, &watch->list[i]);
	if (!ret)
		print_all(watch);
	while (!ret && watch->open && !ferror(stdout)) {
		event = link_event(&watch->context->link);
		if (!event)
			ret = report_link_error(&watch->context->link);
		else if (event->opcode == HMM_OP_NOTICES)
			print_all(watch);
	}
	return ret;
}

static void unmap_all(struct watch *watch)
{
	for (size_t i = 0; i < watch->n; i++) {
		struct watched *watched = &watch->list[i];

		if (watched->ring)
			munmap((void *)(uintptr_t)watched->ring, HMM_NOTICES_SIZE(watched->entries));
		if (watched->reader)
			munmap(watched->reader, sizeof(*watched->reader));
	}
	free(watch->list);
}

int command_watch(struct context *context)
{
	struct watch watch = { .context = context };
	struct hmm_record_owner_info *owners;
	long n = select_owners(&context->selection, &context->link, &owners);
	int ret;

	if (n < 0)
		return report_link_error(&context->link);
	if (!n) {
		free(owners);
		return report_nothing("owner");
	}
	watch.list = calloc((size_t)n, sizeof(*watch.list));
	for (long i = 0; watch.list && i < n; i++) {
		watch.list[i].owner = owners[i].id;
		watch.list[i].pid = owners[i].pid;
		watch.n = watch.open = (size_t)i + 1;
	}
	free(owners);
	if (!watch.list)
		return report_no_memory();
	ret = watch_all(&watch);
	unmap_all(&watch);
	return ret;
}
