/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * range.c - ranges: looking at an owner's pages, and whether what was seen is so still.
 *
 * The happy path: all that a range wants stands in the table that hmmd shares, and hmm_range_fault()
 * is a load per page. What does not makes one message of the whole part (64 MiB at
 * most, which ends with a block, so that no block is in two) in which it lies; hmmd's answer has a byte for each
 * page. pfns[], which hold what is wanted, are written at the very end, and only then.
 *
 * Each block has a number that hmmd increments before and after each change, so it is odd in
 * between. They only grow: the sum over the range's blocks is the same if and only if each is. That
 * sum is all that a range remembers (with the table's own count in its high bits, for a new hmmd's
 * table begins anew).
 *
 * hmmd is not told of a range before it has to be asked; from then on it keeps the range watched until
 * it is released. Nothing needs to be said again after a restart.
 *
 * Runs in the program's threads. A range belongs to one of them at a time. Its mirror may be
 * unregistered in another: a range keeps what it needs of it, asks nothing through it from then on
 * (the number may be another mirror's), and is invalid for good when it is gone.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "arena.h"
#include "devmem.h"
#include "dispatch.h"
#include "mapping.h"
#include "range.h"

#define GENERATION_SHIFT 48
#define FEW_PAGES	 1024UL /* whose answers fit on the stack */

/* A page in the table or in an answer: HMM_RANGE_ENTRY_* and the holder's index above. */
#define HOLDER_SHIFT 4

/* ---- numbers ---------------------------------------------------------------- */

static const uint64_t *number_of(const struct hmm *hmm, uint64_t addr)
{
	return hmm->table + HMM_TABLE_ENTRIES + (addr >> HMM_BLOCK_SHIFT);
}

/* False: something is changing. */
static bool sum_up(const struct hmm *hmm, uint64_t start, uint64_t end, uint64_t *sum)
{
	const uint64_t *last = number_of(hmm, end - 1);
	uint64_t odd = 0;

	*sum = 0;
	for (const uint64_t *word = number_of(hmm, start); word <= last; word++) {
		uint64_t number = __atomic_load_n(word, __ATOMIC_ACQUIRE);

		*sum += number;
		odd |= number & 1;
	}
	return !odd;
}

static uint64_t generation(const struct hmm *hmm)
{
	return (uint64_t)__atomic_load_n(&hmm->tables, __ATOMIC_ACQUIRE) << GENERATION_SHIFT;
}

/* What was read before stays before: entries, then numbers. */
static bool read_numbers(const struct hmm_range *range, uint64_t *numbers)
{
	const struct hmm *hmm = range->priv->hmm;
	bool stable;

	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	stable = sum_up(hmm, range->start, range->end, numbers);
	*numbers += generation(hmm);
	return stable;
}

static bool is_alive(const struct hmm_range *range)
{
	const struct hmm_range_private *private = range ? range->priv : NULL;

	return private && hmmc_range_is_registered(private) && !hmmc_space_check(private->hmm) &&
	       !__atomic_load_n(&private->mirror->gone, __ATOMIC_ACQUIRE) &&
	       !__atomic_load_n(&private->hmm->pulse->dead, __ATOMIC_ACQUIRE);
}

/* From here on changes count. */
static bool begin_anew(struct hmm_range *range)
{
	range->priv->stable = read_numbers(range, &range->priv->numbers);
	/* What is read after this is not older than the numbers. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return range->valid = range->priv->stable;
}

bool hmm_range_valid(struct hmm_range *range)
{
	uint64_t numbers;

	if (!is_alive(range))
		return range ? range->valid = false : false;
	range->valid = range->priv->stable && read_numbers(range, &numbers) &&
		       numbers == range->priv->numbers;
	return range->valid;
}

/* A change takes microseconds, or as long as drivers take to answer. */
static void sleep_a_little(unsigned int tries)
{
	const long us = tries < 6 ? 10L << tries : 1000;

	/* It may be waiting for a callback of this very thread. */
	hmmc_dispatch_nap(us * 1000);
}

bool hmm_range_wait_until_valid(struct hmm_range *range, unsigned long timeout)
{
	uint64_t began = clock_ms();

	for (unsigned int tries = 0; is_alive(range); tries++) {
		if (begin_anew(range))
			return true;
		if (clock_ms() - began >= timeout)
			break;
		sleep_a_little(tries);
	}
	if (range)
		range->valid = false;
	return false;
}

unsigned long hmm_range_read_begin(struct hmm_range *range)
{
	for (unsigned int tries = 0; is_alive(range); tries++) {
		if (begin_anew(range))
			return range->priv->numbers;
		sleep_a_little(tries);
	}
	return 0;
}

bool hmm_range_read_retry(struct hmm_range *range, unsigned long number)
{
	uint64_t numbers;

	return !is_alive(range) || !read_numbers(range, &numbers) || numbers != number;
}

/* ---- registering --------------------------------------------------------------- */

/*
 * A range that was never set has anything in priv, so that is believed only where it leads into the arena and
 * back. A copy of a registered range is none.
 */
static bool is_taken(const struct hmm_range *range)
{
	const struct hmm_range_private *private = range->priv;

	return (uintptr_t)private % _Alignof(struct hmm_range_private) == 0 && hmmc_arena_contains(private) &&
	       hmmc_arena_contains((const char *)(private + 1) - 1) && private->range == range;
}

int hmm_range_register(struct hmm_range *range, struct hmm_mirror *mirror, unsigned long start,
		       unsigned long end, unsigned int page_shift)
{
	struct hmm_range_private *private;
	unsigned long page;

	if (!range || !mirror || !mirror->priv)
		return hmmc_fail(
			-EINVAL,
			"the range or the mirror is NULL, or the mirror is not registered");
	if (is_taken(range))
		return hmmc_fail(-EINVAL, "the range is registered already");
	if (page_shift < HMM_PAGE_SHIFT || page_shift > HMM_REGION_SHIFT)
		return hmmc_fail(-EINVAL, "there are no pages of 1 << %u bytes", page_shift);
	page = 1UL << page_shift;
	if (start >= end || end > HMM_VA_END || start % page || end % page)
		return hmmc_fail(
			-EINVAL,
			"the range is empty, ends above user space or is not of whole pages of %lu bytes",
			page);
	/* A fork's child has no part in it, and must not wait for its lock. */
	if (hmmc_space_check_handle(mirror->hmm))
		return hmmc_fail(-EFAULT, "the mirror's owner is gone");
	private = hmmc_arena_alloc(sizeof(*private));
	if (!private)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	private->mirror = hmmc_mirror_get(mirror);
	if (!private->mirror) {
		hmmc_arena_free(private, sizeof(*private));
		return hmmc_fail(-EINVAL, "the mirror is not registered");
	}
	private->hmm = private->mirror->hmm;
	private->range = range;
	/* A group's stands for its first member, which has one of its own. */
	private->group = private->mirror->mirror != mirror;
	if (hmmc_space_check(private->hmm) || __atomic_load_n(&private->mirror->gone, __ATOMIC_ACQUIRE)) {
		hmmc_mirror_put(private->mirror);
		hmmc_arena_free(private, sizeof(*private));
		return hmmc_fail(-EFAULT, "the mirror's owner is gone");
	}
	range->hmm = private->hmm;
	range->start = start;
	range->end = end;
	range->page_shift = (uint8_t)page_shift;
	range->priv = private;
	begin_anew(range);
	return 0;
}

static bool same_connection(struct hmm_range_private *private)
{
	struct connection *connection = private->hmm->connection;
	bool same;

	futex_lock(&connection->lock);
	same = connection->state == CONNECTION_UP && connection->round == private->round;
	futex_unlock(&connection->lock);
	return same;
}

static int prepare_release(struct request *request)
{
	const struct hmm_range_private *private = request->data;

	((struct hmm_msg_range_release *)request->message)->mirror = private->mirror->id;
	return 0;
}

/* Another hmmd, and this one on another connection, has no hold. */
static void release(struct hmm_range_private *private)
{
	struct request *request;

	if (!private->hold || (!same_connection(private) && !private->reached))
		return;
	request = hmmc_request_new(private->hmm->connection, HMM_OP_RANGE_RELEASE,
				   sizeof(struct hmm_msg_range_release));
	if (!request)
		return;
	((struct hmm_msg_range_release *)request->message)->hold = private->hold;
	request->data = private;
	request->prepare = prepare_release;
	hmmc_request_call(request);
	hmmc_request_free(request);
}

void hmm_range_unregister(struct hmm_range *range)
{
	struct hmm_range_private *private = range ? range->priv : NULL;

	if (!private)
		return;
	range->priv = NULL;
	range->hmm = NULL;
	range->valid = false;
	if (hmmc_range_is_registered(private)) {
		/* In a fork's child everything is the parent's. */
		if (hmmc_space_check_handle(private->hmm))
			return;
		if (hmmc_space_check(private->hmm) == 0)
			release(private);
	}
	hmmc_mirror_put(private->mirror);
	private->range = NULL;
	hmmc_arena_free(private, sizeof(*private));
}

/* ---- entries ---------------------------------------------------------------------- */

int hmmc_range_check_arrays(const struct hmm_range *range)
{
	const uint64_t *flags = range->flags, *values = range->values;
	uint64_t number, all = 0;

	if (!range->pfns || !flags || !values)
		return hmmc_fail(-EINVAL, "pfns, flags or values is NULL");
	if (range->pfn_shift > HMM_PAGE_SHIFT)
		return hmmc_fail(-EINVAL, "pfn_shift is %u, more than %u", range->pfn_shift,
				 HMM_PAGE_SHIFT);
	number = ((1UL << 40) - 1) << range->pfn_shift;
	for (unsigned int i = 0; i < HMM_PFN_FLAG_MAX; i++)
		all |= flags[i];
	if (all & number)
		return hmmc_fail(-EINVAL, "a flag lies in the bits of the page's number");
	for (unsigned int i = 0; i < HMM_PFN_VALUE_MAX; i++)
		if (values[i] & flags[HMM_PFN_VALID])
			return hmmc_fail(-EINVAL, "the value of NONE, ERROR or SPECIAL has a bit of VALID: "
						  "it would read as a page");
	if (!flags[HMM_PFN_VALID] || values[HMM_PFN_NONE] == values[HMM_PFN_ERROR] ||
	    values[HMM_PFN_NONE] == values[HMM_PFN_SPECIAL])
		return hmmc_fail(-EINVAL,
				 "VALID is no bit, or the value of NONE cannot be told from ERROR or SPECIAL");
	return 0;
}

static bool has(uint64_t bits, uint64_t flag)
{
	return flag && (bits & flag) == flag;
}

uint8_t hmmc_range_want(const struct hmm_range *range, size_t i)
{
	uint64_t bits = (range->pfns[i] & range->pfn_flags_mask) | range->default_flags;

	if (!has(bits, range->flags[HMM_PFN_VALID]))
		return 0;
	return HMM_RANGE_WANT_READ |
	       (has(bits, range->flags[HMM_PFN_WRITE]) ? HMM_RANGE_WANT_WRITE : 0) |
	       (range->priv->group || has(bits, range->flags[HMM_PFN_DEVICE_PRIVATE])
			? HMM_RANGE_WANT_HOME
			: 0);
}

/* A copy of this mirror's is its own page. */
static uint8_t entry_of(const struct hmm_range_private *private, unsigned long addr, uint64_t entry)
{
	uint64_t holder = (entry >> HMM_TABLE_PFN_SHIFT) / HMM_TABLE_DEVICE_PFN - 1;
	uint8_t result = 0;

	if (!(entry & HMM_TABLE_VALID))
		return 0;
	result = HMM_RANGE_ENTRY_VALID | (entry & HMM_TABLE_WRITE ? HMM_RANGE_ENTRY_WRITE : 0);
	if (entry & HMM_TABLE_DEVICE && hmmc_mirror_has_copy(private->mirror, addr, entry))
		holder = private->mirror->id & 0xff;
	if (!private->mirror->faults &&
	    (!(entry & HMM_TABLE_DEVICE) || holder != (private->mirror->id & 0xff)))
		return 0;
	if (entry & HMM_TABLE_DEVICE)
		result |= HMM_RANGE_ENTRY_DEVICE | (uint8_t)(holder << HOLDER_SHIFT);
	if (entry & HMM_TABLE_COHERENT)
		result |= HMM_RANGE_ENTRY_COHERENT;
	return result;
}

static bool is_own(const struct hmm_range_private *private, uint8_t entry)
{
	return entry >> HOLDER_SHIFT == (private->mirror->id & 0xff);
}

static bool is_private(uint8_t entry)
{
	return entry & HMM_RANGE_ENTRY_DEVICE && !(entry & HMM_RANGE_ENTRY_COHERENT);
}

/* Whether a page that stands in the table is as wanted. */
static bool is_as_wanted(const struct hmm_range_private *private, uint8_t entry, uint8_t want)
{
	if (!(entry & HMM_RANGE_ENTRY_VALID))
		return false;
	if (want & HMM_RANGE_WANT_WRITE && !(entry & HMM_RANGE_ENTRY_WRITE))
		return false;
	return !want || !is_private(entry) ||
	       (is_own(private, entry) && !(want & HMM_RANGE_WANT_HOME));
}

/* On a device: as the table has it, for only that knows where a page is that its driver alone reaches. */
static uint64_t device_pfn(const struct hmm_range *range, uint64_t addr, uint8_t entry)
{
	uint64_t now = __atomic_load_n(&range->priv->hmm->table[addr >> HMM_PAGE_SHIFT], __ATOMIC_ACQUIRE);

	if (now & HMM_TABLE_VALID && now & HMM_TABLE_DEVICE &&
	    (now >> HMM_TABLE_PFN_SHIFT) / HMM_TABLE_DEVICE_PFN == (uint64_t)(entry >> HOLDER_SHIFT) + 1)
		return now >> HMM_TABLE_PFN_SHIFT;
	/* A copy of another's page; or it has changed, and the range is not valid any more. */
	return (addr >> HMM_PAGE_SHIFT) + ((uint64_t)(entry >> HOLDER_SHIFT) + 1) * HMM_TABLE_DEVICE_PFN;
}

/* The driver's entry. */
static uint64_t encode(const struct hmm_range *range, uint64_t addr, uint8_t entry)
{
	uint64_t pfn = addr >> HMM_PAGE_SHIFT, result;

	if (!(entry & HMM_RANGE_ENTRY_VALID))
		return range->values[HMM_PFN_NONE];
	/* Coherent memory of another's device is the owner's memory to this one, and to a group. */
	if (is_private(entry) || (entry & HMM_RANGE_ENTRY_DEVICE && is_own(range->priv, entry) &&
				  !range->priv->group))
		pfn = device_pfn(range, addr, entry);
	result = hmm_device_entry_from_pfn(range, pfn);
	if (entry & HMM_RANGE_ENTRY_WRITE)
		result |= range->flags[HMM_PFN_WRITE];
	if (is_private(entry))
		result |= range->flags[HMM_PFN_DEVICE_PRIVATE];
	if (!(entry & HMM_RANGE_ENTRY_DEVICE))
		result |= (entry & HMM_RANGE_ENTRY_HUGE ? range->flags[HMM_PFN_HUGE] : 0) |
			  (entry & HMM_RANGE_ENTRY_ZERO ? range->flags[HMM_PFN_ZERO] : 0);
	return result;
}

/* ---- looking ------------------------------------------------------------------------- */

struct look {
	struct hmm_range *range;
	bool snapshot, block;
	uint8_t *entries; /* what was found, one for each page */
	uint64_t numbers; /* the sum that they belong to, so far */
	size_t done;	  /* pages */
	size_t own;	  /* ... of the mirror's device */
	enum hmm_range_stop stop;
};

/*
 * For how many pages, of @most, goes what is found of the first: the table's entries, from @words on, are the same but for
 * the pages' numbers. Of a coherent page nothing depends on where it is, and it is as wanted, whatever that is.
 */
static size_t run_at(const uint64_t *words, uint64_t now, size_t most)
{
	const uint64_t any = HMM_TABLE_VALID | HMM_TABLE_WRITE | HMM_TABLE_COHERENT, step = 1UL << HMM_TABLE_PFN_SHIFT;
	size_t n = 0;

	if ((now & any) != any)
		return 1;
	while (most - n >= RANGE_STRIDE && hmmc_range_counts_up(words + n, now + n * step, step))
		n += RANGE_STRIDE;
	return n ? n : 1;
}

/* From the table alone. False: hmmd has to be asked. */
static bool look_in_table(struct look *look, uint64_t start, uint64_t end)
{
	const struct hmm_range *range = look->range;
	const struct hmm *hmm = range->priv->hmm;
	const uint64_t *words = hmm->table + (start >> HMM_PAGE_SHIFT);
	const size_t first = (start - range->start) >> HMM_PAGE_SHIFT;
	const size_t stop = first + ((end - start) >> HMM_PAGE_SHIFT);
	uint64_t before, after;

	/* Whether huge pages are that is hmmd's to say. */
	if (range->page_shift != HMM_PAGE_SHIFT || !sum_up(hmm, start, end, &before))
		return false;
	/* And of which kind a page of the owner's is. */
	if (look->snapshot && range->flags[HMM_PFN_HUGE] | range->flags[HMM_PFN_ZERO])
		return false;
	for (size_t i = first, n; i < stop; i += n, words += n) {
		uint64_t now = __atomic_load_n(words, __ATOMIC_ACQUIRE);
		uint8_t entry = entry_of(range->priv, range->start + (i << HMM_PAGE_SHIFT), now);

		if (!is_as_wanted(range->priv, entry, look->snapshot ? 0 : hmmc_range_want(range, i)))
			return false;
		n = run_at(words, now, stop - i);
		memset(look->entries + i, entry, n);
	}
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (!sum_up(hmm, start, end, &after) || before != after)
		return false;
	look->numbers += before;
	look->done += (end - start) >> HMM_PAGE_SHIFT;
	return true;
}

static int prepare_look(struct request *request)
{
	struct hmm_range_private *private = request->data;

	/* Behind its unregistering, that number may soon be another's. */
	if (__atomic_load_n(&private->mirror->leaving, __ATOMIC_ACQUIRE))
		return -ENOENT;
	((struct hmm_msg_range_fault *)request->message)->mirror = private->mirror->id;
	/* In the clerk, which is about to send it on this connection. */
	futex_lock(&request->connection->lock);
	private->round = request->connection->round;
	futex_unlock(&request->connection->lock);
	return 0;
}

uint32_t hmmc_range_new_hold(struct hmm *hmm)
{
	uint32_t hold = __atomic_add_fetch(&hmm->holds, 1, __ATOMIC_RELAXED);

	return hold ? hold : __atomic_add_fetch(&hmm->holds, 1, __ATOMIC_RELAXED);
}

static struct request *new_request(const struct look *look, uint64_t start, uint64_t end)
{
	struct hmm_range *range = look->range;
	struct hmm_range_private *private = range->priv;
	size_t pages = (end - start) >> HMM_PAGE_SHIFT,
	       first = (start - range->start) >> HMM_PAGE_SHIFT;
	struct hmm_msg_range_fault *message;
	struct request *request;
	bool alike = true;

	for (size_t i = 1; i < pages && alike && !look->snapshot; i++)
		alike = hmmc_range_want(range, first + i) == hmmc_range_want(range, first);
	request = hmmc_request_new(private->hmm->connection, HMM_OP_RANGE_FAULT,
				   sizeof(*message) + (alike ? 1 : pages));
	if (!request)
		return NULL;
	message = (struct hmm_msg_range_fault *)request->message;
	if (!private->hold)
	private->hold = hmmc_range_new_hold(private->hmm);
	message->hold = private->hold;
	message->hold_start = range->start;
	message->hold_end = range->end;
	message->addr = start;
	message->length = end - start;
	message->flags = (look->snapshot ? HMM_RANGE_FLAGS_SNAPSHOT : 0) |
			 (look->block ? HMM_RANGE_FLAGS_BLOCK : 0);
	message->page_shift = range->page_shift;
	message->count = alike ? 1 : (uint32_t)pages;
	for (size_t i = 0; i < message->count && !look->snapshot; i++)
		message->wants[i] = hmmc_range_want(range, first + i);
	request->data = private;
	request->prepare = prepare_look;
	return request;
}

static int take_answer(struct look *look, const struct hmm_msg_range_fault_reply *reply,
		       uint64_t start, uint64_t end)
{
	size_t pages = (end - start) >> HMM_PAGE_SHIFT;
	size_t first = (start - look->range->start) >> HMM_PAGE_SHIFT;

	if (reply->count > pages || reply->error > 0 || (!reply->error && reply->count != pages))
		return hmmc_fail(-EPROTO, "hmmd answered for other pages than it was asked for");
	memcpy(look->entries + first, reply->entries, reply->count);
	look->numbers += reply->sequence;
	look->done += reply->count;
	look->stop = reply->stop;
	return reply->error;
}

static int ask(struct look *look, uint64_t start, uint64_t end)
{
	struct request *request = new_request(look, start, end);
	int error;

	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	error = hmmc_request_call(request);
	if (!error)
		error = take_answer(look, (const void *)request->reply, start, end);
	else if (error == -ESTALE || error == -ENOENT)
		/* The owner is gone; or its hmmd is, and the next one does not know it yet. */
		error = is_alive(look->range) ? (look->snapshot ? -EAGAIN : -EBUSY) : -EFAULT;
	hmmc_request_free(request);
	return error;
}

static int look_at_parts(struct look *look)
{
	const struct hmm_range *range = look->range;
	uint64_t next;
	int error = 0;

	for (uint64_t at = range->start; at < range->end && !error; at = next) {
		next = hmmc_range_part_end(range, at);
		if (!look_in_table(look, at, next))
			error = ask(look, at, next);
	}
	return error;
}

static int explain(const struct look *look, int error)
{
	unsigned long at = look->range->start + (look->done << HMM_PAGE_SHIFT);

	switch (error) {
	case -EAGAIN:
		return hmmc_fail(error, "a page is under way; ask again");
	case -EBUSY:
		return hmmc_fail(error, "the pages do not come to rest; ask again");
	case -EPERM:
		return hmmc_fail(error, "a mapping may not be read, or not be written");
	case -EINVAL:
		return hmmc_fail(error, "the pages are not of the range's page_shift, %u",
				 look->range->page_shift);
	case -EFAULT:
		if (look->stop != HMM_RANGE_STOP_END)
			return hmmc_fail(error,
					 "%#lx: nothing is mapped, it is not memory, or it is lost",
					 at);
		return hmmc_fail(error, "the owner is gone");
	case -ENOMEM:
		return hmmc_fail(error, "there is no memory to look at the pages");
	case -EPROTO:
		return error; /* said where it was found */
	default:
		return hmmc_fail(error, "hmmd cannot look at the pages: %s", strerror(-error));
	}
}

/* Of coherent memory the next page has the next number. */
static bool count_up(const uint8_t *entries)
{
	uint8_t other = 0;

	for (size_t i = 0; i < RANGE_STRIDE; i++)
		other |= entries[i] ^ entries[0];
	return entries[0] & HMM_RANGE_ENTRY_COHERENT && !other;
}

static void fill(struct look *look, int error)
{
	struct hmm_range *range = look->range;
	size_t pages = (range->end - range->start) >> HMM_PAGE_SHIFT;
	size_t found = error == -EPERM ? 0 : look->done, i = 0;

	while (i < found) {
		const uint64_t entry = encode(range, range->start + (i << HMM_PAGE_SHIFT), look->entries[i]);
		const size_t n = found - i >= RANGE_STRIDE && count_up(look->entries + i) ? RANGE_STRIDE : 1;

		if (n == RANGE_STRIDE)
			hmmc_range_count_up(range->pfns + i, entry, 1UL << range->pfn_shift);
		else
			range->pfns[i] = entry;
		if (look->entries[i] & HMM_RANGE_ENTRY_DEVICE && is_own(range->priv, look->entries[i]))
			look->own += n;
		i += n;
	}
	if (i < pages && error == -EFAULT && look->stop == HMM_RANGE_STOP_ERROR)
		range->pfns[i++] = range->values[HMM_PFN_ERROR];
	else if (i < pages && error == -EFAULT && look->stop == HMM_RANGE_STOP_SPECIAL)
		range->pfns[i++] = range->values[HMM_PFN_SPECIAL];
	for (; i < pages; i++)
		range->pfns[i] = range->values[HMM_PFN_NONE];
}

/* @invalid: what an invalid range is answered with. */
static long look_at(struct look *look, int invalid)
{
	struct hmm_range *range = look->range;
	uint64_t tables = generation(range->priv->hmm);
	int error = look_at_parts(look);

	if (!error) {
		range->priv->numbers = look->numbers + tables;
		range->priv->stable = true;
		if (!hmm_range_valid(range))
			return hmmc_fail(invalid,
					 "something changed in the range meanwhile; ask again");
	}
	if (!error || error == -EFAULT || error == -EPERM)
		fill(look, error);
	return error ? explain(look, error) : (long)look->done;
}

static long look(struct hmm_range *range, bool snapshot, bool block, size_t *own)
{
	struct look look = {.range = range, .snapshot = snapshot, .block = block};
	const int invalid = snapshot ? -EAGAIN : -EBUSY;
	uint8_t few[FEW_PAGES];
	size_t pages;
	long result;
	int error;

	if (!range || !range->priv)
		return hmmc_fail(-EINVAL, "the range is NULL or not registered");
	error = hmmc_range_check_arrays(range);
	if (!error)
		error = hmmc_dispatch_check();
	/* Here, too: hmmd is not asked for what the table says. */
	if (!error && range->priv->mirror->flags & HMM_MIRROR_FLAGS_TRACKED)
		error = hmmc_fail(-EOPNOTSUPP, "the mirror is tracked: hmm_mirror_copy() leads to its copies");
	if (error)
		return error;
	pages = (range->end - range->start) >> HMM_PAGE_SHIFT;
	look.entries = few;
	if (!is_alive(range)) {
		fill(&look, -EFAULT);
		return hmmc_fail(-EFAULT, "the owner, the mirror or hmmd is gone");
	}
	if (!hmm_range_valid(range))
		return hmmc_fail(invalid, "the range is not valid: wait until it is");
	if (pages > FEW_PAGES)
		look.entries = hmmc_map(NULL, pages, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (!look.entries)
		return hmmc_fail(-ENOMEM, "no memory to look at %zu pages", pages);
	result = look_at(&look, invalid);
	if (pages > FEW_PAGES)
		munmap(look.entries, pages);
	*own = look.own;
	return result;
}

long hmm_range_snapshot(struct hmm_range *range)
{
	size_t own;

	return look(range, true, false, &own);
}

long hmm_range_fault(struct hmm_range *range, bool block)
{
	size_t own;

	return look(range, false, block, &own);
}

long hmmc_range_fault(struct hmm_range *range, bool block, size_t *own)
{
	return look(range, false, block, own);
}

/* ---- pages of the driver's own memory --------------------------------------------------- */

/* The mirror's memory of that kind, and the first number of its part; NULL: it has none, or is gone. */
static struct hmm_devmem_private *part_of(const struct hmm_range *range, unsigned long *part)
{
	const struct hmm_mirror_private *mirror =
		range && range->priv && hmmc_range_is_registered(range->priv) ? range->priv->mirror : NULL;

	if (!mirror || range->priv->group)
		return NULL;
	*part = ((mirror->id & 0xff) + 1) * HMM_PFN_DEVICE_FIRST;
	return __atomic_load_n(&mirror->devmem, __ATOMIC_ACQUIRE);
}

struct hmm_page *hmm_range_page(const struct hmm_range *range, unsigned long pfn)
{
	unsigned long part = 0;
	struct hmm_devmem_private *devmem = part_of(range, &part);

	if (!devmem || pfn < part || pfn - part >= HMM_PFN_DEVICE_FIRST)
		return NULL;
	return hmm_devmem_pfn_to_page(&devmem->devmem, pfn);
}

unsigned long hmm_range_page_pfn(const struct hmm_range *range, const struct hmm_page *page)
{
	unsigned long part = 0;
	struct hmm_devmem_private *devmem = part_of(range, &part);

	if (!devmem || !page || hmmc_devmem_of(page) != devmem)
		return -1UL;
	return part + (unsigned long)(page - devmem->devmem.pages);
}
