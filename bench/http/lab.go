// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Addresses. xgw has a link of its own to the client, because its XDP program
// runs on it: the peers' packets do not pass a program of ours.
const (
	addrUpstream = "10.250.2.2"
	addrPeers    = "10.250.1.2"
	addrXGW      = "10.250.3.2"
	linkXGW      = "bench-xgw"
)

// lab is three hosts: client, gateway, upstream.
type lab struct {
	client, gateway, upstream *node
}

// node is a network namespace and a thread in it, pinned to a core. A process
// started from that thread inherits both before it runs its first instruction.
type node struct {
	name string
	ns   netns.NsHandle
	net  *netlink.Handle
	work chan func()
}

func newLab(cores [2]int) (_ *lab, err error) {
	l := &lab{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make lab: %w", err), l.remove())
		}
	}()
	for _, n := range []struct {
		node **node
		name string
		core int
	}{{&l.client, "bench-client", cores[1]}, {&l.gateway, "bench-gateway", cores[0]}, {&l.upstream, "bench-upstream", cores[1]}} {
		if *n.node, err = newNode(n.name, n.core); err != nil {
			return nil, err
		}
	}
	if err := connect(l.client, "bench-c0", "10.250.1.1", l.gateway, "bench-peers", addrPeers); err != nil {
		return nil, err
	}
	if err := connect(l.client, "bench-c1", "10.250.3.1", l.gateway, linkXGW, addrXGW); err != nil {
		return nil, err
	}
	return l, connect(l.gateway, "bench-out", "10.250.2.1", l.upstream, "bench-u0", addrUpstream)
}

func newNode(name string, core int) (*node, error) {
	if _, err := os.Stat(filepath.Join("/run/netns", name)); err == nil {
		return nil, fmt.Errorf("namespace %s exists: another bench runs, or one was killed; then `ip netns del %s`", name, name)
	}
	n := &node{name: name, work: make(chan func())}
	ready := make(chan error)
	go n.loop(core, ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	var err error
	if n.net, err = netlink.NewHandleAt(n.ns); err != nil {
		return nil, errors.Join(err, n.remove())
	}
	lo, err := n.net.LinkByName("lo")
	if err == nil {
		err = n.net.LinkSetUp(lo)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set lo up in %s: %w", name, err), n.remove())
	}
	return n, nil
}

// loop owns its thread for good: the thread ends with it, since nothing else may
// run in that namespace.
func (n *node) loop(core int, ready chan<- error) {
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(core)
	err := unix.SchedSetaffinity(0, &one)
	if err == nil {
		n.ns, err = netns.NewNamed(n.name)
	}
	if err != nil {
		ready <- fmt.Errorf("make namespace %s: %w", n.name, err)
		return
	}
	ready <- nil
	for f := range n.work {
		f()
	}
}

// do runs f on the node's thread.
func (n *node) do(f func() error) error {
	done := make(chan error)
	n.work <- func() { done <- f() }
	return <-done
}

func (n *node) remove() error {
	if n == nil {
		return nil
	}
	if n.net != nil {
		n.net.Close()
	}
	close(n.work)
	return errors.Join(n.ns.Close(), netns.DeleteNamed(n.name))
}

// connect makes a veth pair between two nodes.
func connect(a *node, nameA, addrA string, b *node, nameB, addrB string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(b.ns)}
	if err := a.net.LinkAdd(pair); err != nil {
		return fmt.Errorf("add veth %s: %w", nameA, err)
	}
	for _, end := range []struct {
		node       *node
		name, addr string
	}{{a, nameA, addrA}, {b, nameB, addrB}} {
		link, err := end.node.net.LinkByName(end.name)
		if err != nil {
			return fmt.Errorf("find %s: %w", end.name, err)
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(end.addr).To4(), Mask: net.CIDRMask(24, 32)}}
		if err := end.node.net.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("give %s its address: %w", end.name, err)
		}
		if err := end.node.net.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", end.name, err)
		}
	}
	return nil
}

func (l *lab) remove() error {
	return errors.Join(l.client.remove(), l.gateway.remove(), l.upstream.remove())
}

// checkXDP fails unless a native XDP program is on xgw's link and on no other.
func (l *lab) checkXDP() error {
	links, err := l.gateway.net.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, link := range links {
		xdp := link.Attrs().Xdp
		attached := xdp != nil && xdp.Attached
		native := attached && xdp.AttachMode == nl.XDP_ATTACHED_DRV
		if want := link.Attrs().Name == linkXGW; want != native || want != attached {
			return fmt.Errorf("link %s: native XDP program attached: %v, want %v", link.Attrs().Name, native, want)
		}
	}
	return nil
}

// place is where the bench's files are: configurations, certificate, logs.
type place struct {
	dir   string // as this process sees it
	root  string // of the peers' file system, "" for this one's
	mount []string
}

// newPlace makes the directory; with a root, it is inside, and /dev and /proc are
// mounted there.
func newPlace(root string) (*place, error) {
	p := &place{root: strings.TrimSuffix(root, "/")}
	var err error
	if p.dir, err = os.MkdirTemp(filepath.Join(p.root, "/tmp"), "xgw-bench-"); err != nil {
		return nil, fmt.Errorf("make directory for configurations: %w", err)
	}
	// The workers of some gateways read their log and nothing else here.
	if err := os.Chmod(p.dir, 0o755); err != nil {
		return nil, errors.Join(err, p.remove())
	}
	if p.root == "" {
		return p, nil
	}
	for _, dir := range []string{"/dev", "/proc"} {
		if err := unix.Mount(dir, p.root+dir, "", unix.MS_BIND, ""); err != nil {
			return nil, errors.Join(fmt.Errorf("mount %s in %s: %w", dir, p.root, err), p.remove())
		}
		p.mount = append(p.mount, p.root+dir)
	}
	return p, nil
}

// peer is how a process below the root names a file of the place.
func (p *place) peer(name string) string { return strings.TrimPrefix(p.file(name), p.root) }
func (p *place) file(name string) string { return filepath.Join(p.dir, name) }

func (p *place) write(name, text string) error {
	if err := os.WriteFile(p.file(name), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

func (p *place) remove() error {
	var errs []error
	for _, dir := range p.mount {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(p.dir))...)
}
