// SPDX-License-Identifier: Apache-2.0

// Package proxy is the L7 plane: what a worker does with its connections.
//
// A goroutine serves each HTTP/1.1 connection and each HTTP/2 stream, from the
// request's head to the last byte of the reply: it takes an upstream connection
// out of a pool, writes the request in one call, and passes the reply on as it
// comes. In the steady state an exchange allocates nothing of its own, unless its
// request's body is sent on as it comes (chunked, or over 16 KiB).
//
// While exchanges run no deadline is set on a socket; a sweeper looks over all
// connections ten times a second and ends what is overdue, which is cheaper and says
// which phase it was.
//
// Trailers go on both ways, less what had to come before the body, and interim replies to
// clients. Not passed on: upgrades but to WebSockets. Request fields with '_'
// in their name are left out, and so is what only a gateway may say of a client:
// Forwarded, X-Forwarded-*, X-Real-IP, X-Request-Id; a trusted proxy's word is read
// before (client_address.go). A client that closes its sending side while it waits for a
// reply is taken to be gone.
package proxy

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xgw-project/xgw/pkg/keys"
	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http2"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Options are what a worker is, for its whole life.
type Options struct {
	Slab   *zone.Slab
	Limits *zone.LimitBuckets
	Shares *zone.Shares // of limits over several gateways
	Holds  *zone.Holds
	Keys   *keys.Cache // nil: nobody answers for API keys
	// Functions runs a script with key functions, for each generation that has one.
	Functions    func(*policy.KeyScript) (KeyFunctions, error)
	Worker, Core int // Core -1: not pinned
	Log          *slog.Logger
	// TicketKeys encrypt session tickets, the first one new ones. All workers have the same.
	TicketKeys [][32]byte
	// Rouse, when not nil, tells the supervisor that there is a signal in the zone. It must
	// not wait.
	Rouse func()

	window time.Duration // see rateWindow; 0 is that
}

// Worker serves connections by the snapshot that was applied last.
type Worker struct {
	slab         *zone.Slab
	limits       *zone.LimitBuckets
	shares       *zone.Shares
	holds        *zone.Holds
	functions    func(*policy.KeyScript) (KeyFunctions, error)
	streaks      streaks
	rouse        func()
	keys         *keys.Cache
	id, core     int
	log          *slog.Logger
	ticketKeys   [][32]byte // of who calls Commit
	handshakes   handshakeBudget
	current      atomic.Pointer[snapshot]
	base         time.Time
	boot         int64        // base by CLOCK_MONOTONIC
	delayed      atomic.Int64 // exchanges that wait for their turn under a limit
	clock        atomic.Int64 // ns since base, renewed by the sweeper
	filters      []filter
	idPrefix     uint64 // random; half of each request id
	idCounter    atomic.Uint64
	traceCounter atomic.Uint64 // requests whose client decided nothing about a trace
	inputs       bufferPool
	buffers      bufferPool
	outputs      bufferPool
	records      bufferPool
	exchanges    sync.Pool
	http2        *http2.Pool
	lastFullSaid atomic.Int64
	// Of what clients did to their connections: when it was last told, and how often not since.
	lastMisuseSaid atomic.Int64
	lastKeySaid    atomic.Int64 // when a key function's failure was last told
	clientResets   complaint
	misuseUnsaid   atomic.Int64
	rateWindow     time.Duration
	swept          int64 // the sweeper's last look, by clock
	open           atomic.Int64
	mirrors        atomic.Int64 // copies of requests under way
	overload       overload

	dialling sync.Mutex // see dialTurn

	mu         sync.Mutex
	conns      map[*conn]struct{}
	upConns    map[*upConn]struct{}
	shared     map[*sharedConn]struct{}
	sweeping   []*sharedConn             // the sweeper's own
	mirrored   map[*nobody]*upConn       // what copies of requests have in use
	known      map[uint64]policy.Servers // by watch
	listeners  map[net.Listener]struct{}
	draining   atomic.Bool
	retiring   atomic.Bool
	leaving    chan struct{} // closed when draining begins
	stop       chan struct{}
	background sync.WaitGroup // the sweeper, and who watches for overload: they count in the zone
	serving    sync.WaitGroup // one for each open client connection
}

// New makes a worker, which refuses connections until the first Commit.
func New(o Options) *Worker {
	w := &Worker{
		slab: o.Slab, limits: o.Limits, shares: o.Shares, keys: o.Keys, holds: o.Holds, functions: o.Functions, id: o.Worker, core: o.Core, log: o.Log, ticketKeys: o.TicketKeys,
		idPrefix: rand.Uint64(), http2: http2.NewPool(), filters: filterList(),
		conns: map[*conn]struct{}{}, upConns: map[*upConn]struct{}{}, shared: map[*sharedConn]struct{}{}, mirrored: map[*nobody]*upConn{}, known: map[uint64]policy.Servers{}, listeners: map[net.Listener]struct{}{},
		inputs: bufferPool{size: inputSize}, buffers: bufferPool{size: bufferSize}, outputs: bufferPool{size: outputSize}, records: bufferPool{size: recordsSize},
		rateWindow: cmp.Or(o.window, rateWindow), base: time.Now(),
		leaving: make(chan struct{}), stop: make(chan struct{}),
	}
	w.boot = monotonicBoot(w.base)
	w.streaks.seed = rand.Uint64()
	w.rouse = o.Rouse
	if w.rouse == nil {
		w.rouse = func() {}
	}
	w.exchanges.New = func() any { return new(Exchange) }
	w.lastFullSaid.Store(-int64(time.Second))
	w.lastMisuseSaid.Store(-int64(time.Second))
	w.lastKeySaid.Store(-int64(time.Second))
	if err := w.newOverload(); err != nil {
		w.log.Error("no overload will be noticed", "error", err)
	} else {
		w.background.Go(w.overload.watch)
		w.background.Go(w.overload.listen)
		w.background.Go(w.overload.turns.hand)
	}
	w.background.Go(w.sweep)
	return w
}

// Prepared is a snapshot that can be made the current one, and changes nothing until
// then. It is of no more use when another was committed in between.
type Prepared struct{ next *snapshot }

// Prepare compiles the snapshot; secrets are those of its listeners, in their order.
func (w *Worker) Prepare(s *policy.Snapshot, secrets []Secrets) (*Prepared, error) {
	next, err := compile(s, w.current.Load())
	if err != nil {
		return nil, err
	}
	if err := w.addKeys(next); err != nil {
		return nil, err
	}
	if next.listeners, err = w.newListeners(s, secrets); err != nil {
		return nil, err
	}
	w.tell(next)
	return &Prepared{next}, nil
}

// Commit makes the prepared snapshot the one that new exchanges use; those under way end
// with theirs. It cannot fail.
func (w *Worker) Commit(p *Prepared) {
	p.next.setTicketKeys(w.ticketKeys) // there may be newer ones by now
	w.tell(p.next)                     // what came since it was prepared
	old := w.current.Swap(p.next)
	if old != nil {
		old.retire(p.next)
	}
	w.forget(p.next)
	if p.next.policy.OverloadDelay == 0 {
		w.overload.end() // at once, not at the end of a window
	}
}

const (
	firstAcceptDelay = 5 * time.Millisecond
	lastAcceptDelay  = time.Second
)

// Serve accepts connections of the listener of that name until it is closed, which
// Shutdown does. No other error of accept ends it: running out of descriptors or memory
// passes.
func (w *Worker) Serve(l net.Listener, name string) error {
	w.mu.Lock()
	w.listeners[l] = struct{}{}
	late := w.draining.Load() // Shutdown may have looked already
	if !late {
		w.serving.Add(1) // what it accepts at the end is served, too
		defer w.serving.Done()
	}
	w.mu.Unlock()
	if late {
		return l.Close()
	}
	delay := firstAcceptDelay
	for {
		c, err := l.Accept()
		if err == nil {
			delay = firstAcceptDelay
			w.accept(c, name)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			w.mu.Lock()
			delete(w.listeners, l)
			w.mu.Unlock()
			return nil
		}
		w.log.Warn("accept failed", "address", l.Addr(), "error", err, "retry_in", delay)
		select {
		case <-w.stop:
			return nil
		case <-time.After(delay):
		}
		delay = min(2*delay, lastAcceptDelay)
	}
}

// accept starts a connection's goroutine, or closes it at the cap.
func (w *Worker) accept(nc net.Conn, name string) {
	snap := w.current.Load()
	var l *listener
	if snap != nil {
		l = snap.listeners[name]
	}
	retiring := w.retiring.Load()
	if l == nil || w.draining.Load() && !retiring {
		nc.Close()
		return
	}
	if w.open.Load() >= int64(snap.policy.Connections) {
		w.slab.Add(zone.ConnectionsRejected, 1)
		nc.Close()
		w.sayFull("new ones are closed")
		return
	}
	counted, ok := w.countAccepted(snap, nc)
	if !ok {
		return
	}
	w.open.Add(1)
	w.slab.Add(zone.ConnectionsAccepted, 1)
	w.slab.Move(zone.GaugeConnections, 1)
	c := w.newConn(nc, l)
	c.counted = counted
	if w.retiring.Load() { // either Retire finds it among the connections, or this sees that it was called
		c.closing.Store(true)
	}
	w.serving.Add(1)
	w.http2.Run(c.start)
}

// DrainTime is how long Shutdown may take by the configuration.
func (w *Worker) DrainTime() time.Duration {
	if s := w.current.Load(); s != nil {
		return s.policy.Timeouts.Drain
	}
	return 0
}

// Shutdown stops accepting, lets exchanges under way finish (HTTP/1.1 replies say
// Connection: close, HTTP/2 clients get GOAWAY), and closes what is left when ctx
// ends. The worker cannot be used again.
func (w *Worker) Shutdown(ctx context.Context) error { return w.shutdown(ctx, (*conn).drain) }

// Retire is Shutdown where another worker has taken over and there is time: an HTTP/1.1
// connection that is idle is closed with the reply to its next request, or when ctx ends.
// Nobody's request meets a closed connection.
func (w *Worker) Retire(ctx context.Context) error {
	w.retiring.Store(true)
	return w.shutdown(ctx, (*conn).retire)
}

func (w *Worker) shutdown(ctx context.Context, drain func(*conn)) error {
	if w.draining.Swap(true) {
		return errors.New("shut down worker: already under way")
	}
	close(w.leaving)
	w.mu.Lock()
	for l := range w.listeners {
		l.Close()
	}
	for c := range w.conns {
		drain(c)
	}
	w.endMirrors()
	w.mu.Unlock()
	done := make(chan struct{})
	go func() { w.serving.Wait(); close(done) }()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		w.mu.Lock()
		for c := range w.conns {
			c.tcp.Close()
		}
		for u := range w.upConns {
			u.kill(killCancelled) // all of them: whoever owns one is to end
		}
		w.mu.Unlock()
		w.endShared(false)
		<-done
	}
	close(w.stop)
	w.background.Wait() // the zone may be gone after this
	w.endShared(true)
	w.http2.Close()
	w.mu.Lock()
	for u := range w.upConns {
		u.Conn.Close()
	}
	w.mu.Unlock()
	return err
}

// recovered ends a panic at a goroutine's root: it costs its own exchange.
func (w *Worker) recovered(v any) {
	w.slab.Add(zone.Panics, 1)
	w.log.Error("panic in an exchange", "value", v, "stack", stack())
}
