package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// Job is one run of kbuild: a package for a kernel.
type Job struct {
	Manifest  *Manifest
	Kernel    kernel.Release
	Source    string                  // folder with a private copy of the source: it is written to, and given to the build user
	Pristine  string                  // of a dkms.conf: a second such copy, which stands for DKMS's own of the source; else ""
	Toolchain *Toolchain              // from Inputs
	Symvers   []string                // files of Source like Module.symvers, of the packages that it needs
	Log       io.Writer               // what was run, as whom, behind which wall, and what it printed, up to 64 MiB
	At        func(step, what string) // told what it has come to: the step of an Error, or "isolate"; in make also "CC hello.o". May be nil
	Jobserver *Jobserver              // what it may run at once, beside other Jobs; nil is one compiler

	TimeLimit time.Duration // 0 is DefaultTimeLimit
	Nice      bool          // whatever else wants the processors and disks goes first
}

// Built is one module that a Job made.
type Built struct {
	Name  string `json:"name"`            // kernel's form, with _
	File  string `json:"file"`            // the .ko without debug sections, inside Job.Source
	As    string `json:"as"`              // file name that it is to be installed by
	Place string `json:"place,omitempty"` // Module's

	whole bool // Module's
}

// Error is a build that ran and failed.
type Error struct {
	Package string   `json:"package"`
	Release string   `json:"release"`
	Step    string   `json:"step"`             // patch, prepare, make, collect, strip or post_build; check of a Look
	Line    string   `json:"line,omitempty"`   // the log's first telling line, paths relative to the source
	Source  []string `json:"source,omitempty"` // the line of the source that it points at, with its number
	Class   Class    `json:"class,omitempty"`
	Header  string   `json:"header,omitempty"` // of ClassHeader: what is missing, "libelf.h", or a library, "-lelf"
	Note    string   `json:"note,omitempty"`   // of ClassCompiler: that the kernel was built with another one
	Err     error    `json:"-"`
}

func (e *Error) Error() string {
	s := fmt.Sprintf("build %s for %s: ", e.Package, e.Release)
	if e.Line != "" {
		return s + e.Line
	}
	return s + e.Step + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// cleanEnv is the environment of everything that a build runs: nothing of the
// caller's, so that the bytes do not depend on him.
var cleanEnv = append([]string{
	"PATH=" + strings.Join(searchPath, ":"), "HOME=/nonexistent", "LC_ALL=C", "TZ=UTC",
}, reproducible...)

// reproducible is what Documentation/kbuild/reproducible-builds.rst asks for, and the
// same instant for __DATE__ and __TIME__. A set timestamp also makes pahole run without -j,
// whose output is not stable.
var reproducible = []string{
	"KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970", "KBUILD_BUILD_USER=kmodctl", "KBUILD_BUILD_HOST=kmodctl",
	"SOURCE_DATE_EPOCH=0",
}

// Run builds j's modules: patches, prepare steps, make -C TREE M=COPY, strip. The
// error is an *Error when a step of the build failed; ctx's own, wrapped, when it
// was cancelled; an *exec.Error when a program is not installed. When Run returns,
// every process that it started is gone, and no file of the copy has a set-user-ID bit. How well the source was kept apart
// from this machine is told as soon as it is known, of builds that fail too.
func Run(ctx context.Context, j Job) ([]Built, Isolation, error) {
	return (&run{Job: j, at: "prepare"}).run(ctx)
}

func (r *run) run(ctx context.Context) ([]Built, Isolation, error) {
	log := &capped{to: r.Log, left: logLen}
	r.Log = log
	watched, stop := watch(ctx, r.TimeLimit, r.Source)
	built, err := r.build(watched)
	if ended := context.Cause(watched); err != nil && ended != nil {
		fmt.Fprintln(r.Log, ended)
		err = &Error{Package: r.Manifest.Name, Release: r.Kernel.Name, Step: r.at, Class: ClassOf(ended), Err: ended}
	}
	stop()
	for _, c := range r.wall.copies() {
		if clear := clearSetID(c.From); err == nil {
			err = clear
		}
	}
	if err == nil && log.err != nil {
		err = fmt.Errorf("write log: %w", log.err)
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		built = nil
	}
	var failed *Error
	if err != nil && !errors.As(err, &failed) {
		err = fmt.Errorf("build %s for %s: %w", r.Manifest.Name, r.Kernel.Name, err)
	}
	return built, r.wall.Isolation, err
}

// run is a Job on its way.
type run struct {
	Job
	wall    wall
	at      string  // the last step
	telling telling // what it said

	check    *Check    // of a Look; else nil
	own      []string  // C files of the source, for checkpatch
	findings []Finding // of the check
}

func (r *run) build(ctx context.Context) ([]Built, error) {
	if r.Kernel.Tree == nil {
		return nil, errors.New(lacks(r.Kernel))
	}
	r.wall = newWall(r.Job)
	for _, c := range r.wall.copies() {
		if err := prepareCopy(c.From, r.wall); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(r.Log, "%s %s for %s\ncompiler: %s (%s)\n", r.Manifest.Name, r.Manifest.Version, r.Kernel.Name, r.Toolchain.Identity, r.Toolchain.Path)
	if r.Toolchain.Note != "" {
		fmt.Fprintf(r.Log, "note: %s\n", r.Toolchain.Note)
	}
	r.tell("isolate", "")
	if err := r.wall.probe(ctx, r.Log); err != nil {
		return nil, err
	}
	if at := r.wall.tree(r.Kernel); at != r.Kernel.Tree.Path {
		fmt.Fprintf(r.Log, "build tree: %s, which uid %d cannot reach there, is %s here\n", r.Kernel.Tree.Path, r.wall.UID, at)
	}
	for _, p := range r.Manifest.Build.Patches {
		if !matches(p.Release, r.Kernel.Name) {
			continue
		}
		if err := r.step(ctx, "patch", "patch", "-p1", "--batch", "--forward", "-i", p.File); err != nil {
			var failed *Error
			if errors.As(err, &failed) && !r.telling.full {
				failed.Line = strings.TrimSuffix(p.File+" does not apply: "+strings.TrimPrefix(failed.Line, "patch: **** "), ": ")
				failed.Class = ClassPatch
			}
			return nil, err
		}
	}
	for _, argv := range r.Manifest.Build.Prepare {
		if err := r.ownProgram(argv[0]); err != nil {
			return nil, err
		}
		if err := r.step(ctx, "prepare", r.expand(argv)...); err != nil {
			return nil, err
		}
	}
	if d := r.Manifest.DKMS; d != nil {
		r.wall.env = r.makeEnv()
		if err := r.script(ctx, "prepare", d.PreBuild); err != nil {
			return nil, err
		}
	}
	if r.check != nil {
		return nil, r.look(ctx)
	}
	if err := r.make(ctx, "make"); err != nil {
		return nil, err
	}
	r.tell("collect", "")
	built, err := r.collect()
	if err != nil {
		return nil, err
	}
	argv := []string{r.Toolchain.strip(), "--strip-debug", "--"}
	none := len(argv)
	for _, b := range built {
		if !b.whole {
			argv = append(argv, b.File)
		}
	}
	if len(argv) > none {
		if err := r.step(ctx, "strip", argv...); err != nil {
			return nil, err
		}
	}
	if d := r.Manifest.DKMS; d != nil && d.PostBuild != "" {
		if built, err = r.keep(built); err != nil {
			return nil, err
		}
		if err := r.script(ctx, "post_build", d.PostBuild); err != nil {
			return nil, err
		}
	}
	// Stripping ran as the build user, on names of his: look again.
	return r.found(built)
}

// ownProgram is the error of a prepare step that means a program of the source and
// leaves out its "./".
func (r *run) ownProgram(name string) error {
	if strings.Contains(name, "/") {
		return nil
	}
	if _, err := findProgram(name); err == nil {
		return nil
	}
	if info, err := os.Lstat(filepath.Join(r.Source, name)); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	err := fmt.Errorf("%s is not on the build's PATH; the source has ./%[1]s", name)
	fmt.Fprintln(r.Log, err)
	return r.failed("prepare", err)
}

// kbuild is the command of Documentation/kbuild/modules.rst. CC is given on the
// command line because Debian's trees set it in .kernelvariables.
func (r *run) kbuild() []string {
	argv := []string{"make", "-C", r.wall.tree(r.Kernel), "M=" + r.wall.work(), "CC=" + r.Toolchain.Path}
	if r.Manifest.DKMS != nil {
		argv = append(argv, "KERNELRELEASE="+r.Kernel.Name) // Debian's trees know theirs by another name
	}
	argv = append(argv, r.makeVariables()...)
	return append(argv, r.Manifest.Build.Targets...)
}

// makeVariables are those of kbuild's variables that its defaults do not do for.
func (r *run) makeVariables() []string {
	vars := r.Toolchain.flags()
	if len(r.Symvers) > 0 {
		var paths []string
		for _, name := range r.Symvers {
			paths = append(paths, filepath.Join(r.wall.work(), name))
		}
		vars = append(vars, "KBUILD_EXTRA_SYMBOLS="+strings.Join(paths, " "))
	}
	if at, fixed := r.wall.work(), r.fixedPlace(); at != fixed {
		maps := "-ffile-prefix-map=" + at + "=" + fixed
		if r.Pristine != "" {
			maps += " -ffile-prefix-map=" + r.Pristine + "=" + r.Manifest.sourcePlace()
		}
		// Of C and of assembly (Documentation/kbuild/kbuild.rst). cc-option, which is kbuild's, leaves out what the
		// compiler does not know: gcc has it since 8, clang since 10.
		vars = append(vars, "KCPPFLAGS=$(call cc-option,"+maps+")")
	}
	return vars
}

// fixedPlace is where every build's copy of a source is, or is said to be. It gets into
// the bytes (__FILE__, the build-id) and the log.
func (j Job) fixedPlace() string {
	if j.Manifest.DKMS != nil {
		return j.Manifest.buildPlace()
	}
	return filepath.Join(workRoot, j.Manifest.Name+"-"+j.Manifest.Version)
}

// expand puts the values of the placeholders into a prepare step.
func (r *run) expand(argv []string) []string {
	values := []string{r.wall.tree(r.Kernel), r.wall.work(), r.Kernel.Name, r.Kernel.Arch, r.Toolchain.Path, strconv.Itoa(r.Jobserver.Tokens())}
	var pairs []string
	for i, name := range placeholders {
		pairs = append(pairs, name, values[i])
	}
	put := strings.NewReplacer(pairs...)
	out := make([]string, len(argv))
	for i, arg := range argv {
		out[i] = put.Replace(arg)
	}
	return out
}

// step runs one command behind the wall, in the copy of the source.
func (r *run) step(ctx context.Context, name string, argv ...string) error {
	fmt.Fprintf(r.Log, "+ %s\n", quote(argv))
	r.tell(name, "")
	file := argv[0]
	if !strings.Contains(file, "/") {
		var err error
		if file, err = findProgram(file); err != nil {
			fmt.Fprintln(r.Log, err)
			return err
		}
	}
	r.at, r.telling = name, telling{}
	out := &lines{to: r.Log, each: func(line string) {
		r.telling.read(line)
		if short := shortLog().FindStringSubmatch(line); short != nil {
			r.tell(name, short[1]+" "+strings.TrimPrefix(short[2], r.wall.work()+"/"))
		}
	}}
	err := r.wall.run(ctx, file, argv, out)
	out.flush()
	if err == nil || ctx.Err() != nil {
		return err
	}
	fmt.Fprintf(r.Log, "%s: %v\n", argv[0], err)
	return r.failed(name, fmt.Errorf("%s: %w", argv[0], err))
}

// shortLog is how kbuild says what it makes: "  CC [M]  /tmp/kmodctl/hello-1.0/hello.o".
var shortLog = anyOf(`^  ([A-Z]+) (?:\[M\])? +(\S+)$`)

func (r *run) tell(step, what string) {
	if r.At != nil {
		r.At(step, what)
	}
}

func (r *run) failed(step string, err error) *Error {
	unsaid := r.telling.unwritten && crowded(r.Source)
	if r.telling.full || unsaid {
		err = fmt.Errorf("%w: %w", err, syscall.ENOSPC)
	}
	if r.telling.offline() {
		err = fmt.Errorf("%w: %w", err, ErrNoNetwork)
	}
	e := &Error{Package: r.Manifest.Name, Release: r.Kernel.Name, Step: step, Err: err}
	if step != "collect" || r.Manifest.DKMS != nil { // a MAKE may end well after a compiler that did not
		e.Line, e.Source = r.telling.explain(r.Source, r.wall.work())
	}
	if unsaid {
		e.Line += ": " + syscall.ENOSPC.Error()
	}
	if e.Class = ClassOf(err); e.Class == "" {
		e.Class, e.Header = classify(cmp.Or(e.Line, err.Error()))
	}
	if e.Class == ClassCompiler {
		e.Note = r.Toolchain.Note
	}
	return e
}

// crowded reports whether a folder's file system has next to no room: what could not be written
// whole, make has deleted.
func crowded(dir string) bool {
	const little = 16 << 20 // bytes
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && (fs.Bavail*uint64(fs.Bsize) < little || fs.Files > 0 && fs.Ffree == 0)
}

func quote(argv []string) string {
	words := make([]string, len(argv))
	for i, arg := range argv {
		words[i] = arg
		if arg == "" || strings.ContainsAny(arg, " \t\n\"'\\") {
			words[i] = strconv.Quote(arg)
		}
	}
	return strings.Join(words, " ")
}
