// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/mend"
)

// nics are the interfaces; an examination of none cannot look at any.
func (x *examination) nics() []NIC {
	if len(x.now.NICs) == 0 {
		x.cannot("no interface was looked at: name one")
	}
	return x.now.NICs
}

func (x *examination) link() {
	for _, n := range x.nics() {
		seen := fmt.Sprintf("up %t, carrier %t, %d Mbit/s, %s duplex", n.Up, n.Carrier, n.Speed, orElse(n.Duplex, "unknown"))
		f := Finding{Object: n.Name, Severity: Error, Evidence: seen}
		switch {
		case !n.Up:
			f.Title, f.Cause, f.Mend = "the interface is down", "nobody set it up", "ip link set dev "+n.Name+" up"
		case !n.Carrier:
			f.Title, f.Cause, f.Mend = "there is no link", "the cable, the switch's port, or of a veth its other end, is down", "ethtool "+n.Name
		case n.Duplex == "half":
			f.Title, f.Cause, f.Mend = "half duplex: frames collide under load", "one side negotiates, the other does not", "ethtool -s "+n.Name+" autoneg on"
		case n.Speed > 0 && n.Speed < 1000 && n.Kind == "physical":
			f.Severity, f.Title, f.Cause, f.Mend = Warning, fmt.Sprintf("only %d Mbit/s were negotiated", n.Speed), "a bad cable, or an old port at the other end", "ethtool -s "+n.Name+" autoneg on"
		default:
			continue
		}
		x.add(f)
	}
}

func orElse(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

func (x *examination) xdpMode() {
	for _, n := range x.nics() {
		f := Finding{Object: n.Name, Severity: Warning, Evidence: n.Mode + " mode"}
		switch {
		case n.Expired:
			f.Severity, f.Title, f.Cause, f.Mend = Error, "what was attached was not confirmed in time: everything passes, unlimited", "nobody sent xgw confirm", "xgw detach "+n.Name+" && xgw attach "+n.Name
		case n.Mode == host.ModeGeneric:
			f.Severity, f.Title, f.Cause, f.Mend = Error, "the kernel plane is in generic mode, which costs as much as tc and sees merged packets", "it was asked for by --mode generic", "xgw detach "+n.Name+" && xgw attach "+n.Name
		case n.Mode == host.ModeTC:
			f.Title, f.Cause, f.Mend = "the kernel plane is at tc: each packet costs an skb before it can be dropped", "native XDP was not to be had when it was attached, or --mode tc was given", "xgw attach "+n.Name+" --mode native --plan"
		case n.Mode == "" && n.XDP != nil:
			f.Title, f.Evidence, f.Cause, f.Mend = "somebody else's XDP program is on it", n.XDP.String(), "it was attached before xgw", "xgw attach "+n.Name+" --plan"
		default:
			continue
		}
		x.add(f)
	}
}

// nativeXDP is what `xgw attach --plan --mode native` says: offloads that fight XDP, MTU,
// queues, driver and kernel.
func (x *examination) nativeXDP() {
	for _, n := range x.nics() {
		n.XDP = nil // who is on the hook, xdpMode has said
		if n.Kind == "loopback" {
			continue
		}
		for _, p := range host.MakePlan(n.Interface, x.now.Facts.Machine, host.Wanted{Mode: host.ModeNative, Frags: true}).Findings {
			if p.Severity == host.Info || p.Severity == host.Blocks && n.Mode == host.ModeNative {
				continue // what is attached is no prediction any more
			}
			f := Finding{Object: n.Name, Severity: Warning, Title: p.Title, Evidence: p.Evidence, Mend: p.Mend, Cause: "native XDP has no use for it"}
			if p.Severity == host.Blocks {
				f.Cause = "native XDP would be refused"
			}
			if c, ok := mend.ParseCommand(p.Mend); ok {
				f.Fix = &c
			}
			x.add(f)
		}
	}
}

// kinds of what a NIC counts when a frame is lost. Names differ between drivers: the first
// that matches says which it is.
var kinds = []struct {
	name         *regexp.Regexp
	kind         string
	title, cause string
}{
	{regexp.MustCompile(`^(rx_missed_errors|rx_missed|rx_fifo_errors|rx_over_errors|rx_out_of_buffer|rx_no_dma_resources|rx_no_buffer_count|rx_discards_phy|imissed|rx_dropped_no_buffer|rx_buff_alloc_err|no_rx_mbuf)$`),
		"overrun", "frames are lost since the receive ring is full", "the CPU that reads the ring is late: too small a ring for the bursts, or too few cores behind it"},
	{regexp.MustCompile(`^(rx_crc_errors|rx_crc_errors_phy|crc_errors|rx_fcs_errors|rx_frame_errors|rx_align_errors|rx_symbol_err_phy|rx_length_errors|rx_errors)$`),
		"damage", "frames arrive damaged", "a cable, an optic or the switch's port; nothing on this machine"},
	{regexp.MustCompile(`^(tx_dropped|tx_fifo_errors|tx_aborted_errors|tx_carrier_errors|tx_errors|tx_timeout_count|tx_timeouts)$`),
		"transmit", "frames cannot be sent", "the transmit ring is full, or the link comes and goes"},
	{regexp.MustCompile(`^(bw_in_allowance_exceeded|bw_out_allowance_exceeded|pps_allowance_exceeded|conntrack_allowance_exceeded)$`),
		"allowance", "the cloud drops what is above this instance's allowance", "the instance's size"},
}

func (x *examination) nicErrors() {
	for _, n := range x.nics() {
		b := x.earlier(n.Name)
		if b == nil {
			continue
		}
		packets := x.rate(b.Statistics["rx_packets"], n.Statistics["rx_packets"]) + x.rate(b.Statistics["tx_packets"], n.Statistics["tx_packets"])
		for _, k := range kinds {
			var worst float64 // a frame is counted under several of the names
			which := ""
			for _, name := range ordered2(n.Statistics) {
				if r := x.rate(b.Statistics[name], n.Statistics[name]); k.name.MatchString(name) && r > worst {
					worst, which = r, name
				}
			}
			if worst == 0 {
				continue
			}
			f := Finding{Object: n.Name, Severity: Warning, Title: k.title, Cause: k.cause, Evidence: fmt.Sprintf("%s %.1f a second, beside %.0f packets", which, worst, packets)}
			if worst >= 1 && worst > packets/10000 {
				f.Severity = Error
			}
			switch most := n.Rings.MostReceive; {
			case k.kind == "overrun" && n.Rings.Receive > 0 && n.Rings.Receive < most:
				f.Fix = &mend.Change{Kind: mend.Ring, Object: n.Name, Value: strconv.Itoa(most)}
			case k.kind == "overrun":
				f.Mend = "xgw queues " + n.Name + " --spread"
			default:
				f.Mend = "ethtool -S " + n.Name + " | grep -v ': 0$'"
			}
			x.add(f)
		}
	}
}

func ordered2(m map[string]uint64) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// enoughRing is what holds a burst of 1 ms at 1 Gbit/s of small frames.
const enoughRing = 1024

func (x *examination) rings() {
	blind := true
	for _, n := range x.nics() {
		r := n.Rings
		if r.Receive == 0 {
			continue
		}
		blind = false
		want := min(r.MostReceive, enoughRing)
		if r.Receive >= want {
			continue
		}
		f := Finding{Object: n.Name, Severity: Warning, Title: "the receive ring is small: bursts are lost before anybody sees them", Evidence: fmt.Sprintf("%d descriptors of %d possible", r.Receive, r.MostReceive),
			Cause: "the driver's default, or somebody wanted less delay", Fix: &mend.Change{Kind: mend.Ring, Object: n.Name, Value: strconv.Itoa(want)}}
		if r.Receive < 128 {
			f.Severity = Error
		}
		x.add(f)
	}
	if blind {
		x.cannot("no interface tells its rings")
	}
}

func (x *examination) channels() {
	blind := true
	cores := len(x.now.cpus())
	for _, n := range x.nics() {
		c := n.Channels
		have, most, word := c.Combined, c.MostCombined, "combined"
		if most == 0 {
			have, most, word = c.Receive, c.MostReceive, "rx"
		}
		if most == 0 || cores == 0 {
			continue
		}
		blind = false
		if n.Driver == "ena" || n.Driver == "gve" {
			most /= 2 // the other half is for what XDP sends
		}
		if want := min(most, cores); have < want {
			x.add(Finding{Object: n.Name, Severity: Warning, Title: "fewer queues than cores: those without one get no connections of their own", Evidence: fmt.Sprintf("%d of %d possible queues, %d cores", have, most, cores),
				Cause: "the driver's default, or it was set so", Mend: fmt.Sprintf("ethtool -L %s %s %d # resets the link for a moment; before xgw attach", n.Name, word, want)})
		}
	}
	if blind {
		x.cannot("no interface tells its channels")
	}
}

func (x *examination) rss() {
	blind := true
	for _, n := range x.nics() {
		queues := max(n.Channels.Combined, n.Channels.Receive)
		if len(n.RSS) == 0 || queues == 0 {
			continue
		}
		blind = false
		entries := make([]int, queues)
		copy(entries, n.RSS)
		if least, most := slices.Min(entries), slices.Max(entries); most > 2*least {
			total := 0
			for _, v := range entries {
				total += v
			}
			x.add(Finding{Object: n.Name, Severity: Warning, Title: "the table that spreads flows over queues is uneven", Evidence: fmt.Sprintf("entries by queue: %s", words(entries)), Cause: "it was set by hand, or for another number of queues",
				Fix: &mend.Change{Kind: mend.RSS, Object: n.Name, Value: mend.EqualTable(total, queues)}})
		}
	}
	if blind {
		x.cannot("no interface has a table of flows")
	}
}

func words(all []int) string {
	var w []string
	for _, v := range all {
		w = append(w, strconv.Itoa(v))
	}
	return strings.Join(w, " ")
}

// mapped is the CPU mask of each transmit (xps) or receive (rps) queue of the interface.
func (r *Reading) mapped(name, which string) map[int]string {
	out := map[int]string{}
	for path, text := range r.Files {
		rest, ok := strings.CutPrefix(path, "sys/class/net/"+name+"/queues/"+which+"-")
		if !ok {
			continue
		}
		number, _, _ := strings.Cut(rest, "/")
		if q, err := strconv.Atoi(number); err == nil {
			out[q] = strings.TrimSpace(text)
		}
	}
	return out
}

func (x *examination) xps() {
	blind := true
	for _, n := range x.nics() {
		masks := x.now.mapped(n.Name, "tx")
		if len(masks) < 2 {
			continue
		}
		blind = false
		unset := 0
		for _, m := range masks {
			if mend.Equal(m, "0") {
				unset++
			}
		}
		if unset > 0 {
			x.add(Finding{Object: n.Name, Severity: Info, Title: "transmit queues are chosen by hash: cores share their locks", Evidence: fmt.Sprintf("%d of %d transmit queues have no cores (xps_cpus)", unset, len(masks)),
				Cause: "the driver sets none", Mend: "xgw queues " + n.Name + " --spread"})
		}
	}
	if blind {
		x.cannot("no interface has several transmit queues")
	}
}
