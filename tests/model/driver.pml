/* SPDX-License-Identifier: GPL-2.0-or-later */
/* driver.pml - what the library does for a driver: its callback, and coming back to another hmmd. */

#ifdef CALLBACKS
/*
 * It keeps entries of its own, which it takes from the table where the block's number is even. It lets
 * go of them in its callback.
 */
active proctype driver()
{
end:	do
	:: d_step { !told && !odd && entry != NOBODY && born && device_entry != entry -> device_entry = entry }
	:: d_step { told -> device_entry = NOBODY; told = 0 }
	:: d_step { ask_back -> device_entry = NOBODY; told = 0; ask_back = 0 }
	od
}
#endif
