// SPDX-License-Identifier: Apache-2.0

// Package lab is a network to try the gateway on: hosts made of network namespaces,
// joined by veth pairs, with real traffic. The demonstration, the tests and the
// benchmarks stand on it. It never touches an interface that it did not make.
//
//	client ───┐
//	          router ─── edge0 gateway back0 ─── upstream
//	attacker ─┘
//
// Neighbours are static and IPv6 configures nothing by itself, so an interface
// receives what is sent to it and nothing else.
package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Hosts of a lab.
const (
	Client   = "client"
	Attacker = "attacker"
	Router   = "router"
	Gateway  = "gateway"
	Upstream = "upstream"
)

// EdgeInterface is the gateway's interface that client and attacker arrive at.
const EdgeInterface = "edge0"

var hosts = [...]string{Client, Attacker, Router, Gateway, Upstream}

// wires are the veth pairs: near is the host further from the gateway.
var wires = [...]wire{
	{Client, "net0", "192.0.2.2/28", "2001:db8:1::2/64", Router, "client0", "192.0.2.1/28", "2001:db8:1::1/64"},
	{Attacker, "net0", "192.0.2.18/28", "2001:db8:2::2/64", Router, "attacker0", "192.0.2.17/28", "2001:db8:2::1/64"},
	{Router, "edge1", "198.51.100.1/24", "2001:db8:3::1/64", Gateway, EdgeInterface, "198.51.100.2/24", "2001:db8:3::2/64"},
	{Upstream, "net0", "203.0.113.2/24", "2001:db8:4::2/64", Gateway, "back0", "203.0.113.1/24", "2001:db8:4::1/64"},
}

type wire struct {
	near, nearName, near4, near6 string
	far, farName, far4, far6     string
}

// Addresses of the lab.
var (
	GatewayAddr   = netip.MustParseAddr("198.51.100.2")
	GatewayAddr6  = netip.MustParseAddr("2001:db8:3::2")
	UpstreamAddr  = netip.MustParseAddr("203.0.113.2")
	ClientAddr    = netip.MustParseAddr("192.0.2.2")
	AttackerAddr  = netip.MustParseAddr("192.0.2.18")
	defaultRoutes = map[string][2]string{ // host -> gateways of its default routes
		Client: {"192.0.2.1", "2001:db8:1::1"}, Attacker: {"192.0.2.17", "2001:db8:2::1"},
		Gateway: {"198.51.100.1", "2001:db8:3::1"}, Upstream: {"203.0.113.1", "2001:db8:4::1"},
	}
)

// markerRoot holds a directory for each lab: who made it, so that what a killed
// process left can be told from what is in use.
const markerRoot = "/run/xgw-lab"

// Options of a lab.
type Options struct {
	Name   string // unique on the machine; the namespaces are NAME-client and so on
	Queues int    // of each interface, both ways; 0: as many as CPUs
}

// Lab is a set of namespaces that this process made.
type Lab struct {
	name   string
	queues int
	ns     map[string]netns.NsHandle
}

// New makes the lab. It needs root. What a killed process left under the same name
// is removed first; a lab that is in use is an error.
func New(o Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("make lab: needs root: run it with sudo")
	}
	if o.Queues == 0 {
		o.Queues = runtime.NumCPU()
	}
	l := &Lab{name: o.Name, queues: o.Queues, ns: map[string]netns.NsHandle{}}
	if err := l.claim(); err != nil {
		return nil, fmt.Errorf("make lab %s: %w", o.Name, err)
	}
	if err := l.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("make lab %s: %w", o.Name, err), l.Close())
	}
	return l, nil
}

func (l *Lab) marker() string { return filepath.Join(markerRoot, l.name) }

// claim writes the marker, and removes what an owner that is gone left.
func (l *Lab) claim() error {
	text, err := os.ReadFile(l.marker())
	if err == nil {
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		if pid > 0 && pid != os.Getpid() && unix.Kill(pid, 0) == nil {
			return fmt.Errorf("process %d uses it: stop that first", pid)
		}
		if err := l.remove(); err != nil {
			return fmt.Errorf("remove what an earlier run left: %w", err)
		}
	} else {
		for _, host := range hosts {
			if h, err := netns.GetFromName(l.namespace(host)); err == nil {
				h.Close()
				return fmt.Errorf("namespace %s is there and not of a lab: `ip netns delete %s` removes it", l.namespace(host), l.namespace(host))
			}
		}
	}
	if err := os.MkdirAll(markerRoot, 0o755); err != nil {
		return err
	}
	return os.WriteFile(l.marker(), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
}

func (l *Lab) namespace(host string) string { return l.name + "-" + host }

func (l *Lab) build() error {
	for _, host := range hosts {
		if err := l.makeNamespace(host); err != nil {
			return fmt.Errorf("namespace %s: %w", l.namespace(host), err)
		}
	}
	for _, w := range wires {
		if err := l.connect(w); err != nil {
			return fmt.Errorf("wire %s to %s: %w", w.near, w.far, err)
		}
	}
	for host, via := range defaultRoutes {
		if err := l.In(host, func() error { return addDefaultRoutes(via) }); err != nil {
			return fmt.Errorf("routes of %s: %w", host, err)
		}
	}
	if err := l.In(Router, addBlackhole); err != nil {
		return err
	}
	if err := l.spread(Router, "edge1"); err != nil {
		return fmt.Errorf("spread packets over queues: %w", err)
	}
	return nil
}

// spread makes each CPU send on a queue of its own (XPS), and so the other end of
// the wire receive on all of them: what is forwarded from one veth to the next
// would all stay on the first queue.
func (l *Lab) spread(host, name string) error {
	result := make(chan error)
	go func() {
		// The thread gets a mount namespace, for a /sys of that host. It is not
		// unlocked, so it ends with this function.
		runtime.LockOSThread()
		result <- func() error {
			if err := netns.Set(l.ns[host]); err != nil {
				return err
			}
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
				return err
			}
			for q := range l.queues {
				path := fmt.Sprintf("/sys/class/net/%s/queues/tx-%d/xps_cpus", name, q)
				if err := os.WriteFile(path, []byte(cpuMask(q, l.queues)), 0); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return <-result
}

// cpuMask is the CPUs of queue q of n, as sysfs takes them: 32 bits a group.
func cpuMask(q, n int) string {
	groups := make([]uint32, (runtime.NumCPU()+31)/32)
	for cpu := q; cpu < runtime.NumCPU(); cpu += n {
		groups[cpu/32] |= 1 << (cpu % 32)
	}
	var b strings.Builder
	for i := len(groups) - 1; i >= 0; i-- {
		fmt.Fprintf(&b, "%08x", groups[i])
		if i > 0 {
			b.WriteByte(',')
		}
	}
	return b.String()
}

// makeNamespace makes a quiet namespace: no address that nobody asked for.
func (l *Lab) makeNamespace(host string) error {
	return onThread(func() error {
		h, err := netns.NewNamed(l.namespace(host))
		if err != nil {
			return err
		}
		l.ns[host] = h
		for path, value := range map[string]string{
			"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
			"ipv6/conf/all/forwarding": "1", "ipv6/conf/default/accept_dad": "0", "ipv6/conf/default/autoconf": "0",
			"ipv6/conf/default/accept_ra": "0", "ipv6/conf/default/router_solicitations": "0", "ipv6/conf/default/addr_gen_mode": "1",
			"ipv4/tcp_max_syn_backlog": "4096", "core/somaxconn": "4096",
		} {
			if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}

// connect makes a veth pair, both ends with the lab's number of queues, and tells
// each end the other's hardware address.
func (l *Lab) connect(w wire) error {
	var nearMAC, farMAC net.HardwareAddr
	err := l.In(w.near, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.NumRxQueues, attrs.NumTxQueues = w.nearName, l.queues, l.queues
		pair := &netlink.Veth{
			LinkAttrs: attrs, PeerName: w.farName, PeerNamespace: netlink.NsFd(l.ns[w.far]),
			PeerNumRxQueues: uint32(l.queues), PeerNumTxQueues: uint32(l.queues),
		}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		var err error
		nearMAC, err = address(w.nearName, w.near4, w.near6)
		return err
	})
	if err != nil {
		return err
	}
	err = l.In(w.far, func() error {
		if farMAC, err = address(w.farName, w.far4, w.far6); err != nil {
			return err
		}
		return neighbours(w.farName, nearMAC, w.near4, w.near6)
	})
	if err != nil {
		return err
	}
	return l.In(w.near, func() error { return neighbours(w.nearName, farMAC, w.far4, w.far6) })
}

// address gives the interface its addresses and brings it up.
func address(name string, addresses ...string) (net.HardwareAddr, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return nil, err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			return nil, fmt.Errorf("address %s: %w", a, err)
		}
	}
	return link.Attrs().HardwareAddr, netlink.LinkSetUp(link)
}

// neighbours are known from the start and for good.
func neighbours(name string, mac net.HardwareAddr, prefixes ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		ip, _, err := net.ParseCIDR(p)
		if err != nil {
			return err
		}
		n := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: mac}
		if err := netlink.NeighSet(n); err != nil {
			return fmt.Errorf("neighbour %s: %w", ip, err)
		}
	}
	return nil
}

func addDefaultRoutes(via [2]string) error {
	for _, gw := range via {
		if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}); err != nil {
			return fmt.Errorf("default route via %s: %w", gw, err)
		}
	}
	return nil
}

// addBlackhole lets the router swallow replies to forged addresses without a word.
func addBlackhole() error {
	for _, everything := range []string{"0.0.0.0/0", "::/0"} {
		_, dst, err := net.ParseCIDR(everything)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE}); err != nil {
			return fmt.Errorf("blackhole route: %w", err)
		}
	}
	return nil
}

// onThread runs fn on a thread whose namespace it may change. The thread ends with
// fn unless its namespace could be given back.
func onThread(fn func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		before, err := netns.Get()
		if err != nil {
			result <- err
			return // without unlocking: the runtime ends the thread
		}
		err = fn()
		if netns.Set(before) == nil {
			runtime.UnlockOSThread()
		}
		before.Close()
		result <- err
	}()
	return <-result
}

// In runs fn with its thread in the host's network namespace. Sockets that it makes
// stay there; goroutines that it starts do not.
func (l *Lab) In(host string, fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(l.ns[host]); err != nil {
			return fmt.Errorf("enter %s: %w", l.namespace(host), err)
		}
		return fn()
	})
}

// Start starts the command in the host's network namespace; mounts stay as they are.
func (l *Lab) Start(host string, cmd *exec.Cmd) error { return l.In(host, cmd.Start) }

// Listen opens a listening socket in the host's namespace.
func (l *Lab) Listen(host, network, address string) (ln net.Listener, err error) {
	err = l.In(host, func() error { ln, err = net.Listen(network, address); return err })
	return ln, err
}

// Counters are an interface's own.
func (l *Lab) Counters(host, name string) (*netlink.LinkStatistics, error) {
	var stats *netlink.LinkStatistics
	err := l.In(host, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		stats = link.Attrs().Statistics
		return nil
	})
	return stats, err
}

// Close removes everything, processes in the namespaces included. It may be called
// again.
func (l *Lab) Close() error {
	for _, h := range l.ns {
		h.Close()
	}
	clear(l.ns)
	return l.remove()
}

// remove works by names alone, so that it can clean up after another process.
func (l *Lab) remove() error {
	var errs []error
	for _, host := range hosts {
		h, err := netns.GetFromName(l.namespace(host))
		if err != nil {
			continue
		}
		errs = append(errs, endProcesses(h))
		h.Close()
		errs = append(errs, netns.DeleteNamed(l.namespace(host)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove lab %s: %w", l.name, err)
	}
	if err := os.Remove(l.marker()); err != nil && !os.IsNotExist(err) {
		return err
	}
	_ = os.Remove(markerRoot) // fails while there are other labs
	return nil
}

// endProcesses kills what runs in the namespace: a process that was left there
// would keep it, and its interfaces, alive.
func endProcesses(h netns.NsHandle) error {
	var own, of unix.Stat_t
	if err := unix.Fstat(int(h), &own); err != nil {
		return err
	}
	entries, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return err
	}
	for _, path := range entries {
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil || pid == os.Getpid() || unix.Stat(path, &of) != nil {
			continue
		}
		if of.Ino == own.Ino && of.Dev == own.Dev {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return nil
}
