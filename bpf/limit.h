/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Limits: the generic cell rate algorithm, with time as a parameter. Times are in
 * 2^-6 ns of CLOCK_MONOTONIC, which lasts nine years from boot.
 *
 * A bucket holds the theoretical arrival time (tat) of each thing that is counted.
 * A packet's charge moves it on; a packet that would move it further ahead of now
 * than the tolerance is over the limit, and charges nothing.
 *
 * Limits are asked the narrowest first: source, prefix, port, queue, interface. So
 * what a narrow limit stops never draws on a wide one, and one loud source cannot
 * use up the queue of all others.
 *
 * Each key is a function of its own: what comes back from it is one bit, so the
 * verifier walks the rest only once.
 *
 * In the buckets that many sources share, strangers may use three quarters of the
 * burst; the last quarter is for sources that completed a handshake. Under a flood
 * of strangers these are served first, and the limit still holds.
 */
#ifndef XGW_LIMIT_H
#define XGW_LIMIT_H

#include "verified.h"

/* What one packet asks of a bucket. */
struct charge {
	__u64 amount[COUNT_KINDS]; /* 2^-6 ns; 0: nothing of this count */
	__u64 tolerance[COUNT_KINDS];
	__u64 reserve[COUNT_KINDS]; /* of the tolerance */
	__u64 any;		    /* not 0: some amount is not */
	__u32 dry;		    /* counts, as bits, that are told but not held */
};

static __always_inline __u64 charge_of(__u64 cost, __u32 count, const struct request *r)
{
	__u64 units = count == COUNT_SYNS ? r->syns : count == COUNT_BYTES ? r->bytes : 1;

	return (cost * units) >> 10;
}

static __always_inline void fill_charge(struct charge *c, const struct limit *limits,
					const struct request *r)
{
	c->any = 0;
	c->dry = 0;
	for (int i = 0; i < COUNT_KINDS; i++) {
		c->amount[i] = charge_of(limits[i].cost, i, r);
		c->tolerance[i] = limits[i].tolerance;
		c->reserve[i] = limits[i].reserve;
		c->any |= c->amount[i];
		c->dry |= limits[i].dry_run << i;
	}
}

/*
 * How far ahead of now an arrival time would be after the amount; in arithmetic, as
 * all that is asked of each count: see same().
 */
static __always_inline __u64 due(__u64 tat, __u64 amount, __u64 now)
{
	__s64 ahead = tat - now;

	return (ahead & ~(ahead >> 63)) + amount;
}

/* Moves one arrival time on by the amount; false, and nothing moved, when it is over. */
static __always_inline bool conform(__u64 *tat, __u64 amount, __u64 tolerance, __u64 now)
{
	__u64 ahead = due(*tat, amount, now);

	if (ahead > tolerance)
		return false;
	*tat = now + ahead;
	return true;
}

/*
 * Charges all counts or, when one that is held is over, none. Returns the counts
 * that are over, as bits. held_back: ~0 keeps the reserve from the packet.
 */
static __always_inline __u32 charge(__u64 *tat, const struct charge *c, __u64 now, __u64 held_back)
{
	__u64 ahead[COUNT_KINDS], moves[COUNT_KINDS];
	__u32 over = 0;

	for (int i = 0; i < COUNT_KINDS; i++) {
		__u64 amount = c->amount[i], asked = (0 - amount) >> 63;
		__u64 beyond;

		ahead[i] = due(tat[i], amount, now);
		beyond = asked & above(ahead[i], c->tolerance[i] - (c->reserve[i] & held_back));
		moves[i] = asked & ~beyond;
		over |= beyond << i;
	}
	if (over & ~c->dry)
		return over;
	for (int i = 0; i < COUNT_KINDS; i++)
		tat[i] += (now + ahead[i] - tat[i]) & (0 - moves[i]);
	return over;
}

/* The exact entry of a source: false when it has none. */
static __always_inline bool take_verified(__u64 source, const struct charge *c, __u64 ns,
					  __u32 *over)
{
	struct verified_set *set = verified_set(source);
	__u64 way = set ? verified_way(set, source) : 0;
	__u64 *tat;

	if (!set || !way)
		return false;
	way = (way - 1) & (VERIFIED_WAYS - 1);
	tat = &set->tat[way * COUNT_KINDS];
	bpf_spin_lock(&set->lock);
	*over = charge(tat, c, ns << 6, 0);
	set->seen[way] = ns;
	bpf_spin_unlock(&set->lock);
	return true;
}

/*
 * Keys without an exact entry are unbounded and can be forged, so their buckets are a
 * sketch of fixed size: two rows, one bucket in each. Only when both are over is the
 * packet over: a key is hurt by others only where it meets heavy ones in both rows.
 * The price is that a key may get up to twice its rate while its buckets are filled
 * unevenly by others, never less than its rate.
 *
 * When a flood of many keys has filled both buckets, and neither was last charged by
 * this key, the sketch knows nothing of it: the packet is let by, *crowded is set,
 * and wider limits decide.
 */
static __always_inline __u32 take_sketch(void *sketch, __u32 size, __u64 key,
					 const struct charge *c, __u64 now, __u64 held_back,
					 bool *crowded)
{
	__u64 hash = mix(mix(hash_seed, key), hash_seed);
	__u32 tag = hash >> 40 | 1, all = ~0U;
	__u64 mine = 0;

	for (int row = 0; row < 2; row++) {
		__u32 place = row * size + (hash & (size - 1)), over;
		struct bucket *b = bpf_map_lookup_elem(sketch, &place);

		if (!b)
			return 0; /* cannot be; and a limit never fails closed */
		bpf_spin_lock(&b->lock);
		over = charge(b->tat, c, now, held_back);
		mine |= same(b->tag, tag);
		/* Charged, so it is this key's now. */
		b->tag ^= (b->tag ^ tag) & (0 - same(over & ~c->dry, 0));
		bpf_spin_unlock(&b->lock);
		all &= over;
		hash >>= 20;
	}
	*crowded = all && !mine;
	return mine ? all : 0;
}

static __always_inline void count_limit(__u32 slot, bool dry, __u64 bytes)
{
	struct over_counts *counts = bpf_map_lookup_elem(&limit_counts, &slot);

	if (!counts)
		return;
	if (dry) {
		counts->dry_run.packets++;
		counts->dry_run.bytes += bytes;
	} else {
		counts->dropped.packets++;
		counts->dropped.bytes += bytes;
	}
}

/* Counts the limits of one key that are over; whether one of them holds. */
static __always_inline bool settle(__u32 over, const struct charge *c, __u32 first, __u64 bytes,
				   __u64 *slots)
{
	if (!over)
		return false;
	for (int i = 0; i < COUNT_KINDS; i++)
		if (over & 1U << i)
			count_limit(first + i, c->dry & 1U << i, bytes);
	*slots |= (__u64)over << first;
	return over & ~c->dry;
}

static __noinline bool over_source_limit(const struct tables *t, const struct packet *p,
					 const struct request *r, __u64 *slots)
{
	__u64 source = source_key(p);
	struct charge c;
	bool crowded = false;
	__u32 over = 0;

	fill_charge(&c, t->source, r);
	if (!c.any)
		return false;
	if (!take_verified(source, &c, r->now, &over))
		over = take_sketch(&source_sketch, SOURCE_ROW, source, &c, r->now << 6, 0,
				   &crowded);
	if (crowded) {
		struct table_events *counts = counts_of_tables();

		if (counts)
			counts->source_bypass++;
	}
	return settle(over, &c, SLOT_SOURCE, r->bytes, slots);
}

static __noinline bool over_prefix_limit(const struct tables *t, const struct packet *p,
					 const struct request *r, __u64 *slots)
{
	bool crowded = false;
	struct charge c;
	__u32 over;

	fill_charge(&c, t->prefix, r);
	if (!c.any)
		return false;
	over = take_sketch(&prefix_sketch, PREFIX_ROW, prefix_key(p), &c, r->now << 6,
			   is_verified(p) ? 0 : ~0ULL, &crowded);
	if (crowded) {
		struct table_events *counts = counts_of_tables();

		if (counts)
			counts->prefix_bypass++;
	}
	return settle(over, &c, SLOT_PREFIX, r->bytes, slots);
}

/* The queue's own CPU is the only one here, but in generic and tc mode: see queue_bucket. */
static __noinline bool over_queue_limit(const struct tables *t, const struct packet *p,
					const struct request *r, __u64 *slots)
{
	struct queue_bucket *b;
	struct charge c;
	__u32 over;

	fill_charge(&c, t->queue, r);
	if (!c.any)
		return false;
	b = bpf_map_lookup_elem(&queue_buckets, &r->row);
	if (!b)
		return false; /* cannot be: there is a bucket for each row */
	over = charge(b->tat, &c, r->now << 6, ~0ULL);
	if ((over & ~c.dry) && is_verified(p))
		over = charge(b->tat, &c, r->now << 6, 0);
	return settle(over, &c, SLOT_QUEUE, r->bytes, slots);
}

/* Draws on a bucket that all CPUs share; each takes a batch and lives on it. */
static __always_inline bool over_shared_limit(const struct limit *l, __u32 slot, __u64 amount,
					      const struct packet *p, __u64 now)
{
	__u64 *credit = bpf_map_lookup_elem(&shared_credits, &slot), wanted;
	struct shared_bucket *b;
	__u64 tolerance = l->tolerance;
	bool conforms;

	if (!credit)
		return false;
	if (*credit >= amount) {
		*credit -= amount;
		return false;
	}
	b = bpf_map_lookup_elem(&shared_buckets, &slot);
	if (!b)
		return false;
	wanted = amount > l->batch ? amount : l->batch;
	if (l->reserve && !is_verified(p))
		tolerance -= l->reserve;
	bpf_spin_lock(&b->lock);
	conforms = conform(&b->tat, wanted, tolerance, now << 6);
	if (!conforms) {
		wanted = amount;
		conforms = conform(&b->tat, wanted, tolerance, now << 6);
	}
	bpf_spin_unlock(&b->lock);
	if (conforms)
		*credit += wanted - amount;
	return !conforms;
}

/* One limit on a shared bucket; whether it stops the packet. */
static __noinline bool over_one(const struct limit *l, __u32 count, const struct packet *p,
				const struct request *r, __u64 *slots)
{
	__u64 amount = charge_of(l->cost, count, r);
	__u32 slot = l->slot;

	if (!amount || !over_shared_limit(l, slot, amount, p, r->now))
		return false;
	count_limit(slot, l->dry_run, r->bytes);
	*slots |= 1ULL << (slot & 63);
	return !l->dry_run;
}

static __noinline bool over_interface_limit(const struct tables *t, const struct packet *p,
					    const struct request *r, __u64 *slots)
{
	for (__u32 i = 0; i < COUNT_KINDS; i++)
		if (over_one(&t->interface[i], i, p, r, slots))
			return true;
	return false;
}

static __noinline bool over_port_limit(const struct tables *t, const struct packet *p,
				       const struct request *r, __u64 *slots)
{
	__u32 port = bpf_ntohs(p->destination_port), place = port >> 6;
	void *rows = bpf_map_lookup_elem(&gen_ports, &r->slot);
	struct port_row *row = rows ? bpf_map_lookup_elem(rows, &place) : NULL;
	__u32 found = row ? row->limit[port & 63] : 0;

	if (!found)
		return false;
	for (__u32 i = 0; i < COUNT_KINDS; i++)
		if (over_one(&t->port[(found - 1) & (MAX_PORT_LIMITS - 1)].limit[i], i, p, r,
			     slots))
			return true;
	return false;
}

/* One of a queue's budgets; a packet over it is dropped. */
static __always_inline bool over_budget(__u64 *tat, const struct budget *b, __u64 now)
{
	return b->cost && !conform(tat, b->cost >> 10, b->tolerance, now << 6);
}

#endif
