/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Limits: the generic cell rate algorithm, with time as a parameter.
 *
 * A limit lets one packet through each interval and up to tolerance / interval
 * of them at once. A refused packet does not charge the bucket, so a source that
 * goes on too fast still gets its rate. Times are in ns of CLOCK_MONOTONIC.
 *
 * The bucket's lock covers a handful of instructions and is held by one CPU for
 * a queue's bucket, by those that receive from colliding sources for a sketch's.
 * Kernels before 5.12 have no compare-and-exchange, so a lock it is.
 */
#ifndef XGW_LIMIT_H
#define XGW_LIMIT_H

#include "maps.h"
#include "parse.h"

/* Time of this packet: read when the first limit asks for it, and at most once. */
struct clock {
	__u64 now; /* 0: not read yet */
};

static __always_inline __u64 clock_now(struct clock *c)
{
	if (!c->now)
		c->now = bpf_ktime_get_ns();
	return c->now;
}

/* NULL cannot be: an array of one. */
static __always_inline struct packet_limits *configured_limits(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&limits, &zero);
}

/* Charges one packet; false when it does not conform. */
static __always_inline bool bucket_take(struct bucket *b, const struct limit *l, __u64 now)
{
	__u64 interval = l->interval, tolerance = l->tolerance;
	bool conforms;
	__u64 tat;

	bpf_spin_lock(&b->lock);
	tat = b->tat;
	if (tat < now)
		tat = now;
	tat += interval;
	conforms = tat - now <= tolerance;
	if (conforms)
		b->tat = tat;
	bpf_spin_unlock(&b->lock);
	return conforms;
}

static __always_inline bool over_queue_limit(const struct limit *l, __u32 row, struct clock *clock)
{
	struct bucket *b;

	if (!l->interval)
		return false;
	b = bpf_map_lookup_elem(&queue_buckets, &row);
	if (!b) /* cannot be: there is a bucket for each row; a packet limit never fails closed */
		return false;
	return !bucket_take(b, l, clock_now(clock));
}

/* Multiply and fold: what goes in is mixed into all bits of the result. */
static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ (hash >> 32);
}

/* Of an IPv6 source the first 64 bits: one host owns them all. */
static __always_inline __u64 source_hash(const struct packet *p)
{
	__u64 word = (__u64)p->source[0] << 32;

	if (p->family == 6)
		word |= p->source[1];
	return mix(mix(hash_seed ^ p->family, word), hash_seed);
}

/*
 * Sources are unbounded and can be forged, so their buckets are a sketch of fixed
 * size: two rows, one bucket in each. Only when both buckets refuse is the packet
 * over its limit: a source is hurt by strangers only where it meets heavy ones in
 * both rows. The price is that a source may get through up to twice its rate
 * while its two buckets are filled differently by others, never less than its rate.
 */
static __always_inline bool over_source_limit(const struct limit *l, const struct packet *p,
					      struct clock *clock)
{
	bool conforms = false;
	__u64 hash, now;

	if (!l->interval)
		return false;
	hash = source_hash(p);
	now = clock_now(clock);
	for (int row = 0; row < 2; row++) {
		__u32 place = row * SKETCH_ROW + (hash & (SKETCH_ROW - 1));
		struct bucket *b = bpf_map_lookup_elem(&source_sketch, &place);

		if (b && bucket_take(b, l, now))
			conforms = true;
		hash >>= 32;
	}
	return !conforms;
}

#endif
