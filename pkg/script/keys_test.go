// SPDX-License-Identifier: Apache-2.0

package script

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/xgw-project/xgw/pkg/config"
)

// fake is a request of a table.
type fake map[string]string

func (f fake) AppendField(dst []byte, name string) []byte { return append(dst, f[name]...) }
func (f fake) AppendHeader(dst []byte, name string) []byte {
	return append(dst, f["header:"+strings.ToLower(name)]...)
}

var someone = fake{"method": "GET", "path": "/v1/orders/17", "ip": "192.0.2.7", "key": "k1", "route": "api", "header:x-tenant": "acme"}

func mustKeys(tb testing.TB, source string) *Keys {
	tb.Helper()
	k, err := load("ratelimit.lua", source)
	if err != nil {
		tb.Fatal(err)
	}
	again, err := NewKeys("ratelimit.lua", []byte(source), config.Hash(k.calls))
	if err != nil {
		tb.Fatal(err)
	}
	return again
}

// keyed is a text whose one limit, l, has that function.
func keyed(body string) string {
	return `limit_req{name = "l", rate = 1, key = function(r) ` + body + ` end}`
}

func TestKeys(t *testing.T) {
	for name, tt := range map[string]struct{ source, want string }{
		"fields":         {keyed(`return r.method .. " " .. r.path .. " " .. r.ip .. " " .. r.key .. " " .. r.route`), "GET /v1/orders/17 192.0.2.7 k1 api"},
		"header":         {keyed(`return r:header("X-Tenant")`), "acme"},
		"no header":      {keyed(`return r:header("X-Other")`), ""},
		"nil":            {keyed(`return nil`), ""},
		"nothing":        {keyed(``), ""},
		"false":          {keyed(`return false`), ""},
		"number":         {keyed(`return 4 + 0.5`), "4.5"},
		"choice":         {keyed(`if r:header("x-tenant") ~= "" then return "t:" .. r:header("x-tenant") end return r.ip`), "t:acme"},
		"cut":            {keyed(`return string.sub(r.path, 1, string.find(r.path, "/", 2, true))`), "/v1/"},
		"methods of it":  {keyed(`return r.path:upper():sub(1, 3)`), "/V1"},
		"table of its":   {keyed(`local t = {} for i = 1, 5 do t[i] = i * i end t.name = r.ip return table.concat(t, ",") .. t.name`), "1,4,9,16,25192.0.2.7"},
		"table of files": {"local tiers = {acme = 'gold'}\n" + keyed(`return tiers[r:header("x-tenant")] or "none"`), "gold"},
		"function":       {"local function first(s) local n = 1 n = n + 1 return s:sub(1, n) end\n" + keyed(`return first(r.path)`), "/v"},
		"inner function": {keyed(`local n = 0 local function f(x) local m = x m = m + 1 return m end for i = 1, 3 do n = f(n) end return n`), "3"},
		"format":         {keyed(`return string.format("%s-%03d-%x %5.2f%%", r.key, 7, 255, 1.5)`), "k1-007-ff  1.50%"},
		"rep":            {keyed(`return ("ab"):rep(3)`), "ababab"},
		"pcall":          {keyed(`local ok = pcall(error, "x") return tostring(ok)`), "false"},
		"loop of limits": {`for _, n in ipairs{"a", "l"} do limit_req{name = n, rate = 1, key = function(r) return n .. r.ip end} end`, "l192.0.2.7"},
		"globals":        {"prefix = 'p:'\nfunction make(r) return prefix .. r.ip end\n" + keyed(`return make(r)`), "p:192.0.2.7"},
		"limit_conn":     {`limit_conn{name = "l", count = "requests", max = 1, key = function(r) return r.route end}`, "api"},
		"varargs":        {keyed(`local function f(...) return select("#", ...) .. (...) end return f("a", "b")`), "2a"},
		"several values": {keyed(`local function f() return "a", "b" end return f() .. f()`), "aa"},
		"concat of many": {keyed(`return "a" .. 1 .. "b" .. 2.5`), "a1b2.5"},
	} {
		t.Run(name, func(t *testing.T) {
			k := mustKeys(t, tt.source)
			for i := range 4 {
				if i == 2 {
					k.plain = nil // by the machine, whatever the function is
				}
				got, err := k.Key("l", someone, []byte("before "))
				if err != nil || string(got) != "before "+tt.want {
					t.Errorf("%q, %v: want %q", got, err, tt.want)
				}
			}
			if !k.Has("l") || k.Has("other") {
				t.Error("functions are not found by the names of limits")
			}
		})
	}
}

// What a key function may do ends within its budget, with an error, and leaves nothing: the
// next request gets its key, and a thousand such calls grow nothing.
func TestHostileKeys(t *testing.T) {
	for name, tt := range map[string]struct {
		body, says string
	}{
		"endless loop":          {`while true do end`, "10,000 steps"},
		"endless loop in pcall": {`while true do pcall(function() while true do end end) end`, "10,000 steps"},
		"pcall of pcall":        {`local function f() return pcall(pcall, f) end while true do f() end`, "10,000 steps"},
		"pcall, then a key":     {`pcall(function() while true do end end) return "key"`, "10,000 steps"},
		"recursion":             {`local function f() return 1 + f() end return f()`, "stack overflow"},
		"tail calls":            {`local function f() return f() end return f()`, "10,000 steps"},
		"doubled strings":       {`local s = "x" while true do s = s .. s end`, "longer than"},
		"doubled in pcall":      {`local s = "x" while true do pcall(function() s = s .. s end) end`, ""},
		"concat in a loop":      {`local s = string.rep("x", 16000) local t = {} while true do t[#t + 1] = s .. #t end`, ""},
		"rep":                   {`return string.rep("x", 1e9)`, "longer than"},
		"rep of nothing":        {`while true do string.rep("", 1e9) end`, "10,000 steps"},
		"format":                {`return string.format("%1000000000d", 1)`, "two digits"},
		"table.concat":          {`local t = {} for i = 1, 100 do t[i] = string.rep("x", 1000) end return table.concat(t)`, ""},
		"far index":             {`local t = {} t[67108863] = 1`, "a list is longer"},
		"many far indexes":      {`while true do local t = {} t[4096] = 1 end`, "10,000 steps"},
		"far field":             {`while true do local t = {[4096] = 1} end`, "10,000 steps"},
		"insert far":            {`local t = {} table.insert(t, 67108863, 1)`, "a list is longer"},
		"unpack":                {`return unpack({}, 1, 1e8)`, "overflow"},
		"rawset":                {`rawset({}, 1, 1)`, "attempt to call"},
		"pattern":               {`return ("a"):rep(200):find(("a?"):rep(200) .. ("a"):rep(200))`, "no patterns"},
		"gsub":                  {`return r.path:gsub(".", "x")`, "no patterns"},
		"upvalue":               {`kept = r.path`, "variable outside"},
		"upvalue of the file":   {`list = {list, r.path}`, "variable outside"},
		"global":                {`function leak() end`, "variable outside"},
		"global table":          {`_G.leak = r.path`, "table of the file"},
		"table of the file":     {`store[#store + 1] = r.path`, "table of the file"},
		"insert into it":        {`table.insert(store, r.path)`, "table of the file"},
		"behind a function":     {`add(r.path)`, "variable outside"},
		"behind a table":        {`store.add(r.path)`, "table of the file"},
		"library":               {`string.leak = r.path`, "table of the file"},
		"metatable":             {`setmetatable(store, {__index = {r.path}})`, "setmetatable"},
		"operators":             {`_G["(own)"] = nil`, "table of the file"},
		"limits":                {`limit_req{name = "more", rate = 1}`, "limit_req"},
		"the request kept":      {`r.path = "x"`, "cannot be changed"},
		"unknown field":         {`return r.body`, "has no body"},
		"header without a name": {`return r:header()`, "string expected"},
		"header of another":     {`return r.header({}, "x")`, "while the request lasts"},
		"metatable of it":       {`return getmetatable(r).__index`, "attempt to index"},
		"a table":               {`return {}`, "gives a table"},
		"error with a table":    {`error({})`, "table"},
		"error with much text":  {`error(string.rep("x", 16000))`, ""},
		"xpcall":                {`return xpcall(function() while true do end end, function() while true do end end)`, "attempt to call"},
		"coroutine":             {`coroutine.wrap(function() while true do end end)()`, "attempt to index"},
		"setfenv":               {`setfenv(1, {})`, "attempt to call"},
		"random":                {`return math.random()`, "attempt to call"},
		"sort":                  {`local t = {} for i = 1, 500 do t[i] = -i end table.sort(t, function(a, b) while true do end end)`, "10,000 steps"},
		"long numbers":          {`local s = string.rep("1", 300) while true do local n = s + 1 end`, "10,000 steps"},
	} {
		t.Run(name, func(t *testing.T) {
			k := mustKeys(t, `
store, list, kept = {}, nil, nil
store.add = function(v) store[#store + 1] = v end
function add(v) kept = v end
add(1) store.add(2)
limit_req{name = "good", rate = 1, key = function(r) return r.ip end}
`+keyed(tt.body))
			k.state.SetTop(0)
			var err error
			for range 3 {
				if _, err = k.Key("l", someone, nil); err == nil {
					t.Fatal("no error")
				}
			}
			if !strings.Contains(err.Error(), tt.says) || len(err.Error()) > 2*maxError {
				t.Errorf("%.300v: want %q", err, tt.says)
			}
			if got, err := k.Key("good", someone, nil); err != nil || string(got) != "192.0.2.7" {
				t.Errorf("after it: %q, %v", got, err)
			}
			before := heap()
			for range 50 {
				_, _ = k.Key("l", someone, nil)
			}
			if grown := heap() - before; grown > 256<<10 {
				t.Errorf("50 requests grew the state by %d KiB", grown>>10)
			}
			runtime.KeepAlive(k)
		})
	}
}

func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// What a file with key functions may not do at load shows where the configuration is read.
func TestFileWithKeys(t *testing.T) {
	for name, tt := range map[string]struct{ source, says string }{
		"pattern":      {"local s = ('x'):gsub('x', 'y')\n" + keyed(`return r.ip`), "ratelimit.lua:1: string.gsub: there are no patterns"},
		"random":       {"local n = math.random()\n" + keyed(`return r.ip`), "ratelimit.lua:1: attempt to call"},
		"many steps":   {"for i = 1, 2e5 do end\n" + keyed(`return r.ip`), "100000 steps"},
		"packet limit": {`packet_limit{name = "p", count = "syns", rate = 1, key = function(r) end}`, "ratelimit.lua:1: packet_limit: a function cannot stand in it"},
		"connections":  {`limit_conn{name = "c", max = 1, key = function(r) end}`, "limit_conn: of a connection"},
		"word":         {`limit_req{name = "l", rate = 1, key = "function"}`, "limit_req.key"},
		"in a list":    {`limit_req{name = "l", rate = 1, key = {"address", function(r) end}}`, "a function cannot stand in it"},
	} {
		calls, err := Run("ratelimit.lua", []byte(tt.source))
		if err == nil {
			err = (&config.Config{}).AddLimits("ratelimit.lua", calls)
		}
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", name, err, tt.says)
		}
	}
	k := mustKeys(t, keyed(`return r.ip`))
	if _, err := NewKeys("ratelimit.lua", []byte(keyed(`return r.ip`)), config.Hash(append(k.calls, config.Call{Function: "deny"}))); err == nil || !strings.Contains(err.Error(), "other limits") {
		t.Errorf("a text that says something else: %v", err)
	}
	if _, err := k.Key("l", someone, nil); errors.Is(err, ErrBudget) {
		t.Error(err)
	}
}

// Which functions need no machine: those that compare and join texts, whatever they are called
// by; that they say the same either way TestKeys and FuzzKey see to.
func TestPlainKeys(t *testing.T) {
	for body, want := range map[string]bool{
		`return r.ip`: true,
		`return r.method .. " " .. r:header("X-A")`:                                                                        true,
		`local t = r.ip local u = t .. t return u`:                                                                         true,
		`if r.key == "" then return r.ip else return r.key end`:                                                            true,
		`if r.key ~= "" and not (r.ip == "a" or r.ip == "b") then return r.key elseif r.path == "/" then return false end`: true,
		``:                                        true,
		`return nil`:                              true,
		`return 1`:                                false,
		`return r.ip, r.ip`:                       false,
		`return r.body`:                           false,
		`return r:body("x")`:                      false,
		`return r:header(r.ip)`:                   false,
		`return other`:                            false,
		`return r.ip or "x"`:                      false,
		`local r = r.ip return r`:                 false,
		`local a, b = r.ip, r.ip return a`:        false,
		`local a = r return a.ip`:                 false,
		`if r.ip then return r.ip end`:            false,
		`if r.ip < "b" then return r.ip end`:      false,
		`while r.ip == "x" do end return r.ip`:    false,
		`return (function(r) return r.ip end)(r)`: false,
		`do local a = r.ip end return a`:          false,
		`if r.ip == r.ip then local a = r.ip end return a`: false,
	} {
		if got := mustKeys(t, keyed(body)).plain["l"] != nil; got != want {
			t.Errorf("%s: plain %v, want %v", body, got, want)
		}
	}
	// Two on one line cannot be told apart, and the last limit of a name holds.
	two := mustKeys(t, `local a = function(r) return r.ip end local b = function(r) return r.path end
limit_req{name = "l", rate = 1, key = b}`)
	if got, err := two.Key("l", someone, nil); err != nil || string(got) != someone["path"] || two.plain["l"] != nil {
		t.Errorf("%q, %v", got, err)
	}
	two = mustKeys(t, `local n = "up"
limit_req{name = "l", rate = 1, key = function(r) return r.ip end}
limit_req{name = "l", rate = 1, key = function(r) return n .. r.ip end}`)
	if got, err := two.Key("l", someone, nil); err != nil || string(got) != "up"+someone["ip"] {
		t.Errorf("%q, %v", got, err)
	}
	long := fake{"path": strings.Repeat("x", longest)}
	k := mustKeys(t, keyed(`return r.path .. "x"`))
	for range 2 {
		if got, err := k.Key("l", long, []byte("dst")); err == nil || !strings.Contains(err.Error(), "longer than 16384") || string(got) != "dst" {
			t.Errorf("too long: %.20q, %v", got, err)
		}
		k.plain = nil
	}
	k = mustKeys(t, keyed(`if r.method == "GET" then return r:header("x-tenant") .. r.ip end return r.ip`))
	var dst []byte // it keeps the room that a comparison took
	if n := testing.AllocsPerRun(100, func() { dst, _ = k.Key("l", bytesOnly{}, dst[:0]) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// bytesOnly allocates nothing.
type bytesOnly struct{}

func (bytesOnly) AppendField(dst []byte, name string) []byte  { return append(dst, name...) }
func (bytesOnly) AppendHeader(dst []byte, name string) []byte { return append(dst, name...) }

func BenchmarkKey(b *testing.B) {
	for _, way := range []string{"plain", "machine"} {
		b.Run(way, func(b *testing.B) {
			k := mustKeys(b, keyed(`if r.method == "GET" then return r:header("x-tenant") .. r.ip end return r.ip`))
			if way == "machine" {
				k.plain = nil
			}
			b.ReportAllocs()
			var dst []byte
			for b.Loop() {
				var err error
				if dst, err = k.Key("l", bytesOnly{}, dst[:0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzKey(f *testing.F) {
	for _, s := range []string{`return r.ip`, `local a = r.ip if a == r:header("X-Tenant") or not (r.key ~= "k1") then return a .. r.key end return nil`, `while true do end`, `local t = {} t[r.path] = 1 return #t`, `return ("x"):rep(9) .. 1`, `for k, v in pairs(_G) do pcall(v, k, 9) end`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		k, err := load("ratelimit.lua", keyed(body))
		if err != nil || !k.Has("l") {
			return
		}
		for range 3 {
			_, _ = k.Key("l", someone, nil)
		}
		if k.plain["l"] != nil {
			got, err := k.Key("l", someone, nil)
			k.plain = nil
			if want, wantErr := k.Key("l", someone, nil); string(got) != string(want) || (err == nil) != (wantErr == nil) {
				t.Errorf("%q, %v without the machine, with it %q, %v", got, err, want, wantErr)
			}
		}
		if got := k.state.GetTop(); got != 0 {
			t.Errorf("%d values are left", got)
		}
	})
}
