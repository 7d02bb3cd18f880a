/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The values that the kernel side shares with user space. bpf2go turns the
 * structs and enums named in gen.go into Go types, and the counters carry
 * their names in BTF, so nothing here is written down a second time.
 */
#ifndef XGW_TYPES_H
#define XGW_TYPES_H

#include <linux/bpf.h>

/*
 * Why a packet ended. One line is one counter: its name is "<verdict>_<reason>"
 * and reaches bpftool, Prometheus and every other reader unchanged. Adding an
 * outcome is one line here and the line of code that returns it.
 *
 *   pass_*  the packet goes on to the network stack
 *   drop_*  the packet ends here
 */
#define OUTCOMES(X)                                                        \
	X(pass_tcp)	    /* TCP that no rule and no limit stopped */    \
	X(pass_udp)	    /* UDP, likewise */                            \
	X(pass_icmp)	    /* ICMP and ICMPv6, likewise */                \
	X(pass_other_ip)    /* any other protocol above IP */              \
	X(pass_fragment)    /* a fragment after the first: has no ports */ \
	X(pass_arp)	    /* essential: ARP */                           \
	X(pass_nd)	    /* essential: IPv6 neighbour discovery */      \
	X(pass_dhcp)	    /* essential: DHCP replies to this host */     \
	X(pass_ptb)	    /* essential: "packet too big" messages */     \
	X(pass_not_ip)	    /* an ethertype that is not IP or ARP */       \
	X(pass_deep_vlan)   /* more than two VLAN tags */                  \
	X(pass_deep_ext)    /* more IPv6 extension headers than read */    \
	X(drop_truncated)   /* the frame ends inside what it announces */  \
	X(drop_malformed)   /* its headers contradict themselves */        \
	X(drop_deny)	    /* its source is in a denied prefix */         \
	X(drop_queue_limit) /* over the packet limit of its queue */       \
	X(drop_source_syns) /* a SYN over the SYN limit of its source */

enum outcome {
#define X(name) OUTCOME_##name,
	OUTCOMES(X)
#undef X
	OUTCOME_COUNT,
	OUTCOME_FIRST_DROP = OUTCOME_drop_truncated,
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

/*
 * A limit as a generic cell rate: one packet each interval, and a burst of
 * tolerance / interval packets. Nanoseconds; interval 0 means "no limit".
 */
struct limit {
	__u64 interval;
	__u64 tolerance;
};

/* All packet limits of the interface. */
struct packet_limits {
	struct limit queue_packets; /* all packets of one receive queue */
	struct limit source_syns;   /* SYNs of one source: IPv4 /32, IPv6 /64 */
};

/* Prefixes of the deny table; prefixlen counts bits from addr[0]. */
struct prefix4 {
	__u32 prefixlen;
	__u8 addr[4];
};

struct prefix6 {
	__u32 prefixlen;
	__u8 addr[16];
};

#endif
