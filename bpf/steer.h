/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * New connection -> a worker's listening socket.
 *
 * The worker of the CPU that received the SYN takes it, so that a connection
 * stays on one core from the queue to the reply. Where that worker is away, any
 * other one does. The kernel's own choice among the group's sockets is never let
 * stand: it would include sockets of workers that are gone, in whose queue the
 * connection would hang. No worker at all refuses the connection.
 */
#ifndef XGW_STEER_H
#define XGW_STEER_H

#include "maps.h"

static __always_inline int steer(struct sk_reuseport_md *md, __u32 cpu)
{
	__u32 zero = 0, slot;
	struct steer_counts *counts = bpf_map_lookup_elem(&steered, &zero);
	__u32 *own = bpf_map_lookup_elem(&cpu_slots, &cpu);

	if (!counts)
		return SK_DROP; /* cannot be: an array of one */
	if (own) {
		slot = *own;
		if (bpf_sk_select_reuseport(md, &workers, &slot, 0) == 0) {
			counts->local++;
			return SK_PASS;
		}
	}
	for (__u32 i = 0; i < MAX_WORKERS; i++) {
		slot = i;
		if (bpf_sk_select_reuseport(md, &workers, &slot, 0) == 0) {
			counts->fallback++;
			return SK_PASS;
		}
	}
	counts->refused++;
	return SK_DROP;
}

#endif
