// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/xgw-project/xgw/pkg/policy"
	"github.com/xgw-project/xgw/pkg/proxy/http1"
	"github.com/xgw-project/xgw/pkg/zone"
)

// rewriting is a compiled config.Rewrite.
type rewriting struct {
	host       []byte
	strip, add []byte
	regex      *regexp.Regexp // of the whole path
	parts      []piece        // what stands in its place
}

// piece is a part of a text that is put together for a request: a literal, or what
// number stands for.
type piece struct {
	literal []byte
	number  int // in a rewrite the group, in a location one of the constants there; -1: the literal
}

func newRewriting(p *policy.Rewrite) (*rewriting, error) {
	if p == nil {
		return nil, nil
	}
	w := &rewriting{host: []byte(p.Host), strip: []byte(p.StripPrefix), add: []byte(strings.TrimRight(p.AddPrefix, "/"))}
	if p.Regex == "" {
		return w, nil
	}
	var err error
	if w.regex, err = regexp.Compile(`\A(?:` + p.Regex + `)\z`); err != nil {
		return nil, err
	}
	w.parts, err = parsePieces(p.Replacement, func(name string) (int, error) {
		n, err := strconv.Atoi(name)
		if err != nil || n > w.regex.NumSubexp() {
			return 0, fmt.Errorf("replacement %q: no group %q", p.Replacement, name)
		}
		return n, nil
	})
	return w, err
}

// parsePieces cuts a text at $name, ${name} and $$.
func parsePieces(text string, number func(name string) (int, error)) ([]piece, error) {
	var out []piece
	literal := func(s string) {
		if s != "" {
			out = append(out, piece{literal: []byte(s), number: -1})
		}
	}
	for {
		before, after, found := strings.Cut(text, "$")
		literal(before)
		if !found {
			return out, nil
		}
		if rest, ok := strings.CutPrefix(after, "$"); ok {
			literal("$")
			text = rest
			continue
		}
		var name string
		if inner, ok := strings.CutPrefix(after, "{"); ok {
			name, text, _ = strings.Cut(inner, "}")
		} else {
			end := strings.IndexFunc(after, func(r rune) bool {
				return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_'
			})
			if end < 0 {
				end = len(after)
			}
			name, text = after[:end], after[end:]
		}
		n, err := number(name)
		if err != nil {
			return nil, err
		}
		out = append(out, piece{number: n})
	}
}

// rewriteTarget makes the target that the upstream gets, or a redirect tells of. What
// comes out is held to the rules for what clients send.
func rewriteTarget(ex *Exchange) *refusal {
	w := ex.route.rewrite
	if w == nil || len(ex.target) == 1 && ex.target[0] == '*' {
		return nil
	}
	b, changed := w.apply(ex.routing.target[:0], ex.routing.asked.path)
	if !changed {
		return nil
	}
	ex.routing.target = append(b, query(ex.target)...)
	if t := ex.routing.target; t[0] != '/' || !http1.ValidTarget(t) || http1.DotSegments(t) {
		return &refusal{status: 400, outcome: zone.RequestBad, text: "the path cannot be rewritten"}
	}
	return nil
}

// apply appends the path as rewritten. One slash begins it, however many are left
// over, since a server might take //name for a host.
func (w *rewriting) apply(dst, path []byte) (out []byte, changed bool) {
	if w.regex != nil {
		return w.replace(dst, path)
	}
	if n := len(w.strip); n > 0 && bytes.HasPrefix(path, w.strip) && endsSegment(path, n) {
		path, changed = path[n:], true
	}
	if len(w.add) == 0 && !changed {
		return dst, false
	}
	dst = append(dst, w.add...)
	rest := bytes.TrimLeft(path, "/")
	if len(rest) > 0 || len(path) > 0 || len(w.add) == 0 {
		dst = append(dst, '/')
	}
	return append(dst, rest...), true
}

// replace allocates: the standard library gives groups in a slice of its own.
func (w *rewriting) replace(dst, path []byte) (out []byte, changed bool) {
	groups := w.regex.FindSubmatchIndex(path)
	if groups == nil {
		return dst, false
	}
	dst = append(dst, '/')
	for _, p := range w.parts {
		if p.number < 0 {
			dst = append(dst, p.literal...)
		} else if from := groups[2*p.number]; from >= 0 {
			dst = append(dst, path[from:groups[2*p.number+1]]...)
		}
	}
	rest := bytes.TrimLeft(dst, "/")
	return append(dst[:1], rest...), true
}

// query is what follows the path, with its question mark.
func query(target []byte) []byte {
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		return target[i:]
	}
	return nil
}

// upstreamTarget is what the upstream is asked for.
func (ex *Exchange) upstreamTarget() []byte {
	if len(ex.routing.target) > 0 {
		return ex.routing.target
	}
	return ex.target
}

// upstreamHost is the Host that the upstream gets.
func (ex *Exchange) upstreamHost() []byte {
	if w := ex.route.rewrite; w != nil && len(w.host) > 0 {
		return w.host
	}
	return ex.host
}
