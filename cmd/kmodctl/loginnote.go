package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// loginNote is what users are shown when they log in, on Debian and Fedora alike (pam_motd(8)): whoever may read it runs nothing
// and waits for nobody. It is there only while there is something to tell; at a boot, hook boot writes it anew.
const loginNote = "/run/motd.d/kmodctl"

// linesAtLogin is how much of it there may be: status has the rest.
const linesAtLogin = 5

// noteForLogin makes the note say what failed last, and which kernel will boot without its modules.
func (e *env) noteForLogin(reg *registry.Registry) error {
	if e.dryRun || e.ownRegistry() {
		return nil
	}
	lines, err := e.troubles(reg)
	if err != nil {
		return err
	}
	dir, err := e.inside(path.Dir(loginNote))
	if err != nil {
		return err
	}
	file := filepath.Join(dir, path.Base(loginNote))
	if len(lines) == 0 {
		return ignoreGone(os.Remove(file))
	}
	text := "kmodctl: " + count(len(lines), "thing") + " that kernels here have no module of, or an older one: kmodctl status\n"
	for i, line := range lines {
		if i == linesAtLogin {
			text += fmt.Sprintf("  and %d more\n", len(lines)-i)
			break
		}
		text += "  " + line + "\n"
	}
	if old, err := os.ReadFile(file); err == nil && string(old) == text {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	temp := filepath.Join(filepath.Dir(dir), ".kmodctl-note") // pam_motd shows all that is in its folder
	if err := os.WriteFile(temp, []byte(text), 0o644); err != nil {
		return errors.Join(err, ignoreGone(os.Remove(temp)))
	}
	return os.Rename(temp, file)
}

// troubles are the builds of the newest versions for kernels that are here which failed last, and the newest kernel, if it
// lacks what the modules that others have need for a build.
func (e *env) troubles(reg *registry.Registry) (lines []string, err error) {
	failures, err := reg.Failures()
	if err != nil {
		return nil, err
	}
	installs, err := reg.Installs()
	if err != nil || len(failures)+len(installs) == 0 {
		return nil, err
	}
	sources, err := newest(reg)
	if err != nil {
		return nil, err
	}
	here, err := e.root.ReadDir("/lib/modules") // every writer asks: the kernels themselves are not looked at
	if err != nil {
		return nil, ignoreGone(err)
	}
	last := ""
	for _, k := range here {
		if kernel.Compare(k.Name(), last) > 0 {
			last = k.Name()
		}
	}
	for _, f := range failures {
		present := slices.ContainsFunc(here, func(k fs.DirEntry) bool { return k.Name() == f.Release })
		now := slices.ContainsFunc(sources, func(s registry.Source) bool { return s.Name == f.Package && s.Version == f.Version })
		if present && now {
			lines = append(lines, fmt.Sprintf("%s %s for %s: %s", f.Package, f.Version, f.Release, classed(f.Class, firstLine(f.Error))))
		}
	}
	var without []string
	has := installedFor(installs, last)
	for _, i := range installs {
		if !slices.Contains(without, i.Package) && !slices.Contains(has, i.Package) {
			without = append(without, i.Package)
		}
	}
	if len(without) > 0 {
		k, err := kernel.Get(e.root, last)
		if err == nil && k.Modules != "" && k.Tree == nil && k.Err == nil {
			lines = append(lines, fmt.Sprintf("%s for %s: %s", strings.Join(without, ", "), last, missingHeaders{k}.what()))
		}
	}
	return lines, nil
}
