// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * doctor.c - `hmmctl doctor`: what hmmd finds wrong with itself, its machine
 * and its settings at this moment, each with its fix; and what would keep a program here from being mirrored.
 */
#include <stdio.h>
#include <stdlib.h>

#include "hmmctl.h"
#include "output.h"
#include "surroundings.h"

static const char *const severity_names[] = { "note", "note", "warning", "error" };
#define WORST 3U

static const char *severity_name(uint32_t severity)
{
	return severity_names[severity < WORST ? severity : WORST];
}

static void print_finding(const struct hmm_record_finding *finding)
{
	printf("%s: %s: %s\n", severity_name(finding->severity), finding->name, finding->text);
	if (finding->fix[0])
		printf("  fix: %s\n", finding->fix);
}

static struct json_object *findings_json(const struct hmm_record_finding *findings, long n)
{
	struct json_object *array = output_records(HMM_OP_DOCTOR_REPLY, findings,
						   sizeof(*findings), n);

	for (long i = 0; i < n; i++)
		json_object_object_add(json_object_array_get_idx(array, (size_t)i), "severity",
				       json_object_new_string(severity_name(findings[i].severity)));
	return array;
}

int command_doctor(struct context *context)
{
	struct hmm_record_finding *findings;
	struct hmm_msg_doctor request;
	uint32_t worst = 0;
	long n;

	HMM_MSG_INIT(request, HMM_OP_DOCTOR, 0);
	n = link_list(&context->link, &request, sizeof(*findings), &findings);
	if (n < 0)
		return report_link_error(&context->link);
	surroundings_examine(&context->link, &findings, &n);
	for (long i = 0; i < n; i++)
		if (worst < findings[i].severity)
			worst = findings[i].severity;

	if (context->json)
		output_json_named("findings", findings_json(findings, n));
	else if (!n)
		puts("nothing is wrong");
	for (long i = 0; !context->json && i < n; i++)
		print_finding(&findings[i]);
	free(findings);
	return worst >= WORST ? STATUS_FAILED : STATUS_OK;
}
