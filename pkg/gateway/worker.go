// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/proxy"
	"github.com/xgw-project/xgw/pkg/zone"
)

const (
	// drainTime is how long a worker that is told to stop waits for its exchanges.
	drainTime = 10 * time.Second
	// orphanTime is how long a worker serves on after its supervisor died, so that
	// a new one can take the address over without a gap.
	orphanTime = 10 * time.Second
)

// RunWorker is the whole life of a worker process: descriptors from the
// supervisor, configuration over the control socket, then serving. It returns
// when told to stop, or some time after the supervisor is gone.
func RunWorker(slot int, log *slog.Logger) error {
	// For ps and top: it was executed as /proc/self/exe. At most 15 bytes are kept.
	_ = os.WriteFile("/proc/self/comm", fmt.Appendf(nil, "xgw-worker-%d", slot), 0)
	// It holds keys: no core dump, and no other process of its user may look in.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("worker %d: set not dumpable: %w", slot, err)
	}
	f := os.NewFile(fdControl, "control")
	conn, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("worker %d: this command is for the supervisor, which hands it a control socket: %w", slot, err)
	}
	f.Close()
	c := &control{conn: conn}
	hello, err := c.receive()
	if err != nil {
		return fmt.Errorf("worker %d: read hello: %w", slot, err)
	}
	z, err := zone.OpenFile(os.NewFile(fdZone, "zone"))
	if err != nil {
		return fmt.Errorf("worker %d: %w", slot, err)
	}
	defer z.Close()
	w := proxy.New(proxy.Options{
		Slab: z.Worker(slot), Limits: z.LimitBuckets(), Worker: slot, Core: hello.Core, Log: log, TicketKeys: hello.TicketKeys,
	})
	go tendMemory()
	return serve(w, c, z.Worker(slot), log)
}

// serve applies what the supervisor sends and runs the accept loops.
func serve(w *proxy.Worker, c *control, slab *zone.Slab, log *slog.Logger) error {
	listeners, err := inheritListeners()
	if err != nil {
		return err
	}
	serving := false
	var ready *proxy.Prepared
	var readyFor uint64
	for {
		m, err := c.receive()
		if err != nil {
			return orphaned(w, err, log)
		}
		answer := message{Kind: kindPrepared}
		switch m.Kind {
		case kindShutdown:
			return shutdown(w)
		case kindServers:
			w.Know(m.Servers)
			continue
		case kindPrepare, kindApply:
			w.Know(m.Servers)
			ready, err = prepareMessage(w, m)
			if err != nil {
				answer = message{Kind: kindRefused, Error: err.Error()}
				break
			}
			readyFor = m.Snapshot.Generation
		case kindCommit:
			if ready == nil || m.Generation != readyFor {
				answer = message{Kind: kindRefused, Error: "it is not prepared"}
			}
		}
		answer.Generation = m.generation()
		if answer.Kind != kindRefused && m.Kind != kindPrepare {
			answer.Kind = kindApplied
			w.Commit(ready)
			ready = nil
			slab.Set(zone.GaugeGeneration, readyFor)
			if !serving {
				serving = true
				for _, l := range listeners {
					go acceptLoop(w, l, log)
				}
			}
		}
		if err := c.send(&answer); err != nil {
			return err
		}
	}
}

func acceptLoop(w *proxy.Worker, l net.Listener, log *slog.Logger) {
	if err := w.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
		// Without its listener a worker is of no use; the supervisor starts another.
		log.Error("accept loop ended", "address", l.Addr(), "error", err)
		os.Exit(1)
	}
}

func prepareMessage(w *proxy.Worker, m *message) (*proxy.Prepared, error) {
	certs := make([]tls.Certificate, 0, len(m.Certificates))
	for i, c := range m.Certificates {
		pair, err := tls.X509KeyPair(c.Chain, c.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
		certs = append(certs, pair)
	}
	return w.Prepare(m.Snapshot, certs)
}

// inheritListeners makes listeners of the sockets behind fdSockets.
func inheritListeners() ([]net.Listener, error) {
	var out []net.Listener
	for fd := fdSockets; ; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			break
		}
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || kind != 1 {
			break // the runtime's own descriptors follow
		}
		f := os.NewFile(uintptr(fd), "listener")
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("inherit listening socket: %w", err)
		}
		out = append(out, l)
	}
	if len(out) == 0 {
		return nil, errors.New("inherit listening socket: none was handed over")
	}
	return out, nil
}

func shutdown(w *proxy.Worker) error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	return w.Shutdown(ctx)
}

// orphaned serves on for a while, then finishes what is under way.
func orphaned(w *proxy.Worker, cause error, log *slog.Logger) error {
	if !errors.Is(cause, io.EOF) {
		log.Warn("control socket failed", "error", cause)
	}
	log.Warn("supervisor is gone: serving on", "for", orphanTime)
	time.Sleep(orphanTime)
	return shutdown(w)
}
