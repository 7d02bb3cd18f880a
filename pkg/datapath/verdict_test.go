// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/bpf"
	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

func TestVerdicts(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{StaleAfter: 5 * time.Second, Prefixes: rules(policy.Allow, "198.18.0.0/15")})
	catchUp := func() { // with the real clock, by which verdicts and signs of life are given
		p.now = monotonic()
		if err := p.Beat(); err != nil {
			t.Fatal(err)
		}
	}
	catchUp()
	frames := map[string][]byte{
		"syn": TCPSegment(client4, server4, SYN), "established": TCPSegment(client4, server4, ACK),
		"udp": UDPDatagram(client4, server4, nil), "echo": ICMPMessage(client4.Addr(), server4.Addr(), 8, 0),
	}
	for _, row := range []struct {
		step Step
		want map[string]string
	}{
		{DropSYNs, map[string]string{"syn": "drop_verdict_syns", "established": "pass_tcp", "udp": "pass_udp", "echo": "pass_icmp"}},
		{DropNew, map[string]string{"syn": "drop_verdict_new", "established": "pass_tcp", "udp": "drop_verdict_new", "echo": "drop_verdict_new"}},
		{DropAll, map[string]string{"syn": "drop_verdict_all", "established": "drop_verdict_all", "udp": "drop_verdict_all", "echo": "drop_verdict_all"}},
	} {
		if _, _, err := p.SetVerdict(Verdict{Source: client4.Addr(), Step: row.step, TTL: time.Minute, Reason: 7, Generation: 3}); err != nil {
			t.Fatal(err)
		}
		for name, want := range row.want {
			p.expect(t, row.step.String()+" "+name, frames[name], want)
		}
		p.expect(t, "a neighbour", synFrom("192.0.2.11"), "pass_tcp")
	}
	list, err := p.Verdicts()
	if err != nil || len(list) != 1 || list[0].Source != client4.Addr() || list[0].Step != DropAll || list[0].Reason != 7 || list[0].Generation != 3 {
		t.Errorf("verdicts: %+v, %v", list, err)
	}

	if _, _, err := p.SetVerdict(Verdict{Source: client4.Addr(), Step: ThinSYNs, TTL: time.Minute}); err != nil {
		t.Fatal(err)
	}
	passed := 0
	for i := range 400 {
		p.chance = uint32(i)
		if p.send(t, frames["syn"]) == "pass_tcp" {
			passed++
		}
	}
	if passed != 100 {
		t.Errorf("thinned: %d of 400 SYNs passed, want a quarter", passed)
	}

	// One IPv6 host owns a /64.
	catchUp()
	if _, _, err := p.SetVerdict(Verdict{Source: client6.Addr(), Step: DropAll, TTL: time.Second}); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "the same /64", synFrom("2001:db8:1::ffff"), "drop_verdict_all")
	p.expect(t, "the next /64", synFrom("2001:db8:1:1::10"), "pass_tcp")
	p.now = monotonic() + uint64(1200*time.Millisecond)
	p.expect(t, "after its time", synFrom("2001:db8:1::ffff"), "pass_tcp")

	// Nobody tends them: void, and counted as that.
	p.now += uint64(5 * time.Second)
	if _, _, err := p.SetVerdict(Verdict{Source: client4.Addr(), Step: DropAll, TTL: time.Minute}); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "stale", frames["syn"], "pass_stale_verdict")
	p.expect(t, "stale, without verdict", synFrom("192.0.2.11"), "pass_tcp")

	// Replies to what this host opened, allowed sources and administrators are exempt.
	catchUp()
	upstream := netip.MustParseAddrPort("192.0.2.10:8080")
	own := netip.AddrPortFrom(server4.Addr(), 51000)
	p.leave(t, TCPSegment(own, upstream, SYN))
	p.expect(t, "reply to our own connection", TCPSegment(upstream, own, SYN|ACK), "pass_own_flow")
	if _, _, err := p.SetVerdict(Verdict{Source: netip.MustParseAddr("198.18.3.4"), Step: DropAll, TTL: time.Minute}); !errors.Is(err, ErrExempt) {
		t.Errorf("verdict on an allowed source: %v", err)
	}
	if err := p.SetPinholes([]policy.Pinhole{{Source: netip.MustParsePrefix("203.0.113.5/32"), Port: 22}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.SetVerdict(Verdict{Source: netip.MustParseAddr("203.0.113.5"), Step: DropAll, TTL: time.Minute}); !errors.Is(err, ErrExempt) {
		t.Errorf("verdict on an administrator: %v", err)
	}
	if err := p.ClearVerdict(client4.Addr()); err != nil {
		t.Fatal(err)
	}
	p.expect(t, "cleared", frames["syn"], "pass_tcp")
}

// Verdicts are looked for until the last of them has ended.
func TestVerdictsAreLookedForWhileThereAreSome(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{StaleAfter: time.Hour})
	p.now = monotonic()
	state := func() (h bpf.GatewayHeartbeatState) {
		if err := errors.Join(p.Beat(), p.objects.Heartbeat.Lookup(uint32(0), &h)); err != nil {
			t.Fatal(err)
		}
		return h
	}
	if h := state(); h.Verdicts != 0 || h.Beat == 0 {
		t.Errorf("before any: %+v", h)
	}
	for _, v := range []Verdict{{Source: client4.Addr(), Step: DropAll, TTL: 70 * time.Millisecond}, {Source: client6.Addr(), Step: DropAll, TTL: time.Hour}} {
		if _, _, err := p.SetVerdict(v); err != nil {
			t.Fatal(err)
		}
	}
	p.expect(t, "with a verdict", TCPSegment(client6, server6, ACK), "drop_verdict_all")
	time.Sleep(200 * time.Millisecond)
	if h := state(); h.Verdicts == 0 {
		t.Errorf("one of two has ended: %+v", h)
	}
	p.expect(t, "with the later verdict", TCPSegment(client6, server6, ACK), "drop_verdict_all")
	h := state()
	h.Verdicts = monotonic() >> verdictTick // as if the last ended now
	if err := p.objects.Heartbeat.Put(uint32(0), &h); err != nil {
		t.Fatal(err)
	}
	if h := state(); h.Verdicts != 0 {
		t.Errorf("all have ended: %+v", h)
	}
}

func TestVerdictRowsThatAreFull(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{StaleAfter: time.Hour})
	p.now = monotonic()
	// Sources that share a row: the fifth takes the place of the one that ends first.
	var same []netip.Addr
	row := uint32(0)
	for i := uint32(0); len(same) < 5; i++ {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		place := policy.AddressHash(a, p.seed) & (verdictRows - 1)
		if len(same) == 0 {
			row = place
		}
		if place == row {
			same = append(same, a)
		}
	}
	for i, a := range same {
		lost, full, err := p.SetVerdict(Verdict{Source: a, Step: DropAll, TTL: time.Duration(10+i) * time.Minute})
		if err != nil || full != (i == 4) || full && lost.Source != same[0] {
			t.Errorf("verdict %d: lost %+v, %v, %v", i, lost, full, err)
		}
	}
	list, err := p.Verdicts()
	if err != nil || len(list) != 4 {
		t.Errorf("%d verdicts, %v; want 4", len(list), err)
	}
}
