// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	. "github.com/xgw-project/xgw/pkg/datapath/packettest"
	"github.com/xgw-project/xgw/pkg/policy"
)

// Tables that are tried say what they would drop, of whom and why, on each hook; nothing is
// dropped, what holds is charged nothing, and nothing is left when the trial is over.
func TestTrial(t *testing.T) {
	for _, row := range []struct {
		name    string
		mode    Mode
		netlink bool
	}{{"native", ModeNative, false}, {"native by netlink", ModeNative, true}, {"tc", ModeTC, false}} {
		if testing.Short() && row.name == "tc" {
			continue
		}
		t.Run(row.name, func(t *testing.T) {
			w := newWire(t, 1)
			w.options.Netlink = row.netlink
			d := w.mustAttach(t, row.mode)
			// A limit that holds and lets all of this pass; charged twice it would not.
			if err := d.Apply(limited(limit(policy.BySource, policy.SYNs, 1, 60))); err != nil {
				t.Fatal(err)
			}
			before := w.state(t)
			tight := limit(policy.BySource, policy.SYNs, 1, 10)
			tight.Name = "tight"
			tried, err := d.Try(&policy.Tables{Prefixes: denied("198.51.100.0/24"), Limits: []policy.PacketLimit{tight}})
			if err != nil {
				t.Fatal(err)
			}
			defer tried.Close()
			sent := w.received(t)
			denied, quiet := netip.MustParseAddrPort("198.51.100.9:4000"), netip.MustParseAddrPort("192.0.2.77:4000")
			w.send(t, TCPSegment(client4, server4, SYN), 50)
			w.send(t, TCPSegment(quiet, server4, SYN), 5)
			w.send(t, TCPSegment(denied, server4, ACK), 7)
			var got *Tried
			waitFor(t, "62 frames that are tried", func() bool {
				if got, err = tried.Counts(); err != nil {
					t.Fatal(err)
				}
				return got.Packets == 62
			})
			if n := w.received(t) - sent; n != 62 {
				t.Fatalf("%d frames came", n)
			}
			if got.Dropped != 47 || len(got.Sources) != 2 || len(got.Reasons) != 2 || len(got.Limits) != 1 {
				t.Fatalf("tried: %+v", got)
			}
			loud, shut := got.Sources[0], got.Sources[1]
			if loud.Source != client4.Addr() || loud.Packets != 40 || loud.Denied != 0 || loud.Bytes == 0 || shut.Source != denied.Addr() || shut.Packets != 7 || shut.Denied != 7 {
				t.Errorf("sources: %+v", got.Sources)
			}
			if l := got.Limits[0]; l.Name != "tight" || l.Dropped != 40 {
				t.Errorf("limits: %+v", got.Limits)
			}
			if n, _ := packetSum(t, d, ingressRows); n != 62 {
				t.Errorf("%d packets are counted by what holds", n)
			}
			var c Counters
			if err := d.Counters(&c); err != nil {
				t.Fatal(err)
			}
			for _, q := range c.Ingress {
				if q.Verdict == "drop" && q.Packets > 0 {
					t.Errorf("dropped in truth: %+v", q)
				}
			}
			if err := tried.Close(); err != nil {
				t.Error(err)
			}
			if after := w.state(t); after != before {
				t.Errorf("when it is over:\n%s\nbefore:\n%s", after, before)
			}
			// One whose process was killed leaves a filter, where there is no tcx.
			if row.netlink {
				if _, err = d.Try(&policy.Tables{}); err != nil {
					t.Fatal(err)
				}
				if err := d.EndTrials(); err != nil || w.state(t) != before {
					t.Errorf("what was left: %v\n%s", err, w.state(t))
				}
			}
		})
	}
}

// A trial that cannot begin leaves everything as it was.
func TestTrialThatFails(t *testing.T) {
	w := newWire(t, 1)
	d := w.mustAttach(t, ModeNative)
	before := w.state(t)
	for step, says := range map[string]string{"flip": "injected", "attach trial": "injected", "": "same key and count"} {
		d.options.fault = func(at string) error {
			if at == step {
				return errors.New("injected")
			}
			return nil
		}
		l := limit(policy.BySource, policy.SYNs, 1, 1)
		tables := limited(l)
		if step == "" {
			tables = limited(l, l)
		}
		if _, err := d.Try(tables); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", step, err)
		}
		if now := w.state(t); now != before {
			t.Errorf("after %q:\n%s\nbefore:\n%s", step, now, before)
		}
	}
}
