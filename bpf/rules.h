/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Rules that need no state: which ports are served, and who is spared whatever
 * else is decided.
 */
#ifndef XGW_RULES_H
#define XGW_RULES_H

#include "limit.h"

/* May a new flow go to the packet's destination port? */
static __always_inline bool is_served(__u32 generation, const struct packet *p)
{
	__u32 port = bpf_ntohs(p->destination_port), place = port >> 6;
	void *rows = bpf_map_lookup_elem(&gen_ports, &generation);
	struct port_row *row = rows ? bpf_map_lookup_elem(rows, &place) : NULL;

	if (!row)
		return true; /* cannot be: a generation has all of its tables */
	return (p->protocol == IPPROTO_TCP ? row->tcp : row->udp) >> (port & 63) & 1;
}

static __always_inline bool in_pinhole(const struct packet *p)
{
	__u64 high = address_key(p->source, p->family), low = low_key(p->source, p->family);
	__u32 zero = 0, port = bpf_ntohs(p->destination_port);
	struct pinhole_list *holes = bpf_map_lookup_elem(&pinholes, &zero);

	if (!holes || !holes->count || !port || p->protocol != IPPROTO_TCP)
		return false;
	if (p->family == 4) {
		low = high;
		high = 0;
	}
	for (int i = 0; i < MAX_PINHOLES; i++) {
		const struct pinhole *h = &holes->entry[i];

		if (h->port == port && (high & h->high_mask) == h->high &&
		    (low & h->low_mask) == h->low)
			return true;
	}
	return false;
}

/* Of TCP that asks for a connection, and so answers nothing. */
static __always_inline bool opens_tcp(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP &&
	       (p->tcp_flags & (TCP_BITS_SYN | TCP_BITS_ACK)) == TCP_BITS_SYN;
}

/* Has the connection a lane of its own, and room in it? */
static __always_inline bool in_fast_lane(const struct packet *p, const struct clock *clock)
{
	__u64 hash = flow_hash(p->source, p, p->source_port, p->destination_port), way = 0;
	__u32 place = hash & (LANE_ROWS - 1);
	struct lane_row *row = bpf_map_lookup_elem(&lanes, &place);

	if (!row || p->protocol != IPPROTO_TCP)
		return false;
	for (__u64 i = 0; i < LANE_WAYS; i++)
		way |= (i + 1) & (0 - same(row->entry[i].flow, hash));
	return way && conform(&row->entry[(way - 1) & (LANE_WAYS - 1)].tat, LANE_COST >> 10,
			      LANE_TOLERANCE, clock_now(clock) << 6);
}

/*
 * A packet that is about to be dropped: administrators and replies to connections
 * of this host go through all the same, the former within a budget, since their
 * addresses can be forged. So do, by a verdict, connections with a lane of their own. Asked only here, so passing packets pay nothing for it.
 */
static __always_inline enum outcome spare(enum outcome o, const struct packet *p, __u32 row,
					  const struct clock *clock)
{
	struct queue_bucket *b;

	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return o;
	if (!opens_tcp(p) && is_own_flow(p))
		return OUTCOME_pass_own_flow;
	if (o >= OUTCOME_drop_verdict_thin && o <= OUTCOME_drop_verdict_all && !opens_tcp(p) &&
	    in_fast_lane(p, clock))
		return OUTCOME_pass_fast_lane;
	if (!in_pinhole(p))
		return o;
	b = bpf_map_lookup_elem(&queue_buckets, &row);
	if (b && !conform(&b->admin, ADMIN_COST >> 10, ADMIN_TOLERANCE, clock_now(clock) << 6))
		return o;
	return OUTCOME_pass_admin;
}

#endif
