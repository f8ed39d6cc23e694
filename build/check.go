package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The tools that a Check can name.
const (
	CheckSparse     = "sparse"     // kbuild's C=1: address spaces, locks, endianness
	CheckClang      = "clang"      // clang's analyzer in the place of sparse, for a kernel that clang built
	CheckCheckpatch = "checkpatch" // scripts/checkpatch.pl of the build tree: the kernel's style; compiles nothing
)

// Check is what a source is looked at with.
type Check struct {
	Tool     string // one of the above; "" is the compiler alone
	Warnings string // make W= (scripts/Makefile.extrawarn): "1", "2", "3" or several, "12"; "" is none
}

// Finding is a line that a compiler or checker does not like.
type Finding struct {
	File     string `json:"file"` // relative to the source
	Line     int    `json:"line"`
	Column   int    `json:"column,omitempty"`
	Severity string `json:"severity"` // error, warning or check
	Text     string `json:"text"`
}

func (f Finding) String() string {
	at := f.File + ":" + strconv.Itoa(f.Line)
	if f.Column > 0 {
		at += ":" + strconv.Itoa(f.Column)
	}
	return at + ": " + f.Severity + ": " + f.Text
}

// CheckError is a Check that cannot be made for a kernel.
type CheckError struct{ Tool, Release, Why string }

func (e *CheckError) Error() string {
	return fmt.Sprintf("check with %s for %s: %s", e.Tool, e.Release, e.Why)
}

// Look does what Run does up to make, with c, and returns what was found in files of the source, each once,
// sorted. The kernel's own headers and what kbuild writes are not the author's. Errors
// are Run's, and a *CheckError; an *Error comes with what had been found by then.
func Look(ctx context.Context, j Job, c Check) ([]Finding, error) {
	r := &run{Job: j, at: "prepare", check: &c}
	if c.Tool == CheckCheckpatch { // not what a prepare step will make
		var err error
		if r.own, err = codeIn(j.Source); err != nil {
			return nil, err
		}
	}
	_, _, err := r.run(ctx)
	slices.SortFunc(r.findings, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line, a.Column-b.Column, strings.Compare(a.Text, b.Text))
	})
	return slices.Compact(r.findings), err
}

// plainName is a file name that needs no quoting: checkpatch.pl hands names to a shell, and
// make knows no others.
var plainName = anyOf(`^[\w./+@%=,-]+$`)

// codeIn lists the C files of a source.
func codeIn(dir string) (files []string, err error) {
	err = fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if ext := path.Ext(name); err == nil && d.Type().IsRegular() && (ext == ".c" || ext == ".h") && plainName().MatchString(name) {
			files = append(files, "./"+name) // none is an option
		}
		return err
	})
	return files, err
}

// look runs the check's commands. That there is something to be found is no failure of them.
func (r *run) look(ctx context.Context) error {
	commands, err := r.checker()
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(r.Source)
	if err != nil {
		return err
	}
	defer root.Close()
	out := &lines{to: r.Log, each: func(line string) {
		f, ok := r.finding(line)
		if ok && isFile(root, f.File) && !strings.HasSuffix(f.File, ".mod.c") {
			r.findings = append(r.findings, f)
		}
	}}
	r.Log = out
	for _, command := range commands {
		before := len(r.findings)
		err := command(ctx)
		out.flush()
		var exit *exec.ExitError
		told := r.check.Tool == CheckCheckpatch && errors.As(err, &exit) && exit.ExitCode() == 1 && len(r.findings) > before
		if err != nil && !told {
			return err
		}
	}
	return nil
}

// checker are the commands of a check. The copy is fresh: C=1, which looks at what is compiled, looks
// at all of it, as C=2 would.
func (r *run) checker() (commands []func(context.Context) error, err error) {
	if r.check.Tool == CheckCheckpatch {
		const script = "scripts/checkpatch.pl"
		if _, err := r.Kernel.Root.Path(filepath.Join(r.Kernel.Tree.Path, script)); err != nil {
			return nil, r.noCheck("its headers have no " + script)
		}
		for _, file := range r.own { // one by one: an empty file blinds it to all after it
			argv := []string{"perl", filepath.Join(r.wall.tree(r.Kernel), script), "--no-tree", "--terse", "--no-summary", "--file", file}
			commands = append(commands, func(ctx context.Context) error { return r.step(ctx, "check", argv...) })
		}
		return commands, nil
	}
	vars, err := r.checkVariables()
	if err != nil {
		return nil, err
	}
	if d := r.Manifest.DKMS; d != nil && d.Make != "" {
		r.wall.env = append(r.wall.env, gnuMakeFlags(vars))
		return append(commands, func(ctx context.Context) error { return r.make(ctx, "check") }), nil
	}
	argv := append(r.kbuild(), vars...)
	return append(commands, func(ctx context.Context) error { return r.step(ctx, "check", argv...) }), nil
}

func (r *run) noCheck(why string) error { return &CheckError{r.check.Tool, r.Kernel.Name, why} }

// checkVariables are what kbuild is told for a check.
func (r *run) checkVariables() (vars []string, err error) {
	if len(r.Manifest.Build.Needs) > 0 {
		vars = append(vars, "KBUILD_MODPOST_WARN=1") // what those export is not here: nothing will be loaded
	}
	if r.check.Warnings != "" {
		vars = append(vars, "W="+r.check.Warnings)
	}
	switch r.check.Tool {
	case "":
	case CheckSparse:
		sparse, err := findProgram("sparse")
		if err != nil {
			return nil, err
		}
		vars = append(vars, "C=1", "CHECK="+sparse)
	case CheckClang:
		if _, ok := r.Toolchain.llvm(); !ok {
			return nil, r.noCheck("the kernel was built with " + r.Kernel.Tree.CC + ", whose options clang does not know")
		}
		vars = append(vars, "C=1", "CHECK="+r.Toolchain.Path+" --analyze --analyzer-output text", "CHECKFLAGS=")
	default:
		return nil, r.noCheck("no such tool")
	}
	return vars, nil
}

// Lines of compilers and checkers, and how sparse goes on.
var (
	findingLine = anyOf(`^([^\s:]+):(\d+):(?:(\d+):)? (?:fatal )?(?i:(error|warning|check)): (.+)$`)
	detailLine  = anyOf(`^([^\s:]+):(\d+):(\d+):    (\S.*)$`)
)

// finding reads a line of the log. What sparse adds to the finding before it, "expected" and "got",
// becomes part of that.
func (r *run) finding(line string) (f Finding, ok bool) {
	line = strings.ToValidUTF8(line, "?")
	name := func(s string) string { return path.Clean(strings.TrimPrefix(s, r.wall.work()+"/")) }
	if m := detailLine().FindStringSubmatch(line); m != nil {
		for i, f := range slices.Backward(r.findings) {
			if f.File == name(m[1]) && strconv.Itoa(f.Line) == m[2] && strconv.Itoa(f.Column) == m[3] {
				r.findings[i].Text += "; " + m[4]
				break
			}
		}
		return f, false
	}
	m := findingLine().FindStringSubmatch(line)
	if m == nil {
		return f, false
	}
	var err error
	f = Finding{File: name(m[1]), Severity: strings.ToLower(m[4]), Text: m[5]}
	if f.Line, err = strconv.Atoi(m[2]); err != nil {
		return f, false
	}
	f.Column, err = strconv.Atoi(cmp.Or(m[3], "0"))
	return f, err == nil
}
