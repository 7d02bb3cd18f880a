/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map is pinned under its own name. Above each: key -> value, who writes,
 * who reads. Sizes that depend on the machine are set by the loader.
 */
#ifndef XGW_MAPS_H
#define XGW_MAPS_H

#include "config.h"
#include "types.h"
#include <bpf/bpf_helpers.h>

/* A limit's state for one key: tat is the theoretical arrival time, in ns. */
struct bucket {
	struct bpf_spin_lock lock;
	__u32 unused;
	__u64 tat;
};

/* receive queue, then one row for queues beyond -> counts. xdp_ingress; all readers. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct queue_counts);
} ingress_counts SEC(".maps");

/* 0 -> counts; the transmit queue is not chosen yet at tc. tc_egress; all readers. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct queue_counts);
} egress_counts SEC(".maps");

/* IPv4 prefix -> 1. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct prefix4);
	__type(value, __u32);
} deny4 SEC(".maps");

/* IPv6 prefix -> 1. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct prefix6);
	__type(value, __u32);
} deny6 SEC(".maps");

/* 0 IPv4, 1 IPv6 -> entries in deny4, deny6. datapath writes; xdp_ingress skips empty tables. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} deny_sizes SEC(".maps");

/* 0 -> all limits. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet_limits);
} limits SEC(".maps");

/* receive queue -> bucket of queue_packets. xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct bucket);
} queue_buckets SEC(".maps");

/* place in one of the two rows -> bucket of source_syns. xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * SKETCH_ROW);
	__type(key, __u32);
	__type(value, struct bucket);
} source_sketch SEC(".maps");

/* slot -> a worker's listening socket. The supervisor writes; select_worker reads. */
struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, MAX_WORKERS);
	__type(key, __u32);
	__type(value, __u64);
} workers SEC(".maps");

/* CPU -> slot of its worker, or MAX_WORKERS for none. The supervisor; select_worker. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} cpu_slots SEC(".maps");

/* 0 -> counts. select_worker; all readers. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct steer_counts);
} steered SEC(".maps");

#endif
