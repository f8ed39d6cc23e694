// Package kabi tells whether a module that was built for one kernel fits another one of the same
// flavour as it is, so that it need not be built anew.
//
// The kernel itself asks for less: on one with CONFIG_MODVERSIONS it compares the CRCs of what a module imports, and
// of module_layout, and no longer minds the release in the vermagic (same_magic, kernel/module/version.c).
// A CRC covers the types that were visible where the symbol is exported. What a module may see besides,
// a Comparison takes from the kernels' BTF.
package kabi

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/internal/vmlinux"
)

// Kernel is what modules see of a kernel. It is read when it is first asked for.
type Kernel struct {
	k       kernel.Release
	symbols func() (map[string]kernel.Symbol, error)
	config  func() (map[string]string, error)
	types   func() (types, error)
}

// Of is the kernel k, which must have a build tree.
func Of(k kernel.Release) *Kernel {
	return &Kernel{k, sync.OnceValues(k.Tree.Symbols),
		sync.OnceValues(func() (map[string]string, error) { return readConfig(k.Tree.ConfigFile) }),
		sync.OnceValues(func() (types, error) { return typesOf(k) })}
}

// Misfit is why a module that was built for another kernel is not used as it is.
type Misfit struct{ Why string }

func (m *Misfit) Error() string { return m.Why }

func misfit(format string, args ...any) error { return &Misfit{fmt.Sprintf(format, args...)} }

// Comparison is of a kernel that modules were built for with another one.
type Comparison struct {
	old, new *Kernel
	changed  func() (before types, changed map[string]bool, err error)
}

// Compare begins a comparison; nothing is read yet.
func Compare(old, new *Kernel) *Comparison {
	c := &Comparison{old: old, new: new}
	type result struct {
		before  types
		changed map[string]bool
	}
	once := sync.OnceValues(func() (result, error) {
		before, now, err := both(old.types, new.types)
		return result{before, before.changed(now)}, err
	})
	c.changed = func() (types, map[string]bool, error) {
		r, err := once()
		return r.before, r.changed, err
	}
	return c
}

// Fits compares what the modules of a package have of the old kernel with what the new one has: the configuration,
// the symbols that they import with their CRCs and kinds of export, struct module, and every type that an imported
// function leads to. The error is a *Misfit when they differ or cannot be compared, else that of reading a file.
func (c *Comparison) Fits(modules []*ko.Info) error {
	if err := c.sameConfig(); err != nil {
		return err
	}
	own := map[string]ko.Export{}
	for _, m := range modules {
		for _, e := range m.Exports {
			own[e.Name] = e
		}
	}
	for _, m := range modules {
		if err := c.sameSymbols(m, own); err != nil {
			return err
		}
	}
	for _, m := range modules {
		if err := c.sameTypes(m); err != nil {
			return err
		}
	}
	return nil
}

// both is what there is of the old and the new kernel.
func both[T any](old, new func() (T, error)) (before, now T, err error) {
	if before, err = old(); err == nil {
		now, err = new()
	}
	return before, now, err
}

// ownOptions differ between any two kernels and change no code.
var ownOptions = []string{"CONFIG_BUILD_SALT", "CONFIG_VERSION_SIGNATURE"}

func (c *Comparison) sameConfig() error {
	before, now, err := both(c.old.config, c.new.config)
	if err != nil {
		return err
	}
	both := maps.Clone(before)
	maps.Copy(both, now)
	for _, name := range slices.Sorted(maps.Keys(both)) {
		if before[name] != now[name] && !slices.Contains(ownOptions, name) {
			return misfit("%s differs", name)
		}
	}
	return nil
}

// sameSymbols looks at what a module imports; own are the exports of its package.
func (c *Comparison) sameSymbols(m *ko.Info, own map[string]ko.Export) error {
	before, now, err := both(c.old.symbols, c.new.symbols)
	if err != nil {
		return err
	}
	layout, has := m.ModuleLayoutCRC()
	if !has {
		return misfit("%s has no symbol CRCs (CONFIG_MODVERSIONS)", m.Name)
	}
	for _, i := range append([]ko.Import{{Name: "module_layout", CRC: layout}}, m.Imports...) {
		was, known := before[i.Name]
		is, has := now[i.Name]
		e, ours := own[i.Name]
		switch {
		case ours && e.CRC == i.CRC && !known && !has:
		case i.Weak && !known && !has:
		case !known:
			return misfit("%s imports %s, which %s does not export", m.Name, i.Name, c.old.k.Name)
		case !has:
			return misfit("it does not export %s", i.Name)
		case was.CRC != i.CRC || is.CRC != i.CRC:
			return misfit("the CRC of %s differs", i.Name)
		case was != is:
			return misfit("it exports %s otherwise", i.Name)
		}
	}
	return nil
}

func (c *Comparison) sameTypes(m *ko.Info) error {
	before, changed, err := c.changed()
	if err != nil || len(changed) == 0 {
		return err
	}
	if changed["struct module"] {
		return misfit("the layout of struct module differs")
	}
	for _, i := range m.Imports {
		for _, from := range []string{"func " + i.Name, "var " + i.Name} {
			if to := before.reaches(from, changed); to != "" {
				return misfit("%s, to which %s leads, differs", to, i.Name)
			}
		}
	}
	return nil
}

// readConfig reads the lines of a .config by their names.
func readConfig(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	options := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, "="); ok && strings.HasPrefix(name, "CONFIG_") {
			options[name] = strings.TrimSpace(value)
		}
	}
	return options, nil
}

// typesOf reads a kernel's types: from vmlinux in its build tree, else from its vmlinuz. (What the running kernel shows in /sys may be
// of another build with the same release.)
func typesOf(k kernel.Release) (types, error) {
	files := []string{filepath.Join(k.Tree.Host, "vmlinux")}
	if k.Image != "" {
		image, err := k.Root.Path(k.Image)
		if err != nil {
			return nil, err
		}
		files = append(files, image)
	}
	for _, file := range files {
		spec, err := vmlinux.ReadBTF(file)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, vmlinux.ErrNoBTF), errors.Is(err, vmlinux.ErrCompression):
		case err != nil:
			return nil, err
		default:
			return readTypes(spec)
		}
	}
	return nil, misfit("types cannot be compared: no vmlinuz with BTF is here for %s", k.Name)
}
