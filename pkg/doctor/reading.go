// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"io/fs"
	"time"

	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/mend"
)

// Reading is a machine at one moment.
type Reading struct {
	At time.Time
	// Files of /proc and /sys by path without the leading slash, such as proc/stat.
	Files map[string]string
	Facts Facts
	NICs  []NIC
	// Gateway is nil when only the machine is looked at.
	Gateway *Gateway
}

// Facts are what no file tells.
type Facts struct {
	host.Machine
	Unsynchronised bool     `json:"unsynchronised,omitempty"` // the clock is set by nobody
	Spread         int      `json:"spread,omitempty"`         // settings that xgw queues --spread made
	Drift          []string `json:"drift,omitempty"`          // those of them that somebody changed since
}

// NIC is an interface.
type NIC struct {
	host.Interface
	// Statistics of the driver (ethtool -S) and, by their names in sysfs, of the kernel.
	Statistics map[string]uint64 `json:"statistics,omitempty"`
	IRQs       []int             `json:"irqs,omitempty"`
	NoSysfs    bool              `json:"no_sysfs,omitempty"` // /sys is of another network namespace
	RSS        []int             `json:"rss,omitempty"`      // entries of the indirection table, by queue
	Mode       string            `json:"mode,omitempty"`
	Expired    bool              `json:"expired,omitempty"` // it was not confirmed: all passes
	Tables     Tables            `json:"tables,omitzero"`
}

// Tables are the kernel plane's own counts of what did not fit its tables.
type Tables struct {
	SourceBypass  uint64 `json:"source_bypass,omitempty"` // strangers that were not judged
	PrefixBypass  uint64 `json:"prefix_bypass,omitempty"`
	VerifiedLive  uint64 `json:"verified_live,omitempty"`  // known sources given up for others
	HandshakeLost uint64 `json:"handshake_lost,omitempty"` // that could not be followed
}

// Gateway is what a gateway counts, and what its files are like.
type Gateway struct {
	Supervisor    string        `json:"supervisor"` // as package top has it: running, hanging, gone, absent
	Beat          time.Duration `json:"beat_ns"`    // since its last sign of life
	Workers       []Worker      `json:"workers"`
	Configuration Configuration `json:"configuration,omitzero"`
	Certificates  []Certificate `json:"certificates,omitempty"`
	Log           Disk          `json:"log,omitzero"`

	Requests   map[string]uint64 `json:"requests,omitempty"`   // by zone.RequestOutcome
	Handshakes map[string]uint64 `json:"handshakes,omitempty"` // by zone.HandshakeOutcome
	Counters   map[string]uint64 `json:"counters,omitempty"`   // by zone.Counter, of all workers
	Upstreams  []Upstream        `json:"upstreams,omitempty"`
	Servers    []Server          `json:"servers,omitempty"`
	Overflow   []string          `json:"overflow,omitempty"` // kinds of names that found no place in the zone
}

// Worker is one worker's process.
type Worker struct {
	PID         int    `json:"pid"`
	Start       string `json:"start,omitempty"` // as mend.StartOf has it
	Core        int    `json:"core"`            // -1: not pinned
	State       string `json:"state"`           // as package zone has it, or gone
	Restarts    uint64 `json:"restarts"`
	Connections uint64 `json:"connections"`
	Files       uint64 `json:"files"`       // open
	FileLimit   uint64 `json:"file_limit"`  // soft
	FileLimits  uint64 `json:"file_limits"` // hard
}

// Configuration is the file and what is in force.
type Configuration struct {
	Path        string    `json:"path,omitempty"`
	Error       string    `json:"error,omitempty"`      // why the file would not be taken
	Changed     time.Time `json:"changed,omitzero"`     // the newest of its files
	Loaded      time.Time `json:"loaded,omitzero"`      // what is in force was read then; zero: not known
	Connections uint64    `json:"connections,omitzero"` // worker_connections
}

// Certificate is one of the gateway's.
type Certificate struct {
	File    string    `json:"file"`
	Error   string    `json:"error,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Made    bool      `json:"made,omitempty"` // by the gateway: it is renewed at the next start
}

// Disk is where the access log is written.
type Disk struct {
	Path     string `json:"path,omitempty"`
	Device   string `json:"device,omitempty"` // as /proc/diskstats names it; "" for none
	Free     uint64 `json:"free"`             // bytes for plain users
	Size     uint64 `json:"size"`
	LostFull uint64 `json:"lost_full,omitempty"` // lines that did not fit
}

// Upstream is how tries at it ended.
type Upstream struct {
	Name     string            `json:"name"`
	Outcomes map[string]uint64 `json:"outcomes"` // by zone.UpstreamOutcome
	Servers  []string          `json:"servers,omitempty"`
}

// Server is one of an upstream, as its health checks find it.
type Server struct {
	Upstream string `json:"upstream"`
	Address  string `json:"address"`
	State    string `json:"state"`
	Cause    string `json:"cause,omitempty"`
	Drained  bool   `json:"drained,omitempty"`
}

// patterns are the files that a reading has, for fs.Glob.
var patterns = []string{
	"proc/stat", "proc/interrupts", "proc/meminfo", "proc/vmstat", "proc/diskstats", "proc/pressure/*",
	"proc/net/softnet_stat", "proc/net/snmp", "proc/net/netstat", "proc/net/sockstat",
	"proc/sys/fs/file-nr", "proc/sys/net/core/netdev_budget", "proc/sys/net/netfilter/nf_conntrack_count", "proc/sys/net/netfilter/nf_conntrack_max",
	"sys/devices/system/clocksource/clocksource0/*_clocksource",
	"sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq", "sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
	"sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor", "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count",
}

// Files reads those that checks look at; what is not there is left out.
func Files(root fs.FS, nics []NIC) map[string]string {
	out := map[string]string{}
	read := func(pattern string) {
		names, _ := fs.Glob(root, pattern) // patterns are right
		for _, name := range names {
			if text, err := fs.ReadFile(root, name); err == nil {
				out[name] = string(text)
			}
		}
	}
	for _, p := range patterns {
		read(p)
	}
	for _, s := range settingFiles() {
		read(s)
	}
	for i := range nics {
		if nics[i].NoSysfs {
			continue
		}
		read("sys/class/net/" + nics[i].Name + "/queues/*/[rx]ps_cpus")
		for _, n := range nics[i].IRQs {
			read(irqFile(n, "smp_affinity_list"))
			read(irqFile(n, "effective_affinity_list"))
		}
	}
	if pid, line := mend.Balancer(root); pid != "" {
		out[balancer] = line
	}
	return out
}

// balancer is the pseudo-file of irqbalance's command line, where it runs.
const balancer = "irqbalance"
