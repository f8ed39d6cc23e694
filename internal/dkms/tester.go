package dkms

import (
	"context"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/interp"
)

// test is [ and test as bash has them: the interpreter's takes what is no number for 0. args begins with the name.
func (s *shell) test(ctx context.Context, args []string) error {
	hc := interp.HandlerCtx(ctx)
	if args[0] == "[" {
		if args[len(args)-1] != "]" {
			fmt.Fprintln(hc.Stderr, "[: missing ]")
			return interp.ExitStatus(2)
		}
		args = args[:len(args)-1]
	}
	t := &tester{s: s, ctx: ctx, words: args[1:]}
	holds := t.evaluate()
	switch {
	case t.bad != "":
		fmt.Fprintf(hc.Stderr, "%s: %s\n", args[0], t.bad)
		return interp.ExitStatus(2)
	case !holds:
		return interp.ExitStatus(1)
	}
	return nil
}

// tester evaluates the words of a test, test(1p): by their number up to four, else by precedence.
type tester struct {
	s     *shell
	ctx   context.Context
	words []string
	at    int
	bad   string // why it is no test; "" when it is one
}

func (t *tester) fail(format string, args ...any) bool {
	if t.bad == "" {
		t.bad = fmt.Sprintf(format, args...)
	}
	return false
}

func (t *tester) evaluate() bool {
	w := t.words
	switch len(w) {
	case 0:
		return false
	case 1:
		return w[0] != ""
	case 2:
		return t.two(w)
	case 3:
		return t.three(w)
	case 4:
		if w[0] == "!" {
			return !t.three(w[1:]) && t.bad == ""
		}
		if w[0] == "(" && w[3] == ")" {
			return t.two(w[1:3])
		}
	}
	holds := t.or()
	if t.at < len(w) {
		return t.fail("too many arguments")
	}
	return holds
}

func (t *tester) two(w []string) bool {
	if w[0] == "!" {
		return w[1] == ""
	}
	if !isUnary(w[0]) {
		return t.fail("%s: unary operator expected", w[0])
	}
	return t.unary(w[0], w[1])
}

func (t *tester) three(w []string) bool {
	switch {
	case isBinary(w[1]):
		return t.binary(w[0], w[1], w[2])
	case w[1] == "-a":
		return w[0] != "" && w[2] != ""
	case w[1] == "-o":
		return w[0] != "" || w[2] != ""
	case w[0] == "!":
		return !t.two(w[1:]) && t.bad == ""
	case w[0] == "(" && w[2] == ")":
		return w[1] != ""
	}
	return t.fail("%s: binary operator expected", w[1])
}

// next is the next word if it is the given one.
func (t *tester) next(word string) bool {
	if t.at < len(t.words) && t.words[t.at] == word {
		t.at++
		return true
	}
	return false
}

func (t *tester) or() bool {
	holds := t.and()
	for t.next("-o") {
		right := t.and()
		holds = holds || right
	}
	return holds
}

func (t *tester) and() bool {
	holds := t.term()
	for t.next("-a") {
		right := t.term()
		holds = holds && right
	}
	return holds
}

func (t *tester) term() bool {
	rest := t.words[min(t.at, len(t.words)):]
	switch {
	case len(rest) == 0:
		return t.fail("argument expected")
	case rest[0] == "!":
		t.at++
		return !t.term() && t.bad == ""
	case rest[0] == "(":
		t.at++
		holds := t.or()
		if !t.next(")") {
			return t.fail("`)' expected")
		}
		return holds
	case len(rest) >= 3 && isBinary(rest[1]):
		t.at += 3
		return t.binary(rest[0], rest[1], rest[2])
	case len(rest) >= 2 && isUnary(rest[0]):
		t.at += 2
		return t.unary(rest[0], rest[1])
	}
	t.at++
	return rest[0] != ""
}

var binaries = map[string]bool{"=": true, "==": true, "!=": true, "<": true, ">": true,
	"-eq": true, "-ne": true, "-lt": true, "-le": true, "-gt": true, "-ge": true, "-nt": true, "-ot": true, "-ef": true}

func isBinary(word string) bool { return binaries[word] }

func isUnary(word string) bool {
	return len(word) == 2 && word[0] == '-' && strings.IndexByte("abcdefghknoprstuvwxzGLNORS", word[1]) >= 0
}

func (t *tester) binary(left, op, right string) bool {
	switch op {
	case "=", "==":
		return left == right
	case "!=":
		return left != right
	case "<":
		return left < right
	case ">":
		return left > right
	case "-nt", "-ot", "-ef":
		return t.unknown(op)
	}
	a, ok := t.number(left)
	if !ok {
		return false
	}
	b, ok := t.number(right)
	if !ok {
		return false
	}
	switch op {
	case "-eq":
		return a == b
	case "-ne":
		return a != b
	case "-lt":
		return a < b
	case "-le":
		return a <= b
	case "-gt":
		return a > b
	}
	return a >= b
}

// number is bash's rule: decimal, with a sign and blanks around it, and nothing else.
func (t *tester) number(word string) (int64, bool) {
	n, err := strconv.ParseInt(strings.Trim(word, " \t\n"), 10, 64)
	if err != nil {
		return 0, t.fail("%s: integer expression expected", word)
	}
	return n, true
}

func (t *tester) unary(op, word string) bool {
	switch op {
	case "-n":
		return word != ""
	case "-z":
		return word == ""
	case "-r":
		return t.s.access(t.ctx, word, interp.AccessRead) == nil
	case "-x":
		return t.s.access(t.ctx, word, interp.AccessExec) == nil
	case "-v":
		return interp.HandlerCtx(t.ctx).Env.Get(word).IsSet()
	case "-L", "-h":
		info, err := t.s.stat(t.ctx, word, false)
		return err == nil && info.Mode()&fs.ModeSymlink != 0
	}
	info, err := t.s.stat(t.ctx, word, true)
	switch op {
	case "-e", "-a":
		return err == nil
	case "-f":
		return err == nil && info.Mode().IsRegular()
	case "-d":
		return err == nil && info.IsDir()
	case "-s":
		return err == nil && info.Size() > 0
	}
	return t.unknown(op)
}

// unknown refuses a test that depends on more than the files' being there.
func (t *tester) unknown(op string) bool {
	t.s.refuse(t.ctx, "kmodctl cannot evaluate the test %s: write it without", op)
	return false
}
