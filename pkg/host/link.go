// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ReadInterface reads an interface of this network namespace: netlink first, then
// what its driver and sysfs add. ErrNoInterface when there is none of that name.
func ReadInterface(name string) (Interface, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return Interface{Name: name}, fmt.Errorf("read interface %s: %w", name, err)
	}
	for _, l := range links {
		if l.Attrs().Name == name {
			return describe(l, links), nil
		}
	}
	return Interface{Name: name}, fmt.Errorf("read interface %q: %w: `ip link` lists them", name, ErrNoInterface)
}

// describe gathers the facts of one link; all are those of its namespace.
func describe(l netlink.Link, all []netlink.Link) Interface {
	i := describeAlone(l)
	a := l.Attrs()
	for _, other := range all {
		b := other.Attrs()
		switch {
		case b.MasterIndex == a.Index:
			i.Members = append(i.Members, describeAlone(other))
		case b.Index == a.MasterIndex:
			i.Master = &Master{Name: b.Name, Kind: other.Type(), XDP: programOf(b.Xdp)}
		}
		if other.Type() == "vlan" && b.ParentIndex == a.Index {
			i.VLANs = append(i.VLANs, b.Name)
		}
		if onTopOfAnother(l.Type()) && b.Index == a.ParentIndex && a.NetNsID < 0 {
			i.Parent = b.Name
		}
	}
	if l.Type() == "veth" {
		i.Peer = describePeer(a, all)
		if i.Peer != nil && i.Channels == (Channels{}) {
			i.Peer.TransmitQueues = i.Peer.made // before Linux 5.13 a veth uses all that it was made with
		}
	}
	return i
}

// onTopOfAnother: kinds of devices whose packets arrive at a parent first.
func onTopOfAnother(kind string) bool {
	switch kind {
	case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec":
		return true
	}
	return false
}

// describeAlone leaves out what the interface is to others.
func describeAlone(l netlink.Link) Interface {
	a := l.Attrs()
	i := Interface{
		Name: a.Name, Index: a.Index, Kind: kindOf(l), Link: a.EncapType, MTU: a.MTU,
		Up: a.RawFlags&unix.IFF_UP != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		ReceiveQueues: a.NumRxQueues, TransmitQueues: a.NumTxQueues,
		XDP: programOf(a.Xdp), XDPFeatures: askXDPFeatures(a.Index),
	}
	if b, ok := l.(*netlink.Bond); ok {
		i.BondMode, i.HashPolicy = b.Mode.String(), b.XmitHashPolicy.String()
	}
	if addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL); err == nil {
		for _, x := range addresses {
			if ip, ok := netip.AddrFromSlice(x.IP); ok {
				ones, _ := x.Mask.Size()
				i.Addresses = append(i.Addresses, netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
	}
	if e, err := AskEthtool(a.Name); err == nil {
		i.Driver, i.Version, i.Bus = e.Driver, e.Version, e.Bus
		i.Channels, i.Rings, i.Features = e.Channels, e.Rings, e.Features
	}
	addSysfs(&i, "/")
	return i
}

func kindOf(l netlink.Link) string {
	switch x := l.(type) {
	case *netlink.Tuntap:
		if x.Mode == unix.IFF_TAP {
			return "tap"
		}
		return "tun"
	case *netlink.Device:
		if l.Attrs().RawFlags&unix.IFF_LOOPBACK != 0 {
			return "loopback"
		}
		return "physical" // a virtual machine's too
	}
	return l.Type()
}

func programOf(x *netlink.LinkXdp) *Program {
	if x == nil || !x.Attached {
		return nil
	}
	p := &Program{ID: x.ProgId, Name: programName(x.ProgId), Mode: "native"}
	switch x.AttachMode {
	case nl.XDP_ATTACHED_SKB:
		p.Mode = "generic"
	case nl.XDP_ATTACHED_HW:
		p.Mode = "offload"
	}
	return p
}

func describePeer(a *netlink.LinkAttrs, all []netlink.Link) *Peer {
	if a.NetNsID >= 0 {
		p := &Peer{Elsewhere: true}
		if b, err := linkElsewhere(a.ParentIndex, a.NetNsID); err == nil {
			p.Name, p.MTU, p.made = b.Name, b.MTU, b.NumTxQueues
		}
		return p
	}
	for _, other := range all {
		if b := other.Attrs(); b.Index == a.ParentIndex {
			p := &Peer{Name: b.Name, MTU: b.MTU, made: b.NumTxQueues}
			if e, err := AskEthtool(b.Name); err == nil {
				p.TransmitQueues = e.Channels.Transmit
			}
			return p
		}
	}
	return nil
}

// linkElsewhere reads a link of the namespace that this one knows by an id; Linux
// 5.0 and rights over that namespace are needed.
func linkElsewhere(index, namespace int) (*netlink.LinkAttrs, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(namespace))))
	answers, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 {
		return nil, errors.New("no answer")
	}
	l, err := netlink.LinkDeserialize(nil, answers[0])
	if err != nil {
		return nil, err
	}
	// A kernel that knows no such attribute answers for this namespace.
	if l.Attrs().Index != index || l.Type() != "veth" {
		return nil, errors.New("another link answered")
	}
	return l.Attrs(), nil
}

// Of the netdev family of generic netlink, linux/netdev.h.
const (
	netdevGet       = 1
	netdevIndex     = 1
	netdevXDP       = 3
	xdpActBasic     = 1 << 0
	xdpActFragments = 1 << 5
)

// genericHeader is struct genlmsghdr: command, version and two bytes that must be 0.
// netlink's own type for it is two bytes long and sends whatever is behind it, which
// the netdev family refuses.
type genericHeader [4]byte

func (h genericHeader) Len() int          { return len(h) }
func (h genericHeader) Serialize() []byte { return h[:] }

// askXDPFeatures asks the kernel what the driver can do; nil before Linux 6.3.
func askXDPFeatures(index int) *XDPFeatures {
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return nil
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(genericHeader{netdevGet, 1})
	req.AddData(nl.NewRtAttr(netdevIndex, nl.Uint32Attr(uint32(index))))
	answers, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil || len(answers) != 1 || len(answers[0]) < nl.SizeofGenlmsg {
		return nil
	}
	attrs, err := nl.ParseRouteAttr(answers[0][nl.SizeofGenlmsg:])
	if err != nil {
		return nil
	}
	for _, a := range attrs {
		if a.Attr.Type == netdevXDP && len(a.Value) == 8 {
			bits := nl.NativeEndian().Uint64(a.Value)
			return &XDPFeatures{Native: bits&xdpActBasic != 0, Frags: bits&xdpActFragments != 0}
		}
	}
	return nil
}
