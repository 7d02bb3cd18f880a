// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * xdp_ingress with the clock and the queue in the test's hand. A separate object,
 * built for tests only and never shipped.
 */
#include "../ingress.h"

struct moment {
	__u64 now;
	__u32 queue;
	__u32 unused;
};

/* 0 -> time and queue of the next packet. The test writes; xdp_driven reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct moment);
} drive SEC(".maps");

SEC("xdp")
int xdp_driven(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct moment *d = bpf_map_lookup_elem(&drive, &zero);
	struct clock clock = {};

	if (!d)
		return XDP_ABORTED;
	clock.now = d->now;
	return ingress(ctx, d->queue, &clock);
}

char _license[] SEC("license") = "Dual BSD/GPL";
