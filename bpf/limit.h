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
 * In the buckets that many sources share, strangers may use three quarters of the
 * burst; the last quarter is for sources that completed a handshake. Under a flood
 * of strangers these are served first, and the limit still holds.
 */
#ifndef XGW_LIMIT_H
#define XGW_LIMIT_H

#include "verified.h"

#define COUNTS ((1U << COUNT_KINDS) - 1)

/* What a key's limits count of this packet, as bits. */
static __always_inline __u32 asked(const struct tables *t, const struct request *r,
				   enum limit_slot first)
{
	return t->active >> first & r->counts;
}

/* One packet's, in 2^-6 ns. */
static __always_inline __u64 amount_of(const struct limit *l, __u32 count, const struct request *r)
{
	return (count == COUNT_BYTES ? l->cost * r->bytes : l->cost) >> 10;
}

/* How far ahead of now an arrival time would be after the amount. */
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
 * Nobody owes a limit more than its tolerance, unless the limit was another one when the
 * debt was made: then what is beyond is forgiven, or a limit that was loosened would stay
 * closed for as long as the old one would have.
 */
static __always_inline void forgive(__u64 *tat, __u64 tolerance, __u64 now)
{
	if ((__s64)(*tat - now) > (__s64)tolerance)
		*tat = now + tolerance;
}

/* Of the counts that are over, is there one that is held? */
static __always_inline bool is_held(const struct limit *limits, __u32 over)
{
	__u32 held = 0;

	for (int i = 0; i < COUNT_KINDS; i++)
		held |= over >> i & (limits[i].dry_run ^ 1);
	return held & 1;
}

/*
 * Charges all counts that are asked for or, when one that is held is over, none. Returns
 * those that are over, as bits. held_back: ~0 keeps the reserve from the packet.
 *
 * There is no lock. What is charged to a bucket that is in use is added atomically, so
 * none of it is lost; but CPUs that look at the same moment may all find room where there
 * is room for one, and of those that find the bucket empty one charge may stay. So a
 * bucket may let one packet a CPU more through than its burst.
 */
static __always_inline __u32 charge(__u64 *tat, const struct limit *limits, __u32 counts,
				    const struct request *r, __u64 held_back)
{
	__u64 now = r->now << 6;
	__u32 over = 0;

	for (int i = 0; i < COUNT_KINDS; i++) {
		const struct limit *l = &limits[i];

		if (counts & 1U << i)
			over |= above(due(tat[i], amount_of(l, i, r), now),
				      l->tolerance - (l->reserve & held_back))
				<< i;
	}
	if (over && is_held(limits, over)) {
		for (int i = 0; i < COUNT_KINDS; i++)
			if (over & 1U << i)
				forgive(&tat[i], limits[i].tolerance, now);
		return over;
	}
	counts &= ~over;
	for (int i = 0; i < COUNT_KINDS; i++) {
		if (!(counts & 1U << i))
			continue;
		if (tat[i] > now)
			__sync_fetch_and_add(&tat[i], amount_of(&limits[i], i, r));
		else
			tat[i] = now + amount_of(&limits[i], i, r);
	}
	return over;
}

/*
 * Keys without an exact entry are unbounded and can be forged, so their buckets are a
 * sketch of fixed size: two rows, one bucket in each. Only when both are over is the
 * packet over: a key is hurt by others only where it meets heavy ones in both rows.
 * Both lie in one page, for finding a page costs as much as reading what is there; a key
 * then meets the same one in both rows with a chance of one in four million.
 * The price is that a key may get up to twice its rate while its buckets are filled
 * unevenly by others, never less than its rate.
 *
 * When a flood of many keys has filled both buckets, and neither was last charged by
 * this key, the sketch knows nothing of it: the packet is let by, *crowded is set,
 * and wider limits decide.
 */
static __always_inline __u32 take_sketch(void *sketch, __u32 size, __u64 key,
					 const struct limit *limits, __u32 counts,
					 const struct request *r, __u64 held_back, bool *crowded)
{
	__u64 hash = mix(mix(hash_seed, key), hash_seed);
	__u32 page = (hash >> 16 & (size / SKETCH_PART - 1)) * 2 * SKETCH_PART;
	__u32 tag = hash >> 40 | 1, all = ~0U;
	__u64 mine = 0;

	for (int row = 0; row < 2; row++) {
		__u32 place = page + row * SKETCH_PART + (hash & (SKETCH_PART - 1)), over;
		struct bucket *b = bpf_map_lookup_elem(sketch, &place);

		if (!b)
			return 0; /* cannot be; and a limit never fails closed */
		over = charge(b->tat, limits, counts, r, held_back);
		mine |= same(b->tag, tag);
		if (!over || !is_held(limits, over))
			b->tag = tag; /* charged, so it is this key's now */
		all &= over;
		hash >>= 8;
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
static __noinline bool settle(const struct limit *limits, __u32 over, __u32 first, struct work *w)
{
	for (int i = 0; i < COUNT_KINDS; i++)
		if (over & 1U << i)
			count_limit(first + i, limits[i].dry_run, w->request.bytes);
	w->explanation.over |= (__u64)over << first;
	return is_held(limits, over);
}

static __always_inline bool over_source_limit(const struct tables *t, struct work *w, __u32 counts)
{
	const struct request *r = &w->request;
	__u64 source = source_key(&w->packet), way = UNKNOWN(w->way);
	bool crowded = false;
	__u32 over;

	if (way) {
		struct verified_state *state = verified_state(source);

		if (!state)
			return false; /* cannot be: there is one for each set */
		way = (way - 1) & (VERIFIED_WAYS - 1);
		over = charge(&state->tat[way * COUNT_KINDS], t->source, counts, r, 0);
		state->seen[way] = r->now;
	} else {
		over = take_sketch(&source_sketch, SOURCE_ROW, source, t->source, counts, r, 0,
				   &crowded);
		if (crowded) {
			struct table_events *events = counts_of_tables();

			if (events)
				events->source_bypass++;
		}
	}
	return over && settle(t->source, over, SLOT_SOURCE, w);
}

static __always_inline bool over_prefix_limit(const struct tables *t, struct work *w, __u32 counts)
{
	bool crowded = false;
	__u32 over = take_sketch(&prefix_sketch, PREFIX_ROW, prefix_key(&w->packet), t->prefix,
				 counts, &w->request, UNKNOWN(w->way) ? 0 : ~0ULL, &crowded);

	if (crowded) {
		struct table_events *events = counts_of_tables();

		if (events)
			events->prefix_bypass++;
	}
	return over && settle(t->prefix, over, SLOT_PREFIX, w);
}

/* The queue's own CPU is the only one here, but in generic and tc mode: see queue_bucket. */
static __always_inline bool over_queue_limit(const struct tables *t, struct work *w, __u32 counts)
{
	struct queue_bucket *b = bpf_map_lookup_elem(&queue_buckets, &w->request.row);
	__u32 over;

	if (!b)
		return false; /* cannot be: there is a bucket for each row */
	over = charge(b->tat, t->queue, counts, &w->request, ~0ULL);
	if (over && is_held(t->queue, over) && is_verified(&w->packet))
		over = charge(b->tat, t->queue, counts, &w->request, 0);
	return over && settle(t->queue, over, SLOT_QUEUE, w);
}

/* Draws on a bucket that all CPUs share, for a batch of packets; whether that fails. */
static __noinline bool draw(const struct limit *l, __u64 amount, struct work *w)
{
	__u32 slot = l->slot;
	__u64 *credit = bpf_map_lookup_elem(&shared_credits, &slot);
	struct shared_bucket *b = bpf_map_lookup_elem(&shared_buckets, &slot);
	__u64 now = w->request.now << 6, tolerance = l->tolerance;
	__u64 wanted = amount > l->batch ? amount : l->batch;
	bool conforms;

	if (!b || !credit)
		return false;
	if (*credit > l->batch)
		*credit = 0; /* of another limit than this: see forgive() */
	if (l->reserve && !is_verified(&w->packet))
		tolerance -= l->reserve;
	bpf_spin_lock(&b->lock);
	conforms = conform(&b->tat, wanted, tolerance, now);
	if (!conforms) {
		forgive(&b->tat, l->tolerance, now);
		wanted = amount;
		conforms = conform(&b->tat, wanted, tolerance, now);
	}
	bpf_spin_unlock(&b->lock);
	if (conforms) {
		*credit += wanted - amount;
		return false;
	}
	count_limit(slot, l->dry_run, w->request.bytes);
	w->explanation.over |= 1ULL << (slot & 63);
	return !l->dry_run;
}

/* Limits on buckets that all CPUs share; each takes a batch and lives on it. */
static __always_inline bool over_shared_limit(const struct limit *limits, struct work *w,
					      __u32 counts)
{
	for (int i = 0; i < COUNT_KINDS; i++) {
		const struct limit *l = &limits[i];
		__u64 amount = amount_of(l, i, &w->request), *credit;
		__u32 slot = l->slot;

		if (!(counts & 1U << i) || !amount)
			continue;
		credit = bpf_map_lookup_elem(&shared_credits, &slot);
		if (credit && *credit >= amount && *credit <= l->batch)
			*credit -= amount;
		else if (draw(l, amount, w))
			return true;
	}
	return false;
}

static __always_inline bool over_port_limit(const struct tables *t, struct work *w, __u32 counts)
{
	__u32 port = bpf_ntohs(w->packet.destination_port), place = port >> 6;
	void *rows = bpf_map_lookup_elem(&gen_ports, &w->request.slot);
	struct port_row *row = rows ? bpf_map_lookup_elem(rows, &place) : NULL;
	__u32 found = row ? row->limit[port & 63] : 0;

	if (!found)
		return false;
	return over_shared_limit(t->port[(found - 1) & (MAX_PORT_LIMITS - 1)].limit, w, counts);
}

/* One of a queue's budgets; a packet over it is dropped. */
static __always_inline bool over_budget(__u64 *tat, const struct budget *b, __u64 now)
{
	return b->cost && !conform(tat, b->cost >> 10, b->tolerance, now << 6);
}

#endif
