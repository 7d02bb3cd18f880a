// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

// A connection with a lane of its own goes on whatever the verdict on its source is, as fast as
// its budget lets it; nothing else of the source does.
func TestLanes(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{StaleAfter: time.Hour})
	p.now = monotonic()
	if err := p.Beat(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ client, server netip.AddrPort }{{client4, server4}, {client6, server6}} {
		lane := Lane{Client: c.client, Own: c.server.Port()}
		other := netip.AddrPortFrom(c.client.Addr(), c.client.Port()+1)
		if _, _, err := p.SetVerdict(Verdict{Source: c.client.Addr(), Step: DropAll, TTL: time.Minute}); err != nil {
			t.Fatal(err)
		}
		established := TCPSegment(c.client, c.server, ACK)
		p.expect(t, "without a lane", established, "drop_verdict_all")
		if err := p.OpenLane(lane); err != nil {
			t.Fatal(err)
		}
		p.expect(t, "in its lane", established, "pass_fast_lane")
		p.expect(t, "a SYN from there", TCPSegment(c.client, c.server, SYN), "drop_verdict_all")
		p.expect(t, "another connection", TCPSegment(other, c.server, ACK), "drop_verdict_all")
		p.expect(t, "a datagram from there", UDPDatagram(c.client, c.server, nil), "drop_verdict_all")
		passed := 1
		for range 2000 {
			if p.send(t, established) == "pass_fast_lane" {
				passed++
			}
		}
		if passed < 500 || passed > 502 {
			t.Errorf("%d packets at once, want about 500", passed)
		}
		p.now += uint64(100 * time.Millisecond)
		passed = 0
		for range 2000 {
			if p.send(t, established) == "pass_fast_lane" {
				passed++
			}
		}
		if passed < 99 || passed > 101 {
			t.Errorf("%d packets after 100 ms, want about 100", passed)
		}
		p.now += uint64(time.Second)
		if err := p.CloseLane(lane); err != nil {
			t.Fatal(err)
		}
		p.expect(t, "when it is closed", established, "drop_verdict_all")
	}
}

// Lanes that share a row: the fifth takes the place of the one that was quiet the longest.
func TestLanesThatShareARow(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{StaleAfter: time.Hour})
	p.now = monotonic()
	if err := p.Beat(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.SetVerdict(Verdict{Source: client4.Addr(), Step: DropAll, TTL: time.Minute}); err != nil {
		t.Fatal(err)
	}
	var same []netip.AddrPort
	for port := uint16(1024); len(same) < 5; port++ {
		c := netip.AddrPortFrom(client4.Addr(), port)
		if len(same) == 0 || (policy.FlowHash(c, server4.Port(), p.seed)^policy.FlowHash(same[0], server4.Port(), p.seed))&(laneRows-1) == 0 {
			same = append(same, c)
		}
		if port == 65535 {
			t.Fatal("no five ports share a row")
		}
	}
	for i, c := range same {
		if err := p.OpenLane(Lane{Client: c, Own: server4.Port()}); err != nil {
			t.Fatal(err)
		}
		if i < 4 {
			p.now += uint64(time.Millisecond)
			p.expect(t, "its first packet", TCPSegment(c, server4, ACK), "pass_fast_lane")
		}
	}
	p.now += uint64(time.Second)
	p.expect(t, "the first lane", TCPSegment(same[0], server4, ACK), "drop_verdict_all")
	for _, c := range same[1:] {
		p.expect(t, "a later lane", TCPSegment(c, server4, ACK), "pass_fast_lane")
	}
}

// While a CPU's worker has no handshakes left, three of four strangers' SYNs are dropped there;
// whoever is known, allowed or connected goes on, and it ends by itself.
func TestPressure(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{StaleAfter: time.Hour, Prefixes: rules(policy.Allow, "198.18.0.0/15")})
	p.now = monotonic()
	known := netip.MustParseAddrPort("192.0.2.77:40000")
	p.handshake(t, known, 1001)
	if p.verifiedAdded(t) != 1 {
		t.Fatal("no source is known")
	}
	for cpu := range ebpf.MustPossibleCPU() {
		if err := p.Press(cpu, time.Second); err != nil {
			t.Fatal(err)
		}
	}
	p.now = monotonic()
	passed := map[string]int{}
	for i := range 400 {
		p.chance = uint32(i)
		passed[p.send(t, synFrom("192.0.2.11"))]++
	}
	if passed["pass_tcp"] != 100 || passed["drop_handshakes"] != 300 {
		t.Errorf("of 400 SYNs of a stranger: %v", passed)
	}
	p.chance = 1
	p.expect(t, "an established connection", TCPSegment(client4, server4, ACK), "pass_tcp")
	p.expect(t, "a known source", TCPSegment(netip.AddrPortFrom(known.Addr(), 40001), server4, SYN), "pass_tcp")
	p.expect(t, "an allowed source", synFrom("198.18.0.1"), "pass_tcp")
	p.now += uint64(time.Second)
	p.expect(t, "when its time is over", synFrom("192.0.2.11"), "pass_tcp")
}
