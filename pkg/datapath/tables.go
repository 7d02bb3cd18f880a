// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/xgw-project/xgw/pkg/bpf"
	"github.com/xgw-project/xgw/pkg/policy"
)

// Apply writes the tables into the maps. New deny entries come before stale ones
// go, so a prefix that is in both is denied throughout. Buckets keep their state.
// An error may leave part of the new entries; applying again mends that.
func (d *Datapath) Apply(t *policy.Tables) error {
	if err := d.applyLimits(t.Limits); err != nil {
		return fmt.Errorf("apply tables to %s: %w", d.options.Interface, err)
	}
	var v4, v6 []netip.Prefix
	for _, p := range t.Deny {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	if err := applyDeny(d.objects.Deny4, d.objects.DenySizes, 0, v4, prefix4); err != nil {
		return fmt.Errorf("apply tables to %s: deny IPv4: %w", d.options.Interface, err)
	}
	if err := applyDeny(d.objects.Deny6, d.objects.DenySizes, 1, v6, prefix6); err != nil {
		return fmt.Errorf("apply tables to %s: deny IPv6: %w", d.options.Interface, err)
	}
	return nil
}

// applyLimits writes all limits at once; one that is not in the list is off.
func (d *Datapath) applyLimits(list []policy.PacketLimit) error {
	var value bpf.GatewayPacketLimits
	for _, l := range list {
		switch l.Kind {
		case policy.QueuePackets:
			value.QueuePackets.Interval, value.QueuePackets.Tolerance = uint64(l.Interval), uint64(l.Tolerance)
		case policy.SourceSyns:
			value.SourceSyns.Interval, value.SourceSyns.Tolerance = uint64(l.Interval), uint64(l.Tolerance)
		default:
			return fmt.Errorf("packet limit %s: kind %d has no place in the kernel plane", l.Name, l.Kind)
		}
	}
	if err := d.objects.Limits.Put(uint32(0), &value); err != nil {
		return fmt.Errorf("write limits: %w", err)
	}
	return nil
}

func prefix4(p netip.Prefix) bpf.GatewayPrefix4 {
	return bpf.GatewayPrefix4{Prefixlen: uint32(p.Bits()), Addr: p.Addr().As4()}
}

func prefix6(p netip.Prefix) bpf.GatewayPrefix6 {
	return bpf.GatewayPrefix6{Prefixlen: uint32(p.Bits()), Addr: p.Addr().As16()}
}

// applyDeny makes the trie hold exactly the prefixes. sizes tells the program
// whether to look at all.
func applyDeny[K comparable](trie, sizes *ebpf.Map, family uint32, prefixes []netip.Prefix, encode func(netip.Prefix) K) error {
	want := make(map[K]bool, len(prefixes))
	for _, p := range prefixes {
		key := encode(p)
		want[key] = true
		if err := trie.Put(&key, uint32(1)); err != nil {
			return fmt.Errorf("add %s (%d of %d fit): %w", p, trie.MaxEntries(), len(prefixes), err)
		}
	}
	if err := sizes.Put(family, uint32(len(prefixes))); err != nil {
		return fmt.Errorf("write size: %w", err)
	}
	var stale []K
	var key K
	var value uint32
	entries := trie.Iterate()
	for entries.Next(&key, &value) {
		if !want[key] {
			stale = append(stale, key)
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("list entries: %w", err)
	}
	for i := range stale {
		if err := trie.Delete(&stale[i]); err != nil {
			return fmt.Errorf("remove stale entry: %w", err)
		}
	}
	return nil
}
