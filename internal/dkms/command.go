package dkms

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// command is a program that a conf may use.
type command struct {
	own   func(s *shell, ctx context.Context, args []string) error // done by ourselves
	reads bool                                                     // its arguments may name files
	names bool                                                     // it prints the names of the files that it finds
	first []string                                                 // arguments that come before the conf's
	bad   func(arg string) bool                                    // an argument that makes it start programs or write files
}

// commands are all that a conf may use. None of them can, with what is left of their arguments, start another program.
var commands = map[string]*command{
	"uname":    {own: (*shell).uname},
	"arch":     {own: func(s *shell, ctx context.Context, _ []string) error { return s.uname(ctx, []string{"-m"}) }},
	"nproc":    {own: nproc},
	"basename": {}, "dirname": {}, "expr": {}, "seq": {}, "tr": {},
	"cat": {reads: true}, "cut": {reads: true}, "grep": {reads: true}, "egrep": {reads: true}, "fgrep": {reads: true},
	"head": {reads: true}, "tail": {reads: true, bad: hasPrefix("-f", "-F", "--f")}, "wc": {reads: true, bad: hasPrefix("--files0")},
	"uniq": {reads: true},
	"sed":  {reads: true, first: []string{"--sandbox"}, bad: hasPrefix("-i", "--i", "--no-s")},
	"sort": {reads: true, bad: hasPrefix("-o", "-T", "--o", "--t", "--comp", "--files0")},
	"ls":   {reads: true, names: true}, "readlink": {reads: true, names: true}, "realpath": {reads: true, names: true},
	"find": {reads: true, names: true, bad: oneOf("-exec", "-execdir", "-ok", "-okdir", "-delete", "-fprint", "-fprint0", "-fprintf", "-fls", "-files0-from")},
}

func hasPrefix(prefixes ...string) func(string) bool {
	return func(arg string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(arg, p) })
	}
}

func oneOf(words ...string) func(string) bool {
	return func(arg string) bool { return slices.Contains(words, arg) }
}

const (
	maxCommands = 2000
	testName    = " test" // what [ and test are called instead, so that they come to exec
	numberName  = " number"
)

// call is told each command before it runs, and changes the builtins that the interpreter does otherwise than bash.
func (s *shell) call(ctx context.Context, args []string) ([]string, error) {
	refuse := func(format string, a ...any) ([]string, error) { return nil, s.refuse(ctx, format, a...) }
	switch args[0] {
	case "[", "test":
		return append([]string{testName}, args...), nil
	case ".", "source":
		if len(args) > 1 {
			return args, s.check(ctx, args[1])
		}
	case "eval", "exec", "trap", "alias", "unalias", "read", "readarray", "mapfile", "wait", "help", "hash", "type", "times", "getopts":
		return refuse("kmodctl does not evaluate %s in a dkms.conf: write it without", args[0])
	case "printf":
		if len(args) > 1 && strings.HasPrefix(args[1], "-v") {
			return refuse("kmodctl does not evaluate printf -v in a dkms.conf: write NAME=$(printf ...)")
		}
	case "set":
		if len(args) > 1 && args[1] != "--" && strings.ContainsAny(args[1][:min(1, len(args[1]))], "-+") {
			return refuse("kmodctl does not evaluate set %s in a dkms.conf: leave the options as they are", args[1])
		}
	case "shopt":
		return refuse("kmodctl does not evaluate shopt in a dkms.conf: leave the options as they are")
	case "command", "builtin":
		if len(args) > 1 && args[1] != "-v" {
			return s.call(ctx, args[1:])
		}
	}
	return args, nil
}

// check looks at a file that is about to be sourced.
func (s *shell) check(ctx context.Context, name string) error {
	f, err := s.open(ctx, name, 0, 0)
	if bad := (*Error)(nil); errors.As(err, &bad) {
		return bad
	} else if err != nil {
		return nil // the interpreter says it, as bash does
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 8<<20))
	if err != nil {
		return nil
	}
	program, err := parse(string(text), name)
	if err != nil {
		return err
	}
	// The interpreter parses it again, for itself.
	syntax.Walk(program, func(n syntax.Node) bool {
		if test, ok := n.(*syntax.BinaryTest); ok && asNumbers(test) {
			err = &Error{name, int(test.Pos().Line()), "kmodctl cannot evaluate -lt and its like of [[ ]] in a file that is sourced: use [ ]"}
		}
		return true
	})
	return err
}

// exec runs what is neither a function nor a builtin.
func (s *shell) exec(ctx context.Context, args []string) error {
	switch args[0] {
	case testName:
		return s.test(ctx, args[1:])
	case numberName:
		return s.number(ctx, strings.Join(args[1:], " "))
	}
	c := commands[filepath.Base(args[0])]
	if c == nil || args[0] != filepath.Base(args[0]) && !slices.Contains(places, filepath.Dir(args[0])) {
		return s.refuse(ctx, "it runs %s: kmodctl evaluates a dkms.conf without programs, but for grep, sed, cut and the like: "+
			"move the work to PRE_BUILD, or write a kmod.toml", args[0])
	}
	if i := slices.IndexFunc(args[1:], func(arg string) bool { return c.bad != nil && c.bad(arg) }); i >= 0 {
		return s.refuse(ctx, "it runs %s %s, which writes files or starts programs: move the work to PRE_BUILD", args[0], args[i+1])
	}
	if c.own != nil {
		return c.own(s, ctx, args[1:])
	}
	if s.commands.Add(1) > maxCommands {
		return s.refuse(ctx, "it runs more than %d commands: look for an endless loop in it", maxCommands)
	}
	return s.program(ctx, c, args)
}

var places = []string{"/usr/bin", "/bin"}

// program starts a program of this machine, with nothing but its arguments.
func (s *shell) program(ctx context.Context, c *command, args []string) error {
	hc := interp.HandlerCtx(ctx)
	rest := slices.Clone(args[1:])
	for i, arg := range rest {
		if c.reads && filepath.IsAbs(arg) {
			if rest[i] = s.mapped(arg); c.names && rest[i] != arg {
				return s.refuse(ctx, "it runs %s on %s, which is elsewhere here: use the name without looking", args[0], arg)
			}
		}
	}
	name := filepath.Base(args[0])
	path, err := exec.LookPath(filepath.Join(places[0], name))
	if err != nil {
		path = filepath.Join(places[1], name)
	}
	cmd := exec.CommandContext(ctx, path, append(slices.Clone(c.first), rest...)...)
	cmd.Args[0] = name
	cmd.Env = []string{}
	cmd.Dir = s.mapped(hc.Dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = hc.Stdin, hc.Stdout, hc.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return interp.ExitStatus(exit.ExitCode())
	}
	return err
}

var decimal = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^-?(0|[1-9][0-9]{0,17})$`) })

// number prints a word that is a number, to bash as to the interpreter.
func (s *shell) number(ctx context.Context, word string) error {
	if word == "" {
		word = "0"
	}
	if !decimal().MatchString(word) {
		return s.refuse(ctx, "it compares %q as a number: kmodctl compares decimal numbers alone", word)
	}
	_, err := io.WriteString(interp.HandlerCtx(ctx).Stdout, word)
	return err
}

func nproc(_ *shell, ctx context.Context, _ []string) error {
	_, err := fmt.Fprintln(interp.HandlerCtx(ctx).Stdout, runtime.NumCPU())
	return err
}

// uname answers for the target kernel.
func (s *shell) uname(ctx context.Context, args []string) error {
	flags := ""
	for _, arg := range args {
		flags += strings.TrimPrefix(arg, "-")
	}
	if flags == "" {
		flags = "s"
	}
	var words []string
	for _, w := range []struct{ flag, word string }{{"s", s.Uname[2]}, {"r", s.Uname[0]}, {"m", s.Uname[1]}, {"p", s.Uname[1]}, {"i", s.Uname[1]}} {
		if strings.Contains(flags, w.flag) {
			words = append(words, w.word)
		}
	}
	if strings.Trim(flags, "srmpi") != "" {
		return s.refuse(ctx, "it runs uname %s: the target kernel is known by uname -r, -m and -s alone", strings.Join(args, " "))
	}
	_, err := fmt.Fprintln(interp.HandlerCtx(ctx).Stdout, strings.Join(words, " "))
	return err
}
