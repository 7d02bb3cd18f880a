// SPDX-License-Identifier: Apache-2.0

// Package datapath owns the kernel plane: it loads, pins, attaches, fills and
// reads the BPF objects, and is the only package besides the generated one that
// knows cilium/ebpf. Callers see interfaces, tables and counters.
//
// The objects of one network interface are pinned in one directory,
// /sys/fs/bpf/xgw/INTERFACE, and go on working without any process. They are
// made in a temporary directory which is then renamed, so the directory is
// there whole or not at all.
package datapath

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"

	"github.com/xgw-project/xgw/pkg/bpf"
)

// Errors of this package, for errors.Is.
var (
	// ErrExists: the interface has pins already; Open them.
	ErrExists = errors.New("already attached")
	// ErrNotAttached: the interface has no pins of this product.
	ErrNotAttached = errors.New("not attached")
	// ErrForeign: another owner's program is on the hook; it is never replaced.
	ErrForeign = errors.New("another XDP program is attached")
	// ErrStale: pins are left of an interface that is gone or was made anew.
	ErrStale = errors.New("stale pins")
	// ErrNoNative: the driver cannot run XDP natively on this interface as it is set up.
	ErrNoNative = errors.New("no native XDP here")
	// ErrLayout: the pins were made by a version whose maps have another layout.
	ErrLayout = errors.New("pins have another layout")
)

// Options name an interface and where its objects live.
type Options struct {
	Interface string
	// Instance separates several gateways on one machine; "" is the usual one.
	Instance string
	// BPFFS is the mount point of the BPF file system, /sys/fs/bpf by default.
	BPFFS string
	// Netlink attaches without bpf_link, as on Linux before 5.9 (XDP) and 6.6 (tcx).
	Netlink bool

	// fault, in tests, makes the named step fail.
	fault func(step string) error
}

func (o *Options) step(name string) error {
	if o.fault == nil {
		return nil
	}
	return o.fault(name)
}

// objects are what is pinned for one interface. The tags are the names in the
// BPF object and in the directory.
type objects struct {
	XdpIngress *ebpf.Program `ebpf:"xdp_ingress"`
	TcEgress   *ebpf.Program `ebpf:"tc_egress"`

	IngressCounts *ebpf.Map `ebpf:"ingress_counts"`
	EgressCounts  *ebpf.Map `ebpf:"egress_counts"`
	Deny4         *ebpf.Map `ebpf:"deny4"`
	Deny6         *ebpf.Map `ebpf:"deny6"`
	DenySizes     *ebpf.Map `ebpf:"deny_sizes"`
	Limits        *ebpf.Map `ebpf:"limits"`
	QueueBuckets  *ebpf.Map `ebpf:"queue_buckets"`
	SourceSketch  *ebpf.Map `ebpf:"source_sketch"`
}

// pinned lists each object under the name it is pinned by.
func (o *objects) pinned() map[string]pinner {
	return map[string]pinner{
		"xdp_ingress": o.XdpIngress, "tc_egress": o.TcEgress,
		bpf.GatewayMapIngressCounts: o.IngressCounts,
		bpf.GatewayMapEgressCounts:  o.EgressCounts,
		bpf.GatewayMapDeny4:         o.Deny4,
		bpf.GatewayMapDeny6:         o.Deny6,
		bpf.GatewayMapDenySizes:     o.DenySizes,
		bpf.GatewayMapLimits:        o.Limits,
		bpf.GatewayMapQueueBuckets:  o.QueueBuckets,
		bpf.GatewayMapSourceSketch:  o.SourceSketch,
	}
}

func (o *objects) Close() error {
	var errs []error
	for _, p := range o.pinned() {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// Datapath is the kernel plane of one interface. It is not safe for concurrent use.
type Datapath struct {
	options Options
	link    netlink.Link
	dir     string
	queues  int
	objects objects
	reader  *counterReader
}

// Create loads the programs and maps for the interface and pins them. Nothing is
// attached yet. ErrExists when they are there already, ErrStale when what is
// there belongs to an interface that is gone: Detach removes either.
func Create(o Options) (*Datapath, error) {
	d, err := prepare(o)
	if err != nil {
		return nil, fmt.Errorf("create datapath of %s: %w", o.Interface, err)
	}
	if _, err := os.Stat(d.dir); err == nil {
		return nil, fmt.Errorf("create datapath of %s: %w: `xgw status` shows it, `xgw detach %s` removes it (%s)",
			o.Interface, ErrExists, o.Interface, d.dir)
	}
	if err := d.load(); err != nil {
		return nil, fmt.Errorf("create datapath of %s: %w", o.Interface, err)
	}
	if err := d.pin(); err != nil {
		d.objects.Close()
		return nil, fmt.Errorf("create datapath of %s: %w", o.Interface, err)
	}
	return d, nil
}

// prepare checks the machine and fills all that needs no BPF object.
func prepare(o Options) (*Datapath, error) {
	if o.BPFFS == "" {
		o.BPFFS = defaultBPFFS
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("not root: run it with sudo")
	}
	link, err := netlink.LinkByName(o.Interface)
	if err != nil {
		return nil, fmt.Errorf("no such interface: `ip link` lists those there are: %w", err)
	}
	if err := o.step("mount"); err != nil {
		return nil, err
	}
	if err := ensureBPFFS(o.BPFFS); err != nil {
		return nil, err
	}
	queues := link.Attrs().NumRxQueues
	if queues < 1 {
		queues = 1
	}
	return &Datapath{
		options: o, link: link, dir: pinDir(&o), queues: queues,
	}, nil
}

func (d *Datapath) load() error {
	if err := d.options.step("load"); err != nil {
		return err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raise memlock limit: run with CAP_SYS_RESOURCE or `ulimit -l unlimited`: %w", err)
	}
	spec, err := bpf.LoadGateway()
	if err != nil {
		return err
	}
	if err := resize(spec, d.queues); err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&d.objects, nil); err != nil {
		return loadError(err)
	}
	d.reader, err = newCounterReader(spec, &d.objects, d.queues)
	if err != nil {
		d.objects.Close()
	}
	return err
}

// resize fits the spec to the machine: a row for each receive queue and one for
// queues that may come later.
func resize(spec *ebpf.CollectionSpec, queues int) error {
	spec.Maps[bpf.GatewayMapIngressCounts].MaxEntries = uint32(queues) + 1
	spec.Maps[bpf.GatewayMapQueueBuckets].MaxEntries = uint32(queues) + 1
	if err := spec.Variables[bpf.GatewayVarQueueRows].Set(uint32(queues)); err != nil {
		return fmt.Errorf("set queue_rows: %w", err)
	}
	if err := spec.Variables[bpf.GatewayVarHashSeed].Set(rand.Uint64()); err != nil {
		return fmt.Errorf("set hash_seed: %w", err)
	}
	return nil
}

func loadError(err error) error {
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		return fmt.Errorf("load programs: the kernel's verifier refused them; please report this with your kernel's version: %w", err)
	}
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("load programs: not permitted: run as root, outside of a container without CAP_BPF and CAP_NET_ADMIN: %w", err)
	}
	return fmt.Errorf("load programs: %w", err)
}

// Open takes over what is pinned for the interface, by whichever process.
// ErrNotAttached when there is nothing, ErrStale when the pins belong to an
// interface that is gone, ErrLayout when another version made them.
func Open(o Options) (*Datapath, error) {
	d, err := prepare(o)
	if err != nil {
		return nil, fmt.Errorf("open datapath of %s: %w", o.Interface, err)
	}
	if err := d.open(); err != nil {
		d.objects.Close()
		return nil, fmt.Errorf("open datapath of %s: %w", o.Interface, err)
	}
	return d, nil
}

func (d *Datapath) open() error {
	if _, err := os.Stat(d.dir); err != nil {
		return fmt.Errorf("%s is not there: %w: `xgw attach %s` makes it", d.dir, ErrNotAttached, d.options.Interface)
	}
	if err := d.loadPins(); err != nil {
		return err
	}
	spec, err := bpf.LoadGateway()
	if err != nil {
		return err
	}
	d.queues = int(d.objects.IngressCounts.MaxEntries()) - 1
	d.reader, err = newCounterReader(spec, &d.objects, d.queues)
	if err != nil {
		return err
	}
	if !d.Status().Attached {
		return fmt.Errorf("%s has pins, but the interface does not run them (made anew, or taken off by hand): %w: `xgw detach %s` removes them",
			d.dir, ErrStale, d.options.Interface)
	}
	return nil
}

// Interface is the name of the interface.
func (d *Datapath) Interface() string { return d.options.Interface }

// Queues is the number of receive queues that have counters of their own.
func (d *Datapath) Queues() int { return d.queues }

// Close releases this process's descriptors. Programs, maps and links stay pinned
// and at work: Detach is what ends them.
func (d *Datapath) Close() error { return d.objects.Close() }
