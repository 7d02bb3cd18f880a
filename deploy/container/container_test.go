// SPDX-License-Identifier: Apache-2.0

// Package container tests the image that the Containerfile makes.
package container

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// image is a built one: where its root is, and what it runs.
type image struct {
	root     string
	run, env []string
}

// mustImage builds the image as its recipe says, of this tree.
func mustImage(t *testing.T) *image {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts the image")
	}
	if _, err := exec.LookPath("buildah"); err != nil {
		t.Skip("needs buildah, which `deploy/setup.sh test` installs")
	}
	dir := t.TempDir()
	must := func(name string, words ...string) string {
		t.Helper()
		cmd := exec.Command(name, words...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s %v: %v\n%s%s", name, words, err, &out, &errs)
		}
		return strings.TrimSpace(out.String())
	}
	buildah := func(words ...string) string {
		t.Helper()
		return must("buildah", append([]string{"--root", dir + "/images", "--runroot", dir + "/run", "--storage-driver", "vfs"}, words...)...)
	}
	must("go", "build", "-o", dir+"/context/bin/xgw", "../../cmd/xgw")
	buildah("bud", "--isolation", "chroot", "-f", "Containerfile", "-t", "xgw", dir+"/context")
	var made struct {
		OCIv1 struct {
			Config struct{ Entrypoint, Cmd, Env []string }
		}
	}
	if err := json.Unmarshal([]byte(buildah("inspect", "--type", "image", "xgw")), &made); err != nil {
		t.Fatal(err)
	}
	buildah("from", "--name", "made", "xgw")
	c := made.OCIv1.Config
	return &image{root: buildah("mount", "made"), run: append(c.Entrypoint, c.Cmd...), env: c.Env}
}

// as a runtime of containers does it: the image read-only, a network of its own, and only what the manifest of
// the Deployment mounts to write to; its user, without any capability.
const contain = `set -e
root=$1; etc=$2; shift 2
ip link set lo up
mount --bind "$root" "$root"
mount --bind "$etc" "$root/etc/gateway"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
mkdir "$root/dev/shm"
for node in null urandom; do : >"$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; done
for dir in dev/shm run var/lib/xgw; do mount -t tmpfs -o mode=2777,gid=65532,size=128m tmpfs "$root/$dir"; done
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec=65532:65532 --groups= "$root" "$@"`

// in runs fn in the network namespace of a process.
func in(t *testing.T, pid int, fn func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and the thread ends with this function
		ns, err := netns.GetFromPid(pid)
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// configuration is that of the Deployment, with a server on loopback.
func configuration(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile("../kubernetes/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^  ([a-z]+\.[a-z]+): \|\n((?:    .*\n)+)`).FindAllStringSubmatch(string(text), -1) {
		file := strings.ReplaceAll("\n"+m[2], "\n    ", "\n")[1:]
		file = strings.Replace(file, "backend.default.svc.cluster.local:8080", "127.0.0.1:8080", 1)
		if err := os.WriteFile(filepath.Join(dir, m[1]), []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestImage serves, is drained and stops, in the image alone and as nobody.
func TestImage(t *testing.T) {
	i := mustImage(t)
	var files []string
	_ = filepath.WalkDir(i.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, i.root))
		}
		return err
	})
	if len(files) != 1 || files[0] != "/usr/bin/xgw" {
		t.Errorf("the image has %v", files)
	}
	etc := filepath.Join(filepath.Dir(t.TempDir()), "etc")
	for _, dir := range []string{etc, i.root + "/etc/gateway", i.root + "/proc", i.root + "/dev"} {
		if err := os.MkdirAll(dir, 0o755); err != nil { // runtimes make what they mount on
			t.Fatal(err)
		}
	}
	configuration(t, etc)

	var log bytes.Buffer
	cmd := exec.Command("unshare", append([]string{"-n", "-m", "--propagation", "private", "sh", "-c", contain, "sh", i.root, etc}, i.run...)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = append(i.env, "PATH="+os.Getenv("PATH"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1) // it stays there
	go func() { ended <- cmd.Wait() }()
	wait := func() error { err := <-ended; ended <- err; return err }
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = wait() })
	pid := cmd.Process.Pid

	get := func(url string) (status string) {
		out, _ := exec.Command("nsenter", "-t", fmt.Sprint(pid), "-n", "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "-m", "10", url).Output()
		return string(out)
	}
	eventually := func(url, want string) {
		t.Helper()
		var got string
		for end := time.Now().Add(30 * time.Second); got != want; time.Sleep(50 * time.Millisecond) {
			if got = get(url); time.Now().After(end) {
				_ = cmd.Process.Kill()
				_ = wait()
				t.Fatalf("%s says %s, not %s\n%s", url, got, want, &log)
			}
		}
	}
	eventually("http://127.0.0.1:9090/readyz", "200")
	var ln net.Listener
	in(t, pid, func() (err error) { ln, err = net.Listen("tcp", "127.0.0.1:8080"); return err })
	defer ln.Close()
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	eventually("https://127.0.0.1:8443/", "200")

	// The hook before a stop, as the kubelet runs it.
	hook := exec.Command("nsenter", "-t", fmt.Sprint(pid), "-m", "-n", "-r", "--setuid", "65532", "--setgid", "65532", "/usr/bin/xgw", "ctl", "drain", "--wait", "100ms")
	hook.Env = cmd.Env
	if out, err := hook.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	eventually("http://127.0.0.1:9090/readyz", "503")
	if got := get("http://127.0.0.1:9090/healthz"); got != "200" {
		t.Errorf("/healthz of one that is drained: %s", got)
	}
	if got := get("https://127.0.0.1:8443/"); got != "200" {
		t.Errorf("one that is drained does not serve: %s", got)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		ended <- err
		if err != nil {
			t.Errorf("it stops with %v\n%s", err, &log)
		}
	case <-time.After(60 * time.Second):
		t.Errorf("it does not stop")
	}
}
