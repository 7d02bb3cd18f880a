/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Facts of the machine, written once before the programs are loaded. What an
 * operator can change while they run is in maps (maps.h), never here.
 */
#ifndef XGW_CONFIG_H
#define XGW_CONFIG_H

#include <linux/bpf.h>

/* Receive queues with a row of their own in ingress_counts; see count_row(). */
const volatile __u32 queue_rows = 1;

/* Random at each load: makes the places of the sketch unpredictable to senders. */
const volatile __u64 hash_seed = 0;

#define MAX_WORKERS 256	 /* slots of one listener's socket array */
#define SKETCH_ROW 65536 /* buckets in each of the sketch's two rows */

#endif
