/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Verdicts: what the L7 plane asks this one to do about a source, for a time. They
 * end by themselves; and all of them are void when nobody tends them any more, which
 * the age of the heartbeat tells.
 */
#ifndef XGW_VERDICT_H
#define XGW_VERDICT_H

#include "clock.h"
#include "keys.h"
#include "maps.h"

#define VERDICT_TICK 26 /* expires counts 2^26 ns */

static __always_inline __u8 verdict_step(__u64 source, const struct clock *clock)
{
	__u32 place = mix(hash_seed, source) >> 32 & (VERDICT_ROWS - 1);
	struct verdict_row *row = bpf_map_lookup_elem(&verdicts, &place);

	if (!row || !source)
		return STEP_NONE;
	for (int i = 0; i < VERDICT_WAYS; i++) {
		const struct verdict *v = &row->entry[i];

		if (v->source == source && v->expires > (__u32)(clock_now(clock) >> VERDICT_TICK))
			return v->step;
	}
	return STEP_NONE;
}

/* A clock a tick behind the supervisor's must not make the heartbeat look old. */
static __always_inline bool is_stale(const struct tables *t, const struct heartbeat_state *h,
				     const struct clock *clock)
{
	__u64 now = clock_now(clock);

	return now > h->beat && now - h->beat > t->stale_after;
}

/* syn: the packet opens a TCP connection. */
static __always_inline enum outcome judge(const struct tables *t, const struct packet *p, bool syn,
					  const struct clock *clock, enum outcome o,
					  struct explanation *e)
{
	__u32 zero = 0;
	struct heartbeat_state *h = bpf_map_lookup_elem(&heartbeat, &zero);
	__u8 step;

	/* Looking for one costs a cache line at an address that nobody can foresee. */
	if (!h || !h->verdicts)
		return o;
	step = verdict_step(source_key(p), clock);
	e->verdict = step;
	if (step == STEP_NONE)
		return o;
	if (is_stale(t, h, clock))
		return OUTCOME_pass_stale_verdict;
	if (step == STEP_ALL)
		return OUTCOME_drop_verdict_all;
	if (step == STEP_NEW && (syn || o != OUTCOME_pass_tcp))
		return OUTCOME_drop_verdict_new;
	if (step == STEP_SYNS && syn)
		return OUTCOME_drop_verdict_syns;
	if (step == STEP_THIN && syn && (clock_chance(clock) & 3))
		return OUTCOME_drop_verdict_thin;
	return o;
}

#endif
