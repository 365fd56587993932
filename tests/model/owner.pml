/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * owner.pml - a thread of the program, and the library's agent (libclient/agent.c,
 * order.c, move.c).
 */

/* ---- the program ------------------------------------------------------------------------ */

/* A thread that is woken may do something else: a signal came. */
inline cpu_fault(kind)
{
	d_step { born && armed && (kind == WP -> has && wp : !has) -> fault = QUEUED_FAULT; fault_kind = kind };
	fault == AWAKE
}

/* madvise(MADV_DONTNEED): of what is watched the event first, and the zap when it was read. */
inline cpu_discard()
{
	if
	:: d_step { !armed -> has = 0; val = ZERO; wp = 0; forgotten() }
	:: d_step { armed ->
		/* From now on nobody may count on what was there. */
		zero_is_right = 1;
		events!REMOVE;
		unread++;
		limbo = 1;
		cpu_blocked = 1
	   };
		!cpu_blocked;
		d_step {
			has = 0;
			val = ZERO;
			wp = 0;
			forgotten()
		}
	fi
}

/* Something else is mapped there: the change first, and then its event. */
inline cpu_unmap()
{
	d_step {
		if
		:: armed ->
			events!UNMAP; unread++;
			limbo = 1;
			cpu_blocked = 1
		:: else
		fi;
		has = 0;
		val = ZERO;
		wp = 0;
		armed = 0;
		forgotten()
	};
	!cpu_blocked
}

/* All that it can do, as often as it likes. */
active proctype cpu()
{
end:	do
	/* a load */
	:: d_step { has -> assert(RIGHT(val)); assert(device_entry != WRITE || limbo) }
	/* a store */
	:: d_step { has && !wp ->
		/* Whoever keeps an entry of his own has let go of it by now. */
		assert(device_entry == NOBODY || limbo);
		stored(val)
	   }
	/* a fault of which hmmd does not hear */
	:: d_step { !has && !armed -> has = 1; val = ZERO; wp = 0 }
	:: cpu_fault(READ)
	:: cpu_fault(WRITE)
	:: cpu_fault(WP)
#ifdef DISCARDS
	:: cpu_discard()
	:: cpu_unmap()
#endif
	od
}

/* ---- the agent ---------------------------------------------------------------------------- */

#define this	ring[consumer]

/* With the order in COMMIT and no hold up: committed. */
inline commit(ret)
{
	do
	:: d_step { this.state == RUNNING -> this.state = COMMIT };
		if
		/* hmmc_order_step_back() */
		:: hold -> this.state = RUNNING; !hold || this.state == CANCELLED
		:: !hold -> ret = 1; break
		fi
	:: this.state == CANCELLED -> ret = 0; break
	od
}

/* UFFDIO_MOVE to the slot: the gate is the owner's userfaultfd. */
inline move_out(ret)
{
	do
	:: commit(ret);
		if
		:: !ret -> break
		:: else ->
			/* An event is unread: not now. */
			if
			:: d_step { changing -> this.state = RUNNING }
			:: d_step { !changing && has ->
				slot_has = 1;
				slot_val = val;
				has = 0;
				val = ZERO;
				wp = 0;
				this.moved = 1
			   } -> break
			:: d_step { !changing && !has -> this.hole = 1 } -> break
			fi
		fi
	od
}

inline fill()
{
	d_step {
		if
		:: this.moved -> shadow_has = 1; shadow_val = slot_val
		:: else
		fi
	}
}

inline finish_order()
{
	d_step {
		this.state = (this.state == CANCELLED -> CANCELLED : DONE);
		consumer = 1 - consumer;
		unconsumed--
	}
}

inline pass_order()
{
	d_step {
		consumer = 1 - consumer;
		unconsumed--
	}
}

inline order_out(keep)
{
	move_out(go);
	if
	:: !go -> pass_order()
	:: else ->
		this.state = FILLING;
		if
		:: keep -> fill()
		:: else
		fi;
		finish_order()
	fi
}

active proctype agent()
{
	bit go;

end:	do
	:: d_step { unconsumed > 0 && this.state == CANCELLED -> consumer = 1 - consumer; unconsumed-- }
	:: d_step { unconsumed > 0 && this.state == QUEUED -> this.state = RUNNING; go = 0 };
		if
		:: this.kind == ORDER_MOVE -> order_out(1)
		:: this.kind == ORDER_DROP -> order_out(0)
		:: this.kind == ORDER_RELEASE ->
			d_step { slot_has = 0; slot_val = ZERO };
			finish_order()
		fi;
		go = 0
	od
}
