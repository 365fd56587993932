/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * share.c - ordinary memory becomes coherent in place, and back.
 *
 * The happy path: the range goes to hmmd in pieces of at most 64 MiB, one after the
 * other; hmmd migrates each block and has the agent exchange its mapping for the
 * shadow. A piece passes the fork gate: no fork finds its pages on the way.
 *
 * What the program has told the kernel of that memory is looked up first (told.c).
 *
 * The table says what is coherent, so nothing is remembered here. A piece that was
 * asked again after a restart of hmmd finds some of its blocks done, which is no
 * error. If a piece fails, all that was done for this call is taken back.
 */
#include <stdio.h>

#include "fork.h"
#include "dispatch.h"
#include "space.h"
#include "told.h"

#define PIECE_MAX	(64UL << 20)

struct piece {
	const struct hmm_mirror_private *mirror;
	uint64_t addr, length;
};

/* The two messages have the same fields. */
_Static_assert(sizeof(struct hmm_msg_share) == sizeof(struct hmm_msg_unshare) &&
		       offsetof(struct hmm_msg_share, addr) == offsetof(struct hmm_msg_unshare, addr),
	       "prepare() fills both");

/* A restart may change the mirror's number. */
static int prepare(struct request *request)
{
	const struct piece *piece = request->data;
	struct hmm_msg_share *message = (struct hmm_msg_share *)request->message;

	message->mirror = piece->mirror->id;
	message->addr = piece->addr;
	message->length = piece->length;
	return 0;
}

static int call(uint16_t op, struct piece *piece)
{
	struct request *request = hmmc_request_new(piece->mirror->hmm->connection, op,
						   sizeof(struct hmm_msg_share));
	int error;

	if (!request)
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	request->data = piece;
	request->prepare = prepare;
	hmmc_gate_enter();
	error = hmmc_request_call(request);
	hmmc_gate_leave();
	hmmc_request_free(request);
	return error;
}

/* From @start on, until all is done or one fails; *@stop is where it stopped: behind the failed piece. */
static int call_all(const struct hmm_mirror_private *mirror, uint16_t op, uint64_t start, uint64_t end,
		    uint64_t *stop)
{
	struct piece piece = { .mirror = mirror };
	int error = 0;

	for (*stop = start; *stop < end && !error; *stop += piece.length) {
		piece.addr = *stop;
		piece.length = end - *stop < PIECE_MAX ? end - *stop : PIECE_MAX;
		error = call(op, &piece);
	}
	return error;
}

static int check(const struct hmm_mirror *mirror, uint64_t start, size_t length)
{
	int error = hmmc_mirror_check(mirror);

	if (!error)
		error = hmmc_dispatch_check();
	if (error)
		return error;
	if (!mirror->priv->hmm->owner)
		return hmmc_fail(-EPERM, "only the owner itself can change what its addresses map");
	if (!length || (start | length) % HMM_BLOCK_SIZE || start >= HMM_VA_END ||
	    length > HMM_VA_END - start)
		return hmmc_fail(-EINVAL,
				 "coherent memory comes in aligned blocks of 2 MiB: 0x%llx, 0x%zx bytes, are none",
				 (unsigned long long)start, length);
	return 0;
}

/* A block is coherent as a whole. On any device of the owner. */
static uint64_t entry_of(const struct hmm *hmm, uint64_t block)
{
	return __atomic_load_n(&hmm->table[block >> HMM_PAGE_SHIFT], __ATOMIC_ACQUIRE);
}

int hmm_share(struct hmm_mirror *mirror, void *addr, size_t length)
{
	uint64_t start = (uintptr_t)addr, end = start + length, stop, back;
	struct told *told;
	char text[240];
	int error = check(mirror, start, length);

	if (error)
		return error;
	for (uint64_t at = start; at < end; at += HMM_BLOCK_SIZE)
		if (entry_of(mirror->priv->hmm, at) & HMM_TABLE_COHERENT)
			return hmmc_fail(-EALREADY, "0x%llx is coherent already", (unsigned long long)at);
	told = hmmc_told_begin(mirror->priv->hmm, start, end, &error);
	if (told)
		error = hmmc_told_check(told, 1);
	if (error) {
		hmmc_told_end(told);
		return error;
	}
	error = call_all(mirror->priv, HMM_OP_SHARE, start, end, &stop);
	if (error) {
		snprintf(text, sizeof(text), "%s", hmm_last_error());
		if (error != -ESTALE && call_all(mirror->priv, HMM_OP_UNSHARE, start, stop, &back))
			hmmc_fail(error, "%s; and what had become coherent stays so: %s", text, hmm_last_error());
		else
			hmmc_fail(error, "%s", text);
	}
	hmmc_told_end(told);
	return error;
}

int hmm_unshare(struct hmm_mirror *mirror, void *addr, size_t length)
{
	uint64_t start = (uintptr_t)addr, end = start + length, stop;
	struct told *told;
	int error = check(mirror, start, length);

	if (error)
		return error;
	for (uint64_t at = start; at < end; at += HMM_BLOCK_SIZE)
		if (!(hmm_mirror_lookup(mirror, at) & HMM_TABLE_COHERENT))
			return hmmc_fail(-EINVAL, "0x%llx is not coherent on this mirror", (unsigned long long)at);
	if (hmmc_alloc_has(mirror->priv->hmm, start, end))
		return hmmc_fail(-EINVAL, "some of it is from hmm_alloc(): hmm_free() gives that back");
	told = hmmc_told_begin(mirror->priv->hmm, start, end, &error);
	if (told)
		error = hmmc_told_check(told, 0);
	if (!error)
		error = call_all(mirror->priv, HMM_OP_UNSHARE, start, end, &stop);
	hmmc_told_end(told);
	return error;
}
