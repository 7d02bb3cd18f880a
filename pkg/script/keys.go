// SPDX-License-Identifier: Apache-2.0

package script

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	lua "github.com/yuin/gopher-lua"

	"github.com/xgw-project/xgw/pkg/config"
)

// ErrBudget: a key function took more steps than a request is worth.
var ErrBudget = errors.New("the key function takes more than 10,000 steps")

const (
	requestSteps = 10_000
	loadSteps    = 100_000
	loadTime     = time.Second // of a worker that others keep from running
	// bytesPerStep is what of a string, or of a table's room, costs a step.
	bytesPerStep = 16
	longest      = 16 << 10 // string, bytes
	mostItems    = 4 << 10  // of a list
	frames       = 100      // of calls within each other
	registers    = 4 << 10  // values on the stack, all frames together
	// What an item of a list costs, in bytes, for each that there is before it; and an error
	// that is caught, which has its trace written.
	bytesPerItem  = 4
	bytesPerError = 100 * bytesPerStep
	// longestCall ends what is slow although it has few steps, such as sums with long numbers
	// that are text. It is looked at each timedSteps.
	longestCall = 10 * time.Millisecond
	timedSteps  = 256
)

// Request is what a key function may ask of a request.
type Request interface {
	// AppendField appends the request's method, path, ip, key or route.
	AppendField(dst []byte, name string) []byte
	// AppendHeader appends the value of a field of the head; nothing for none.
	AppendHeader(dst []byte, name string) []byte
}

// Keys are the key functions of a ratelimit.lua, by the names of their limits. A worker has
// one of each generation.
//
// The text is run once more to make them, in a state that a hostile one cannot make hang or
// grow: each instruction of the Lua machine is a step of a budget, and so is every
// bytesPerStep of what a function of the library or an operator makes; there are no
// patterns, which nothing can interrupt. While a key function runs it can change nothing
// but its own variables and tables, so that no request leaves anything behind for another.
type Keys struct {
	mu        sync.Mutex // a worker has one core: a second state would only wait for it
	state     *lua.LState
	steps     steps
	functions map[string]*lua.LFunction
	plain     map[string]*plain // those that need no machine; they need no lock either
	calls     []config.Call

	asking  bool // a key function runs; until then it is the text
	file    map[*lua.LTable]bool
	request Request
	asked   *lua.LUserData // what the key function gets
	room    []byte         // for a text on its way to the machine
}

// steps is a context whose Done the Lua machine asks before each instruction.
type steps struct {
	context.Context
	left  int
	timed int       // where left is when the time is looked at
	until time.Time // no later than this
}

var over = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (s *steps) Done() <-chan struct{} {
	if s.left--; s.left < 0 {
		return over
	}
	if s.left <= s.timed {
		s.timed -= timedSteps
		if time.Now().After(s.until) {
			s.left = -1
			return over
		}
	}
	return nil
}

// begin gives it so many steps, and so long.
func (s *steps) begin(n int, d time.Duration) {
	s.left, s.timed, s.until = n, n-timedSteps, time.Now().Add(d)
}

func (s *steps) Err() error { return ErrBudget }

// NewKeys makes the key functions of the text. hash is that of the calls it has to make,
// see config.Hash: a text that says something else each time it is run is refused.
func NewKeys(name string, source, hash []byte) (*Keys, error) {
	k, err := load(name, string(source))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if string(config.Hash(k.calls)) != string(hash) {
		return nil, fmt.Errorf("%s: it gives other limits each time that it is run", name)
	}
	return k, nil
}

// load runs the text in the state that its key functions will have.
func load(name, source string) (*Keys, error) {
	k := &Keys{functions: map[string]*lua.LFunction{}, plain: map[string]*plain{}, steps: steps{Context: context.Background()}}
	k.steps.begin(loadSteps, loadTime)
	proto, found, err := compile(name, source)
	if err != nil {
		return nil, err
	}
	k.state = lua.NewState(lua.Options{SkipOpenLibs: true, CallStackSize: frames, RegistrySize: 256, RegistryMaxSize: registers})
	l := k.state
	k.openLibraries()
	for _, fn := range functions {
		l.SetGlobal(fn, l.NewFunction(func(l *lua.LState) int {
			k.notNow(fn)
			call, key := callOf(l, fn)
			if key != nil {
				limit := nameOf(l)
				k.functions[limit] = key
				delete(k.plain, limit)
				if p := key.Proto; p != nil && found[[2]int{p.LineDefined, p.LastLineDefined}] != nil {
					k.plain[limit] = found[[2]int{p.LineDefined, p.LastLineDefined}]
				}
			}
			k.calls = append(k.calls, call)
			return 0
		}))
	}
	l.SetContext(&k.steps)
	l.Push(l.NewFunctionFromProto(proto))
	if err := l.PCall(0, 0, nil); err != nil {
		if k.steps.left < 0 {
			return nil, fmt.Errorf("a file with key functions has %d steps to make its limits", loadSteps)
		}
		return nil, err
	}
	k.asking, k.file = true, map[*lua.LTable]bool{}
	k.keep(l.G.Global)
	for _, fn := range k.functions {
		k.keep(fn)
	}
	return k, nil
}

// keep notes the tables that are the file's, not a key function's.
func (k *Keys) keep(v lua.LValue) {
	functions := map[*lua.LFunction]bool{}
	for todo := []lua.LValue{v}; len(todo) > 0; {
		v := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		switch v := v.(type) {
		case *lua.LTable:
			if k.file[v] {
				continue
			}
			k.file[v] = true
			todo = append(todo, v.Metatable)
			v.ForEach(func(key, item lua.LValue) { todo = append(todo, key, item) })
		case *lua.LFunction:
			if functions[v] {
				continue
			}
			functions[v] = true
			for _, up := range v.Upvalues {
				todo = append(todo, up.Value())
			}
		}
	}
}

// Key appends what the limit's function says of the request to dst; nothing, when that is
// nil or false. With an error dst is as it was.
func (k *Keys) Key(limit string, r Request, dst []byte) ([]byte, error) {
	if p := k.plain[limit]; p != nil {
		return p.key(r, dst)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.request = r
	k.steps.begin(requestSteps, longestCall)
	defer func() { k.request = nil }()
	l := k.state
	l.Push(k.functions[limit])
	l.Push(k.asked)
	if err := l.PCall(1, 1, nil); err != nil {
		if k.steps.left < 0 {
			return dst, ErrBudget
		}
		return dst, errors.New(short(fault("", err).Error))
	}
	v := l.Get(-1)
	l.SetTop(0)
	switch v := v.(type) {
	case lua.LString:
		return append(dst, v...), nil
	case lua.LNumber:
		return append(dst, v.String()...), nil
	}
	if lua.LVAsBool(v) {
		return dst, fmt.Errorf("the key function gives a %s: want text, a number, or nil for no limit", v.Type())
	}
	return dst, nil
}

// Has tells whether the limit has a key function.
func (k *Keys) Has(limit string) bool { return k.functions[limit] != nil }

func short(s string) string { return s[:min(len(s), maxError)] }
