// SPDX-License-Identifier: Apache-2.0

// Package cluster is what gateways tell each other through a Valkey or Redis that they share:
// what requests were charged under limits that hold over all of them, and verdicts. It is the
// supervisor's. Nothing of a request or a packet waits for it: workers read and write the zone,
// and while the server does not answer each gateway goes on with what it knows.
package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Node is this gateway among the others. Its methods are safe for concurrent use.
type Node struct {
	client *redis.Client
	prefix string // of all names in the server
	name   string // of this supervisor; another one has another
	log    *slog.Logger

	mu     sync.Mutex
	silent bool // the server did not answer the last time
	stats  Stats
}

// Stats are what came of it all.
type Stats struct {
	Answers  bool
	Gateways int // that have told of charges within the last seconds, this one among them
	Leases   [outcomes]uint64
	Verdicts map[string]uint64 // messages by what became of them
}

// Outcome is what became of one key's lease: its charges were to be told, and so what the
// others charged was to be learned.
type Outcome int

// Outcomes.
const (
	OK     Outcome = iota
	Failed         // the server was asked and did not answer; the others do not hear of these charges
	Stale          // it was not even asked, since it did not answer lately; likewise
	outcomes
)

var outcomeNames = [outcomes]string{"ok", "failed", "stale"}

func (o Outcome) String() string { return outcomeNames[o] }

// Outcomes lists all.
func Outcomes() []Outcome { return []Outcome{OK, Failed, Stale} }

// New makes a node that uses the client, which stays the caller's. The server need not answer yet.
func New(client *redis.Client, prefix string, log *slog.Logger) *Node {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	n := &Node{client: client, prefix: prefix, name: hex.EncodeToString(b[:]), log: log, stats: Stats{Answers: true, Verdicts: map[string]uint64{}}}
	for _, fate := range verdictFates {
		n.stats.Verdicts[fate] = 0
	}
	return n
}

// Stats are those of now.
func (n *Node) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.stats
	s.Answers = !n.silent
	s.Verdicts = make(map[string]uint64, len(n.stats.Verdicts))
	for k, v := range n.stats.Verdicts {
		s.Verdicts[k] = v
	}
	return s
}

// note says when the server stops answering, and when it is back.
func (n *Node) note(err error) {
	n.mu.Lock()
	was := n.silent
	n.silent = err != nil
	n.mu.Unlock()
	switch {
	case err != nil && !was:
		n.log.Error("redis does not answer: each gateway holds limits of the cluster for itself, and verdicts stay where they were given", "error", err)
	case err == nil && was:
		n.log.Info("redis answers again: limits of the cluster hold over all gateways")
	}
}

func (n *Node) count(o Outcome, keys int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats.Leases[o] += uint64(keys)
}
