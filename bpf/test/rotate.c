// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Gives each packet of a test run another source, then runs the program under test: the
 * kernel's own repetitions are all of one packet, and every cache would hold all that it
 * needs. A separate object, for bench/packet only and never shipped.
 */
#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/if_ether.h>

#define FLOWS 1000
#define IPV4_SOURCE (ETH_HLEN + 12)
#define IPV4_PORT (ETH_HLEN + 20)
#define IPV6_SOURCE (ETH_HLEN + 8)
#define IPV6_PORT (ETH_HLEN + 40)

/* What one packet has of its own, in wire order. */
struct flow {
	__be32 source[4]; /* IPv4 in the first word */
	__be32 ports;	  /* the first four bytes above IP */
};

/* packet -> its flow. bench/packet writes; rotate reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

struct progress {
	__u64 sent; /* packets */
	__u32 next; /* flow */
	__u32 unused;
};

/* 0 -> where it stands. rotate writes; bench/packet reads. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct progress);
} cursor SEC(".maps");

/* 0 -> the program under test. bench/packet writes. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} target SEC(".maps");

/* Returns what the program under test does; XDP_ABORTED is always a failure. */
SEC("xdp")
int rotate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u32 zero = 0, place;
	struct progress *p = bpf_map_lookup_elem(&cursor, &zero);
	const struct flow *f;

	if (!p)
		return XDP_ABORTED;
	p->sent++;
	place = p->next;
	p->next = place < FLOWS - 1 ? place + 1 : 0;
	f = bpf_map_lookup_elem(&flows, &place);
	if (!f || data + IPV6_PORT + 4 > end)
		return XDP_ABORTED;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		*(__be32 *)(data + IPV4_SOURCE) = f->source[0];
		*(__be32 *)(data + IPV4_PORT) = f->ports;
	} else {
		for (int i = 0; i < 4; i++)
			*(__be32 *)(data + IPV6_SOURCE + 4 * i) = f->source[i];
		*(__be32 *)(data + IPV6_PORT) = f->ports;
	}
	bpf_tail_call(ctx, &target, 0);
	return XDP_ABORTED;
}

/* The least that a program can do: what stands before every other is the harness's cost. */
SEC("xdp")
int bare(struct xdp_md *ctx)
{
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
