/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The order of all steps on a received packet; the one place where they meet.
 * Queue and clock are parameters, so that a test can be any queue at any time.
 */
#ifndef XGW_INGRESS_H
#define XGW_INGRESS_H

#include "clock.h"
#include "count.h"
#include "limit.h"
#include "parse.h"
#include "prefix.h"
#include "rules.h"
#include "sample.h"
#include "spread.h"
#include "verdict.h"

/* A received frame, from whichever hook. */
struct frame {
	void *data, *end;
	__u64 length; /* of the whole frame; [data, end) may be less */
	__u64 tags;   /* VLAN tags taken off before */
};

static __always_inline __u64 opens_connection(enum outcome o, const struct packet *p)
{
	return same(o, OUTCOME_pass_tcp) &
	       same(p->tcp_flags & (TCP_BITS_SYN | TCP_BITS_ACK), TCP_BITS_SYN);
}

static __always_inline bool is_limited(enum outcome o)
{
	return o <= OUTCOME_pass_other_ip;
}

static __always_inline bool is_essential(enum outcome o)
{
	return o >= OUTCOME_pass_arp && o <= OUTCOME_pass_ptb;
}

/* What has no ports, or no addresses, to judge it by; and echo requests. */
static __always_inline enum outcome apply_budgets(const struct tables *t, const struct work *w,
						  enum outcome o, const struct clock *clock)
{
	struct queue_bucket *b;
	__u64 now;

	if ((is_limited(o) && !w->packet.echo) || !(t->features & FEATURE_BUDGETS))
		return o;
	now = clock_now(clock);
	b = bpf_map_lookup_elem(&queue_buckets, &w->request.row);
	if (!b)
		return o; /* cannot be: there is a bucket for each row */
	/* What anybody far away can send must not use up what only neighbours can. */
	if (is_essential(o))
		return over_budget(o <= OUTCOME_pass_nd ? &b->essential : &b->routed, &t->essential,
				   now)
			       ? OUTCOME_drop_essential
			       : o;
	if (w->packet.echo)
		return over_budget(&b->echo, &t->echo, now) ? OUTCOME_drop_echo : o;
	return over_budget(&b->unclassified, &t->unclassified, now) ? OUTCOME_drop_unclassified : o;
}

static __always_inline enum outcome apply_limits(const struct tables *t, struct work *w,
						 enum outcome o, const struct clock *clock)
{
	struct request *r = &w->request;
	__u32 source = 0, prefix = 0, counts;

	r->counts = r->syns ? COUNTS : COUNTS & ~(1U << COUNT_SYNS);
	if (!(t->active & r->counts * EACH_KEY))
		return o;
	r->now = t->features & FEATURE_COARSE ? clock_coarse(clock, w) : clock_now(clock);
	if (UNKNOWN(w->explanation.prefix) != ACTION_ALLOW) {
		source = asked(t, r, SLOT_SOURCE);
		prefix = asked(t, r, SLOT_PREFIX);
	}
	if (source | prefix)
		find_verified(w);
	if (source && over_source_limit(t, w, source))
		return OUTCOME_drop_source_limit;
	if (prefix && over_prefix_limit(t, w, prefix))
		return OUTCOME_drop_prefix_limit;
	counts = asked(t, r, SLOT_PORT);
	if (o <= OUTCOME_pass_udp && counts && over_port_limit(t, w, counts))
		return OUTCOME_drop_port_limit;
	counts = asked(t, r, SLOT_QUEUE);
	if (counts && over_queue_limit(t, w, counts))
		return OUTCOME_drop_queue_limit;
	counts = asked(t, r, SLOT_INTERFACE);
	if (counts && over_shared_limit(t->interface, w, counts))
		return OUTCOME_drop_interface_limit;
	return o;
}

/* Is this a new flow to a port that is not served, and does the guard stop it? */
static __always_inline bool guarded(const struct tables *t, struct work *w, enum outcome o)
{
	if (t->guard == GUARD_OFF || !(w->request.syns || o == OUTCOME_pass_udp))
		return false;
	if (is_served(w->request.slot, &w->packet) || (!w->request.syns && is_own_flow(&w->packet)))
		return false;
	count_limit(SLOT_GUARD, t->guard == GUARD_COUNT, w->request.bytes);
	w->explanation.over |= 1ULL << SLOT_GUARD;
	return t->guard == GUARD_ENFORCE;
}

/* Rules and limits of one generation on a packet that was understood. */
static __always_inline enum outcome apply(const struct tables *t, struct work *w,
					  const struct clock *clock)
{
	struct explanation *e = &w->explanation;
	enum outcome o, judged;

	if (w->packet.family && (t->features & FEATURE_PREFIXES))
		match_prefix(t, w);
	o = UNKNOWN(w->outcome);
	if (UNKNOWN(e->prefix) == ACTION_DENY && !is_essential(o))
		return OUTCOME_drop_deny;
	judged = apply_budgets(t, w, o, clock);
	if (judged >= OUTCOME_FIRST_DROP || !w->packet.family || is_essential(o))
		return judged;
	w->request.syns = opens_connection(o, &w->packet);
	if (guarded(t, w, o))
		return OUTCOME_drop_port_guard;
	if (UNKNOWN(e->prefix) != ACTION_ALLOW)
		UNKNOWN(e->stopped) = judge(t, &w->packet, w->request.syns, clock, o, e);
	else
		UNKNOWN(e->stopped) = o;
	if (UNKNOWN(e->stopped) >= OUTCOME_FIRST_DROP || !is_limited(o))
		return UNKNOWN(e->stopped);
	if (w->request.syns && UNKNOWN(e->prefix) != ACTION_ALLOW && is_pressed(&w->packet, clock))
		return OUTCOME_drop_handshakes;
	o = apply_limits(t, w, o, clock);
	return o >= OUTCOME_FIRST_DROP ? o : UNKNOWN(e->stopped);
}

/* The generation that holds now, and whether it does for want of a confirmation. */
static __always_inline void choose_generation(struct work *w, const struct clock *clock)
{
	__u32 zero = 0;
	struct control_state *c = bpf_map_lookup_elem(&control, &zero);

	w->expired = 0;
	w->request.slot = NO_GENERATION;
	if (!c)
		return; /* cannot be: an array of one */
	w->request.slot = c->current;
	if (c->deadline && clock_now(clock) > c->deadline) {
		w->request.slot = c->fallback;
		w->expired = 1;
	}
}

static __always_inline enum outcome decide(const struct frame *f, __u32 queue,
					   const struct clock *clock, struct work *w)
{
	struct explanation *e = &w->explanation;
	struct packet *p = &w->packet;
	struct tables *t;
	__u32 zero = 0;
	void *inner;

	/* Of the packet before: what has no ports must not be judged by its. */
	p->family = p->protocol = p->tcp_flags = p->echo = 0;
	p->source_port = p->destination_port = 0;
	e->prefix = e->over = e->generation = 0;
	e->verdict = STEP_NONE;
	w->request.row = count_row(queue);
	w->request.bytes = f->length + f->tags * sizeof(struct vlan_tag);
	choose_generation(w, clock);
	UNKNOWN(w->outcome) = classify(f->data, f->end, f->length, f->tags, p);
	inner = bpf_map_lookup_elem(&gen_tables, &w->request.slot);
	t = inner ? bpf_map_lookup_elem(inner, &zero) : NULL;
	if (t && UNKNOWN(w->outcome) < OUTCOME_FIRST_DROP) {
		e->generation = t->generation;
		UNKNOWN(w->outcome) = apply(t, w, clock);
	}
	UNKNOWN(e->stopped) = UNKNOWN(w->outcome);
	if (UNKNOWN(e->stopped) >= OUTCOME_FIRST_DROP && !t && UNKNOWN(w->expired))
		return OUTCOME_pass_unconfirmed;
	if (UNKNOWN(e->stopped) >= OUTCOME_FIRST_RULE)
		return spare(UNKNOWN(w->outcome), p, w->request.row, clock);
	if (UNKNOWN(e->stopped) == OUTCOME_pass_tcp &&
	    (p->tcp_flags & (TCP_BITS_SYN | TCP_BITS_ACK)) == TCP_BITS_ACK)
		match_ack(p, clock);
	return UNKNOWN(w->outcome);
}

/* Decides, counts and samples; packets: those that the frame stands for. */
static __always_inline enum outcome receive(const struct frame *f, __u32 queue, __u64 packets,
					    const struct clock *clock, struct work *w)
{
	__u64 ordinal;

	UNKNOWN(w->outcome) = decide(f, queue, clock, w);
	ordinal = count_ingress(w->request.row, UNKNOWN(w->outcome), packets, w->request.bytes);
	if (UNKNOWN(w->outcome) >= OUTCOME_FIRST_DROP)
		sample_drop(f->data, f->end, f->length, w->request.row, UNKNOWN(w->outcome),
			    ordinal, clock);
	return UNKNOWN(w->outcome);
}

/* For XDP. */
static __always_inline int ingress(const struct frame *f, __u32 queue, const struct clock *clock)
{
	__u32 zero = 0;
	struct work *w = bpf_map_lookup_elem(&scratch, &zero);

	if (!w)
		return XDP_PASS; /* cannot be: an array of one */
	if (receive(f, queue, 1, clock, w) >= OUTCOME_FIRST_DROP)
		return XDP_DROP;
	return spread(&w->packet);
}

#endif
