// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"

	"github.com/safchain/ethtool"
)

// Ethtool is what a driver says of its interface.
type Ethtool struct {
	Driver, Version, Bus string
	Channels             Channels
	Rings                Rings
	Features             map[string]Feature
}

// Channels are a driver's queues as `ethtool -l` has them: those in use now, and
// with Most how many there can be. All zero where the driver has no such setting.
type Channels struct {
	Receive      int `json:"receive,omitempty"`
	Transmit     int `json:"transmit,omitempty"`
	Combined     int `json:"combined,omitempty"`
	MostReceive  int `json:"most_receive,omitempty"`
	MostTransmit int `json:"most_transmit,omitempty"`
	MostCombined int `json:"most_combined,omitempty"`
}

// Rings are the sizes of a driver's rings as `ethtool -g` has them, in descriptors.
type Rings struct {
	Receive      int `json:"receive,omitempty"`
	Transmit     int `json:"transmit,omitempty"`
	MostReceive  int `json:"most_receive,omitempty"`
	MostTransmit int `json:"most_transmit,omitempty"`
}

// Feature is a switch of the interface, as `ethtool -k` has it.
type Feature struct {
	On    bool `json:"on"`
	Fixed bool `json:"fixed,omitempty"` // nobody can change it
}

// Features that bear on XDP, by the names ethtool prints.
const (
	featureLRO    = "large-receive-offload"
	featureGROHW  = "rx-gro-hw"
	featureGRO    = "generic-receive-offload"
	featureRxVLAN = "rx-vlan-offload"
	featureHWTC   = "hw-tc-offload"
)

// kernelNames are the names the kernel has for them.
var kernelNames = map[string]string{
	featureLRO: "rx-lro", featureGROHW: "rx-gro-hw", featureGRO: "rx-gro", featureRxVLAN: "rx-vlan-hw-parse", featureHWTC: "hw-tc-offload",
}

// AskEthtool asks the driver of an interface in this network namespace (ioctl
// SIOCETHTOOL). What it does not tell, or not to us, is left empty.
func AskEthtool(name string) (Ethtool, error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return Ethtool{}, fmt.Errorf("open ethtool socket: %w", err)
	}
	defer e.Close()
	var out Ethtool
	if d, err := e.DriverInfo(name); err == nil {
		out.Driver, out.Version, out.Bus = d.Driver, d.Version, d.BusInfo
	}
	if c, err := e.GetChannels(name); err == nil {
		out.Channels = Channels{
			Receive: int(c.RxCount), Transmit: int(c.TxCount), Combined: int(c.CombinedCount),
			MostReceive: int(c.MaxRx), MostTransmit: int(c.MaxTx), MostCombined: int(c.MaxCombined),
		}
	}
	if r, err := e.GetRing(name); err == nil {
		out.Rings = Rings{
			Receive: int(r.RxPending), Transmit: int(r.TxPending), MostReceive: int(r.RxMaxPending), MostTransmit: int(r.TxMaxPending),
		}
	}
	if all, err := e.FeaturesWithState(name); err == nil {
		out.Features = map[string]Feature{}
		for ours, theirs := range kernelNames {
			if f, ok := all[theirs]; ok {
				out.Features[ours] = Feature{On: f.Active, Fixed: !f.Available || f.NeverChanged}
			}
		}
	}
	return out, nil
}

// Driver is the name of an interface's driver; "" when it does not say.
func Driver(name string) string {
	e, err := AskEthtool(name)
	if err != nil {
		return ""
	}
	return e.Driver
}
