/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * kernel.pml - the calls that hmmd and the agent make, each in one step, and what bytes are
 * right. KERNEL.md and tests/contract say that they do so.
 */

#define OK		0
#define E_AGAIN		1
#define E_EXIST		2
#define E_NOENT		3

/* ---- what is right ------------------------------------------------------------------ */

/* Somebody stores to this copy. */
inline stored(copy)
{
	val = (val == LAST -> OLD : val);
	slot_val = (slot_val == LAST -> OLD : slot_val);
	shadow_val = (shadow_val == LAST -> OLD : shadow_val);
	copy = LAST;
	last_is_right = 1;
	zero_is_right = 0
}

/* What was stored is nobody's any more. */
inline forgotten()
{
	val = (val == LAST -> OLD : val);
	slot_val = (slot_val == LAST -> OLD : slot_val);
	shadow_val = (shadow_val == LAST -> OLD : shadow_val);
	last_is_right = 0;
	zero_is_right = 1
}

#define RIGHT(bytes)	((bytes == LAST && last_is_right) || (bytes == ZERO && zero_is_right))

/* ---- the owner's userfaultfd ------------------------------------------------------------ */

inline wake()
{
	d_step { fault = AWAKE; fault_kind = NOBODY };
	MAY_DIE
}

#define FROM_NOWHERE	0	/* ZEROPAGE */
#define FROM_SHADOW	1

/* COPY, or ZEROPAGE, of a page */
inline uffd_copy(source, protect, wakes, ret)
{
	d_step {
		if
		:: changing -> ret = E_AGAIN
		:: !changing && !armed -> ret = E_NOENT
		:: !changing && armed && has -> ret = E_EXIST
		:: else ->
			has = 1;
			val = (source == FROM_SHADOW && shadow_has -> shadow_val : ZERO);
			wp = protect;
			fault_kind = (wakes -> NOBODY : fault_kind);
			fault = (wakes -> AWAKE : fault);
			ret = OK
		fi
	};
	MAY_DIE
}

inline uffd_protect(on, ret)
{
	d_step {
		if
		:: changing -> ret = E_AGAIN
		:: !changing && !armed -> ret = E_NOENT
		:: else ->
			if
			:: on && has -> wp = 1
			:: on && !has
			:: !on ->
				wp = 0;
				fault = AWAKE;
				fault_kind = NOBODY
			fi;
			ret = OK
		fi
	};
	MAY_DIE
}

/* ---- the shadow ---------------------------------------------------------------------------- */

inline punch()
{
	d_step { shadow_has = 0; shadow_val = ZERO };
	MAY_DIE
}
