// SPDX-License-Identifier: Apache-2.0

// Package servers watches the servers of upstreams for all workers: it resolves their
// names and asks for their health. It runs in the supervisor, once: each worker doing so
// would multiply the checks by the number of cores, and the workers would disagree on who
// is there. Workers get lists of addresses, and which of them are down, over their control
// sockets; no request waits for a resolver or a check.
//
// What a resolver does not answer stays as it was known. A server is up until its first
// check says otherwise; from then on it takes some in a row to change that.
package servers

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/xgw-project/xgw/pkg/policy"
)

// Bounds of what runs at once, and of how long a new configuration waits for a resolver.
const (
	maxServers   = 64 // of an upstream
	maxChecks    = 256
	resolveFirst = 2 * time.Second
	resolveTime  = 5 * time.Second
	resolveAgain = time.Second // after a failure
)

// Watcher watches the servers of any number of upstreams.
type Watcher struct {
	log      *slog.Logger
	resolver *net.Resolver
	slots    chan struct{} // of checks
	changed  chan struct{}
	// Turned, when not nil, is called when a server is up by its checks, or down for a cause that
	// is not empty. It must not wait, nor call the watcher. It is set before there are watches.
	Turned func(upstream, address, cause string)

	mu      sync.Mutex
	last    uint64 // number of a watch
	watches map[uint64]*watch
	inForce []uint64 // those of the configuration in force
	closed  bool
	running sync.WaitGroup
}

// New makes a watcher of nothing.
func New(log *slog.Logger) *Watcher {
	return &Watcher{
		log: log, resolver: net.DefaultResolver, slots: make(chan struct{}, maxChecks), changed: make(chan struct{}, 1),
		watches: map[uint64]*watch{},
	}
}

// Changed gets a value when lists have changed since the last one was taken. It is closed
// by Close.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

func (w *Watcher) tell() {
	select {
	case w.changed <- struct{}{}:
	default: // whoever listens has not yet looked at the change before
	}
}

// Adopt fills in the watch of each upstream: one that goes on, where nothing of it changed
// that matters here, or a new one, which knows the addresses of its names by now unless
// the resolver takes too long. Its error names what cannot be watched. Watches go on until
// Keep or Close.
func (w *Watcher) Adopt(upstreams []policy.Upstream) error {
	var fresh []*watch
	w.mu.Lock()
	byName := map[string][]*watch{}
	for _, x := range w.watches {
		byName[x.upstream.Name] = append(byName[x.upstream.Name], x)
	}
	for i := range upstreams {
		u := &upstreams[i]
		same := slices.IndexFunc(byName[u.Name], func(x *watch) bool { return x.watches(u) })
		if same >= 0 {
			u.Watch = byName[u.Name][same].id
			continue
		}
		x, err := w.newWatch(u, byName[u.Name])
		if err != nil {
			w.mu.Unlock()
			return err
		}
		u.Watch = x.id
		w.watches[x.id] = x
		fresh = append(fresh, x)
	}
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), resolveFirst)
	defer cancel()
	var all sync.WaitGroup
	for _, x := range fresh {
		if len(x.names) == 0 {
			x.settle()
			continue
		}
		all.Go(func() { x.resolve(ctx) })
	}
	all.Wait()
	for _, x := range fresh {
		if len(x.names) > 0 {
			w.running.Go(x.keepResolved)
		}
	}
	return nil
}

// Keep ends all watches but those of the upstreams, which are in force from now on.
func (w *Watcher) Keep(upstreams []policy.Upstream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inForce = w.inForce[:0]
	kept := map[uint64]bool{}
	for i := range upstreams {
		w.inForce = append(w.inForce, upstreams[i].Watch)
		kept[upstreams[i].Watch] = true
	}
	for id, x := range w.watches {
		if !kept[id] {
			x.end()
			delete(w.watches, id)
		}
	}
}

// Close ends all watches.
func (w *Watcher) Close() {
	w.Keep(nil)
	w.running.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.closed = true
		close(w.changed)
	}
}

// Lists are those of all watches, for the workers.
func (w *Watcher) Lists() []policy.Servers {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]policy.Servers, 0, len(w.watches))
	for _, x := range w.watches {
		out = append(out, x.list())
	}
	return out
}

// Status is what is known of one server of an upstream in force.
type Status struct {
	Upstream      string
	Address, Host string // Host "": the address stands in the configuration
	Weight        int
	Drained       bool // by hand
	Checked       bool // else it is up as far as anybody knows
	Up            bool
	Since         time.Time // when it came to be up or down
	Cause         string    // of the last check that failed
	Good, Bad     uint64    // checks
}

// Status lists all servers of the upstreams in force, in the order of the configuration.
func (w *Watcher) Status() []Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Status
	for _, id := range w.inForce {
		if x := w.watches[id]; x != nil {
			out = x.status(out)
		}
	}
	return out
}

// newWatch makes one; what olds of the same name know of addresses holds on. The lock is
// held.
func (w *Watcher) newWatch(u *policy.Upstream, olds []*watch) (*watch, error) {
	w.last++
	x := &watch{id: w.last, watcher: w, upstream: *u, resolved: map[string][]netip.Addr{}, inherited: map[string]bool{}, hands: map[string]Hand{}}
	x.upstream.Watch = w.last
	for _, s := range u.Servers {
		host, _, err := net.SplitHostPort(s.Address)
		if err != nil {
			return nil, err
		}
		if _, err := netip.ParseAddr(host); err != nil && !slices.Contains(x.names, host) {
			x.names = append(x.names, host)
		}
	}
	for _, old := range olds {
		old.bequeath(x)
	}
	if u.Health != nil {
		var err error
		if x.checker, err = newChecker(u); err != nil {
			return nil, err
		}
	}
	x.ctx, x.end = context.WithCancel(context.Background())
	return x, nil
}

// watches tells whether the watch is just what the upstream needs.
func (x *watch) watches(u *policy.Upstream) bool {
	o := &x.upstream
	return o.Resolve == u.Resolve && o.Protocol == u.Protocol && reflect.DeepEqual(o.Servers, u.Servers) && reflect.DeepEqual(o.Health, u.Health) && reflect.DeepEqual(o.TLS, u.TLS)
}

// jitter is a time up to d, so that what was begun at once does not stay so.
func jitter(d time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(d) + 1)) }
