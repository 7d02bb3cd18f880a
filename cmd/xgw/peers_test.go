// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/xgw-project/xgw/pkg/lab"
)

// peers is a gateway in a lab, with XDP on its edge, between real clients and real servers:
// nginx behind /files, a server of Go behind the rest.
type peers struct {
	*lab.Lab
	g     *running
	nginx string // its directory: files, the log
	url   string
}

const nginxConfig = `daemon off; master_process off; user root; error_log %[1]s/error.log; pid %[1]s/nginx.pid;
events {}
http {
	log_format uses "$connection_requests $request_method $status"; access_log %[1]s/access.log uses;
	client_max_body_size 0; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	gzip on; gzip_types *; gzip_min_length 1; keepalive_requests 100000;
	server { listen 203.0.113.2:8080; root %[1]s; dav_methods PUT; }
}
`

func newPeers(t *testing.T) *peers {
	needRoot(t, "makes a lab")
	program := tool(t, "nginx")
	p := &peers{Lab: mustLab(t, "xgwpeers"), nginx: t.TempDir(), url: "https://198.51.100.2"}
	if err := os.Mkdir(filepath.Join(p.nginx, "files"), 0o755); err != nil {
		t.Fatal(err)
	}
	rewrite(t, filepath.Join(p.nginx, "nginx.conf"), fmt.Sprintf(nginxConfig, p.nginx))
	server := exec.Command(program, "-p", p.nginx, "-c", filepath.Join(p.nginx, "nginx.conf"))
	var said bytes.Buffer
	server.Stderr = &said
	if err := p.Start(lab.Upstream, server); err != nil {
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
		c, err := p.DialFrom(lab.Gateway)(t.Context(), "tcp", "203.0.113.2:8080")
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	ln, err := p.Listen(lab.Upstream, "tcp", "203.0.113.2:8081")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: patientServer()}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	dir := t.TempDir()
	text := gatewayYAML(dir, ":443", "203.0.113.2:8081", "workers: 1\ninterfaces: [{name: edge0, mode: native}]\n")
	text = strings.Replace(text, "routes:\n", "routes:\n  - {name: files, path: /files, upstream: nginx}\n  - {name: ws, path: /ws, upstream: back, websocket: 1m}\n", 1)
	text = strings.Replace(text, "upstreams:\n", "upstreams:\n  - {name: nginx, servers: [\"203.0.113.2:8080\"]}\n", 1)
	p.g = startGateway(t, inHost(p.Lab, lab.Gateway), "peers", dir, text)
	return p
}

// client is net/http's, in a namespace of its own.
func (p *peers) client(h2 bool) *http.Client {
	c := client(h2)
	tr := c.Transport.(*http.Transport)
	tr.DialContext, tr.DisableCompression = p.DialFrom(lab.Client), true
	c.Timeout = 3 * time.Minute
	return c
}

// Slow peers give and take pieces of this size, with a pause in the middle.
const (
	slowBody  = 3 << 20
	slowPiece = 64 << 10
)

func slowly(w io.Writer, r io.Reader) error {
	for n := 0; ; n++ {
		if _, err := io.CopyN(w, r, slowPiece); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		time.Sleep(20 * time.Millisecond)
		if n == slowBody/slowPiece/2 {
			time.Sleep(2 * time.Second)
		}
	}
}

func bodyReader(n int64) io.Reader {
	r, w := io.Pipe()
	go func() { w.CloseWithError(lab.Body(w, n)) }()
	return r
}

// patientServer is lab's upstream, and what takes its time: /slowly gives, /sip takes a body;
// /ws sends back what it hears.
func patientServer() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", lab.NewUpstream())
	mux.HandleFunc("/slowly", func(w http.ResponseWriter, _ *http.Request) { _ = slowly(w, bodyReader(slowBody)) })
	mux.HandleFunc("/sip", func(w http.ResponseWriter, r *http.Request) {
		h := newHash()
		if err := slowly(h, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%s %d\n", h, slowBody)
	})
	mux.HandleFunc("/ws", echoWebSocket)
	return mux
}

func echoWebSocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(-1)
	for {
		kind, b, err := c.Read(r.Context())
		if err != nil || c.Write(r.Context(), kind, b) != nil {
			return
		}
	}
}

func TestRealPeers(t *testing.T) {
	p := newPeers(t)
	t.Run("programs", p.programs)
	t.Run("nginx", p.files)
	t.Run("gzip", p.compressed)
	t.Run("conditions", p.conditions)
	t.Run("large", p.large)
	t.Run("slow", p.slow)
	t.Run("websocket", p.webSocket)
	log, err := os.ReadFile(filepath.Join(p.nginx, "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(log), "\n"); strings.Count(string(log), "\n1 ") > lines/4 {
		t.Errorf("nginx's connections were used once too often:\n%s", log)
	}
}

// programs that people use, from a host of their own.
func (p *peers) programs(t *testing.T) {
	rewrite(t, filepath.Join(p.nginx, "files", "small"), strings.Repeat("x", 1000))
	url := p.url + "/files/small"
	format := "%{http_version} %{http_code} %{size_download}"
	for i, row := range []struct {
		name string
		args []string
		want string
	}{
		{"curl", []string{"-sk", "--http1.1", "-o", "/dev/null", "-w", format, url}, `^1\.1 200 1000$`},
		{"curl", []string{"-sk", "--http2", "-o", "/dev/null", "-w", format, url}, `^2 200 1000$`},
		{"curl", []string{"-sk", "--http2-prior-knowledge", "-o", "/dev/null", "-w", format, url}, `^2 200 1000$`},
		{"curl", []string{"-s", "--http2-prior-knowledge", "-o", "/dev/null", "-w", format, "http://198.51.100.2:443/"}, `^[012.]* 000 0$`}, // in the clear: refused
		{"curl", []string{"-s", "-o", "/dev/null", "-w", format, "http://198.51.100.2:443/"}, `^[012.]* 000 0$`},
		{"curl", []string{"-sk", "--http1.0", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", url}, `^200 1000$`},
		{"curl", []string{"-sk", "--http1.1", "--compressed", "-o", "/dev/null", "-w", format, url}, `^1\.1 200 [0-9]{2}$`},
		{"curl", []string{"-sk", "--http1.1", "-H", "Expect: 100-continue", "-T", filepath.Join(p.nginx, "nginx.conf"), "-w", "%{http_code}", p.url + "/files/put"}, `^201$`},
		{"curl", []string{"-sk", "--http2", "-T", filepath.Join(p.nginx, "nginx.conf"), "-w", "%{http_code}", p.url + "/files/put"}, `^204$`},
		{"h2load", []string{"-n", "1000", "-c", "4", "-m", "10", url}, `1000 succeeded, 0 failed, 0 errored`},
		{"h2load", []string{"-n", "300", "-c", "4", "-m", "10", "-d", filepath.Join(p.nginx, "nginx.conf"), p.url + "/hash"}, `300 succeeded, 0 failed, 0 errored`},
		{"h2load", []string{"--h1", "-n", "300", "-c", "4", url}, `300 succeeded, 0 failed, 0 errored`},
		{"wrk", []string{"-t", "1", "-c", "8", "-d", "1", url}, `requests in`},
	} {
		t.Run(fmt.Sprintf("%s %d", row.name, i), func(t *testing.T) {
			out := p.output(exec.Command(tool(t, row.name), row.args...))
			if !regexp.MustCompile(row.want).MatchString(out) || regexp.MustCompile("Socket errors|Non-2xx").MatchString(out) {
				t.Errorf("want %s in:\n%s", row.want, out)
			}
		})
	}
}

// output runs a command on the client's host.
func (p *peers) output(cmd *exec.Cmd) string {
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := p.Start(lab.Client, cmd); err != nil {
		return err.Error()
	}
	_ = cmd.Wait() // what it says tells
	return out.String()
}

// files of nginx come byte for byte, and go there.
func (p *peers) files(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		c := p.client(h2)
		for i, n := range []int64{0, 1, 1000, 16384, 16385, 65537, 1_000_000} {
			name := fmt.Sprintf("/files/%d-%v", n, h2)
			p.put(t, c, name, n, i%2 == 0)
			if err := p.same(c, name, n); err != nil {
				t.Errorf("h2 %v: GET %s: %v", h2, name, err)
			}
		}
	}
}

// put uploads Body and looks at what nginx has.
func (p *peers) put(t *testing.T, c *http.Client, name string, n int64, withLength bool) {
	t.Helper()
	req, err := http.NewRequest("PUT", p.url+name, bodyReader(n))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = -1
	if withLength {
		req.ContentLength = n
		if n == 0 {
			req.Body = http.NoBody
		}
	}
	r, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	file, err := os.Open(filepath.Join(p.nginx, name))
	if err != nil {
		t.Fatalf("PUT %s: status %d, %v", name, r.StatusCode, err)
	}
	defer file.Close()
	h := newHash()
	if got, err := io.Copy(h, file); err != nil || got != n || h.String() != lab.BodyHash(n) || r.StatusCode != 201 {
		t.Errorf("PUT %s: status %d, nginx has %d bytes, %v", name, r.StatusCode, got, err)
	}
}

// same reads Body, however it comes.
func (p *peers) same(c *http.Client, path string, n int64) error {
	r, err := c.Get(p.url + path)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	h := newHash()
	got, err := io.Copy(h, r.Body)
	if err != nil || r.StatusCode != 200 || got != n || h.String() != lab.BodyHash(n) {
		return fmt.Errorf("status %d, %d bytes of %d, %w", r.StatusCode, got, n, err)
	}
	return nil
}

// compressed: what nginx packs comes as nginx packed it, in chunks.
func (p *peers) compressed(t *testing.T) {
	const n = 300_000
	p.put(t, p.client(false), "/files/packed", n, true)
	fetch := func(c *http.Client, base string) (*http.Response, []byte) {
		req, _ := http.NewRequest("GET", base+"/files/packed", nil)
		req.Header.Set("Accept-Encoding", "zstd, gzip")
		r, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r, b
	}
	direct := &http.Client{Transport: &http.Transport{DialContext: p.DialFrom(lab.Gateway), DisableCompression: true}}
	_, want := fetch(direct, "http://203.0.113.2:8080")
	for _, h2 := range []bool{false, true} {
		r, got := fetch(p.client(h2), p.url)
		if r.Header.Get("Content-Encoding") != "gzip" || r.ContentLength >= 0 || !bytes.Equal(got, want) {
			t.Errorf("h2 %v: %d bytes of coding %q, nginx gives %d", h2, len(got), r.Header.Get("Content-Encoding"), len(want))
		}
		z, err := gzip.NewReader(bytes.NewReader(got))
		if err != nil {
			t.Fatal(err)
		}
		h := newHash()
		if unpacked, err := io.Copy(h, z); err != nil || unpacked != n || h.String() != lab.BodyHash(n) {
			t.Errorf("h2 %v: %d bytes unpacked, %v", h2, unpacked, err)
		}
	}
}

// conditions: replies without a body or with a part of it.
func (p *peers) conditions(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		c := p.client(h2)
		ask := func(method, field, value string) *http.Response {
			req, _ := http.NewRequest(method, p.url+"/files/small", nil)
			if field != "" {
				req.Header.Set(field, value)
			}
			r, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r.Body)
			r.Body.Close()
			if want := map[int]int{200: 0, 206: 10, 304: 0}[r.StatusCode]; err != nil || len(b) != want {
				t.Errorf("h2 %v: %s %s: status %d with %d bytes, %v", h2, method, field, r.StatusCode, len(b), err)
			}
			return r
		}
		head := ask("HEAD", "", "")
		if head.StatusCode != 200 || head.ContentLength != 1000 {
			t.Errorf("h2 %v: HEAD: %d, length %d", h2, head.StatusCode, head.ContentLength)
		}
		if r := ask("GET", "If-None-Match", head.Header.Get("Etag")); r.StatusCode != 304 {
			t.Errorf("h2 %v: If-None-Match: %d", h2, r.StatusCode)
		}
		if r := ask("GET", "Range", "bytes=5-14"); r.StatusCode != 206 {
			t.Errorf("h2 %v: Range: %d", h2, r.StatusCode)
		}
	}
}

// large bodies, up and down, with and without their length.
func (p *peers) large(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 800 MB")
	}
	const n = 100_000_000
	hash := lab.BodyHash(n)
	for _, h2 := range []bool{false, true} {
		c := p.client(h2)
		for i := range 4 {
			if err := exchange(c, p.url, i, n, hash); err != nil {
				t.Errorf("h2 %v, kind %d: %v", h2, i, err)
			}
		}
	}
}

// slow: neither side need be in a hurry, and a pause does no harm.
func (p *peers) slow(t *testing.T) {
	hash := lab.BodyHash(slowBody)
	sent := func(r *http.Response, err error) error {
		if err != nil {
			return err
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if want := fmt.Sprintf("%s %d\n", hash, slowBody); err != nil || string(text) != want {
			return fmt.Errorf("status %d, upstream received %q, want %q, %w", r.StatusCode, text, want, err)
		}
		return nil
	}
	kinds := map[string]func(c *http.Client) error{
		"client reads": func(c *http.Client) error {
			r, err := c.Get(fmt.Sprintf("%s/bytes/%d", p.url, slowBody))
			if err != nil {
				return err
			}
			defer r.Body.Close()
			h := newHash()
			if err := slowly(h, r.Body); err != nil || h.String() != hash {
				return fmt.Errorf("another body came, %w", err)
			}
			return nil
		},
		"client writes": func(c *http.Client) error {
			r, w := io.Pipe()
			go func() { w.CloseWithError(slowly(w, bodyReader(slowBody))) }()
			return sent(c.Post(p.url+"/hash", "", r))
		},
		"upstream writes": func(c *http.Client) error { return p.same(c, "/slowly", slowBody) },
		"upstream reads":  func(c *http.Client) error { return sent(c.Post(p.url+"/sip", "", bodyReader(slowBody))) },
	}
	var all sync.WaitGroup
	for name, do := range kinds {
		for _, h2 := range []bool{false, true} {
			all.Go(func() {
				if err := do(p.client(h2)); err != nil {
					t.Errorf("%s, h2 %v: %v", name, h2, err)
				}
			})
		}
	}
	all.Wait()
}

func (p *peers) webSocket(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hc := p.client(false)
	hc.Timeout = 0
	c, _, err := websocket.Dial(ctx, "wss"+strings.TrimPrefix(p.url, "https")+"/ws", &websocket.DialOptions{HTTPClient: hc})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	c.SetReadLimit(-1)
	for _, n := range []int{0, 125, 126, 65536, 1 << 20} {
		message := bytes.Repeat([]byte{'x'}, n)
		sent := make(chan error, 1)
		go func() { sent <- c.Write(ctx, websocket.MessageBinary, message) }()
		if _, got, err := c.Read(ctx); err != nil || !bytes.Equal(got, message) || <-sent != nil {
			t.Fatalf("%d bytes: %d came back, %v", n, len(got), err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
}
