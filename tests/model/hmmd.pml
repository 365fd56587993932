/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * hmmd.pml - the owner's worker, step by step as the code has them, each in the function that is
 * named; it may die after any that leaves a trace. What it does of its own accord, it does whenever it likes: a
 * migration, an eviction, the settling of a quiet block.
 */

#define in_shadow(st)	(st == S || st == D)

/* tasks: what block->proceed is */
#define T_NONE		0
#define T_OUT		1
#define T_DROP		2
#define T_HOME		3
#define T_UNSHARE	4
#define T_DISCARD	5

/* ---- block.c --------------------------------------------------------------------------- */

inline entry_update()
{
	entry = (state == S -> READ : (state == D -> WRITE : NOBODY))
}

/* block_set_state(): the ledger's byte, then the entry; nobody trusts the entry before the number is even. */
inline set_state(st)
{
	d_step {
		stale = (in_shadow(st) -> 0 : (in_shadow(state) -> 1 : stale));
		state = st;
		served = served && !BROKEN(lose_served) && transit != REST;
		entry_update()
	};
	MAY_DIE
}

inline bury()
{
	d_step { dead = 1; served = !BROKEN(skip_served) };
	MAY_DIE
}

/* block_punch_stale() */
inline punch_stale()
{
	if
	:: transit == OUT_MOVE -> clean = 0
	:: transit != OUT_MOVE && (stale || !in_shadow(state)) -> punch(); stale = 0; clean = 1
	:: else -> clean = 1
	fi
}

/* ---- transition.c ------------------------------------------------------------------------- */

inline begin(kind, what)
{
	d_step {
		assert(transit == REST);
		dead = 0;
		served = discards;
		discards = 0;
		task = what;
		ring[0].current = 0;
		ring[1].current = 0;
		transit = kind;
		NOTE_FROM
	};
	MAY_DIE;
	d_step { assert(!odd); odd = 1 };
	MAY_DIE;
	entry = NOBODY;
	MAY_DIE;
#ifdef CALLBACKS
	if
	:: known && !BROKEN(tell_late) -> told = 1; MAY_DIE
	:: else
	fi;
#endif
	waits = 1
}

inline transit_end()
{
	d_step { NOTE_TO; assert(odd); odd = 0; task = T_NONE; waiter = NOBODY; share = 0; dead = 0 };
	MAY_DIE;
	transit = REST;
	MAY_DIE;
	served = 0;
	MAY_DIE
}

/* ---- order.c ---------------------------------------------------------------------------------- */

#define next_place	((reaper + producer_lag) % 2)
#define has_room	(producer_lag < 2)

inline issue(what)
{
	d_step {
		assert(has_room);
		place = next_place;
		ring[place].kind = what;
		ring[place].state = QUEUED;
		ring[place].moved = 0;
		ring[place].hole = 0;
		ring[place].current = (what != ORDER_RELEASE);
		own_kind[place] = what;
		order = (what != ORDER_RELEASE -> place + 1 : order);
		producer_lag++;
		unconsumed++
	};
	MAY_DIE
}

inline slot_release()
{
	issue(ORDER_RELEASE)
}

/* ---- the ends of orders: out.c ------------------------------------------------ */

/* migrate_out_done(), of a block that goes whole: a hole is zeros. */
inline out_done()
{
	if
	:: dead && !BROKEN(skip_dead) ->
		set_state(I);
		stale = 1
	:: !(dead && !BROKEN(skip_dead)) && finished && (moved || hole) -> set_state(D)
	:: else ->
		set_state(I)
	fi;
	slot_release();
	transit_end()
}

inline drop_done()
{
	if
	:: dead -> set_state(I)
	:: !dead && finished && (moved || hole) -> set_state(D)
	:: else -> set_state(S)
	fi;
	slot_release();
	transit_end()
}

/* finish(): @finished is DONE and not CANCELLED. */
inline finish(what)
{
	if
	:: what == ORDER_MOVE -> out_done()
	:: what == ORDER_DROP -> drop_done()
	:: what == ORDER_RELEASE -> slot_busy = 0
	:: what == NO_ORDER
	fi
}

/* The next of the ring, if it has ended. */
#define can_reap	(producer_lag > 0 && \
			 (ring[reaper].state == DONE || \
			  (ring[reaper].state == CANCELLED && unconsumed < producer_lag)))

inline reap_one()
{
	d_step {
		finished = ring[reaper].state == DONE;
		moved = ring[reaper].moved;
		hole = ring[reaper].hole;
		ended = 1;
		what = own_kind[reaper];
		own_kind[reaper] = NO_ORDER;
		reaper = 1 - reaper;
		producer_lag--;
		order = (what == NO_ORDER || what == ORDER_RELEASE -> order : 0)
	}
}

#define committed(n)	(ring[n].state == COMMIT && own_kind[n] != NO_ORDER)

/* order_cancel(): what becomes of its pages comes at once, in the next turn. */
inline cancel()
{
	d_step {
		if
		:: order && (ring[order - 1].state == QUEUED || ring[order - 1].state == RUNNING) ->
			ring[order - 1].state = CANCELLED;
			finished = 0;
			moved = 0;
			hole = 0;
			ended = 1;
			what = own_kind[order - 1];
			own_kind[order - 1] = NO_ORDER;
			order = 0
		:: else
		fi
	};
	MAY_DIE
}

/* ---- home.c -------------------------------------------------------------------------------------------- */

/* home_proceed() */
inline home_proceed()
{
	home = 0;
	ret = OK;
	if
	:: !dead ->
		/* copy_mode() */
		if
		:: share -> uffd_copy(FROM_SHADOW, !BROKEN(skip_wp), !BROKEN(drop_wake), ret)
		:: else -> uffd_copy(FROM_SHADOW, 0, !BROKEN(drop_wake), ret)
		fi;
		if
		:: ret == OK -> home = 1
		:: ret == E_EXIST -> bury(); wake(); home = 1
		:: else
		fi
	:: else
	fi;
	if
	:: dead -> set_state(I)
	:: !dead && home && share -> set_state(S)
	:: !dead && home && !share -> set_state(I)
	:: else -> set_state(D)
	fi;
	if
	:: waiter && !home && ret == E_AGAIN -> retry = waiter
	:: waiter && !home && ret != E_AGAIN -> wake()
	:: else
	fi;
	transit_end()
}

/* unshare_proceed() */
inline unshare_proceed()
{
	set_state(I);
	uffd_protect(0, again);
	if
	:: again != OK -> wake()
	:: else
	fi;
	transit_end()
}

inline discard_proceed()
{
	set_state(I);
	transit_end()
}

/* transit_restore(), of a page that was voided while drivers answered. */
inline restore()
{
	set_state(I);
	slot_busy = 0;
	transit_end()
}

/* ---- what follows when the drivers have answered ---------------------------------------------------------- */

inline proceed()
{
	waits = 0;
	if
	:: task == T_OUT ->
		if
		:: dead && !BROKEN(skip_dead) -> restore()
		:: else -> issue(ORDER_MOVE)
		fi
	:: task == T_DROP ->
		if
		:: dead -> restore()
		:: else -> issue(ORDER_DROP)
		fi
	:: task == T_HOME -> home_proceed()
	:: task == T_UNSHARE -> unshare_proceed()
	:: task == T_DISCARD -> discard_proceed()
	fi
#ifdef CALLBACKS
	;
	if
	:: BROKEN(tell_late) && known -> told = 1; MAY_DIE
	:: else
	fi
#endif
}

/* ---- fault.c --------------------------------------------------------------------------------------------------- */

inline home_begin(shares, kind)
{
	share = shares;
	waiter = kind;
	if
	:: share -> begin(SHARING, T_HOME)
	:: else -> begin(HOME_COPY, T_HOME)
	fi
}

/* What is read by the CPU the device keeps, too. */
#ifdef SHARES
#define may_share(kind)	(kind == READ)
#else
#define may_share(kind)	0
#endif

/* serve_invalid() */
inline serve_invalid(kind)
{
	if
	:: kind == WP ->
		uffd_protect(0, ret);
		if
		:: ret == E_AGAIN -> retry = kind
		:: ret == E_NOENT -> wake()
		:: else
		fi
	:: else ->
		uffd_copy(FROM_NOWHERE, 0, 1, ret);
		if
		:: ret == E_AGAIN -> retry = kind
		:: ret == E_EXIST || ret == E_NOENT -> wake()
		:: else
		fi
	fi
}

inline serve_fault(kind)
{
	if
	:: transit != REST -> parked = kind
	:: else ->
		if
		:: state == I -> serve_invalid(kind)
		:: state == S && kind == WP -> begin(UNSHARING, T_UNSHARE)
		:: state == S && kind != WP && has -> wake()
		:: state == S && kind != WP && !has && changing -> retry = kind
		:: state == S && kind != WP && !has && !changing ->
			set_state(D);
			home_begin(1, kind)
		:: state == D -> home_begin(may_share(kind), kind)
		fi
	fi
}

/* ---- out.c -------------------------------------------------------------------------------------------------------- */

/* out_begin() and drop_begin() */
inline out_begin()
{
	slot_busy = 1;
	if
	:: d_step { state == I -> armed = 1 };
		MAY_DIE;
		begin(OUT_MOVE, T_OUT)
	:: state == S -> begin(OUT_MOVE, T_DROP)
	fi
}

#define can_go_out	(!slot_busy && has_room && !(state == I && zapping))

/* ---- event.c ---------------------------------------------------------------------------------------------------------- */

/* lose() */
inline lose(event)
{
	if
	:: transit != REST -> bury()
	/* A discard may not stay: it is noted with the transit. */
	:: transit == REST && state != I -> discards = 1; begin(UNSHARING, T_DISCARD)
	:: else
	fi;
	if
	:: event == REMOVE -> zapping = !BROKEN(skip_zapping)
	:: else
	fi;
	cancel();
	wake()
}

/* The first one of the journal; it leaves it when it has been applied. */
inline apply()
{
	if
	:: journal?[REMOVE] -> lose(REMOVE)
	:: journal?[UNMAP] -> lose(UNMAP)
	fi;
	d_step { journal?_; unapplied-- };
	MAY_DIE
}

/* Its callers go on. */
inline read_events()
{
	d_step {
		do
		:: unread > 0 ->
			events?event;
			unread--;
			journal!event;
			unapplied++;
			cpu_blocked = 0
		:: else -> break
		od;
		if
		:: fault == QUEUED_FAULT -> fault = ASLEEP; fresh = fault_kind; fault_kind = NOBODY
		:: else
		fi;
		event = 0
	};
	MAY_DIE
}

inline event_read()
{
	/* order_hold() */
	if
	:: producer_lag && !BROKEN(skip_hold) -> hold = 1; MAY_DIE
	:: else
	fi;
	if
	:: producer_lag && !BROKEN(skip_hold) && (committed(0) || committed(1))	/* in a moment */
	:: else ->
		read_events();
		reading = 1
	fi
}

/* What was read, one thing in a turn: orders that ended before it, then events, then the hold goes. */
inline event_step()
{
	if
	:: can_reap && !recovering -> reap_one()
	:: !(can_reap && !recovering) && unapplied > 0 -> apply()
	:: else ->
		/* What was voided is taken back, also where it was in COMMIT for a moment, on its way to see the hold. */
		if
		:: dead && order && hold && !BROKEN(miss_commit) -> cancel()
		:: else
		fi;
		if
		:: ended
		:: !ended && dead && order && hold && !BROKEN(miss_commit) &&
		   ring[order - 1].state < FILLING -> reading = 0	/* in a moment */
		:: else -> d_step { hold = hold && recovering; reading = 0 }; MAY_DIE
		fi
	fi
}

/* ---- recover.c ---------------------------------------------------------------------------------------------------------- */

/* settled_state(): @to */
inline settled_state()
{
	d_step {
		place = (ring[0].current && ring[0].state == DONE -> 0 : 1);
		moved = 0;
		what = NO_ORDER;
		if
		:: ring[place].current && ring[place].state == DONE ->
			what = ring[place].kind;
			/* went_out() */
			moved = ring[place].moved || (ring[place].hole && (what == ORDER_MOVE || what == ORDER_DROP))
		:: else
		fi;
		if
		:: served -> to = I
		:: else ->
			if
			:: transit == OUT_MOVE -> to = (moved && !has -> D : (state == S && has -> S : I))
			:: transit == SHARING && state == S && has && wp && !BROKEN(settle_sharing) -> to = S
			:: transit == HOME_COPY ||
			   (transit == SHARING && !(state == S && has && wp && !BROKEN(settle_sharing))) ->
				/* came_home() */
				to = ((has && !BROKEN(settle_home)) || state == I -> I : D)
			/* Its drivers have not answered all: it stays, and who wanted to write comes again. */
			:: transit == UNSHARING -> to = (state == S && has && wp && !BROKEN(settle_unsharing) -> S : I)
			fi;
			NOTE_SETTLED
		fi;
		moved = 0;
		what = NO_ORDER
	}
}

inline settle_transit()
{
	settled_state();
	set_state(to);
	/* Noted as I before the crash, perhaps, and not punched yet: nothing else tells. */
	stale = (to == I -> 1 : stale);
	lifted = (state == I && has && wp);
	transit = REST;
	MAY_DIE;
	punch_stale();
	if
	:: lifted -> uffd_protect(0, ret)
	:: else
	fi
}

#define agent_idle	(unconsumed == 0 && ring[0].state != RUNNING && ring[0].state != COMMIT && \
			 ring[0].state != FILLING && ring[1].state != RUNNING && ring[1].state != COMMIT && \
			 ring[1].state != FILLING)

/* order_commits() */
#define in_critical_call	(ring[0].state == COMMIT || ring[1].state == COMMIT)

inline take_back()
{
	d_step {
		if
		:: ring[0].state == QUEUED || ring[0].state == RUNNING -> ring[0].state = CANCELLED
		:: else
		fi;
		if
		:: ring[1].state == QUEUED || ring[1].state == RUNNING -> ring[1].state = CANCELLED
		:: else
		fi
	};
	MAY_DIE
}

inline recover()
{
	/* take_over(), take_back_orders() */
	recovering = 1;
	hold = 1;
	MAY_DIE;
	take_back();
	do
	:: d_step { agent_idle -> fresh = NOBODY; reaper = consumer; producer_lag = 0 } -> break
	/* A MOVE must not find another mapping there. */
	:: !agent_idle && (!in_critical_call || BROKEN(read_in_commit)) && unread > 0 && len(journal) < 4 -> read_events()
	:: !agent_idle && (ring[0].state == RUNNING || ring[1].state == RUNNING) -> take_back()
	od;
	/* settle_block() */
	if
	:: transit != REST -> settle_transit()
	:: else
	fi;
	d_step {
		entry_update();
		stale = !in_shadow(state);
		odd = 0
	};
	MAY_DIE;
	/* journal_replay() */
	reading = 1
}

inline go_on()
{
	/* drivers_are_awaited() */
	if
	:: has_callbacks -> ask_back = 1; MAY_DIE; !ask_back; MAY_DIE
	:: else
	fi;
	known = has_callbacks;
	slot_busy = 1;
	slot_release();
	recovering = 0;
	hold = 0;
	MAY_DIE;
	wake()
}

/* ---- the worker ------------------------------------------------------------------------------------------------------------- */

/* Whoever sleeps and was heard is noted somewhere: in a list, or by the transit that ends its wait. */
#define cpu_noted	(fault != ASLEEP || parked || retry || fresh || \
			 (transit != REST && (waiter || task == T_UNSHARE)))

inline of_its_own()
{
	if
	:: state == I && can_go_out ->
		if
		:: stale -> punch_stale()
		:: else
		fi;
		out_begin()
	:: state == S && can_go_out -> out_begin()
	:: state == D -> home_begin(0, NOBODY)
#ifdef SHARES
	:: state == D -> home_begin(1, NOBODY)
#endif
	:: state == S -> begin(UNSHARING, T_UNSHARE)
	/* block_settle() */
	:: state == I && armed ->
		zapping = (has -> zapping : 0);
		if
		:: zapping
		:: else ->
			punch_stale();
			d_step { armed = 0; wp = 0 };
			MAY_DIE;
			if
			:: changing -> armed = 1; MAY_DIE
			:: else -> wake()
			fi
		fi
	:: else
	fi
}

/* What the worker does next; what must come first comes first. */
inline turn()
{
	if
	:: ended ->
		ended = 0;
		finish(what)
	:: !ended && waits && !told -> proceed()
	:: !ended && !(waits && !told) && reading -> event_step()
	:: !ended && !(waits && !told) && !reading && recovering -> go_on()
	:: else ->
		assert(cpu_noted);
end_idle:	if
		/* The drivers have answered. */
		:: waits && !told
		/* owner_run(), then the faults of the batch */
		:: d_step { transit == REST && parked -> kind = parked; parked = NOBODY }
		:: d_step { !(transit == REST && parked) && fresh -> kind = fresh; fresh = NOBODY }
		:: d_step { !(transit == REST && parked) && !fresh && retry -> kind = retry; retry = NOBODY }
		:: !(transit == REST && parked) && !fresh &&
		   (unread > 0 || fault == QUEUED_FAULT || hold) -> event_read()
		:: !(transit == REST && parked) && !fresh && can_reap -> reap_one()
		/* order_unstick(): somebody waits and the agent is late. */
		:: parked && order && acts > 0 -> DONE_ONCE(acts); cancel()
		/* Of its own accord: what is asked for, what makes room, what tidies. */
		:: d_step { !(transit == REST && parked) && !fresh && acts > 0 && transit == REST -> DONE_ONCE(acts) };
			of_its_own()
		fi;
		if
		:: kind -> serve_fault(kind)
		:: else
		fi
	fi
}

/* What no later step looks at makes no other states. */
inline scratch()
{
	home = 0;
	ret = OK;
	again = OK;
	clean = 0;
	place = 0;
	finished = finished && ended;
	moved = moved && ended;
	hole = hole && ended;
	what = (ended -> what : NO_ORDER);
	event = 0;
	to = I;
	lifted = 0;
	kind = NOBODY
}

inline clear(n)
{
	ring[n].kind = NO_ORDER;
	ring[n].state = FREE;
	ring[n].moved = 0;
	ring[n].hole = 0;
	ring[n].current = 0;
	own_kind[n] = NO_ORDER
}

inline forget()
{
	task = T_NONE;
	waits = 0;
	dead = 0;
	stale = 0;
	zapping = 0;
	known = 0;
	share = 0;
	waiter = NOBODY;
	order = 0;
	producer_lag = 0;
	reaper = 0;
	own_kind[0] = NO_ORDER;
	own_kind[1] = NO_ORDER;
	slot_busy = 0;
	parked = NOBODY;
	retry = NOBODY;
	fresh = NOBODY;
	ended = 0;
	reading = 0;
	recovering = 0;
	told = 0;
	ask_back = 0;
	scratch()
}

active proctype hmmd()
{
	/* The ledger: nobody but hmmd looks at it, and it outlives it. */
	byte transit;		/* what the block is in */
	byte state;		/* of the page; COMPLETE is that it is S, D or C */
	bit served;		/* it came home or was discarded in the middle of the transit */
	byte unapplied;		/* how many of the journal */

	/* What dies with hmmd. */
	byte task;		/* what the transit does */
	bit waits;		/* ... when its drivers have answered */
	bit dead;		/* the page was unmapped or discarded meanwhile */
	bit stale;		/* something may linger in the shadow */
	bit zapping;		/* a discard may yet take the page */
	bit known;		/* a driver with callbacks is there */
	bit share;		/* home as S */
	byte waiter;		/* the fault that this transit serves */
	byte order;		/* of the block: its place in the ring and one, or 0 */
	byte producer_lag;	/* orders that were not reaped */
	byte reaper;
	byte own_kind[2];	/* NO_ORDER: taken back */
	bit slot_busy;
	byte parked, retry, fresh;
	/* Within one turn. */
	bit home, clean, finished, moved, hole, lifted;
	byte ret, again, place, what, event, to, kind;
	bit ended;		/* an order has, and what becomes of its pages comes next */
	bit reading, recovering, discards;

	/* How often it does something of its own accord, and is killed. */
	byte acts = ACTS, crashes = CRASHES;

life:	if
	:: born -> recover()
	:: else -> d_step { CHOOSE; born = 1; known = has_callbacks }
	fi;
	do
	:: turn();
		d_step {
			scratch();
			/* What the owner has changed has been seen to. */
			limbo = limbo && (transit != REST || unread || unapplied || ended || recovering);
			if
			:: transit == REST && !producer_lag && !unconsumed -> clear(0); clear(1); reaper = 0; consumer = 0
			:: else
			fi
		}
	od;
killed:	skip;
	d_step { forget() };
	goto life
}
