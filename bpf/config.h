/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Facts of the machine, written once before the programs are loaded, and the sizes
 * of tables. What an operator can change while they run is in maps (maps.h).
 */
#ifndef XGW_CONFIG_H
#define XGW_CONFIG_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h> /* first: linux/stddef.h has another __always_inline, which is a hint */

/* Receive queues with a row of their own in ingress_counts; see count_row(). */
const volatile __u32 queue_rows = 1;

/* Random at each load: makes places in hashed tables unpredictable to senders. */
const volatile __u64 hash_seed = 0;

/* Set where frames may have several buffers (Linux 5.18 and a driver that can). */
const volatile __u32 frags = 0;

#define MAX_WORKERS 256	    /* slots of one listener's socket array */
#define SOURCE_ROW 65536    /* buckets in each of the two rows for single sources */
#define PREFIX_ROW 16384    /* likewise for prefixes of sources */
#define SKETCH_PART 64	    /* buckets of a row that lie together; both rows' fill a page */
#define VERIFIED_SETS 32768 /* sets of VERIFIED_WAYS exact sources each */
#define VERIFIED_WAYS 8
#define VERIFIED_LOCKS 1024		 /* of those sets, each of as many sets */
#define VERIFIED_IDLE_NS 300000000000ULL /* not seen for so long: may go before others */
#define HANDSHAKES 262144		 /* replies to SYNs that wait for the client's ACK */
#define OWN_FLOWS 65536			 /* places of connections that this host opened */
#define VERDICT_ROWS 16384		 /* rows of VERDICT_WAYS verdicts each */
#define VERDICT_WAYS 4
#define TRIED_SOURCES 16384 /* of which tc_trial knows how they would have fared */
#define LANE_ROWS 1024	    /* rows of LANE_WAYS connections each */
#define LANE_WAYS 4
#define PREFIX_ROWS 65536     /* rows of prefix_rows for each family */
#define MAX_PREFIX_LENGTHS 24 /* IPv6, of one generation; IPv4 has 16 above /16 */
#define ROW_LENGTHS ((1ULL << MAX_PREFIX_LENGTHS) - 1)
#define MAX_PORT_LIMITS 16
#define MAX_PINHOLES 8
#define SHORT_FRAME 128		       /* bytes; what is shorter lies in one buffer */
#define DROP_SAMPLES 128	       /* kept by each CPU */
#define SAMPLE_EVERY 64		       /* drops of one CPU, queue and outcome; a power of two */
#define SAMPLE_HEAD 96		       /* bytes of a dropped frame, a multiple of 4 */
#define NO_GENERATION 2		       /* slots 0 and 1 hold generations; this one never does */
#define ADMIN_COST 6553600000ULL       /* 10,000 packets a second through the pinholes, */
#define ADMIN_TOLERANCE 64000000000ULL /* and as many at once: see struct limit */
#define LANE_COST 65536000000ULL       /* 1,000 packets a second of each such connection, */
#define LANE_TOLERANCE 32000000000ULL  /* and half as many at once */

#endif
