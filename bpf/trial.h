/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Rules and limits that are tried: the steps of ingress.h with tables and buckets of
 * their own, on the packets that those in force let pass. What would be dropped is
 * counted, by reason and by source, and goes on all the same.
 */
#ifndef XGW_TRIAL_H
#define XGW_TRIAL_H

#include "ingress.h"

static __always_inline void note_tried(__u64 source, enum outcome o, __u64 packets, __u64 bytes)
{
	struct tried_source *s = bpf_map_lookup_elem(&tried_sources, &source);

	if (!s) {
		struct tried_source none = {};

		bpf_map_update_elem(&tried_sources, &source, &none, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&tried_sources, &source);
	}
	if (!s)
		return; /* full */
	__sync_fetch_and_add(&s->packets, packets);
	__sync_fetch_and_add(&s->bytes, bytes);
	if (o == OUTCOME_drop_deny)
		__sync_fetch_and_add(&s->denied, packets);
}

static __always_inline void consider(const struct frame *f, __u32 queue, __u64 packets,
				     struct work *w)
{
	struct clock clock = {};

	UNKNOWN(w->outcome) = decide(f, queue, &clock, w);
	count_ingress(w->request.row, UNKNOWN(w->outcome), packets, w->request.bytes);
	if (UNKNOWN(w->outcome) >= OUTCOME_FIRST_DROP && w->packet.family)
		note_tried(source_key(&w->packet), UNKNOWN(w->outcome), packets, w->request.bytes);
}

#endif
