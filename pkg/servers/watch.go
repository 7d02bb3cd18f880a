// SPDX-License-Identifier: Apache-2.0

package servers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
)

// watch is what is known of one upstream's servers.
type watch struct {
	id       uint64
	watcher  *Watcher
	upstream policy.Upstream
	names    []string // to resolve
	checker  *checker // nil: nobody asks
	ctx      context.Context
	end      context.CancelFunc

	mu        sync.Mutex
	version   uint64
	resolved  map[string][]netip.Addr // by name: the last good answer
	failing   map[string]bool         // names whose last look-up failed
	cut       bool                    // there were more addresses than there may be
	targets   []*target
	inherited map[string]bool // by address: whether it is up, from the watch before
	hands     map[string]Hand // by address
}

// target is one address. Its watch's lock is that of its fields.
type target struct {
	server    policy.Server
	stop      context.CancelFunc
	known     bool // it was checked
	good, bad int  // checks in a row
	since     time.Time
	cause     string
	goodAll   uint64
	badAll    uint64
}

// resolve looks all names up, and makes a list of what is known then.
func (x *watch) resolve(ctx context.Context) {
	var all sync.WaitGroup
	for _, name := range x.names {
		all.Go(func() {
			found, err := x.watcher.resolver.LookupNetIP(ctx, "ip", name)
			if err == nil && len(found) == 0 {
				err = errors.New("it has no addresses")
			}
			x.learn(name, found, err)
		})
	}
	all.Wait()
	x.settle()
}

// learn keeps an answer; without one, what was known stays.
func (x *watch) learn(name string, found []netip.Addr, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.failing == nil {
		x.failing = map[string]bool{}
	}
	if err == nil {
		if x.failing[name] {
			x.watcher.log.Info("the name of a server is resolved again", "upstream", x.upstream.Name, "name", name)
		}
		delete(x.failing, name)
		x.resolved[name] = reachable(found)
		return
	}
	if !x.failing[name] && x.ctx.Err() == nil {
		x.watcher.log.Warn("the name of a server cannot be resolved: what was known of it holds on", "upstream", x.upstream.Name,
			"name", name, "known_addresses", len(x.resolved[name]), "error", err)
	}
	x.failing[name] = true
}

// reachable leaves out the addresses of a family that this host has no way to, as long as
// others are left, and puts them in an order of their own: resolvers turn theirs.
func reachable(found []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range found {
		a = a.Unmap()
		if a.Is6() && !routed(a) {
			continue
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		out = slices.Clone(found)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// routed asks the kernel for a way to the address; nothing is sent.
func routed(a netip.Addr) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// keepResolved looks the names up again and again, sooner when that failed.
func (x *watch) keepResolved() {
	for {
		x.mu.Lock()
		wait := x.upstream.Resolve
		if len(x.failing) > 0 {
			wait = min(wait, resolveAgain)
		}
		x.mu.Unlock()
		select {
		case <-x.ctx.Done():
			return
		case <-time.After(wait - jitter(wait/8)):
		}
		ctx, cancel := context.WithTimeout(x.ctx, resolveTime)
		x.resolve(ctx)
		cancel()
	}
}

// addresses are all servers as they are known, each address once.
func (x *watch) addresses() (out []policy.Server, cut bool) {
	seen := map[string]bool{}
	add := func(s policy.Server) {
		if !seen[s.Address] {
			seen[s.Address] = true
			out = append(out, s)
		}
	}
	for _, s := range x.upstream.Servers {
		host, port, _ := net.SplitHostPort(s.Address)
		if !slices.Contains(x.names, host) {
			add(policy.Server{Address: s.Address, Weight: s.Weight})
			continue
		}
		n, _ := strconv.ParseUint(port, 10, 16)
		for _, a := range x.resolved[host] {
			add(policy.Server{Address: netip.AddrPortFrom(a, uint16(n)).String(), Host: host, Weight: s.Weight})
		}
	}
	return out[:min(len(out), maxServers)], len(out) > maxServers
}

// settle makes the targets those of the known addresses, and says so if that changes them.
func (x *watch) settle() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ctx.Err() != nil {
		return
	}
	list, cut := x.addresses()
	if cut && !x.cut {
		x.watcher.log.Warn(fmt.Sprintf("an upstream has more than %d addresses: the rest gets no requests", maxServers), "upstream", x.upstream.Name)
	}
	x.cut = cut
	next := make([]*target, 0, len(list))
	for _, s := range list {
		i := slices.IndexFunc(x.targets, func(t *target) bool { return t.server.Address == s.Address && t.server.Host == s.Host })
		if i >= 0 {
			next = append(next, x.targets[i])
			continue
		}
		t := &target{server: s, since: time.Now(), stop: func() {}}
		if up, ok := x.inherited[s.Address]; ok && x.checker != nil {
			t.known, t.server.Down = true, !up
		}
		next = append(next, t)
	}
	if x.version > 0 && slices.Equal(next, x.targets) {
		return
	}
	for _, t := range x.targets {
		if !slices.Contains(next, t) {
			t.stop()
		}
	}
	for _, t := range next {
		if x.checker != nil && !slices.Contains(x.targets, t) {
			ctx, stop := context.WithCancel(x.ctx)
			t.stop = stop
			x.watcher.running.Go(func() { x.keepChecked(ctx, t) })
		}
	}
	if x.version > 0 {
		x.watcher.log.Info("the servers of an upstream changed", "upstream", x.upstream.Name, "servers", len(next), "before", len(x.targets))
	}
	x.targets = next
	x.version++
	x.watcher.tell()
}

// keepChecked asks one server again and again.
func (x *watch) keepChecked(ctx context.Context, t *target) {
	h := x.upstream.Health
	for n := 0; ; n++ {
		select {
		case x.watcher.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		within, cancel := context.WithTimeout(ctx, h.Timeout)
		err := x.checker.check(within, &t.server)
		cancel()
		<-x.watcher.slots
		if ctx.Err() != nil {
			return
		}
		x.report(t, err)
		wait := h.Interval - time.Since(began)
		if n == 0 {
			wait = jitter(h.Interval) // from now on apart from the others
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(wait, h.Interval/10)):
		}
	}
}

// report takes a check into account; nil: the server is well.
func (x *watch) report(t *target, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h, turns := x.upstream.Health, false
	if err == nil {
		t.good, t.bad, t.goodAll = t.good+1, 0, t.goodAll+1
		turns = t.server.Down && t.good >= h.Rise
	} else {
		t.good, t.bad, t.badAll, t.cause = 0, t.bad+1, t.badAll+1, err.Error()
		turns = !t.server.Down && (t.bad >= h.Fall || !t.known)
	}
	t.known = true
	if !turns {
		return
	}
	t.server.Down, t.since = !t.server.Down, time.Now()
	if t.server.Down {
		x.watcher.log.Warn("a server is down: it gets no requests", "upstream", x.upstream.Name, "server", t.server.Address, "cause", t.cause)
	} else {
		x.watcher.log.Info("a server is up again", "upstream", x.upstream.Name, "server", t.server.Address)
	}
	x.version++
	x.watcher.tell()
	if turned := x.watcher.Turned; turned != nil {
		cause := ""
		if t.server.Down {
			cause = t.cause
		}
		turned(x.upstream.Name, t.server.Address, cause)
	}
}

// list is what workers get.
func (x *watch) list() policy.Servers {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := policy.Servers{Watch: x.id, Version: x.version, List: make([]policy.Server, len(x.targets))}
	for i, t := range x.targets {
		out.List[i] = x.present(t)
	}
	return out
}

func (x *watch) status(out []Status) []Status {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, t := range x.targets {
		s := x.present(t)
		out = append(out, Status{
			Upstream: x.upstream.Name, Address: s.Address, Host: s.Host, Weight: cmp.Or(s.Weight, 1), Drained: s.Drained,
			Checked: x.checker != nil && t.known, Up: !t.server.Down, Since: t.since, Cause: t.cause, Good: t.goodAll, Bad: t.badAll,
		})
	}
	return out
}

// bequeath tells a watch of the same upstream what this one knows.
func (x *watch) bequeath(next *watch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for address, h := range x.hands {
		next.hands[address] = h
	}
	for name, addresses := range x.resolved {
		if slices.Contains(next.names, name) {
			next.resolved[name] = addresses
		}
	}
	for _, t := range x.targets {
		if x.checker != nil && t.known {
			next.inherited[t.server.Address] = !t.server.Down
		}
	}
}
