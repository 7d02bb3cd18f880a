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

// limit is a packet limit of so many a second.
func limit(key policy.LimitKey, count policy.LimitCount, rate, burst uint64) policy.PacketLimit {
	cost := (1_000_000_000<<16 + rate/2) / rate
	return policy.PacketLimit{Name: "test", Key: key, Count: count, Cost: cost, Tolerance: burst * cost >> 10}
}

func limited(limits ...policy.PacketLimit) *policy.Tables { return &policy.Tables{Limits: limits} }

// passed sends n frames, spaced evenly, and returns how many passed.
func (p *drivenPlane) passed(t *testing.T, frame []byte, n int, every time.Duration, dropped string) int {
	t.Helper()
	passed := 0
	for range n {
		switch got := p.send(t, frame); got {
		case "pass_tcp":
			passed++
		case dropped:
		default:
			t.Fatalf("got %s", got)
		}
		p.now += uint64(every)
	}
	return passed
}

// Every key and count, offered at a share of its rate: what passes is the rate and, once,
// the burst. Of a bucket that many sources share, a stranger gets three quarters.
func TestLimitRates(t *testing.T) {
	const rate, burst, seconds = 100, 20, 3
	p := newDrivenPlane(t, 1, nil)
	syn := Pad(TCPSegment(client4, server4, SYN), largestFrame-54)
	for _, key := range []struct {
		name    string
		key     policy.LimitKey
		dropped string
		burst   int
	}{
		{"source", policy.BySource, "drop_source_limit", burst},
		{"prefix", policy.ByPrefix, "drop_prefix_limit", burst * 3 / 4},
		{"port", policy.ByPort, "drop_port_limit", burst * 3 / 4},
		{"queue", policy.ByQueue, "drop_queue_limit", burst * 3 / 4},
		{"interface", policy.ByInterface, "drop_interface_limit", burst * 3 / 4},
	} {
		for _, count := range []struct {
			name  string
			count policy.LimitCount
			unit  uint64 // what one frame counts
		}{
			{"syns", policy.SYNs, 1}, {"packets", policy.Packets, 1}, {"bytes", policy.Bytes, uint64(len(syn))},
		} {
			l := limit(key.key, count.count, rate*count.unit, burst*count.unit)
			l.Port = server4.Port()
			p.restart(t, limited(l))
			// offered, in percent of the rate -> packets let through
			for _, row := range []struct{ percent, want int }{
				{50, rate * seconds / 2},
				{100, rate * seconds},
				{150, rate*seconds + key.burst - 1},
				{300, rate*seconds + key.burst - 1},
			} {
				if testing.Short() && row.percent != 150 {
					continue
				}
				p.now += uint64(time.Hour)
				n := rate * seconds * row.percent / 100
				every := time.Duration(seconds) * time.Second / time.Duration(n)
				got := p.passed(t, syn, n, every, key.dropped)
				// A CPU may hold a batch in advance.
				slack := 1 + int(p.encoding.batchOf(l)*uint64(p.encoding.cpus)/max(l.Cost*count.unit>>10, 1))
				if got < row.want-slack || got > row.want+slack {
					t.Errorf("%s of %s at %d %% of the rate: %d of %d passed, want %d", count.name, key.name, row.percent, got, n, row.want)
				}
			}
		}
	}
}

func TestLimitBurst(t *testing.T) {
	p := newDrivenPlane(t, 1, limited(limit(policy.BySource, policy.SYNs, 10, 5)))
	syn := TCPSegment(client4, server4, SYN)
	if got := p.passed(t, syn, 20, 0, "drop_source_limit"); got != 5 {
		t.Errorf("at once: %d of 20 passed, want the burst of 5", got)
	}
	p.now += uint64(100 * time.Millisecond)
	if got := p.passed(t, syn, 20, 0, "drop_source_limit"); got != 1 {
		t.Errorf("after one interval: %d passed, want 1", got)
	}
	p.now += uint64(time.Hour)
	if got := p.passed(t, syn, 20, 0, "drop_source_limit"); got != 5 {
		t.Errorf("after an hour: %d passed, want the burst and no more", got)
	}
}

// A limit that was loosened is not closed for as long as the old one would have been, and
// what a CPU has drawn on the old one in advance is not worth more by the new one.
func TestLoosenedLimitHoldsAtOnce(t *testing.T) {
	p := newDrivenPlane(t, 1, nil)
	syn := TCPSegment(client4, server4, SYN)
	passed := func(n int) (passed int) {
		for range n {
			if p.sendQuietly(t, syn) {
				passed++
			}
		}
		return passed
	}
	apply := func(l policy.PacketLimit) {
		if err := p.Apply(limited(l)); err != nil {
			t.Fatal(err)
		}
	}
	for name, key := range map[string]policy.LimitKey{
		"source": policy.BySource, "prefix": policy.ByPrefix, "port": policy.ByPort, "queue": policy.ByQueue, "interface": policy.ByInterface,
	} {
		tight, loose := limit(key, policy.SYNs, 1, 100), limit(key, policy.SYNs, 100, 7)
		if key == policy.ByPort {
			tight.Port, loose.Port = server4.Port(), server4.Port()
		}
		apply(tight)
		if got := passed(10); got != 10 {
			t.Fatalf("%s: %d of 10 passed within the burst", name, got)
		}
		apply(loose)
		if got := passed(50); got > 8 {
			t.Errorf("%s: %d passed at once by what the old limit had given in advance, want the burst of 7", name, got)
		}
		p.now += uint64(time.Hour)
		apply(tight)
		passed(120)
		apply(loose)
		passed(2)
		p.now += uint64(time.Second)
		if got := passed(20); got < 6 || got > 8 {
			t.Errorf("%s: a second after it was loosened %d passed, want the burst of 7", name, got)
		}
		p.now += uint64(time.Hour)
	}
}

func TestSourceLimitTouchesOnlySynsOfThatSource(t *testing.T) {
	p := newDrivenPlane(t, 1, limited(limit(policy.BySource, policy.SYNs, 1, 1)))
	over := TCPSegment(client4, server4, SYN)
	p.send(t, over)
	rows := []struct {
		name  string
		frame []byte
		want  string
	}{
		{"the source's next SYN", over, "drop_source_limit"},
		{"its SYN from another port", TCPSegment(netip.AddrPortFrom(client4.Addr(), 7), server4, SYN), "drop_source_limit"},
		{"its SYN in a VLAN", VLAN(over, TypeVLAN), "drop_source_limit"},
		{"its established traffic", TCPSegment(client4, server4, ACK), "pass_tcp"},
		{"its reply to our own SYN", TCPSegment(client4, server4, SYN|ACK), "pass_tcp"},
		{"its RST", TCPSegment(client4, server4, RST), "pass_tcp"},
		{"its datagrams", UDPDatagram(client4, server4, nil), "pass_udp"},
		{"a neighbour's SYN", TCPSegment(netip.MustParseAddrPort("192.0.2.11:1"), server4, SYN), "pass_tcp"},
		{"first SYN, IPv6", TCPSegment(client6, server6, SYN), "pass_tcp"},
		{"SYN of the same /64", TCPSegment(netip.MustParseAddrPort("[2001:db8:1:0:ffff::1]:1"), server6, SYN), "drop_source_limit"},
		{"SYN of the next /64", TCPSegment(netip.MustParseAddrPort("[2001:db8:1:1::10]:1"), server6, SYN), "pass_tcp"},
	}
	for _, r := range rows {
		if got := p.send(t, r.frame); got != r.want {
			t.Errorf("%s: got %s, want %s", r.name, got, r.want)
		}
	}
}

func TestQueueLimitIsPerQueueAndSparesEssentials(t *testing.T) {
	p := newDrivenPlane(t, 2, limited(limit(policy.ByQueue, policy.Packets, 1, 1)))
	frame := TCPSegment(client4, server4, ACK)
	for _, queue := range []uint32{0, 1, 2, 99} {
		p.queue = queue
		want := "pass_tcp"
		if queue == 99 { // shares the bucket of all queues beyond
			want = "drop_queue_limit"
		}
		if got := p.send(t, frame); got != want {
			t.Errorf("first packet of queue %d: %s, want %s", queue, got, want)
		}
		if got := p.send(t, frame); got != "drop_queue_limit" {
			t.Errorf("second packet of queue %d: %s", queue, got)
		}
		if got := p.send(t, Ethernet(TypeARP, make([]byte, 28))); got != "pass_arp" {
			t.Errorf("ARP on queue %d: %s", queue, got)
		}
	}
}

// A flood of spoofed sources fills the sketch; its size is fixed, so the price is
// that some strangers meet full buckets. A source that stays within its rate must
// seldom be one of them.
func TestSourceLimitUnderSpoofedSources(t *testing.T) {
	p := newDrivenPlane(t, 1, limited(limit(policy.BySource, policy.SYNs, 10, 10)))
	spoofed := TCPSegment(client4, server4, SYN)
	frames := 20000
	if testing.Short() {
		frames = 1000
	}
	for i := range frames {
		binary.BigEndian.PutUint32(spoofed[EthernetLen+12:], 0x0a000000+uint32(i))
		p.send(t, spoofed)
		p.now += uint64(5 * time.Microsecond)
	}
	good := TCPSegment(client6, server6, SYN)
	if got := p.passed(t, good, 100, 100*time.Millisecond, "drop_source_limit"); got < 99 {
		t.Errorf("%d of 100 SYNs of a source within its rate passed", got)
	}
}
