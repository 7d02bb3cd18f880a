// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The kernel side of xgw: its entry points, as a table of contents.
 *
 *   xdp_ingress    each received frame, at the NIC queue: the order of steps is ingress.h
 *   tc_ingress     the same steps where XDP cannot attach
 *   tc_egress      each frame sent: counted, and what it says of connections noted
 *   tc_trial       the same steps by other tables, which only tell: trial.h
 *   xdp_explain    the same steps on one packet that was never on a wire
 *   select_worker  each new connection, to the worker of its CPU: steer.h
 *
 * types.h has the values shared with user space, maps.h the state, config.h the
 * facts set at load. Only UAPI headers are used: no BTF of the running kernel is
 * needed; of helpers newer than Linux 5.4 there are two, which the loader replaces
 * where they are missing.
 */
#include "ingress.h"
#include "steer.h"
#include "trial.h"
#include <linux/pkt_cls.h>

/*
 * A frame in several buffers fills the first one, so a short one has no other: most
 * packets of a flood are spared the call. (Drivers that split frames after the headers
 * refuse XDP while they do.)
 */
static __always_inline __u64 frame_length(struct xdp_md *ctx)
{
	__u64 first = ctx->data_end - ctx->data;

	return frags && first >= SHORT_FRAME ? bpf_xdp_get_buff_len(ctx) : first;
}

SEC("xdp")
int xdp_ingress(struct xdp_md *ctx)
{
	struct frame f = {
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.length = frame_length(ctx),
	};
	struct clock clock = {};

	return ingress(&f, ctx->rx_queue_index, &clock);
}

SEC("xdp")
int xdp_explain(struct xdp_md *ctx)
{
	struct frame f = {
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.length = ctx->data_end - ctx->data,
	};
	struct clock clock = {};
	__u32 zero = 0;
	struct work *w = bpf_map_lookup_elem(&scratch, &zero);
	struct explanation *e = bpf_map_lookup_elem(&explained, &zero);

	if (!w || !e)
		return XDP_ABORTED; /* cannot be: arrays of one */
	w->explanation.outcome = decide(&f, 0, &clock, w);
	*e = w->explanation;
	return e->outcome < OUTCOME_FIRST_DROP ? XDP_PASS : XDP_DROP;
}

/* As skb_record_rx_queue() has it: one more than the queue, 0 for unknown. */
static __always_inline __u32 queue_of(const struct __sk_buff *skb)
{
	return skb->queue_mapping ? skb->queue_mapping - 1 : 0;
}

/* Headers may lie in pages; those of a frame that has them all, in 512 bytes. */
static __always_inline void read_frame(struct __sk_buff *skb, struct frame *f)
{
	if (skb->data_end - skb->data < skb->len)
		bpf_skb_pull_data(skb, skb->len < 512 ? skb->len : 512);
	f->data = (void *)(long)skb->data;
	f->end = (void *)(long)skb->data_end;
}

SEC("tc")
int tc_ingress(struct __sk_buff *skb)
{
	struct clock clock = {};
	struct frame f = { .length = skb->len, .tags = !!skb->vlan_present };
	__u32 zero = 0, queue = queue_of(skb);
	struct work *w = bpf_map_lookup_elem(&scratch, &zero);

	if (!w)
		return TC_ACT_UNSPEC; /* cannot be: an array of one */
	read_frame(skb, &f);
	if (receive(&f, queue, skb->gso_segs ? skb->gso_segs : 1, &clock, w) >= OUTCOME_FIRST_DROP)
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC; /* later filters have their say */
}

SEC("tc")
int tc_trial(struct __sk_buff *skb)
{
	struct frame f = { .length = skb->len, .tags = !!skb->vlan_present };
	__u32 zero = 0, queue = queue_of(skb);
	struct work *w = bpf_map_lookup_elem(&scratch, &zero);

	if (!w)
		return TC_ACT_UNSPEC; /* cannot be: an array of one */
	read_frame(skb, &f);
	consider(&f, queue, skb->gso_segs ? skb->gso_segs : 1, w);
	return TC_ACT_UNSPEC; /* whatever it would have been */
}

SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct packet p = {};
	enum outcome o = classify(data, end, skb->len, !!skb->vlan_present, &p);

	if (o == OUTCOME_pass_tcp && (p.tcp_flags & TCP_BITS_SYN)) {
		if (p.tcp_flags & TCP_BITS_ACK)
			note_syn_ack(&p);
		else
			note_own_flow(&p);
	}
	/* A datagram from a port that the kernel chose is a question, not an answer. */
	if (o == OUTCOME_pass_udp && bpf_ntohs(p.source_port) >= 32768)
		note_own_flow(&p);
	/* What this host sends is its own affair: odd frames are counted, never dropped. */
	if (o >= OUTCOME_FIRST_DROP)
		o = OUTCOME_pass_not_ip;
	count_egress(o, skb->gso_segs ? skb->gso_segs : 1, skb->len);
	return TC_ACT_UNSPEC; /* later filters have their say */
}

SEC("sk_reuseport")
int select_worker(struct sk_reuseport_md *md)
{
	return steer(md, bpf_get_smp_processor_id());
}

char _license[] SEC("license") = "Dual BSD/GPL";
