// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"slices"
	"strings"
)

// native finds what native mode meets. The refusals are those of the drivers'
// own checks, in drivers/net of the kernel, with the error that they give.
func (p *planner) native(i Interface) []Finding {
	p = p.fresh()
	p.found = append(p.found, p.owner(i, ModeNative)...)
	if i.Kind == "bond" {
		p.bond(i)
		return p.found
	}
	if !p.support(i) {
		return p.found
	}
	p.mtu(i)
	p.merging(i)
	p.tags(i)
	switch i.Driver {
	case "virtio_net":
		p.virtio(i)
	case "ena":
		p.ena(i)
	case "gve":
		p.gve(i)
	case "bnxt_en":
		p.bnxt(i)
	case "ixgbe":
		p.ixgbe(i)
	case "veth":
		p.veth(i)
	}
	return p.found
}

// flap is what a native attach does to the link.
func (p *planner) flap(i Interface) string {
	if !i.Up {
		return flapNone
	}
	if i.Kind == "bond" {
		var all []string
		for _, m := range i.Members {
			all = append(all, m.Name+": "+p.flap(m))
		}
		return strings.Join(all, "; ")
	}
	if d := drivers[i.Driver]; d.flap != "" {
		return d.flap
	}
	return flapUnknown
}

// support tells whether the device runs native programs at all, and says why not.
func (p *planner) support(i Interface) bool {
	d, known := drivers[i.Driver]
	switch {
	case i.Parent != "":
		p.add(Blocks, fmt.Sprintf("a %s device has no native XDP, its parent may", i.Kind),
			fmt.Sprintf("its packets arrive at %s first, with all others there", i.Parent), p.attach(i.Parent))
	case i.Kind == "bridge":
		p.add(Blocks, "a bridge has no native XDP, its ports may", "EOPNOTSUPP", p.attachEach(i.Members))
	case i.XDPFeatures != nil && i.XDPFeatures.Native:
		return true
	case i.XDPFeatures != nil && i.Kind == "veth":
		return true // the device has it; p.veth says what is missing now
	case kindsWithoutNative[i.Kind], withoutNative[i.Driver], i.XDPFeatures != nil:
		what := "the driver " + i.Driver
		if i.Driver == "" || i.Kind != "physical" {
			what = "a " + i.Kind + " device"
		}
		evidence := "EOPNOTSUPP"
		if i.XDPFeatures != nil {
			evidence = "the kernel lists no XDP features for it; " + evidence
		}
		if d.native != (version{}) && p.before(d.native) {
			evidence += fmt.Sprintf("; Linux %s has it", d.native)
		}
		p.add(Blocks, what+" has no native XDP", evidence, "")
	case !known:
		p.add(Warns, fmt.Sprintf("whether the driver %s has native XDP is not known", i.Driver), "the attach will tell", "")
		return true
	case p.before(d.native):
		p.add(Blocks, fmt.Sprintf("the driver %s has native XDP from Linux %s on", i.Driver, d.native), "this is "+p.machine.Kernel, "")
	default:
		return true
	}
	return false
}

func (p *planner) attachEach(members []Interface) string {
	var commands []string
	for _, m := range members {
		commands = append(commands, p.attach(m.Name))
	}
	return strings.Join(commands, " && ")
}

// mtu compares with what fits one page beside XDP's own room. A veth's limit is for
// its peer's packets: the kernel looks at the peer's MTU alone.
func (p *planner) mtu(i Interface) {
	d := drivers[i.Driver]
	if p.wanted.Frags && (d.frags != (version{}) && p.since(d.frags) || i.XDPFeatures != nil && i.XDPFeatures.Frags) {
		return
	}
	of, name, mtu := "MTU", i.Name, i.MTU
	if i.Kind == "veth" && i.Peer != nil && i.Peer.MTU > 0 {
		of, name, mtu = "the peer's MTU", i.Peer.Name, i.Peer.MTU
	}
	mend := fmt.Sprintf("ip link set dev %s mtu %d", name, d.mtu)
	if name != i.Name && i.Peer.Elsewhere {
		mend = fmt.Sprintf("ip -n NAMESPACE link set dev %s mtu %d", name, d.mtu)
	}
	evidence := "programs of xgw take packets in one buffer"
	if p.wanted.Frags {
		evidence = "this driver has no XDP for packets in several buffers"
		if d.frags != (version{}) {
			evidence += fmt.Sprintf(" before Linux %s", d.frags)
		}
	}
	const ordinary = 1500
	switch {
	case i.Driver == "tun":
		if mtu > ordinary {
			p.add(Info, "packets that do not fit one page run the program as generic mode does", fmt.Sprintf("MTU %d", mtu), "")
		}
	case mtu <= ordinary:
	case d.mtu == 0 || p.machine.PageSize != 4096:
		p.add(Info, fmt.Sprintf("whether %s takes MTU %d with XDP is not known", i.Driver, mtu), "the attach will tell", "")
	case mtu <= d.mtu:
	case i.Kind == "veth" && name == i.Name:
		p.add(Warns, fmt.Sprintf("the peer's MTU cannot be seen from here; above %d the attach fails", d.mtu), fmt.Sprintf("MTU %d on this side; ERANGE", mtu),
			fmt.Sprintf("ip -n NAMESPACE link set dev PEER mtu %d", d.mtu))
	case i.Driver == "virtio_net" && !p.since(version{6, 3}) && mtu <= 4064:
		p.add(Warns, fmt.Sprintf("MTU %d is above the %d that XDP has room for; this kernel may attach all the same", mtu, d.mtu), "Linux 6.3 and later refuse it", mend)
	default:
		p.add(Blocks, fmt.Sprintf("%s %d is above %d, the most that %s takes with XDP", of, mtu, d.mtu, i.Driver), evidence, mend)
	}
}

// merging: a packet that hardware put together does not fit one buffer.
func (p *planner) merging(i Interface) {
	if i.Driver == "virtio_net" {
		return // see p.virtio
	}
	for _, feature := range []string{featureLRO, featureGROHW} {
		if !i.on(feature) {
			continue
		}
		switch drivers[i.Driver].merging {
		case mergingRefuses:
			p.add(Blocks, feature+" is on: "+i.Driver+" refuses XDP with it", "packets merged by hardware do not fit one buffer", offCommand(i, feature))
		case mergingTurnsOff:
			p.add(Info, feature+" is turned off by the attach", "the driver "+i.Driver+" does so", "")
		case mergingUnknown:
			p.add(Warns, feature+" is on: some drivers refuse XDP with it", "the attach will tell", offCommand(i, feature))
		}
	}
}

// Bits of virtio's feature word, linux/virtio_net.h and linux/virtio_config.h.
var virtioMerging = []struct {
	bit  int
	name string
}{{1, "guest_csum"}, {7, "guest_tso4"}, {8, "guest_tso6"}, {9, "guest_ecn"}, {10, "guest_ufo"}, {54, "guest_uso4"}, {55, "guest_uso6"}}

const (
	virtioCtrlGuestOffloads = 2
	virtioMergeBuffers      = 15
	virtioAnyLayout         = 27
	virtioVersion1          = 32
)

func (p *planner) virtio(i Interface) {
	has := func(bit int) bool { return bit < len(i.Virtio) && i.Virtio[bit] == '1' }
	var names []string
	for _, m := range virtioMerging {
		if has(m.bit) {
			names = append(names, m.name)
		}
	}
	fixed := i.on(featureGROHW) && i.Features[featureGROHW].Fixed || i.on(featureLRO) && i.Features[featureLRO].Fixed
	switch {
	case i.Virtio == "" && fixed:
		names = []string{"guest_tso4", "guest_tso6"}
		fallthrough
	case i.Virtio != "" && len(names) > 0 && !has(virtioCtrlGuestOffloads):
		p.add(Blocks, "the hypervisor hands over merged or unsummed packets and lets nobody turn that off",
			fmt.Sprintf("virtio features %s without ctrl_guest_offloads; EOPNOTSUPP", strings.Join(names, ", ")),
			"on the hypervisor, QEMU's option: -device virtio-net-pci,"+strings.Join(names, "=off,")+"=off")
	case i.on(featureGROHW) || i.on(featureLRO):
		p.add(Info, "merging by the hypervisor is turned off by the attach", "the driver virtio_net does so", "")
	}
	if has(virtioMergeBuffers) && !has(virtioAnyLayout) && !has(virtioVersion1) {
		p.add(Blocks, "the hypervisor is too old: it puts headers into buffers of their own", "virtio features mrg_rxbuf without any_layout or version_1; EINVAL", "")
	}
	c, cpus := i.Channels, p.machine.CPUs
	if c.MostCombined == 0 || cpus == 0 || c.Combined+cpus <= c.MostCombined {
		return
	}
	evidence := fmt.Sprintf("%d queue pairs in use and %d CPUs, of %d pairs", c.Combined, cpus, c.MostCombined)
	if !p.before(version{5, 13}) {
		p.add(Info, "not every CPU gets a transmit queue of its own for XDP", evidence+"; xgw drops and passes, it sends nothing from XDP", "")
		return
	}
	mend := fmt.Sprintf("ethtool -L %s combined %d", i.Name, c.MostCombined-cpus)
	if c.MostCombined <= cpus {
		mend = fmt.Sprintf("on the hypervisor, QEMU's options: -netdev tap,queues=%d -device virtio-net-pci,mq=on,vectors=%d", 2*cpus, 4*cpus+2)
	}
	// Debian's 5.10.0-32 attaches.
	p.add(Warns, "too few free transmit queues for XDP", evidence+"; before 5.13 Linux refuses that (ENOMEM), but stable kernels may carry the later way: the attach will tell", mend)
}

// ena: a transmit queue for each of its own goes to XDP.
func (p *planner) ena(i Interface) {
	c := i.Channels
	if c.MostCombined == 0 || 2*c.Combined <= c.MostCombined {
		return
	}
	mend := fmt.Sprintf("ethtool -L %s combined %d", i.Name, c.MostCombined/2)
	if c.MostCombined < 2 {
		mend = ""
	}
	p.add(Blocks, "ena takes XDP with at most half of its queues in use", fmt.Sprintf("%d of %d; EINVAL", c.Combined, c.MostCombined), mend)
}

func (p *planner) gve(i Interface) {
	c := i.Channels
	if c.MostTransmit == 0 || c.Receive == c.Transmit && 2*c.Transmit <= c.MostTransmit {
		return
	}
	n := max(1, min(c.Receive, c.MostTransmit/2))
	p.add(Blocks, "gve takes XDP with as many receive as transmit queues, and at most half of those there can be",
		fmt.Sprintf("%d receive, %d transmit of %d; EINVAL", c.Receive, c.Transmit, c.MostTransmit), fmt.Sprintf("ethtool -L %s rx %d tx %d", i.Name, n, n))
}

func (p *planner) bnxt(i Interface) {
	if c := i.Channels; c.Combined == 0 && c.Receive > 0 {
		p.add(Blocks, "bnxt_en takes XDP with combined queues alone", fmt.Sprintf("%d receive and %d transmit queues; EOPNOTSUPP", c.Receive, c.Transmit),
			fmt.Sprintf("ethtool -L %s rx 0 tx 0 combined %d", i.Name, min(c.Receive, c.Transmit)))
	}
}

func (p *planner) ixgbe(i Interface) {
	if i.Virtuals > 0 {
		p.add(Blocks, "ixgbe refuses XDP beside SR-IOV", fmt.Sprintf("%d virtual functions; EINVAL", i.Virtuals),
			fmt.Sprintf("echo 0 > /sys/class/net/%s/device/sriov_numvfs", i.Name))
	}
	const most = 128 // twice the driver's transmit queues for XDP
	if p.machine.CPUs > most {
		p.add(Blocks, fmt.Sprintf("ixgbe refuses XDP on more than %d CPUs", most), fmt.Sprintf("%d CPUs; ENOMEM", p.machine.CPUs), "")
	}
}

func (p *planner) veth(i Interface) {
	receive := i.ReceiveQueues
	if i.Channels.Receive > 0 {
		receive = i.Channels.Receive
	}
	switch {
	case i.Peer != nil && i.Peer.TransmitQueues > receive:
		mend := fmt.Sprintf("ethtool -L %s rx %d", i.Name, i.Peer.TransmitQueues)
		switch {
		case p.before(version{5, 15}): // a veth's queues are as they were made
			mend = fmt.Sprintf("ip link del %s && ip link add %s numrxqueues %d type veth peer name %s", i.Name, i.Name, i.Peer.TransmitQueues, i.Peer.Name)
		case i.Channels.MostReceive < i.Peer.TransmitQueues:
			mend = fmt.Sprintf("ethtool -L %s tx %d", i.Peer.Name, receive)
		}
		p.add(Blocks, "the peer has more transmit queues than this end has receive queues", fmt.Sprintf("%d and %d; ENOSPC", i.Peer.TransmitQueues, receive), mend)
	case i.XDPFeatures != nil && !i.XDPFeatures.Native:
		p.add(Blocks, "the peer is gone, or has more transmit queues than this end has receive queues",
			fmt.Sprintf("the kernel lists no XDP features for it now; %d receive queues; ENOSPC or ENOTCONN", receive), fmt.Sprintf("ethtool -L %s rx %d", i.Name, max(receive, i.Channels.MostReceive)))
	case i.XDPFeatures == nil && i.Peer != nil && i.Peer.TransmitQueues == 0:
		p.add(Info, fmt.Sprintf("how many transmit queues the peer has cannot be seen from here; with more than %d the attach fails", receive), "ENOSPC", "")
	}
	p.add(Info, "on a veth native XDP costs the packets that pass", "each is made into an skb anew, and the peer stops sending large packets for the kernel to cut", "")
	if f, told := i.Features[featureGRO]; told && !f.On {
		p.add(Info, "packets that pass reach the stack one by one", "generic-receive-offload is off", fmt.Sprintf("ethtool -K %s gro on", i.Name))
	}
}

// bond: the program goes to each member, so each must take it.
func (p *planner) bond(i Interface) {
	works := []string{"balance-rr", "active-backup", "balance-xor", "802.3ad"}
	switch {
	case p.before(version{5, 15}):
		p.add(Blocks, "a bond has native XDP from Linux 5.15 on, its members may have it now", "this is "+p.machine.Kernel, p.attachEach(i.Members))
		return
	case i.BondMode != "" && !slices.Contains(works, i.BondMode):
		p.add(Blocks, fmt.Sprintf("a bond in mode %s has no native XDP", i.BondMode), "modes that have: "+strings.Join(works, ", ")+"; EOPNOTSUPP", p.attachEach(i.Members))
		return
	case (i.BondMode == "802.3ad" || i.BondMode == "balance-xor") && i.HashPolicy == "vlan+srcmac":
		p.add(Blocks, "a bond that hashes by vlan+srcmac has no native XDP", "EOPNOTSUPP",
			fmt.Sprintf("ip link set dev %s type bond xmit_hash_policy layer3+4", i.Name))
	}
	if len(i.Members) == 0 {
		p.add(Warns, "the bond has no members", "those that join later must take native XDP, or they are refused", "")
	}
	for _, m := range i.Members {
		for _, f := range p.native(m) {
			f.Title = "member " + m.Name + ": " + f.Title
			p.found = append(p.found, f)
		}
	}
}
