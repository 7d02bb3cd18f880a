// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"slices"
	"strings"
)

// Modes of attaching, as `xgw attach --mode` has them.
const (
	ModeNative  = "native"
	ModeGeneric = "generic"
	ModeTC      = "tc"
	ModeAuto    = "auto" // native where it can be, else tc; never generic
)

// Severity orders findings.
type Severity string

const (
	Blocks Severity = "blocks"
	Warns  Severity = "warns"
	Info   Severity = "info"
)

// Finding is one thing about an interface that an operator should know.
type Finding struct {
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
	Evidence string   `json:"evidence,omitempty"` // what was seen, and what the kernel does about it
	Mend     string   `json:"mend,omitempty"`     // a command
}

// Plan is what attaching would do.
type Plan struct {
	Interface string    `json:"interface"`
	Wanted    string    `json:"wanted"`
	Mode      string    `json:"mode"`               // what would be attached; "" when refused
	Instead   string    `json:"instead,omitempty"`  // a command that would attach without mending anything
	Flap      string    `json:"flap,omitempty"`     // what the attach does to the link
	Facts     string    `json:"facts"`              // in a line
	Findings  []Finding `json:"findings,omitempty"` // worst first
	Pinholes  []Pinhole `json:"pinholes,omitempty"` // what should stay open: for the caller to fill in
}

// Machine is what a plan has to know of the rest of the machine.
type Machine struct {
	Kernel   string `json:"kernel"`    // release, such as 6.12.0-1-amd64
	CPUs     int    `json:"cpus"`      // that there can be, 0 for unknown
	PageSize int    `json:"page_size"` // bytes
}

// Wanted is what shall be attached.
type Wanted struct {
	Mode string
	// Frags: the programs are loaded as able to take packets of several buffers.
	Frags bool
	// Own is the id of the caller's program on the interface, 0 when there is none.
	Own uint32
	// Obstacle is why the attach would be refused whatever the interface is; "" for nothing.
	Obstacle string
	// Instance is the caller's, for the commands that findings name.
	Instance string
}

// oldest is the first kernel that the programs load on.
var oldest = version{5, 4}

// MakePlan predicts. It is a function of its arguments; what they leave open, a
// finding says, and the attach will tell.
func MakePlan(i Interface, m Machine, w Wanted) Plan {
	p := planner{machine: m, kernel: parseVersion(m.Kernel), wanted: w}
	out := Plan{Interface: i.Name, Wanted: w.Mode, Mode: w.Mode, Facts: p.facts(i)}
	if common := p.common(i); blocked(common) { // no mode helps
		out.Mode, out.Findings = "", sorted(common)
		return out
	}
	native := p.native(i)
	switch w.Mode {
	case ModeAuto:
		out.Mode = ModeNative
		if blocked(native) && !blocked(p.owner(i, ModeNative)) {
			out.Mode = ModeTC
			p.add(Warns, "tc instead of native mode, for what is said next", "each packet costs the kernel an skb before it can be dropped", "")
			for _, f := range native { // what would refuse native is now a reason, not an obstacle
				if f.Severity == Blocks {
					f.Severity = Warns
					p.found = append(p.found, f)
				}
			}
		}
	case ModeNative:
		if blocked(native) && !blocked(p.tc(i)) {
			out.Instead = p.mendByTC(i, native)
		}
	}
	p.found = append(p.found, p.common(i)...)
	switch out.Mode {
	case ModeNative:
		p.found = append(p.found, native...)
		out.Flap = p.flap(i)
	case ModeGeneric:
		p.found = append(p.found, p.generic(i)...)
		out.Flap = flapNone
	case ModeTC:
		p.found = append(p.found, p.tc(i)...)
		out.Flap = flapNone
	}
	out.Findings = sorted(p.found)
	if blocked(out.Findings) {
		out.Mode, out.Flap = "", ""
	}
	return out
}

// mendByTC makes tc mode the mend of what has none, and returns its command when
// it is nobody's mend.
func (p *planner) mendByTC(i Interface, native []Finding) string {
	command := p.attach(i.Name) + " --mode tc"
	instead := command
	for n, f := range native {
		if f.Severity == Blocks && f.Mend == "" {
			native[n].Mend, instead = command, ""
		}
	}
	return instead
}

func (p *planner) attach(name string) string { return p.xgw("attach " + name) }

// xgw is a command line of this instance.
func (p *planner) xgw(words string) string {
	if p.wanted.Instance != "" {
		words = "--instance " + p.wanted.Instance + " " + words
	}
	return "xgw " + words
}

func sorted(all []Finding) []Finding {
	slices.SortStableFunc(all, func(a, b Finding) int { return rank(a.Severity) - rank(b.Severity) })
	return all
}

func rank(s Severity) int { return slices.Index([]Severity{Blocks, Warns, Info}, s) }

func blocked(all []Finding) bool {
	return slices.ContainsFunc(all, func(f Finding) bool { return f.Severity == Blocks })
}

// planner collects findings.
type planner struct {
	machine Machine
	kernel  version
	wanted  Wanted
	found   []Finding
}

func (p *planner) add(s Severity, title, evidence, mend string) {
	p.found = append(p.found, Finding{Severity: s, Title: title, Evidence: evidence, Mend: mend})
}

// fresh is a planner of the same question that has found nothing yet.
func (p *planner) fresh() *planner {
	return &planner{machine: p.machine, kernel: p.kernel, wanted: p.wanted}
}

// before tells whether the kernel is known, and older.
func (p *planner) before(v version) bool { return p.kernel != (version{}) && p.kernel.before(v) }

// since tells whether the kernel is known, and new enough.
func (p *planner) since(v version) bool { return p.kernel != (version{}) && !p.kernel.before(v) }

// facts is one line of what was found.
func (p *planner) facts(i Interface) string {
	words := []string{i.Kind}
	if i.Driver != "" && i.Driver != i.Kind {
		words = append(words, strings.TrimSpace("driver "+i.Driver+" "+i.Version))
	}
	if i.Bus != "" {
		words = append(words, i.Bus)
	}
	words = append(words, fmt.Sprintf("MTU %d", i.MTU), queues(i))
	if i.Speed > 0 {
		words = append(words, fmt.Sprintf("%d Mbit/s", i.Speed))
	}
	if i.XDPFeatures != nil {
		words = append(words, "XDP features known")
	}
	return strings.Join(append(words, "Linux "+p.machine.Kernel), ", ")
}

func queues(i Interface) string {
	switch c := i.Channels; {
	case c.MostCombined > 0:
		return fmt.Sprintf("%d of %d queue pairs", c.Combined, c.MostCombined)
	case c.MostReceive > 0:
		return fmt.Sprintf("%d of %d receive queues", c.Receive, c.MostReceive)
	case i.ReceiveQueues == 1:
		return "1 receive queue"
	}
	return fmt.Sprintf("%d receive queues", i.ReceiveQueues)
}

// common finds what holds in each mode.
func (p *planner) common(i Interface) []Finding {
	p = p.fresh()
	switch {
	case p.kernel == (version{}):
		p.add(Warns, fmt.Sprintf("the kernel's release %q is not understood", p.machine.Kernel), "what depends on it is not known: the attach will tell", "")
	case p.before(oldest):
		p.add(Blocks, fmt.Sprintf("Linux %s is too old: xgw needs %s", p.kernel, oldest), "release "+p.machine.Kernel, "")
	}
	if p.wanted.Obstacle != "" {
		p.add(Blocks, "what is pinned or mounted stands in the way", p.wanted.Obstacle, "")
	}
	if i.Link != "" && i.Link != "ether" && i.Link != "loopback" {
		p.add(Blocks, "its packets have no Ethernet header, which xgw reads first", fmt.Sprintf("a %s device, link type %s", i.Kind, i.Link),
			p.attach("INTERFACE")+", the one that `ip route get ADDRESS` names for the tunnel's other end")
	}
	if !i.Up {
		p.add(Info, "the interface is down", "what is attached counts once it is up", fmt.Sprintf("ip link set dev %s up", i.Name))
	}
	if m := i.Master; m != nil {
		switch m.Kind {
		case "bond":
			p.add(Warns, fmt.Sprintf("a member of bond %s: only what arrives over this member is seen", m.Name), "", p.attach(m.Name))
		case "bridge":
			p.add(Info, fmt.Sprintf("a port of bridge %s: what it forwards is counted and limited too", m.Name), "the hook is before the bridge", "")
		}
	}
	return p.found
}

// owner finds who is on the XDP hook, or on that of the device above.
func (p *planner) owner(i Interface, mode string) []Finding {
	p = p.fresh()
	if m := i.Master; m != nil && m.XDP != nil && mode != ModeTC {
		_, mend := m.XDP.owner(m.Name)
		p.add(Blocks, fmt.Sprintf("%s %s, which it is a member of, has an XDP program", m.Kind, m.Name),
			fmt.Sprintf("%s; the kernel refuses another below it", m.XDP), mend)
	}
	x := i.XDP
	if own := p.wanted.Own; own != 0 {
		evidence := fmt.Sprintf("program %d, tc mode", own)
		if x != nil && x.ID == own {
			evidence = x.String()
		}
		p.add(Blocks, "xgw is attached already", evidence, p.xgw("status "+i.Name))
		return p.found
	}
	if x == nil {
		return p.found
	}
	who, mend := x.owner(i.Name)
	evidence := fmt.Sprintf("%s; `bpftool prog show id %d` and `bpftool link` say more", x, x.ID)
	if mode == ModeTC {
		p.add(Warns, who+" is on the XDP hook; it runs first, and what it drops or redirects is not seen by tc", evidence, mend)
	} else {
		p.add(Blocks, who+" is on the hook; xgw never replaces one", evidence, mend)
	}
	return p.found
}

// owner is whose the program seems to be, by its name, and how it is taken off.
func (x Program) owner(name string) (who, off string) {
	switch {
	case x.Name == "xdp_dispatcher":
		return "libxdp's dispatcher", fmt.Sprintf("xdp-loader status %s; xdp-loader unload %s --all", name, name)
	case x.Name == "xdp_ingress":
		return "a program named as xgw's, not of this instance,", "xgw --instance NAME detach " + name
	case strings.HasPrefix(x.Name, "cil_"):
		return "Cilium's program", "cilium config set bpf-lb-acceleration disabled"
	}
	hook := map[string]string{"native": "xdpdrv", "generic": "xdpgeneric", "offload": "xdpoffload"}[x.Mode]
	return "another owner's XDP program", fmt.Sprintf("ip link set dev %s %s off", name, hook)
}

func (x Program) String() string {
	name := x.Name
	if name == "" {
		name = "its name is for root to ask"
	}
	return fmt.Sprintf("program %d, %s, %s mode", x.ID, name, x.Mode)
}

// generic finds what generic mode meets: it runs on every device, at a price.
func (p *planner) generic(i Interface) []Finding {
	p = p.fresh()
	p.found = append(p.found, p.owner(i, ModeGeneric)...)
	p.add(Warns, "generic mode costs as much as tc", "it runs after the kernel made an skb, and copies those whose data is in pieces", p.attach(i.Name)+" --mode tc")
	p.above(i)
	p.merged(i)
	p.tags(i)
	if i.on(featureLRO) || i.on(featureGROHW) {
		p.add(Info, "merging by hardware is turned off by the attach", "the kernel does so for generic mode", "")
	}
	return p.found
}

// tc finds what a tc hook meets.
func (p *planner) tc(i Interface) []Finding {
	p = p.fresh()
	p.found = append(p.found, p.owner(i, ModeTC)...)
	p.above(i)
	p.merged(i)
	return p.found
}

// above says so when packets arrive at another device first.
func (p *planner) above(i Interface) {
	if i.Parent != "" && p.wanted.Mode != ModeAuto { // there the reason against native says it
		p.add(Warns, fmt.Sprintf("a %s device: its packets arrive at %s first", i.Kind, i.Parent), "attached there, native mode may be had, for all that arrives there", p.attach(i.Parent))
	}
}

// merged: hooks behind GRO see its packets, not those of the wire.
func (p *planner) merged(i Interface) {
	if i.on(featureGRO) {
		p.add(Info, "packets that GRO merged count as one", "generic-receive-offload is on, and this hook is behind it", offCommand(i, featureGRO))
	}
}

// tags: XDP does not see a VLAN tag that the NIC has taken off.
func (p *planner) tags(i Interface) {
	bridged := i.Master != nil && i.Master.Kind == "bridge"
	severity := Info
	switch {
	case !i.on(featureRxVLAN):
		return
	case len(i.VLANs) > 0 || bridged:
		severity = Warns
	case i.Kind != "physical":
		return
	}
	evidence := "rx-vlan-offload is on"
	if len(i.VLANs) > 0 {
		evidence += "; VLAN devices on it: " + strings.Join(i.VLANs, ", ")
	}
	p.add(severity, "VLAN tags are taken off before XDP: packets look untagged to it", evidence, offCommand(i, featureRxVLAN))
}

// offCommand turns a feature off; "" for one that nobody can.
func offCommand(i Interface, feature string) string {
	if i.Features[feature].Fixed {
		return ""
	}
	short := map[string]string{featureLRO: "lro", featureGROHW: "rx-gro-hw", featureGRO: "gro", featureRxVLAN: "rxvlan"}[feature]
	return fmt.Sprintf("ethtool -K %s %s off", i.Name, short)
}
