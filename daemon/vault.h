/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vault.h - memory of hmmd's own for the bytes of programs: it is locked, so it is never on a disk, and in no child.
 *
 * Any thread may call.
 */
#ifndef HMMD_VAULT_H
#define HMMD_VAULT_H

#include <stdbool.h>
#include <stddef.h>

/* At least a whole message. */
#define VAULT_MAX (128UL << 10)

/* NULL: there is no memory, or @size is more than VAULT_MAX. Its content is undefined. */
void *vault_alloc(size_t size);
bool vault_has(const void *memory);
/* Of vault_alloc() or of malloc(), or NULL. */
void vault_free(void *memory);

#endif
