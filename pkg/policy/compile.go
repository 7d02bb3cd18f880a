// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/xgw-project/xgw/pkg/config"
)

// The words of the configuration for keys, counts and modes.
var (
	limitKeys = map[string]LimitKey{
		"queue": ByQueue, "source": BySource, "prefix": ByPrefix, "port": ByPort, "interface": ByInterface,
	}
	limitCounts = map[string]LimitCount{"syns": SYNs, "packets": Packets, "bytes": Bytes}
	guardModes  = map[string]GuardMode{"": GuardOff, "off": GuardOff, "count": GuardCount, "enforce": GuardEnforce}
)

func compileLimit(l config.PacketLimit) (PacketLimit, error) {
	key, knownKey := limitKeys[l.Key]
	count, knownCount := limitCounts[l.Count]
	switch {
	case !knownKey || !knownCount:
		return PacketLimit{}, fmt.Errorf("no limit of %q by %q", l.Count, l.Key)
	case l.Rate == 0:
		return PacketLimit{}, errors.New("rate 0")
	}
	cost := costOf(l.Rate)
	burst := max(l.Burst, 1)
	if burst > (1<<63-1)/max(cost, 1) {
		return PacketLimit{}, fmt.Errorf("burst %d lasts too long at rate %d", burst, l.Rate)
	}
	return PacketLimit{
		Name: l.Name, Key: key, Count: count, Port: l.Port, Cost: cost, Tolerance: burst * cost >> 10, DryRun: l.DryRun,
	}, nil
}

// costOf is that of one unit at the rate, in 2^-16 ns. Rounding makes the rate that holds
// differ by at most rate/1.3e14 of itself.
func costOf(rate uint64) uint64 {
	const second = 1_000_000_000 << 16
	return (second + rate/2) / rate
}

func compileBudget(rate uint64) Budget {
	if rate == 0 {
		return Budget{}
	}
	cost := costOf(rate)
	return Budget{Cost: cost, Tolerance: rate * cost >> 10}
}

// compileGuard adds the gateway's own ports to those configured. The ports of pinholes are
// not among them: they are open to whom the pinhole names, and to nobody else.
func compileGuard(c *config.Config) PortGuard {
	g := PortGuard{Mode: guardModes[c.PortGuard.Mode], TCP: slices.Clone(c.PortGuard.TCP), UDP: slices.Clone(c.PortGuard.UDP)}
	addresses := []string{c.Telemetry.Address}
	for _, l := range c.Listeners {
		addresses = append(addresses, l.Address)
	}
	for _, address := range addresses {
		host, text, err := net.SplitHostPort(address)
		port, portErr := strconv.ParseUint(text, 10, 16)
		if a, ipErr := netip.ParseAddr(host); err != nil || portErr != nil || port == 0 || ipErr == nil && a.IsLoopback() {
			continue // not there, chosen by the kernel, or not reached through an interface
		}
		g.TCP = append(g.TCP, uint16(port))
	}
	slices.Sort(g.TCP)
	slices.Sort(g.UDP)
	g.TCP, g.UDP = slices.Compact(g.TCP), slices.Compact(g.UDP)
	return g
}

// compilePrefixes makes the list of rules: deny, allow, and upstreams that are
// addresses, which no rule but one for exactly that address may cut off.
func compilePrefixes(c *config.Config) ([]PrefixRule, error) {
	all := make([]PrefixRule, 0, len(c.Deny)+len(c.Allow))
	for i, list := range [][]netip.Prefix{c.Deny, c.Allow} {
		action := []Action{Deny, Allow}[i]
		for n, p := range list {
			if !p.IsValid() {
				return nil, fmt.Errorf("compile %s prefix %d: it is no prefix", action, n)
			}
			all = append(all, PrefixRule{unmap(p).Masked(), action})
		}
	}
	explicit := len(all)
	for _, u := range c.Upstreams {
		for _, server := range u.Servers {
			if a, err := netip.ParseAddrPort(server.Address); err == nil {
				a := a.Addr().Unmap().WithZone("")
				all = append(all, PrefixRule{netip.PrefixFrom(a, a.BitLen()), Allow})
			}
		}
	}
	if explicit == 0 {
		return nil, nil // nothing to exempt upstreams from but verdicts, which know them
	}
	out, err := normalise(all, explicit)
	if err != nil {
		return nil, err
	}
	lengths := map[int]bool{}
	for _, r := range out {
		if r.Prefix.Addr().Is6() {
			lengths[r.Prefix.Bits()] = true
		}
	}
	if len(lengths) > MaxPrefixLengths {
		return nil, fmt.Errorf("IPv6 prefixes have %d different lengths: %d are possible: split the rarest into longer ones", len(lengths), MaxPrefixLengths)
	}
	return out, nil
}

func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// normalise sorts and leaves out what changes nothing: a rule inside of another one with
// the same action. Of two rules for one prefix the explicit one, among the first of the
// list, stays; two explicit ones that differ are an error.
func normalise(all []PrefixRule, explicit int) ([]PrefixRule, error) {
	type ranked struct {
		PrefixRule
		implicit bool
	}
	list := make([]ranked, len(all))
	for i, r := range all {
		list[i] = ranked{r, i >= explicit}
	}
	slices.SortFunc(list, func(a, b ranked) int {
		rank := 0
		if a.implicit != b.implicit {
			rank = 1
			if b.implicit {
				rank = -1
			}
		}
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), rank)
	})
	// Two prefixes are apart or one contains the other; so in this order all that one
	// contains follow it before anything else does, and enclosing ones make a stack.
	var out, enclosing []PrefixRule
	for i, r := range list {
		if i > 0 && list[i-1].Prefix == r.Prefix {
			if !r.implicit && list[i-1].Action != r.Action {
				return nil, fmt.Errorf("%s is both denied and allowed: take it out of one list", r.Prefix)
			}
			list[i].PrefixRule = list[i-1].PrefixRule
			continue
		}
		for n := len(enclosing); n > 0 && !encloses(enclosing[n-1].Prefix, r.Prefix); n-- {
			enclosing = enclosing[:n-1]
		}
		if n := len(enclosing); n > 0 && enclosing[n-1].Action == r.Action {
			continue
		}
		enclosing = append(enclosing, r.PrefixRule)
		out = append(out, r.PrefixRule)
	}
	return out, nil
}

func encloses(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
