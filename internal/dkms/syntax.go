package dkms

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// parse reads a program and refuses what the interpreter does otherwise than bash, or what no dkms.conf needs.
func parse(text, name string) (*syntax.File, error) {
	program, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(text), name)
	if err != nil {
		var bad syntax.ParseError
		if errors.As(err, &bad) {
			return nil, &Error{name, int(bad.Pos.Line()), bad.Text}
		}
		var lang syntax.LangError
		if errors.As(err, &lang) {
			return nil, &Error{name, int(lang.Pos.Line()), "it is not bash: " + lang.Feature}
		}
		return nil, &Error{name, 0, err.Error()}
	}
	var bad *Error
	function := 0 // the end of the function that we are in
	syntax.Walk(program, func(n syntax.Node) bool {
		if n == nil || bad != nil {
			return false
		}
		reason := refused(n)
		switch n := n.(type) {
		case *syntax.FuncDecl:
			function = max(function, int(n.End().Offset()))
		case *syntax.CallExpr:
			if len(n.Args) > 0 && n.Args[0].Lit() == "return" && int(n.Pos().Offset()) >= function {
				reason = "kmodctl does not evaluate return outside of a function: use if"
			}
		case *syntax.BinaryTest:
			asNumbers(n)
		}
		if reason != "" {
			bad = &Error{name, int(n.Pos().Line()), reason}
		}
		return bad == nil
	})
	if bad != nil {
		return nil, bad
	}
	return program, nil
}

// asNumbers has -lt and its like of [[ ]] compare only numbers: $(number SIDE) in place of each side. To the interpreter
// what is no number is 0; bash calculates, and takes 010 for 8. It reports whether n is one of them.
func asNumbers(n *syntax.BinaryTest) bool {
	switch n.Op {
	case syntax.TsEql, syntax.TsNeq, syntax.TsLeq, syntax.TsGeq, syntax.TsLss, syntax.TsGtr:
	default:
		return false
	}
	for _, side := range []*syntax.TestExpr{&n.X, &n.Y} {
		word, ok := (*side).(*syntax.Word)
		if !ok {
			continue
		}
		name := &syntax.Word{Parts: []syntax.WordPart{&syntax.Lit{ValuePos: word.Pos(), Value: numberName}}}
		call := &syntax.CallExpr{Args: []*syntax.Word{name, word}}
		*side = &syntax.Word{Parts: []syntax.WordPart{&syntax.CmdSubst{Stmts: []*syntax.Stmt{{Cmd: call, Position: word.Pos()}}}}}
	}
	return true
}

// others are parameters that are bash's own, or of whoever calls.
var others = strings.Fields(`0 $ ! _ HOME USER LOGNAME SHELL SHLVL PPID RANDOM SRANDOM SECONDS EPOCHSECONDS EPOCHREALTIME LINENO HOSTNAME HOSTTYPE OSTYPE
	MACHTYPE BASH BASHPID BASHOPTS SHELLOPTS BASH_VERSION BASH_VERSINFO BASH_COMMAND BASH_LINENO FUNCNAME PIPESTATUS DIRSTACK GROUPS`)

// quoted reports whether a part of a word is in quotes.
func quoted(n syntax.TestExpr) bool {
	word, ok := n.(*syntax.Word)
	return ok && slices.ContainsFunc(word.Parts, func(p syntax.WordPart) bool {
		switch p.(type) {
		case *syntax.SglQuoted, *syntax.DblQuoted:
			return true
		}
		return false
	})
}

// runsApart reports whether the right side of a pipe changes no variable: bash runs it in a subshell, the interpreter does not.
func runsApart(stmt *syntax.Stmt) bool {
	switch cmd := stmt.Cmd.(type) {
	case *syntax.Subshell:
		return true
	case *syntax.CallExpr:
		return len(cmd.Args) > 0 && commands[path.Base(cmd.Args[0].Lit())] != nil
	}
	return false
}

// refused says why a piece of syntax cannot be evaluated, or "".
func refused(n syntax.Node) string {
	switch n := n.(type) {
	case *syntax.Stmt:
		if n.Background || n.Coprocess || n.Disown {
			return "it starts a command in the background: leave the & out"
		}
	case *syntax.Redirect:
		if n.Op == syntax.RdrInOut || n.N != nil && !strings.Contains("012", n.N.Value) {
			return "kmodctl cannot evaluate <> and descriptors other than 0, 1 and 2: write it without"
		}
	case *syntax.ProcSubst:
		return "kmodctl cannot evaluate <( ) and >( ): use a pipe"
	case *syntax.CoprocClause, *syntax.TimeClause, *syntax.TestDecl:
		return "kmodctl cannot evaluate coproc, time and select: write it without"
	case *syntax.ForClause:
		if n.Select {
			return "kmodctl cannot evaluate coproc, time and select: write it without"
		}
	case *syntax.FuncDecl:
		if n.Name != nil && (interp.IsBuiltin(n.Name.Value) || commands[n.Name.Value] != nil) {
			return fmt.Sprintf("it makes a function of the name of a command, %s: give it another name", n.Name.Value)
		}
	case *syntax.DeclClause:
		for _, a := range n.Args {
			if a.Value != nil && a.Name == nil {
				if option := a.Value.Lit(); option != "" && option[0] == '-' && strings.Trim(option, "-agx") != "" {
					return fmt.Sprintf("kmodctl cannot evaluate %s %s: use plain variables and arrays", n.Variant.Value, option)
				}
			}
		}
	case *syntax.BinaryCmd:
		if (n.Op == syntax.Pipe || n.Op == syntax.PipeAll) && !runsApart(n.Y) {
			return "kmodctl evaluates after a | only grep, sed, cut and the like: put the rest into ( )"
		}
	case *syntax.BinaryTest:
		if n.Op == syntax.TsReMatch && quoted(n.Y) {
			return "kmodctl cannot evaluate quotes after =~: put the expression into a variable"
		}
	case *syntax.Assign:
		if n.Append && n.Index != nil {
			return "kmodctl cannot evaluate += for an element: write " + n.Name.Value + "[...]=\"${" + n.Name.Value + "[...]}...\""
		}
	case *syntax.ParamExp:
		if n.Param != nil && slices.Contains(others, n.Param.Value) {
			return fmt.Sprintf("it uses $%s, which is not the same everywhere: write it without", n.Param.Value)
		}
		if n.Repl != nil && n.Repl.With != nil && strings.Contains(n.Repl.With.Lit(), "&") {
			return "kmodctl cannot evaluate & in ${.../.../...}: use sed"
		}
		if n.Repl != nil && n.Repl.Orig != nil {
			if len(n.Repl.Orig.Parts) > 0 {
				if lit, ok := n.Repl.Orig.Parts[0].(*syntax.Lit); ok && (strings.HasPrefix(lit.Value, "%") || strings.HasPrefix(lit.Value, "#")) {
					return fmt.Sprintf("kmodctl cannot evaluate ${%s/%s...}: use ${%[1]s%%...} or ${%[1]s#...}", n.Param.Value, lit.Value[:1])
				}
			}
		}
	}
	return ""
}
