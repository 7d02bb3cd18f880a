// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/datapath/reference"
)

// hostileFrames is how many are tried; a virtual machine sets fewer.
func hostileFrames(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("XGW_HOSTILE_FRAMES"))
	if err != nil || n < 1 {
		n = 100_000
	}
	if testing.Short() {
		n = min(n, 10_000)
	}
	t.Logf("%d frames", n)
	return n
}

// The program's outcome is the model's: of the first frame by frame, of the others in sums, and
// none is aborted.
func TestHostileFramesEndAsTheModelSays(t *testing.T) {
	p := newDrivenPlane(t, 1, nil)
	seen := map[string]int{}
	Hostile(1, hostileFrames(t), func(i int, frame []byte) {
		want := reference.Classify(frame)
		seen[want]++
		if i >= 20_000 {
			if passed := p.sendQuietly(t, frame); passed != strings.HasPrefix(want, "pass_") {
				t.Fatalf("frame %d: passed %t, the model says %s: %x", i, passed, want, frame)
			}
		} else if got := p.send(t, frame); got != want {
			t.Fatalf("frame %d: %s, the model says %s: %x", i, got, want, frame)
		}
	})
	var c Counters
	if err := p.Counters(&c); err != nil {
		t.Fatal(err)
	}
	for _, r := range c.Ingress {
		if name := r.Verdict + "_" + r.Reason; r.Queue == 0 && r.Packets != uint64(seen[name]) {
			t.Errorf("%s: %d frames, the model says %d", name, r.Packets, seen[name])
		}
	}
	for _, outcome := range []string{
		"pass_tcp", "pass_udp", "pass_icmp", "pass_other_ip", "pass_fragment", "pass_arp", "pass_nd", "pass_dhcp", "pass_ptb", "pass_not_ip",
		"pass_deep_vlan", "pass_deep_ext", "drop_truncated", "drop_malformed", "drop_tcp_flags",
	} {
		if seen[outcome] == 0 {
			t.Errorf("no frame ended as %s: %v", outcome, seen)
		}
	}
}

// Native XDP, generic XDP and tc on a wire, and PROG_TEST_RUN above: of the same frames the
// same sums, each frame counted once, nothing aborted, no complaint of the kernel's.
func TestHostileFramesOnTheWire(t *testing.T) {
	var all [][]byte
	Hostile(2, hostileFrames(t), func(_ int, frame []byte) { all = append(all, append([]byte(nil), frame...)) })
	for _, mode := range []Mode{ModeNative, ModeGeneric, ModeTC} {
		t.Run(string(mode), func(t *testing.T) {
			want := map[string]uint64{}
			var frames [][]byte
			var bytes uint64
			for _, frame := range all {
				// Of a frame cut in its first tag tc never hears: the kernel takes the tag off before,
				// and wants the two bytes behind it.
				if vlan := frame[12] == 0x81 && frame[13] == 0 || frame[12] == 0x88 && frame[13] == 0xa8; mode == ModeTC && vlan && len(frame) < 20 {
					continue
				}
				frames = append(frames, frame)
				want[reference.Classify(frame)]++
				bytes += uint64(len(frame))
			}
			w := newWire(t, 1)
			d := w.mustAttach(t, mode)
			before := w.received(t)
			w.sendAll(t, d, frames)
			got := map[string]uint64{}
			var c Counters
			if err := d.Counters(&c); err != nil {
				t.Fatal(err)
			}
			var sum, gotBytes uint64
			for _, r := range c.Ingress {
				if r.Packets > 0 {
					got[r.Verdict+"_"+r.Reason] += r.Packets
				}
				sum += r.Packets
				gotBytes += r.Bytes
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("outcomes\n%v, the model says\n%v", got, want)
			}
			if received := w.received(t) - before; sum != received || sum != uint64(len(frames)) || gotBytes != bytes {
				t.Errorf("%d packets of %d bytes counted, %d received, %d of %d bytes sent", sum, gotBytes, received, len(frames), bytes)
			}
			if err := d.Detach(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// sendAll sends frames no faster than they are counted, so that none is lost.
func (w *wire) sendAll(t *testing.T, d *Datapath, frames [][]byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: w.far.Attrs().Index, Halen: 6}
	start, _ := packetSum(t, d, ingressRows)
	for i, frame := range frames {
		for {
			err := unix.Sendto(fd, frame, 0, to)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.ENOBUFS) {
				t.Fatalf("send frame %d (%x): %v", i, frame, err)
			}
		}
		if i%100 == 99 || i == len(frames)-1 {
			waitFor(t, "frames to arrive", func() bool { n, _ := packetSum(t, d, ingressRows); return n-start >= uint64(i+1) })
		}
	}
}

func FuzzClassify(f *testing.F) {
	Hostile(3, 200, func(_ int, frame []byte) { f.Add(append([]byte(nil), frame...)) })
	p := newDrivenPlane(f, 1, nil)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < EthernetLen || len(frame) > LargestFrame {
			return
		}
		if got, want := p.send(t, frame), reference.Classify(frame); got != want {
			t.Errorf("%s, the model says %s: %x", got, want, frame)
		}
	})
}
