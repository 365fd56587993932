/* SPDX-License-Identifier: GPL-2.0-or-later */
/* features.c - what can be done here, and that there are words for all the rest. */
#include "mirror.h"

#define ALL (HMM_HAS_MOVE | HMM_HAS_EVENT_FORK | HMM_HAS_WP_SHMEM | HMM_HAS_POISON | HMM_HAS_PAGEMAP_SCAN | \
	     HMM_HAS_PROCMAP_QUERY | HMM_HAS_IO_URING | HMM_HAS_HUGE_SHMEM | HMM_HAS_HUGETLB | HMM_HAS_GUARD | \
	     HMM_HAS_USER_MODE | HMM_HAS_COLLAPSE | HMM_HAS_NUMA | HMM_HAS_TRACK_PAGEMAP_SCAN | \
	     HMM_HAS_TRACK_UFFD_WP | HMM_HAS_TRACK_SOFT_DIRTY)

#define DEVICE_MEMORY (16UL << 20)

static void each_has_a_name_and_a_reason(void)
{
	char text[300], same[300];

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_features(hmm) & ~ALL, 0);
	for (unsigned int i = 0; i < 64; i++) {
		uint64_t bit = 1ULL << i;
		int length;

		CHECK_EQ(hmm_features_name(bit) != NULL, (ALL & bit) != 0);
		memset(text, 'x', sizeof(text));
		length = hmm_features_reason(hmm, bit, text, sizeof(text));
		if (!(ALL & bit)) {
			CHECK_EQ(length, -EINVAL);
			CHECK(text[0] == 'x');
		} else if (hmm_features(hmm) & bit) {
			CHECK_EQ(length, 0);
			CHECK(text[0] == 0);
		} else {
			printf("no %s: %s\n", hmm_features_name(bit), text);
			CHECK(length > 10 && (size_t)length == strlen(text));
			/* Cut short, it is told how long it is. */
			CHECK_EQ(hmm_features_reason(hmm, bit, NULL, 0), length);
			memset(same, 'x', sizeof(same));
			CHECK_EQ(hmm_features_reason(hmm, bit, same, 8), length);
			CHECK_EQ(strlen(same), 7);
			CHECK(!strncmp(same, text, 7));
			CHECK(same[8] == 'x');
		}
	}
	CHECK(!strcmp(hmm_features_name(HMM_HAS_MOVE), "move"));
	test_close();
}

static void bad_input(void)
{
	char text[8] = "as it is";

	CHECK_EQ(hmm_features(NULL), 0);
	CHECK_EQ(hmm_features_reason(NULL, HMM_HAS_NUMA, text, sizeof(text)), -EINVAL);
	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_features_reason(hmm, 0, text, sizeof(text)), -EINVAL);
	CHECK_EQ(hmm_features_reason(hmm, HMM_HAS_MOVE | HMM_HAS_NUMA, text, sizeof(text)), -EINVAL);
	CHECK_EQ(hmm_features_reason(hmm, HMM_HAS_USER_MODE, NULL, 8), -EINVAL);
	CHECK(!hmm_features_name(0));
	CHECK(!hmm_features_name(~0ULL));
	CHECK(!memcmp(text, "as it is", 8));
	test_close();
}

/* What the owner was opened without, its hmmd may have. */
static void of_the_base_engine(void)
{
	char text[300];

	test_open(HMM_OPEN_BASE_ENGINE, DEVICE_MEMORY);
	CHECK(!(hmm_features(hmm) & HMM_HAS_MOVE));
	CHECK(hmm_features_reason(hmm, HMM_HAS_MOVE, text, sizeof(text)) > 0);
	CHECK(strstr(text, "UFFDIO_MOVE") || strstr(text, "HMM_OPEN_BASE_ENGINE"));
	test_close();
}

/* Of an hmmd that was told to do without. */
static void as_it_was_told(void)
{
	char text[300];

	test_open(0, DEVICE_MEMORY);
	CHECK_EQ(hmm_features(hmm) & (HMM_HAS_MOVE | HMM_HAS_IO_URING), 0);
	CHECK(hmm_features_reason(hmm, HMM_HAS_MOVE, text, sizeof(text)) > 0);
	CHECK(strstr(text, "--no-move"));
	CHECK(hmm_features_reason(hmm, HMM_HAS_IO_URING, text, sizeof(text)) > 0);
	CHECK(strstr(text, "--no-io-uring"));
	test_close();
}

static const struct test_case cases[] = {
	{ "each-has-a-name-and-a-reason", each_has_a_name_and_a_reason, false },
	{ "bad-input", bad_input, false },
	{ "of-the-base-engine", of_the_base_engine, false },
	{ "as-it-was-told", as_it_was_told, true },
	{ 0 },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases);
}
