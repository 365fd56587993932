/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * remake.c - the mirrors of an owner that outlived an earlier hmmd, and their devices, as the journal has
 * them. Runs on the owner's worker, before the owner's library says more.
 *
 * A device's driver may not have come back yet: the device is there for it when it does. A card's BAR is where
 * the holder has kept it, with all that is in it (bar.h).
 *
 * What can fail: a mirror that is not to be had for good (the card is gone) costs what lay there, logged; a BAR that is not to be had now,
 * and the library comes again. A pool that has become too small costs nothing, nor does a device's name that is another's by now: what is
 * there has one that nobody guesses.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "engine/far_bar.h"
#include "engine/worker.h"
#include "log.h"

/*
 * The card is where the holder has kept it: 0, with the BAR, or without, if it is gone for good, and all that was
 * in it. -errno: that is not to be known now.
 */
static int find_bar(const struct owner *owner, const struct hmm_journal_mirror *note, struct bar_share *share)
{
	char address[CARD_ADDRESS], why[240] = "the ledger names none";
	const struct bar_wish wish = { .address = address, .index = share->index, .kept = true };
	int r = -ENODEV;

	card_print_number(note->memory_card, address);
	if (note->memory_card)
		r = bar_open(&wish, &share->bar, why, sizeof(why));
	if (!r) {
		bar_promise_again(share->bar, share->pages);
		return 0;
	}
	if (r != -ENOENT && r != -ENODEV && r != -EBUSY) {
		log_warn("owner %u: the memory of %.64s is not to be had now: %s", owner->id, note->device, why);
		return r;
	}
	log_error("owner %u: the memory of %.64s is not to be had: %s", owner->id, note->device, why);
	return 0;
}

static int remake_bar(struct owner *owner, const struct hmm_journal_mirror *note, const char *name)
{
	struct devices *devices = &owner->worker->engine->devices;
	struct device *device;
	struct bar_share share = {
		.card = note->memory_card,
		.index = note->bar,
		.pages = note->bar_pages < BAR_MAX_PAGES ? (uint32_t)note->bar_pages : BAR_MAX_PAGES,
	};
	int r = find_bar(owner, note, &share);

	if (r)
		return r;
	r = device_new_bar(devices, name, &share, note->caps, owner->peer, &device);
	/* Others have taken the room since. What is there comes home all the same. */
	if (r == -ENOSPC) {
		share.scarce = true;
		r = device_new_bar(devices, name, &share, note->caps, owner->peer, &device);
	}
	if (!r)
		return 0;
	if (share.bar)
		bar_unpromise(share.bar, share.pages);
	bar_put(share.bar);
	return r;
}

static int remake_pool(struct owner *owner, const struct hmm_journal_mirror *note, const char *name, const struct placement *placement)
{
	struct devices *devices = &owner->worker->engine->devices;
	enum hmm_pool_kind kind = (enum hmm_pool_kind)note->kind;
	struct device *device;
	int r = device_new(devices, name, kind, placement, note->size, note->caps, owner->peer, &device);

	if (r != -ENOSPC)
		return r;
	/* Others have taken it since, or it has become smaller. What is there comes home all the same. */
	log_warn("owner %u: %.64s has no room in the pool any more: what is there comes home, and nothing goes there", owner->id, note->device);
	return device_new(devices, name, kind, placement, 0, note->caps, owner->peer, &device);
}

static int remake_device(struct owner *owner, const struct hmm_journal_mirror *note, const char *name, const struct placement *placement)
{
	return note->kind == HMM_POOL_KIND_VFIO ? remake_bar(owner, note, name) : remake_pool(owner, note, name, placement);
}

/*
 * Whoever made a device of that name meanwhile may have meant another memory, or another thing: what it can decides which pages may be there
 * and how they are had back, and a card reaches what its mirrors have there. A pool of another kind will do (the administrator may have
 * chosen another, and shadows keep their own), but for one that cannot be punched by 4 KiB. A card that was not to be had again is none.
 */
static bool is_as_noted(const struct device *device, const struct hmm_journal_mirror *note)
{
	uint32_t card = device->card_number;

	if (device->caps != note->caps || (card && card != note->card) ||
	    device_has_bar(device) != (note->kind == HMM_POOL_KIND_VFIO) ||
	    (device->pool->kind == HMM_POOL_KIND_HUGETLB) != (note->kind == HMM_POOL_KIND_HUGETLB))
		return false;
	return !device_has_bar(device) || (device->bar_card == note->memory_card && device->bar_index == note->bar);
}

/* The device of that name, held. Where it is another's these pages have one of a name that nobody guesses. */
static int use_remade(struct owner *owner, const struct hmm_journal_mirror *note, const struct placement *placement, char *name,
		      size_t size, struct device **result)
{
	struct devices *devices = &owner->worker->engine->devices;
	uint32_t number;
	size_t length;
	int r;

	*result = device_use_name(devices, name);
	if (*result && is_as_noted(*result, note))
		return 0;
	if (!*result)
		return -ENODEV;
	device_unuse(devices, *result);
	if (getrandom(&number, sizeof(number), 0) != sizeof(number))
		return -EAGAIN;
	length = strnlen(name, size - sizeof("~01234567"));
	snprintf(name + length, size - length, "~%08x", number);
	log_warn("owner %u: there is another device %.64s: its own is %s from now on", owner->id, note->device, name);
	r = remake_device(owner, note, name, placement);
	if (r)
		return r;
	*result = device_use_name(devices, name);
	return *result ? 0 : -ENODEV;
}

static int remake_mirror(struct owner *owner, unsigned int index)
{
	struct hmm_journal_mirror *note = &owner->journal->mirror[index];
	struct devices *devices = &owner->worker->engine->devices;
	char name[sizeof(note->device)], noted[sizeof(note->device)];
	const uint64_t size = note->size;
	struct placement placement;
	struct mirror *mirror;
	struct device *device;
	const char *why;
	int r = 0;

	memcpy(noted, note->device, sizeof(noted));
	memcpy(name, note->device, sizeof(name));
	name[sizeof(name) - 1] = '\0';
	if (placement_make(&placement, note->placement, note->node, note->nodes, &why))
		return -EINVAL;
	/* Its driver may not have come back yet: the device is there for it when it does. */
	if (!device_by_name(devices, name))
		r = remake_device(owner, note, name, &placement);
	/* Its creator may have been faster. */
	if (!r || r == -EBUSY)
		r = use_remade(owner, note, &placement, name, sizeof(name), &device);
	if (r)
		return r;
	if (!device_has_bar(device) || note->card)
		device_expect(devices, device->id, device_has_bar(device) ? 0 : note->token, note->driver, note->card);
	mirror = mirror_new(owner, index, device, NULL);
	if (!mirror) {
		device_unuse(devices, device);
		return -ENOMEM;
	}
	/* Of this hmmd alone are the name that it had to give it, and that it has no room. */
	memcpy(note->device, noted, sizeof(noted));
	note->size = size;
	far_bar_adopt(mirror);
	mirror->awaited = note->windows;
	mirror->unready = note->callbacks;
	mirror->flags = note->tracked ? HMM_MIRROR_FLAGS_TRACKED : 0;
	return 0;
}

void remake_adapt(struct hmm_journal *journal)
{
	for (unsigned int i = 0; i < MIRRORS_MAX && journal->version < 9; i++) {
		struct hmm_journal_mirror *note = &journal->mirror[i];

		/* Whoever had a BAR for its memory was no card. */
		if (!note->bar_pages)
			continue;
		if (!note->memory_card)
			note->memory_card = note->card;
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		note->card = 0;
	}
	__atomic_store_n(&journal->version, HMM_LEDGER_VERSION, __ATOMIC_RELEASE);
}

int remake_mirrors(struct owner *owner, struct letter *letter)
{
	for (unsigned int i = 0; i < MIRRORS_MAX; i++) {
		const struct hmm_journal_mirror *note = &owner->journal->mirror[i];
		int r = note->used ? remake_mirror(owner, i) : 0;

		/* Not -EAGAIN, which the library would not leave its connection for: it has others to tell. */
		if (r && note->kind == HMM_POOL_KIND_VFIO)
			return letter_fail(letter, -EBUSY, "the memory of %.64s is not to be had now: %s", note->device,
					   strerror(-r));
		if (r)
			log_error("owner %u: its mirror on %.64s can't be made again: %s", owner->id, note->device,
				  strerror(-r));
	}
	return 0;
}
