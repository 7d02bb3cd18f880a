// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Two network namespaces share the pins' directory, and often names and numbers of
// interfaces: neither takes off what the other has.
func TestSameNameInAnotherNamespace(t *testing.T) {
	for _, mode := range []Mode{ModeNative, ModeTC} {
		w := newWire(t, 1)
		first := w.near.Attrs().Index
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		d := w.mustAttach(t, mode)
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		w.connect(t, 1)
		if w.near.Attrs().Index != first {
			t.Fatalf("index %d there, %d here: the test wants them equal", first, w.near.Attrs().Index)
		}
		for what, err := range map[string]error{"open": errOf(Open(w.options)), "detach": Detach(w.options)} {
			if !errors.Is(err, ErrElsewhere) || !strings.Contains(err.Error(), "--instance") {
				t.Errorf("%s mode, %s in another namespace: %v", mode, what, err)
			}
		}
		if err := netlink.LinkDel(w.near); err != nil {
			t.Fatal(err)
		}
		if err := Detach(w.options); !errors.Is(err, ErrElsewhere) {
			t.Errorf("%s mode, detach where there is no such interface: %v", mode, err)
		}
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		home.Close()
		if !d.Status().Attached {
			t.Fatalf("%s mode: taken off from another namespace", mode)
		}
		if err := d.Detach(); err != nil {
			t.Fatal(err)
		}
	}
}

func errOf(_ *Datapath, err error) error { return err }

// An interface that is gone or has another name can be got rid of by the name it had.
func TestDetachOfWhatIsGoneOrRenamed(t *testing.T) {
	for _, mode := range []Mode{ModeNative, ModeTC} {
		for _, byNetlink := range []bool{false, true} {
			w := newWire(t, 1)
			w.options.Netlink = byNetlink
			before := w.state(t)
			w.mustAttach(t, mode).Close()
			rename(t, w.near, "renamed")
			if err := errOf(Open(w.options)); !errors.Is(err, ErrStale) || !strings.Contains(err.Error(), "detach near") {
				t.Errorf("%s mode, netlink %v, open of what was renamed: %v", mode, byNetlink, err)
			}
			// Another interface that takes the name does not take the programs.
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "near"
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}); err != nil {
				t.Fatal(err)
			}
			if err := errOf(Open(w.options)); !errors.Is(err, ErrElsewhere) || !strings.Contains(err.Error(), "renamed") {
				t.Errorf("%s mode, netlink %v, open of another of that name: %v", mode, byNetlink, err)
			}
			if err := netlink.LinkDel(mustLink(t, "near")); err != nil {
				t.Fatal(err)
			}
			if err := Detach(w.options); err != nil {
				t.Fatal(err)
			}
			rename(t, w.near, "near")
			if after := w.state(t); after != before {
				t.Errorf("%s mode, netlink %v, left after detach:\n%s", mode, byNetlink, after)
			}

			w.mustAttach(t, mode).Close()
			if err := netlink.LinkDel(w.near); err != nil {
				t.Fatal(err)
			}
			if err := Detach(w.options); err != nil {
				t.Errorf("%s mode, netlink %v, detach of what is gone: %v", mode, byNetlink, err)
			}
			if err := Detach(w.options); err == nil || !strings.Contains(err.Error(), "ip link") {
				t.Errorf("second detach of what is gone: %v", err)
			}
		}
	}
}

func rename(t *testing.T, l netlink.Link, name string) {
	t.Helper()
	for _, err := range []error{netlink.LinkSetDown(l), netlink.LinkSetName(l, name), netlink.LinkSetUp(l)} {
		if err != nil {
			t.Fatal(err)
		}
	}
}
