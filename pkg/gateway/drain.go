// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/xgw-project/xgw/pkg/admin"
)

// drain is whether others should be sent what comes: because an operator said so, or while a
// file is there. The one is handed on by an upgrade and ends with the gateway, the other holds
// for whoever serves.
type drain struct {
	path           string // of the file
	byHand, byFile atomic.Bool
}

// drainPath is beside the configuration: that directory is there before the gateway and stays
// when it stops, and a gateway that is not root's cannot put there what root's tools would follow.
func drainPath(configuration, instance string) (string, error) {
	path, err := filepath.Abs(configuration)
	if err != nil {
		return "", fmt.Errorf("find the file that drains: %w", err)
	}
	return filepath.Join(filepath.Dir(path), cmp.Or(instance, "xgw")+".drain"), nil
}

func (d *drain) is() bool { return d.byHand.Load() || d.byFile.Load() }

// SetDrained has /readyz say whether others should be sent what comes.
func (s *supervisor) SetDrained(drained bool) error {
	if s.aside.isCalled() {
		return fmt.Errorf("%w: %w", admin.ErrImpossible, errHanded)
	}
	before := s.drain.is()
	s.drain.byHand.Store(drained)
	s.tellDrain(before)
	if s.heedDrainFile(); !drained && s.drain.byFile.Load() {
		return fmt.Errorf("%w: %s is there, and drains the gateway until it is removed", admin.ErrImpossible, s.drain.path)
	}
	return nil
}

// heedDrainFile looks whether it is there.
func (s *supervisor) heedDrainFile() {
	before := s.drain.is()
	_, err := os.Stat(s.drain.path)
	s.drain.byFile.Store(err == nil)
	s.tellDrain(before)
}

func (s *supervisor) tellDrain(before bool) {
	now := s.drain.is()
	if now == before {
		return
	}
	what := "taken back"
	if now {
		what = "left out"
	}
	s.log.Info("drain: balancers over gateways are told by /readyz", "drained", now, "by_file", s.drain.byFile.Load())
	s.events.Tell(admin.Event{Kind: "drain", About: "gateway", What: what})
}
