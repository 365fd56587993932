// SPDX-License-Identifier: GPL-2.0-or-later
/* clients.c - `hmmctl clients`: every connection of hmmd. */
#include <stdlib.h>

#include "hmmctl.h"
#include "output.h"

static const struct column columns[] = {
	{ "id", "ID", COLUMN_NUMBER },
	{ "pid", "PID", COLUMN_NUMBER },
	{ "uid", "UID", COLUMN_NUMBER },
	{ "role", "ROLE", COLUMN_TEXT },
	{ "owner", "OWNER", COLUMN_NUMBER },
	{ "mirrors", "MIRRORS", COLUMN_NUMBER },
	{ "windows", "WINDOWS", COLUMN_NUMBER },
	{ "fds", "FDS", COLUMN_NUMBER },
	{ "connected_ns", "SINCE", COLUMN_AGO },
	{ "name", "NAME", COLUMN_TEXT },
	{ NULL },
};

static bool fits(const struct selection *selection, const struct hmm_record_client_info *client)
{
	bool pid = !selection->n_pids, owner = !selection->n_owners;

	for (size_t i = 0; i < selection->n_pids; i++)
		pid |= selection->pids[i] == client->pid;
	for (size_t i = 0; i < selection->n_owners; i++)
		owner |= selection->owners[i] == client->owner;
	return pid && owner;
}

int command_clients(struct context *context)
{
	struct hmm_record_client_info *clients;
	struct hmm_msg_clients request;
	struct json_object *array;
	long n, kept = 0;

	HMM_MSG_INIT(request, HMM_OP_CLIENTS, 0);
	n = link_list(&context->link, &request, sizeof(*clients), &clients);
	if (n < 0)
		return report_link_error(&context->link);
	for (long i = 0; i < n; i++)
		if (fits(&context->selection, &clients[i]))
			clients[kept++] = clients[i];
	array = output_records(HMM_OP_CLIENTS_REPLY, clients, sizeof(*clients), kept);
	free(clients);
	if (context->json) {
		output_json_named("clients", array);
	} else {
		output_table(array, columns, "nobody is connected");
		json_object_put(array);
	}
	return kept || selection_is_empty(&context->selection) ? STATUS_OK :
								 report_nothing("client");
}
