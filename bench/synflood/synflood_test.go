// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xgw-project/xgw/pkg/lab"
)

// What the generator sends is valid: the stack would drop other SYNs for less than an
// answer costs.
func TestForgedSYNsAreValid(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l, err := lab.New(lab.Options{Name: "synfloodtest"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g, err := newGenerator(l, forged, target, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	const redirect = 4
	sources := map[uint32]bool{}
	for range 100 {
		out := make([]byte, len(g.frame))
		action, err := g.objects.Flood.Run(&ebpf.RunOptions{Data: g.frame, DataOut: out, Repeat: 1})
		if err != nil || action != redirect {
			t.Fatalf("action %d, %v", action, err)
		}
		ip, tcp := out[14:34], out[34:]
		if s := folded(sum(ip)); s != 0xffff {
			t.Fatalf("IPv4 checksum is wrong: %x in % x", s, out)
		}
		if s := folded(sum(ip[12:20]) + 6 + 20 + sum(tcp)); s != 0xffff {
			t.Fatalf("TCP checksum is wrong: %x in % x", s, out)
		}
		if ip[12] != 10 || binary.BigEndian.Uint16(tcp[2:]) != target.Port() || tcp[13] != 0x02 {
			t.Fatalf("not a SYN from %s to %s: % x", forged, target, out)
		}
		sources[binary.BigEndian.Uint32(ip[12:])] = true
	}
	if len(sources) < 95 {
		t.Errorf("%d sources in 100 SYNs", len(sources))
	}
	if n, err := g.sent(); err != nil || n != 100 {
		t.Errorf("counted %d, %v: want 100", n, err)
	}
}

func folded(s uint32) uint32 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return s
}
