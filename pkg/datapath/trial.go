// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/bpf"
	"github.com/xgw-project/xgw/pkg/policy"
)

// TriedSources is how many sources a Trial can tell apart.
const TriedSources = 16384

// trialPriority puts the filter of a trial behind ours, where there is no tcx.
const trialPriority = filterPriority + 1

var tcTrial = tcHook{"tc_trial", ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS}

// Trial is tables that are tried beside those that hold: the same steps, with buckets of
// their own, on the packets that the kernel plane lets pass. What they would drop is counted
// and passes all the same. Nothing of it is pinned: without its process it is gone, but for a
// filter on Linux before 6.6, which goes on to change nothing, and which the next Try or
// EndTrials removes.
//
// It runs at tc, where frames that the kernel has merged (GRO) are one, in limits too; sources
// that complete a handshake during the trial are strangers to it until it ends.
type Trial struct {
	d        *Datapath
	objects  trialObjects
	link     link.Link // nil: a filter
	filtered bool
}

// trialObjects are what a trial has of its own; pinholes and what is known of sources and of
// connections are the datapath's.
type trialObjects struct {
	loadedMaps
	TcTrial *ebpf.Program `ebpf:"tc_trial"`
	Sources *ebpf.Map     `ebpf:"tried_sources"`
}

// Try begins a trial of the tables. The caller closes it, before the datapath.
func (d *Datapath) Try(t *policy.Tables) (*Trial, error) {
	tr := &Trial{d: &Datapath{options: d.options, link: d.link, queues: d.queues}}
	err := tr.load(d)
	if err == nil {
		tables := *t
		tables.Spread = false // flows are spread as the tables that hold say
		err = tr.d.apply(&tables, 0)
	}
	if err == nil {
		err = tr.attach()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("try tables on %s: %w", d.options.Interface, err), tr.Close())
	}
	return tr, nil
}

func (tr *Trial) load(of *Datapath) error {
	spec, err := bpf.LoadGateway()
	if err != nil {
		return err
	}
	d := tr.d
	if err := d.fit(spec); err != nil {
		return err
	}
	// Sources are where the datapath has placed them.
	if err := setSeed(spec, of.seed); err != nil {
		return err
	}
	err = spec.LoadAndAssign(&tr.objects, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		bpf.GatewayMapVerified: of.objects.Verified, bpf.GatewayMapOwnFlows: of.objects.OwnFlows, bpf.GatewayMapPinholes: of.objects.Pinholes,
	}})
	if err != nil {
		return loadError(err)
	}
	d.objects.loadedMaps = tr.objects.loadedMaps
	return d.ready(spec)
}

func (tr *Trial) attach() error {
	d := tr.d
	if err := d.options.step("attach trial"); err != nil {
		return err
	}
	if !d.options.Netlink && !d.options.Old {
		l, err := link.AttachTCX(link.TCXOptions{Program: tr.objects.TcTrial, Attach: tcTrial.attach, Interface: d.link.Attrs().Index})
		if err == nil {
			tr.link = l
			return nil
		}
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("attach %s to tcx: %w", tcTrial.name, err)
		}
	}
	if err := d.EndTrials(); err != nil {
		return err
	}
	// The clsact qdisc is there, for tc_egress.
	if err := netlink.FilterAdd(d.trialFilter(tr.objects.TcTrial.FD())); err != nil {
		return fmt.Errorf("add filter %s: %w", tcTrial.name, err)
	}
	tr.filtered = true
	return nil
}

func (d *Datapath) trialFilter(fd int) *netlink.BpfFilter {
	f := d.filter(&tcTrial, fd)
	f.Priority = trialPriority
	return f
}

// EndTrials removes what a trial has left whose process was killed.
func (d *Datapath) EndTrials() error {
	left, err := d.ownFilter(&tcTrial)
	if err == nil && left != nil {
		err = netlink.FilterDel(d.trialFilter(-1))
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove filter %s of %s: %w", tcTrial.name, d.options.Interface, err)
	}
	return nil
}

// Close ends the trial.
func (tr *Trial) Close() error {
	var errs []error
	if tr.link != nil {
		errs = append(errs, tr.link.Close())
	}
	if tr.filtered {
		errs = append(errs, tr.d.EndTrials())
	}
	if p := tr.objects.TcTrial; p != nil { // else all of it is not there
		errs = append(errs, p.Close(), tr.objects.Sources.Close(), tr.d.objects.Close())
	}
	return errors.Join(errs...)
}

// Tried is what a Trial has counted. Sums are exact at rest.
type Tried struct {
	Packets uint64 // that it was asked about
	Dropped uint64 // of these, that it would have dropped
	Bytes   uint64 // of the dropped ones: whole frames
	// Reasons of the dropped ones, as in Counters; only those that there were.
	Reasons []QueueCount
	Limits  []LimitCount  // those that some packet was over
	Sources []TriedSource // of dropped packets, those of most packets first; at most TriedSources
}

// TriedSource is what a source would have lost.
type TriedSource struct {
	Source  netip.Addr // an IPv4 address, or the first one of an IPv6 /64
	Packets uint64
	Bytes   uint64
	Denied  uint64 // of the packets, by a rule that denies the source
}

// Counts reads what there is so far.
func (tr *Trial) Counts() (*Tried, error) {
	var all Counters
	if err := tr.d.Counters(&all); err != nil {
		return nil, err
	}
	out := &Tried{}
	for _, c := range all.Ingress {
		out.Packets += c.Packets
		if c.Verdict != "drop" || c.Packets == 0 {
			continue
		}
		out.Dropped += c.Packets
		out.Bytes += c.Bytes
		at := slices.IndexFunc(out.Reasons, func(r QueueCount) bool { return r.Reason == c.Reason })
		if at < 0 {
			c.Queue = All
			out.Reasons = append(out.Reasons, c)
			continue
		}
		out.Reasons[at].Packets += c.Packets
		out.Reasons[at].Bytes += c.Bytes
	}
	var err error
	if out.Limits, err = tr.d.LimitCounts(); err != nil {
		return nil, err
	}
	var key uint64
	var value bpf.GatewayTriedSource
	each := tr.objects.Sources.Iterate()
	for each.Next(&key, &value) {
		out.Sources = append(out.Sources, TriedSource{Source: policy.KeyAddress(key), Packets: value.Packets, Bytes: value.Bytes, Denied: value.Denied})
	}
	if err := each.Err(); err != nil {
		return nil, fmt.Errorf("read what is tried on %s: %w", tr.d.options.Interface, err)
	}
	slices.SortFunc(out.Sources, func(a, b TriedSource) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), a.Source.Compare(b.Source))
	})
	return out, nil
}
