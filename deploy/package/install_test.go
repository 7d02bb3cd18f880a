// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine is a Debian of its own, in a root that the test may change.
type machine struct {
	root string // its file system
	bpf  string // what is its /sys/fs/bpf
}

// newMachine lays a layer over the root that vmtest/run --root made.
func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: installs a package")
	}
	if _, err := exec.LookPath("systemd-nspawn"); err != nil {
		t.Skip("needs systemd-nspawn")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("needs a home, where the root of a Debian would be")
	}
	base := filepath.Join(cache, "xgw-vmtest/root")
	if _, err := os.Stat(base + "/ready"); err != nil {
		t.Skip("needs the root of a Debian, which `vmtest/run --root` makes: ", err)
	}
	dir := t.TempDir()
	m := &machine{root: filepath.Join(dir, "root"), bpf: filepath.Join(dir, "bpf")}
	for _, d := range []string{m.root, m.bpf, dir + "/upper", dir + "/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", base, dir, dir)
	if err := unix.Mount("overlay", m.root, "overlay", 0, layers); err == nil {
		t.Cleanup(func() { _ = unix.Unmount(m.root, unix.MNT_DETACH) })
	} else if out, err := exec.Command("cp", "-a", base+"/.", m.root).CombinedOutput(); err != nil { // no layers over layers
		t.Fatalf("copy %s: %v\n%s", base, err, out)
	}
	if err := unix.Mount("bpf", m.bpf, "bpf", 0, ""); err != nil {
		t.Skip("needs a BPF file system: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(m.bpf, unix.MNT_DETACH) })
	return m
}

// run executes a command there, or boots the machine and waits until it goes off.
func (m *machine) run(args ...string) (string, error) {
	nspawn := []string{
		"--quiet", "--directory=" + m.root, fmt.Sprintf("--machine=xgw-package-%d", os.Getpid()), "--register=no", "--private-network",
		// What a machine lets root do, a container does not by itself.
		"--capability=all", "--system-call-filter=bpf landlock_create_ruleset landlock_add_rule landlock_restrict_self", "--bind=" + m.bpf + ":/sys/fs/bpf",
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		nspawn = append(nspawn, "--keep-unit") // there is nobody who could make one
	}
	cmd := exec.Command("timeout", append([]string{"--kill-after=10", "240", "systemd-nspawn"}, append(nspawn, args...)...)...)
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes", "DEBIAN_FRONTEND=noninteractive")
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *machine) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := m.run(args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (m *machine) write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(m.root+path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(m.root + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// there tells which of the paths exist, links among them.
func (m *machine) there(paths ...string) (list []string) {
	for _, path := range paths {
		if _, err := os.Lstat(m.root + path); !errors.Is(err, os.ErrNotExist) {
			list = append(list, path)
		}
	}
	return list
}

const configuration = `# the operator's own
interfaces: [{name: edge0}]
listeners: [{address: ":443"}]
routes: [{name: all, path: /, upstream: back}]
upstreams: [{name: back, servers: ["127.0.0.1:8080"]}]
log: {access: /var/log/gateway/access.log}
`

// From the first install to the purge, with a boot in between that serves.
func TestDebianPackage(t *testing.T) {
	m := newMachine(t)
	packages := mustPackages(t, "amd64")
	mustRun(t, "cp", packages+"/xgw-amd64.deb", m.root+"/root/first.deb")
	m.must(t, "dpkg", "-i", "/root/first.deb")
	t.Run("installed", func(t *testing.T) { testInstalled(t, m) })

	m.write(t, "/etc/gateway/gateway.yaml", configuration)
	t.Run("booted", func(t *testing.T) { testBooted(t, m) })

	// The next version has other examples; the operator's file stays, and its own is beside it.
	next := t.TempDir()
	mustRun(t, "dpkg-deb", "-R", packages+"/xgw-amd64.deb", next+"/tree")
	mustRun(t, "sed", "-i", "s/^Version: .*/Version: 0.9.1-1/", next+"/tree/DEBIAN/control")
	for _, name := range []string{"gateway.yaml", "buffers.conf"} {
		mustRun(t, "sed", "-i", "$ a # new in 0.9.1", next+"/tree/etc/gateway/"+name)
	}
	mustRun(t, "dpkg-deb", "--root-owner-group", "-Znone", "-b", next+"/tree", m.root+"/root/next.deb")
	m.must(t, "dpkg", "--force-confdef", "--force-confold", "-i", "/root/next.deb")
	if got := m.read(t, "/etc/gateway/gateway.yaml"); got != configuration {
		t.Errorf("the operator's file is not kept by an upgrade:\n%s", got)
	}
	if !strings.Contains(m.read(t, "/etc/gateway/gateway.yaml.dpkg-dist"), "new in 0.9.1") || !strings.Contains(m.read(t, "/etc/gateway/buffers.conf"), "new in 0.9.1") {
		t.Error("the upgrade does not bring the new examples")
	}
	link := "/etc/systemd/system/multi-user.target.wants/gateway-engine.service"
	if len(m.there(link)) == 0 {
		t.Error("the upgrade disables the service")
	}

	m.must(t, "dpkg", "-r", "xgw")
	if left := m.there("/usr/bin/xgw", "/usr/bin/gateway-ctl", "/usr/lib/systemd/system/gateway-engine.service", link, "/usr/share/man/man8/xgw.8.gz"); len(left) > 0 {
		t.Errorf("removed, and yet there: %q", left)
	}
	if m.read(t, "/etc/gateway/gateway.yaml") != configuration || len(m.there("/var/lib/xgw/made.key", "/etc/sudoers.d/gateway")) != 2 {
		t.Error("removing takes what only a purge may")
	}
	m.must(t, "dpkg", "-P", "xgw")
	if left := m.there("/etc/gateway", "/var/lib/xgw", "/var/log/gateway", "/etc/sudoers.d/gateway", "/etc/logrotate.d/gateway"); len(left) > 0 {
		t.Errorf("purged, and yet there: %q", left)
	}
}

// The .rpm in the same root, which is no machine of the family that it is for: by its files, its
// scripts, users and modes.
func TestRPMPackage(t *testing.T) {
	m := newMachine(t)
	file := mustPackages(t, "amd64") + "/xgw-amd64.rpm"
	rpm := func(args ...string) {
		t.Helper()
		if err := unix.Mount("proc", m.root+"/proc", "proc", 0, ""); err != nil { // for the scripts, as on a machine that is up
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(m.root+"/proc", unix.MNT_DETACH) }()
		mustRun(t, "rpm", append([]string{"--root", m.root, "--dbpath", "/var/lib/rpm", "--nodeps", "--force-debian"}, args...)...)
	}
	rpm("-i", file)
	t.Run("installed", func(t *testing.T) { testInstalled(t, m) })
	if version := m.must(t, "/usr/bin/xgw", "version"); !strings.Contains(version, "0.9.0") {
		t.Errorf("xgw version says %s", version)
	}

	m.write(t, "/etc/gateway/gateway.yaml", configuration)
	m.must(t, "systemctl", "enable", "gateway-engine.service")
	link := "/etc/systemd/system/multi-user.target.wants/gateway-engine.service"
	rpm("-U", "--force", file) // what upgrades run: the new one's scripts, then the old one's
	if m.read(t, "/etc/gateway/gateway.yaml") != configuration || len(m.there(link, "/usr/bin/xgw", "/usr/share/man/man8/xgw.8.gz")) != 3 {
		t.Error("an upgrade changes the operator's file, disables the service or takes files away")
	}

	made := "/var/lib/xgw/made.key"
	if err := os.MkdirAll(filepath.Dir(m.root+made), 0o700); err != nil {
		t.Fatal(err)
	}
	m.write(t, made, "")
	rpm("-e", "xgw")
	if left := m.there("/usr/bin/xgw", "/usr/bin/gateway-ctl", "/usr/lib/systemd/system/gateway-engine.service", link, "/etc/gateway/buffers.conf", "/usr/share/man/man8/xgw.8.gz"); len(left) > 0 {
		t.Errorf("removed, and yet there: %q", left)
	}
	if kept := m.read(t, "/etc/gateway/gateway.yaml.rpmsave"); kept != configuration || len(m.there(made)) != 1 {
		t.Errorf("removing takes what the gateway made, or the operator's file:\n%s", kept)
	}
}

func testInstalled(t *testing.T, m *machine) {
	got := m.must(t, "stat", "-c", "%A %U:%G %n", "/etc/gateway", "/etc/gateway/gateway.yaml", "/etc/sudoers.d/gateway")
	for _, want := range []string{"drwxr-x--- root:gateway_admin /etc/gateway\n", "-rw-r----- root:gateway_admin /etc/gateway/gateway.yaml\n",
		"-r--r----- root:root /etc/sudoers.d/gateway\n"} {
		if !strings.Contains(strings.ReplaceAll(got, "\r", ""), want) {
			t.Errorf("owners and modes lack %q:\n%s", want, got)
		}
	}
	m.must(t, "xgw", "config", "check", "-c", "/etc/gateway/gateway.yaml") // the examples, as they come
	m.must(t, "visudo", "-c")
	m.must(t, "logrotate", "--debug", "/etc/logrotate.d/gateway")
	if said := m.must(t, "systemd-analyze", "verify", "gateway-engine.service"); strings.Contains(said, "gateway") {
		t.Errorf("the unit: %s", said)
	}
	// 2.4 of 10. What is over 2.0 are rights that a gateway has use for: see ARCHITECTURE.md.
	m.must(t, "systemd-analyze", "security", "--offline=true", "--threshold=24", "gateway-engine.service")
	if links := m.there("/etc/systemd/system/multi-user.target.wants/gateway-engine.service"); len(links) > 0 {
		t.Error("an install enables the service, whose configuration has examples alone")
	}
}

// probe runs in the machine when it is up. Each line that it prints is a name and what came of it.
const probe = `#!/bin/sh
say() { echo "$1: $(shift; "$@" 2>&1)"; }
status() { "$@" >/dev/null 2>&1; echo $?; }
get() { curl -sk --max-time 10 --retry 15 --retry-delay 1 --retry-connrefused -o /dev/null -w '%{http_code} %{http_version}' "$@"; }
operator() { runuser -u gateway_admin -- sudo -n "$@"; }
worker() { for s in $(grep -l '^Name:.xgw-worker' /proc/[0-9]*/status); do tr '\t\n' ' ' <$s; echo; done; }
supervisor() { tr '\t\n' ' ' </proc/$(systemctl show -p MainPID --value gateway-engine)/status; echo; }
ip link add edge0 type veth peer name far0
ip link set edge0 up
ip link set far0 up
systemctl start upstream
say upstream get http://127.0.0.1:8080/
say start status systemctl enable --now gateway-engine
say h2 get https://127.0.0.1/
say h1 get --http1.1 https://127.0.0.1/
say requests sh -c 'curl -s 127.0.0.1:9090/metrics | grep -c "^xgw_requests"'
say attached xgw status
say worker worker
say engine supervisor
say owners stat -c '%U:%G %a %n' /sys/fs/bpf/xgw /sys/fs/bpf/xgw/edge0 /run/xgw/xgw.sock /dev/shm/xgw.zone /var/lib/xgw /var/log/gateway/access.log
say control runuser -u gateway_admin -- gateway-ctl status
say reload status operator /usr/bin/systemctl reload gateway-engine
say sockets operator /usr/bin/netstat -tlnp
say other-unit status operator /usr/bin/systemctl restart upstream
say other-command status operator /usr/bin/cat /etc/shadow
say rotate status logrotate --force /etc/logrotate.d/gateway
say rotated ls /var/log/gateway
say after get https://127.0.0.1/
say upgrade gateway-ctl upgrade --watch 2s
say main-pid systemctl show -p MainPID --value gateway-engine
say upgraded get https://127.0.0.1/
say engine supervisor
say reload-again status systemctl reload gateway-engine
say attached-still xgw status
say main systemctl show -p Type,WatchdogUSec,NRestarts,ActiveState gateway-engine
say killed systemctl kill --kill-who=main --signal=KILL gateway-engine
sleep 2
say after-kill get https://127.0.0.1/
say stop status systemctl stop gateway-engine
say detached xgw status
say journal journalctl --no-pager -o cat -u gateway-engine
`

// boot runs the shell's script when the machine is up, and says what that wrote.
func (m *machine) boot(t *testing.T, script string) string {
	t.Helper()
	m.write(t, "/root/probe", script)
	m.write(t, "/etc/systemd/system/probe.service", `[Unit]
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/bin/sh /root/probe
StandardOutput=file:/root/found
TimeoutStartSec=180
`)
	wants := m.root + "/etc/systemd/system/default.target.wants"
	if err := errors.Join(os.MkdirAll(wants, 0o755), os.Symlink("/etc/systemd/system/probe.service", wants+"/probe.service")); err != nil {
		t.Fatal(err)
	}
	console, err := m.run("--boot")
	found, readErr := os.ReadFile(m.root + "/root/found")
	if readErr != nil && !strings.Contains(console, "Welcome to") {
		t.Skipf("needs a machine where systemd-nspawn can boot: %v\n%s", err, console)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("found:\n%s\nconsole:\n%s", found, console)
		}
	})
	return string(found)
}

func testBooted(t *testing.T, m *machine) {
	m.write(t, "/etc/systemd/system/upstream.service", "[Service]\nExecStart=/usr/bin/xgw upstream\n")
	found := m.boot(t, probe)
	for _, want := range []string{
		"upstream: 200 1.1\n", "start: 0\n", "h2: 200 2\n", "h1: 200 1.1\n", "attached: edge0: native mode", "control: generation 1", "reload: 0\n", "gateway-engine",
		"other-unit: 1\n", "other-command: 1\n", "rotate: 0\n", "access.log.1", "after: 200 2\n", "upgraded: 200 2\n", "after-kill: 200 2\n", "a supervisor that is gone left its zone", "reload-again: 0\n", "attached-still: edge0: native mode", "Type=notify", "WatchdogUSec=30s", "NRestarts=0",
		"ActiveState=active", "stop: 0\n", "detached: nothing is attached",
	} {
		if !strings.Contains(found, want) {
			t.Errorf("found no %q", want)
		}
	}
	if strings.Contains(found, "requests: 0\n") || !strings.Contains(found, "requests: ") {
		t.Error("9090 shows no requests")
	}
	if m := regexp.MustCompile(`upgrade: process (\d+) has taken over`).FindStringSubmatch(found); m == nil || !strings.Contains(found, "main-pid: "+m[1]+"\n") {
		t.Error("after an upgrade the service manager takes another process for the main one, or there was none")
	}
	testUnprivileged(t, found)
	workers := 0
	for line := range strings.Lines(found) {
		if line = strings.TrimPrefix(line, "worker: "); strings.HasPrefix(line, "Name: xgw-worker") {
			workers++
			for _, want := range []string{"CapEff: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"} {
				if !strings.Contains(line, want) || strings.Contains(line, "Uid: 0 ") {
					t.Errorf("a worker lacks %q: %s", want, line)
				}
			}
		}
	}
	if workers == 0 {
		t.Error("no worker was found")
	}
}

// The supervisor, the one after an upgrade too, is no root, and has the unit's rights alone.
func testUnprivileged(t *testing.T, found string) {
	t.Helper()
	unit, err := os.ReadFile("../gateway-engine.service")
	if err != nil {
		t.Fatal(err)
	}
	set := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(unit)
	if set == nil || !strings.Contains(string(unit), "\nAmbientCapabilities="+string(set[1])+"\n") {
		t.Fatal("the unit's two sets of capabilities differ")
	}
	engines := regexp.MustCompile(`(?m)^engine: .*$`).FindAllString(found, -1)
	if len(engines) != 2 {
		t.Errorf("%d supervisors were looked at", len(engines))
	}
	for _, line := range engines {
		effective := regexp.MustCompile(`CapEff: ([0-9a-f]{16}) `).FindStringSubmatch(line)
		if effective == nil || strings.Contains(line, "Uid: 0 ") || !strings.Contains(line, "CapBnd: "+effective[1]) || !strings.Contains(line, "NoNewPrivs: 1") {
			t.Errorf("the supervisor: %s", line)
			continue
		}
		mask, err := strconv.ParseUint(effective[1], 16, 64)
		if want := len(strings.Fields(string(set[1]))); err != nil || bits.OnesCount64(mask) != want {
			t.Errorf("the supervisor has capabilities %s, the unit %d of them", effective[1], want)
		}
	}
	for _, want := range []string{
		"gateway_engine:gateway_engine 700 /sys/fs/bpf/xgw/edge0\n", "gateway_engine:gateway_admin 660 /run/xgw/xgw.sock\n", "gateway_engine:gateway_engine 640 /dev/shm/xgw.zone\n",
		"gateway_engine:gateway_engine 700 /var/lib/xgw\n",
	} {
		if !strings.Contains(found, want) {
			t.Errorf("found no %q", want)
		}
	}
}
