/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packet -> the keys that limits, verdicts and tables of connections know it by,
 * and the hash that places them. pkg/policy and pkg/datapath compute the same.
 */
#ifndef XGW_KEYS_H
#define XGW_KEYS_H

#include "config.h"
#include "parse.h"

#define IPV4_KEY 0xffff00000000ULL

/* Multiply and fold: what goes in is mixed into all bits of the result. */
static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ (hash >> 32);
}

/*
 * 1 when the words are equal, else 0. In arithmetic, here and wherever a loop asks:
 * each branch doubles the states that the verifier walks, and this leaves one.
 */
static __always_inline __u64 same(__u64 a, __u64 b)
{
	__u64 x = a ^ b, less = x - 1;

	asm volatile("" : "+r"(less)); /* or the compiler sees through it, and branches */
	return (~x & less) >> 63;
}

/* 1 when a is above b, else 0; both below 2^63. */
static __always_inline __u64 above(__u64 a, __u64 b)
{
	__u64 difference = b - a;

	asm volatile("" : "+r"(difference));
	return difference >> 63;
}

/* The first 64 bits in host order; one host owns them all. IPv4 is 0xffff00000000 | address. */
static __always_inline __u64 address_key(const __be32 address[4], __u8 family)
{
	__u64 high = bpf_ntohl(address[0]);

	if (family == 4)
		return IPV4_KEY | high;
	return high << 32 | bpf_ntohl(address[1]);
}

static __always_inline __u64 low_key(const __be32 address[4], __u8 family)
{
	if (family == 4)
		return 0;
	return (__u64)bpf_ntohl(address[2]) << 32 | bpf_ntohl(address[3]);
}

static __always_inline __u64 source_key(const struct packet *p)
{
	return address_key(p->source, p->family);
}

/* IPv4 /24, IPv6 /48. */
static __always_inline __u64 prefix_key(const struct packet *p)
{
	__u64 key = source_key(p);

	return p->family == 4 ? key & ~0xffULL : key & ~0xffffULL;
}

/* A connection, by its other end and both ports; protocol tells TCP from UDP. */
static __always_inline __u64 flow_hash(const __be32 peer[4], const struct packet *p,
				       __be16 peer_port, __be16 own_port)
{
	__u64 hash = mix(hash_seed, address_key(peer, p->family));

	if (p->family == 6)
		hash = mix(hash, low_key(peer, 6));
	return mix(hash, (__u64)p->protocol << 32 | (__u32)peer_port << 16 | own_port);
}

#endif
