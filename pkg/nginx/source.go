// SPDX-License-Identifier: Apache-2.0

package nginx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	crossplane "github.com/nginxinc/nginx-go-crossplane"
)

// Bounds of what is read, in bytes, files and blocks within blocks.
const (
	maxFile  = 1 << 20
	maxFiles = 256
	maxDepth = 16
)

// Files are where a configuration is read from: the machine, or a test's memory.
type Files struct {
	Read func(path string) ([]byte, error)
	Glob func(pattern string) ([]string, error)
}

// Machine is the files of this machine.
func Machine() Files {
	return Files{Glob: filepath.Glob, Read: func(path string) ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, maxFile+1))
	}}
}

// directive is one of nginx's, with what stands in its block. What becomes of it is told
// in exactly one way: done is set when it is translated or noted.
type directive struct {
	name  string
	args  []string
	block []*directive // includes are in their place
	is    bool         // a block
	file  string
	line  int
	up    *directive // the block that it is in; nil: main
	done  bool
	// closed: what it is in cannot be served as it should be, which is noted.
	closed bool
}

func (d *directive) arg(i int) string {
	if i < len(d.args) {
		return d.args[i]
	}
	return ""
}

func (d *directive) at() string { return fmt.Sprintf("%s:%d", filepath.Base(d.file), d.line) }

func (d *directive) text() string {
	return strings.Join(append([]string{d.name}, d.args...), " ")
}

// source reads files and puts included ones in their place.
type source struct {
	files  Files
	root   string // the directory of the main file, from which relative names go
	count  int
	within []string // files that are being read, to refuse loops
}

func (s *source) read(path string, up *directive, depth int) ([]*directive, error) {
	if slices.Contains(s.within, path) {
		return nil, fmt.Errorf("%s includes itself, by way of %s", path, strings.Join(s.within, ", "))
	}
	if s.count++; s.count > maxFiles {
		return nil, fmt.Errorf("more than %d files are included", maxFiles)
	}
	text, err := s.files.Read(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("read %s: it is longer than %d bytes", path, maxFile)
	}
	if i := bytes.IndexFunc(text, func(r rune) bool { return r < ' ' && !strings.ContainsRune("\t\n\v\f\r", r) || r == 0x7f }); i >= 0 {
		return nil, fmt.Errorf("read %s: byte %d is no text: is it a configuration?", path, i)
	}
	if strings.Count(string(text), "{") > maxFile/64 {
		return nil, fmt.Errorf("read %s: more than %d blocks", path, maxFile/64)
	}
	parsed, err := crossplane.Parse(path, &crossplane.ParseOptions{
		SingleFile: true, StopParsingOnError: true, SkipDirectiveContextCheck: true, SkipDirectiveArgsCheck: true,
		Open:       func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(text))), nil },
		LexOptions: crossplane.LexOptions{Lexers: []crossplane.RegisterLexer{(&crossplane.Lua{}).RegisterLexer()}},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: `nginx -t -c %s` says more", err, s.root)
	}
	s.within = append(s.within, path)
	defer func() { s.within = s.within[:len(s.within)-1] }()
	var out []*directive
	for _, c := range parsed.Config {
		list, err := s.convert(c.Parsed, path, up, depth)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

func (s *source) convert(parsed crossplane.Directives, path string, up *directive, depth int) ([]*directive, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: blocks are nested more than %d deep", path, maxDepth)
	}
	var out []*directive
	for _, p := range parsed {
		d := &directive{name: p.Directive, args: unescaped(p.Args), is: p.Block != nil, file: path, line: p.Line, up: up}
		if p.Directive == "include" && !p.IsMapBlockParameter && len(p.Args) == 1 {
			list, err := s.include(d, depth)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: include: %w", path, p.Line, err)
			}
			out = append(out, list...)
			continue
		}
		var err error
		if d.block, err = s.convert(p.Block, path, d, depth+1); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

var escapes = strings.NewReplacer(`\\`, `\`, `\t`, "\t", `\r`, "\r", `\n`, "\n", `\"`, `"`, `\'`, `'`)

// unescaped are arguments as nginx reads them: other escapes, as of expressions, stay.
func unescaped(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = escapes.Replace(a)
	}
	return out
}

// hidden tells whether glob(3), which nginx asks, would not give the name for the pattern: a
// dot that begins a part of a path matches nothing but a dot.
func hidden(pattern, name string) bool {
	wants, has := strings.Split(pattern, "/"), strings.Split(name, "/")
	for i := 1; i <= min(len(wants), len(has)); i++ {
		want := strings.TrimPrefix(wants[len(wants)-i], `\`)
		if strings.HasPrefix(has[len(has)-i], ".") && !strings.HasPrefix(want, ".") {
			return true
		}
	}
	return false
}

// goPattern says in the way of Go what a pattern says to glob(3): a class is negated by ! as well
// as by ^, and a bracket that begins it is one of it.
func goPattern(pattern string) (string, error) {
	var out strings.Builder
	within := false
	for i := 0; i < len(pattern); i++ {
		rest := pattern[i:]
		switch {
		case rest[0] == '\\' && len(rest) > 1:
			out.WriteByte('\\')
			i++
		case rest[0] == '[' && !within:
			within = true
			out.WriteByte('[')
			if i+1 < len(pattern) && strings.IndexByte("!^", pattern[i+1]) >= 0 {
				out.WriteByte('^')
				i++
			}
			if i+1 < len(pattern) && pattern[i+1] == ']' {
				out.WriteString(`\]`)
				i++
			}
			continue
		case rest[0] == '[' && len(rest) > 1 && strings.IndexByte(":.=", rest[1]) >= 0:
			return "", fmt.Errorf("%s: classes with a name are not known here: include the files one by one", pattern)
		case rest[0] == ']':
			within = false
		}
		out.WriteByte(pattern[i])
	}
	return out.String(), nil
}

// include reads what the directive names; a name without * must be there.
func (s *source) include(d *directive, depth int) ([]*directive, error) {
	pattern := d.args[0]
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(s.root, pattern)
	}
	names := []string{pattern}
	if strings.ContainsAny(pattern, "*?[") {
		var err error
		var asked string
		if asked, err = goPattern(pattern); err != nil {
			return nil, err
		}
		if names, err = s.files.Glob(asked); err != nil {
			return nil, fmt.Errorf("%s: %w", pattern, err)
		}
		names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return hidden(pattern, name) })
		slices.Sort(names)
	}
	var out []*directive
	for _, name := range names {
		list, err := s.read(name, d.up, depth)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// errNothing: there is nothing of HTTP to translate.
var errNothing = errors.New("it has no server that takes requests by HTTP: is it the file that nginx is started with?")
