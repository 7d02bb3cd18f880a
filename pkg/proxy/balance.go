// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"cmp"
	"math/bits"
	"math/rand/v2"

	"github.com/xgw-project/xgw/pkg/zone"
)

// serverSet is a set of an upstream's servers, by their place.
type serverSet uint64

// maxServers is what an upstream has at most.
const maxServers = 64

func (s serverSet) has(i int) bool { return s>>i&1 == 1 }

// nth is the n-th of the set, from 0.
func (s serverSet) nth(n int) int {
	for range n {
		s &= s - 1
	}
	return bits.TrailingZeros64(uint64(s))
}

// pick chooses a server for the exchange, by the upstream's balance, of those that it has
// not tried: one that is in balance; or else one that is ejected, or else one whose checks
// fail, for either is better than none; never one that was drained by hand. nil: there are no
// servers. The lock is held.
func (u *upstream) pick(ex *Exchange, now int64) *server {
	if len(u.servers) == u.drained {
		return nil
	}
	if ex.triedOf != u.version {
		ex.tried, ex.triedOf = 0, u.version
	}
	var in, up, left, all serverSet
	for i, s := range u.servers {
		if s.drained {
			continue
		}
		all |= 1 << i
		if ex.tried.has(i) {
			continue
		}
		left |= 1 << i
		if !s.down {
			up |= 1 << i
			if s.admits(now) {
				in |= 1 << i
			}
		}
	}
	may := cmp.Or(in, up, left, all)
	s := u.servers[u.choose(ex, may, now)]
	ex.others = in&^(1<<s.place) != 0
	if s.ejectedUntil != 0 {
		s.probing = true
	}
	return s
}

// markTried keeps the exchange from the server from now on.
func (u *upstream) markTried(ex *Exchange, s *server) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tried(ex, s)
}

// tried is markTried with the lock held, and says whether there is a server left.
func (u *upstream) tried(ex *Exchange, s *server) (left bool) {
	if s.place >= 0 && ex.triedOf == u.version {
		ex.tried |= 1 << s.place
	}
	return bits.OnesCount64(uint64(ex.tried)) < len(u.servers)-u.drained
}

// choose picks one of the set.
func (u *upstream) choose(ex *Exchange, may serverSet, now int64) int {
	if u.uneven || u.rising > 0 {
		return u.chooseByShare(ex, may, now)
	}
	n := bits.OnesCount64(uint64(may))
	switch u.policy.Balance {
	case "least_conn":
		return u.leastBusy(may)
	case "p2c":
		if n > 1 {
			a := rand.IntN(n)
			b := (a + 1 + rand.IntN(n-1)) % n
			first, second := may.nth(a), may.nth(b)
			if u.servers[second].active < u.servers[first].active {
				return second
			}
			return first
		}
	case "hash":
		return u.highest(may, ex.hashKey(u.policy.HashBy))
	}
	return u.inTurn(may)
}

// inTurn is the next of the set.
func (u *upstream) inTurn(may serverSet) int {
	for {
		i := u.next
		if u.next++; u.next >= len(u.servers) {
			u.next = 0
		}
		if may.has(i) {
			return i
		}
	}
}

// leastBusy is the one with the fewest exchanges under way; of several, the next in turn.
func (u *upstream) leastBusy(may serverSet) int {
	best := u.inTurn(may)
	for k := range u.servers {
		i := (best + k) % len(u.servers)
		if may.has(i) && u.servers[i].active < u.servers[best].active {
			best = i
		}
	}
	return best
}

// highest is the server whose hash with the key is highest: when one goes, only its own
// keys move.
func (u *upstream) highest(may serverSet, key uint64) (best int) {
	most := uint64(0)
	for i, s := range u.servers {
		if !may.has(i) {
			continue
		}
		if h := mix(key ^ s.hash); h >= most {
			most, best = h, i
		}
	}
	return best
}

// mix spreads what differs over all bits: the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hashBytes is FNV-1a.
func hashBytes(h uint64, b []byte) uint64 {
	for _, c := range b {
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	return h
}

const hashBasis = 0xcbf29ce484222325

// hashKey is of what the upstream's requests are spread by: the client's address, the path,
// or a field, which counts as empty where it is missing.
func (ex *Exchange) hashKey(by string) uint64 {
	switch by {
	case "address":
		a := ex.peer.Addr().As16()
		return hashBytes(hashBasis, a[:])
	case "path":
		path, _, _ := bytes.Cut(ex.target, []byte{'?'})
		return hashBytes(hashBasis, path)
	}
	for i := range ex.fields {
		if f := &ex.fields[i]; len(f.Name) == len(by) && equalFoldString(f.Name, by) {
			return hashBytes(hashBasis, f.Value)
		}
	}
	return hashBasis
}

func equalFoldString(b []byte, s string) bool {
	for i := range b {
		x, y := b[i]|0x20, s[i]|0x20
		if x != y {
			return false
		}
	}
	return true
}

// report is what an exchange says of a server when it gives its connection back.
type report int

const (
	reportNone   report = iota // the client went away, or another gives the report
	reportWorked               // there was a reply
	reportFailed               // no connection, or no reply
)

// admits says whether the server may be chosen: always, unless it is ejected; and when that
// time is over, for one exchange at a time until one has worked.
func (s *server) admits(now int64) bool {
	return s.ejectedUntil == 0 || now >= s.ejectedUntil && !s.probing
}

// hear takes the report into account; probe is that of the exchange which finds out
// whether an ejected server works again. The lock is held.
func (u *upstream) hear(w *Worker, s *server, r report, probe bool) {
	if probe {
		s.probing = false
	}
	switch r {
	case reportWorked:
		if s.ejectedUntil != 0 {
			if !probe {
				return // what began before the server failed is no news of it
			}
			u.rise(s, w.clock.Load())
		}
		s.failures, s.ejections, s.ejectedUntil = 0, 0, 0
	case reportFailed:
		s.failures++
		if most := u.policy.MaxFails; most > 0 && (s.failures >= most || probe) {
			u.eject(w, s)
		}
	}
}

// eject keeps exchanges from a server for a time that doubles with each ejection in a row,
// up to sixteenfold. At most half of the servers are out of balance by it: when more fail
// than that, the fault lies elsewhere.
func (u *upstream) eject(w *Worker, s *server) {
	now, out := w.clock.Load(), 0
	if s.ejectedUntil > now || s.place < 0 {
		return
	}
	for _, other := range u.servers {
		if other != s && (other.ejectedUntil != 0 || other.down) {
			out++
		}
	}
	if 2*(out+1) > len(u.servers) {
		return
	}
	s.ejectedUntil = now + int64(u.policy.FailTime)<<min(s.ejections, 4)
	s.ejections++
	w.slab.Add(zone.UpstreamEjections, 1)
}

// Retries draw on a budget, in thousandths of a retry, so that they cannot multiply the load
// on servers that are failing: each request adds its share. What is saved covers what
// is under way when a server fails.
const (
	retryCost   = 1000
	retrySaved  = 100 * retryCost
	retryShare  = 200 // of each request: a fifth
	mostRetries = 8
)

// allowRetry says whether the upstream has a retry left in its budget, and takes it.
func (u *upstream) allowRetry() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.retryBudget < retryCost {
		return false
	}
	u.retryBudget -= retryCost
	return true
}
