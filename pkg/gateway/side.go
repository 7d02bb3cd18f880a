// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// side is the listening socket of a service beside the listeners: metrics, admin API, control
// socket. It outlives whoever serves on it, so that another supervisor may. A nil one is none.
type side struct {
	name    string // its address as configured
	address string
	file    *os.File
}

// Kinds of sides, as supervisors name them to each other.
const (
	sideTelemetry = "telemetry"
	sideControl   = "control"
	sideAdmin     = "admin"
)

func listenSide(address string) (*side, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	defer l.Close() // the side has a descriptor of its own
	return newSide(address, l)
}

func newSide(name string, l net.Listener) (*side, error) {
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	return &side{name: name, address: l.Addr().String(), file: f}, nil
}

// listen is a listener for one who serves; to close it leaves the side as it is.
func (d *side) listen() (net.Listener, error) {
	l, err := net.FileListener(d.file)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", d.name, err)
	}
	return l, nil
}

func (d *side) close() {
	if d != nil {
		_ = d.file.Close() // of a socket; nothing can be done
	}
}

// inheritSide makes one of what another supervisor had.
func inheritSide(name string, f *os.File) (*side, error) {
	d := &side{name: name, file: f}
	l, err := d.listen()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	d.address = l.Addr().String()
	return d, l.Close()
}
