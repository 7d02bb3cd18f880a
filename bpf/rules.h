/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Rules: is the source of this packet in a denied prefix? An empty table costs
 * one array look-up, which the kernel inlines, and no LPM walk.
 */
#ifndef XGW_RULES_H
#define XGW_RULES_H

#include "maps.h"
#include "parse.h"

static __always_inline bool denied(const struct packet *p)
{
	__u32 family = p->family == 6;
	__u32 *entries = bpf_map_lookup_elem(&deny_sizes, &family);

	if (!entries || !*entries)
		return false;
	if (family) {
		struct prefix6 key = { .prefixlen = 128 };

		__builtin_memcpy(key.addr, p->source, sizeof(key.addr));
		return bpf_map_lookup_elem(&deny6, &key);
	} else {
		struct prefix4 key = { .prefixlen = 32 };

		__builtin_memcpy(key.addr, p->source, sizeof(key.addr));
		return bpf_map_lookup_elem(&deny4, &key);
	}
}

#endif
