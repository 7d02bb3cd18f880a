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
 * A tick behind at most, and half as dear. Before Linux 5.11 the loader puts the
 * exact clock in its place.
 */
static __always_inline __u64 clock_coarse(const struct clock *c)
{
	return c->now ? c->now : bpf_ktime_get_coarse_ns();
}

static __always_inline __u32 clock_chance(const struct clock *c)
{
	return c->now ? c->chance : bpf_get_prandom_u32();
}

#endif
