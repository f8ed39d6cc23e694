package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// env is what every command works in: the machine, the streams, the manner.
type env struct {
	root     kernel.Root
	json     bool
	dryRun   bool
	quiet    bool
	verbose  bool
	brief    bool          // errors are one line each
	front    string        // begins an error's line; "" is "kmodctl: "
	patience time.Duration // to wait for another kmodctl, as registry.WriterOptions.Timeout
	out      io.Writer
	err      *screen

	incomplete  bool           // what is done when a command ends was not all done, which has been told
	afterBeside []func() error // what a writer does when the files beside modules are in place
}

// setUp reads the global flags, before any command runs.
func (e *env) setUp(c *cli.Context) error {
	if c.String("root") == "" {
		return usagef("--root is empty: it is the folder of a machine, / for this one")
	}
	if err := e.setRoot(c.String("root")); err != nil {
		return err
	}
	e.json, e.dryRun = c.Bool("json"), c.Bool("dry-run")
	e.quiet, e.verbose = c.Bool("quiet"), c.Bool("verbose")
	if e.quiet {
		e.err.columns = nil
	}
	if c.IsSet("lock-timeout") {
		switch e.patience = c.Duration("lock-timeout"); {
		case e.patience < 0:
			return usagef("--lock-timeout %v is below zero", e.patience)
		case e.patience == 0:
			e.patience = -1 // not at all
		}
	}
	return nil
}

// setRoot makes a folder the root of the machine to work on.
func (e *env) setRoot(dir string) error {
	root, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if info, err := os.Stat(root); err != nil {
		return fmt.Errorf("open root: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("open root %s: not a folder", root)
	}
	e.root = kernel.Root(root)
	return nil
}

// say prints a line for people.
func (e *env) say(format string, args ...any) {
	if !e.quiet {
		fmt.Fprintf(e.err, format+"\n", args...)
	}
}

// changed prints a line about something that was changed: it is shown with -q too,
// since a hook's log must tell what a night's upgrade did.
func (e *env) changed(format string, args ...any) { fmt.Fprintf(e.err, format+"\n", args...) }

// would prints a line of a dry run, unless a document follows.
func (e *env) would(format string, args ...any) {
	if !e.json {
		fmt.Fprintf(e.out, format+"\n", args...)
	}
}

// document prints v as the JSON document of a command, named and versioned by schema.
func (e *env) document(schema string, v any) error {
	text, err := named(schema, v)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	json.Indent(&out, text, "", "  ") // what Marshal made can be indented
	_, err = fmt.Fprintln(e.out, &out)
	return err
}

// line prints v as a document of one line, for commands that print several.
func (e *env) line(schema string, v any) error {
	text, err := named(schema, v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "%s\n", text)
	return err
}

// named is v, a struct or a map, in JSON with its schema.
func named(schema string, v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	head := fmt.Sprintf(`{"schema":%q`, "kmodctl."+schema+"/1")
	if len(text) > len("{}") {
		head += ","
	}
	return append([]byte(head), text[1:]...), nil
}

// system is where the registry of the machine is, inside its root.
const system = "/var/lib/kmodctl"

// registryDir is the registry that this user writes: the machine's for root and
// below a --root, the user's own otherwise.
func (e *env) registryDir() (string, error) {
	if e.ownRegistry() {
		state := os.Getenv("XDG_STATE_HOME")
		if state == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("find registry: %w", err)
			}
			state = filepath.Join(home, ".local", "state")
		}
		return filepath.Join(state, "kmodctl"), nil
	}
	return e.inside(system)
}

// inside is the host path of a folder inside the root that need not exist yet. A
// link that leads nowhere inside the root is an error: outside of it, it might lead
// to this machine's own.
func (e *env) inside(name string) (string, error) {
	dir, err := e.root.Path(name)
	if !errors.Is(err, fs.ErrNotExist) || name == "/" {
		return dir, err
	}
	parent, err := e.inside(filepath.Dir(name))
	if err != nil {
		return "", err
	}
	path := filepath.Join(parent, filepath.Base(name))
	if target, err := os.Readlink(path); err == nil {
		return "", fmt.Errorf("find registry: %s leads to %s, which does not exist inside %s", path, target, e.root)
	}
	return path, nil
}

// reader opens the registry to look at: the user's own if there is one, else the
// machine's.
func (e *env) reader(ctx context.Context) (*registry.Registry, error) {
	dir, err := e.registryDir()
	if !e.ownRegistry() {
		if err != nil {
			return nil, err
		}
		return registry.Open(ctx, dir)
	}
	if _, statErr := os.Stat(dir); err != nil || statErr != nil { // he has no home, or nothing in it
		return registry.Open(ctx, system)
	}
	own, err := registry.Open(ctx, dir)
	if err != nil {
		return nil, err
	}
	if sources, err := own.Sources(); err != nil || len(sources) > 0 {
		return own, err
	}
	own.Close()
	return registry.Open(ctx, system)
}

// ownRegistry reports whether this user writes a registry of his own.
func (e *env) ownRegistry() bool { return e.root.IsHost() && os.Getuid() != 0 }

// command is a kmodctl command that changes the registry which is being looked at.
func (e *env) command(verb string) string {
	switch {
	case !e.root.IsHost():
		return fmt.Sprintf("kmodctl --root %s %s", e.root, verb)
	case os.Getuid() != 0:
		return "sudo kmodctl " + verb
	}
	return "kmodctl " + verb
}

// close ends a writer's work, and tells what it could not clean up.
func (e *env) close(reg *registry.Registry) {
	if err := e.putBeside(reg); err != nil {
		e.reportUntold(err)
		e.incomplete = e.incomplete || !othersFile(err)
	}
	for _, do := range e.afterBeside {
		if err := do(); err != nil {
			e.report(err)
			e.incomplete = true
		}
	}
	if !e.dryRun {
		if err := e.showDKMS(reg); err != nil {
			e.changed("note: %s: %v", dkmsTreePath, err)
		}
	}
	if err := e.noteForLogin(reg); err != nil {
		e.changed("note: %s: %v", loginNote, err)
	}
	if err := reg.Close(); err != nil {
		e.changed("note: %v", err)
	}
}

// writer opens the registry to change it, waiting for another kmodctl to finish.
func (e *env) writer(ctx context.Context, command string) (*registry.Registry, error) {
	dir, err := e.registryDir()
	if err != nil {
		return nil, err
	}
	reg, err := registry.OpenWriter(ctx, dir, e.root, e.writerOptions(command))
	if err != nil {
		return nil, err
	}
	for _, line := range reg.Recovered() {
		e.changed("recovered: %s", line)
	}
	return reg, nil
}

// writerOptions say who writes, and how it waits.
func (e *env) writerOptions(command string) registry.WriterOptions {
	return registry.WriterOptions{
		Command: "kmodctl " + command,
		Version: version,
		Waiting: func(holder string) { e.say("waiting for %s", holder) },
		Timeout: e.patience,
	}
}

// open is writer, or reader for a dry run. A user who has no registry of his own
// gets none by a command that only changes what is there.
func (e *env) open(ctx context.Context, command string) (*registry.Registry, error) {
	verb, _, _ := strings.Cut(command, " ")
	if dir, err := e.registryDir(); err != nil {
		return nil, err
	} else if _, err := os.Stat(dir); err != nil && e.ownRegistry() && verb != "add" && verb != "build" && verb != "import" && !e.dryRun {
		return nil, fmt.Errorf("%s: this machine's registry is root's: %w", command, fs.ErrPermission)
	}
	if e.dryRun {
		return e.reader(ctx)
	}
	return e.writer(ctx, command)
}

// kernels are the releases that a command works on: those named by -k, or all.
func (e *env) kernels(names []string) ([]kernel.Release, error) {
	if len(names) == 0 {
		return kernel.Find(e.root)
	}
	var all []kernel.Release
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		k, err := kernel.Get(e.root, name)
		if err != nil {
			return nil, err
		}
		all = append(all, k)
	}
	return all, nil
}

// checkKernels refuses a release that is misspelt: no kernel of this machine, and none of
// those that the registry has rows for.
func (e *env) checkKernels(names, known []string) error {
	for _, name := range names {
		if name != "" && slices.Contains(known, name) {
			continue
		}
		if _, err := kernel.Get(e.root, name); err != nil {
			return err
		}
	}
	return nil
}

// running is the kernel that load and unload speak to.
func (e *env) running() (string, error) {
	if !e.root.IsHost() {
		return "", usagef("a module is loaded into the running kernel: --root %s has none", e.root)
	}
	return kernel.Running()
}
