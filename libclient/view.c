/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * view.c - what a program has done to its address space since hmmd last looked: where a page is now that the ledger knows elsewhere, and
 * the other way round. The rescuer's; it runs there, on memory of the arena as long as that has some.
 *
 * Nothing that a change says may be forgotten: where there is no memory to note it that is waited for, as for a page's.
 */
#include "view.h"

#include <string.h>
#include <sys/mman.h>

#include "arena.h"
#include "mapping.h"

#define CHANGES_MIN 1024

/*
 * Of the arena first, for which nobody is asked: a program that has as many mappings as it may, or as much memory, waits
 * in the very munmap() that would help until its event is noted. But the arena has an end.
 */
static struct change *new_list(uint32_t room)
{
	struct change *list = hmmc_arena_alloc(room * sizeof(*list));

	return list ? list : hmmc_map(NULL, room * sizeof(*list), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void free_list(struct change *list, uint32_t room)
{
	if (hmmc_arena_contains(list))
		hmmc_arena_free(list, room * sizeof(*list));
	else if (list)
		munmap(list, room * sizeof(*list));
}

static void make_room(struct view *view, uint32_t room)
{
	struct change *more;

	while (!(more = new_list(room)))
		wait_for_memory();
	if (view->room)
		memcpy(more, view->changes, view->count * sizeof(*more));
	free_list(view->changes, view->room);
	view->changes = more;
	view->room = room;
}

/* It is discarded already, and nothing has come there since: a program may do that all day. */
static bool is_gone(const struct view *view, uint64_t start, uint64_t length)
{
	for (uint32_t i = view->count; i--;) {
		const struct change *change = &view->changes[i];

		if (change->to && change->to < start + length && start < change->to + change->length)
			return false;
		if (!change->to && change->start <= start && start + length <= change->start + change->length)
			return true;
	}
	return false;
}

void hmmc_view_note(struct view *view, uint64_t start, uint64_t length, uint64_t to)
{
	if (!to && is_gone(view, start, length))
		return;
	if (view->count == view->room)
		make_room(view, view->room ? view->room * 2 : CHANGES_MIN);
	view->changes[view->count++] = (struct change){ start, length, to };
}

void hmmc_view_copy(struct view *child, const struct view *parent)
{
	if (!parent->count)
		return;
	make_room(child, parent->room);
	memcpy(child->changes, parent->changes, parent->count * sizeof(*parent->changes));
	child->count = parent->count;
}

void hmmc_view_forget(struct view *view)
{
	free_list(view->changes, view->room);
	view->changes = NULL;
	view->room = view->count = 0;
}

static bool covers(const struct change *change, uint64_t address)
{
	return address - change->start < change->length;
}

uint64_t hmmc_view_whereto(const struct view *view, uint64_t address)
{
	for (uint32_t i = 0; i < view->count && address; i++) {
		const struct change *change = &view->changes[i];

		if (covers(change, address))
			address = change->to ? change->to + (address - change->start) : 0;
	}
	return address;
}

uint64_t hmmc_view_wherefrom(const struct view *view, uint64_t address)
{
	for (uint32_t i = view->count; i-- && address;) {
		const struct change *change = &view->changes[i];

		if (change->to && address - change->to < change->length)
			address = change->start + (address - change->to);
		else if (covers(change, address))
			address = 0;
	}
	return address;
}
