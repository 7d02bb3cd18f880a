// SPDX-License-Identifier: Apache-2.0

// Package packages tests what deploy/package/build makes.
package packages

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

const top = "../.."

// built are the directories of packages, by architecture, each made once for all tests.
var built = map[string]*struct {
	sync.Once
	dir string
	err error
	out []byte
}{"amd64": {}, "arm64": {}}

func TestMain(m *testing.M) {
	status := m.Run()
	for _, b := range built {
		if b.dir != "" {
			os.RemoveAll(b.dir)
		}
	}
	os.Exit(status)
}

// mustPackages is the directory of the packages for an architecture.
func mustPackages(t *testing.T, arch string) string {
	t.Helper()
	if _, err := os.Stat(top + "/bin/nfpm"); err != nil {
		t.Skip("needs bin/nfpm, which `make test` builds")
	}
	b := built[arch]
	b.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "xgw-packages"); b.err == nil {
			b.out, b.err = build(top, b.dir, arch).CombinedOutput()
		}
	})
	if b.err != nil {
		t.Fatalf("build: %v\n%s", b.err, b.out)
	}
	return b.dir
}

// build makes the packages of a tree.
func build(tree, into string, arch ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(tree, "deploy/package/build"), append([]string{into}, arch...)...)
	cmd.Env = append(os.Environ(), "VERSION=0.9.0", "SOURCE_DATE_EPOCH=1790000000")
	return cmd
}

func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The same tree gives the same bytes, whatever folder, time, umask and time zone it is built in.
func TestSameBytes(t *testing.T) {
	first := mustPackages(t, "amd64")
	copied := filepath.Join(t.TempDir(), "elsewhere")
	mustRun(t, "sh", "-c", `umask 077; mkdir "$1" && cd `+top+` && tar --exclude=./.git --exclude=./bench/results --exclude='./bin/*' -cf - . | tar -xmf - -C "$1" && mkdir -p "$1/bin" && cp bin/nfpm "$1/bin/"`, "sh", copied)
	second := t.TempDir()
	cmd := build(copied, second, "amd64")
	cmd.Env = append(cmd.Env, "TZ=Asia/Tokyo")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"xgw-amd64.deb", "xgw-amd64.rpm", "xgw-amd64.cdx.json"} {
		a, err1 := os.ReadFile(filepath.Join(first, name))
		b, err2 := os.ReadFile(filepath.Join(second, name))
		if err1 != nil || err2 != nil || len(a) < 1000 {
			t.Fatal(err1, err2)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s: two builds differ", name)
		}
	}
}

// The list of what is in the binary is that of the binary in the package.
func TestListOfModules(t *testing.T) {
	dir, root := mustPackages(t, "amd64"), t.TempDir()
	mustRun(t, "dpkg-deb", "-x", filepath.Join(dir, "xgw-amd64.deb"), root)
	info, err := buildinfo.ReadFile(root + "/usr/bin/xgw")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(root + "/usr/share/doc/xgw/sbom.cdx.json")
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		BOMFormat, SpecVersion string
		Metadata               struct {
			Component struct{ Name, Version string }
		}
		Components []struct {
			Name, Version, PURL string
			Hashes              []struct{ Alg, Content string }
		}
	}
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	if list.BOMFormat != "CycloneDX" || list.SpecVersion != "1.5" || list.Metadata.Component.Version != "0.9.0" {
		t.Errorf("%.400s", text)
	}
	version := map[string]string{}
	for _, c := range list.Components {
		version[c.Name] = c.Version
		if c.Name != "std" && (!strings.HasPrefix(c.PURL, "pkg:golang/") || len(c.Hashes) != 1 || len(c.Hashes[0].Content) != 64) {
			t.Errorf("%+v", c)
		}
	}
	if version["std"] != strings.TrimPrefix(info.GoVersion, "go") || len(info.Deps) == 0 || len(list.Components) != len(info.Deps)+1 {
		t.Errorf("%d components for %d modules, std %q", len(list.Components), len(info.Deps), version["std"])
	}
	for _, m := range info.Deps {
		if m.Replace == nil && version[m.Path] != m.Version {
			t.Errorf("%s: %q, want %s", m.Path, version[m.Path], m.Version)
		}
	}
}

// What is built for arm64 starts there, reads a configuration, and refuses a wrong one.
func TestARM64(t *testing.T) {
	if _, err := exec.LookPath("qemu-aarch64-static"); err != nil || runtime.GOARCH != "amd64" {
		t.Skip("needs qemu-aarch64-static on an amd64 machine")
	}
	dir, root := mustPackages(t, "arm64"), t.TempDir()
	mustRun(t, "dpkg-deb", "-x", filepath.Join(dir, "xgw-arm64.deb"), root)
	xgw := root + "/usr/bin/xgw"
	if out := mustRun(t, "qemu-aarch64-static", xgw, "version", "--json"); !strings.Contains(out, "linux/arm64") || !strings.Contains(out, "0.9.0") {
		t.Errorf("version: %s", out)
	}
	// Without a script, whose process the emulator could not start.
	config := root + "/gateway.yaml"
	mustRun(t, "cp", top+"/deploy/gateway.yaml", config)
	if out := mustRun(t, "qemu-aarch64-static", xgw, "config", "check", "-c", config); !strings.Contains(out, "no fault") {
		t.Errorf("config check: %s", out)
	}
	if err := os.WriteFile(config, []byte("listener: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("qemu-aarch64-static", xgw, "config", "check", "-c", config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), config+":1:") {
		t.Errorf("config check of a wrong file: %v, %s", err, out)
	}
}

// The .rpm has the same files as the .deb, of which those of the operator are kept.
func TestRPM(t *testing.T) {
	dir := mustPackages(t, "amd64")
	rpm := filepath.Join(dir, "xgw-amd64.rpm")
	files := mustRun(t, "rpm", "-qpl", rpm)
	kept := mustRun(t, "rpm", "-qp", "--configfiles", rpm)
	content := mustRun(t, "dpkg-deb", "--fsys-tarfile", filepath.Join(dir, "xgw-amd64.deb"))
	list := exec.Command("tar", "-tf", "-")
	list.Stdin = strings.NewReader(content)
	names, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for name := range strings.Lines(string(names)) {
		name = strings.TrimPrefix(strings.TrimSpace(name), ".")
		if strings.HasSuffix(name, "/") {
			continue
		}
		count++
		if !strings.Contains(files, name+"\n") {
			t.Errorf("the .rpm has no %s", name)
		}
		if strings.HasPrefix(name, "/etc/") && !strings.Contains(kept, name+"\n") {
			t.Errorf("the .rpm would replace %s", name)
		}
	}
	if count < 50 {
		t.Errorf("%d files:\n%s", count, names)
	}
	if scripts := mustRun(t, "rpm", "-qp", "--scripts", rpm); strings.Count(scripts, "scriptlet") != 3 {
		t.Errorf("scripts:\n%s", scripts)
	}
}
