// SPDX-License-Identifier: Apache-2.0

package servers

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/xgw-project/xgw/pkg/policy"
)

// Hand is what somebody decided on a server, in place of the configuration. It holds as long as
// the gateway runs, through upgrades, and has an upstream of that name, whatever else is reloaded; the zero value
// gives the server back to the configuration.
type Hand struct {
	Drained bool // no new requests; those under way end
	Weight  int  // 0: the configuration's
}

// Errors of Set.
var (
	ErrNoServer   = errors.New("there is no such server")
	ErrLastServer = errors.New("no other server of the upstream would get requests")
)

// Set decides on a server of an upstream in force, by its address.
func (w *Watcher) Set(upstream, address string, h Hand) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	known, found := []string{}, false
	for _, id := range w.inForce {
		x := w.watches[id]
		if x == nil || x.upstream.Name != upstream {
			continue
		}
		addresses, others := x.rest(address)
		known = append(known, addresses...)
		switch {
		case !slices.Contains(addresses, address):
		case h.Drained && others == 0:
			return fmt.Errorf("%w: %s: enable another one before", ErrLastServer, upstream)
		default:
			found = true
		}
	}
	switch {
	case len(known) == 0:
		return fmt.Errorf("%w: upstream %s is unknown, or has no servers by now", ErrNoServer, upstream)
	case !found:
		return fmt.Errorf("%w: upstream %s has %s, and not %s", ErrNoServer, upstream, strings.Join(known, ", "), address)
	}
	for _, x := range w.watches { // also one of a configuration that is only prepared
		if x.upstream.Name == upstream {
			x.set(address, h)
		}
	}
	w.log.Info("a server was set by hand", "upstream", upstream, "server", address, "drained", h.Drained, "weight", h.Weight)
	w.tell()
	return nil
}

// Hand is what was decided on a server, and the zero value where nothing was.
func (w *Watcher) Hand(upstream, address string) Hand {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range w.inForce {
		if x := w.watches[id]; x != nil && x.upstream.Name == upstream {
			x.mu.Lock()
			defer x.mu.Unlock()
			return x.hands[address]
		}
	}
	return Hand{}
}

// rest lists all addresses, and counts those but one that get requests.
func (x *watch) rest(address string) (all []string, others int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, t := range x.targets {
		all = append(all, t.server.Address)
		if t.server.Address != address && !x.hands[t.server.Address].Drained {
			others++
		}
	}
	return all, others
}

func (x *watch) set(address string, h Hand) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.hands[address] = h
	maps.DeleteFunc(x.hands, func(_ string, h Hand) bool { return h == Hand{} })
	x.version++
}

// present is the target as workers are told of it. The lock is held.
func (x *watch) present(t *target) policy.Server {
	s, h := t.server, x.hands[t.server.Address]
	s.Drained = h.Drained
	if h.Weight > 0 {
		s.Weight = h.Weight
	}
	return s
}
