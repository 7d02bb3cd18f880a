// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * A flood: BPF_PROG_TEST_RUN with live frames runs it on copies of one TCP SYN over IPv4.
 * Each gets a source of its own, drawn from a seed, and leaves by the interface. User
 * space made the frame with those fields 0 and gives the sums of the rest. A separate
 * object, for bench/synflood only and never shipped.
 */
#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>

const volatile __u32 ifindex = 0;
const volatile __u32 first_source = 0; /* host order, as all here */
const volatile __u32 source_mask = 0;  /* bits that are drawn */
const volatile __u64 seed = 0;
const volatile __u32 ip_sum = 0, tcp_sum = 0; /* of 16-bit words, not folded */

/* 0 -> frames sent. flood, on its own CPU; bench/synflood reads. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sent SEC(".maps");

static __always_inline __u64 mix(__u64 hash)
{
	hash *= 0x9e3779b97f4a7c15ULL;
	hash ^= hash >> 32;
	hash *= 0xd6e8feb86659fd93ULL;
	return hash ^ hash >> 32;
}

static __always_inline __u32 words(__u32 v)
{
	return (v >> 16) + (v & 0xffff);
}

static __always_inline __be16 checksum(__u32 sum)
{
	sum = words(sum);
	return bpf_htons(~words(sum));
}

SEC("xdp")
int flood(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	__u32 zero = 0, source, port, sequence;
	__u64 *n = bpf_map_lookup_elem(&sent, &zero), drawn;

	if (!n || (void *)(tcp + 1) > end)
		return XDP_ABORTED;
	*n += 1;
	drawn = mix(seed + *n + ((__u64)bpf_get_smp_processor_id() << 48));
	source = first_source | (drawn & source_mask);
	drawn = mix(drawn);
	port = 1024 + (drawn & 0x7fff);
	sequence = drawn >> 32;
	ip->saddr = bpf_htonl(source);
	ip->check = checksum(ip_sum + words(source));
	tcp->source = bpf_htons(port);
	tcp->seq = bpf_htonl(sequence);
	tcp->check = checksum(tcp_sum + words(source) + port + words(sequence));
	return bpf_redirect(ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
