// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// What comes of each sample of pkg/nginx passes config check.
func TestImportedSamplesPass(t *testing.T) {
	files, err := filepath.Glob("../../pkg/nginx/testdata/*.txtar")
	if err != nil || len(files) < 12 {
		t.Fatalf("%d samples, error %v", len(files), err)
	}
	for _, path := range files {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for _, f := range a.Files {
			if strings.HasSuffix(f.Name, ".yaml") || strings.HasSuffix(f.Name, ".lua") || f.Name == "notes" {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f.Name)), 0o755); err != nil {
				t.Fatal(err)
			}
			rewrite(t, filepath.Join(dir, f.Name), string(f.Data))
		}
		var out bytes.Buffer
		e := &env{out: &out, err: &out}
		made := filepath.Join(dir, "made")
		if status := run(t.Context(), []string{"xgw", "import", "nginx", filepath.Join(dir, "nginx.conf"), "-o", made}, e); status != 0 {
			t.Errorf("%s: status %d\n%s", path, status, &out)
			continue
		}
		out.Reset()
		if status := run(t.Context(), []string{"xgw", "config", "check", "-c", filepath.Join(made, "gateway.yaml")}, e); status != 0 {
			t.Errorf("%s: check: status %d\n%s", path, status, &out)
		}
		// What is there is not overwritten, and strict tells by the status.
		if status := run(t.Context(), []string{"xgw", "import", "nginx", filepath.Join(dir, "nginx.conf"), "-o", made}, e); status != 1 {
			t.Errorf("%s: overwritten: status %d", path, status)
		}
	}
	var out bytes.Buffer
	e := &env{out: &out, err: &out}
	simple := filepath.Join(t.TempDir(), "nginx.conf")
	rewrite(t, simple, "events {}\nhttp { server { listen 80; listen [::]:80; location / { proxy_pass http://127.0.0.1:1; } } }\n")
	if status := run(t.Context(), []string{"xgw", "import", "nginx", simple, "--strict"}, e); status != 0 || !strings.Contains(out.String(), "listeners:") {
		t.Errorf("all is translated: status %d\n%s", status, &out)
	}
	rewrite(t, simple, "events {}\nhttp { server { listen 80; location / { proxy_pass http://127.0.0.1:1; auth_basic x; } } }\n")
	if status := run(t.Context(), []string{"xgw", "import", "nginx", simple, "--strict"}, e); status != 1 {
		t.Errorf("something is closed: status %d", status)
	}
}

// What is written is not for everybody, follows no link, and is all or nothing.
func TestImportedFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	var out bytes.Buffer
	e := &env{out: &out, err: &out}
	conf := filepath.Join(t.TempDir(), "nginx.conf")
	rewrite(t, conf, `events {} http { limit_req_zone $binary_remote_addr zone=z:1m rate=1r/s;
		server { listen 80; limit_req zone=z; location / { proxy_pass http://127.0.0.1:1; proxy_set_header Authorization "Basic x"; } } }`)
	args := []string{"xgw", "import", "nginx", conf, "-o", dir}
	if status := run(t.Context(), args, e); status != 0 {
		t.Fatalf("status %d: %s", status, &out)
	}
	for path, most := range map[string]os.FileMode{dir: 0o750, filepath.Join(dir, "gateway.yaml"): 0o640, filepath.Join(dir, "ratelimit.lua"): 0o640} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode&^most != 0 {
			t.Errorf("%s: mode %o, want no more than %o", path, mode, most)
		}
	}
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}
	if err := create(link, []byte("x")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a link is followed: %v", err)
	}
	if _, err := os.Lstat(elsewhere); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("written behind a link: %v", err)
	}
	// The second file cannot be made: the first does not stay.
	half := t.TempDir()
	err := createAll(half, map[string][]byte{"a": []byte("x"), "none/b": []byte("x")})
	if entries, _ := os.ReadDir(half); err == nil || len(entries) != 0 {
		t.Errorf("error %v, left there: %v", err, entries)
	}
}

const importedConf = `daemon off; master_process off; user root; error_log %[1]s/error.log; pid %[1]s/nginx.pid;
events { worker_connections 64; }
http {
	access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	limit_req_zone $binary_remote_addr zone=slow:1m rate=1r/m;
	upstream back { server %[2]s; keepalive 4; }
	proxy_set_header Host $host;
	proxy_set_header X-Forwarded-For $remote_addr;
	add_header X-Site a always;
	server {
		listen 127.0.0.1:%[3]s;
		server_name a.example *.a.example;
		client_max_body_size 1k;
		rewrite ^/blog/([0-9]+)$ /posts/$1 permanent;
		location / { proxy_pass http://back; }
		location = / { return 200 "root\n"; }
		location /api/ { proxy_pass http://back/v2/; }
		location /bare { proxy_pass http://back/x; }
		location /v1/ { rewrite ^/v1/(.*)$ /$1 break; proxy_pass http://back; }
		location /first/ { rewrite /x/(.*)/y /$1 break; proxy_pass http://back; }
		include sites/[!x]*.conf;
		location ^~ /static/ { proxy_pass http://back/files/; }
		location ~* \.(png|gif)$ { proxy_pass http://back; proxy_set_header X-Kind image; proxy_set_header X-Forwarded-For $remote_addr; }
		location ~ /\.ht { deny all; }
		location /hidden { internal; }
		location = /gone { return 410; }
		location /moved { return 302 /api/; }
		location /large/ { client_max_body_size 8k; proxy_pass http://back; proxy_set_header X-Drop ""; proxy_set_header X-Forwarded-For $remote_addr; }
		location /slow/ { limit_req zone=slow burst=2 nodelay; proxy_pass http://back; }
	}
	server { listen 127.0.0.1:%[3]s; server_name b.example; return 301 https://$host$request_uri; }
	server { listen 127.0.0.1:%[4]s; location / { proxy_pass http://back/inside/; } }
	server { listen 127.0.0.1:%[3]s default_server; server_name _; return 404; }
}
`

// echoed tells in a reply what the upstream got.
func echoed() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header()["X-Got"] = []string{fmt.Sprintf("%s %s host=%s for=%s kind=%s drop=%s body=%d", r.Method, r.URL.RequestURI(), r.Host,
			r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Kind"), r.Header.Get("X-Drop"), n)}
	})
}

// freePorts are two that nobody has now.
func freePorts(t *testing.T) (a, b string) {
	var held []net.Listener
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, l)
	}
	_, a, _ = net.SplitHostPort(held[0].Addr().String())
	_, b, _ = net.SplitHostPort(held[1].Addr().String())
	for _, l := range held {
		l.Close()
	}
	return a, b
}

// answerOf makes a request and says what came of it, wherever the server is.
func answerOf(t *testing.T, address, method, host, target string, body int) string {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+address+target, bytes.NewReader(make([]byte, body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	req.Header.Set("X-Drop", "client")
	req.Header.Set("X-Forwarded-For", "203.0.113.9")
	c := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}}).DialContext},
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	out := fmt.Sprintf("%d", resp.StatusCode)
	if to := resp.Header.Get("Location"); to != "" {
		u, err := (&url.URL{Scheme: "http", Host: host, Path: "/"}).Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		u.Host = u.Hostname() // nginx tells its port, too
		out += " to " + u.String()
	}
	if resp.StatusCode < 400 {
		out += " site=" + resp.Header.Get("X-Site") + " " + resp.Header.Get("X-Got")
	}
	if resp.StatusCode == 200 && resp.Header.Get("X-Got") == "" {
		out += string(text)
	}
	return out
}

// A real nginx and a gateway with its translated configuration answer alike, and the upstream
// gets the same.
func TestImportedBehavesAlike(t *testing.T) {
	program := tool(t, "nginx")
	back := httptest.NewServer(echoed())
	t.Cleanup(back.Close)
	dir := t.TempDir()
	conf, made := filepath.Join(dir, "nginx.conf"), filepath.Join(dir, "made")
	first, second := freePorts(t)
	rewrite(t, conf, fmt.Sprintf(importedConf, dir, back.Listener.Addr(), first, second))
	if err := os.Mkdir(filepath.Join(dir, "sites"), 0o755); err != nil {
		t.Fatal(err)
	}
	rewrite(t, filepath.Join(dir, "sites", "one.conf"), "location /one { return 200 one; }")
	rewrite(t, filepath.Join(dir, "sites", "xtwo.conf"), "location /two { return 200 two; }")
	server := exec.Command(program, "-p", dir, "-c", conf)
	var said bytes.Buffer
	server.Stderr = &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		if t.Failed() {
			t.Logf("nginx: %s", &said)
		}
	})
	eventually(t, "nginx listens", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+first)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	var out bytes.Buffer
	if status := run(t.Context(), []string{"xgw", "import", "nginx", conf, "-o", made}, &env{out: &out, err: &out}); status != 0 {
		t.Fatalf("status %d: %s", status, &out)
	}
	text, err := os.ReadFile(filepath.Join(made, "gateway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.NewReplacer("127.0.0.1:"+first, "127.0.0.2:"+first, "127.0.0.1:"+second, "127.0.0.2:"+second, dir+"/error.log", `"-"`).Replace(string(text))
	moved += fmt.Sprintf("telemetry: {address: \"127.0.0.1:0\"}\nadmin_api: {address: off}\nworkers: 1\nstate: %s\n", dir)
	startGateway(t, startHere, "imported", made, moved)
	for _, row := range []struct {
		method, port, host, target string
		body                       int
	}{
		{"GET", first, "a.example", "/", 0}, {"GET", first, "a.example", "/x/y?z=1", 0}, {"GET", first, "w.a.example", "/x", 0}, {"GET", first, "v.w.a.example", "/x", 0},
		{"GET", first, "a.example", "/api/", 0}, {"GET", first, "a.example", "/api/u?q", 0}, {"GET", first, "a.example", "/api", 0}, {"GET", first, "a.example", "/api?q=1", 0}, {"GET", first, "a.example", "/apis", 0},
		{"GET", first, "a.example", "/bare", 0}, {"GET", first, "a.example", "/bare/z", 0}, {"GET", first, "a.example", "/barely?a", 0},
		{"GET", first, "a.example", "/v1/a/b?c", 0}, {"GET", first, "a.example", "/v1/", 0},
		{"GET", first, "a.example", "/first/x/a/x/b/y/c/y", 0}, {"GET", first, "a.example", "/one", 0}, {"GET", first, "a.example", "/two", 0},
		{"GET", first, "a.example", "/static/a.png", 0}, {"GET", first, "a.example", "/static/", 0}, {"GET", first, "a.example", "/api/a.PNG", 0}, {"GET", first, "a.example", "/a.gif/b", 0},
		{"GET", first, "a.example", "/.htaccess", 0}, {"GET", first, "a.example", "/api/.htpasswd", 0}, {"GET", first, "a.example", "/hidden", 0}, {"GET", first, "a.example", "/hidden/x", 0},
		{"GET", first, "a.example", "/gone", 0}, {"GET", first, "a.example", "/moved", 0}, {"GET", first, "a.example", "/blog/17?a=b", 0}, {"GET", first, "a.example", "/blog/x", 0},
		{"POST", first, "a.example", "/x", 1000}, {"POST", first, "a.example", "/x", 2000}, {"POST", first, "a.example", "/large/x", 2000}, {"POST", first, "a.example", "/large/x", 9000},
		{"GET", first, "b.example", "/x?y=z", 0}, {"GET", first, "c.example", "/", 0}, {"GET", first, "example", "/api/", 0},
		{"GET", second, "a.example", "/x", 0}, {"GET", second, "b.example", "/", 0}, {"GET", second, "c.example", "/.ht", 0},
		{"GET", first, "a.example", "/slow/1", 0}, {"GET", first, "a.example", "/slow/2", 0}, {"GET", first, "a.example", "/slow/3", 0}, {"GET", first, "a.example", "/slow/4", 0}, {"GET", first, "a.example", "/slow/5", 0},
	} {
		want := answerOf(t, "127.0.0.1:"+row.port, row.method, row.host, row.target, row.body)
		got := answerOf(t, "127.0.0.2:"+row.port, row.method, row.host, row.target, row.body)
		if got != want {
			t.Errorf("%s :%s %s%s (%d bytes)\nnginx   %s\ngateway %s", row.method, row.port, row.host, row.target, row.body, want, got)
		}
	}
	// And what nginx would take for a path that is closed opens nothing here.
	for _, target := range []string{"//.htaccess", "/%2ehtaccess", "/x/%2Fhidden", "/x/..%2fhidden"} {
		if got := answerOf(t, "127.0.0.2:"+first, "GET", "a.example", target, 0); !strings.HasPrefix(got, "4") {
			t.Errorf("%s: %s", target, got)
		}
	}
}
