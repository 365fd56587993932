/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * statement.c - ranges that are never to be mirrored. (Advice is advice.c's.)
 *
 * hmmd has no state on disk, so the library remembers and tells a new hmmd. What
 * is said later replaces what was said of the same addresses before.
 *
 * The library itself excludes what hmmd cannot see to be special: its arena and
 * slots, which serve the very faults they would raise; the writable data
 * of libc and the dynamic linker, which the library's threads use; the stack and
 * control block of the thread that opens, into which the kernel writes.
 */
#include <link.h>
#include <pthread.h>
#include <string.h>

#include "arena.h"
#include "dispatch.h"
#include "preload.h"
#include "space.h"

/* ---- remembering ------------------------------------------------------------- */

/* Takes [start, end) out of the list. With the lock held. */
static int subtract(struct hmm *hmm, uint64_t start, uint64_t end)
{
	struct statement **at = &hmm->statements;

	while (*at) {
		struct statement *statement = *at, *rest;

		if (statement->end <= start || statement->start >= end) {
			at = &statement->next;
		} else if (statement->start < start && statement->end > end) {
			rest = hmmc_arena_alloc(sizeof(*rest));
			if (!rest)
				return -ENOMEM;
			*rest = *statement;
			rest->start = end;
			statement->end = start;
			statement->next = rest;
			return 0;
		} else if (statement->start < start) {
			statement->end = start;
			at = &statement->next;
		} else if (statement->end > end) {
			statement->start = end;
			at = &statement->next;
		} else {
			*at = statement->next;
			hmmc_arena_free(statement, sizeof(*statement));
		}
	}
	return 0;
}

static int remember(struct hmm *hmm, uint64_t start, uint64_t end, bool holds)
{
	struct statement *statement = NULL;
	int error;

	if (holds) {
		statement = hmmc_arena_alloc(sizeof(*statement));
		if (!statement)
			return -ENOMEM;
		statement->start = start;
		statement->end = end;
	}
	futex_lock(&hmm->lock);
	error = subtract(hmm, start, end);
	if (!error && statement) {
		statement->next = hmm->statements;
		hmm->statements = statement;
		statement = NULL;
	}
	futex_unlock(&hmm->lock);
	hmmc_arena_free(statement, sizeof(*statement));
	return error;
}

void hmmc_statement_free(struct hmm *hmm)
{
	while (hmm->statements) {
		struct statement *statement = hmm->statements;

		hmm->statements = statement->next;
		hmmc_arena_free(statement, sizeof(*statement));
	}
}

/* ---- telling ------------------------------------------------------------------- */

static void fill(struct hmm_msg_exclude *message, uint32_t owner, uint64_t start, uint64_t length,
		 bool excluded)
{
	HMM_MSG_INIT(*message, HMM_OP_EXCLUDE, 0);
	message->owner = owner;
	message->include = !excluded;
	message->addr = start;
	message->length = length;
}

static struct request *new_request(struct hmm *hmm, uint64_t start, uint64_t length, bool excluded)
{
	struct hmm_msg_exclude message;
	struct request *request;

	/* Whose it is is known when it is sent: another hmmd may give another number. */
	fill(&message, 0, start, length, excluded);
	request = hmmc_request_new(hmm->connection, HMM_OP_EXCLUDE, sizeof(message));
	if (!request)
		return NULL;
	memcpy(request->message, &message, sizeof(message));
	request->prepare = hmmc_prepare_owner;
	return request;
}

int hmmc_state(struct hmm *hmm, uint64_t start, uint64_t length, bool excluded)
{
	struct request *request = new_request(hmm, start, length, excluded);
	int error;

	if (!request || remember(hmm, start, start + length, excluded)) {
		hmmc_request_free(request);
		return hmmc_fail(-ENOMEM, "the library's memory is used up");
	}
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

static int tell(struct hmm *hmm, uint64_t start, uint64_t length, bool excluded)
{
	struct request *request = new_request(hmm, start, length, excluded);
	int error;

	if (!request)
		return -ENOMEM;
	error = hmmc_request_call(request);
	hmmc_request_free(request);
	return error;
}

static bool is_excluded(struct hmm *hmm, uint64_t start, uint64_t end)
{
	bool any = false;

	futex_lock(&hmm->lock);
	for (struct statement *statement = hmm->statements; statement && !any;
	     statement = statement->next)
		any = statement->start < end && statement->end > start;
	futex_unlock(&hmm->lock);
	return any;
}

int hmmc_statement_pause(struct hmm *hmm, uint64_t start, uint64_t length, bool holds)
{
	int error;

	/* hmmd knows one kind of exclusion: taking ours back would take the others' with it. */
	if (holds && is_excluded(hmm, start, start + length))
		return -EBUSY;
	error = tell(hmm, start, length, holds);
	/* What could not come home is excluded as well, and is moved from where it is. */
	return error == -EBUSY ? 0 : error;
}

/*
 * In the receiver. Statements that are made meanwhile are in flight and will be sent again
 * anyway.
 */
int hmmc_statement_restore(struct hmm *hmm)
{
	struct statement *copies;
	unsigned int count = 0, room;
	struct hmm_msg_exclude message;
	int error = 0;

	futex_lock(&hmm->lock);
	for (struct statement *statement = hmm->statements; statement; statement = statement->next)
		count++;
	room = count;
	copies = count ? hmmc_arena_alloc(count * sizeof(*copies)) : NULL;
	count = 0;
	for (struct statement *statement = hmm->statements; copies && statement;
	     statement = statement->next)
		copies[count++] = *statement;
	futex_unlock(&hmm->lock);
	if (room && !copies)
		return -ENOMEM;
	for (unsigned int i = 0; i < count && !error; i++) {
		fill(&message, hmm->id, copies[i].start, copies[i].end - copies[i].start, true);
		error = hmmc_connection_exchange(hmm->connection, &message, NULL, 0);
	}
	hmmc_arena_free(copies, room * sizeof(*copies));
	return error;
}

int hmmc_range_check(struct hmm *hmm, unsigned long addr, size_t length)
{
	int error = hmmc_space_check(hmm);

	if (error)
		return error;
	if (!length || addr % HMM_PAGE_SIZE || length % HMM_PAGE_SIZE || addr + length < addr ||
	    addr + length > HMM_VA_END)
		return hmmc_fail(-EINVAL,
				 "the range is empty, unaligned, wraps or ends above user space");
	return 0;
}

static int check_own_range(struct hmm *hmm, unsigned long addr, size_t length)
{
	int error = hmmc_range_check(hmm, addr, length);

	if (!error && !hmm->owner)
		error = hmmc_fail(-EPERM, "only the owner itself can say this of its memory");
	return error;
}

int hmm_exclude(struct hmm *hmm, unsigned long addr, size_t length)
{
	int error = check_own_range(hmm, addr, length);

	if (!error)
		error = hmmc_dispatch_check();
	return error ? error : hmmc_state(hmm, addr, length, true);
}

int hmm_include(struct hmm *hmm, unsigned long addr, size_t length)
{
	int error = check_own_range(hmm, addr, length);

	return error ? error : hmmc_state(hmm, addr, length, false);
}

/* ---- the library's own ------------------------------------------------------------ */

#define OBJECTS_MAX 16

struct objects {
	unsigned int count;
	uint64_t start[OBJECTS_MAX], end[OBJECTS_MAX];
};

static bool is_needed(const char *path)
{
	static const char *const names[] = { "libc.so", "ld-linux", "libpthread", "libhmmclient",
					     "libhmmpreload" };
	const char *base = strrchr(path, '/');

	base = base ? base + 1 : path;
	for (unsigned int i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (strncmp(base, names[i], strlen(names[i])) == 0)
			return true;
	return false;
}

static int note_object(struct dl_phdr_info *info, size_t size, void *data)
{
	struct objects *objects = data;

	if (!is_needed(info->dlpi_name))
		return 0;
	for (unsigned int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		uint64_t start = info->dlpi_addr + header->p_vaddr;

		if (header->p_type != PT_LOAD || !(header->p_flags & PF_W) ||
		    objects->count == OBJECTS_MAX)
			continue;
		objects->start[objects->count] = start & ~(HMM_PAGE_SIZE - 1);
		objects->end[objects->count++] =
			(start + header->p_memsz + HMM_PAGE_SIZE - 1) & ~(HMM_PAGE_SIZE - 1);
	}
	return 0;
}

int hmmc_exclude_library(struct hmm *hmm)
{
	struct objects objects = { 0 };
	unsigned long start;
	size_t length;
	int error = 0;

	if (hmmc_arena_range(&start, &length))
		error = hmmc_state(hmm, start, length, true);
	dl_iterate_phdr(note_object, &objects);
	for (unsigned int i = 0; i < objects.count && !error; i++)
		error = hmmc_state(hmm, objects.start[i],
				   objects.end[i] - objects.start[i], true);
	return error;
}

#define CONTROL_BLOCK_SIZE	2304UL		/* struct pthread: CLEARTID, robust list, rseq */

/* Thread-local data lies right below the control block. */
static int add_thread_data(struct dl_phdr_info *info, size_t size, void *data)
{
	uint64_t *sum = data;

	for (unsigned int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_TLS)
			*sum += info->dlpi_phdr[i].p_memsz + info->dlpi_phdr[i].p_align;
	return 0;
}

int hmmc_exclude_thread(struct hmm *hmm)
{
	uint64_t self = (uint64_t)pthread_self(), below = 0, start, end;
	pthread_attr_t attr;
	size_t size = 0;
	void *stack;
	int error;

	dl_iterate_phdr(add_thread_data, &below);
	start = (self - below) & ~(HMM_PAGE_SIZE - 1);
	end = (self + CONTROL_BLOCK_SIZE + HMM_PAGE_SIZE - 1) & ~(HMM_PAGE_SIZE - 1);
	error = hmmc_state(hmm, start, end - start, true);
	if (error || pthread_getattr_np(pthread_self(), &attr))
		return error;
	if (pthread_attr_getstack(&attr, &stack, &size) == 0 && size) {
		start = (uint64_t)stack & ~(HMM_PAGE_SIZE - 1);
		end = ((uint64_t)stack + size + HMM_PAGE_SIZE - 1) & ~(HMM_PAGE_SIZE - 1);
		error = hmmc_state(hmm, start, end - start, true);
	}
	pthread_attr_destroy(&attr);
	return error;
}

bool hmm_internal_is_library_thread(void)
{
	return hmmc_thread_is_private() || hmmc_dispatch_is_current();
}

int hmm_internal_exclude_thread(struct hmm *hmm)
{
	int error = hmmc_space_check(hmm);

	return error ? error : hmmc_exclude_thread(hmm);
}
