// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"

	"github.com/safchain/ethtool"
)

// Ethtool is what a driver says of its interface.
type Ethtool struct {
	Driver   string
	Channels Channels
}

// Channels are a driver's queues as `ethtool -l` has them: those in use now, and
// with Most how many there can be. All zero where the driver has no such setting.
type Channels struct {
	Receive, Transmit, Combined             int
	MostReceive, MostTransmit, MostCombined int
}

// AskEthtool asks the driver of an interface in this network namespace (ioctl
// SIOCETHTOOL). That a driver has no channels to tell of is no error.
func AskEthtool(name string) (Ethtool, error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return Ethtool{}, fmt.Errorf("open ethtool socket: %w", err)
	}
	defer e.Close()
	driver, err := e.DriverName(name)
	if err != nil {
		return Ethtool{}, fmt.Errorf("ask driver of %s: %w", name, err)
	}
	out := Ethtool{Driver: driver}
	if c, err := e.GetChannels(name); err == nil {
		out.Channels = Channels{
			Receive: int(c.RxCount), Transmit: int(c.TxCount), Combined: int(c.CombinedCount),
			MostReceive: int(c.MaxRx), MostTransmit: int(c.MaxTx), MostCombined: int(c.MaxCombined),
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
