// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The shipped programs with clock, chance and queue in the test's hand. A separate
 * object, built for tests only and never shipped.
 */
#include "../gateway.c"

struct moment {
	struct clock clock;
	__u32 queue;
	__u32 unused;
};

/* 0 -> time, queue and chance of the next packet. The test writes; xdp_driven reads. */
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
	struct moment *m = bpf_map_lookup_elem(&drive, &zero);
	struct frame f = {
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.length = ctx->data_end - ctx->data,
	};

	if (!m)
		return XDP_ABORTED;
	return ingress(&f, m->queue, &m->clock);
}
