// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

// handshake lets a client connect: SYN in, SYN-ACK out, ACK in with what it acknowledges.
func (p *drivenPlane) handshake(t *testing.T, client netip.AddrPort, acknowledges uint32) {
	t.Helper()
	server := server4
	if client.Addr().Is6() {
		server = server6
	}
	reply := TCPSegment(server, client, SYN|ACK)
	ack := TCPSegment(client, server, ACK)
	l4 := len(reply) - TCPLen
	binary.BigEndian.PutUint32(reply[l4+4:], 1000)
	binary.BigEndian.PutUint32(ack[l4+8:], acknowledges)
	p.leave(t, reply)
	if got := p.send(t, ack); got != "pass_tcp" {
		t.Fatalf("ACK of %s: %s", client, got)
	}
}

func (p *drivenPlane) verifiedAdded(t *testing.T) uint64 {
	t.Helper()
	c, err := p.TableCounts()
	if err != nil {
		t.Fatal(err)
	}
	return c.VerifiedAdded
}

// Only the right acknowledgment proves an address: no guess, no ACK without a SYN-ACK.
func TestHandshakeProvesASource(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{})
	p.send(t, TCPSegment(client4, server4, ACK))
	p.handshake(t, client4, 1000)
	p.handshake(t, client4, 1002)
	if n := p.verifiedAdded(t); n != 0 {
		t.Errorf("%d sources verified by wrong numbers", n)
	}
	for i, client := range []netip.AddrPort{client4, client6} {
		p.handshake(t, client, 1001)
		if n := p.verifiedAdded(t); n != uint64(i+1) {
			t.Errorf("%s: %d sources verified, want %d", client, n, i+1)
		}
	}
	p.handshake(t, netip.AddrPortFrom(client4.Addr(), 7), 1001)
	if n := p.verifiedAdded(t); n != 2 {
		t.Errorf("a second connection of a source: %d sources, want 2", n)
	}
}

// spoofed SYNs from so many sources, one each.
func (p *drivenPlane) flood(t *testing.T, n int, every time.Duration) (passed int) {
	t.Helper()
	frame := TCPSegment(client4, server4, SYN)
	for i := range n {
		binary.BigEndian.PutUint32(frame[EthernetLen+12:], 0x0a000000+uint32(i)*2654435761>>8)
		if p.sendQuietly(t, frame) {
			passed++
		}
		p.now += uint64(every)
	}
	return passed
}

// Under a flood of strangers that fills the queue's limit, those who completed a handshake
// go on to connect, and the limit still holds.
func TestVerifiedSourcesComeFirst(t *testing.T) {
	p := newDrivenPlane(t, 1, limited(limit(policy.ByQueue, policy.SYNs, 1000, 100), limit(policy.BySource, policy.SYNs, 100, 100)))
	p.handshake(t, client4, 1001)
	stranger, good := 0, 0
	const rounds = 200
	strangerSYN := synFrom("203.0.113.77")
	for range rounds {
		p.flood(t, 50, 100*time.Microsecond) // ten times the limit
		if p.sendQuietly(t, TCPSegment(client4, server4, SYN)) {
			good++
		}
		if p.sendQuietly(t, strangerSYN) {
			stranger++
		}
	}
	if good < rounds*99/100 {
		t.Errorf("%d of %d SYNs of a verified source passed", good, rounds)
	}
	if stranger > rounds/2 {
		t.Errorf("%d of %d SYNs of one more stranger passed: the flood was none", stranger, rounds)
	}
	// The limit holds over all: rate times time, and the burst.
	var c Counters
	if err := p.Counters(&c); err != nil {
		t.Fatal(err)
	}
	var passed uint64
	for _, r := range c.Ingress {
		if r.Verdict == "pass" {
			passed += r.Packets
		}
	}
	seconds := float64(rounds*50) * 100e-6
	if bound := 1000*seconds + 100 + 1; float64(passed) > bound+1 {
		t.Errorf("%d packets passed a limit of %.0f", passed, bound)
	}
}

// Exact entries are never pushed out by strangers; among verified sources the one silent for
// the longest time goes, and either is counted.
func TestVerifiedEvictions(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{})
	// Nine sources of one set of eight.
	var same []netip.AddrPort
	var set uint32
	for i := uint32(0); len(same) < 10; i++ {
		a := netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})
		place := policy.AddressHash(a, p.seed) & 32767
		if len(same) == 0 {
			set = place
		}
		if place == set {
			same = append(same, netip.AddrPortFrom(a, 1234))
		}
	}
	for _, a := range same[:8] {
		p.now += uint64(time.Second)
		p.handshake(t, a, 1001)
	}
	p.handshake(t, same[0], 1001) // seen again: same[1] is the oldest now
	p.flood(t, 5000, 0)
	p.handshake(t, same[8], 1001)
	p.now += uint64(10 * time.Minute)
	p.handshake(t, same[9], 1001)
	c, err := p.TableCounts()
	if err != nil || c.VerifiedAdded != 10 || c.VerifiedLive != 1 || c.VerifiedIdle != 1 {
		t.Errorf("%+v, %v; want 10 added, one pushed out alive and one idle", c, err)
	}
	p.handshake(t, same[0], 1001)
	if n := p.verifiedAdded(t); n != 10 {
		t.Error("the source that was seen again was pushed out")
	}
}

// More strangers than the sketch has places: they are let by for wider limits to judge,
// which is counted; a loud one among them is still held, and so is a loud prefix.
func TestFloodOfSourcesPassesTheSketch(t *testing.T) {
	p := newDrivenPlane(t, 1, limited(limit(policy.BySource, policy.SYNs, 1, 1), limit(policy.ByPrefix, policy.SYNs, 10, 10)))
	const n = 300_000
	if testing.Short() {
		t.Skip("short: more sources than there are places take minutes on an emulated machine")
	}
	p.flood(t, n, 0)
	c, err := p.TableCounts()
	if err != nil || c.SourceBypass == 0 {
		t.Errorf("after %d sources: %+v, %v; want bypasses", n, c, err)
	}
	p.now += uint64(2 * time.Second)
	loud := synFrom("203.0.113.9")
	if got := p.passed(t, loud, 50, 0, "drop_source_limit"); got > 2 {
		t.Errorf("%d of 50 SYNs of a loud source passed", got)
	}
	// Many sources of one /24, each within its own limit.
	passed := 0
	for i := range 200 {
		if p.sendQuietly(t, synFrom(netip.AddrFrom4([4]byte{203, 0, 114, byte(i)}).String())) {
			passed++
		}
	}
	if passed > 20 {
		t.Errorf("%d of 200 SYNs of one /24 passed a limit of 10 at once", passed)
	}
}

// A packet that is established pays for no limit on SYNs, whatever its source did.
func TestEstablishedIsNeverTouchedBySYNLimits(t *testing.T) {
	p := newDrivenPlane(t, 1, limited(
		limit(policy.BySource, policy.SYNs, 1, 1), limit(policy.ByPrefix, policy.SYNs, 1, 1),
		limit(policy.ByQueue, policy.SYNs, 1, 1), limit(policy.ByInterface, policy.SYNs, 1, 1)))
	for range 20 {
		p.sendQuietly(t, TCPSegment(client4, server4, SYN))
	}
	for range 100 {
		p.expect(t, "established", TCPSegment(client4, server4, ACK), "pass_tcp")
	}
}

func hostPrefix(i int) netip.Prefix {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 0x0b000000+uint32(i)*7)
	return netip.PrefixFrom(netip.AddrFrom4(b), 32)
}
