// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/zone"
)

// The file follows what is counted, is never seen in part, and comes back when its directory
// does.
func TestKeepFile(t *testing.T) {
	z := mustZone(t, 2, 16)
	var log strings.Builder
	s := New(ledger.New(fill(z)), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	dir := filepath.Join(t.TempDir(), "logs")
	path := filepath.Join(dir, "metrics.prom")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.KeepFile(ctx, path, 10*time.Millisecond) }()
	await := func(line string) {
		t.Helper()
		for begun := time.Now(); ; time.Sleep(time.Millisecond) {
			text, err := os.ReadFile(path)
			if err == nil && (!strings.Contains(string(text), "# TYPE xgw_zone_bytes gauge\n") || !strings.HasSuffix(string(text), "\n")) {
				t.Fatalf("a part of the file is seen: %d bytes", len(text))
			}
			if strings.Contains(string(text), line+"\n") {
				return
			}
			if time.Since(begun) > 10*time.Second {
				t.Fatalf("no %s (%v)", line, err)
			}
		}
	}
	time.Sleep(30 * time.Millisecond) // it fails for some turns, and says so once
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	await(`xgw_connections_total{worker="0"} 10`)
	z.Worker(0).Add(zone.ConnectionsAccepted, 1)
	await(`xgw_connections_total{worker="0"} 11`)
	if i, err := os.Stat(path); err != nil || i.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", i.Mode(), err)
	}
	stop()
	<-ended
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v is left, %v", left, err)
	}
	if n := strings.Count(log.String(), "not written"); n > 1 {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
}
