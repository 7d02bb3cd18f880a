// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/bench/synflood/flood"
	"github.com/xgw-project/xgw/pkg/lab"
)

// outInterface is the router's end of the gateway's wire.
const outInterface = "edge1"

// generator sends SYNs from forged sources down the wire to the gateway: an XDP program
// on live frames (Linux 5.18), on each CPU, so that a frame costs no system call and no
// socket buffer, and is to the receiver what it would be from a NIC.
type generator struct {
	l       *lab.Lab
	objects flood.FloodObjects
	frame   []byte
}

// Sizes of bursts. The receiver's ring on a veth has 256 places, and what is in it is
// taken out after each batch.
const (
	batchSize = 64
	maxBurst  = 16 * batchSize
)

func newGenerator(l *lab.Lab, sources netip.Prefix, target netip.AddrPort, seed uint64) (g *generator, err error) {
	g = &generator{l: l}
	return g, l.In(lab.Router, func() error {
		out, err := netlink.LinkByName(outInterface)
		if err != nil {
			return err
		}
		neighbours, err := netlink.NeighList(out.Attrs().Index, netlink.FAMILY_V4)
		if err != nil || len(neighbours) == 0 {
			return errors.Join(err, errors.New("no neighbour to send to"))
		}
		g.frame = synFrame(neighbours[0].HardwareAddr, out.Attrs().HardwareAddr, target)
		spec, err := flood.LoadFlood()
		if err != nil {
			return err
		}
		first := sources.Masked().Addr().As4()
		ip, tcp := g.frame[14:34], g.frame[34:]
		for v, value := range map[*ebpf.VariableSpec]any{
			spec.Variables["ifindex"]: uint32(out.Attrs().Index), spec.Variables["seed"]: seed,
			spec.Variables["first_source"]: binary.BigEndian.Uint32(first[:]), spec.Variables["source_mask"]: ^uint32(0) >> sources.Bits(),
			spec.Variables["ip_sum"]: sum(ip), spec.Variables["tcp_sum"]: sum(ip[12:20]) + unix.IPPROTO_TCP + 20 + sum(tcp),
		} {
			if err := v.Set(value); err != nil {
				return err
			}
		}
		return spec.LoadAndAssign(&g.objects, nil)
	})
}

func (g *generator) Close() error { return g.objects.Close() }

// synFrame is one SYN without a source, its port, a sequence number or checksums.
func synFrame(to, from []byte, target netip.AddrPort) []byte {
	b := make([]byte, 14+20+20)
	copy(b, to)
	copy(b[6:], from)
	b[12] = 0x08
	ip, tcp := b[14:34], b[34:]
	ip[0], ip[3], ip[8], ip[9] = 0x45, 40, 64, unix.IPPROTO_TCP
	dst := target.Addr().As4()
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(tcp[2:], target.Port())
	tcp[12], tcp[13] = 5<<4, 0x02
	binary.BigEndian.PutUint16(tcp[14:], 0xffff)
	return b
}

// sum adds up 16-bit words, for a checksum.
func sum(b []byte) (s uint32) {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

// run sends at the rate, an equal share of it from each CPU, until ctx ends.
func (g *generator) run(ctx context.Context, rate int) error {
	cpus := runtime.NumCPU()
	errs := make(chan error, cpus)
	for cpu := range cpus {
		go func() {
			errs <- g.l.In(lab.Router, func() error { return g.runOn(ctx, cpu, float64(rate)/float64(cpus)) })
		}()
	}
	var err error
	for range cpus {
		err = errors.Join(err, <-errs)
	}
	return err
}

func (g *generator) runOn(ctx context.Context, cpu int, rate float64) error {
	var before, own unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	own.Set(cpu)
	if err := unix.SchedSetaffinity(0, &own); err != nil {
		return fmt.Errorf("send on CPU %d: %w", cpu, err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	sent, began := 0, time.Now()
	for ctx.Err() == nil {
		due := int(rate*time.Since(began).Seconds()) - sent
		if due < batchSize {
			// Not time.Sleep, which rounds up to a millisecond where nothing else runs.
			pause := unix.NsecToTimespec(int64(float64(batchSize-due) / rate * 1e9))
			_ = unix.Nanosleep(&pause, nil)
			continue
		}
		n := min(due, maxBurst)
		_, err := g.objects.Flood.Run(&ebpf.RunOptions{Data: g.frame, Repeat: uint32(n), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: batchSize})
		if err != nil {
			return fmt.Errorf("send live frames (Linux 5.18 and later): %w", err)
		}
		sent += n
	}
	return nil
}

// sent is how many frames left, from the beginning.
func (g *generator) sent() (n uint64, err error) {
	var perCPU []uint64
	if err := g.objects.Sent.Lookup(uint32(0), &perCPU); err != nil {
		return 0, fmt.Errorf("read what was sent: %w", err)
	}
	for _, v := range perCPU {
		n += v
	}
	return n, nil
}
