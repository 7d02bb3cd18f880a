// SPDX-License-Identifier: Apache-2.0

// Package nginx translates the common part of a configuration of nginx to gateway.yaml and
// ratelimit.lua. Every directive is translated, or noted with its place: nothing is dropped in
// silence. What kept somebody out and cannot be translated leaves its routes closed: they are
// there, and answer 503 until the operator has seen to it (maintenance).
package nginx

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/xgw-project/xgw/pkg/config"
)

// Result is a translation.
type Result struct {
	Gateway []byte // gateway.yaml
	Limits  []byte // ratelimit.lua; nil: there are none
	Notes   []Note // the gravest first, then by place
}

// translation is one under way.
type translation struct {
	main      []*directive
	http      *scope
	root      string // the directory of the configuration
	out       settings
	servers   []*server
	listeners []*listener
	upstreams []*upstream
	routes    []*route
	limits    []*limit
	ifs       []*directive      // that close something
	requests  map[string]*keyed // by zone
	atOnce    map[string]*keyed
	groups    map[string]*group
	names     map[string]bool // of routes and upstreams, so that each is there once
	notes     []Note
}

// Import translates the configuration at path. What cannot be read, or makes no
// configuration of the gateway that holds, is an error.
func Import(path string, files Files) (*Result, error) {
	if !filepath.IsAbs(path) {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		path = abs
	}
	t, err := translate(path, files)
	if err != nil {
		return nil, err
	}
	out := &Result{Gateway: t.gateway(path), Limits: t.ratelimit(path), Notes: t.notes}
	slices.SortStableFunc(out.Notes, func(a, b Note) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	if _, err := config.Parse("gateway.yaml", out.Gateway, nil); err != nil {
		return nil, fmt.Errorf("%s: its translation does not hold: %w", path, err)
	}
	return out, nil
}

// translate makes a translation, all of whose directives are accounted for.
func translate(path string, files Files) (*translation, error) {
	s := &source{files: files, root: filepath.Dir(path)}
	main, err := s.read(path, nil, 0)
	if err != nil {
		return nil, err
	}
	t := &translation{main: main, root: s.root, names: map[string]bool{}}
	t.process()
	for _, d := range main {
		if d.name == "http" && d.is {
			t.take(d)
		}
	}
	if len(t.listeners) == 0 || len(t.routes) == 0 {
		return nil, fmt.Errorf("%s: %w", path, errNothing)
	}
	t.leftOver(main)
	return t, nil
}

// scope is a block and those around it, from which it inherits.
type scope struct {
	d      *directive
	parent *scope
}

func (d *directive) scope(parent *scope) *scope { return &scope{d, parent} }

// own are the directives of a name in the block itself; they count as looked at.
func (s *scope) own(name string) (out []*directive) {
	for _, d := range s.d.block {
		if d.name == name {
			d.done = true
			out = append(out, d)
		}
	}
	return out
}

// all are those of the nearest block that has any: how nginx inherits lists.
func (s *scope) all(name string) []*directive {
	for at := s; at != nil; at = at.parent {
		if list := at.own(name); len(list) > 0 {
			return list
		}
	}
	return nil
}

// one is the last of them; nil: there is none.
func (s *scope) one(name string) *directive {
	list := s.all(name)
	if len(list) == 0 {
		return nil
	}
	return list[len(list)-1]
}

// take translates the http block.
func (t *translation) take(d *directive) {
	d.done = true
	t.http = d.scope(nil)
	t.global()
	t.clientAddress()
	t.zones()
	for _, u := range t.http.own("upstream") {
		if u.is && len(u.args) == 1 {
			t.group(u)
		}
	}
	for _, s := range t.http.own("server") {
		if s.is {
			t.server(s)
		}
	}
	t.listen()
	for _, s := range t.servers {
		t.serve(s)
	}
}
