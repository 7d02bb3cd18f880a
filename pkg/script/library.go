// SPDX-License-Identifier: Apache-2.0

package script

import (
	"fmt"
	"strings"

	lua "github.com/yuin/gopher-lua"
)

// What a file with key functions has of Lua's own library: all that is bounded by what it
// is given, and the same in every process.
var (
	baseNames   = []string{"assert", "error", "getmetatable", "ipairs", "next", "pairs", "pcall", "rawequal", "rawget", "select", "setmetatable", "tonumber", "tostring", "type", "unpack"}
	tableNames  = []string{"concat", "getn", "insert", "maxn", "remove", "sort"}
	stringNames = []string{"byte", "char", "len", "lower", "reverse", "sub", "upper"}
	patterns    = []string{"gmatch", "gsub", "match"}
)

// openLibraries fills the global table.
func (k *Keys) openLibraries() {
	l := k.state
	for name, open := range map[string]lua.LGFunction{lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString, lua.MathLibName: lua.OpenMath} {
		l.Push(l.NewFunction(open))
		l.Push(lua.LString(name))
		l.Call(1, 0)
	}
	g := l.G.Global
	only(g, append(baseNames, "table", "string", "math", "_G"))
	table, text, numbers := g.RawGetString("table").(*lua.LTable), g.RawGetString("string").(*lua.LTable), g.RawGetString("math").(*lua.LTable)
	only(table, tableNames)
	only(text, append(stringNames, "__index")) // which makes s:upper() work
	for _, name := range []string{"random", "randomseed"} {
		numbers.RawSetString(name, lua.LNil)
	}
	put := func(t *lua.LTable, name string, fn lua.LGFunction) { t.RawSetString(name, l.NewFunction(fn)) }
	put(g, opConcat, func(l *lua.LState) int { l.Push(k.join(l.Get(1), l.Get(2))); return 1 })
	put(g, opIndex, func(l *lua.LState) int { l.Push(k.index(l.Get(1))); return 1 })
	put(g, opOwn, func(l *lua.LState) int { l.Push(k.own(l.Get(1))); return 1 })
	put(g, opOutside, func(*lua.LState) int { k.notNow("a variable outside of the function"); return 0 })
	put(g, "tostring", func(l *lua.LState) int { l.Push(lua.LString(plainText(l.CheckAny(1)))); return 1 })
	k.guard(g, "pcall", func(*lua.LState) { k.charge(bytesPerError) })
	k.guard(g, "setmetatable", func(l *lua.LState) { k.notNow("setmetatable") })
	for _, name := range []string{"insert", "remove", "sort"} {
		k.guard(table, name, func(l *lua.LState) { k.own(l.Get(1)); k.index(l.Get(2)) })
	}
	put(table, "concat", k.concat)
	for _, name := range stringNames {
		k.guard(text, name, func(l *lua.LState) { k.charge(len(l.ToString(1))) })
	}
	put(text, "find", k.find)
	put(text, "format", k.format)
	put(text, "rep", k.rep)
	for _, name := range patterns {
		put(text, name, func(l *lua.LState) int {
			l.RaiseError("string.%s: there are no patterns in a file with key functions, but string.find(s, text, 1, true)", name)
			return 0
		})
	}
	k.openRequest()
}

// openRequest makes what key functions get. There is one for all requests.
func (k *Keys) openRequest() {
	l := k.state
	header := l.NewFunction(func(l *lua.LState) int {
		if k.request == nil || l.Get(1) != k.asked {
			l.RaiseError("want r:header(name), while the request lasts")
		}
		k.room = k.request.AppendHeader(k.room[:0], l.CheckString(2))
		k.charge(len(k.room))
		l.Push(lua.LString(k.room))
		return 1
	})
	meta := l.NewTable()
	meta.RawSetString("__metatable", lua.LFalse)
	meta.RawSetString("__index", l.NewFunction(func(l *lua.LState) int {
		name := l.CheckString(2)
		if name == "header" {
			l.Push(header)
			return 1
		}
		if !isField(name) {
			l.RaiseError("a request has no %s: want method, path, ip, key, route, or header(name)", short(name))
		}
		if k.request == nil {
			l.RaiseError("the request is over")
		}
		k.room = k.request.AppendField(k.room[:0], name)
		k.charge(len(k.room))
		l.Push(lua.LString(k.room))
		return 1
	}))
	k.asked = l.NewUserData()
	k.asked.Metatable = meta
}

// isField tells whether a request has it, beside its header.
func isField(name string) bool {
	switch name {
	case "method", "path", "ip", "key", "route":
		return true
	}
	return false
}

// only leaves the names alone in the table.
func only(t *lua.LTable, names []string) {
	keep := map[string]bool{}
	for _, n := range names {
		keep[n] = true
	}
	var gone []string
	t.ForEach(func(key, _ lua.LValue) {
		if !keep[key.String()] {
			gone = append(gone, key.String())
		}
	})
	for _, name := range gone {
		t.RawSetString(name, lua.LNil)
	}
}

// guard asks before a function of the table is called.
func (k *Keys) guard(t *lua.LTable, name string, before func(*lua.LState)) {
	fn := t.RawGetString(name).(*lua.LFunction).GFunction
	t.RawSetString(name, k.state.NewFunction(func(l *lua.LState) int { before(l); return fn(l) }))
}

// charge takes the steps for so many bytes.
func (k *Keys) charge(bytes int) {
	if k.steps.left -= bytes / bytesPerStep; k.steps.left < 0 {
		k.state.RaiseError("%s", ErrBudget)
	}
}

// notNow: key functions change nothing that outlives them.
func (k *Keys) notNow(what string) {
	if k.asking {
		k.state.RaiseError("a key function cannot change or use %s: what it keeps is local", what)
	}
}

// own is a table that may be changed now.
func (k *Keys) own(v lua.LValue) lua.LValue {
	if t, ok := v.(*lua.LTable); ok && k.asking && k.file[t] {
		k.state.RaiseError("a key function cannot change a table of the file: it can make one of its own")
	}
	if _, ok := v.(*lua.LUserData); ok {
		k.state.RaiseError("a request cannot be changed")
	}
	return v
}

// index is a key that a table may get: the machine makes room up to a number, and names in
// brackets are the operators below.
func (k *Keys) index(v lua.LValue) lua.LValue {
	switch v := v.(type) {
	case lua.LNumber:
		if v > mostItems {
			k.state.RaiseError("a list is longer than %d", mostItems)
		}
		if v > 0 {
			k.charge(int(v) * bytesPerItem)
		}
	case lua.LString:
		if strings.HasPrefix(string(v), "(") {
			k.state.RaiseError("a name cannot begin with a bracket")
		}
	}
	return v
}

// made is a string that is not longer than one may be.
func (k *Keys) made(size int, s func() string) lua.LString {
	if size > longest {
		k.state.RaiseError("a text is longer than %d bytes", longest)
	}
	k.charge(size)
	return lua.LString(s())
}

func (k *Keys) join(a, b lua.LValue) lua.LValue {
	if !lua.LVCanConvToString(a) || !lua.LVCanConvToString(b) {
		k.state.RaiseError("attempt to concatenate a %s with a %s", a.Type(), b.Type())
	}
	x, y := lua.LVAsString(a), lua.LVAsString(b)
	return k.made(len(x)+len(y), func() string { return x + y })
}

// plainText is what tostring gives: of a table no address, which differs between processes.
func plainText(v lua.LValue) string {
	if lua.LVCanConvToString(v) || v.Type() == lua.LTBool || v == lua.LNil {
		return v.String()
	}
	return v.Type().String()
}

func (k *Keys) rep(l *lua.LState) int {
	s, n := l.CheckString(1), max(l.CheckInt(2), 0)
	if len(s) > 0 && n > longest/len(s) {
		n = longest/len(s) + 1 // which made refuses
	}
	l.Push(k.made(len(s)*n, func() string { return strings.Repeat(s, n) }))
	return 1
}

func (k *Keys) concat(l *lua.LState) int {
	t, sep := l.CheckTable(1), l.OptString(2, "")
	var parts []string
	size := 0
	for i := l.OptInt(3, 1); i <= min(l.OptInt(4, t.Len()), t.Len()); i++ {
		v := t.RawGetInt(i)
		if !lua.LVCanConvToString(v) {
			l.RaiseError("table.concat: item %d is a %s", i, v.Type())
		}
		k.charge(bytesPerStep)
		parts = append(parts, lua.LVAsString(v))
		if size += len(parts[len(parts)-1]) + len(sep); size > longest+len(sep) {
			break // which made refuses
		}
	}
	l.Push(k.made(max(size-len(sep), 0), func() string { return strings.Join(parts, sep) }))
	return 1
}

// find is string.find of plain text.
func (k *Keys) find(l *lua.LState) int {
	s, text, from := l.CheckString(1), l.CheckString(2), l.OptInt(3, 1)
	if !l.ToBool(4) {
		l.RaiseError("string.find: there are no patterns in a file with key functions: want string.find(s, text, 1, true)")
	}
	k.charge(len(s))
	if from < 0 {
		from = max(len(s)+from+1, 1)
	}
	from = max(from, 1)
	if from > len(s)+1 {
		l.Push(lua.LNil)
		return 1
	}
	at := strings.Index(s[from-1:], text)
	if at < 0 {
		l.Push(lua.LNil)
		return 1
	}
	l.Push(lua.LNumber(from + at))
	l.Push(lua.LNumber(from + at + len(text) - 1))
	return 2
}

// format knows %s, %d, %x, %c, %q, %f, %g and %%, with up to two digits of width and of
// precision.
func (k *Keys) format(l *lua.LState) int {
	layout := l.CheckString(1)
	k.charge(len(layout))
	var b strings.Builder
	for arg := 2; layout != ""; {
		at := strings.IndexByte(layout, '%')
		if at < 0 {
			at = len(layout)
		}
		b.WriteString(layout[:at])
		if layout = layout[at:]; layout == "" {
			break
		}
		n := 1
		for n < len(layout) && strings.IndexByte("-+ #0123456789.", layout[n]) >= 0 {
			n++
		}
		if n == len(layout) || n > 7 || strings.IndexByte("sdxcqfg%", layout[n]) < 0 || threeDigits(layout[1:n]) {
			l.RaiseError("string.format: want %%s, %%d, %%x, %%c, %%q, %%f, %%g or %%%%, with at most two digits of width")
		}
		verb := layout[:n+1]
		layout = layout[n+1:]
		switch verb[n] {
		case '%':
			b.WriteByte('%')
			continue
		case 's', 'q':
			s := plainText(l.CheckAny(arg))
			k.charge(len(s))
			fmt.Fprintf(&b, verb, s)
		case 'd', 'x', 'c':
			fmt.Fprintf(&b, verb, int64(l.CheckNumber(arg)))
		default:
			fmt.Fprintf(&b, verb, float64(l.CheckNumber(arg)))
		}
		arg++
		if b.Len() > longest {
			break
		}
	}
	l.Push(k.made(b.Len(), b.String))
	return 1
}

// threeDigits in a row are a width that is not for us.
func threeDigits(s string) bool {
	run := 0
	for _, c := range s {
		if run++; c < '0' || c > '9' {
			run = 0
		}
		if run > 2 {
			return true
		}
	}
	return false
}
