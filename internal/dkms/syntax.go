package dkms

import (
	"errors"
	"fmt"
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
	syntax.Walk(program, func(n syntax.Node) bool {
		if n == nil || bad != nil {
			return false
		}
		if reason := refused(n); reason != "" {
			bad = &Error{name, int(n.Pos().Line()), reason}
		}
		return bad == nil
	})
	if bad != nil {
		return nil, bad
	}
	return program, nil
}

// refused says why a piece of syntax cannot be evaluated, or "".
func refused(n syntax.Node) string {
	switch n := n.(type) {
	case *syntax.Stmt:
		if n.Background || n.Coprocess || n.Disown {
			return "it starts a command in the background: leave the & out"
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
	case *syntax.ParamExp:
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
