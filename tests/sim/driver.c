// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * driver.c - a driver that is called back, and its device. The device goes by entries that it has taken from the table, as
 * an accelerator goes by its page table, and keeps them until its driver lets go of them: for as long as hmmd waits for that,
 * and then no longer, whether or not it has answered.
 */
#include <string.h>

#include "sim.h"

/* ---- what it is told -------------------------------------------------------------------------------------- */

/* From now on hmmd waits for it, and not for ever. */
void driver_is_sent(const struct hmm_msg_invalidate *message)
{
	struct told *told = &world.told[world.told_end % INVALIDATIONS_MAX];

	if (world.told_end - world.told_first == INVALIDATIONS_MAX)
		wrong("the driver is told faster than it answers");
	*told = (struct told){
		.start = message->start, .end = message->end, .cookie = message->cookie, .blockable = message->blockable,
		.deadline = world.engine->workers[0].now + ACK_TIMEOUT_MS * NS_PER_MS,
	};
	world.told_end++;
}

void driver_is_told(const struct hmm_msg_invalidate *message)
{
	struct told *told = &world.told[world.told_heard++ % INVALIDATIONS_MAX];

	if (told->cookie != message->cookie)
		wrong("the simulator has lost an invalidation");
	say("the driver is told of %s, %lu pages", addr_name(told->start), (told->end - told->start) >> HMM_PAGE_SHIFT);
}

static bool is_told(void *data)
{
	(void)data;
	return world.told_first != world.told_heard;
}

void driver_forgets(uint64_t start, uint64_t end)
{
	for (unsigned int n = 0; n < PAGES_USED; n++)
		if (used_addr(n) >= start && used_addr(n) < end)
			world.cached[n] = 0;
	/* After a restart: what was asked before is void. */
	if (!start && end == HMM_VA_END)
		world.told_first = world.told_heard;
}

static void answer(const struct told *told)
{
	struct hmm_msg_ack *message = message_new(HMM_OP_ACK, sizeof(*message));

	message->cookie = told->cookie;
	driver_forgets(told->start, told->end);
	say("the driver lets go of %s, and answers", addr_name(told->start));
	tell(message);
}

void driver_body(void *data)
{
	static const int64_t delays[] = { 0, 5 * NS_PER_US, NS_PER_MS, 30 * NS_PER_MS, 1500 * NS_PER_MS };

	(void)data;
	for (;;) {
		struct told told;
		unsigned int mine;

		block(is_told, NULL, INT64_MAX);
		mine = world.told_first;
		sleep_ns(delays[choose(4 + rarely(20))]);
		/* A restart has come in between. */
		if (mine != world.told_first || !is_told(NULL))
			continue;
		told = world.told[world.told_first++ % INVALIDATIONS_MAX];
		answer(&told);
	}
}

/* ---- what the device does ------------------------------------------------------------------------------------ */

static bool must_have_let_go(unsigned int n)
{
	for (unsigned int i = world.told_first; i != world.told_end; i++) {
		const struct told *told = &world.told[i % INVALIDATIONS_MAX];

		if (used_addr(n) >= told->start && used_addr(n) < told->end && told->deadline <= world.now)
			return true;
	}
	return false;
}

/* hmmd is dead: those that it asked for in vain it did not wait for. */
void device_lets_go(void)
{
	for (unsigned int n = 0; n < PAGES_USED; n++)
		if (must_have_let_go(n))
			world.cached[n] = 0;
}

static uint64_t table_entry(unsigned int n)
{
	uint64_t addr = used_addr(n), entry;

	if (!world.table || !world.engine)
		return 0;
	if (world.table[HMM_TABLE_ENTRIES + (addr >> HMM_BLOCK_SHIFT)] & 1)
		return 0;
	entry = world.table[addr >> HMM_PAGE_SHIFT];
	/* Another mirror's. */
	if ((entry >> HMM_TABLE_PFN_SHIFT) / HMM_TABLE_DEVICE_PFN != 1)
		return 0;
	return entry & HMM_TABLE_VALID && entry & HMM_TABLE_DEVICE ? entry & (HMM_TABLE_VALID | HMM_TABLE_WRITE) : 0;
}

/* It looks each time. */
static bool is_dead(void)
{
	return world.pulse && world.pulse->dead;
}

uint64_t device_reach(unsigned int n)
{
	return is_dead() || must_have_let_go(n) ? 0 : world.cached[n] | table_entry(n);
}

static bool reach(unsigned int n, uint64_t want)
{
	if (is_dead())
		return false;
	if (must_have_let_go(n))
		world.cached[n] = 0;
	if ((world.cached[n] & want) == want)
		return true;
	/* The number, the entry, the number: nobody else runs in between. */
	if ((table_entry(n) & want) != want)
		return false;
	world.cached[n] = (uint8_t)table_entry(n);
	return true;
}

static void load(unsigned int n)
{
	const uint64_t *at;

	if (!reach(n, HMM_TABLE_VALID))
		return;
	at = shadow_page(0, used_addr(n));
	if (!at)
		wrong("the device has an entry of %s, and there is no shadow", addr_name(used_addr(n)));
	say("the device loads %s: %lu", addr_name(used_addr(n)), real_value(at));
	device_loaded(n, real_value(at));
}

static void store(unsigned int n)
{
	volatile uint64_t *at;
	uint64_t value;

	if (!reach(n, HMM_TABLE_VALID | HMM_TABLE_WRITE))
		return;
	value = new_version();
	at = shadow_page(0, used_addr(n));
	if (!at)
		wrong("the device has an entry of %s, and there is no shadow", addr_name(used_addr(n)));
	say("the device stores %s: %lu", addr_name(used_addr(n)), value);
	*at = value;
	device_stored(n, value);
}

/* By a message to hmmd, where there is no entry to go by. */
static void read_by_message(unsigned int n)
{
	struct hmm_msg_device_read *message = message_new(HMM_OP_DEVICE_READ, sizeof(*message));
	struct hmm_wire_header *answer;
	int r;

	message->mirror = world.mirror_id;
	message->length = HMM_PAGE_SIZE / 2;
	message->addr = used_addr(n);
	access_begins(n, 0);
	r = ask(message, &answer);
	if (!r) {
		const struct hmm_msg_device_read_reply *reply = (const void *)answer;

		say("the device has read %s: %lu", addr_name(used_addr(n)), real_value(reply->data));
		access_loaded(n, real_value(reply->data));
	}
	access_ends(n);
}

static void write_by_message(unsigned int n)
{
	struct hmm_msg_device_write *message = message_new(HMM_OP_DEVICE_WRITE, sizeof(*message) + sizeof(uint64_t));
	uint64_t value = new_version();
	int r;

	message->mirror = world.mirror_id;
	message->count = sizeof(value);
	message->addr = used_addr(n);
	memcpy(message->data, &value, sizeof(value));
	access_begins(n, value);
	say("the device writes %s: %lu", addr_name(used_addr(n)), value);
	r = ask(message, NULL);
	say("has written: %d", r);
	access_ends(n);
}

void device_body(void *data)
{
	(void)data;
	while (choose(24)) {
		unsigned int n = choose(PAGES_USED), what = choose(8);

		if (what == 7)
			write_by_message(n);
		else if (what == 6)
			read_by_message(n);
		else if (what % 2)
			store(n);
		else
			load(n);
		if (rarely(4))
			sleep_ns(NS_PER_MS);
		else
			step();
	}
}
