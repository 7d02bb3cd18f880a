/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sources that have proved their address: they acknowledged the number of a SYN-ACK
 * that this host sent them. tc_egress notes the number, the ACK is looked for among
 * the notes, and the source gets an exact entry. A spoofed source never sees the
 * number, so no stranger can make or push out an entry.
 *
 * Entries are in sets of eight. A new one takes an empty place, else that of the
 * source not seen for the longest time; both kinds of loss are counted.
 */
#ifndef XGW_VERIFIED_H
#define XGW_VERIFIED_H

#include "clock.h"
#include "keys.h"
#include "maps.h"

static __always_inline struct table_events *counts_of_tables(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&table_counts, &zero);
}

static __always_inline struct verified_set *verified_set(__u64 source)
{
	__u32 place = mix(hash_seed, source) >> 32 & (VERIFIED_SETS - 1);

	return bpf_map_lookup_elem(&verified, &place);
}

static __always_inline struct verified_state *verified_state(__u64 source)
{
	__u32 place = mix(hash_seed, source) >> 32 & (VERIFIED_SETS - 1);

	return bpf_map_lookup_elem(&verified_states, &place);
}

/* One more than the place of the source in its set, or 0. Words are read whole, so no lock. */
static __always_inline __u64 verified_way(const struct verified_set *set, __u64 source)
{
	__u64 way = 0;

	for (__u64 i = 0; i < VERIFIED_WAYS; i++)
		way |= (i + 1) & (0 - same(set->source[i], source));
	return source ? way : 0;
}

/* Notes the place of the packet's source. Through memory, and so the walk is one. */
static __always_inline void find_verified(struct work *w)
{
	__u64 source = source_key(&w->packet);
	struct verified_set *set = verified_set(source);

	UNKNOWN(w->way) = set ? verified_way(set, source) : 0;
}

static __always_inline bool is_verified(const struct packet *p)
{
	__u64 source = source_key(p);
	struct verified_set *set = verified_set(source);

	return set && verified_way(set, source);
}

static __always_inline void verify(__u64 source, __u64 now)
{
	struct verified_set *set = verified_set(source);
	struct verified_state *state = verified_state(source);
	struct table_events *counts = counts_of_tables();
	__u32 which = mix(hash_seed, source) >> 32 & (VERIFIED_LOCKS - 1);
	struct set_lock *l = bpf_map_lookup_elem(&verified_locks, &which);
	__u64 oldest = 1ULL << 62, was, seen, way = 0;

	if (!set || !state || !counts || !l || !source)
		return;
	bpf_spin_lock(&l->lock);
	for (__u64 i = 0; i < VERIFIED_WAYS; i++) {
		/* The source's own place is older than any, then an empty one, whose age is 1. */
		__u64 age = (state->seen[i] + 1) & (same(set->source[i], source) - 1);
		__u64 older = 0 - above(oldest, age);

		oldest = (age & older) | (oldest & ~older);
		way = (i & older) | (way & ~older);
	}
	way &= VERIFIED_WAYS - 1;
	was = set->source[way];
	seen = state->seen[way];
	set->source[way] = source;
	state->seen[way] = now;
	if (was != source)
		for (int i = 0; i < COUNT_KINDS; i++)
			state->tat[way * COUNT_KINDS + i] = 0;
	bpf_spin_unlock(&l->lock);
	if (was == source)
		return;
	counts->verified_added++;
	if (was && now - seen > VERIFIED_IDLE_NS)
		counts->verified_idle++;
	else if (was)
		counts->verified_live++;
}

static __always_inline struct handshake *handshake_at(__u64 hash)
{
	__u32 place = hash & (HANDSHAKES - 1);

	return bpf_map_lookup_elem(&handshakes, &place);
}

/* tc_egress: a SYN-ACK goes to p's destination. */
static __always_inline void note_syn_ack(const struct packet *p)
{
	__u64 hash = flow_hash(p->destination, p, p->destination_port, p->source_port);
	struct handshake *h = handshake_at(hash);
	struct table_events *counts = counts_of_tables();
	__u32 tag = hash >> 32;

	if (!h || !counts)
		return;
	if (h->tag && h->tag != tag)
		counts->handshake_lost++;
	h->ack = bpf_ntohl(p->sequence) + 1;
	h->tag = tag;
}

/* xdp_ingress: does this ACK answer a SYN-ACK? */
static __always_inline void match_ack(const struct packet *p, const struct clock *clock)
{
	__u64 hash = flow_hash(p->source, p, p->source_port, p->destination_port);
	struct handshake *h = handshake_at(hash);

	if (!h || !h->tag || h->tag != (__u32)(hash >> 32) ||
	    h->ack != bpf_ntohl(p->acknowledgment))
		return;
	h->tag = 0;
	verify(source_key(p), clock_now(clock));
}

static __always_inline struct own_flow *own_flow_at(__u64 hash)
{
	__u32 place = hash & (OWN_FLOWS - 1);

	return bpf_map_lookup_elem(&own_flows, &place);
}

/* tc_egress: this host opens a connection to p's destination. */
static __always_inline void note_own_flow(const struct packet *p)
{
	__u64 hash = flow_hash(p->destination, p, p->destination_port, p->source_port);
	struct own_flow *f = own_flow_at(hash);

	if (!f || f->flow[0] == hash)
		return;
	f->flow[1] = f->flow[0];
	f->flow[0] = hash;
}

static __always_inline bool is_own_flow(const struct packet *p)
{
	__u64 hash = flow_hash(p->source, p, p->source_port, p->destination_port);
	struct own_flow *f = own_flow_at(hash);

	return f && (f->flow[0] == hash || f->flow[1] == hash);
}

/*
 * Does a SYN of a source that has not proved its address come to a CPU whose worker has
 * no handshakes left, and is it one of the three of four that go?
 */
static __always_inline bool is_pressed(const struct packet *p, const struct clock *clock)
{
	__u32 cpu = bpf_get_smp_processor_id();
	__u64 *until = bpf_map_lookup_elem(&pressure, &cpu);

	return until && *until && *until > clock_now(clock) && (clock_chance(clock) & 3) &&
	       !is_verified(p);
}

#endif
