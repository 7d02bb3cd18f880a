/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The order of all steps on a received packet; the one place where they meet.
 * Queue and clock are parameters, so that a test can be any queue at any time.
 */
#ifndef XGW_INGRESS_H
#define XGW_INGRESS_H

#include "count.h"
#include "limit.h"
#include "parse.h"
#include "rules.h"

static __always_inline bool is_decided(enum outcome o)
{
	return o != OUTCOME_pass_tcp && o != OUTCOME_pass_udp && o != OUTCOME_pass_icmp &&
	       o != OUTCOME_pass_other_ip;
}

static __always_inline bool has_source(enum outcome o)
{
	return o == OUTCOME_pass_fragment || o == OUTCOME_pass_deep_ext;
}

static __always_inline bool opens_connection(enum outcome o, const struct packet *p)
{
	return o == OUTCOME_pass_tcp && (p->tcp_flags & TCP_FLAG_BITS_SYN) &&
	       !(p->tcp_flags & TCP_FLAG_BITS_ACK);
}

static __always_inline enum outcome decide(void *data, void *end, __u32 row, struct clock *clock)
{
	struct packet p = {};
	enum outcome o = classify(data, end, end - data, &p);
	struct packet_limits *limits;

	if (is_decided(o) && !has_source(o))
		return o;
	if (denied(&p))
		return OUTCOME_drop_deny;
	limits = configured_limits();
	if (!limits)
		return o;
	if (over_queue_limit(&limits->queue_packets, row, clock))
		return OUTCOME_drop_queue_limit;
	if (opens_connection(o, &p) && over_source_limit(&limits->source_syns, &p, clock))
		return OUTCOME_drop_source_syns;
	return o;
}

static __always_inline int ingress(struct xdp_md *ctx, __u32 queue, struct clock *clock)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 row = count_row(queue);

	return count_ingress(row, decide(data, end, row, clock), end - data);
}

#endif
