package dkms

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// shell evaluates the files of a message, in the child.
type shell struct {
	*message
	values   values
	stderr   limited
	fault    atomic.Pointer[Error] // the first: not every place in the interpreter passes an error on
	commands atomic.Int32          // started so far
}

func newShell(m *message) *shell {
	return &shell{message: m, values: values{}, stderr: limited{left: 16 << 10}}
}

// evaluate reads all files as DKMS does: each twice. First it runs the file in a subshell and prints the variables
// that it knows, NAME[i]="value", without quoting anything; then it runs what was printed, in the shell that
// the next file sees. So a value's $, quotes and blanks count twice.
func (s *shell) evaluate(ctx context.Context) (*reply, error) {
	r := &reply{Values: s.values, Set: map[string]place{}, Bare: map[string]bool{}}
	for _, f := range s.Files {
		program, err := parse(f.Text, f.Name)
		if err != nil {
			return nil, err
		}
		assignments(program, r)
		printed, err := s.first(ctx, f, program)
		if err == nil {
			err = s.second(ctx, f, printed, r.Set)
		}
		if err != nil {
			return nil, err
		}
	}
	r.Stderr = s.stderr.String()
	return r, nil
}

// assignments notes where the program sets which variable.
func assignments(program *syntax.File, r *reply) {
	syntax.Walk(program, func(n syntax.Node) bool {
		if a, ok := n.(*syntax.Assign); ok && a.Name != nil {
			r.Set[a.Name.Value] = place{program.Name, int(a.Pos().Line())}
			r.Bare[a.Name.Value] = r.Bare[a.Name.Value] || a.Index == nil && a.Array == nil
		}
		return true
	})
}

// printed is a line that DKMS reads as the second file.
type printed struct{ name, line string }

// first runs a file and prints the variables as DKMS does.
func (s *shell) first(ctx context.Context, f file, program *syntax.File) ([]printed, error) {
	var out limited
	r, err := s.runner(f.Path, &out)
	if err != nil {
		return nil, err
	}
	if err := s.run(ctx, r, program, f.Name); err != nil {
		return nil, err
	}
	if r.Exited() {
		return nil, &Error{f.Name, 0, "it exits, and DKMS then takes nothing from it: leave the exit out"}
	}
	if ifs := r.Vars["IFS"]; ifs.String() != " \t\n" {
		return nil, &Error{f.Name, 0, "it changes IFS, by which DKMS then splits all values: set it back at the end"}
	}
	var lines []printed
	vars := maps.Clone(r.Vars)
	for _, name := range s.Names {
		for _, i := range indexes(vars[name]) {
			out.reset(1 << 20)
			// As DKMS does it: unquoted, so that the value is split at blanks, its wildcards are filled in, and echo joins it.
			command := fmt.Sprintf(`echo %s[%d]=\"${%s[%d]%%$'\r'}\"`, name, i, name, i)
			program, err := parse(command, f.Name)
			if err == nil {
				err = s.run(ctx, r, program, f.Name)
			}
			if err != nil {
				return nil, err
			}
			lines = append(lines, printed{fmt.Sprintf("%s[%d]", name, i), strings.TrimSuffix(out.String(), "\n")})
		}
	}
	return lines, nil
}

// indexes are those that an array has; a sparse one has gaps.
func indexes(v expand.Variable) (list []int) {
	switch {
	case v.Kind != expand.Indexed && v.IsSet():
		list = []int{0}
	case v.Indexes != nil:
		list = v.Indexes
	default: // IsSet says no of an array that was made by setting an element
		for i := range v.List {
			list = append(list, i)
		}
	}
	return list
}

// second runs what first printed.
func (s *shell) second(ctx context.Context, f file, lines []printed, at map[string]place) error {
	r, err := s.runner(f.Path, io.Discard)
	if err != nil {
		return err
	}
	for _, p := range lines {
		name, _, _ := strings.Cut(p.name, "[")
		program, err := parse(p.line, f.Name)
		if err != nil || !assigns(program) {
			return &Error{f.Name, at[name].Line, fmt.Sprintf("DKMS reads values twice, and the second time %s does not hold together: %s: put \\ before the quotes inside it", p.name, p.line)}
		}
		if err := s.run(ctx, r, program, f.Name); err != nil {
			if bad := (*Error)(nil); errors.As(err, &bad) {
				bad.Line = at[name].Line
			}
			return err
		}
	}
	for _, name := range s.Names {
		v := r.Vars[name]
		for n, i := range indexes(v) {
			if s.values[name] == nil {
				s.values[name] = map[int]string{}
			}
			if v.Kind == expand.Indexed {
				s.values[name][i] = v.List[n]
			} else {
				s.values[name][i] = v.String()
			}
		}
	}
	return nil
}

// assigns reports whether a program is one assignment and no command.
func assigns(program *syntax.File) bool {
	if len(program.Stmts) != 1 {
		return false
	}
	stmt := program.Stmts[0]
	call, ok := stmt.Cmd.(*syntax.CallExpr)
	return ok && len(call.Assigns) == 1 && len(call.Args) == 0 && len(stmt.Redirs) == 0 && !stmt.Background && !stmt.Negated
}

// runner is a shell that has what DKMS's own has when it reads a file.
func (s *shell) runner(path string, out io.Writer) (*interp.Runner, error) {
	vars := map[string]expand.Variable{}
	for name, value := range s.Vars {
		vars[name] = expand.Variable{Set: true, Kind: expand.String, Str: value}
	}
	vars["BASH_SOURCE"] = expand.Variable{Set: true, Kind: expand.String, Str: path}
	for name, fallback := range map[string]string{"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "UID": "0", "EUID": "0", "GID": "0"} {
		vars[name] = expand.Variable{Set: true, Kind: expand.String, Str: fallback}
	}
	for name, value := range s.values {
		v := expand.Variable{Set: true, Kind: expand.Indexed}
		for _, i := range slices.Sorted(maps.Keys(value)) {
			v.List, v.Indexes = append(v.List, value[i]), append(v.Indexes, i)
		}
		vars[name] = v
	}
	return interp.New(
		interp.Env(environ(vars)),
		interp.Dir("/"),
		interp.StdIO(strings.NewReader(""), out, &s.stderr),
		interp.BashOpts("-s", "extglob"),
		interp.CallHandler(s.call),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return s.exec }),
		interp.OpenHandler(s.open),
		interp.StatHandler(s.stat),
		interp.AccessHandler(s.access),
		interp.ReadDirHandler2(s.readDir),
	)
}

// environ is variables as the interpreter takes them.
type environ map[string]expand.Variable

func (e environ) Get(name string) expand.Variable { return e[name] }

func (e environ) Each(f func(name string, v expand.Variable) bool) {
	for name, v := range e {
		if !f(name, v) {
			return
		}
	}
}

// run runs one program. How it ends is no error, as in a file that bash sources; what it may not do is.
func (s *shell) run(ctx context.Context, r *interp.Runner, program *syntax.File, name string) error {
	err := r.Run(ctx, program)
	bad := s.fault.Load()
	var status interp.ExitStatus
	switch {
	case ctx.Err() != nil:
		return &Error{name, 0, tooLong}
	case bad != nil || errors.As(err, &bad):
		if bad.File == "" {
			bad.File = name
		}
		return bad
	case err == nil, errors.As(err, &status):
		return nil
	}
	return &Error{name, 0, err.Error()}
}

// refuse ends the evaluation at the command that ctx is of.
func (s *shell) refuse(ctx context.Context, format string, args ...any) error {
	bad := &Error{"", int(interp.HandlerCtx(ctx).Pos.Line()), fmt.Sprintf(format, args...)}
	s.fault.CompareAndSwap(nil, bad)
	return bad
}

// limited keeps what is written to it, up to a number of bytes; the commands of a pipe write at once.
type limited struct {
	lock sync.Mutex
	text strings.Builder
	left int
}

func (l *limited) String() string { return l.text.String() }

// reset empties it for other bytes.
func (l *limited) reset(left int) {
	l.text.Reset()
	l.left = left
}

func (l *limited) Write(p []byte) (int, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	n := min(len(p), l.left)
	l.left -= n
	l.text.Write(p[:n])
	return len(p), nil
}

// host is where this process finds what a conf knows as name; ok is false for what it may not know.
func (s *shell) host(ctx context.Context, name string) (path string, ok bool) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(interp.HandlerCtx(ctx).Dir, name)
	}
	name = filepath.Clean(name)
	if path = s.mapped(name); path == name {
		path = filepath.Join("/", s.Root, name)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return path, slices.ContainsFunc(s.Reads, func(dir string) bool { return within(path, dir) })
	}
	return path, slices.ContainsFunc(s.Reads, func(dir string) bool { return within(real, dir) })
}

// mapped is name at its place for this process.
func (s *shell) mapped(name string) string {
	for _, m := range s.Maps {
		if within(name, m.Name) {
			return filepath.Join(m.Host, strings.TrimPrefix(name, m.Name))
		}
	}
	return name
}

func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// open lets a conf read its source and the kernel's tree, and write to /dev/null alone.
func (s *shell) open(ctx context.Context, name string, flag int, _ os.FileMode) (io.ReadWriteCloser, error) {
	if name == os.DevNull {
		return nowhere{}, nil
	}
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) != 0 {
		return nil, s.refuse(ctx, "it would write %s: a dkms.conf may write to /dev/null alone; what has to be prepared goes into PRE_BUILD", name)
	}
	path, ok := s.host(ctx, name)
	if !ok {
		return nil, s.refuse(ctx, "it would read %s: a dkms.conf may read its own source, the kernel's build tree and /usr/src", name)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// nowhere is /dev/null.
type nowhere struct{}

func (nowhere) Read([]byte) (int, error)    { return 0, io.EOF }
func (nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (nowhere) Close() error                { return nil }
