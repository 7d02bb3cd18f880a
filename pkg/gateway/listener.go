// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/datapath"
)

// listener is one address on which each worker has a socket of its own. The
// supervisor holds every socket, so that a worker's queue outlives the worker.
type listener struct {
	name     string // its address as configured
	address  string
	sockets  []*os.File // by worker, who get copies of them
	fds      []int      // their descriptors, read once: os.File.Fd may switch to blocking mode
	steering *datapath.Steering

	shared atomic.Bool // another supervisor steers, or may: see successor

	attach    sync.Once
	attachErr error
}

// listen opens a socket for each worker on the address. cpus[i] is the CPU of
// worker i. Without steer (no right to load BPF) the kernel's hash chooses. join
// says that others may listen there already: workers of a supervisor that is gone.
func listen(address string, cpus []int, steer, join bool) (*listener, error) {
	l := &listener{name: address, address: address}
	if !join {
		if err := refuseShared(address); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
	}
	if err := l.open(cpus, steer); err != nil {
		l.close()
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

func (l *listener) open(cpus []int, steer bool) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var option error
		err := c.Control(func(fd uintptr) {
			option = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		return errors.Join(err, option)
	}}
	// The kernel's socket arrays take plain TCP sockets only.
	lc.SetMultipathTCP(false)
	address := l.address
	for range cpus {
		ln, err := lc.Listen(context.Background(), "tcp", address)
		if err != nil {
			return bindError(err)
		}
		address = ln.Addr().String() // the first one settles port 0
		f, err := ln.(*net.TCPListener).File()
		ln.Close() // f is a descriptor of its own
		if err != nil {
			return err
		}
		l.sockets = append(l.sockets, f)
		l.fds = append(l.fds, int(f.Fd()))
	}
	l.address = address
	if !steer {
		return nil
	}
	s, err := datapath.NewSteering(cpus)
	if err != nil {
		return err
	}
	l.steering = s
	return nil
}

// tune sets options that connections take over from the socket they come by.
func (l *listener) tune(t *config.TCP) error {
	for _, fd := range l.fds {
		for _, o := range []struct {
			name   string
			number int
			value  int
		}{
			{"TCP_USER_TIMEOUT", unix.TCP_USER_TIMEOUT, int(t.UserTimeout / time.Millisecond)},
			{"TCP_FASTOPEN", unix.TCP_FASTOPEN, t.FastOpen},
		} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, o.number, o.value); err != nil {
				return fmt.Errorf("set %s of %s: %w", o.name, l.address, err)
			}
		}
	}
	return nil
}

// refuseShared fails when anybody listens on the address. SO_REUSEPORT alone would
// let two gateways of one user share it, and the later one take every connection.
func refuseShared(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return bindError(err)
	}
	return l.Close()
}

func bindError(err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: `ss -ltnp` shows who has it", err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: ports below 1024 need root or CAP_NET_BIND_SERVICE", err)
	}
	return err
}

// admit lets new connections reach the worker. Steering takes over from whatever
// chose before (the kernel, or a supervisor that is gone, whose workers may still
// serve) when there is a first worker to choose: nobody is refused in between.
func (l *listener) admit(worker int) error {
	if l.steering == nil || l.shared.Load() {
		return nil
	}
	if err := l.steering.SetWorker(worker, l.fds[worker]); err != nil {
		return err
	}
	l.attach.Do(func() { l.attachErr = l.steering.Attach(l.fds[0]) })
	return l.attachErr
}

// bar keeps new connections from the worker; those queued stay in its socket.
func (l *listener) bar(worker int) error {
	if l.steering == nil || l.shared.Load() {
		return nil
	}
	return l.steering.ClearWorker(worker)
}

// counts of how connections were placed; false where the kernel's hash does it.
func (l *listener) counts() (datapath.SteerCounts, bool) {
	if l.steering == nil {
		return datapath.SteerCounts{}, false
	}
	c, err := l.steering.Counts()
	return c, err == nil
}

func (l *listener) close() {
	if l.steering != nil {
		l.steering.Close()
	}
	for _, f := range l.sockets {
		f.Close()
	}
}
