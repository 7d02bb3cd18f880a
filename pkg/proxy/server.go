// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"math"
	"math/rand/v2"
	"net"

	"github.com/xgw-project/xgw/pkg/policy"
)

// server is one address of an upstream. Its upstream's lock is that of all fields that
// change.
type server struct {
	address string
	host    string // who it has to prove to be by TLS
	text    []byte // the address, for the access record
	hash    uint64 // of the address

	place   int   // in the upstream's list; -1: it is in none any more, and drains
	weight  int64 // its share of the requests
	down    bool  // its checks fail, or
	drained bool  // it was drained by hand
	risen   int64 // when it came back, by the worker's clock; 0: its slow start is over
	turn    int64 // round robin by shares

	idle   []*upConn // the last one used is the first to be used again
	active int       // connections or streams in use

	shared  []*sharedConn // HTTP/2
	dialing *sharedDial   // the latest that has not come to its end; nil: none

	failures     int   // in a row
	ejections    int   // in a row
	ejectedUntil int64 // by the worker's clock; 0: it is not
	probing      bool  // an exchange finds out whether it works again
}

func newServer(p *policy.Server) *server {
	s := &server{address: p.Address, host: p.Host, text: []byte(p.Address), hash: mix(hashBytes(hashBasis, []byte(p.Address)))}
	if s.host == "" {
		s.host, _, _ = net.SplitHostPort(p.Address)
	}
	return s
}

// update makes the list the one that servers are chosen from. Those that were in it stay
// as they are, with their connections; those that are gone get no more requests, and their
// connections are closed as they come to rest. What joins others, or comes back, has a slow
// start.
func (u *upstream) update(now int64, list []policy.Server) {
	u.mu.Lock()
	defer u.mu.Unlock()
	old := u.servers
	for _, s := range old {
		s.place = -1
	}
	u.servers = make([]*server, 0, len(list))
	u.version++
	u.uneven, u.drained = false, 0
	for i := range list[:min(len(list), maxServers)] {
		p := &list[i]
		s := known(old, p)
		switch {
		case s == nil:
			s = newServer(p)
			if len(old) > 0 && !p.Down && !p.Drained {
				u.rise(s, now)
			}
		case s.down && !p.Down && !p.Drained:
			s.failures, s.ejections, s.ejectedUntil, s.probing = 0, 0, 0, false
			u.rise(s, now)
		}
		s.place, s.down, s.drained, s.weight = len(u.servers), p.Down || p.Drained, p.Drained, max(1, int64(p.Weight))
		if s.down {
			u.dropIdle(s)
		}
		if s.drained {
			u.drained++
		}
		u.uneven = u.uneven || len(u.servers) > 0 && u.servers[0].weight != s.weight
		u.servers = append(u.servers, s)
	}
	for _, s := range old {
		if s.place < 0 {
			u.dropIdle(s)
			u.risenUp(s)
		}
	}
}

// Know takes lists of servers that somebody watches for the upstreams of this worker's
// snapshots, present and to come; an older one than is known counts for nothing. Exchanges
// under way end where they are. It is not called at once with Prepare, Commit or itself.
func (w *Worker) Know(lists []policy.Servers) {
	w.mu.Lock()
	for _, l := range lists {
		if l.Version > w.known[l.Watch].Version {
			w.known[l.Watch] = l
		}
	}
	w.mu.Unlock()
	if s := w.current.Load(); s != nil {
		w.tell(s)
	}
}

// tell brings the snapshot's upstreams up to what is known of their servers.
func (w *Worker) tell(s *snapshot) {
	for _, u := range s.upstreams {
		w.mu.Lock()
		l := w.known[u.policy.Watch]
		w.mu.Unlock()
		if l.Version > u.told {
			u.told = l.Version
			u.update(w.clock.Load(), l.List)
		}
	}
}

// forget drops what is known of upstreams that are not in the snapshot.
func (w *Worker) forget(s *snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.known
	w.known = make(map[uint64]policy.Servers, len(s.upstreams))
	for _, u := range s.upstreams {
		if l, ok := old[u.policy.Watch]; ok {
			w.known[u.policy.Watch] = l
		}
	}
}

func known(list []*server, p *policy.Server) *server {
	for _, s := range list {
		if s.place < 0 && s.address == p.Address && (s.host == p.Host || p.Host == "") {
			return s
		}
	}
	return nil
}

// dropIdle closes the server's idle connections. The lock is held.
func (u *upstream) dropIdle(s *server) {
	for _, c := range s.idle {
		c.kill(killCancelled)
		u.total--
	}
	s.idle = nil
	s.dropShared()
	u.wake()
}

// Shares are weights in 256ths. In a slow start they grow from a tenth to the whole.
const (
	wholeShare = 256
	leastShare = 10 // one in so many
)

// rise begins the server's slow start. The lock is held.
func (u *upstream) rise(s *server, now int64) {
	if u.policy.SlowStart == 0 {
		return
	}
	if s.risen == 0 {
		u.rising++
	}
	s.risen = max(now, 1)
}

// risenUp ends it. The lock is held.
func (u *upstream) risenUp(s *server) {
	if s.risen != 0 {
		s.risen = 0
		u.rising--
	}
}

// share is the server's present one.
func (u *upstream) share(s *server, now int64) int64 {
	whole := s.weight * wholeShare
	if s.risen == 0 {
		return whole
	}
	passed, all := now-s.risen, int64(u.policy.SlowStart)
	if passed >= all {
		u.risenUp(s)
		return whole
	}
	// At most 1000 × 256 × an hour: far from overflow.
	return max(whole*passed/all, whole/leastShare)
}

// shares are those of a set's servers, by place, and their sum.
type shares struct {
	of  [maxServers]int64
	sum int64
}

// chooseByShare picks one of the set, where weights differ or one is in its slow start.
func (u *upstream) chooseByShare(ex *Exchange, may serverSet, now int64) int {
	var sh shares
	for i, s := range u.servers {
		if may.has(i) {
			sh.of[i] = u.share(s, now)
			sh.sum += sh.of[i]
		}
	}
	switch u.policy.Balance {
	case "least_conn":
		return u.leastBusyByShare(may, &sh)
	case "p2c":
		first := sh.draw(rand.Int64N(sh.sum))
		if may&(may-1) == 0 {
			return first
		}
		rest := sh
		rest.sum, rest.of[first] = rest.sum-rest.of[first], 0
		second := rest.draw(rand.Int64N(rest.sum))
		if u.lessBusy(second, first, &sh) {
			return second
		}
		return first
	case "hash":
		return u.highestByShare(may, &sh, ex.hashKey(u.policy.HashBy))
	}
	return u.inTurnByShare(may, &sh)
}

// draw is the place at which the shares before it add up to at.
func (sh *shares) draw(at int64) int {
	for i, n := range sh.of {
		if at < n {
			return i
		}
		at -= n
	}
	panic("a draw beyond the sum of the shares")
}

// lessBusy: server a has fewer exchanges under way than b, for its share.
func (u *upstream) lessBusy(a, b int, sh *shares) bool {
	return int64(u.servers[a].active)*sh.of[b] < int64(u.servers[b].active)*sh.of[a]
}

// inTurnByShare spreads the turns of the larger shares among the others: each server's
// claim grows by its share, the largest claim is served and pays for all.
func (u *upstream) inTurnByShare(may serverSet, sh *shares) int {
	best := -1
	for i, s := range u.servers {
		if !may.has(i) {
			continue
		}
		s.turn += sh.of[i]
		if best < 0 || s.turn > u.servers[best].turn {
			best = i
		}
	}
	u.servers[best].turn -= sh.sum
	return best
}

// leastBusyByShare is the one with the fewest exchanges under way for its share; of
// several, the next in turn.
func (u *upstream) leastBusyByShare(may serverSet, sh *shares) int {
	best, equal := -1, serverSet(0)
	for i := range u.servers {
		switch {
		case !may.has(i):
		case best < 0 || u.lessBusy(i, best, sh):
			best, equal = i, 1<<i
		case !u.lessBusy(best, i, sh):
			equal |= 1 << i
		}
	}
	even := *sh
	for i := range u.servers {
		if !equal.has(i) {
			even.sum -= even.of[i]
		}
	}
	return u.inTurnByShare(equal, &even)
}

// highestByShare is highest by weights: a server has keys in proportion to its share, and
// when that grows or shrinks, only the keys that it wins or loses move.
func (u *upstream) highestByShare(may serverSet, sh *shares, key uint64) (best int) {
	most := -1.0
	for i, s := range u.servers {
		if !may.has(i) {
			continue
		}
		x := (float64(mix(key^s.hash)>>11) + 0.5) / (1 << 53)
		if score := -float64(sh.of[i]) / math.Log(x); score > most {
			most, best = score, i
		}
	}
	return best
}
