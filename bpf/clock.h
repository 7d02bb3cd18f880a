/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Time and chance, which a test sets beforehand. The steps that most packets take
 * share one reading of the time; only rare ones read it again.
 */
#ifndef XGW_CLOCK_H
#define XGW_CLOCK_H

#include "maps.h"

struct clock {
	__u64 now;    /* CLOCK_MONOTONIC ns; 0: the kernel's */
	__u32 chance; /* random; used with now */
	__u32 unused;
};

static __always_inline __u64 clock_now(const struct clock *c)
{
	return c->now ? c->now : bpf_ktime_get_ns();
}

/*
 * A tick behind at most: the clock is read by the first packet of each tick on this CPU.
 * The kernel makes the ticks' count a load from memory, where even its own coarse clock is
 * some calls. Before Linux 5.5 the loader puts the exact clock in the count's place, so
 * that each packet reads it.
 */
static __always_inline __u64 clock_coarse(const struct clock *c, struct work *w)
{
	__u64 tick = bpf_jiffies64();

	if (c->now)
		return c->now;
	if (w->tick != tick) {
		w->tick = tick;
		w->tick_time = bpf_ktime_get_ns();
	}
	return w->tick_time;
}

static __always_inline __u32 clock_chance(const struct clock *c)
{
	return c->now ? c->chance : bpf_get_prandom_u32();
}

#endif
