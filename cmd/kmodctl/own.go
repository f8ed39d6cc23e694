package main

import (
	"context"
	"path/filepath"
	"strings"

	"kmodctl/internal/ko"
	"kmodctl/loader"
	"kmodctl/registry"
)

// own finds the registry's modules for a load. It opens the registry when it must:
// for a name whose file is not one of the kernel's own, and for one that nobody else
// has.
type own struct {
	*env
	ctx      context.Context
	release  string
	modules  string // the folder of the kernel's modules
	reg      *registry.Registry
	kept     *kept
	packages map[string]bool // those that a module was taken from
	err      error           // why the registry cannot be read
}

// find is a loader.Lookup. A name that the kernel has too is the kernel's, as
// modprobe would load it, unless another module of the same package was taken
// from the registry.
func (o *own) find(module, indexed string) (string, bool) {
	inTree := indexed != "" && strings.HasPrefix(indexed, filepath.Join(o.modules, "kernel")+"/")
	if inTree && !o.packages[o.packageOf(module)] {
		return "", false
	}
	if o.kept == nil && o.err == nil {
		o.open()
	}
	if o.err != nil {
		return "", false
	}
	path, ok := o.kept.find(module)
	if ok {
		o.packages[o.packageOf(module)] = true
	}
	return path, ok
}

func (o *own) open() {
	if o.reg, o.err = o.reader(o.ctx); o.err != nil {
		return
	}
	o.kept, o.err = o.modulesOf(o.reg, o.release)
	o.packages = map[string]bool{}
}

// uninstalled are the registry's modules for the kernel that its index does not have.
func (o *own) uninstalled() (map[string]loader.Uninstalled, error) {
	if o.kept == nil && o.err == nil {
		o.open()
	}
	if o.err != nil {
		return nil, o.err
	}
	found := map[string]loader.Uninstalled{}
	for name := range o.kept.modules {
		path, ok := o.kept.find(name)
		if !ok {
			continue
		}
		if info, err := ko.Open(path); err == nil { // a damaged one is verify's matter
			found[ko.NormalizeName(name)] = loader.Uninstalled{Path: path, Depends: info.Depends}
		}
	}
	return found, nil
}

// packageOf names the package of a module, "" if the registry was not asked or has none.
func (o *own) packageOf(module string) string {
	if o.kept == nil {
		return ""
	}
	return o.kept.modules[ko.NormalizeName(module)].Package
}

// damage says what happened to the installed file of a module that was looked for.
func (o *own) damage(module string) string {
	if o.kept == nil {
		return ""
	}
	return o.kept.damaged[module]
}

func (o *own) close() {
	if o.reg != nil {
		o.reg.Close()
	}
}
