/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Passing packet -> a CPU, where the NIC has fewer queues than the machine has cores.
 * Both directions of a flow, and its fragments' neighbours as far as ports are known,
 * give the same CPU. Redirected packets go through a cpumap to the network stack.
 */
#ifndef XGW_SPREAD_H
#define XGW_SPREAD_H

#include "keys.h"
#include "maps.h"

static __always_inline int spread(const struct packet *p)
{
	__u32 zero = 0, index;
	__u32 *count = bpf_map_lookup_elem(&cpu_count, &zero);
	__u64 hash;

	if (!count || *count < 2 || !p->family)
		return XDP_PASS;
	hash = address_key(p->source, p->family) ^ address_key(p->destination, p->family) ^
	       low_key(p->source, p->family) ^ low_key(p->destination, p->family);
	hash = mix(mix(hash_seed, hash), p->source_port ^ p->destination_port);
	index = (hash >> 32) % *count;
	/* Where there is no such CPU the packet passes as it is. */
	return bpf_redirect_map(&cpus, index, XDP_PASS);
}

#endif
