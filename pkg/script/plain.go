// SPDX-License-Identifier: Apache-2.0

package script

import (
	"bytes"
	"fmt"
	"maps"

	"github.com/yuin/gopher-lua/ast"
)

// plain is a key function that needs no Lua machine: it compares and joins fields of the
// request and constants, and returns what comes of that. Its run is as long as its text; it
// allocates nothing. What it says is what the machine would, but for budgets, which it cannot
// exceed.
type plain struct{ body []plainStatement }

// plainStatement is `if condition then … else … end`, or a return.
type plainStatement struct {
	condition    plainCondition // nil: a return
	then, others []plainStatement
	value        textPiece // nil: no key
}

// textPiece appends a text to dst.
type textPiece func(r Request, dst []byte) ([]byte, error)

// plainCondition uses the room behind dst, and returns dst with the room that it has made.
type plainCondition func(r Request, dst []byte) (holds bool, same []byte, err error)

// key as of Keys.Key.
func (p *plain) key(r Request, dst []byte) ([]byte, error) {
	out, _, err := runPlain(p.body, r, dst)
	if err != nil {
		return dst, err
	}
	return out, nil
}

func runPlain(list []plainStatement, r Request, dst []byte) (out []byte, returned bool, err error) {
	for i := range list {
		s := &list[i]
		if s.condition == nil {
			if s.value == nil {
				return dst, true, nil
			}
			out, err = s.value(r, dst)
			return out, true, err
		}
		holds, same, err := s.condition(r, dst)
		if err != nil {
			return dst, true, err
		}
		dst = same
		branch := s.others
		if holds {
			branch = s.then
		}
		if out, returned, err = runPlain(branch, r, dst); returned {
			return out, true, err
		}
	}
	return dst, false, nil
}

// plainScope knows what names stand for: the request, or a text that was given a name. A text
// has no effects, so its name can stand for the whole of it.
type plainScope struct {
	request string
	texts   map[string]textPiece
}

// newPlain makes it of a function, before that is rewritten; nil: it needs the machine.
func newPlain(f *ast.FunctionExpr) *plain {
	if f.ParList.HasVargs || len(f.ParList.Names) == 0 {
		return nil
	}
	s := &plainScope{request: f.ParList.Names[0], texts: map[string]textPiece{}}
	for _, other := range f.ParList.Names[1:] {
		if other == s.request {
			return nil // it is nil
		}
	}
	body, ok := s.block(f.Stmts)
	if !ok {
		return nil
	}
	return &plain{body}
}

func (s *plainScope) block(list []ast.Stmt) (out []plainStatement, ok bool) {
	in := &plainScope{s.request, maps.Clone(s.texts)}
	for _, st := range list {
		switch st := st.(type) {
		case *ast.LocalAssignStmt:
			if len(st.Names) != 1 || len(st.Exprs) != 1 || st.Names[0] == s.request {
				return nil, false
			}
			text := in.text(st.Exprs[0])
			if text == nil {
				return nil, false
			}
			in.texts[st.Names[0]] = text
		case *ast.IfStmt:
			p := plainStatement{condition: in.condition(st.Condition)}
			var thenOK, othersOK bool
			p.then, thenOK = in.block(st.Then)
			p.others, othersOK = in.block(st.Else)
			if p.condition == nil || !thenOK || !othersOK {
				return nil, false
			}
			out = append(out, p)
		case *ast.ReturnStmt:
			p := plainStatement{}
			if len(st.Exprs) > 1 {
				return nil, false
			}
			if len(st.Exprs) == 1 && !isNothing(st.Exprs[0]) {
				if p.value = in.text(st.Exprs[0]); p.value == nil {
					return nil, false
				}
			}
			out = append(out, p)
		default:
			return nil, false
		}
	}
	return out, true
}

func isNothing(e ast.Expr) bool {
	switch e.(type) {
	case *ast.NilExpr, *ast.FalseExpr:
		return true
	}
	return false
}

// text is nil for what may be something else.
func (s *plainScope) text(e ast.Expr) textPiece {
	switch e := e.(type) {
	case *ast.StringExpr:
		return func(_ Request, dst []byte) ([]byte, error) { return append(dst, e.Value...), nil }
	case *ast.IdentExpr:
		return s.texts[e.Value]
	case *ast.AttrGetExpr:
		name, ok := e.Key.(*ast.StringExpr)
		if !ok || !s.isRequest(e.Object) || !isField(name.Value) {
			return nil
		}
		return func(r Request, dst []byte) ([]byte, error) { return r.AppendField(dst, name.Value), nil }
	case *ast.FuncCallExpr:
		if e.Method != "header" || !s.isRequest(e.Receiver) || len(e.Args) != 1 {
			return nil
		}
		name, ok := e.Args[0].(*ast.StringExpr)
		if !ok {
			return nil
		}
		return func(r Request, dst []byte) ([]byte, error) { return r.AppendHeader(dst, name.Value), nil }
	case *ast.StringConcatOpExpr:
		left, right := s.text(e.Lhs), s.text(e.Rhs)
		if left == nil || right == nil {
			return nil
		}
		return func(r Request, dst []byte) ([]byte, error) {
			out, err := left(r, dst)
			if err == nil {
				out, err = right(r, out)
			}
			if err == nil && len(out)-len(dst) > longest {
				err = errLong
			}
			return out, err
		}
	}
	return nil
}

var errLong = fmt.Errorf("a text is longer than %d bytes", longest)

func (s *plainScope) isRequest(e ast.Expr) bool {
	id, ok := e.(*ast.IdentExpr)
	return ok && id.Value == s.request
}

// condition is nil for what cannot be told from the text of the function.
func (s *plainScope) condition(e ast.Expr) plainCondition {
	switch e := e.(type) {
	case *ast.RelationalOpExpr:
		left, right := s.text(e.Lhs), s.text(e.Rhs)
		if left == nil || right == nil || e.Operator != "==" && e.Operator != "~=" {
			return nil
		}
		return func(r Request, dst []byte) (bool, []byte, error) {
			a, err := left(r, dst)
			if err != nil {
				return false, dst, err
			}
			b, err := right(r, a)
			return bytes.Equal(a[len(dst):], b[len(a):]) == (e.Operator == "=="), b[:len(dst)], err
		}
	case *ast.LogicalOpExpr:
		left, right := s.condition(e.Lhs), s.condition(e.Rhs)
		if left == nil || right == nil {
			return nil
		}
		return func(r Request, dst []byte) (bool, []byte, error) {
			holds, dst, err := left(r, dst)
			if err != nil || holds == (e.Operator == "or") {
				return holds, dst, err
			}
			return right(r, dst)
		}
	case *ast.UnaryNotOpExpr:
		inner := s.condition(e.Expr)
		if inner == nil {
			return nil
		}
		return func(r Request, dst []byte) (bool, []byte, error) {
			holds, dst, err := inner(r, dst)
			return !holds, dst, err
		}
	}
	return nil
}

// plains are the plain ones of a text, by their first and last line. Where two share these,
// neither is one.
type plains map[[2]int]*plain

func (p plains) add(f *ast.FunctionExpr) {
	lines := [2]int{f.Line(), f.LastLine()}
	if _, twice := p[lines]; twice {
		p[lines] = nil
		return
	}
	p[lines] = newPlain(f)
}
