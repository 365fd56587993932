/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * protect.c - the owner's devices follow its mprotect().
 *
 * The kernel tells nobody of it. So the library stands before libc's mprotect() and
 * pkey_mprotect(): the call is made, then hmmd is asked to follow, and when the program
 * goes on no window shows what it may not. CPU first, for hmmd then looks at the mappings as they
 * are: nothing has to be foreseen, and a call that the kernel refuses halfway (a hole, a
 * mapping that may not be had so) is followed as far as it went.
 *
 * Most calls are about memory of which nothing was ever on a device, and hmmd is not
 * asked: a block's sequence number is 0 until its first transit, or a device's write in place. (One that begins just
 * then, by the rights of before, meets a UFFDIO_MOVE that refuses. Without MOVE
 * hmmd is always asked.)
 *
 * A call that libc makes for itself (stacks, malloc's heaps) does not come by here; it only
 * adds rights. Protection keys are each thread's own affair: what is followed is what the
 * mapping allows. Where hmmd is gone its windows are closed, and there is nobody to ask.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clerk.h"
#include "dispatch.h"
#include "protect.h"
#include "space.h"

/* Until memory is asked for again that is short here. */
#define RETRY_NS	1000000L
/* Of more than so much the numbers are not looked at one by one. */
#define LOOK_MAX	(64UL << 30)

__attribute__((visibility("default"))) int mprotect(void *addr, size_t length, int protection);
__attribute__((visibility("default"))) int pkey_mprotect(void *addr, size_t length, int protection,
							 int key);

/* Whether any of it has ever been mirrored, or a window has been refused something. */
static bool concerns_devices(const struct hmm *hmm, uint64_t start, uint64_t end)
{
	const uint64_t *numbers = hmm->owner->table + HMM_TABLE_ENTRIES;

	if (!(__atomic_load_n(&hmm->features, __ATOMIC_RELAXED) & HMM_FEATURE_MOVE) || end - start > LOOK_MAX ||
	    __atomic_load_n(&hmm->owner->orders->refused, __ATOMIC_SEQ_CST))
		return true;
	for (uint64_t block = start >> HMM_BLOCK_SHIFT; block <= (end - 1) >> HMM_BLOCK_SHIFT; block++)
		if (__atomic_load_n(&numbers[block], __ATOMIC_SEQ_CST))
			return true;
	return false;
}

/* False: memory was short here. Where hmmd's is, or its user's share, it is asked again for as long as it takes, also where nobody waits. */
static bool ask_once(struct hmm *hmm, uint64_t start, uint64_t length)
{
	struct request *request = hmmc_request_new(hmm->connection, HMM_OP_PROTECT,
						   sizeof(struct hmm_msg_protect));
	struct hmm_msg_protect *message;
	int error;

	if (!request)
		return false;
	message = (struct hmm_msg_protect *)request->message;
	message->addr = start;
	message->length = length;
	request->prepare = hmmc_prepare_owner;
	request->insists = true;
	if (hmmc_dispatch_is_current()) {
		/* hmmd may be waiting for this very callback. */
		request->complete = hmmc_request_free;
		hmmc_request_post(request);
		return true;
	}
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error != -ENOMEM;
}

static void ask_hmmd(struct hmm *hmm, uint64_t start, uint64_t length)
{
	/* Windows keep the rights of before until it is asked, or closed for good. */
	while (!ask_once(hmm, start, length) && !__atomic_load_n(&hmm->lost, __ATOMIC_ACQUIRE))
		hmmc_dispatch_nap(RETRY_NS);
}

/* @result: of the call. One that failed may have changed what lies before the mapping that it failed at, whatever the error. */
static int follow(int result, void *addr, size_t length)
{
	uint64_t start = (uint64_t)addr;
	int error = errno;
	struct hmm *hmm;

	length = (length + HMM_PAGE_SIZE - 1) & ~(HMM_PAGE_SIZE - 1);
	/* The library's own threads protect no memory of the program's. */
	if (!length || start % HMM_PAGE_SIZE || start >= HMM_VA_END || hmmc_thread_is_private())
		return result;
	if (length > HMM_VA_END - start)
		length = HMM_VA_END - start;
	hmm = hmmc_space_enter_own();
	if (hmm) {
		if (concerns_devices(hmm, start, start + length))
			ask_hmmd(hmm, start, length);
		hmmc_space_leave(hmm);
	}
	errno = error;
	return result;
}

int hmm_internal_mprotect(void *addr, size_t length, int protection)
{
	return follow((int)syscall(SYS_mprotect, addr, length, protection), addr, length);
}

int hmm_internal_pkey_mprotect(void *addr, size_t length, int protection, int key)
{
	return follow((int)syscall(SYS_pkey_mprotect, addr, length, protection, key), addr, length);
}

int mprotect(void *addr, size_t length, int protection)
{
	return hmm_internal_mprotect(addr, length, protection);
}

int pkey_mprotect(void *addr, size_t length, int protection, int key)
{
	return hmm_internal_pkey_mprotect(addr, length, protection, key);
}
