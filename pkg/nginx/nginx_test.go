// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/xgw-project/xgw/pkg/config"
)

var update = flag.Bool("update", false, "write what is got into testdata")

// inMemory are files below /etc/nginx.
func inMemory(texts map[string][]byte) Files {
	return Files{
		Read: func(name string) ([]byte, error) {
			if text, ok := texts[strings.TrimPrefix(name, "/etc/nginx/")]; ok {
				return text, nil
			}
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		},
		Glob: func(pattern string) (out []string, err error) {
			for name := range texts {
				if ok, err := path.Match(pattern, "/etc/nginx/"+name); err != nil {
					return nil, err
				} else if ok {
					out = append(out, "/etc/nginx/"+name)
				}
			}
			return out, nil
		},
	}
}

// made are the files that a case is compared by.
var made = []string{"gateway.yaml", "ratelimit.lua", "notes"}

func samples(t testing.TB) map[string]map[string][]byte {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 12 {
		t.Fatalf("%d samples, error %v: the folder is not whole", len(files), err)
	}
	out := map[string]map[string][]byte{}
	for _, name := range files {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = map[string][]byte{}
		for _, f := range a.Files {
			out[name][f.Name] = f.Data
		}
	}
	return out
}

// A case is a txtar file: nginx.conf and what it includes, and what is made of them.
func TestGolden(t *testing.T) {
	for name, texts := range samples(t) {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			r, err := Import("/etc/nginx/nginx.conf", inMemory(texts))
			if err != nil {
				t.Fatal(err)
			}
			var notes strings.Builder
			for _, n := range r.Notes {
				notes.WriteString(n.String() + "\n")
			}
			got := map[string]string{"gateway.yaml": string(r.Gateway), "ratelimit.lua": string(r.Limits), "notes": notes.String()}
			if *update {
				a, _ := txtar.ParseFile(name)
				var kept []txtar.File
				for _, f := range a.Files {
					if _, out := got[f.Name]; !out {
						kept = append(kept, f)
					}
				}
				for _, file := range made {
					if got[file] != "" {
						kept = append(kept, txtar.File{Name: file, Data: []byte(got[file])})
					}
				}
				a.Files = kept
				if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			for _, file := range made {
				if diff := cmp.Diff(string(texts[file]), got[file]); diff != "" {
					t.Errorf("%s (-want +got):\n%s", file, diff)
				}
			}
		})
	}
}

// What is written of an expression matches the same paths, all of them where nginx searches.
func TestWholeRegex(t *testing.T) {
	paths := []string{"/", "/.htaccess", "/.ht", "/x/.git/config", "/.git", "/a", "/ab", "/b", "/xb", "/x/a", "/a.php", "/a.phpx", "/x$", "/.*", "/a.*b", "/A", "/users/17", "/users/17/x", "/a|b", `/a\`, "/aab"}
	for _, text := range []string{
		`/\.ht|/\.git`, `^/\.ht|^/\.git`, `^/a|b$`, `/a|/ab`, `a|b`, `(/\.ht|/\.git)`, `^/(a|b)$`, `|`, `^|x`, `a$|b$`, `^(?:/a|/b)`, `[|]`, `/a\|b`,
		`/\.ht`, `^/a`, `a$`, `^/a$`, `^`, `$`, `^$`, `.*`, `/.*`, `.*b`, `\.*b`, `/x\$`, `a\\$`, `/\Qa.`, `/\Q.*\E`, `\Q.\E*`, `^/users/([0-9]+)`, `\.php$`, `(?i)^/a$`, `a(?i)B`, `(?i)/A|/U`, `[^/]$`, `/.?`, `a*?`, `^*`, `^?/b`,
	} {
		for _, anyCase := range []bool{false, true} {
			whole := wholeRegex(text, anyCase)
			if whole == "" { // closed, which is never more open
				continue
			}
			got := regexp.MustCompile(`\A(?:` + whole + `)\z`)
			if anyCase {
				text = "(?i)" + text
			}
			want := regexp.MustCompile(text)
			for _, path := range paths {
				if got.MatchString(path) != want.MatchString(path) {
					t.Errorf("%s as %s: %s: %v", text, whole, path, got.MatchString(path))
				}
			}
		}
	}
	for _, text := range []string{`/\.ht|/\.git`, `^/a|b$`, `^/users/([0-9]+)`} {
		if wholeRegex(text, false) == "" {
			t.Errorf("%s is not translated", text)
		}
	}
}

// reached says what comes of a path: routes are asked as the gateway does.
func reached(t *testing.T, c *config.Config, path string) string {
	t.Helper()
	var found *config.Route
	longest := -1
	for i := range c.Routes {
		switch r := &c.Routes[i]; {
		case r.PathExact == path:
			found, longest = r, 1<<20
		case r.PathExact == "" && r.PathRegex == "" && r.Path != "/" && len(r.Path) > longest && (path == r.Path || strings.HasPrefix(path, strings.TrimSuffix(r.Path, "/")+"/")):
			found, longest = r, len(r.Path)
		}
	}
	for i := range c.Routes {
		if r := &c.Routes[i]; found == nil && r.PathRegex != "" && regexp.MustCompile(`\A(?:`+r.PathRegex+`)\z`).MatchString(path) {
			found = r
		}
	}
	for i := range c.Routes {
		if r := &c.Routes[i]; found == nil && r.Path == "/" {
			found = r
		}
	}
	switch {
	case found == nil:
		return "404"
	case found.Maintenance != nil && found.Maintenance.Enabled:
		return "closed"
	case found.Reply != nil:
		return strconv.Itoa(found.Reply.Status)
	case found.Redirect != nil:
		return "to " + found.Redirect.Location
	case found.BodyBytes != nil:
		return fmt.Sprintf("%s up to %d", found.Upstream, *found.BodyBytes)
	}
	return found.Upstream
}

// What nginx keeps from somebody, nobody gets here.
func TestNotMoreOpen(t *testing.T) {
	const app = "location / { proxy_pass http://app; } "
	for _, row := range []struct{ name, server, path, want string }{
		{"closed by return, slashes", app + "location /admin { return 403; }", "//admin", "400"},
		{"closed by return, an escape", app + "location /admin { return 404; }", "/x/..%2Fadmin", "400"},
		{"closed by hanging up", app + "location /admin { return 444; }", "//admin", "400"},
		{"closed by sending away", app + "location /admin { return 302 /login; }", "//admin", "400"},
		{"answered, not closed", app + "location = /health { return 200 ok; }", "/x%2Fy", "app"},
		{"closed by return, others are open", app + "location /admin { return 403; }", "/x", "app"},
		{"limits", "limit_req_status 429; " + app + "location /login/ { limit_req zone=z; proxy_pass http://app; }", "//login/", "400"},
		{"limits, the others", app + "location /login/ { limit_req zone=z; proxy_pass http://app; }", "/x%20y", "app"},
		{"limits for all", "limit_req zone=z; " + app + "location /login/ { proxy_pass http://app; }", "/x%2Fy", "app"},
		{"limits of what may be escaped", app + "location /a+b/ { limit_req zone=z; proxy_pass http://app; }", "/a%2Bb/", "400"},
		{"bodies", app + "location /login/ { client_max_body_size 1k; proxy_pass http://app; }", "//login/", "400"},
		{"larger bodies of what may be escaped", app + "location ~ ^/up/[^/]+$ { client_max_body_size 2m; proxy_pass http://app; }", "/x%20y", "app"},
		{"blank", app + `location ~ ^/a\sb { deny all; }`, "/a%20b", "400"},
		{"number", app + `location ~ ^/a\x20b { deny all; }`, "/a%20b", "400"},
		{"border of a word", app + `location ~ \badmin { deny all; }`, "/x%20admin", "400"},
		{"bracket", app + `location ~ ^/a\(b { deny all; }`, "/a%28b", "400"},
		{"bracket of a class", app + `location ~ ^/a[(]b { deny all; }`, "/a%28b", "400"},
		{"class that is a range", app + `location ~ ^/a[.-_]b { deny all; }`, "/a%3Bb", "400"},
		{"plain class", app + `location ~ ^/a[\w.-]+/[a-f0-9]{2,3}$ { deny all; }`, "/x%3B", "app"},
		{"end of line", app + `location ~ \.php$ { deny all; }`, "/x.php%0A", "400"},
		{"end of line, the others", app + `location ~ \.php$ { deny all; }`, "/x%20y", "app"},

		{"digits of an escape, before a closed prefix", app + `location ~ [0-9]+\.png$ { proxy_pass http://app; } location /in/ { deny all; }`, "/in/%80.png", "400"},
		{"letters of one", app + `location ~* ADMIN { proxy_pass http://app; } location /in/ { deny all; }`, "/in/%fadmin", "400"},
		{"its length", app + `location ~ "^/in/.{3}x" { proxy_pass http://app; } location /in/ { deny all; }`, "/in/%80x", "400"},
		{"what it stands for", app + `location ~ ^/in/[^+]+$ { proxy_pass http://app; } location /in/ { deny all; }`, "/in/%2B", "400"},
		{"octets of a character", app + `location ~ ^/in/[^/–]+$ { proxy_pass http://app; } location /in/ { deny all; }`, "/in/%E2%80%93", "400"},
		{"border of it", app + `location ~ \bx { proxy_pass http://app; } location /in/ { deny all; }`, "/in/%80x", "400"},
		{"an escape as a whole", app + `location ~ ^/u/[^/]+/(.*)\.(png|gif)$ { proxy_pass http://app; } location /in/ { deny all; }`, "/x%20y", "app"},

		{"named", "location / { try_files $uri @a; } location @a { proxy_pass http://app; }", "/x", "app"},
		{"named, smaller body of the location", "location / { client_max_body_size 1k; try_files $uri @a; } location @a { proxy_pass http://app; client_max_body_size 9k; }", "/x", "app up to 1024"},
		{"named, smaller body of its own", "location / { client_max_body_size 0; try_files $uri @a; } location @a { proxy_pass http://app; client_max_body_size 9k; }", "/x", "app up to 9216"},
		{"named, denied", "location / { try_files $uri @a; } location @a { deny all; proxy_pass http://app; }", "/x", "closed"},
		{"named, denied to some", "location / { try_files $uri @a; } location @a { deny 192.0.2.1; proxy_pass http://app; }", "/x", "closed"},
		{"named, return", "location / { try_files $uri @a; } location @a { return 403; proxy_pass http://app; }", "/x", "closed"},
		{"named, rewrite", "location / { try_files $uri @a; } location @a { rewrite ^/(.*)$ /safe/$1 break; proxy_pass http://app; }", "/x", "closed"},
		{"named, and on", "location / { try_files $uri @a; } location @a { try_files $uri @b; proxy_pass http://app; } location @b { return 403; }", "/x", "closed"},
		{"files or nothing", "location / { try_files $uri =404; proxy_pass http://app; }", "/x", "closed"},

		{"internal, and return", app + "location /in/ { internal; return 200 secret; }", "/in/x", "404"},
		{"internal, nested", app + "location /in/ { internal; location /in/deep/ { proxy_pass http://app; } }", "/in/deep/x", "404"},

		{"bare, denied", app + "location /admin/ { deny all; proxy_pass http://app; }", "/admin", "403"},
		{"bare, closed", app + "location /admin/ { auth_basic x; proxy_pass http://app; }", "/admin", "closed"},
		{"bare, internal", app + "location ^~ /admin/ { internal; proxy_pass http://app; }", "/admin", "404"},
		{"bare, open", app + "location /admin/ { proxy_pass http://app; }", "/admin", "to /admin/$query"},
		{"bare, no upstream", app + "location /admin/ { deny all; }", "/admin", "app"},
		{"bare, named", app + "location /sub/ { try_files $uri @a; } location @a { proxy_pass http://10.0.0.2; }", "/sub", "app"},

		{"nested, and an expression", app + `location /a/ { proxy_pass http://app; location ^~ /a/b/ { proxy_pass http://app; } } location ~ \.key$ { deny all; }`, "/a/b/x.key", "403"},
		{"nested, and no expression", app + `location ^~ /a/ { proxy_pass http://app; location /a/b/ { deny all; } } location ~ \.png$ { proxy_pass http://app; }`, "/a/b/x.png", "403"},
	} {
		text := "events {} http { limit_req_zone $binary_remote_addr zone=z:1m rate=1r/s; upstream app { server 10.0.0.1; } server { listen 80; " + row.server + " } }"
		r, err := Import("/etc/nginx/nginx.conf", inMemory(map[string][]byte{"nginx.conf": []byte(text)}))
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		c, err := config.Parse("gateway.yaml", r.Gateway, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := reached(t, c, row.path); got != row.want {
			t.Errorf("%s: %s: %s, want %s\n%s%v", row.name, row.path, got, row.want, r.Gateway, r.Notes)
		}
	}
}

// Limits hold where nginx has them, and nobody chooses a bucket.
func TestLimitsHold(t *testing.T) {
	const head = "events {} http { limit_req_zone $binary_remote_addr zone=a:1m rate=1r/s; limit_req_zone $server_name zone=b:1m rate=2r/s; server { listen 80; "
	for _, row := range []struct {
		name, server string
		want         []string
	}{
		{"of the location that tries", "location / { limit_req zone=a; try_files $uri @n; } location @n { proxy_pass http://10.0.0.1; }", []string{`limit_req{name = "a", key = "address", rate = "1r/s"`}},
		{"of the named one", "location / { try_files $uri @n; } location @n { limit_req zone=a; proxy_pass http://10.0.0.1; }", []string{`limit_req{name = "a", key = "address", rate = "1r/s"`}},
		{"of both", "location / { limit_req zone=a; try_files $uri @n; } location @n { limit_req zone=b; proxy_pass http://10.0.0.1; }", []string{`rate = "1r/s"`, `rate = "2r/s"`}},
		{"by the server's name", "location / { limit_req zone=b; proxy_pass http://10.0.0.1; }", []string{`limit_req{name = "b", key = "route", rate = "2r/s"`}},
	} {
		r, err := Import("/etc/nginx/nginx.conf", inMemory(map[string][]byte{"nginx.conf": []byte(head + row.server + " } }")}))
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		for _, want := range row.want {
			if !strings.Contains(string(r.Limits), want) {
				t.Errorf("%s: want %s:\n%s", row.name, want, r.Limits)
			}
		}
	}
}

// An include takes the files that glob(3) gives, no hidden ones by *.
func TestIncludedFiles(t *testing.T) {
	const server = "server { listen 80; server_name a.example; location / { proxy_pass http://10.0.0.1; } }"
	for _, row := range []struct {
		pattern, file string
		want          bool
	}{
		{"sites/*", "sites/a", true}, {"sites/*", "sites/.a.swp", false}, {"sites/?a", "sites/.a", false}, {"sites/[.]a", "sites/.a", false},
		{"sites/[!x]*", "sites/xa", false}, {"sites/[!x]*", "sites/a", true}, {"sites/[!x]*", "sites/!a", true}, {"sites/[^x]*", "sites/xa", false},
		{"sites/[]a]", "sites/]", true}, {"sites/[!]a]", "sites/]", false}, {"sites/[!]a]", "sites/b", true}, {`sites/\[!a]`, "sites/[!a]", true},
		{"sites/.*", "sites/.a", true}, {"*/a", ".old/a", false}, {"*/a", "new/a", true}, {"/etc/nginx/sites/*", "sites/.a", false},
	} {
		text := "events {} http { include " + row.pattern + "; server { listen 81; location / { return 404; } } }"
		r, err := Import("/etc/nginx/nginx.conf", inMemory(map[string][]byte{"nginx.conf": []byte(text), row.file: []byte(server)}))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(r.Gateway), "a.example"); got != row.want {
			t.Errorf("include %s: %s is read: %v", row.pattern, row.file, got)
		}
	}
}

// What is less strict here is told.
func TestToldAndKept(t *testing.T) {
	const calls = "events {} http { server { listen 80; location / { grpc_pass grpcs://10.0.0.1:443; "
	const note, not = "another server on :443 has it", "verify: false"
	for _, row := range []struct{ name, text, want, not string }{
		{"grpc verified", calls + "grpc_ssl_verify on; grpc_ssl_trusted_certificate /ca.pem; grpc_ssl_name b.example; } } }", "verify: true", not},
		{"its authority", calls + "grpc_ssl_verify on; grpc_ssl_trusted_certificate /ca.pem; } } }", "ca: /ca.pem", "without effect"},
		{"its name", calls + "grpc_ssl_verify on; grpc_ssl_name b.example; } } }", "server_name: b.example", "without effect"},
		{"proxy_ssl_verify is not for it", calls + "proxy_ssl_verify on; } } }", not, "verify: true"},
		{"no list of revoked ones", calls + "grpc_ssl_crl /crl.pem; } } }", "maintenance: {enabled: true}", "not known here"},
		{"IPv6 alone", "events {} http { server { listen [::]:80; location / { proxy_pass http://10.0.0.1; } } }", "by IPv4, too", "by IPv6, too"},
		{"IPv6 and IPv4", "events {} http { server { listen [::]:80; listen 80; location / { proxy_pass http://10.0.0.1; } } }", "address: \":80\"", ", too"},
		{"IPv6 that is both", "events {} http { server { listen [::]:80 ipv6only=off; location / { proxy_pass http://10.0.0.1; } } }", "address: \":80\"", ", too"},
		{"TLS 1.3 behind 1.2", "events {} http { server { listen 443 ssl; return 404; } server { listen 443 ssl; server_name b.example; ssl_protocols TLSv1.3; return 404; } }", note, "never"},
		{"TLS 1.3 before 1.2", "events {} http { server { listen 443 ssl; server_name b.example; ssl_protocols TLSv1.3; return 404; } server { listen 443 ssl; server_name a.example; return 404; } }", note, "never"},
		{"TLS 1.3 for both", "events {} http { ssl_protocols TLSv1.3; server { listen 443 ssl; return 404; } server { listen 443 ssl; server_name b.example; return 404; } }", "min_version: \"1.3\"", note},
	} {
		r, err := Import("/etc/nginx/nginx.conf", inMemory(map[string][]byte{"nginx.conf": []byte(row.text)}))
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		all := string(r.Gateway)
		for _, n := range r.Notes {
			all += n.String() + "\n"
		}
		if !strings.Contains(all, row.want) || strings.Contains(all, row.not) {
			t.Errorf("%s: want %q, without %q:\n%s", row.name, row.want, row.not, all)
		}
	}
}

// accounted finds directives of which nobody has said what became of them.
func accounted(t testing.TB, list []*directive) {
	for _, d := range list {
		if !d.done {
			t.Errorf("%s:%d: %s is dropped in silence", d.file, d.line, d.text())
		}
		accounted(t, d.block)
	}
}

func TestNothingIsDroppedInSilence(t *testing.T) {
	for name, texts := range samples(t) {
		tr, err := translate("/etc/nginx/nginx.conf", inMemory(texts))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		accounted(t, tr.main)
	}
	// A directive that nobody knows is told, wherever it stands.
	const text = "strange a; events { odd 1; } http { queer on; server { listen 80; weird { inner; } location / { curious x; proxy_pass http://10.0.0.1; } } }"
	r, err := Import("/etc/nginx/nginx.conf", inMemory(map[string][]byte{"nginx.conf": []byte(text)}))
	if err != nil {
		t.Fatal(err)
	}
	var told strings.Builder
	for _, n := range r.Notes {
		told.WriteString(n.String() + "\n")
	}
	for _, name := range []string{"strange", "odd", "queer", "weird", "curious"} {
		if !strings.Contains(told.String(), "not translated: "+name+" ") && !strings.Contains(told.String(), "not translated: "+name+":") {
			t.Errorf("%s is not told:\n%s", name, &told)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"loop", "include nginx.conf;", "includes itself"},
		{"loop of two", "http { include a.conf; }", "includes itself"},
		{"no file", "include none.conf;", "none.conf"},
		{"class with a name", "include [[:alpha:]].conf;", "one by one"},
		{"no end", "http { server {", "unexpected end of file"},
		{"no text", "events {} http { access_log /a\x00b; }", "no text"},
		{"nothing", "events {}", "no server"},
		{"deep", strings.Repeat("a { ", 20) + strings.Repeat("} ", 20), "nested"},
	} {
		_, err := Import("/etc/nginx/nginx.conf", inMemory(map[string][]byte{"nginx.conf": []byte(row.text), "a.conf": []byte("include b.conf;"), "b.conf": []byte("include a.conf;")}))
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.name, err, row.want)
		}
	}
	if _, err := Import("/etc/nginx/nginx.conf", inMemory(nil)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file at all: %v", err)
	}
}

// FuzzImport: no text makes it panic, and what comes out is a configuration or an error.
func FuzzImport(f *testing.F) {
	for _, texts := range samples(f) {
		f.Add(texts["nginx.conf"])
	}
	f.Add([]byte(`events{} http{server{listen 80;location /a{return 200 "\u00e9\"";}location ~ (a{proxy_pass http://x;}}}`))
	f.Add([]byte("events {} http { server { listen 80; server_name a.example .a.example ..b; location / { proxy_pass http://x; } } server { listen 80; server_name b; } }"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Import("/etc/nginx/nginx.conf", inMemory(map[string][]byte{"nginx.conf": text, "mime.types": []byte("types {}")}))
		if err != nil {
			if r != nil { // a translation that does not hold is never given away
				t.Fatalf("%v", err)
			}
			return
		}
		for _, n := range r.Notes {
			if n.Line < 1 || n.Text == "" || strings.ContainsAny(n.Directive, "\n\r\x00") {
				t.Fatalf("note %+q", n)
			}
		}
	})
}
