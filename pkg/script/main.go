// SPDX-License-Identifier: Apache-2.0

package script

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	lua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/parse"
	"golang.org/x/sys/unix"

	"github.com/xgw-project/xgw/pkg/config"
)

// Main is the script's process: it reads the source from in and writes an output. Its
// result is the exit status.
func Main(name string, in io.Reader, out io.Writer) int {
	source, err := io.ReadAll(in)
	if err == nil {
		err = confine()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "xgw: script:", err)
		return 1
	}
	result := make(chan output, 1)
	go func() { result <- evaluate(name, string(source)) }()
	late := time.NewTicker(5 * time.Millisecond)
	defer late.Stop()
	began := used()
	var o output
	for done := false; !done; {
		select {
		case o = <-result:
			done = true
		case <-late.C:
			if used()-began > cpuTime {
				o, done = output{Error: fmt.Sprintf("the script computes for more than %s: is there a loop without an end?", cpuTime)}, true
			}
		}
	}
	if err := json.NewEncoder(out).Encode(o); err != nil {
		fmt.Fprintln(os.Stderr, "xgw: script:", err)
		return 1
	}
	return 0
}

// arena is what the Go runtime reserves of address space at a time for its heap.
const arena = 64 << 20

// confine bounds the memory of this process from now on. The limit that counts is on data: of
// address space the runtime reserves much more than it uses. But to map over a reservation
// counts as data only afterwards, and the runtime maps all of its heap so: a single string of a
// gigabyte would be there, and written, before anything is refused. It needs a reservation of
// its own, which is refused beforehand.
func confine() error {
	startThreads()
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(memory * 3 / 4)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for _, bound := range []struct {
		resource int
		name     string
		more     uint64
	}{{unix.RLIMIT_DATA, "VmData:", memory}, {unix.RLIMIT_AS, "VmSize:", arena + memory}} {
		_, after, ok := strings.Cut(string(status), bound.name)
		fields := strings.Fields(after)
		if !ok || len(fields) == 0 {
			return fmt.Errorf("/proc/self/status has no %s", bound.name)
		}
		kib, err := strconv.ParseUint(fields[0], 10, 50)
		if err != nil {
			return err
		}
		limit := kib<<10 + bound.more
		if err := unix.Setrlimit(bound.resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return err
		}
	}
	return nil
}

// spareThreads is how many the Go runtime may come to want.
const spareThreads = 4

// startThreads makes threads that wait for work: where the program is linked with C, a new
// one takes 8 MiB for its stack, half of what the script may use.
func startThreads() {
	var all, here sync.WaitGroup
	here.Add(spareThreads)
	for range spareThreads {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			here.Done()
			here.Wait()
		})
	}
	all.Wait()
}

// used is the CPU time of this process.
func used() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts) // cannot fail for this clock
	return time.Duration(ts.Nano())
}

// functions are what a script can call, beside Lua's own.
var functions = []string{"limit_req", "limit_conn", "packet_limit", "escalate", "allow", "deny"}

// absent is what the base library has of loading code, and of the machine's.
var absent = []string{"collectgarbage", "dofile", "load", "loadfile", "loadstring", "module", "newproxy", "print", "require", "_printregs"}

// evaluate runs the source.
func evaluate(name, source string) (o output) {
	l := lua.NewState(lua.Options{SkipOpenLibs: true, CallStackSize: 200, RegistrySize: 4 << 10, RegistryMaxSize: 256 << 10})
	defer l.Close()
	for _, open := range []struct {
		name string
		fn   lua.LGFunction
	}{{lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}, {lua.StringLibName, lua.OpenString}, {lua.MathLibName, lua.OpenMath}} {
		l.Push(l.NewFunction(open.fn))
		l.Push(lua.LString(open.name))
		l.Call(1, 0)
	}
	for _, name := range absent {
		l.SetGlobal(name, lua.LNil)
	}
	if s, ok := l.GetGlobal("string").(*lua.LTable); ok {
		s.RawSetString("dump", lua.LNil)
	}
	for _, fn := range functions {
		l.SetGlobal(fn, l.NewFunction(func(l *lua.LState) int {
			call, _ := callOf(l, fn)
			o.Calls = append(o.Calls, call)
			return 0
		}))
	}
	chunk, err := l.Load(strings.NewReader(source), name)
	if err == nil {
		l.Push(chunk)
		err = l.PCall(0, 0, nil)
	}
	if err != nil {
		return fault(name, err)
	}
	if slices.ContainsFunc(o.Calls, func(c config.Call) bool { return c.KeyFunction }) {
		// Once more, as workers will: what they cannot do must show here.
		k, err := load(name, source)
		if err != nil {
			return fault(name, err)
		}
		o.Calls = k.calls
	}
	return o
}

// callOf reads the arguments of a call. A key that is a function does not stand in them.
func callOf(l *lua.LState, fn string) (config.Call, *lua.LFunction) {
	args, ok := l.Get(1).(*lua.LTable)
	if l.GetTop() != 1 || !ok {
		l.RaiseError("%s: want one table, such as %s{…}", fn, fn)
	}
	key, keyed := args.RawGetString("key").(*lua.LFunction)
	if keyed = keyed && strings.HasPrefix(fn, "limit_"); keyed {
		rest := l.NewTable()
		args.ForEach(func(k, v lua.LValue) {
			if v != lua.LValue(key) {
				rest.RawSet(k, v)
			}
		})
		args = rest
	}
	list, err := value(args, 0)
	if err != nil {
		l.RaiseError("%s: %s", fn, err)
	}
	call := config.Call{Function: fn, Line: lineOf(l), Args: list, KeyFunction: keyed}
	if !keyed {
		key = nil
	}
	return call, key
}

// nameOf is the name in the arguments of a call.
func nameOf(l *lua.LState) string {
	name, _ := l.Get(1).(*lua.LTable).RawGetString("name").(lua.LString)
	return string(name)
}

// lineOf is where the script calls the function that runs.
func lineOf(l *lua.LState) int {
	if frame, ok := l.GetStack(1); ok {
		if _, err := l.GetInfo("l", frame, lua.LNil); err == nil {
			return frame.CurrentLine
		}
	}
	return 0
}

// fault takes the line out of what Lua says.
func fault(name string, err error) output {
	var syntax *parse.Error
	if errors.As(err, &syntax) {
		text := "syntax error"
		if syntax.Token != "" {
			text += " near '" + strings.TrimSpace(syntax.Token) + "'"
		}
		if syntax.Pos.Line == parse.EOF {
			return output{Error: text + ": the text ends too early"}
		}
		return output{Line: syntax.Pos.Line, Error: text}
	}
	text := err.Error()
	var api *lua.ApiError
	if errors.As(err, &api) {
		if syntax, ok := api.Cause.(*parse.Error); ok {
			return fault(name, syntax)
		}
		if api.Object != nil && api.Object != lua.LNil {
			text = api.Object.String()
		}
	}
	rest, ok := strings.CutPrefix(text, name+":")
	if line, said, cut := strings.Cut(rest, ":"); ok && cut {
		if n, err := strconv.Atoi(line); err == nil {
			return output{Line: n, Error: strings.TrimSpace(said)}
		}
	}
	return output{Error: text}
}

// maxDepth is of tables in tables.
const maxDepth = 8

// value is a Lua value as JSON has it: of tables, those with numbers for keys are lists.
func value(v lua.LValue, depth int) (any, error) {
	switch v := v.(type) {
	case lua.LString:
		return string(v), nil
	case lua.LBool:
		return bool(v), nil
	case lua.LNumber:
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, errors.New("a number is not finite")
		}
		return json.Number(strconv.FormatFloat(float64(v), 'f', -1, 64)), nil
	case *lua.LTable:
		if depth == maxDepth {
			return nil, fmt.Errorf("tables lie in each other more than %d deep", maxDepth)
		}
		return table(v, depth+1)
	}
	return nil, fmt.Errorf("a %s cannot stand in it: want text, a number, true or false, or a table of those", v.Type())
}

func table(t *lua.LTable, depth int) (any, error) {
	named, list := map[string]any{}, []any{}
	var err error
	t.ForEach(func(k, v lua.LValue) {
		if err != nil {
			return
		}
		var item any
		if item, err = value(v, depth); err != nil {
			return
		}
		switch k := k.(type) {
		case lua.LString:
			named[string(k)] = item
		case lua.LNumber:
			if int(k) != len(list)+1 || float64(k) != float64(int(k)) {
				err = errors.New("a list has gaps, or keys that are no names")
			}
			list = append(list, item)
		default:
			err = fmt.Errorf("a %s cannot be a key", k.Type())
		}
	})
	switch {
	case err != nil:
		return nil, err
	case len(named) > 0 && len(list) > 0:
		return nil, errors.New("a table has names and items without: want either")
	case len(named) > 0:
		return named, nil
	}
	return list, nil
}
