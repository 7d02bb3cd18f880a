// SPDX-License-Identifier: Apache-2.0

package script

import (
	"strings"

	lua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/ast"
	"github.com/yuin/gopher-lua/parse"
)

// Functions that stand in for what the Lua machine does without asking anybody. No text can
// name them.
const (
	opConcat  = "(concat)"  // a .. b, of any length
	opIndex   = "(index)"   // the k of t[k] = v, for which the machine makes room
	opOwn     = "(own)"     // the t of it
	opOutside = "(outside)" // before an assignment to a variable that outlives the call
)

// compile translates a text in which those have been put in. found are its functions.
func compile(name, source string) (proto *lua.FunctionProto, found plains, err error) {
	chunk, err := parse.Parse(strings.NewReader(source), name)
	if err != nil {
		return nil, nil, err
	}
	found = plains{}
	chunk = block(chunk, &scope{names: map[string]bool{}, function: true, found: found})
	proto, err = lua.Compile(chunk, name)
	return proto, found, err
}

// scope is the variables of a block.
type scope struct {
	names    map[string]bool
	function bool // its outermost block
	up       *scope
	found    plains
}

func (s *scope) inner(names ...string) *scope {
	in := &scope{names: map[string]bool{}, up: s, found: s.found}
	in.declare(names)
	return in
}

func (s *scope) declare(names []string) {
	for _, n := range names {
		s.names[n] = true
	}
}

// outlives tells of an assignment to the expression whether what is assigned stays when the
// function ends. What stands outside of all functions runs but once.
func (s *scope) outlives(target ast.Expr) bool {
	id, ok := target.(*ast.IdentExpr)
	for ; ok && s != nil; s = s.up {
		if s.names[id.Value] || s.function && s.up == nil {
			return false
		}
		if s.function {
			return true
		}
	}
	return false
}

func block(list []ast.Stmt, s *scope) []ast.Stmt {
	out := make([]ast.Stmt, 0, len(list))
	for _, st := range list {
		if statement(st, s) {
			guard := &ast.FuncCallStmt{Expr: operator(opOutside, st)}
			place(guard, st)
			out = append(out, guard)
		}
		out = append(out, st)
	}
	return out
}

// statement rewrites one; true asks for a guard before it.
func statement(st ast.Stmt, s *scope) (guarded bool) {
	switch st := st.(type) {
	case *ast.AssignStmt:
		expressions(st.Rhs, s)
		for _, target := range st.Lhs {
			guarded = guarded || s.outlives(target)
			if t, ok := target.(*ast.AttrGetExpr); ok {
				t.Object = operator(opOwn, t, expression(t.Object, s))
				t.Key = key(expression(t.Key, s))
			}
		}
	case *ast.LocalAssignStmt:
		expressions(st.Exprs, s)
		s.declare(st.Names)
	case *ast.FuncCallStmt:
		st.Expr = expression(st.Expr, s)
	case *ast.DoBlockStmt:
		st.Stmts = block(st.Stmts, s.inner())
	case *ast.WhileStmt:
		st.Condition = expression(st.Condition, s)
		st.Stmts = block(st.Stmts, s.inner())
	case *ast.RepeatStmt:
		in := s.inner()
		st.Stmts = block(st.Stmts, in)
		st.Condition = expression(st.Condition, in)
	case *ast.IfStmt:
		st.Condition = expression(st.Condition, s)
		st.Then, st.Else = block(st.Then, s.inner()), block(st.Else, s.inner())
	case *ast.NumberForStmt:
		st.Init, st.Limit, st.Step = expression(st.Init, s), expression(st.Limit, s), expression(st.Step, s)
		st.Stmts = block(st.Stmts, s.inner(st.Name))
	case *ast.GenericForStmt:
		expressions(st.Exprs, s)
		st.Stmts = block(st.Stmts, s.inner(st.Names...))
	case *ast.FuncDefStmt:
		expression(st.Func, s)
		guarded = st.Name.Receiver != nil || s.outlives(st.Name.Func)
		if _, simple := st.Name.Func.(*ast.IdentExpr); st.Name.Func != nil && !simple {
			guarded = true
		}
		guarded = guarded && !s.file()
	case *ast.ReturnStmt:
		expressions(st.Exprs, s)
	}
	return guarded
}

// file tells whether it is outside of all functions.
func (s *scope) file() bool {
	for ; s.up != nil; s = s.up {
		if s.function {
			return false
		}
	}
	return true
}

func expressions(list []ast.Expr, s *scope) {
	for i := range list {
		list[i] = expression(list[i], s)
	}
}

func expression(e ast.Expr, s *scope) ast.Expr {
	switch e := e.(type) {
	case *ast.AttrGetExpr:
		e.Object, e.Key = expression(e.Object, s), expression(e.Key, s)
	case *ast.TableExpr:
		for _, f := range e.Fields {
			if f.Key != nil {
				f.Key = key(expression(f.Key, s))
			}
			f.Value = expression(f.Value, s)
		}
	case *ast.FuncCallExpr:
		if e.Func != nil {
			e.Func = expression(e.Func, s)
		}
		if e.Receiver != nil {
			e.Receiver = expression(e.Receiver, s)
		}
		expressions(e.Args, s)
	case *ast.LogicalOpExpr:
		e.Lhs, e.Rhs = expression(e.Lhs, s), expression(e.Rhs, s)
	case *ast.RelationalOpExpr:
		e.Lhs, e.Rhs = expression(e.Lhs, s), expression(e.Rhs, s)
	case *ast.ArithmeticOpExpr:
		e.Lhs, e.Rhs = expression(e.Lhs, s), expression(e.Rhs, s)
	case *ast.StringConcatOpExpr:
		return operator(opConcat, e, expression(e.Lhs, s), expression(e.Rhs, s))
	case *ast.UnaryMinusOpExpr:
		e.Expr = expression(e.Expr, s)
	case *ast.UnaryNotOpExpr:
		e.Expr = expression(e.Expr, s)
	case *ast.UnaryLenOpExpr:
		e.Expr = expression(e.Expr, s)
	case *ast.FunctionExpr:
		s.found.add(e)
		in := s.inner(e.ParList.Names...)
		in.function = true
		e.Stmts = block(e.Stmts, in)
	}
	return e
}

// key is that of a table's item; one that is written out as a name needs no look.
func key(e ast.Expr) ast.Expr {
	if text, ok := e.(*ast.StringExpr); ok && !strings.HasPrefix(text.Value, "(") {
		return e
	}
	return operator(opIndex, e, e)
}

// operator is a call of one of the functions above. The constant at the end keeps what is
// before it to one value each.
func operator(name string, at ast.PositionHolder, args ...ast.Expr) ast.Expr {
	fn, last := &ast.IdentExpr{Value: name}, &ast.TrueExpr{}
	call := &ast.FuncCallExpr{Func: fn, Args: append(args, last), AdjustRet: true}
	for _, node := range []ast.PositionHolder{fn, last, call} {
		place(node, at)
	}
	return call
}

func place(node, at ast.PositionHolder) {
	node.SetLine(at.Line())
	node.SetLastLine(max(at.LastLine(), at.Line()))
}
