package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/loader"
	"kmodctl/registry"
)

// finder finds modules for one kernel: the registry's first, then the kernel's own.
type finder struct {
	release string
	index   *loader.Index
	kept    *kept
	reg     *registry.Registry
	live    *loader.State // nil unless the kernel is the one that runs
}

// namedModule is what a name or a file on the command line means.
type namedModule struct {
	*ko.Info
	path string // "" when it is built in
	pkg  string // NAME@VERSION when it is the registry's
	live string // "live", "coming", "going", or anotherBuild; "" when it is not loaded
}

// anotherBuild is said of a live module that did not come from the file at hand.
const anotherBuild = "live is another build"

// finder opens what a look at the modules of a kernel needs; "" is the default one.
func (e *env) finder(ctx context.Context, release string) (*finder, error) {
	var err error
	if release == "" {
		release, err = e.defaultRelease()
	} else {
		_, err = kernel.Get(e.root, release)
	}
	if err != nil {
		return nil, err
	}
	f := &finder{release: release}
	f.index = e.index(release)
	if f.reg, err = e.reader(ctx); err != nil {
		return nil, err
	}
	if f.kept, err = e.modulesOf(f.reg, release); err != nil {
		f.close()
		return nil, err
	}
	if running, err := kernel.Running(); err == nil && running == release && e.root.IsHost() {
		f.live, _ = loader.PeekState(e.root) // a kernel without modules has none that are live
	}
	return f, nil
}

func (f *finder) close() { f.reg.Close() }

// find takes a module's name, or the path of its file. Without a finder there is nothing but files. The error is a
// *loader.NotFoundError when the kernel has no such module.
func (f *finder) find(name string) (namedModule, error) {
	if isModuleFile(name) {
		return f.file(name)
	}
	path, ok := f.kept.find(name)
	if !ok {
		path, _, ok = f.index.Find(name)
	}
	if ok {
		return f.file(path)
	}
	text, err := os.ReadFile(filepath.Join(f.index.Dir, "modules.builtin.modinfo"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return namedModule{}, fmt.Errorf("read built-in modules: %w", err)
	}
	info := ko.Builtin(text, name)
	if info == nil && f.index.Builtin(name) { // before 5.2 the kernel said no more
		info = &ko.Info{Name: ko.NormalizeName(name)}
	}
	if info == nil {
		return namedModule{}, &loader.NotFoundError{Name: name, Release: f.release, Near: f.index.Near(name)}
	}
	return namedModule{Info: info}, nil
}

// file reads the file of a module and adds what is known of the module of that name.
func (f *finder) file(path string) (namedModule, error) {
	info, err := ko.Open(path)
	if err != nil {
		return namedModule{}, err
	}
	m := namedModule{Info: info, path: path}
	if f == nil {
		return m, nil
	}
	if live, ok := f.live.Find(info.Name); ok {
		m.live = live.State
		if live.BuildID != "" && info.BuildID != "" && live.BuildID != info.BuildID {
			m.live = anotherBuild
		}
	}
	if ours, ok := f.kept.modules[info.Name]; ok && (ours.BuildID == info.BuildID || ours.BuildID == "") {
		m.pkg = ours.Package + "@" + ours.Version
	}
	return m, nil
}

// defaultRelease is the running kernel's where it has modules, else the newest
// kernel of the machine.
func (e *env) defaultRelease() (string, error) {
	all, err := kernel.Find(e.root)
	if err != nil {
		return "", err
	}
	name := ""
	for _, k := range all {
		if k.Running && k.Modules != "" {
			return k.Name, nil
		}
		if k.Modules != "" {
			name = k.Name
		}
	}
	if name == "" {
		return "", fmt.Errorf("find kernels: none in /lib/modules of %s", e.root)
	}
	return name, nil
}
