/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every packet leaves through count_ingress() or count_egress(), which count it
 * once. Rows are per CPU, so an increment needs no atomic; a reader that sums
 * over CPUs may miss packets of this very moment, and never sees one twice.
 */
#ifndef XGW_COUNT_H
#define XGW_COUNT_H

#include "maps.h"

/* Queues beyond those the interface had at load share the last row. */
static __always_inline __u32 count_row(__u32 queue)
{
	return queue < queue_rows ? queue : queue_rows;
}

static __always_inline void count_outcome(void *table, __u32 row, __u32 outcome, __u64 packets,
					  __u64 bytes)
{
	struct count *counts = bpf_map_lookup_elem(table, &row);

	if (!counts || outcome >= OUTCOME_COUNT)
		return; /* cannot be: rows and outcomes come from these very headers */
	counts[outcome].packets += packets;
	counts[outcome].bytes += bytes;
}

static __always_inline int count_ingress(__u32 row, enum outcome outcome, __u64 bytes)
{
	count_outcome(&ingress_counts, row, outcome, 1, bytes);
	return outcome < OUTCOME_FIRST_DROP ? XDP_PASS : XDP_DROP;
}

static __always_inline void count_egress(enum outcome outcome, __u64 packets, __u64 bytes)
{
	count_outcome(&egress_counts, 0, outcome, packets, bytes);
}

#endif
