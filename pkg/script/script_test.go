// SPDX-License-Identifier: Apache-2.0

package script

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/config"
)

var update = flag.Bool("update", false, "write what is got into testdata")

// The test binary is the script's process, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == Command {
		os.Exit(Main(os.Args[2], os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}

const gateway = `
routes:
  - {name: api, path: /, upstream: app}
  - {name: login, path: /login, upstream: app}
upstreams: [{name: app, servers: ["127.0.0.1:8080"]}]
redis: {address: "127.0.0.1:6379"}
`

// limits is what a text means, or what is wrong with it.
func limits(t *testing.T, source string) (name, text string) {
	t.Helper()
	c, err := config.Parse("gateway.yaml", []byte(gateway), nil)
	if err != nil {
		t.Fatal(err)
	}
	calls, err := Run("ratelimit.lua", []byte(source))
	if err == nil {
		err = c.AddLimits("ratelimit.lua", calls)
	}
	if err != nil {
		return "errors", err.Error() + "\n"
	}
	var b strings.Builder
	for _, l := range c.RequestLimits {
		line, _ := json.Marshal(l)
		fmt.Fprintf(&b, "limit_req %s\n", line)
	}
	for _, l := range c.ConnectionLimits {
		line, _ := json.Marshal(l)
		fmt.Fprintf(&b, "limit_conn %s\n", line)
	}
	for _, l := range c.PacketLimits {
		line, _ := json.Marshal(l)
		fmt.Fprintf(&b, "packet_limit %s\n", line)
	}
	for _, e := range c.Escalations {
		line, _ := json.Marshal(e)
		fmt.Fprintf(&b, "escalate %s\n", line)
	}
	for _, p := range c.Allow {
		fmt.Fprintln(&b, "allow", p)
	}
	for _, p := range c.Deny {
		fmt.Fprintln(&b, "deny", p)
	}
	return "values", b.String()
}

// A case is a txtar file: ratelimit.lua, and what comes of it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 50 {
		t.Fatalf("%d cases, error %v: the folder is not whole", len(files), err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			name, got := limits(t, string(a.Files[0].Data))
			if *update {
				a.Files = append(a.Files[:1], txtar.File{Name: name, Data: []byte(got)})
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(a.Files) != 2 || a.Files[1].Name != name {
				t.Fatalf("got %s:\n%s", name, got)
			}
			if diff := cmp.Diff(string(a.Files[1].Data), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		})
	}
}

// Whatever a script does, it ends soon, with an error that says why, and the process that
// asked does not grow.
func TestHostileScripts(t *testing.T) {
	for name, tt := range map[string]struct{ source, says string }{
		"endless loop":            {`while true do end`, "computes for more than"},
		"endless loop in pcall":   {`while true do pcall(function() while true do end end) end`, "computes for more than"},
		"endless recursion":       {`local function f() return 1 + f() end f()`, "ratelimit.lua:1: stack overflow"},
		"endless tail calls":      {`local function f() return f() end f()`, "computes for more than"},
		"coroutines":              {`coroutine.wrap(function() while true do end end)()`, "ratelimit.lua:1: attempt to index"},
		"pattern":                 {`string.find(string.rep("a", 200) .. "b", string.rep("a?", 200) .. string.rep("a", 200) .. "c")`, "computes for more than"},
		"one large string":        {`local s = string.rep("x", 2^30)`, "more than 16 MiB"},
		"doubled strings":         {`local s = "x" while true do s = s .. s end`, ""},
		"strings kept":            {`local t = {} for i = 1, 1e9 do t[i] = string.rep("x", 1e5) .. i end`, ""}, // memory or time, whichever ends first
		"format":                  {`local s = string.format("%1000000000d", 1)`, ""},
		"table.concat":            {`local t = {} for i = 1, 1e5 do t[i] = string.rep("x", 1e4) end return table.concat(t)`, ""},
		"many calls":              {`for i = 1, 1e9 do deny{"192.0.2.1"} end`, ""},
		"error with a large text": {`error(string.rep("x", 1e6))`, ""},
		"error that is no text":   {`error({})`, "table"},
		"error that is nothing":   {`error(nil)`, ""},
		"error called by error":   {`error(setmetatable({}, {__tostring = function() while true do end end}))`, ""},
		"os":                      {`os.exit(0)`, "ratelimit.lua:1: attempt to index"},
		"io":                      {`io.open("/etc/passwd")`, "ratelimit.lua:1: attempt to index"},
		"debug":                   {`debug.getinfo(1)`, "ratelimit.lua:1: attempt to index"},
		"load":                    {`load("x = 1")()`, "ratelimit.lua:1: attempt to call"},
		"loadstring":              {`loadstring("x = 1")()`, "ratelimit.lua:1: attempt to call"},
		"dofile":                  {`dofile("/etc/passwd")`, "ratelimit.lua:1: attempt to call"},
		"require":                 {`require("os")`, "ratelimit.lua:1: attempt to call"},
		"string.dump":             {`string.dump(function() end)`, "ratelimit.lua:1: attempt to call"},
		"table in itself":         {`local t = {} t.t = t deny(t)`, "ratelimit.lua:1: deny: tables lie in each other"},
		"bytes that are no text":  {"deny{'\x00\xff'}", "ratelimit.lua:1:1: deny[0]"},
		"not Lua at all":          {"\x7fELF\x00\x01", "ratelimit.lua:1: syntax error"},
		"deep syntax":             {strings.Repeat("(", 100_000), ""},
		"long line":               {"x = " + strings.Repeat("1 + ", 100_000) + "1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			calls, err := Run("ratelimit.lua", []byte(tt.source))
			if err == nil {
				err = (&config.Config{}).AddLimits("ratelimit.lua", calls)
			}
			if err == nil && tt.says != "" {
				t.Fatal("no error")
			}
			if err != nil && (!strings.HasPrefix(err.Error(), "ratelimit.lua") || !strings.Contains(err.Error(), tt.says) || len(err.Error()) > 2000) {
				t.Errorf("%.300v: want ratelimit.lua and %q", err, tt.says)
			}
			if took := time.Since(began); took >= wallTime {
				t.Errorf("it took %v", took)
			}
		})
	}
	// The largest of their processes, which began as large as this one.
	var children unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &children); err != nil {
		t.Fatal(err)
	}
	if mib := children.Maxrss >> 10; mib > 400 {
		t.Errorf("a script's process had %d MiB of memory", mib)
	}
}

func TestRunOfALongFile(t *testing.T) {
	if _, err := Run("ratelimit.lua", make([]byte, maxSource+1)); err == nil || !strings.Contains(err.Error(), "longer than 4 MiB") {
		t.Error(err)
	}
	// As long as it may be, with nothing but a remark.
	if calls, err := Run("ratelimit.lua", append([]byte("--"), slices.Repeat([]byte("x"), maxSource-2)...)); err != nil || len(calls) != 0 {
		t.Error(calls, err)
	}
}

func TestExample(t *testing.T) {
	source, err := os.ReadFile("../../deploy/ratelimit.lua")
	if err != nil {
		t.Fatal(err)
	}
	// Examples stand right behind --: without those marks they must be right, too.
	if name, got := limits(t, string(source)); name != "values" || got != "" {
		t.Errorf("%s:\n%s", name, got)
	}
	lively := regexp.MustCompile(`(?m)^--(\S)`).ReplaceAllString(string(source), "$1")
	name, got := limits(t, lively)
	if name != "values" {
		t.Fatalf("with its examples: %s", got)
	}
	for _, fn := range functions {
		if !strings.Contains(got, fn) {
			t.Errorf("no example of %s:\n%s", fn, got)
		}
	}
}

func FuzzEvaluate(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, path := range files {
		a, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(a.Files[0].Data))
	}
	f.Fuzz(func(t *testing.T, source string) {
		if strings.Contains(source, "while") || strings.Contains(source, "for") || strings.Contains(source, "repeat") ||
			strings.Contains(source, "function") || strings.Contains(source, "rep") || strings.Contains(source, "%") {
			return // what need not end, or needs much memory, is for the process around it
		}
		o := evaluate("ratelimit.lua", source)
		c, err := config.Parse("gateway.yaml", []byte(gateway), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.AddLimits("ratelimit.lua", o.Calls)
	})
}
