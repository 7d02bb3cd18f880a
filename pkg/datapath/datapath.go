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
	// ErrElsewhere: the programs run on an interface of another name or network namespace.
	ErrElsewhere = errors.New("attached elsewhere")
	// ErrNoNative: the driver cannot run XDP natively on this interface as it is set up.
	ErrNoNative = errors.New("no native XDP here")
	// ErrLayout: the pins were made by a version whose maps have another layout.
	ErrLayout = errors.New("pins have another layout")
	// ErrNoPins: there is no BPF file system, and none can be had.
	ErrNoPins = errors.New("no pins can be kept here")
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
	// Old uses nothing newer than Linux 5.4: no links, no batches, no coarse clock, tables
	// of fixed size, one buffer a frame.
	Old bool

	// fault, in tests, makes the named step fail.
	fault func(step string) error
}

// Command is what to type for this interface of this instance: for messages.
func (o *Options) Command(verb string) string {
	if o.Instance != "" {
		return fmt.Sprintf("xgw --instance %s %s %s", o.Instance, verb, o.Interface)
	}
	return fmt.Sprintf("xgw %s %s", verb, o.Interface)
}

func (o *Options) step(name string) error {
	if o.fault == nil {
		return nil
	}
	return o.fault(name)
}

// objects are what is pinned for one interface.
type objects struct {
	loaded
	TcIngress *ebpf.Program // in tc mode only: needTCIngress
}

// loaded is what every interface has. The tags are the names in the BPF object and in
// the directory.
type loaded struct {
	XdpIngress *ebpf.Program `ebpf:"xdp_ingress"`
	TcEgress   *ebpf.Program `ebpf:"tc_egress"`
	loadedMaps
}

// loadedMaps are its maps.
type loadedMaps struct {
	Seed          *ebpf.Map `ebpf:"seed"`
	IngressCounts *ebpf.Map `ebpf:"ingress_counts"`
	EgressCounts  *ebpf.Map `ebpf:"egress_counts"`
	LimitCounts   *ebpf.Map `ebpf:"limit_counts"`
	TableCounts   *ebpf.Map `ebpf:"table_counts"`
	Control       *ebpf.Map `ebpf:"control"`
	Heartbeat     *ebpf.Map `ebpf:"heartbeat"`
	GenTables     *ebpf.Map `ebpf:"gen_tables"`
	GenPorts      *ebpf.Map `ebpf:"gen_ports"`
	GenRows       *ebpf.Map `ebpf:"gen_rows"`
	GenBuckets    *ebpf.Map `ebpf:"gen_buckets"`
	QueueBuckets  *ebpf.Map `ebpf:"queue_buckets"`
	SourceSketch  *ebpf.Map `ebpf:"source_sketch"`
	PrefixSketch  *ebpf.Map `ebpf:"prefix_sketch"`
	SharedBuckets *ebpf.Map `ebpf:"shared_buckets"`
	SharedCredits *ebpf.Map `ebpf:"shared_credits"`
	Verified      *ebpf.Map `ebpf:"verified"`
	VerifiedState *ebpf.Map `ebpf:"verified_states"`
	VerifiedLocks *ebpf.Map `ebpf:"verified_locks"`
	Handshakes    *ebpf.Map `ebpf:"handshakes"`
	OwnFlows      *ebpf.Map `ebpf:"own_flows"`
	Verdicts      *ebpf.Map `ebpf:"verdicts"`
	Lanes         *ebpf.Map `ebpf:"lanes"`
	Pressure      *ebpf.Map `ebpf:"pressure"`
	Pinholes      *ebpf.Map `ebpf:"pinholes"`
	DropSamples   *ebpf.Map `ebpf:"drop_samples"`
	SampleCursor  *ebpf.Map `ebpf:"sample_cursor"`
	Cpus          *ebpf.Map `ebpf:"cpus"`
	CPUCount      *ebpf.Map `ebpf:"cpu_count"`
}

// maps lists the places of the maps under the names they are pinned by.
func (o *objects) maps() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		bpf.GatewayMapSeed: &o.Seed, bpf.GatewayMapIngressCounts: &o.IngressCounts, bpf.GatewayMapEgressCounts: &o.EgressCounts,
		bpf.GatewayMapLimitCounts: &o.LimitCounts, bpf.GatewayMapTableCounts: &o.TableCounts,
		bpf.GatewayMapControl: &o.Control, bpf.GatewayMapHeartbeat: &o.Heartbeat,
		bpf.GatewayMapGenTables: &o.GenTables, bpf.GatewayMapGenPorts: &o.GenPorts,
		bpf.GatewayMapGenRows: &o.GenRows, bpf.GatewayMapGenBuckets: &o.GenBuckets,
		bpf.GatewayMapQueueBuckets: &o.QueueBuckets, bpf.GatewayMapSourceSketch: &o.SourceSketch,
		bpf.GatewayMapPrefixSketch: &o.PrefixSketch, bpf.GatewayMapSharedBuckets: &o.SharedBuckets,
		bpf.GatewayMapSharedCredits: &o.SharedCredits, bpf.GatewayMapVerified: &o.Verified, bpf.GatewayMapVerifiedStates: &o.VerifiedState,
		bpf.GatewayMapVerifiedLocks: &o.VerifiedLocks, bpf.GatewayMapHandshakes: &o.Handshakes, bpf.GatewayMapOwnFlows: &o.OwnFlows,
		bpf.GatewayMapVerdicts: &o.Verdicts, bpf.GatewayMapPinholes: &o.Pinholes,
		bpf.GatewayMapLanes: &o.Lanes, bpf.GatewayMapPressure: &o.Pressure,
		bpf.GatewayMapDropSamples: &o.DropSamples, bpf.GatewayMapSampleCursor: &o.SampleCursor,
		bpf.GatewayMapCpus: &o.Cpus, bpf.GatewayMapCpuCount: &o.CPUCount,
	}
}

// programs lists the places of the programs under the names they are pinned by.
func (o *objects) programs() map[string]**ebpf.Program {
	return map[string]**ebpf.Program{"xdp_ingress": &o.XdpIngress, "tc_ingress": &o.TcIngress, "tc_egress": &o.TcEgress}
}

// pinned lists each object under the name it is pinned by.
func (o *objects) pinned() map[string]pinner {
	all := map[string]pinner{}
	for name, p := range o.programs() {
		if *p != nil {
			all[name] = *p
		}
	}
	for name, m := range o.maps() {
		all[name] = *m
	}
	return all
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
	// seed places sources and prefixes; the programs were loaded with it.
	seed     uint64
	encoding encoding
	// inner are the templates of the outer maps' elements.
	inner map[*ebpf.Map]*ebpf.MapSpec
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
		return nil, fmt.Errorf("create datapath of %s: %w: `%s` shows it, `%s` removes it (%s)",
			o.Interface, ErrExists, o.Command("status"), o.Command("detach"), d.dir)
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
	if err := Allowed(); err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(o.Interface)
	if err != nil {
		if _, statErr := os.Stat(pinDir(&o)); statErr == nil && o.Interface != "" {
			return nil, fmt.Errorf("no such interface, and %s has pins of one: %w: `%s` removes them: %w",
				pinDir(&o), ErrStale, o.Command("detach"), err)
		}
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
	if err := d.fit(spec); err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&d.objects.loaded, nil); err != nil {
		return loadError(err)
	}
	if err := d.ready(spec); err != nil {
		d.objects.Close()
		return err
	}
	return nil
}

// ready fills what this process needs beside the objects themselves.
func (d *Datapath) ready(spec *ebpf.CollectionSpec) error {
	var err error
	if d.reader, err = newCounterReader(spec, &d.objects, d.queues); err != nil {
		return err
	}
	if d.encoding, err = newEncoding(&d.options); err != nil {
		return err
	}
	if err := d.objects.Seed.Lookup(uint32(0), &d.seed); err != nil {
		return fmt.Errorf("read seed: %w", err)
	}
	d.inner = innerSpecs(spec, &d.objects)
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
		return fmt.Errorf("%s is not there: %w: `%s` makes it", d.dir, ErrNotAttached, d.options.Command("attach"))
	}
	if err := d.loadPins(); err != nil {
		return err
	}
	if err := d.finishUpgrade(); err != nil {
		return err
	}
	spec, err := bpf.LoadGateway()
	if err != nil {
		return err
	}
	d.queues = int(d.objects.IngressCounts.MaxEntries()) - 1
	if err := d.checkLayout(spec); err != nil {
		return err
	}
	if err := fitMaps(spec, d.options.Old); err != nil {
		return err
	}
	if err := d.ready(spec); err != nil {
		return err
	}
	if !d.Status().Attached {
		if where := d.findOther(); where.is != nowhere {
			return d.elsewhere(where)
		}
		return fmt.Errorf("%s has pins, but the interface does not run them (made anew, or taken off by hand): %w: `%s` removes them",
			d.dir, ErrStale, d.options.Command("detach"))
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
