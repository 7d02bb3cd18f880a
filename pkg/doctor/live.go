// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/config"
	"github.com/xgw-project/xgw/pkg/datapath"
	"github.com/xgw-project/xgw/pkg/host"
	"github.com/xgw-project/xgw/pkg/ledger"
	"github.com/xgw-project/xgw/pkg/mend"
	"github.com/xgw-project/xgw/pkg/zone"
)

// Live is this machine, and the gateway of the instance on it.
type Live struct {
	Interfaces []string // none: those that are attached, else all that are up
	Instance   string
	ZonePath   string
	// Load reads the configuration whose file is Path; what is in force was read at Loaded,
	// zero for not known.
	Load   func() (*config.Config, error)
	Path   string
	Loaded time.Time
	// Servers, where not nil, tells how upstreams' servers are.
	Servers func() []Server
}

// Examine reads the machine twice and says what is wrong.
func (l *Live) Examine(interval time.Duration) (*Report, error) {
	before, err := l.Read()
	if err != nil {
		return nil, err
	}
	time.Sleep(interval)
	now, err := l.Read()
	if err != nil {
		return nil, err
	}
	return Examine(before, now), nil
}

// Read takes a reading. What the machine does not tell is left out; an interface that was
// asked for and is not there is an error.
func (l *Live) Read() (*Reading, error) {
	r := &Reading{At: time.Now()}
	machine, err := host.ReadMachine("/")
	if err != nil {
		return nil, err
	}
	r.Facts = Facts{Machine: machine, Unsynchronised: unsynchronised()}
	set, drifted, err := mend.Here(l.Instance).Drift("")
	if err != nil && !errors.Is(err, os.ErrPermission) {
		return nil, err
	}
	r.Facts.Spread = len(set)
	for _, c := range drifted {
		rest, ofNIC := strings.CutPrefix(c.Object, "/sys/class/net/")
		if name, _, _ := strings.Cut(rest, "/"); ofNIC && host.CheckSysfs("/", name) != nil {
			continue
		}
		r.Facts.Drift = append(r.Facts.Drift, c.Object)
	}
	planes := l.planes()
	defer func() {
		for _, d := range planes {
			d.Close()
		}
	}()
	names := l.Interfaces
	if len(names) == 0 {
		for _, d := range planes {
			names = append(names, d.Interface())
		}
	}
	if len(names) == 0 {
		if names, err = host.Interfaces(); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		n, err := readNIC(name, planes)
		if err != nil {
			return nil, err
		}
		r.NICs = append(r.NICs, n)
	}
	r.Files = Files(os.DirFS("/"), r.NICs)
	r.Gateway, err = l.gateway(r.Files)
	return r, err
}

// planes are what is attached, where this user may see it.
func (l *Live) planes() []*datapath.Datapath {
	names, err := datapath.Interfaces(datapath.Options{Instance: l.Instance})
	if err != nil {
		return nil
	}
	var all []*datapath.Datapath
	for _, name := range names {
		if d, err := datapath.Open(datapath.Options{Interface: name, Instance: l.Instance}); err == nil {
			all = append(all, d)
		}
	}
	return all
}

func readNIC(name string, planes []*datapath.Datapath) (NIC, error) {
	i, err := host.ReadInterface(name)
	if err != nil {
		return NIC{}, err
	}
	n := NIC{Interface: i, Statistics: host.Statistics(name), RSS: mend.FlowTable(name)}
	if n.NoSysfs = host.CheckSysfs("/", name) != nil; !n.NoSysfs {
		n.IRQs = host.Interrupts("/", name)
	}
	for _, d := range planes {
		status := d.Status()
		if d.Interface() != name || !status.Attached {
			continue
		}
		n.Mode = string(status.Mode)
		if s, err := d.State(); err == nil {
			n.Expired = s.Expired
		}
		if t, err := d.TableCounts(); err == nil {
			n.Tables = Tables{SourceBypass: t.SourceBypass, PrefixBypass: t.PrefixBypass, VerifiedLive: t.VerifiedLive, HandshakeLost: t.HandshakeLost}
		}
	}
	return n, nil
}

func unsynchronised() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && (state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0)
}

// gateway reads the zone and the configuration; nil where neither is there.
func (l *Live) gateway(files map[string]string) (*Gateway, error) {
	z, err := zone.Open(l.ZonePath)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	defer z.Close()
	g := &Gateway{}
	if err := z.Guard(func() { g.count(z) }); err != nil {
		return nil, err
	}
	l.configure(g, files)
	if l.Servers != nil {
		g.Servers = l.Servers()
	}
	return g, nil
}

// count takes over what the zone has.
func (g *Gateway) count(z *zone.Zone) {
	g.Supervisor, g.Beat = ledger.Supervisor(z)
	var s ledger.Snapshot
	_ = ledger.New(ledger.Sources{Zone: z}).Snapshot(&s) // its errors are of interfaces
	g.Requests, g.Handshakes, g.Counters = map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
	for o, n := range s.Requests {
		g.Requests[zone.RequestOutcome(o).String()] = n
	}
	for i := range s.Workers {
		w := &s.Workers[i]
		for o, n := range w.Handshakes {
			g.Handshakes[zone.HandshakeOutcome(o).String()] += n
		}
		for c, n := range w.Counters {
			g.Counters[zone.Counter(c).String()] += n
		}
		g.Workers = append(g.Workers, readWorker(w))
	}
	last := len(s.Upstreams) - 1
	for i := range s.Upstreams {
		u := Upstream{Name: s.Upstreams[i].Name, Outcomes: map[string]uint64{}}
		var tries uint64
		for o, n := range s.Upstreams[i].Outcomes {
			u.Outcomes[zone.UpstreamOutcome(o).String()] = n
			tries += n
		}
		if i < last {
			g.Upstreams = append(g.Upstreams, u)
		} else if tries > 0 {
			g.Overflow = append(g.Overflow, "upstreams")
		}
	}
	if classes := s.Routes[len(s.Routes)-1].Classes; classes != [5]uint64{} {
		g.Overflow = append(g.Overflow, "routes")
	}
	if slices.Max(s.Limits[len(s.Limits)-1].Outcomes) > 0 {
		g.Overflow = append(g.Overflow, "limits")
	}
}

func readWorker(w *ledger.WorkerCounts) Worker {
	out := Worker{PID: w.PID, Core: w.Core, State: w.State.String(), Restarts: w.Restarts, Connections: w.Connections}
	if w.State == zone.StateReady && !ledger.Runs(w.PID) {
		out.State = ledger.Gone
		return out
	}
	var r unix.Rlimit
	if unix.Prlimit(w.PID, unix.RLIMIT_NOFILE, nil, &r) == nil {
		out.FileLimit, out.FileLimits = r.Cur, r.Max
	}
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.PID))
	out.Files = uint64(len(fds))
	out.Start, _ = mend.StartOf(w.PID)
	return out
}

// configure reads the configuration, and what it names.
func (l *Live) configure(g *Gateway, files map[string]string) {
	if l.Load == nil {
		return
	}
	g.Configuration = Configuration{Path: l.Path, Loaded: l.Loaded}
	for _, path := range config.Files(l.Path) {
		if info, err := os.Stat(path); err == nil && info.ModTime().After(g.Configuration.Changed) {
			g.Configuration.Changed = info.ModTime()
		}
	}
	c, err := l.Load()
	if err != nil {
		if errors.Is(err, os.ErrNotExist) && l.Loaded.IsZero() {
			g.Configuration = Configuration{} // the gateway has another one
			return
		}
		g.Configuration.Error = err.Error()
		return
	}
	g.Configuration.Connections = uint64(c.Connections)
	for i := range g.Upstreams {
		for _, u := range c.Upstreams {
			if u.Name == g.Upstreams[i].Name {
				g.Upstreams[i].Servers = addresses(u)
			}
		}
	}
	for i := range c.Listeners {
		g.Certificates = append(g.Certificates, certificates(&c.Listeners[i], c.State)...)
	}
	g.Log = diskOf(c.Log.Access, files["proc/diskstats"])
}

func addresses(u config.Upstream) (all []string) {
	for _, s := range u.Servers {
		all = append(all, s.Address)
	}
	return all
}

func certificates(l *config.Listener, state string) (all []Certificate) {
	if !l.TLS {
		return nil
	}
	for _, c := range l.Certificates {
		all = append(all, readCertificate(c.Chain))
	}
	if len(all) == 0 {
		c := readCertificate(filepath.Join(state, "made.crt"))
		c.Made = true
		all = append(all, c)
	}
	return all
}

func readCertificate(path string) Certificate {
	c := Certificate{File: path}
	text, err := os.ReadFile(path)
	block, _ := pem.Decode(text)
	if err == nil && block == nil {
		err = errors.New("no certificate in it")
	}
	if err == nil {
		var leaf *x509.Certificate
		if leaf, err = x509.ParseCertificate(block.Bytes); err == nil {
			c.Expires = leaf.NotAfter
		}
	}
	if err != nil {
		c.Error = err.Error()
	}
	return c
}

// diskOf is the file system that the log is on.
func diskOf(path, diskstats string) Disk {
	d := Disk{Path: path}
	var fs unix.Statfs_t
	var st unix.Stat_t
	dir := filepath.Dir(path)
	if path == "" || path == "off" || unix.Statfs(dir, &fs) != nil || unix.Stat(dir, &st) != nil {
		return Disk{}
	}
	d.Free, d.Size = fs.Bavail*uint64(fs.Bsize), fs.Blocks*uint64(fs.Bsize)
	for _, line := range strings.Split(diskstats, "\n") {
		f := strings.Fields(line)
		if len(f) > 2 && f[0] == fmt.Sprint(unix.Major(st.Dev)) && f[1] == fmt.Sprint(unix.Minor(st.Dev)) {
			d.Device = f[2]
		}
	}
	return d
}
