/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The values that the kernel side shares with user space. bpf2go turns the
 * structs and enums named in gen.go into Go types, and the counters carry
 * their names in BTF, so nothing here is written down a second time.
 */
#ifndef XGW_TYPES_H
#define XGW_TYPES_H

#include "config.h"
#include <linux/bpf.h>

/*
 * Why a packet ended. One line is one counter: its name is "<verdict>_<reason>"
 * and reaches bpftool, Prometheus and every other reader unchanged. Adding an
 * outcome is one line here and the line of code that returns it.
 *
 *   pass_*  the packet goes on to the network stack
 *   drop_*  the packet ends here
 */
#define OUTCOMES(X)                                                                 \
	X(pass_tcp)		/* TCP that no rule and no limit stopped */         \
	X(pass_udp)		/* UDP, likewise */                                 \
	X(pass_icmp)		/* ICMP and ICMPv6, likewise */                     \
	X(pass_other_ip)	/* any other protocol above IP */                   \
	X(pass_fragment)	/* a fragment after the first: has no ports */      \
	X(pass_arp)		/* essential: ARP */                                \
	X(pass_nd)		/* essential: IPv6 neighbour discovery */           \
	X(pass_dhcp)		/* essential: DHCP replies to this host */          \
	X(pass_ptb)		/* essential: "packet too big" messages */          \
	X(pass_not_ip)		/* an ethertype that is not IP or ARP */            \
	X(pass_deep_vlan)	/* more than two VLAN tags */                       \
	X(pass_deep_ext)	/* more IPv6 extension headers than read */         \
	X(pass_admin)		/* stopped, but for an administrator's pinhole */   \
	X(pass_own_flow)	/* stopped, but a reply to what this host opened */ \
	X(pass_stale_verdict)	/* has a verdict, but nobody tends verdicts */      \
	X(pass_fast_lane)	/* stopped by a verdict, but for its own lane */    \
	X(pass_unconfirmed)	/* stopped, but the attach was never confirmed */   \
	X(drop_truncated)	/* the frame ends inside what it announces */       \
	X(drop_malformed)	/* its headers contradict themselves */             \
	X(drop_tcp_flags)	/* TCP flags that no state of TCP sends */          \
	X(drop_essential)	/* over its queue's budget of essentials */         \
	X(drop_echo)		/* over its queue's budget of echo requests */      \
	X(drop_unclassified)	/* over its queue's budget of the unclassified */   \
	X(drop_deny)		/* its source is in a denied prefix */              \
	X(drop_port_guard)	/* a new flow to a port that is not served */       \
	X(drop_verdict_thin)	/* a SYN thinned out by a verdict on its source */  \
	X(drop_verdict_syns)	/* a SYN, dropped by a verdict */                   \
	X(drop_verdict_new)	/* a new flow, dropped by a verdict */              \
	X(drop_verdict_all)	/* anything, dropped by a verdict */                \
	X(drop_handshakes)	/* a stranger's SYN: no handshakes are left */      \
	X(drop_source_limit)	/* over a packet limit of its source */             \
	X(drop_prefix_limit)	/* over a packet limit of its source's prefix */    \
	X(drop_port_limit)	/* over a packet limit of its destination port */   \
	X(drop_queue_limit)	/* over a packet limit of its queue */              \
	X(drop_interface_limit) /* over a packet limit of the interface */

enum outcome {
#define X(name) OUTCOME_##name,
	OUTCOMES(X)
#undef X
	OUTCOME_COUNT,
	OUTCOME_FIRST_DROP = OUTCOME_drop_truncated,
	/* From here on the packet was understood, and may be spared. */
	OUTCOME_FIRST_RULE = OUTCOME_drop_essential,
};

struct count {
	__u64 packets;
	__u64 bytes; /* whole frames, from the Ethernet header, without FCS */
};

/* One counter an outcome, in the order of enum outcome. */
struct queue_counts {
#define X(name) struct count name;
	OUTCOMES(X)
#undef X
};

/* How select_worker placed a new connection; a SYN sent again counts again. */
struct steer_counts {
	__u64 local;	/* the worker of the CPU that received it */
	__u64 fallback; /* another worker, since that one is not there */
	__u64 refused;	/* no worker is there at all */
};

/* What the tables of fixed size had to do; all of it is 0 in quiet times. */
struct table_events {
	__u64 verified_added; /* sources that completed a handshake, new in the table */
	__u64 verified_idle;  /* exact entries given up after a pause of 5 minutes */
	__u64 verified_live;  /* exact entries given up for others, while alive */
	__u64 source_bypass;  /* strangers let by the source limit: their buckets were others' */
	__u64 prefix_bypass;  /* likewise by the prefix limit */
	__u64 handshake_lost; /* replies to SYNs that another one took the place of */
};

/* What a packet limit counts, and the place of its state in a bucket. */
enum limit_count {
	COUNT_SYNS,
	COUNT_PACKETS,
	COUNT_BYTES,
	COUNT_KINDS,
};

/* Slots of limit_counts: key * COUNT_KINDS + count, then limits by port, then the guard. */
enum limit_slot {
	SLOT_QUEUE = 0,
	SLOT_SOURCE = 3,
	SLOT_PREFIX = 6,
	SLOT_INTERFACE = 9,
	SLOT_PORT = 12,
	SLOT_GUARD = 60,
	SLOT_COUNT = 61,
};

/* A key's bits in tables.active, at each key's place. */
#define EACH_KEY                                                                           \
	(1U << SLOT_QUEUE | 1U << SLOT_SOURCE | 1U << SLOT_PREFIX | 1U << SLOT_INTERFACE | \
	 1U << SLOT_PORT)

/*
 * A limit as a generic cell rate. cost is that of one packet or byte, in 2^-16 ns:
 * 10^9 * 2^16 / rate; 0 means "no limit". tolerance is what may be owed, in 2^-6 ns:
 * burst * cost / 2^10. slot is the limit's place in limit_counts and, for limits
 * by port, of its bucket; it stays the same from generation to generation.
 */
struct limit {
	__u64 cost;
	__u64 tolerance;
	__u64 reserve; /* part of the tolerance that is for verified sources alone */
	__u64 batch;   /* taken at once by a CPU from a bucket that all share, in 2^-6 ns */
	enum limit_slot slot;
	__u32 dry_run; /* 0 or 1 */
	char name[16];
};

struct budget {
	__u64 cost;
	__u64 tolerance;
};

struct port_limit {
	__u32 port; /* host order */
	__u32 unused;
	struct limit limit[COUNT_KINDS];
};

struct over_counts {
	struct count dropped;
	struct count dry_run; /* would have been dropped */
};

/*
 * Where the prefixes of one family are: see prefix.h. lengths are those that occur,
 * the longest first; bit i of a row stands for lengths[i].
 */
struct prefix_head {
	__u64 always; /* lengths to look for whatever the row says */
	__u32 entries;
	__u32 first;  /* bucket */
	__u32 mask;   /* buckets - 1 */
	__u32 family; /* 4 or 6 */
	__u8 lengths[32];
};

enum guard_mode {
	GUARD_OFF,
	GUARD_COUNT,
	GUARD_ENFORCE,
};

/* What tables configure at all; a step without its bit costs nothing. */
enum feature {
	FEATURE_PREFIXES = 1 << 0,
	FEATURE_GUARD = 1 << 1,
	FEATURE_BUDGETS = 1 << 2,
	FEATURE_COARSE = 1 << 3, /* every burst lasts longer than ticks */
};

/* One generation: all rules and limits that are not in gen_rows, gen_buckets, gen_ports. */
struct tables {
	__u64 generation;
	enum feature features; /* several of them */
	enum guard_mode guard;
	__u32 active; /* limits that there are, as bits of enum limit_slot; all ports share theirs */
	__u32 unused;
	__u64 stale_after;	 /* ns: an older heartbeat makes verdicts void */
	struct budget essential; /* budgets are those of one receive queue */
	struct budget echo;
	struct budget unclassified;
	struct limit queue[COUNT_KINDS];
	struct limit source[COUNT_KINDS];
	struct limit prefix[COUNT_KINDS];
	struct limit interface[COUNT_KINDS];
	struct prefix_head prefixes[2]; /* IPv4, IPv6 */
	struct port_limit port[MAX_PORT_LIMITS];
};

/* 64 ports: bit n of row r is port 64 * r + n. */
struct port_row {
	__u64 tcp;	/* new flows may go there */
	__u64 udp;	/* likewise */
	__u8 limit[64]; /* place of its limits in tables.port, and one more; 0: none */
};

/* Prefixes, in words: see prefix.h. */
struct prefix_bucket {
	__u64 word[8];
};

/* Which generation holds. Written in whole, read once by each packet. */
struct control_state {
	__u32 current;	/* slot of the generation, or NO_GENERATION */
	__u32 fallback; /* the one that holds after the deadline */
	__u64 deadline; /* CLOCK_MONOTONIC ns, 0: confirmed */
};

enum verdict_step {
	STEP_NONE,
	STEP_THIN, /* three SYNs of four */
	STEP_SYNS, /* all SYNs */
	STEP_NEW,  /* all that is not established TCP */
	STEP_ALL,
};

/*
 * What is held against a source. source is an IPv4 address, 0xffff00000000 | address,
 * or the first 64 bits of an IPv6 one; 0 is an empty place.
 */
struct verdict {
	__u64 source;
	__u32 expires; /* CLOCK_MONOTONIC, in units of 2^26 ns */
	__u8 step;     /* enum verdict_step */
	__u8 reason;   /* user space's */
	__u16 generation;
};

/* Who tends verdicts, and whether there are any to look for. */
struct heartbeat_state {
	__u64 beat;	/* CLOCK_MONOTONIC ns of the supervisor's last sign of life */
	__u64 verdicts; /* when the last of them ends, in units of 2^26 ns; 0: there are none */
};

struct verdict_row {
	struct verdict entry[VERDICT_WAYS];
};

/* A connection that verdicts leave alone, within a budget. flow 0 is an empty place. */
struct lane {
	__u64 flow; /* flow_hash() */
	__u64 tat;  /* 2^-6 ns */
};

struct lane_row {
	struct lane entry[LANE_WAYS];
};

/* Who may always reach a port, TCP only; words in host order. */
struct pinhole {
	__u64 high, low; /* source address; IPv4 as ::ffff:a.b.c.d */
	__u64 high_mask, low_mask;
	__u32 port;
	__u32 unused;
};

struct pinhole_list {
	__u64 count;
	struct pinhole entry[MAX_PINHOLES];
};

/* A dropped frame, one of SAMPLE_EVERY. */
struct drop_sample {
	__u64 time;    /* CLOCK_MONOTONIC ns */
	__u64 ordinal; /* how many this CPU and queue had dropped so, with this one */
	__u32 queue;   /* row of ingress_counts */
	__u32 length;  /* of the frame */
	__u16 outcome;
	__u16 captured; /* bytes of head that are the frame's */
	__u32 unused;
	__u32 head[SAMPLE_HEAD / 4];
};

/* What rules and limits that are tried would have dropped of a source. */
struct tried_source {
	__u64 packets;
	__u64 bytes;
	__u64 denied; /* of the packets, by a rule on the source: there is no rate that they pass at */
};

/* What xdp_explain says of the packet it was run on. */
struct explanation {
	__u64 over; /* slots of limits that the packet is over, as bits */
	__u32 outcome;
	enum verdict_step verdict; /* on its source */
	__u32 prefix;		   /* action of the rule that matched: 0 none, 1 deny, 2 allow */
	__u32 prefix_length;
	__u32 stopped; /* outcome before it was spared */
	__u64 generation;
};

#endif
