/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Frame -> struct packet, or the outcome that ends it.
 *
 * In: the bytes that can be read directly, [data, end), and the length of the
 * whole frame, which may be longer (an skb's tail lies elsewhere, a frame may have
 * several buffers). No byte outside of [data, end) is ever read.
 * Out: addresses and ports in network byte order, everything else in host order.
 *
 * classify() returns pass_tcp, pass_udp, pass_icmp or pass_other_ip for what the
 * rules and limits are for, and any other outcome for what is decided already:
 * essentials, what cannot be classified, and frames that lie about themselves.
 */
#ifndef XGW_PARSE_H
#define XGW_PARSE_H

#include "types.h"
#include <bpf/bpf_endian.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>

#define MAX_VLAN_TAGS 2
#define MAX_EXT_HEADERS 8

#define TCP_BITS_FIN 0x01
#define TCP_BITS_SYN 0x02
#define TCP_BITS_RST 0x04
#define TCP_BITS_ACK 0x10

struct vlan_tag {
	__be16 tci;
	__be16 next;
};

/* Hop-by-hop, routing and destination options: RFC 8200, section 4. */
struct ext_header {
	__u8 next;
	__u8 length; /* in units of 8 bytes, the first not counted */
};

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* upper 13 bits: offset; lowest: more follow */
	__be32 id;
};

/* ICMP, RFC 792, and ICMPv6, RFC 4443; linux/icmp.h would draw in the C library. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

#define ICMP4_UNREACHABLE 3
#define ICMP4_FRAG_NEEDED 4
#define ICMP4_ECHO 8
#define ICMP6_TOO_BIG 2
#define ICMP6_ECHO 128
#define ICMP6_ND_FIRST 133 /* router solicitation */
#define ICMP6_ND_LAST 137  /* redirect */

struct packet {
	__be32 source[4]; /* IPv4 in the first word */
	__be32 destination[4];
	__be32 sequence; /* TCP only, as is the next */
	__be32 acknowledgment;
	__be16 source_port;
	__be16 destination_port;
	__u8 family; /* 4 or 6; 0 when it was not found out */
	__u8 protocol;
	__u8 tcp_flags;
	__u8 echo; /* an ICMP echo request */
};

/*
 * What is left of the frame. A place is an offset, not a pointer, so that the paths
 * that lead to a header look the same to the verifier and it walks on only once.
 */
struct cursor {
	void *data;
	void *end;
	__u64 at;   /* offset from data; moves over each header that was read */
	__u64 left; /* bytes from there to the end of the packet as its headers give it */
};

/*
 * A pointer the compiler must keep in one piece: the verifier knows that a bound was
 * checked only for the very sum that was compared.
 */
static __always_inline void *place(void *data, __u64 offset)
{
	void *at = data + offset;

	asm volatile("" : "+r"(at));
	return at;
}

#define MAX_OFFSET 0x3fff /* of a header: two tags, IPv6, eight extension headers */

/* NULL when fewer than size bytes are left, in the buffer or in the packet. */
static __always_inline void *take(struct cursor *c, __u64 size)
{
	void *at = place(c->data, c->at & MAX_OFFSET);

	if (at + size > c->end || size > c->left)
		return NULL;
	c->at += size;
	c->left -= size;
	return at;
}

/* Steps over size bytes (at most 2047) without reading them. */
static __always_inline bool skip(struct cursor *c, __u64 size)
{
	void *at = place(c->data, c->at & MAX_OFFSET);

	size &= 2047; /* tells old verifiers the range; callers stay below it */
	if (at + size > c->end || size > c->left)
		return false;
	c->at += size;
	c->left -= size;
	return true;
}

/*
 * Flags that a state of RFC 9293 can send: one of SYN, FIN, RST at most, and ACK
 * with all but the first SYN and some RSTs. What is sent otherwise is a scan.
 */
static __always_inline bool sane_tcp_flags(__u8 flags)
{
	__u8 turn = flags & (TCP_BITS_SYN | TCP_BITS_FIN | TCP_BITS_RST);

	if (turn == TCP_BITS_SYN || turn == TCP_BITS_RST)
		return true;
	return (turn == 0 || turn == TCP_BITS_FIN) && (flags & TCP_BITS_ACK);
}

static __always_inline enum outcome classify_tcp(struct cursor *c, struct packet *p)
{
	struct tcphdr *tcp = take(c, sizeof(*tcp));

	if (!tcp)
		return OUTCOME_drop_truncated;
	if (tcp->doff < 5)
		return OUTCOME_drop_malformed;
	if (tcp->doff * 4UL - sizeof(*tcp) > c->left)
		return OUTCOME_drop_truncated;
	p->source_port = tcp->source;
	p->destination_port = tcp->dest;
	p->sequence = tcp->seq;
	p->acknowledgment = tcp->ack_seq;
	p->tcp_flags = ((__u8 *)tcp)[13];
	return sane_tcp_flags(p->tcp_flags) ? OUTCOME_pass_tcp : OUTCOME_drop_tcp_flags;
}

/* A first fragment's UDP length is that of the whole datagram, which goes on elsewhere. */
static __always_inline enum outcome classify_udp(struct cursor *c, struct packet *p, bool first)
{
	__u64 left = first ? 0xffff : c->left;
	struct udphdr *udp = take(c, sizeof(*udp));
	__u16 length;

	if (!udp)
		return OUTCOME_drop_truncated;
	length = bpf_ntohs(udp->len);
	/* 0 stands for "as long as the packet" in IPv6 jumbograms: RFC 2675. */
	if (length < sizeof(*udp) && !(length == 0 && p->family == 6))
		return OUTCOME_drop_malformed;
	if (length > left)
		return OUTCOME_drop_truncated;
	p->source_port = udp->source;
	p->destination_port = udp->dest;
	/* A server's reply to this host's DHCP client: RFC 2131 and RFC 8415. */
	if (p->family == 4 && udp->source == bpf_htons(67) && udp->dest == bpf_htons(68))
		return OUTCOME_pass_dhcp;
	if (p->family == 6 && udp->source == bpf_htons(547) && udp->dest == bpf_htons(546))
		return OUTCOME_pass_dhcp;
	return OUTCOME_pass_udp;
}

/* hop_limit: neighbour discovery must have come from this link, RFC 4861. */
static __always_inline enum outcome classify_icmp6(struct cursor *c, struct packet *p,
						   __u8 hop_limit)
{
	struct icmp_header *icmp = take(c, sizeof(*icmp));

	if (!icmp)
		return OUTCOME_drop_truncated;
	if (icmp->type == ICMP6_TOO_BIG)
		return OUTCOME_pass_ptb;
	if (icmp->type >= ICMP6_ND_FIRST && icmp->type <= ICMP6_ND_LAST && hop_limit == 255)
		return OUTCOME_pass_nd;
	p->echo = icmp->type == ICMP6_ECHO;
	return OUTCOME_pass_icmp;
}

static __always_inline enum outcome classify_icmp4(struct cursor *c, struct packet *p)
{
	struct icmp_header *icmp = take(c, sizeof(*icmp));

	if (!icmp)
		return OUTCOME_drop_truncated;
	if (icmp->type == ICMP4_UNREACHABLE && icmp->code == ICMP4_FRAG_NEEDED)
		return OUTCOME_pass_ptb;
	p->echo = icmp->type == ICMP4_ECHO;
	return OUTCOME_pass_icmp;
}

/* All ones when a packet that says it is 0 bytes long has more than it could say, else 0. */
static __always_inline __u64 is_big(__u64 length, __u64 left)
{
	__u64 none = length - 1, more = 0xffff - left;

	asm volatile("" : "+r"(none), "+r"(more)); /* or it is branches */
	return 0 - ((none & more) >> 63);
}

static __always_inline enum outcome classify_ipv4(struct cursor *c, struct packet *p)
{
	__u64 left = c->left;
	struct iphdr *ip = take(c, sizeof(*ip));
	__u64 length, options;
	__u16 fragment;

	if (!ip)
		return OUTCOME_drop_truncated;
	length = bpf_ntohs(ip->tot_len);
	/* GRO has merged more than the field can tell ("BIG TCP"): the frame's length holds. */
	length |= left & is_big(length, left);
	if (ip->version != 4 || ip->ihl < 5 || length < ip->ihl * 4UL)
		return OUTCOME_drop_malformed;
	if (length > left)
		return OUTCOME_drop_truncated;
	c->left = length - sizeof(*ip); /* what follows is Ethernet padding */
	options = ip->ihl * 4UL - sizeof(*ip);
	if (!skip(c, options))
		return OUTCOME_drop_truncated;

	p->family = 4;
	p->source[0] = ip->saddr;
	p->destination[0] = ip->daddr;
	p->protocol = ip->protocol;
	fragment = bpf_ntohs(ip->frag_off);
	if (fragment & 0x1fff)
		return OUTCOME_pass_fragment;
	if (ip->protocol == IPPROTO_TCP)
		return classify_tcp(c, p);
	if (ip->protocol == IPPROTO_UDP)
		return classify_udp(c, p, fragment & 0x2000);
	if (ip->protocol == IPPROTO_ICMP)
		return classify_icmp4(c, p);
	return OUTCOME_pass_other_ip;
}

static __always_inline bool is_ext_header(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING ||
	       protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_FRAGMENT;
}

/*
 * Walks the extension headers; p->protocol is the first that is none of them.
 * Returns pass_other_ip when it got there, with *first set when the packet is
 * the first fragment of several.
 */
static __always_inline enum outcome walk_ext_headers(struct cursor *c, struct packet *p,
						     bool *first)
{
	for (int i = 0; i < MAX_EXT_HEADERS; i++) {
		if (p->protocol == IPPROTO_FRAGMENT) {
			struct fragment_header *f = take(c, sizeof(*f));

			if (!f)
				return OUTCOME_drop_truncated;
			p->protocol = f->next;
			if (f->offset & bpf_htons(0xfff8))
				return OUTCOME_pass_fragment;
			*first = f->offset & bpf_htons(1);
		} else if (is_ext_header(p->protocol)) {
			struct ext_header *e = take(c, sizeof(*e));

			if (!e)
				return OUTCOME_drop_truncated;
			p->protocol = e->next;
			if (!skip(c, e->length * 8UL + 8 - sizeof(*e)))
				return OUTCOME_drop_truncated;
		} else {
			return OUTCOME_pass_other_ip;
		}
	}
	return is_ext_header(p->protocol) ? OUTCOME_pass_deep_ext : OUTCOME_pass_other_ip;
}

static __always_inline enum outcome classify_ipv6(struct cursor *c, struct packet *p)
{
	struct ipv6hdr *ip = take(c, sizeof(*ip));
	enum outcome walked;
	bool first = false;
	__u64 length;
	__u8 hop_limit;

	if (!ip)
		return OUTCOME_drop_truncated;
	if (ip->version != 6)
		return OUTCOME_drop_malformed;
	length = bpf_ntohs(ip->payload_len);
	if (length > c->left)
		return OUTCOME_drop_truncated;
	/* 0 with a hop-by-hop header may be a jumbogram: the frame's length holds. */
	length |= c->left & is_big(length, c->left);
	if (length != 0 || ip->nexthdr != IPPROTO_HOPOPTS)
		c->left = length;
	hop_limit = ip->hop_limit;

	p->family = 6;
	__builtin_memcpy(p->source, &ip->saddr, sizeof(p->source));
	__builtin_memcpy(p->destination, &ip->daddr, sizeof(p->destination));
	p->protocol = ip->nexthdr;
	walked = walk_ext_headers(c, p, &first);
	if (walked != OUTCOME_pass_other_ip)
		return walked;
	if (p->protocol == IPPROTO_TCP)
		return classify_tcp(c, p);
	if (p->protocol == IPPROTO_UDP)
		return classify_udp(c, p, first);
	if (p->protocol == IPPROTO_ICMPV6)
		return classify_icmp6(c, p, hop_limit);
	return OUTCOME_pass_other_ip;
}

/* 1 for the type of a VLAN tag, else 0; in arithmetic, for the verifier's sake. */
static __always_inline __u64 is_vlan(__be16 type)
{
	__u64 customer = ((__u64)type ^ bpf_htons(ETH_P_8021Q)) - 1;
	__u64 service = ((__u64)type ^ bpf_htons(ETH_P_8021AD)) - 1;

	asm volatile("" : "+r"(customer), "+r"(service)); /* or it is branches again */
	return (customer | service) >> 63;
}

/* tags: VLAN tags that were taken off the frame before, at most 1. */
static __always_inline enum outcome classify(void *data, void *end, __u64 length, __u64 tags,
					     struct packet *p)
{
	struct cursor c = { .data = data, .end = end };
	__u64 at = offsetof(struct ethhdr, h_proto), tagged = 1;
	__be16 type;

	/* Each tag moves the type on by 4 bytes; the payload follows it at once. */
	for (int i = 0; i <= MAX_VLAN_TAGS; i++) {
		__be16 *next = place(data, at);

		if ((void *)(next + 1) > end)
			return OUTCOME_drop_truncated;
		type = *next;
		tagged &= is_vlan(type);
		if (i == 1)
			tagged &= ~tags;
		if (i < MAX_VLAN_TAGS)
			at += tagged * sizeof(struct vlan_tag);
	}
	c.at = at + sizeof(type);
	c.left = length - c.at;
	if (is_vlan(type))
		return OUTCOME_pass_deep_vlan;
	if (type == bpf_htons(ETH_P_IP))
		return classify_ipv4(&c, p);
	if (type == bpf_htons(ETH_P_IPV6))
		return classify_ipv6(&c, p);
	if (type == bpf_htons(ETH_P_ARP))
		return OUTCOME_pass_arp;
	return OUTCOME_pass_not_ip;
}

#endif
