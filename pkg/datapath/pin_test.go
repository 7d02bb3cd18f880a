// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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

// What another user's directory leads to is not that user's: neither by links in it nor by one
// that has taken its place.
func TestGiveFollowsNoLink(t *testing.T) {
	w := newWire(t, 1)
	w.options.BPFFS = defaultBPFFS
	const user = 61234
	own, others := pinRoot(&w.options), pinRoot(&w.options)+"-others"
	t.Cleanup(func() { _ = os.RemoveAll(others) })
	w.mustAttach(t, ModeNative).Close()
	if err := os.Mkdir(others, 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	kept := filepath.Join(others, "kept")
	if err := m.Pin(kept); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink(kept, filepath.Join(own, "near", "soft")), os.Link(kept, filepath.Join(own, "near", "hard"))); err != nil {
		t.Fatal(err)
	}
	if err := Give(w.options, user, user); err != nil {
		t.Fatal(err)
	}
	mustBeOf := func(want uint32, paths ...string) {
		t.Helper()
		for _, path := range paths {
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil || st.Uid != want {
				t.Errorf("%s is of %d, %v; want %d", path, st.Uid, err, want)
			}
		}
	}
	mustBeOf(user, own, filepath.Join(own, "near"), filepath.Join(own, "near", pinXDPLink))
	mustBeOf(0, others, kept)
	if err := os.Remove(filepath.Join(own, "near", "hard")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(others, own+"-link"); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(own + "-link")
	if dir, err := openDir(own + "-link"); err == nil {
		dir.Close()
		t.Error("a link in the directory's place is followed")
	}
	mustBeOf(0, others, kept)
}

// What was put in the place of our pins is another owner's: it stays attached, and the one who
// detaches is told.
func TestDetachFollowsNoLink(t *testing.T) {
	w := newWire(t, 1)
	w.options.BPFFS = defaultBPFFS
	others := w.options
	others.Interface, others.Instance = "far", w.options.Instance+"-others"
	there, err := Create(others)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(there.Detach(), there.Close()); err != nil {
			t.Error(err)
		}
	}()
	if err := there.Attach(ModeNative); err != nil {
		t.Fatal(err)
	}
	own := w.mustAttach(t, ModeNative)
	pin, other := filepath.Join(own.dir, pinXDPLink), filepath.Join(there.dir, pinXDPLink)
	held, err := link.LoadPinnedLink(pin, nil) // a process that was taken over keeps ours alive
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for how, put := range map[string]func(string, string) error{"soft": os.Symlink, "hard": os.Link} {
		if err := errors.Join(os.Remove(pin), put(other, pin)); err != nil {
			t.Fatal(err)
		}
		if err := Detach(w.options); err == nil || !strings.Contains(err.Error(), pin+" is a link to elsewhere") {
			t.Errorf("detach by a %s link: %v", how, err)
		}
		if !there.Status().Attached {
			t.Fatalf("a %s link led to another owner's program, which was taken off", how)
		}
	}
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	place := filepath.Join(pinRoot(&w.options), "far")
	if err := os.Symlink(there.dir, place); err != nil {
		t.Fatal(err)
	}
	others.Instance = w.options.Instance
	if err := Detach(others); err == nil {
		t.Error("detached by a link in the directory's place")
	}
	if !there.Status().Attached {
		t.Error("a directory's link led to another owner's program, which was taken off")
	}
	if err := os.Remove(place); err != nil {
		t.Fatal(err)
	}
}
