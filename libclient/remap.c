/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * remap.c - mremap() in an owner.
 *
 * hmmd watches memory by runs of blocks, and watching a part of a mapping splits
 * it, invisibly but for one call: mremap() takes one mapping only and refuses the
 * rest with EFAULT. A program that made one mapping must not see that. So the
 * library stands before libc's mremap(): where it fails so, the range comes home and is
 * watched no more, which makes it one mapping again, and the call is repeated.
 *
 * A call that fails for another reason, or would have failed without hmmd, fails
 * as ever. Any thread; library threads' own calls pass straight through.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "remap.h"
#include "space.h"

/*
 * Mappings that were several before hmmd looked at them stay so: then it is EFAULT after
 * half a second.
 */
#define TRIES		50
#define MOMENT_NS	10000000L

__attribute__((visibility("default"))) void *mremap(void *old, size_t old_size, size_t new_size,
						    int flags, ...);

static void *call(void *old, size_t old_size, size_t new_size, int flags, void *new)
{
	return (void *)syscall(SYS_mremap, old, old_size, new_size, flags, new);
}

/* With the range at home. hmmd stops watching it a moment after that. */
static void *call_until_whole(void *old, size_t old_size, size_t new_size, int flags, void *new)
{
	const struct timespec moment = { .tv_nsec = MOMENT_NS };
	void *map;

	for (unsigned int tries = 0; tries < TRIES; tries++) {
		map = call(old, old_size, new_size, flags, new);
		if (map != MAP_FAILED || errno != EFAULT)
			break;
		nanosleep(&moment, NULL);
		errno = EFAULT;
	}
	return map;
}

void *hmm_internal_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new)
{
	uint64_t start = (uint64_t)old,
		 length = (old_size + HMM_PAGE_SIZE - 1) & ~(HMM_PAGE_SIZE - 1);
	void *map = call(old, old_size, new_size, flags, new);
	struct hmm *hmm;
	int error;

	if (map != MAP_FAILED || errno != EFAULT || hmmc_thread_is_private() || !length ||
	    start % HMM_PAGE_SIZE || start + length > HMM_VA_END)
		return map;
	hmm = hmmc_space_lock_own();
	if (hmm && hmmc_space_check(hmm) == 0 &&
	    hmmc_statement_pause(hmm, start, length, true) == 0) {
		map = call_until_whole(old, old_size, new_size, flags, new);
		error = errno;
		hmmc_statement_pause(hmm, start, length, false);
	} else {
		error = EFAULT;
	}
	hmmc_space_unlock_own();
	if (map == MAP_FAILED)
		errno = error;
	return map;
}

void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
	void *new = NULL;
	va_list args;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_start(args, flags);
		new = va_arg(args, void *);
		va_end(args);
	}
	return hmm_internal_mremap(old, old_size, new_size, flags, new);
}
