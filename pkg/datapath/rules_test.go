// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

func rules(action policy.Action, s ...string) (out []policy.PrefixRule) {
	for _, p := range s {
		out = append(out, policy.PrefixRule{Prefix: netip.MustParsePrefix(p), Action: action})
	}
	return out
}

func synFrom(s string) []byte {
	a := netip.MustParseAddr(s)
	if a.Is4() {
		return TCPSegment(netip.AddrPortFrom(a, 40000), server4, SYN)
	}
	return TCPSegment(netip.AddrPortFrom(a, 40000), server6, SYN)
}

// expect sends each frame and compares its outcome.
func (p *drivenPlane) expect(t *testing.T, name string, frame []byte, want string) {
	t.Helper()
	if got := p.send(t, frame); got != want {
		t.Errorf("%s: got %s, want %s", name, got, want)
	}
}

// egress lets the frame leave through tc_egress.
func (p *drivenPlane) leave(t *testing.T, frame []byte) {
	t.Helper()
	if _, err := p.egress.Run(&ebpf.RunOptions{Data: frame}); err != nil {
		t.Fatal(err)
	}
}

func TestLongestPrefixDecides(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{Prefixes: append(
		rules(policy.Deny, "10.0.0.0/8", "10.1.2.3/32", "192.0.2.0/25", "0.0.0.0/5", "2001:db8::/32", "2001:db8:1:2::5/128", "fc00::/7"),
		rules(policy.Allow, "10.1.0.0/16", "10.1.2.0/24", "192.0.2.64/26", "2001:db8:1::/48", "2001:db8:1:2::/64")...,
	)})
	for from, want := range map[string]string{
		"10.0.0.1": "drop_deny", "10.1.0.1": "pass_tcp", "10.1.2.3": "drop_deny", "10.1.2.4": "pass_tcp", "10.2.0.0": "drop_deny",
		"192.0.2.63": "drop_deny", "192.0.2.64": "pass_tcp", "192.0.2.127": "pass_tcp", "192.0.2.128": "pass_tcp",
		"7.255.255.255": "drop_deny", "8.0.0.0": "pass_tcp", "11.0.0.0": "pass_tcp",
		"2001:db8::1": "drop_deny", "2001:db8:1::1": "pass_tcp", "2001:db8:1:2::5": "drop_deny", "2001:db8:1:2::6": "pass_tcp",
		"2001:db9::1": "pass_tcp", "fd00::1": "drop_deny", "fe80::1": "pass_tcp",
	} {
		p.expect(t, from, synFrom(from), want)
	}
}

// The kernel plane's look-up against the plain one: search all rules for the longest.
func TestPrefixLookupIsExact(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var list []policy.PrefixRule
	seen := map[netip.Prefix]bool{}
	for len(list) < 1500 {
		var a netip.Addr
		var bits int
		if len(list)%2 == 0 {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], random.Uint32()&0x0fff0fff)
			a, bits = netip.AddrFrom4(b), random.IntN(33)
		} else {
			b := [16]byte{0x20, 1, byte(random.IntN(3)), byte(random.IntN(3)), 0, 0, byte(random.IntN(4)), byte(random.IntN(4)), 15: byte(random.IntN(4))}
			a, bits = netip.AddrFrom16(b), []int{20, 29, 32, 48, 56, 64, 65, 127, 128}[random.IntN(9)]
		}
		prefix, err := a.Prefix(bits)
		if err != nil || seen[prefix] || bits < 8 && len(list) > 20 {
			continue
		}
		seen[prefix] = true
		list = append(list, policy.PrefixRule{Prefix: prefix, Action: policy.Action(1 + random.IntN(2))})
	}
	tables := &policy.Tables{Prefixes: list}
	p := newDrivenPlane(t, 1, tables)
	rounds := 4000
	if testing.Short() {
		rounds = 200
	}
	for range rounds {
		r := list[random.IntN(len(list))].Prefix
		b := r.Addr().As16()
		b[12+random.IntN(4)] ^= byte(random.IntN(4))
		source := netip.AddrFrom16(b).Unmap()
		want := "pass_tcp"
		longest := -1
		for _, rule := range list {
			if rule.Prefix.Contains(source) && rule.Prefix.Bits() > longest {
				longest = rule.Prefix.Bits()
				want = map[policy.Action]string{policy.Deny: "drop_deny", policy.Allow: "pass_tcp"}[rule.Action]
			}
		}
		p.expect(t, source.String(), synFrom(source.String()), want)
		rule, ok, err := p.matchLive(source)
		if err != nil || ok != (longest >= 0) || ok && rule.Prefix.Bits() != longest {
			t.Fatalf("%s: user space finds %v, %v, %v; the longest has %d bits", source, rule, ok, err, longest)
		}
	}
}

func TestPortGuard(t *testing.T) {
	guard := policy.PortGuard{Mode: policy.GuardEnforce, TCP: []uint16{443, 8443}, UDP: []uint16{53}}
	p := newDrivenPlane(t, 1, &policy.Tables{PortGuard: guard})
	to := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(server4.Addr(), port) }
	p.expect(t, "SYN to a served port", TCPSegment(client4, to(443), SYN), "pass_tcp")
	p.expect(t, "SYN to another", TCPSegment(client4, to(444), SYN), "drop_port_guard")
	p.expect(t, "established, to another", TCPSegment(client4, to(444), ACK), "pass_tcp")
	p.expect(t, "SYN to a port of UDP", TCPSegment(client4, to(53), SYN), "drop_port_guard")
	p.expect(t, "datagram to a served port", UDPDatagram(client4, to(53), nil), "pass_udp")
	p.expect(t, "datagram to a port of TCP", UDPDatagram(client4, to(443), nil), "drop_port_guard")
	p.expect(t, "IPv6", TCPSegment(client6, netip.AddrPortFrom(server6.Addr(), 22), SYN), "drop_port_guard")
	p.expect(t, "echo", ICMPMessage(client4.Addr(), server4.Addr(), 8, 0), "pass_icmp")

	// A reply to what this host asked is no new flow.
	question := netip.AddrPortFrom(server4.Addr(), 40001)
	resolver := netip.MustParseAddrPort("203.0.113.53:53")
	p.expect(t, "an unasked answer", UDPDatagram(resolver, question, nil), "drop_port_guard")
	p.leave(t, UDPDatagram(question, resolver, nil))
	p.expect(t, "an answer", UDPDatagram(resolver, question, nil), "pass_udp")

	guard.Mode = policy.GuardCount
	if err := p.Apply(&policy.Tables{PortGuard: guard}); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "counting only", TCPSegment(client4, to(444), SYN), "pass_tcp")
	over, err := p.LimitCounts()
	if err != nil {
		t.Fatal(err)
	}
	if len(over) != 1 || over[0].Name != "port guard" || over[0].DryRun != 1 || over[0].Dropped != 5 {
		t.Errorf("counts of the guard: %+v", over)
	}
}

func TestPinholeNoRuleCloses(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{
		Prefixes:  rules(policy.Deny, "0.0.0.0/0", "::/0"),
		PortGuard: policy.PortGuard{Mode: policy.GuardEnforce},
		Limits:    []policy.PacketLimit{limit(policy.ByQueue, policy.Packets, 1, 1)},
	})
	admin4, admin6 := netip.MustParseAddrPort("192.0.2.200:5000"), netip.MustParseAddrPort("[2001:db8:aa::7]:5000")
	ssh4, ssh6 := netip.AddrPortFrom(server4.Addr(), 22), netip.AddrPortFrom(server6.Addr(), 22)
	p.expect(t, "before", TCPSegment(admin4, ssh4, SYN), "drop_deny")
	if err := p.SetPinholes([]policy.Pinhole{
		{Source: netip.MustParsePrefix("192.0.2.192/26"), Port: 22}, {Source: netip.MustParsePrefix("2001:db8:aa::/64"), Port: 22},
	}); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		p.expect(t, "IPv4", TCPSegment(admin4, ssh4, SYN), "pass_admin")
		p.expect(t, "IPv6", TCPSegment(admin6, ssh6, ACK), "pass_admin")
	}
	p.expect(t, "another port", TCPSegment(admin4, server4, SYN), "drop_deny")
	p.expect(t, "another source", TCPSegment(netip.MustParseAddrPort("192.0.2.191:5000"), ssh4, SYN), "drop_deny")
	p.expect(t, "another /64", TCPSegment(netip.MustParseAddrPort("[2001:db8:ab::7]:5000"), ssh6, SYN), "drop_deny")
	p.expect(t, "UDP", UDPDatagram(admin4, ssh4, nil), "drop_deny")
	// The address can be forged, so the pinhole has a budget.
	passed := 0
	for range 11000 {
		if p.sendQuietly(t, TCPSegment(admin4, ssh4, SYN)) {
			passed++
		}
	}
	if passed < 9900 || passed > 10000 {
		t.Errorf("%d of 11,000 packets at once through a pinhole, want its budget of 10,000 less those above", passed)
	}
}

// sendQuietly is send without looking at counters: whether the frame passed.
func (p *drivenPlane) sendQuietly(t testing.TB, frame []byte) bool {
	if err := p.drive.Put(uint32(0), p.moment()); err != nil {
		t.Fatal(err)
	}
	action, err := p.program.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		t.Fatal(err)
	}
	if action != 1 && action != 2 {
		t.Fatalf("XDP action %d: %x", action, frame)
	}
	return action == 2
}

// What has no ports, a later fragment, is not spared by those of the packet before it.
func TestFragmentsHaveNoPorts(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{Prefixes: denied("0.0.0.0/0")})
	if err := p.SetPinholes([]policy.Pinhole{{Source: netip.MustParsePrefix("192.0.2.10/32"), Port: server4.Port()}}); err != nil {
		t.Fatal(err)
	}
	syn := TCPSegment(client4, server4, SYN)
	p.expect(t, "to the pinhole", syn, "pass_admin")
	p.expect(t, "a later fragment from there", Set(syn, EthernetLen+6, 0, 1), "drop_deny")

	p.leave(t, TCPSegment(server4, client4, SYN)) // to client4's port: its answers are awaited
	if err := p.SetPinholes(nil); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "an answer", TCPSegment(client4, server4, SYN|ACK), "pass_own_flow")
	p.expect(t, "a later fragment from there", Set(syn, EthernetLen+6, 0, 1), "drop_deny")
}

func TestBudgets(t *testing.T) {
	budget := func(rate uint64) policy.Budget {
		l := limit(policy.ByQueue, policy.Packets, rate, rate)
		return policy.Budget{Cost: l.Cost, Tolerance: l.Tolerance}
	}
	p := newDrivenPlane(t, 2, &policy.Tables{Budgets: policy.Budgets{Essential: budget(4), Echo: budget(3), Unclassified: budget(2)}})
	tcp6 := TCPSegment(client6, server6, ACK)
	ns := Set(ICMPMessage(client6.Addr(), server6.Addr(), 135, 0), EthernetLen+7, 255)
	dhcp := UDPDatagram(netip.MustParseAddrPort("192.0.2.1:67"), netip.MustParseAddrPort("192.0.2.9:68"), make([]byte, 240))
	for _, row := range []struct {
		name   string
		frames [][]byte
		passes int
		drop   string
	}{
		{"essentials from anywhere", [][]byte{dhcp, ICMPMessage(client4.Addr(), server4.Addr(), 3, 4), ICMPMessage(client6.Addr(), server6.Addr(), 2, 0)}, 4, "drop_essential"},
		// Behind the others, which must not have used up what only neighbours can send.
		{"essentials of the link", [][]byte{Ethernet(TypeARP, make([]byte, 28)), ns}, 4, "drop_essential"},
		{"echo", [][]byte{ICMPMessage(client4.Addr(), server4.Addr(), 8, 0), ICMPMessage(client6.Addr(), server6.Addr(), 128, 0)}, 3, "drop_echo"},
		{"unclassified", [][]byte{
			Set(TCPSegment(client4, server4, ACK), EthernetLen+6, 0, 1), Ethernet(TypeLLDP, make([]byte, 46)),
			VLAN(tcp6, TypeVLAN, TypeVLAN, TypeVLAN), Extend(tcp6, 60, 60, 60, 60, 60, 60, 60, 60, 60),
		}, 2, "drop_unclassified"},
	} {
		for queue := range uint32(2) {
			p.queue = queue
			for i := range 10 {
				got := p.send(t, row.frames[i%len(row.frames)])
				if i < row.passes && got[:5] != "pass_" || i >= row.passes && got != row.drop {
					t.Errorf("%s on queue %d, packet %d: %s", row.name, queue, i+1, got)
				}
			}
		}
	}
	p.expect(t, "echo reply", ICMPMessage(client4.Addr(), server4.Addr(), 0, 0), "pass_icmp")
	p.expect(t, "TCP", tcp6, "pass_tcp")
}

func TestUnconfirmedChangeIsUndone(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{})
	p.now = monotonic()
	syn := TCPSegment(client4, server4, SYN)
	if err := p.ApplyUntil(&policy.Tables{Prefixes: denied("0.0.0.0/0")}, time.Minute); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "before the deadline", syn, "drop_deny")
	if err := p.Apply(&policy.Tables{}); !errors.Is(err, ErrUnconfirmed) {
		t.Errorf("another change meanwhile: %v", err)
	}
	p.now += uint64(61 * time.Second)
	p.expect(t, "after the deadline", syn, "pass_tcp")

	p.now = monotonic()
	if err := p.Confirm(); err != nil {
		t.Fatal(err)
	}
	p.now += uint64(time.Hour)
	p.expect(t, "confirmed", syn, "drop_deny")

	// The attach itself: everything passes afterwards, and is counted as that.
	if err := p.AttachUntil(time.Minute); err != nil {
		t.Fatal(err)
	}
	p.now = monotonic()
	broken := Set(syn, EthernetLen, 0x44)
	p.expect(t, "malformed, before the deadline", broken, "drop_malformed")
	p.now += uint64(61 * time.Second)
	p.expect(t, "malformed, after it", broken, "pass_unconfirmed")
	p.expect(t, "a packet, after it", syn, "pass_tcp")
}

// Two processes that change the tables do so one after the other; a reader that settles an
// overdue change cannot undo a later one.
func TestChangesOfTwoProcesses(t *testing.T) {
	w := newWire(t, 1)
	d := w.mustAttach(t, ModeNative)
	if err := d.Apply(&policy.Tables{}); err != nil {
		t.Fatal(err)
	}
	other, err := Open(w.options)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	done := make(chan error, 1)
	d.options.fault = func(step string) error {
		if step == "flip" {
			go func() { done <- other.ApplyUntil(&policy.Tables{Prefixes: denied("192.0.2.0/24")}, time.Minute) }()
			select {
			case err := <-done:
				t.Errorf("another process changed the tables meanwhile: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
		}
		return nil
	}
	if err := d.Apply(&policy.Tables{Prefixes: denied("198.18.0.0/15")}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s, err := d.State(); err != nil || s.Generation != 3 || s.Waits == 0 {
		t.Errorf("state %+v, %v; want the third generation, waiting", s, err)
	}
	if err := d.Undo(); err != nil {
		t.Fatal(err)
	}
	if s, err := other.State(); err != nil || s.Generation != 2 || s.Waits != 0 {
		t.Errorf("undone: state %+v, %v; want the second generation", s, err)
	}
	if err := errors.Join(other.Undo(), d.Confirm()); err != nil {
		t.Error(err)
	}
	if s, err := other.State(); err != nil || s.Generation != 2 {
		t.Errorf("nothing waits, and yet: state %+v, %v", s, err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
}

// Until a change is confirmed, the pinholes of the one before stay as well.
func TestPinholesStayUntilConfirmed(t *testing.T) {
	hole := func(i int) policy.Pinhole {
		return policy.Pinhole{Source: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32), Port: server4.Port()}
	}
	p := newDrivenPlane(t, 1, &policy.Tables{Prefixes: denied("0.0.0.0/0")})
	if err := errors.Join(p.SetPinholes([]policy.Pinhole{hole(10)}), p.AddPinholes([]policy.Pinhole{hole(11), hole(10)})); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"192.0.2.10": "pass_admin", "192.0.2.11": "pass_admin", "192.0.2.12": "drop_deny"} {
		p.expect(t, host, synFrom(host), want)
	}
	var many []policy.Pinhole
	for i := range maxPinholes {
		many = append(many, hole(20+i))
	}
	if err := p.AddPinholes(many); err == nil || !strings.Contains(err.Error(), "stay until the change is confirmed") {
		t.Errorf("more than there is room for: %v", err)
	}
	p.expect(t, "after that", synFrom("192.0.2.10"), "pass_admin")
}

// A million prefixes load in seconds, and work.
func TestMillionPrefixes(t *testing.T) {
	if testing.Short() {
		t.Skip("short: a million prefixes take seconds")
	}
	p := newDrivenPlane(t, 1, nil)
	tables := &policy.Tables{}
	for i := range uint32(1_000_000) {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 0x0b000000+i*1009)
		tables.Prefixes = append(tables.Prefixes, policy.PrefixRule{Prefix: netip.PrefixFrom(netip.AddrFrom4(b), 32), Action: policy.Deny})
	}
	started := time.Now()
	if err := p.Apply(tables); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took > 50*time.Second {
		t.Errorf("a million prefixes took %s; five times ten seconds are the bound", took)
	} else {
		t.Logf("a million prefixes: %s", took.Round(time.Millisecond))
	}
	for _, i := range []int{0, 1, 499_999, 999_999} {
		a := tables.Prefixes[i].Prefix.Addr()
		p.expect(t, a.String(), synFrom(a.String()), "drop_deny")
		p.expect(t, a.Next().String(), synFrom(a.Next().String()), "pass_tcp")
	}
}

// Limits of ports keep their buckets over generations, whatever their order.
func TestBucketsSurviveGenerations(t *testing.T) {
	port := func(n uint16, rate uint64) policy.PacketLimit {
		l := limit(policy.ByPort, policy.SYNs, rate, 4)
		l.Port, l.Name = n, "port"
		return l
	}
	p := newDrivenPlane(t, 1, limited(port(443, 1), limit(policy.BySource, policy.SYNs, 1, 100)))
	syn := TCPSegment(client4, server4, SYN)
	if got := p.passed(t, syn, 6, 0, "drop_port_limit"); got != 4 {
		t.Fatalf("%d of 6 passed, want the burst of 4", got)
	}
	if err := p.Apply(limited(port(22, 1), port(443, 1), port(8443, 1))); err != nil {
		t.Fatal(err)
	}
	if got := p.passed(t, syn, 6, 0, "drop_port_limit"); got != 0 {
		t.Errorf("after a change of others, %d passed: its bucket was lost", got)
	}
	if err := p.Apply(limited()); err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(limited(port(443, 1))); err != nil {
		t.Fatal(err)
	}
	if got := p.passed(t, syn, 6, 0, "drop_port_limit"); got != 4 {
		t.Errorf("a limit that was away starts anew: %d of 6 passed, want 4", got)
	}
}

// What one port's limit has dropped is not told of another's that takes its place.
func TestCountsOfALimitThatIsGone(t *testing.T) {
	port := func(n uint16, name string) policy.PacketLimit {
		l := limit(policy.ByPort, policy.SYNs, 1, 4)
		l.Port, l.Name = n, name
		return l
	}
	p := newDrivenPlane(t, 1, limited(port(443, "old")))
	p.passed(t, TCPSegment(client4, server4, SYN), 6, 0, "drop_port_limit")
	if over, err := p.LimitCounts(); err != nil || len(over) != 1 || over[0].Name != "old" || over[0].Dropped != 2 {
		t.Errorf("counts: %+v, %v", over, err)
	}
	if err := errors.Join(p.Apply(limited()), p.Apply(limited(port(22, "new")))); err != nil {
		t.Fatal(err)
	}
	if over, err := p.LimitCounts(); err != nil || len(over) != 0 {
		t.Errorf("counts of a limit that no packet was over: %+v, %v", over, err)
	}
}

func TestDryRunTellsAndPasses(t *testing.T) {
	l := limit(policy.BySource, policy.SYNs, 1, 3)
	l.DryRun, l.Name = true, "careful"
	p := newDrivenPlane(t, 1, limited(l, limit(policy.ByQueue, policy.SYNs, 1, 7)))
	syn := TCPSegment(client4, server4, SYN)
	if got := p.passed(t, syn, 9, 0, "drop_queue_limit"); got != 7 {
		t.Errorf("%d of 9 passed, want the burst of 7 of the limit that is held", got)
	}
	over, err := p.LimitCounts()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]LimitCount{"careful": {Name: "careful", DryRun: 6, DryRunBytes: 6 * 54}, "test": {Name: "test", Dropped: 2, DroppedBytes: 2 * 54}}
	for _, o := range over {
		if o != want[o.Name] {
			t.Errorf("%+v, want %+v", o, want[o.Name])
		}
	}
	if len(over) != 2 {
		t.Errorf("counts: %+v", over)
	}
}
