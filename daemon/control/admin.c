// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * admin.c - lists of what there is, a messageful at a time. A list is asked
 * again from the cursor after its last record as long as `more` is set; what
 * comes or goes meanwhile may be missed, but nothing is told twice.
 *
 * What can fail: memory, which leaves the letter without reply (session.c says so).
 * Thread: control.
 */
#include "daemon/control/admin.h"

#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "daemon/control/peer.h"
#include "daemon/control/server.h"

#define LIST_BYTES 65536
#define FINDINGS_MAX 64
#define FINDINGS_FRESH_NS 100000000

/* What all list replies look like. */
struct list_reply {
	struct hmm_wire_header header;
	uint32_t count, more;
	char items[];
};
_Static_assert(offsetof(struct hmm_msg_clients_reply, items) == offsetof(struct list_reply, items),
	       "list");
_Static_assert(offsetof(struct hmm_msg_owners_reply, items) == offsetof(struct list_reply, items),
	       "list");
_Static_assert(offsetof(struct hmm_msg_mirrors_reply, items) == offsetof(struct list_reply, items),
	       "list");
_Static_assert(offsetof(struct hmm_msg_pools_reply, items) == offsetof(struct list_reply, items),
	       "list");
_Static_assert(offsetof(struct hmm_msg_stats_reply, items) == offsetof(struct list_reply, items),
	       "list");
_Static_assert(offsetof(struct hmm_msg_doctor_reply, items) == offsetof(struct list_reply, items),
	       "list");

typedef unsigned int (*list_source)(struct server *server, const struct hmm_wire_header *request,
				    void *out, unsigned int max);

static unsigned int list_clients(struct server *server, const struct hmm_wire_header *request,
				 void *out, unsigned int max)
{
	const struct hmm_msg_clients *message = (const void *)request;
	struct hmm_record_client_info *info = out;
	const struct peer *peer;
	unsigned int i, count = 0;

	for (peer = server->peers; peer && count < max; peer = peer->next) {
		if (peer->id < message->cursor || !peer->greeted)
			continue;
		info[count] = (struct hmm_record_client_info) {
			.id = peer->id,
			.pid = (uint32_t)peer->pid,
			.uid = peer->uid,
			.role = peer->role,
			.mirrors = peer->mirrors,
			.windows = peer->windows,
			.fds = (uint32_t)peer->fds + peer->windows,
			.connected_ns = uv_hrtime() - peer->connected,
		};
		for (i = 0; i < peer->n_grants; i++) {
			if (peer->grants[i].right == RIGHT_OWN)
				info[count].owner = peer->grants[i].owner;
		}
		memcpy(info[count].name, peer->name, sizeof(peer->name));
		count++;
	}
	return count;
}

static unsigned int list_owners(struct server *server, const struct hmm_wire_header *request,
				void *out, unsigned int max)
{
	return engine_list_owners(server->engine, ((const struct hmm_msg_owners *)request)->cursor,
				  out, max);
}

static unsigned int list_mirrors(struct server *server, const struct hmm_wire_header *request,
				 void *out, unsigned int max)
{
	return engine_list_mirrors(server->engine,
				   ((const struct hmm_msg_mirrors *)request)->cursor, out, max);
}

static unsigned int list_pools(struct server *server, const struct hmm_wire_header *request,
			       void *out, unsigned int max)
{
	return engine_list_pools(server->engine, ((const struct hmm_msg_pools *)request)->cursor,
				 out, max);
}

static unsigned int list_stats(struct server *server, const struct hmm_wire_header *request,
			       void *out, unsigned int max)
{
	const struct hmm_msg_stats *message = (const void *)request;

	return engine_list_stats(server->engine, message->owner, message->cursor, out, max);
}

static unsigned int list_findings(struct server *server, const struct hmm_wire_header *request,
				  void *out, unsigned int max)
{
	static struct hmm_record_finding findings[FINDINGS_MAX];
	static unsigned int found;
	static uint64_t examined;
	uint32_t cursor = ((const struct hmm_msg_doctor *)request)->cursor;
	unsigned int count;

	/*
	 * An examination reads some twenty files: whoever asks without end shall not keep the loop
	 * at it.
	 */
	if (!examined || uv_hrtime() - examined > FINDINGS_FRESH_NS) {
		found = doctor_examine(server, findings, FINDINGS_MAX);
		examined = uv_hrtime();
	}
	count = found;
	if (cursor >= count)
		return 0;
	count -= cursor;
	if (count > max)
		count = max;
	memcpy(out, findings + cursor, count * sizeof(findings[0]));
	return count;
}

static const struct list {
	uint16_t reply;
	size_t item_size;
	list_source source;
} lists[] = {
	[HMM_OP_CLIENTS] = { HMM_OP_CLIENTS_REPLY, sizeof(struct hmm_record_client_info), list_clients },
	[HMM_OP_OWNERS] = { HMM_OP_OWNERS_REPLY, sizeof(struct hmm_record_owner_info), list_owners },
	[HMM_OP_MIRRORS] = { HMM_OP_MIRRORS_REPLY, sizeof(struct hmm_record_mirror_info), list_mirrors },
	[HMM_OP_POOLS] = { HMM_OP_POOLS_REPLY, sizeof(struct hmm_record_pool_info), list_pools },
	[HMM_OP_STATS] = { HMM_OP_STATS_REPLY, sizeof(struct hmm_record_stat_info), list_stats },
	[HMM_OP_DOCTOR] = { HMM_OP_DOCTOR_REPLY, sizeof(struct hmm_record_finding), list_findings },
};

void admin_list(struct server *server, struct letter *letter)
{
	const struct list *list = &lists[letter->message->opcode];
	unsigned int count, max = (unsigned int)(LIST_BYTES / list->item_size);
	struct list_reply *reply;

	/* One record more than is sent shows whether there are more. */
	reply = letter_reply(letter, list->reply, sizeof(*reply) + (max + 1) * list->item_size);
	if (!reply)
		return;
	count = list->source(server, letter->message, reply->items, max + 1);
	reply->more = count > max;
	reply->count = count > max ? max : count;
	reply->header.size = (uint32_t)(sizeof(*reply) + reply->count * list->item_size);
}

void admin_usage(struct server *server, struct letter *letter, const uid_t *only)
{
	enum { MOST = LIST_BYTES / sizeof(struct hmm_record_usage_info) };
	static struct quota_usage usage[MOST + 1];
	const struct hmm_msg_usage *message = (const void *)letter->message;
	struct hmm_msg_usage_reply *reply;
	unsigned int i, count = quota_list(&server->quota, only, message->cursor, usage, MOST + 1);

	reply = letter_reply(letter, HMM_OP_USAGE_REPLY, sizeof(*reply) + count * sizeof(reply->items[0]));
	if (!reply)
		return;
	reply->more = count > MOST;
	reply->count = count > MOST ? MOST : count;
	reply->header.size = (uint32_t)(sizeof(*reply) + reply->count * sizeof(reply->items[0]));
	for (i = 0; i < reply->count; i++) {
		reply->items[i].uid = usage[i].uid;
		reply->items[i].used = usage[i].used;
		reply->items[i].limit = usage[i].limit == QUOTA_UNLIMITED ? 0 : usage[i].limit;
		HMM_MSG_TEXT(reply->items[i].name, usage[i].key);
	}
}

void admin_status(struct server *server, struct letter *letter)
{
	const uint64_t full = HMM_FEATURE_MOVE | HMM_FEATURE_POISON | HMM_FEATURE_PAGEMAP_SCAN;
	struct hmm_msg_status_reply *reply;
	const struct peer *peer;

	reply = letter_reply(letter, HMM_OP_STATUS_REPLY, sizeof(*reply));
	if (!reply)
		return;
	engine_totals(server->engine, reply);
	reply->pid = (uint32_t)getpid();
	reply->uid = geteuid();
	reply->uptime_ns = uv_hrtime() - server->started;
	reply->incarnation = engine_incarnation(server->engine);
	reply->features = engine_features(server->engine);
	reply->workers = server->workers;
	reply->clients = server->n_peers;
	for (peer = server->peers; peer; peer = peer->next)
		reply->windows += peer->windows;
	HMM_MSG_TEXT(reply->version, server->version);
	HMM_MSG_TEXT(reply->socket, server->path);
	reply->kernel_tier = (reply->features & full) == full ? 2 : 1;
}

void admin_feature(struct server *server, struct letter *letter)
{
	const struct hmm_msg_feature *asked = (const void *)letter->message;
	const char *why = engine_feature_reason(server->engine, asked->feature);
	struct hmm_msg_feature_reply *reply;

	if (!why) {
		letter_fail(letter, -EINVAL, "%#llx is no feature",
			    (unsigned long long)asked->feature);
		return;
	}
	reply = letter_reply(letter, HMM_OP_FEATURE_REPLY, sizeof(*reply));
	if (reply)
		HMM_MSG_TEXT(reply->why, why);
}
