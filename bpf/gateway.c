// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The kernel side of xgw: its entry points, as a table of contents.
 *
 *   xdp_ingress    each received frame, at the NIC queue
 *                  parse.h -> rules.h -> limit.h -> count.h, in the order of ingress.h
 *   tc_egress      each frame sent, counted by what it is
 *   select_worker  each new connection, to the worker of its CPU: steer.h
 *
 * types.h has the values shared with user space, maps.h the state, config.h the
 * facts set at load. Only UAPI headers are used: no BTF of the running kernel is
 * needed, and no helper newer than Linux 5.4.
 */
#include "ingress.h"
#include "steer.h"
#include <linux/pkt_cls.h>

SEC("xdp")
int xdp_ingress(struct xdp_md *ctx)
{
	struct clock clock = {};

	return ingress(ctx, ctx->rx_queue_index, &clock);
}

SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct packet p = {};
	enum outcome o = classify(data, end, skb->len, &p);

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
