// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"net/netip"
)

// ErrNoInterface: the network namespace has no interface of that name.
var ErrNoInterface = errors.New("no such interface")

// Interface is what the machine tells of a network interface. A field that nobody
// could tell is empty; it is never an error that a driver keeps silent.
type Interface struct {
	Name      string         `json:"name"`
	Index     int            `json:"index"`
	Kind      string         `json:"kind"`           // physical, loopback, or the kernel's word: veth, bond, vlan, bridge, tun, tap ...
	Link      string         `json:"link,omitempty"` // what its frames begin with: ether, loopback, none ...
	Up        bool           `json:"up"`
	Carrier   bool           `json:"carrier"`
	MTU       int            `json:"mtu"`             // bytes
	Speed     int            `json:"speed,omitempty"` // Mbit/s
	Duplex    string         `json:"duplex,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`

	Driver   string `json:"driver,omitempty"`
	Version  string `json:"version,omitempty"` // of the driver; many say the kernel's
	Bus      string `json:"bus,omitempty"`
	Virtio   string `json:"virtio,omitempty"`   // features agreed with the hypervisor, a 0 or 1 for each bit
	Virtuals int    `json:"virtuals,omitempty"` // SR-IOV functions that are made

	ReceiveQueues  int      `json:"receive_queues"` // that the kernel has; a driver may use fewer, see Channels
	TransmitQueues int      `json:"transmit_queues"`
	Channels       Channels `json:"channels,omitzero"`
	Rings          Rings    `json:"rings,omitzero"`
	// Features by ethtool's long names, of those that bear on XDP.
	Features map[string]Feature `json:"features,omitempty"`

	Parent     string      `json:"parent,omitempty"` // of a VLAN device and its like
	VLANs      []string    `json:"vlans,omitempty"`  // VLAN devices on this one
	Master     *Master     `json:"master,omitempty"` // the bond or bridge it is a member of
	BondMode   string      `json:"bond_mode,omitempty"`
	HashPolicy string      `json:"hash_policy,omitempty"` // of a bond
	Members    []Interface `json:"members,omitempty"`     // of a bond or bridge
	Peer       *Peer       `json:"peer,omitempty"`        // of a veth

	XDP         *Program     `json:"xdp,omitempty"`          // what is on the hook now
	XDPFeatures *XDPFeatures `json:"xdp_features,omitempty"` // nil where the kernel cannot say
}

// Master is what an interface is a member of.
type Master struct {
	Name string   `json:"name"`
	Kind string   `json:"kind"`
	XDP  *Program `json:"xdp,omitempty"`
}

// Peer is the other end of a veth, as far as it can be seen from this end.
type Peer struct {
	Name           string `json:"name,omitempty"`
	Elsewhere      bool   `json:"elsewhere,omitempty"`       // in another network namespace
	MTU            int    `json:"mtu,omitempty"`             // 0: not seen
	TransmitQueues int    `json:"transmit_queues,omitempty"` // in use; 0: not seen

	made int // transmit queues there can be
}

// Program is an XDP program on a hook. Its name is known to those who may ask.
type Program struct {
	ID   uint32 `json:"id"`
	Name string `json:"name,omitempty"`
	Mode string `json:"mode"` // native, generic or offload
}

// XDPFeatures are what the driver says it can do with XDP; from Linux 6.3 on.
type XDPFeatures struct {
	Native bool `json:"native"` // runs programs itself
	Frags  bool `json:"frags"`  // packets of several buffers
}

// on tells whether a feature is on; one that was not told is not.
func (i Interface) on(feature string) bool { return i.Features[feature].On }
