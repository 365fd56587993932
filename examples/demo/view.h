/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * view.h - how the index is reached from here: through plain pointers (the
 * process's own memory, or a window at the owner's addresses), or without a
 * window by asking hmmd for every access.
 */
#ifndef DEMO_VIEW_H
#define DEMO_VIEW_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct hmm_mirror;

struct view {
	struct hmm_mirror *mirror;	/* NULL: pointers are good as they are */
	char *cache;			/* of what was read through the mirror */
	const char **cached;		/* which of the owner's addresses each line holds */
	int error;			/* the first that happened; all later reads give zeros */
	uint64_t stores;
};

/* Reads without a window remember what they read: only for what stands still. */
int view_init_remote(struct view *view, struct hmm_mirror *mirror);
void view_deinit(struct view *view);

void view_fetch(struct view *view, const void *from, void *to, size_t size);
void view_put(struct view *view, void *to, const void *from, size_t size);

/* One field that its writer stores atomically. @field is the owner's pointer. */
#define view_load(view, field)                                          \
	({                                                              \
		__typeof__(*(field)) value_;                            \
		if ((view)->mirror)                                     \
			view_fetch(view, field, &value_, sizeof(value_)); \
		else                                                    \
			value_ = __atomic_load_n(field, __ATOMIC_ACQUIRE); \
		value_;                                                 \
	})

#define view_store(view, field, value)                                  \
	do {                                                            \
		__typeof__(*(field)) value_ = (value);                  \
		if ((view)->mirror)                                     \
			view_put(view, field, &value_, sizeof(value_)); \
		else                                                    \
			__atomic_store_n(field, value_, __ATOMIC_RELEASE); \
		(view)->stores++;                                       \
	} while (0)

/* Bytes that never change any more. */
static inline void view_bytes(struct view *view, const void *from, void *to, size_t size)
{
	if (view->mirror)
		view_fetch(view, from, to, size);
	else
		memcpy(to, from, size);
}

#endif
