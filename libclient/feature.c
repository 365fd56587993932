/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * feature.c - what can be done for an address space, and why not the rest.
 *
 * The bits are what hmmd said when the handle was opened, or reopened. Words are hmmd's, asked for
 * one by one; what an owner lacks and its hmmd has is a matter of how it was opened.
 *
 * Any thread may call. Asking fails as every request does.
 */
#include <stdio.h>

#include "space.h"

uint64_t hmm_features(struct hmm *hmm)
{
	return hmmc_space_check(hmm) ? 0 : __atomic_load_n(&hmm->features, __ATOMIC_RELAXED);
}

const char *hmm_features_name(uint64_t feature)
{
	for (const struct hmm_value_name *name = hmm_feature_names; name->name; name++)
		if (name->value == feature)
			return name->name;
	return NULL;
}

/* Return: the length, or an error. */
static int ask(struct hmm *hmm, uint64_t feature, char *text, size_t size)
{
	const struct hmm_msg_feature_reply *reply;
	struct request *request;
	int length;

	request = hmmc_request_new(hmm->connection, HMM_OP_FEATURE, sizeof(struct hmm_msg_feature));
	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	((struct hmm_msg_feature *)request->message)->feature = feature;
	length = hmmc_request_call(request);
	reply = (const struct hmm_msg_feature_reply *)request->reply;
	if (!length)
		length = snprintf(text, size, "%.*s", (int)sizeof(reply->why), reply->why);
	hmmc_request_free(request);
	return length;
}

int hmm_features_reason(struct hmm *hmm, uint64_t feature, char *text, size_t size)
{
	int length = hmmc_space_check(hmm);

	if (length)
		return length;
	if (!hmm_features_name(feature))
		return hmmc_fail(-EINVAL, "%#llx is not one bit of HMM_HAS_*", (unsigned long long)feature);
	if (!text && size)
		return hmmc_fail(-EINVAL, "text is NULL");
	if (__atomic_load_n(&hmm->features, __ATOMIC_RELAXED) & feature)
		return snprintf(text, size, "%s", "");
	length = ask(hmm, feature, text, size);
	if (length)
		return length;
	return snprintf(text, size, "%s",
			feature == HMM_HAS_MOVE ?
				"the owner was opened with HMM_OPEN_BASE_ENGINE" :
				"the owner was opened under an hmmd that did not have it; open it anew");
}
