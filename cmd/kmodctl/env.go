package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

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
	out, err io.Writer
}

// setUp reads the global flags, before any command runs.
func (e *env) setUp(c *cli.Context) error {
	root, err := filepath.Abs(c.String("root"))
	if err != nil {
		return err
	}
	if info, err := os.Stat(root); err != nil {
		return fmt.Errorf("open root: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("open root %s: not a folder", root)
	}
	e.root = kernel.Root(root)
	e.json, e.dryRun = c.Bool("json"), c.Bool("dry-run")
	e.quiet, e.verbose = c.Bool("quiet"), c.Bool("verbose")
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

// document prints v as the JSON document of a command, named and versioned by schema.
func (e *env) document(schema string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	head := fmt.Sprintf("{\n  \"schema\": %q", "kmodctl."+schema+"/1")
	if body := strings.TrimPrefix(string(text), "{"); body != "}" {
		head += "," + body
	} else {
		head += "\n}"
	}
	_, err = fmt.Fprintln(e.out, head)
	return err
}

// system is where the registry of the machine is, inside its root.
const system = "/var/lib/kmodctl"

// registryDir is the registry that this user writes: the machine's for root and
// below a --root, the user's own otherwise.
func (e *env) registryDir() (string, error) {
	if e.root.IsHost() && os.Getuid() != 0 {
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
	if dir, err := e.root.Path(system); err == nil {
		return dir, nil
	}
	// It does not exist yet: the deepest folder that does may be a link.
	for below, rest := filepath.Dir(system), filepath.Base(system); ; below, rest = filepath.Dir(below), filepath.Join(filepath.Base(below), rest) {
		dir, err := e.root.Path(below)
		if err == nil {
			return filepath.Join(dir, rest), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || below == "/" {
			return "", fmt.Errorf("find registry: %w", err)
		}
	}
}

// reader opens the registry to look at: the user's own if there is one, else the
// machine's.
func (e *env) reader(ctx context.Context) (*registry.Registry, error) {
	dir, err := e.registryDir()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil && e.root.IsHost() && os.Getuid() != 0 {
		dir = system
	}
	return registry.Open(ctx, dir)
}

// writer opens the registry to change it, waiting for another kmodctl to finish.
func (e *env) writer(ctx context.Context, command string) (*registry.Registry, error) {
	dir, err := e.registryDir()
	if err != nil {
		return nil, err
	}
	reg, err := registry.OpenWriter(ctx, dir, e.root, registry.WriterOptions{
		Command: "kmodctl " + command,
		Waiting: func(holder string) { e.say("waiting for %s", holder) },
	})
	if err != nil {
		return nil, err
	}
	for _, line := range reg.Recovered() {
		e.changed("recovered: %s", line)
	}
	return reg, nil
}

// open is writer, or reader for a dry run.
func (e *env) open(ctx context.Context, command string) (*registry.Registry, error) {
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
	for _, name := range names {
		k, err := kernel.Get(e.root, name)
		if err != nil {
			return nil, err
		}
		all = append(all, k)
	}
	return all, nil
}

// running is the kernel that load and unload speak to.
func (e *env) running() (string, error) {
	if !e.root.IsHost() {
		return "", usagef("a module is loaded into the running kernel: --root %s has none", e.root)
	}
	return kernel.Running()
}
