// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/pem"
	"maps"
	"os"
	"slices"
	"time"
)

// blocks are the certificates of a PEM file, as DER.
func blocks(text []byte) (out [][]byte) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return out
		}
		if b.Type == "CERTIFICATE" {
			out = append(out, b.Bytes)
		}
	}
}

func firstBlock(text []byte) []byte {
	if all := blocks(text); len(all) > 0 {
		return all[0]
	}
	return nil
}

// stamp is what changes of a file when it is written or replaced; zero for none.
type stamp struct {
	written time.Time
	size    int64
	mode    os.FileMode
}

// stamps of the files, through symbolic links: renewed certificates often are links to
// other files.
func stamps(paths []string) map[string]stamp {
	out := make(map[string]stamp, len(paths))
	for _, p := range paths {
		if p == "" {
			continue
		}
		s := stamp{}
		if i, err := os.Stat(p); err == nil {
			s = stamp{i.ModTime(), i.Size(), i.Mode()}
		}
		out[p] = s
	}
	return out
}

// fileWatch tells when files differ from those that are in use. It waits until they are
// still for a look, for of a pair one is written after the other.
type fileWatch struct{ inUse, last map[string]stamp }

func (w *fileWatch) using(now map[string]stamp) { w.inUse, w.last = now, now }

func (w *fileWatch) changed(now map[string]stamp) bool {
	still := maps.Equal(now, w.last)
	w.last = now
	return still && !maps.Equal(now, w.inUse)
}

// tendSecrets renews, while the gateway runs, what changes by itself: certificates, OCSP
// staples and the authorities of clients when their files do or a staple ends, and ticket
// keys with time. It is called at each heartbeat.
func (s *supervisor) tendSecrets() {
	if !s.mu.TryLock() {
		return // a reload is under way, and reads them all
	}
	defer s.mu.Unlock()
	if s.tickets.renew(time.Now()) {
		s.crew.setTicketKeys(s.tickets.keys())
	}
	now := stamps(s.vault.paths(s.config.Listeners))
	changed := s.watch.changed(now)
	ended := !s.vault.nextCheck.IsZero() && s.vault.now().After(s.vault.nextCheck)
	if !changed && !ended && time.Since(s.renewed) < 24*time.Hour {
		return
	}
	// The generation stays: neither routes nor tables are others.
	s.renewed = time.Now()
	s.watch.using(now)
	m, err := s.message(s.config, s.policy, s.listeners, false)
	if err == nil && slices.EqualFunc(m.Secrets, s.crew.secrets(), secrets.equal) {
		return
	}
	if err == nil {
		if err = s.crew.prepare(m); err == nil {
			s.crew.commit(m)
		}
	}
	if err != nil {
		s.log.Error("certificates stay as they were", "error", err)
		return
	}
	s.log.Info("certificates renewed from their files")
}
