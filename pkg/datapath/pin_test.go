// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// Interfaces whose names are alike have nothing to do with each other.
func TestPinsOfNamesThatAreAlike(t *testing.T) {
	w := newWire(t, 1)
	w.options.BPFFS = defaultBPFFS
	names := []string{"near-new", "near.5", "near_5", "near", "near-being-made"}
	for _, name := range names {
		if name != "near" {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "p" + name[4:]}); err != nil {
				t.Fatal(err)
			}
		}
		w.options.Interface = name
		d := w.mustAttach(t, ModeTC)
		t.Cleanup(func() { d.Close() })
	}
	// What a killed process leaves is no interface's.
	if err := os.Mkdir(pinDir(&w.options)+beingMade, 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := Interfaces(w.options)
	slices.Sort(got)
	slices.Sort(names)
	if err != nil || !slices.Equal(got, names) {
		t.Errorf("interfaces are %q, %v; want %q", got, err, names)
	}
	for _, name := range names {
		w.options.Interface = name
		d, err := Open(w.options)
		if err != nil {
			t.Errorf("attached, and then others were: %v", err)
			continue
		}
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
		d.Close()
	}
}
