// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ErrNoInterface: the network namespace has no interface of that name.
var ErrNoInterface = errors.New("no such interface")

// Interface is what the machine tells of a network interface.
type Interface struct {
	Name           string
	Driver         string // "" for one that has none, as lo
	MTU            int    // bytes
	ReceiveQueues  int    // that the kernel has; a driver may use fewer, see Channels
	TransmitQueues int
	Channels       Channels
}

// ReadInterface reads sysfs, which shows the network namespace it was mounted in,
// and asks the driver. root is / and ask is AskEthtool on a real machine. What
// the driver does not tell is left empty. ErrNoInterface when there is none.
func ReadInterface(root, name string, ask func(name string) (Ethtool, error)) (Interface, error) {
	i := Interface{Name: name}
	dir := filepath.Join(root, "sys/class/net", name)
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return i, fmt.Errorf("read interface %q: %w: `ip link` lists them", name, ErrNoInterface)
	}
	mtu, err := readNumber(filepath.Join(dir, "mtu"))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return i, fmt.Errorf("read interface %s: %w: `ip link` lists them", name, ErrNoInterface)
	case err != nil:
		return i, fmt.Errorf("read interface %s: %w", name, err)
	}
	i.MTU = mtu
	queues, err := os.ReadDir(filepath.Join(dir, "queues"))
	if err != nil {
		return i, fmt.Errorf("read interface %s: %w", name, err)
	}
	for _, q := range queues {
		switch {
		case strings.HasPrefix(q.Name(), "rx-"):
			i.ReceiveQueues++
		case strings.HasPrefix(q.Name(), "tx-"):
			i.TransmitQueues++
		}
	}
	if e, err := ask(name); err == nil {
		i.Driver, i.Channels = e.Driver, e.Channels
	}
	if i.Driver == "" { // virtual devices have a driver's name only in ethtool, others in both
		if link, err := os.Readlink(filepath.Join(dir, "device/driver")); err == nil {
			i.Driver = filepath.Base(link)
		}
	}
	return i, nil
}
