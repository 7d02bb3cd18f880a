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
 *            longest first. The 24 bits above stand for the next octet of the address, ten
 *            or eleven values each: where its bit is not set, no length occurs. IPv4 prefixes of 16 bits and less are in all rows that they
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
#define ROW_OCTETS 24 /* the first bit of those that stand for octets */

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

/*
 * Looks in one bucket, and notes what it finds; false: it cannot be in the next one
 * either. What is found goes to memory, here and below, to keep the verifier's walk short.
 */
static __always_inline bool probe(void *buckets, const struct prefix_head *head, __u32 place,
				  __u64 high, __u64 low, __u64 length, struct explanation *e)
{
	struct prefix_bucket *b;

	place = head->first + (place & head->mask);
	b = bpf_map_lookup_elem(buckets, &place);
	if (!b)
		return false; /* cannot be: the mask is that of the map's size */
	if (head->family == 6) {
		for (int i = 0; i < 6; i += 3) {
			if (b->word[i] == high && b->word[i + 1] == low &&
			    b->word[i + 2] >> 8 == length) {
				UNKNOWN(e->prefix) = b->word[i + 2] & 0xff;
				e->prefix_length = length;
				return false;
			}
		}
		return b->word[5];
	}
	for (int i = 0; i < 8; i++) {
		if (b->word[i] >> 8 == (low << 24 | length)) {
			UNKNOWN(e->prefix) = b->word[i] & 0xff;
			e->prefix_length = length;
			return false;
		}
		if (!b->word[i])
			return false;
	}
	return true;
}

/* Looks for each length that is set, the longest first. One flat loop. */
static __always_inline void walk_prefixes(void *buckets, const struct prefix_head *head,
					  struct work *w)
{
	const struct packet *p = &w->packet;
	struct explanation *e = &w->explanation;
	__u64 high = address_key(p->source, p->family), low = low_key(p->source, p->family);

	UNKNOWN(w->fallback) = e->prefix;
	UNKNOWN(e->prefix) = 0;
	for (int i = 0; i < MAX_PREFIX_LENGTHS; i++) {
		__u64 length, beyond, want_high = 0, want_low;
		__u64 lengths = UNKNOWN(w->lengths);
		__u32 place;

		if (!lengths)
			break;
		length = head->lengths[lowest_bit(lengths) & 31];
		UNKNOWN(w->lengths) = lengths & (lengths - 1);
		if (head->family == 6) {
			beyond = (length - 64) & (0 - above(length, 64));
			want_high = high_bits(high, length - beyond);
			want_low = high_bits(low, beyond);
			place = mix(mix(mix(hash_seed, want_high), want_low), length) >> 32;
		} else {
			want_low = high_bits(high << 32, length) >> 32;
			place = mix(mix(hash_seed, want_low), length) >> 32;
		}
		if (probe(buckets, head, place, want_high, want_low, length, e))
			probe(buckets, head, place + 1, want_high, want_low, length, e);
		if (UNKNOWN(e->prefix))
			return;
	}
	e->prefix = UNKNOWN(w->fallback);
}

static __always_inline void match_prefix(const struct tables *t, struct work *w)
{
	const struct packet *p = &w->packet;
	struct explanation *e = &w->explanation;
	__u32 slot = w->request.slot;
	__u64 six = same(p->family, 6), high = address_key(p->source, p->family), *row, octet;
	const struct prefix_head *head = &t->prefixes[six & 1];
	void *rows = bpf_map_lookup_elem(&gen_rows, &slot);
	void *buckets = bpf_map_lookup_elem(&gen_buckets, &slot);
	__u32 place = (__u32)high >> 16;

	if (!rows || !buckets)
		return; /* cannot be: a generation has all of its tables */
	if (six)
		place = PREFIX_ROWS + (__u32)(mix(hash_seed, high >> 32) >> 48);
	row = bpf_map_lookup_elem(rows, &place);
	if (!row)
		return; /* cannot be: there is a row for each place */
	octet = high >> (8 + 16 * six) & 0xff;
	e->prefix = *row >> 56;
	e->prefix_length = *row >> 48 & 0xff;
	UNKNOWN(w->lengths) =
		((*row & (0 - (*row >> (ROW_OCTETS + (octet * 24 >> 8)) & 1))) | head->always) &
		ROW_LENGTHS;
	if (UNKNOWN(w->lengths))
		walk_prefixes(buckets, head, w);
}

#endif
