/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * public.h - the public headers, whose functions alone leave the library, then
 * the protocol, which takes the enums that both have from the public ones.
 */
#ifndef HMMC_PUBLIC_H
#define HMMC_PUBLIC_H

#pragma GCC visibility push(default)
#include <hmm/hmm.h>
#pragma GCC visibility pop

#include "frame.h"
#include "hmm_protocol.h"
#include "proto/layout.h"
#include "proto/uapi.h"

#endif
