// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/datapath/driven"
	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

var (
	client4 = netip.MustParseAddrPort("192.0.2.10:40000")
	server4 = netip.MustParseAddrPort("198.51.100.1:443")
	client6 = netip.MustParseAddrPort("[2001:db8:1::10]:40000")
	server6 = netip.MustParseAddrPort("[2001:db8:2::1]:443")
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: loads BPF programs")
	}
}

// drivenPlane is xdp_ingress with its clock, chance and queue in the test's hand.
type drivenPlane struct {
	*Datapath
	program, egress *ebpf.Program
	drive           *ebpf.Map
	maps            map[string]*ebpf.Map
	spec            *ebpf.CollectionSpec
	now             uint64
	queue, chance   uint32
}

func newDrivenPlane(t testing.TB, queues int, tables *policy.Tables) *drivenPlane {
	t.Helper()
	return newDrivenPlaneWith(t, queues, tables, Options{})
}

func newDrivenPlaneWith(t testing.TB, queues int, tables *policy.Tables, o Options) *drivenPlane {
	t.Helper()
	needRoot(t)
	kind := drivenKind{queues, o.Old}
	var p *drivenPlane
	if free := drivenPlanes[kind]; len(free) > 0 {
		p = free[len(free)-1]
		drivenPlanes[kind] = free[:len(free)-1]
	} else {
		p = loadDrivenPlane(t, queues, o)
	}
	t.Cleanup(func() { drivenPlanes[kind] = append(drivenPlanes[kind], p) })
	p.restart(t, tables)
	return p
}

type drivenKind struct {
	queues int
	old    bool
}

// drivenPlanes are loaded and not in use: to load one costs more than most tests do.
var drivenPlanes = map[drivenKind][]*drivenPlane{}

// restart empties all maps, and applies the tables.
func (p *drivenPlane) restart(t testing.TB, tables *policy.Tables) {
	t.Helper()
	p.now, p.queue, p.chance = 1_000_000_000, 0, 0
	for name, m := range p.maps {
		switch m.Type() {
		case ebpf.Array, ebpf.PerCPUArray:
		default:
			continue // of these, what control does not name is not looked at
		}
		if name == ".rodata" {
			continue
		}
		if err := empty(m, p.spec.Maps[name].Contents); err != nil {
			t.Fatalf("empty %s: %v", name, err)
		}
	}
	if tables != nil {
		if err := p.Apply(tables); err != nil {
			t.Fatal(err)
		}
	}
}

// empty writes zeros, and what the map begins with.
func empty(m *ebpf.Map, first []ebpf.MapKV) error {
	n := int(m.MaxEntries())
	zero := make([]byte, m.ValueSize())
	switch {
	case m.Flags()&unix.BPF_F_MMAPABLE != 0:
		b, err := unix.Mmap(m.FD(), 0, (len(zero)+7)/8*8*n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		clear(b)
		return unix.Munmap(b)
	case n > 4096 && len(zero) == 8:
		keys := make([]uint32, n)
		for i := range keys {
			keys[i] = uint32(i)
		}
		_, err := m.BatchUpdate(keys, make([]uint64, n), nil)
		return err
	case m.Type() == ebpf.PerCPUArray:
		each := slices.Repeat([][]byte{zero}, ebpf.MustPossibleCPU())
		for k := range uint32(n) {
			if err := m.Put(k, each); err != nil {
				return err
			}
		}
	default:
		for k := range uint32(n) {
			if err := m.Put(k, zero); err != nil {
				return err
			}
		}
	}
	for _, kv := range first {
		if err := m.Put(kv.Key, kv.Value); err != nil {
			return err
		}
	}
	return nil
}

func loadDrivenPlane(t testing.TB, queues int, o Options) *drivenPlane {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	spec, err := driven.LoadDriven()
	if err != nil {
		t.Fatal(err)
	}
	d := &Datapath{queues: queues, options: o}
	if err := d.fit(spec); err != nil {
		t.Fatal(err)
	}
	for name := range spec.Programs {
		if name != "xdp_driven" && name != "tc_egress" {
			delete(spec.Programs, name)
		}
	}
	for _, name := range []string{"workers", "cpu_slots", "steered", "explained"} {
		delete(spec.Maps, name)
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	for name, place := range d.objects.maps() {
		*place = c.Maps[name]
	}
	if err := d.ready(spec); err != nil {
		t.Fatal(err)
	}
	return &drivenPlane{
		Datapath: d, program: c.Programs["xdp_driven"], egress: c.Programs["tc_egress"], drive: c.Maps["drive"],
		maps: c.Maps, spec: spec,
	}
}

// send runs one frame and returns the name of the outcome that counted it. It
// fails unless exactly one counter moved, by one packet and the frame's bytes.
func (p *drivenPlane) send(t testing.TB, frame []byte) string {
	t.Helper()
	var before, after Counters
	if err := p.Counters(&before); err != nil {
		t.Fatal(err)
	}
	if err := p.drive.Put(uint32(0), p.moment()); err != nil {
		t.Fatal(err)
	}
	action, err := p.program.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Counters(&after); err != nil {
		t.Fatal(err)
	}
	moved := ""
	rows := append(after.Ingress, after.Egress...)
	old := append(before.Ingress, before.Egress...)
	for i, r := range rows {
		packets, bytes := r.Packets-old[i].Packets, r.Bytes-old[i].Bytes
		if packets == 0 && bytes == 0 {
			continue
		}
		if moved != "" || packets != 1 || bytes != uint64(len(frame)) {
			t.Fatalf("after one frame of %d bytes: %+v moved by %d packets, %d bytes (and %q moved)", len(frame), r, packets, bytes, moved)
		}
		moved = r.Verdict + "_" + r.Reason
		wantQueue := int(p.queue)
		if wantQueue >= p.queues {
			wantQueue = Other
		}
		if r.Queue != wantQueue {
			t.Fatalf("queue %d: counted under %d", p.queue, r.Queue)
		}
		if want := map[string]uint32{"pass": 2, "drop": 1}[r.Verdict]; action != want {
			t.Fatalf("%s: XDP action %d, want %d", moved, action, want)
		}
	}
	if moved == "" {
		t.Fatal("the frame was not counted")
	}
	return moved
}

// denied are rules that drop the prefixes.
func denied(s ...string) (out []policy.PrefixRule) {
	for _, p := range s {
		out = append(out, policy.PrefixRule{Prefix: netip.MustParsePrefix(p), Action: policy.Deny})
	}
	return out
}

// Each row is a valid packet and at most one thing done to it.
func TestPackets(t *testing.T) {
	tcp4, tcp6 := TCPSegment(client4, server4, ACK), TCPSegment(client6, server6, ACK)
	udp4, udp6 := UDPDatagram(client4, server4, []byte("12345")), UDPDatagram(client6, server6, []byte("12345"))
	echo4, echo6 := ICMPMessage(client4.Addr(), server4.Addr(), 8, 0), ICMPMessage(client6.Addr(), server6.Addr(), 128, 0)
	ns := Set(ICMPMessage(client6.Addr(), server6.Addr(), 135, 0), EthernetLen+7, 255)
	dhcp4 := UDPDatagram(netip.MustParseAddrPort("192.0.2.1:67"), netip.MustParseAddrPort("192.0.2.9:68"), make([]byte, 240))
	dhcp6 := UDPDatagram(netip.MustParseAddrPort("[fe80::1]:547"), netip.MustParseAddrPort("[fe80::2]:546"), make([]byte, 60))
	frag6 := Extend(udp6, Fragment)
	const ip, l4, l46 = EthernetLen, EthernetLen + IPv4Len, EthernetLen + IPv6Len

	rows := []struct {
		name  string
		frame []byte
		want  string
	}{
		{"TCP", tcp4, "pass_tcp"},
		{"TCP, IPv6", tcp6, "pass_tcp"},
		{"SYN without a limit", TCPSegment(client4, server4, SYN), "pass_tcp"},
		{"UDP", udp4, "pass_udp"},
		{"UDP, IPv6", udp6, "pass_udp"},
		{"ICMP echo", echo4, "pass_icmp"},
		{"ICMPv6 echo", echo6, "pass_icmp"},
		{"GRE", IP(client4.Addr(), server4.Addr(), GRE, make([]byte, 8)), "pass_other_ip"},
		{"GRE, IPv6", IP(client6.Addr(), server6.Addr(), GRE, make([]byte, 8)), "pass_other_ip"},
		{"no next header", IP(client6.Addr(), server6.Addr(), 59, nil), "pass_other_ip"},
		{"ICMPv6 number in IPv4", IP(client4.Addr(), server4.Addr(), ICMPv6, make([]byte, 8)), "pass_other_ip"},

		{"ARP", Ethernet(TypeARP, make([]byte, 28)), "pass_arp"},
		{"neighbour solicitation", ns, "pass_nd"},
		{"neighbour solicitation routed here", Set(ns, EthernetLen+7, 254), "pass_icmp"},
		{"router solicitation", Set(ns, l46, 133), "pass_nd"},
		{"redirect", Set(ns, l46, 137), "pass_nd"},
		{"multicast listener report", Set(ns, l46, 143), "pass_icmp"},
		{"type below discovery", Set(ns, l46, 132), "pass_icmp"},
		{"DHCP reply", dhcp4, "pass_dhcp"},
		{"DHCPv6 reply", dhcp6, "pass_dhcp"},
		{"DHCP request is no reply", UDPDatagram(netip.MustParseAddrPort("192.0.2.9:68"), netip.MustParseAddrPort("192.0.2.1:67"), nil), "pass_udp"},
		{"fragmentation needed", Set(echo4, l4, 3, 4), "pass_ptb"},
		{"port unreachable", Set(echo4, l4, 3, 3), "pass_icmp"},
		{"packet too big", Set(echo6, l46, 2), "pass_ptb"},

		{"LLDP", Ethernet(TypeLLDP, make([]byte, 46)), "pass_not_ip"},
		{"802.3 length instead of a type", Ethernet(0x0026, make([]byte, 46)), "pass_not_ip"},
		{"empty Ethernet frame", Ethernet(TypeLLDP, nil), "pass_not_ip"},

		{"VLAN", VLAN(tcp4, TypeVLAN), "pass_tcp"},
		{"QinQ", VLAN(tcp4, TypeQinQ, TypeVLAN), "pass_tcp"},
		{"QinQ, IPv6", VLAN(udp6, TypeQinQ, TypeVLAN), "pass_udp"},
		{"three tags", VLAN(tcp4, TypeQinQ, TypeVLAN, TypeVLAN), "pass_deep_vlan"},
		{"eight tags", VLAN(tcp4, TypeVLAN, TypeVLAN, TypeVLAN, TypeVLAN, TypeVLAN, TypeVLAN, TypeVLAN, TypeVLAN), "pass_deep_vlan"},
		{"VLAN with ARP", VLAN(Ethernet(TypeARP, make([]byte, 28)), TypeVLAN), "pass_arp"},
		{"cut in the VLAN tag", Cut(VLAN(tcp4, TypeVLAN), 16), "drop_truncated"},
		{"cut in the second tag", Cut(VLAN(tcp4, TypeQinQ, TypeVLAN), 21), "drop_truncated"},

		{"IPv4 options", WithOptions(tcp4, 4), "pass_tcp"},
		{"most IPv4 options", WithOptions(udp4, 40), "pass_udp"},
		{"cut in the IPv4 options", Cut(WithOptions(tcp4, 40), l4+20), "drop_truncated"},
		{"IPv4 header of 4 words", Set(tcp4, ip, 0x44), "drop_malformed"},
		{"IPv4 header of 0 words", Set(tcp4, ip, 0x40), "drop_malformed"},
		{"version 6 in an IPv4 frame", Set(tcp4, ip, 0x65), "drop_malformed"},
		{"version 0 in an IPv4 frame", Set(tcp4, ip, 0x05), "drop_malformed"},
		{"version 4 in an IPv6 frame", Set(tcp6, ip, 0x40), "drop_malformed"},
		{"IPv4 length 0", Set(tcp4, ip+2, 0, 0), "drop_malformed"},
		{"IPv4 length below its header", Set(tcp4, ip+2, 0, 19), "drop_malformed"},
		{"IPv4 length beyond the frame", Set(tcp4, ip+2, 0, 41), "drop_truncated"},
		{"IPv4 length ends in the TCP header", Set(tcp4, ip+2, 0, 39), "drop_truncated"},
		{"IPv4 padding", Pad(tcp4, 6), "pass_tcp"},
		{"padding is no payload", Pad(Set(tcp4, ip+2, 0, 30), 20), "drop_truncated"},
		{"cut in the IPv4 header", Cut(tcp4, ip+19), "drop_truncated"},
		{"nothing after Ethernet", Cut(tcp4, ip), "drop_truncated"},
		{"cut in the IPv6 header", Cut(tcp6, ip+39), "drop_truncated"},
		{"IPv6 length beyond the frame", Set(tcp6, ip+4, 0, 21), "drop_truncated"},
		{"IPv6 length 0 with TCP", Set(tcp6, ip+4, 0, 0), "drop_truncated"},

		{"cut in the TCP header", Cut(tcp4, l4+19), "drop_truncated"},
		{"cut in the TCP header, IPv6", Cut(Set(tcp6, ip+5, 19), l46+19), "drop_truncated"},
		{"TCP header of 4 words", Set(tcp4, l4+12, 0x40), "drop_malformed"},
		{"TCP options that are not there", Set(tcp4, l4+12, 0x60), "drop_truncated"},
		{"cut in the UDP header", Set(Cut(udp4, l4+7), ip+2, 0, 27), "drop_truncated"},
		{"UDP length 7", Set(udp4, l4+4, 0, 7), "drop_malformed"},
		{"UDP length beyond the packet", Set(udp4, l4+4, 0, 14), "drop_truncated"},
		{"UDP length below the payload", Set(udp4, l4+4, 0, 9), "pass_udp"},
		{"UDP length 0, IPv4", Set(udp4, l4+4, 0, 0), "drop_malformed"},
		{"UDP length 0, IPv6 jumbogram", Set(udp6, l46+4, 0, 0), "pass_udp"},
		{"cut in the ICMP header", Set(Cut(echo4, l4+7), ip+2, 0, 27), "drop_truncated"},
		{"cut in the ICMPv6 header", Set(Cut(echo6, l46+7), ip+4, 0, 7), "drop_truncated"},

		{"first fragment, TCP", Set(tcp4, ip+6, 0x20), "pass_tcp"},
		{"first fragment, UDP longer than it", Set(Set(udp4, ip+6, 0x20), l4+4, 4, 0), "pass_udp"},
		{"tiny first fragment, UDP, padded", Set(Set(Cut(udp4, l4+8), ip+6, 0x20), ip+2, 0, 25), "drop_truncated"},
		{"tiny first fragment", Set(Cut(Set(tcp4, ip+6, 0x20), l4+8), ip+2, 0, 28), "drop_truncated"},
		{"later fragment", Set(tcp4, ip+6, 0x00, 0x01), "pass_fragment"},
		{"last fragment", Set(udp4, ip+6, 0x1f, 0xff), "pass_fragment"},
		{"do not fragment", Set(tcp4, ip+6, 0x40), "pass_tcp"},
		{"whole IPv6 datagram with a fragment header", frag6, "pass_udp"},
		{"first IPv6 fragment", Set(frag6, l46+2, 0x00, 0x01), "pass_udp"},
		{"later IPv6 fragment", Set(frag6, l46+2, 0x00, 0x08), "pass_fragment"},
		{"cut in the fragment header", Set(Cut(frag6, l46+7), ip+4, 0, 7), "drop_truncated"},

		{"hop-by-hop", Extend(tcp6, HopByHop), "pass_tcp"},
		{"all extension headers", Extend(tcp6, HopByHop, Destination, Routing, Fragment, Destination), "pass_tcp"},
		{"eight extension headers", Extend(tcp6, HopByHop, Destination, Destination, Destination, Destination, Destination, Destination, Destination), "pass_tcp"},
		{"nine extension headers", Extend(tcp6, HopByHop, Destination, Destination, Destination, Destination, Destination, Destination, Destination, Destination), "pass_deep_ext"},
		{"extension header longer than the packet", Set(Extend(tcp6, HopByHop), l46+1, 200), "drop_truncated"},
		{"cut in an extension header", Set(Cut(Extend(tcp6, HopByHop), l46+1), ip+4, 0, 1), "drop_truncated"},
		{"ICMPv6 behind hop-by-hop", Extend(echo6, HopByHop), "pass_icmp"},
		{"discovery behind hop-by-hop", Extend(ns, HopByHop), "pass_nd"},
	}
	p := newDrivenPlane(t, 2, nil)
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			if got := p.send(t, r.frame); got != r.want {
				t.Errorf("got %s, want %s", got, r.want)
			}
		})
	}
}

func TestEveryTruncation(t *testing.T) {
	p := newDrivenPlane(t, 1, nil)
	frames := map[string][]byte{
		"TCP": VLAN(WithOptions(TCPSegment(client4, server4, SYN), 8), TypeQinQ, TypeVLAN),
		"UDP": Extend(UDPDatagram(client6, server6, []byte("payload")), HopByHop, Routing, Fragment),
	}
	for name, whole := range frames {
		for n := EthernetLen; n < len(whole); n++ {
			if got := p.send(t, Cut(whole, n)); got != "drop_truncated" {
				t.Errorf("%s cut to %d of %d bytes: %s", name, n, len(whole), got)
			}
		}
	}
}

func TestDeny(t *testing.T) {
	p := newDrivenPlane(t, 1, &policy.Tables{Prefixes: denied("192.0.2.0/28", "2001:db8:1::/48")})
	from := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 1234) }
	rows := []struct {
		name  string
		frame []byte
		want  string
	}{
		{"inside", TCPSegment(client4, server4, ACK), "drop_deny"},
		{"first address", TCPSegment(from("192.0.2.0"), server4, ACK), "drop_deny"},
		{"last address", TCPSegment(from("192.0.2.15"), server4, ACK), "drop_deny"},
		{"one below", TCPSegment(from("192.0.1.255"), server4, ACK), "pass_tcp"},
		{"one above", TCPSegment(from("192.0.2.16"), server4, ACK), "pass_tcp"},
		{"destination inside", TCPSegment(from("192.0.2.16"), netip.MustParseAddrPort("192.0.2.1:443"), ACK), "pass_tcp"},
		{"UDP inside", UDPDatagram(client4, server4, nil), "drop_deny"},
		{"echo inside", ICMPMessage(client4.Addr(), server4.Addr(), 8, 0), "drop_deny"},
		{"fragment inside", Set(TCPSegment(client4, server4, ACK), EthernetLen+6, 0, 1), "drop_deny"},
		{"VLAN inside", VLAN(TCPSegment(client4, server4, ACK), TypeVLAN), "drop_deny"},
		{"inside, IPv6", TCPSegment(client6, server6, ACK), "drop_deny"},
		{"outside, IPv6", TCPSegment(server6, client6, ACK), "pass_tcp"},
		{"deep extension headers inside", Extend(TCPSegment(client6, server6, ACK), 60, 60, 60, 60, 60, 60, 60, 60, 60), "drop_deny"},
		{"fragmentation needed from inside", ICMPMessage(client4.Addr(), server4.Addr(), 3, 4), "pass_ptb"},
		{"neighbour solicitation from inside", Set(ICMPMessage(client6.Addr(), server6.Addr(), 135, 0), EthernetLen+7, 255), "pass_nd"},
	}
	for _, r := range rows {
		if got := p.send(t, r.frame); got != r.want {
			t.Errorf("%s: got %s, want %s", r.name, got, r.want)
		}
	}

	// Applying other tables adds what is new and removes what is not in them.
	if err := p.Apply(&policy.Tables{Prefixes: denied("203.0.113.0/24", "2001:db8:1::/48")}); err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]string{"192.0.2.10": "pass_tcp", "203.0.113.9": "drop_deny"} {
		if got := p.send(t, TCPSegment(from(addr), server4, ACK)); got != want {
			t.Errorf("after the change, %s: got %s, want %s", addr, got, want)
		}
	}
	if err := p.Apply(&policy.Tables{}); err != nil {
		t.Fatal(err)
	}
	if got := p.send(t, TCPSegment(client6, server6, ACK)); got != "pass_tcp" {
		t.Errorf("with empty tables: got %s", got)
	}
}

func (p *drivenPlane) moment() *driven.DrivenMoment {
	m := &driven.DrivenMoment{Queue: p.queue}
	m.Clock.Now, m.Clock.Chance = p.now, p.chance
	return m
}
