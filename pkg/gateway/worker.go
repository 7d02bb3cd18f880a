// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/logging"
	"github.com/xgw-project/xgw/pkg/proxy"
	"github.com/xgw-project/xgw/pkg/sandbox"
	"github.com/xgw-project/xgw/pkg/script"
	"github.com/xgw-project/xgw/pkg/zone"
)

const (
	// orphanTime is how long a worker serves on after its supervisor died, so that
	// a new one can take the address over without a gap.
	orphanTime = 20 * time.Second
)

// RunWorker is the whole life of a worker process, descriptors from the
// supervisor, configuration over the control socket, then serving. It returns
// when told to stop, or some time after the supervisor is gone.
func RunWorker(slot int, stderr io.Writer) error {
	// For ps and top: it was executed as /proc/self/exe. At most 15 bytes are kept.
	_ = os.WriteFile("/proc/self/comm", fmt.Appendf(nil, "xgw-worker-%d", slot), 0)
	// It holds keys: no core dump, and no other process of its user may look in.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("worker %d: set not dumpable: %w", slot, err)
	}
	log, errorLog, lines, err := workerLog(slot, stderr)
	if err != nil {
		return err
	}
	defer lines.Close()
	f := os.NewFile(fdControl, "control")
	conn, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("worker %d: this command is for the supervisor, which hands it a control socket: %w", slot, err)
	}
	f.Close()
	c := &control{conn: conn.(*net.UnixConn)}
	hello, err := c.receive()
	if err != nil {
		return fmt.Errorf("worker %d: read hello: %w", slot, err)
	}
	setLogLevel(errorLog, hello.LogLevel)
	z, err := zone.OpenFile(os.NewFile(fdZone, "zone"))
	if err != nil {
		return fmt.Errorf("worker %d: %w", slot, err)
	}
	defer z.Close()
	slab := z.Worker(hello.Slot)
	lines.Dropped = func() { slab.Add(zone.ErrorLinesDropped, 1) }
	defer lines.Close() // before the zone, where it counts
	// Read once for a process, from wherever the distribution has them; the files are out of reach then.
	_, _ = x509.SystemCertPool()    // an upstream's verification says what is wrong with them
	missing, err := sandbox.Enter() // before it hears of any stranger
	if err != nil {
		return fmt.Errorf("worker %d: confine: %w", slot, err)
	}
	for _, what := range missing {
		log.Warn("worker is less confined than it could be", "missing", what)
	}
	known := keys.NewCache(z.Fence(), z.Worker(hello.Slot))
	go known.Run(func(ids []string) error { return c.send(&message{Kind: kindAskKeys, IDs: ids}) }, nil)
	w := proxy.New(proxy.Options{
		Slab: z.Worker(hello.Slot), Limits: z.LimitBuckets(), Shares: z.Shares(), Keys: known, Holds: z.Holds(hello.Slot), Functions: keyFunctions, Worker: slot, Core: hello.Core, Log: log, TicketKeys: hello.TicketKeys, Rouse: rouse,
	})
	ctx, stop := context.WithCancel(context.Background())
	tended := make(chan struct{})
	defer func() { stop(); <-tended }() // the zone is closed behind it
	go func() {
		defer close(tended)
		tendMemory(ctx, func(d time.Duration) { z.Worker(hello.Slot).Add(zone.CollectorTime, uint64(d)) })
	}()
	return serve(w, c, z.Worker(hello.Slot), log, errorLog)
}

// setLogLevel is what the supervisor said, which knows the words.
func setLogLevel(h *logging.Handler, word string) {
	if level, err := logging.ParseLevel(word); err == nil {
		h.SetLevel(level)
	}
}

// rouse tells the supervisor that there are signals in the zone. The eventfd never blocks.
func rouse() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(fdSignals, one[:]) // full: it knows
}

// keyFunctions makes those of a script, in this process.
func keyFunctions(s *config.KeyScript) (proxy.KeyFunctions, error) {
	k, err := script.NewKeys(s.Name, s.Source, s.Hash)
	if err != nil {
		return nil, err
	}
	return scriptKeys{k}, nil
}

// scriptKeys are the key functions of a script as the L7 plane calls them.
type scriptKeys struct{ *script.Keys }

func (k scriptKeys) Key(limit string, r proxy.KeyRequest, dst []byte) (key []byte, overBudget bool, err error) {
	key, err = k.Keys.Key(limit, r, dst)
	return key, errors.Is(err, script.ErrBudget), err
}

// serve applies what the supervisor sends and runs the accept loops.
func serve(w *proxy.Worker, c *control, slab *zone.Slab, log *slog.Logger, errorLog *logging.Handler) error {
	at := sockets{worker: w, log: log, open: map[string]net.Listener{}}
	adopted := map[int][]net.Listener{} // by the worker that is away
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
			return shutdown(w, m.Retire)
		case kindServers:
			w.Know(m.Servers)
			continue
		case kindKeys:
			w.AnswerKeys(m.Keys)
			continue
		case kindLogLevel:
			setLogLevel(errorLog, m.LogLevel)
			continue
		case kindTickets:
			w.SetTicketKeys(m.TicketKeys)
			continue
		case kindAdopt:
			adopted[m.Worker] = append(adopted[m.Worker], adoptSockets(w, m, log)...)
			continue
		case kindRelease:
			for _, l := range adopted[m.Worker] {
				l.Close() // the socket lives on, with the supervisor and its own worker
			}
			delete(adopted, m.Worker)
			continue
		case kindPrepare, kindApply:
			w.Know(m.Servers)
			ready, err = prepareMessage(w, m)
			if err == nil {
				err = at.prepare(m)
			}
			m.closeFiles()
			if err != nil {
				answer = message{Kind: kindRefused, Error: err.Error()}
				break
			}
			readyFor = m.Snapshot.Generation
		case kindTried:
			if err := c.send(&message{Kind: kindTried, Generation: m.Generation, Tried: w.Tried()}); err != nil {
				return err
			}
			continue
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
			at.commit()
		}
		if err := c.send(&answer); err != nil {
			return err
		}
	}
}

// adoptSockets accepts from the sockets of another worker.
func adoptSockets(w *proxy.Worker, m *message, log *slog.Logger) (listeners []net.Listener) {
	defer m.closeFiles()
	for i, f := range m.files {
		l, err := net.FileListener(f)
		if err != nil {
			log.Error("socket of another worker is not adopted", "error", err)
			continue
		}
		listeners = append(listeners, l)
		go acceptLoop(w, l, m.Sockets[i], log)
	}
	return listeners
}

func acceptLoop(w *proxy.Worker, l net.Listener, name string, log *slog.Logger) {
	if err := w.Serve(l, name); err != nil && !errors.Is(err, net.ErrClosed) {
		// Without its listener a worker is of no use; the supervisor starts another.
		log.Error("accept loop ended", "address", l.Addr(), "error", err)
		if h, ok := log.Handler().(*logging.Handler); ok {
			h.Flush()
		}
		os.Exit(1)
	}
}

func prepareMessage(w *proxy.Worker, m *message) (*proxy.Prepared, error) {
	out := make([]proxy.Secrets, len(m.Secrets))
	for i := range m.Secrets {
		for n, c := range m.Secrets[i].Certificates {
			pair, err := tls.X509KeyPair(c.Chain, c.Key)
			if err != nil {
				return nil, fmt.Errorf("listener %d: certificate %d: %w", i, n, err)
			}
			pair.OCSPStaple = c.OCSP
			out[i].Certificates = append(out[i].Certificates, pair)
		}
		if len(m.Secrets[i].ClientCA) > 0 {
			out[i].ClientCAs = x509.NewCertPool()
			out[i].ClientCAs.AppendCertsFromPEM(m.Secrets[i].ClientCA)
		}
	}
	return w.Prepare(m.Snapshot, out)
}

// sockets are those that the worker accepts connections from, by the names of their
// listeners, and those of the generation that it has prepared.
type sockets struct {
	worker *proxy.Worker
	log    *slog.Logger
	open   map[string]net.Listener
	next   map[string]net.Listener // nil: not open yet
	names  []string                // of next, all of them
}

// prepare makes listeners of the sockets that are new to the worker.
func (s *sockets) prepare(m *message) error {
	s.forget()
	s.next, s.names = map[string]net.Listener{}, m.Sockets
	for i, name := range m.Sockets {
		if s.open[name] != nil {
			continue
		}
		l, err := net.FileListener(m.files[i])
		if err != nil {
			return fmt.Errorf("take over listening socket: %w", err)
		}
		s.next[name] = l
	}
	return nil
}

// forget closes what was prepared and did not come about.
func (s *sockets) forget() {
	for _, l := range s.next {
		l.Close()
	}
	s.next = nil
}

// commit accepts from the new ones and no longer from those that are gone.
func (s *sockets) commit() {
	for name, l := range s.open {
		if !slices.Contains(s.names, name) {
			l.Close()
			delete(s.open, name)
		}
	}
	for name, l := range s.next {
		s.open[name] = l
		go acceptLoop(s.worker, l, name, s.log)
	}
	s.next = nil
}

func shutdown(w *proxy.Worker, retire bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), w.DrainTime())
	defer cancel()
	if retire {
		return w.Retire(ctx)
	}
	return w.Shutdown(ctx)
}

// orphaned serves on for a while, then finishes what is under way.
func orphaned(w *proxy.Worker, cause error, log *slog.Logger) error {
	if !errors.Is(cause, io.EOF) {
		log.Warn("control socket failed", "error", cause)
	}
	log.Warn("supervisor is gone: serving on", "for", orphanTime)
	time.Sleep(orphanTime)
	return shutdown(w, true) // another supervisor may have the same sockets
}
