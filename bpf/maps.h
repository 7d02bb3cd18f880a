/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map is pinned under its own name, but for inner ones. Above each: key ->
 * value, who writes, who reads. Sizes that depend on the machine are set by the loader.
 */
#ifndef XGW_MAPS_H
#define XGW_MAPS_H

#include "config.h"
#include "parse.h"
#include "types.h"
#include <bpf/bpf_helpers.h>

/* State of one source or prefix in the sketch. Times are arrival times, in 2^-6 ns. */
struct bucket {
	__u32 unused;
	__u32 tag; /* of the last source that was charged here */
	__u64 tat[COUNT_KINDS];
};

/* State of one queue; a queue has one CPU in native mode, so there is no lock. */
struct queue_bucket {
	__u64 tat[COUNT_KINDS];
	__u64 essential; /* ARP and neighbour discovery */
	__u64 echo;
	__u64 unclassified;
	__u64 admin;
	__u64 routed; /* essentials that come from beyond the link: DHCP, "packet too big" */
};

/* State that all CPUs share; they draw on it in batches. */
struct shared_bucket {
	struct bpf_spin_lock lock;
	__u32 unused;
	__u64 tat;
};

/*
 * Sources that completed a handshake; 0 is an empty place. One cache line, which is all
 * that a stranger's packet reads: in a table of its own, so that few pages hold it.
 */
struct verified_set {
	__u64 source[VERIFIED_WAYS];
};

/* Exact state of the sources of a set, each at its place. */
struct verified_state {
	__u64 seen[VERIFIED_WAYS]; /* ns */
	__u64 tat[VERIFIED_WAYS * COUNT_KINDS];
};

struct set_lock {
	struct bpf_spin_lock lock;
	__u32 unused;
};

/* A SYN-ACK that was sent: the client proves its address by acknowledging it. */
struct handshake {
	__u32 tag; /* of the connection */
	__u32 ack; /* host order */
};

/* What one packet asks of all limits. */
struct request {
	__u64 bytes;
	__u64 syns;   /* 0 or 1 */
	__u64 counts; /* that the packet is of, as bits: a SYN of all, others not of SYNs */
	__u64 now;    /* ns */
	__u32 slot;   /* of the generation */
	__u32 row;    /* of the queue */
};

/* What is known of the packet in hand. */
struct work {
	struct packet packet;
	__u32 outcome; /* as far as is known */
	__u32 expired; /* the generation that holds is the fallback */
	struct request request;
	__u32 fallback; /* action of the shortest prefixes, which rows have themselves */
	__u32 unused;
	__u64 lengths;	 /* of prefixes yet to look for */
	__u64 way;	 /* one more than the place of the source among the verified, or 0 */
	__u64 tick;	 /* the latest that this CPU saw, see clock_coarse() */
	__u64 tick_time; /* ns, somewhere in it */
	struct explanation explanation;
};

struct own_flow {
	__u64 flow[2]; /* hashes, the latest first */
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

/* enum limit_slot -> packets over it. xdp_ingress; all readers. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOT_COUNT);
	__type(key, __u32);
	__type(value, struct over_counts);
} limit_counts SEC(".maps");

/* 0 -> counts. xdp_ingress, tc_egress; all readers. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct table_events);
} table_counts SEC(".maps");

/* 0 -> hash_seed, for those who place what the programs look up. datapath alone. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} seed SEC(".maps");

/* 0 -> which generation holds. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control_state);
} control SEC(".maps");

/* 0 -> sign of life. The supervisor; xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct heartbeat_state);
} heartbeat SEC(".maps");

/*
 * The four tables of a generation, each in the slot that control names. clang 14 leaves
 * the types of inner maps out of BTF, so these have sizes and the loader adds the types.
 */
struct tables_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct tables));
};

struct ports_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct port_row));
};

struct prefix_rows_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * PREFIX_ROWS);
	__type(key, __u32);
	__type(value, __u64);
};

struct buckets_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct prefix_bucket));
};

/* These put the types into BTF; nothing uses them, so they are never loaded. */
struct tables *type_tables;
struct port_row *type_port_row;
struct prefix_bucket *type_prefix_bucket;

/* slot -> 0 -> rules and limits. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct tables_map);
} gen_tables SEC(".maps");

/* slot -> port / 64 -> ports. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct ports_map);
} gen_ports SEC(".maps");

/* slot -> row -> lengths of the prefixes there. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct prefix_rows_map);
} gen_rows SEC(".maps");

/* slot -> bucket -> prefixes. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct buckets_map);
} gen_buckets SEC(".maps");

/* receive queue -> state. xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct queue_bucket);
} queue_buckets SEC(".maps");

/* place, see take_sketch() -> state of sources without an exact entry. xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * SOURCE_ROW);
	__type(key, __u32);
	__type(value, struct bucket);
} source_sketch SEC(".maps");

/* place, likewise -> state of prefixes of sources. xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * PREFIX_ROW);
	__type(key, __u32);
	__type(value, struct bucket);
} prefix_sketch SEC(".maps");

/* enum limit_slot -> state of limits by port and interface. xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOT_COUNT);
	__type(key, __u32);
	__type(value, struct shared_bucket);
} shared_buckets SEC(".maps");

/* enum limit_slot -> what this CPU has drawn on the bucket, 2^-6 ns. xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOT_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} shared_credits SEC(".maps");

/* hash of the source -> who of its set completed a handshake. xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VERIFIED_SETS);
	__type(key, __u32);
	__type(value, struct verified_set);
} verified SEC(".maps");

/* as verified -> exact state of these. xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VERIFIED_SETS);
	__type(key, __u32);
	__type(value, struct verified_state);
} verified_states SEC(".maps");

/* hash of the source, as that of its set -> lock, for who takes a place; charges need none. xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VERIFIED_LOCKS);
	__type(key, __u32);
	__type(value, struct set_lock);
} verified_locks SEC(".maps");

/* hash of the connection -> SYN-ACK. tc_egress writes; xdp_ingress reads and clears. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HANDSHAKES);
	__type(key, __u32);
	__type(value, struct handshake);
} handshakes SEC(".maps");

/* hash of the connection -> connections this host opened. tc_egress; xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OWN_FLOWS);
	__type(key, __u32);
	__type(value, struct own_flow);
} own_flows SEC(".maps");

/* hash of the source -> verdicts. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, VERDICT_ROWS);
	__type(key, __u32);
	__type(value, struct verdict_row);
} verdicts SEC(".maps");

/* hash of the connection -> what verdicts leave alone. datapath writes; xdp_ingress charges. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LANE_ROWS);
	__type(key, __u32);
	__type(value, struct lane_row);
} lanes SEC(".maps");

/* CPU -> until when its worker has no handshakes left, ns. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} pressure SEC(".maps");

/* 0 -> who is never shut out. datapath writes; xdp_ingress reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pinhole_list);
} pinholes SEC(".maps");

/*
 * source_key() -> what it would have lost. tc_trial writes, until it is full; datapath reads.
 * Nothing is pushed out: what is left over is the difference to ingress_counts.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TRIED_SOURCES);
	__type(key, __u64);
	__type(value, struct tried_source);
} tried_sources SEC(".maps");

/* place -> a dropped frame. xdp_ingress writes round and round; datapath reads. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROP_SAMPLES);
	__type(key, __u32);
	__type(value, struct drop_sample);
} drop_samples SEC(".maps");

/* 0 -> samples this CPU has taken. xdp_ingress; datapath reads. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sample_cursor SEC(".maps");

/* index -> CPU that flows are spread to. datapath writes; xdp_ingress redirects. */
struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} cpus SEC(".maps");

/* 0 -> how many of cpus are used; below 2 nothing is spread. datapath; xdp_ingress. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} cpu_count SEC(".maps");

/* 0 -> what became of the last packet. xdp_explain; datapath reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct explanation);
} explained SEC(".maps");

/*
 * 0 -> the packet in hand. xdp_ingress, on its own CPU. In a map and not on the stack,
 * since the verifier walks the rest of the program once for each thing it knows of a
 * stack's content, and knows nothing of a map's.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} scratch SEC(".maps");

/* What was written last into scratch, as if the verifier had not seen it. */
#define UNKNOWN(member) (*(volatile typeof(member) *)&(member))

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
