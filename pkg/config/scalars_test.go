// SPDX-License-Identifier: Apache-2.0

package config

import (
	"testing"
	"time"
)

// What is written is read as the same time, and has no part that is nothing.
func TestTimeText(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": 0, "500ms": 500 * time.Millisecond, "10s": 10 * time.Second, "1m": time.Minute, "1m30s": 90 * time.Second, "10m": 10 * time.Minute,
		"1h": time.Hour, "1h10m": 70 * time.Minute, "1h0m20s": time.Hour + 20*time.Second, "24h": 24 * time.Hour, "100h": 100 * time.Hour,
	} {
		got := TimeText(d)
		if back, err := time.ParseDuration(got); got != want || err != nil || back != d {
			t.Errorf("%s: %s, which is read as %s, %v", want, got, back, err)
		}
	}
}
