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

/* Returns how many of this outcome the row has now, on this CPU. */
static __always_inline __u64 count_outcome(void *table, __u32 row, __u32 outcome, __u64 packets,
					   __u64 bytes)
{
	struct count *counts = bpf_map_lookup_elem(table, &row);
	__u64 place = outcome;

	asm volatile("" : "+r"(place)); /* check and index must be one register */
	if (!counts || place >= OUTCOME_COUNT)
		return 0; /* cannot be: rows and outcomes come from these very headers */
	counts[place].bytes += bytes;
	return counts[place].packets += packets;
}

static __always_inline __u64 count_ingress(__u32 row, enum outcome outcome, __u64 packets,
					   __u64 bytes)
{
	return count_outcome(&ingress_counts, row, outcome, packets, bytes);
}

static __always_inline void count_egress(enum outcome outcome, __u64 packets, __u64 bytes)
{
	count_outcome(&egress_counts, 0, outcome, packets, bytes);
}

#endif
