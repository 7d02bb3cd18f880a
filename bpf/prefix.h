/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Source address -> action of the longest prefix that contains it.
 *
 * The kernel's LPM trie walks a node a bit; this is a hash of all prefixes, with
 * rows that say which lengths occur where, so that most packets need no probe and
 * most hits one. pkg/policy lays it out:
 *
 *   rows     one for each first 16 bits (IPv4) or hash of the first 32 (IPv6). The
 *            low bits are the lengths that occur: bit i stands for head.lengths[i],
 *            longest first. IPv4 prefixes of 16 bits and less are in all rows that they
 *            cover: action << 56 | length << 48 of the longest. IPv6 prefixes of less
 *            than 32 bits are looked for always: head.always.
 *   buckets  of eight words, placed by hash of (address, length). IPv4: a word for
 *            each prefix, address << 32 | length << 8 | action. IPv6: three words, high,
 *            low, length << 8 | action. A full bucket may go on in the next one, and
 *            no further.
 */
#ifndef XGW_PREFIX_H
#define XGW_PREFIX_H

#include "keys.h"
#include "maps.h"

#define ACTION_DENY 1
#define ACTION_ALLOW 2

static __always_inline struct prefix_bucket *
bucket_at(void *buckets, const struct prefix_head *head, __u64 hash, __u32 step)
{
	__u32 place = head->first + (((__u32)(hash >> 32) + step) & head->mask);

	return bpf_map_lookup_elem(buckets, &place);
}

/* The action of the prefix that is wanted, 0 when it is not in this bucket. */
static __always_inline __u32 search4(const struct prefix_bucket *b, __u64 want)
{
	__u64 action = 0;

	for (int i = 0; i < 8; i++)
		action |= b->word[i] & (0 - same(b->word[i] >> 8, want));
	return action & 0xff;
}

static __always_inline __u32 search6(const struct prefix_bucket *b, __u64 high, __u64 low,
				     __u8 length)
{
	__u64 action = 0;

	for (int i = 0; i < 6; i += 3)
		action |=
			b->word[i + 2] & (0 - (same(b->word[i], high) & same(b->word[i + 1], low) &
					       same(b->word[i + 2] >> 8, length)));
	return action & 0xff;
}

/* Index of the lowest bit that is set, without a branch; word is not 0. */
static __always_inline __u32 lowest_bit(__u64 word)
{
	__u64 below = (word & -word) - 1; /* as many ones as the index */

	below -= below >> 1 & 0x5555555555555555ULL;
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return below * 0x0101010101010101ULL >> 56;
}

/* The first bits of the word: 0 to 64 of them. */
static __always_inline __u64 high_bits(__u64 word, __u64 length)
{
	return word & ~(~0ULL >> (length >> 1) >> (length - (length >> 1)));
}

/* Looks in one bucket: the action, or 0. *last: it cannot be in the next one either. */
static __always_inline __u32 probe(void *buckets, const struct prefix_head *head, __u32 place,
				   bool six, __u64 high, __u64 low, __u64 length, __u64 *last)
{
	struct prefix_bucket *b;

	place = head->first + (place & head->mask);
	b = bpf_map_lookup_elem(buckets, &place);
	if (!b)
		return 0; /* cannot be: the mask is that of the map's size */
	*last = same(b->word[six ? 5 : 7], 0);
	return six ? search6(b, high, low, length) : search4(b, low << 24 | length);
}

/*
 * Looks for each length that is set in the packet in hand, the longest first. A global
 * function, so that it is verified by itself and once (Linux 5.6); therefore it takes
 * numbers only, and leaves what it finds in scratch.
 */
__noinline int walk_prefixes(__u32 slot)
{
	__u32 zero = 0;
	struct work *w = bpf_map_lookup_elem(&scratch, &zero);
	void *tables = bpf_map_lookup_elem(&gen_tables, &slot);
	void *buckets = bpf_map_lookup_elem(&gen_buckets, &slot);
	struct tables *t = tables ? bpf_map_lookup_elem(tables, &zero) : NULL;
	const struct prefix_head *head;
	__u64 high, low;
	bool six;

	if (!w || !t || !buckets)
		return 0; /* cannot be: a generation has all of its tables */
	six = w->packet.family == 6;
	head = &t->prefixes[six];
	high = address_key(w->packet.source, w->packet.family);
	low = low_key(w->packet.source, w->packet.family);
	for (int i = 0; i < MAX_PREFIX_LENGTHS; i++) {
		__u64 length, beyond, want_high = 0, want_low, last = 1;
		__u64 lengths = UNKNOWN(w->lengths);
		__u32 place, action;

		if (!lengths)
			return 0;
		length = head->lengths[lowest_bit(lengths) & 31];
		UNKNOWN(w->lengths) = lengths & (lengths - 1);
		if (six) {
			beyond = (length - 64) & (0 - above(length, 64));
			want_high = high_bits(high, length - beyond);
			want_low = high_bits(low, beyond);
			place = mix(mix(mix(hash_seed, want_high), want_low), length) >> 32;
		} else {
			want_low = high_bits(high << 32, length) >> 32;
			place = mix(mix(hash_seed, want_low), length) >> 32;
		}
		action = probe(buckets, head, place, six, want_high, want_low, length, &last);
		if (!(action | last))
			action = probe(buckets, head, place + 1, six, want_high, want_low, length,
				       &last);
		if (action) {
			w->explanation.prefix = action;
			w->explanation.prefix_length = length;
			return 0;
		}
	}
	return 0;
}

static __always_inline void match_prefix(const struct tables *t, struct work *w)
{
	const struct packet *p = &w->packet;
	struct explanation *e = &w->explanation;
	__u32 slot = w->request.slot;
	__u64 six = same(p->family, 6), high = address_key(p->source, p->family), *row;
	const struct prefix_head *head = &t->prefixes[six & 1];
	void *rows = bpf_map_lookup_elem(&gen_rows, &slot);
	__u32 place = (__u32)high >> 16;

	if (!rows)
		return; /* cannot be: a generation has all of its tables */
	if (six)
		place = PREFIX_ROWS + (__u32)(mix(hash_seed, high >> 32) >> 48);
	row = bpf_map_lookup_elem(rows, &place);
	if (!row)
		return; /* cannot be: there is a row for each place */
	e->prefix = *row >> 56;
	e->prefix_length = *row >> 48 & 0xff;
	UNKNOWN(w->lengths) = (*row | head->always) & ROW_LENGTHS;
	if (UNKNOWN(w->lengths))
		walk_prefixes(slot);
}

#endif
