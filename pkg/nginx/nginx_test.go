// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
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
