package main

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// dkmsModule is one version of a module as `dkms status` tells of it.
type dkmsModule struct {
	name, version string
	broken        bool // its source is gone, and we have no copy of it
	builds        []dkmsBuild
	failed        string // digest of the log of the last build that failed, and was not done over
}

// dkmsBuild is what was built of it for a kernel.
type dkmsBuild struct {
	dkmsTarget
	installed bool
	originals bool // there are other files of these names, which load again after an uninstall
	missing   bool // not all that was to be built is there
	differs   bool // what is installed is not what was built, or not all of it
	gone      bool // no file of what was installed is there: somebody has removed the kernel

	artifact registry.Artifact  // of what the registry knows
	rows     []registry.Install // of that artifact's package, version and kernel
}

// line is what DKMS 3.4 prints of a build.
func (m dkmsModule) line(b dkmsBuild) string {
	text := m.name + "/" + m.version + ", " + b.release + ", " + b.arch + ": built"
	if b.installed && !b.gone {
		text = strings.TrimSuffix(text, "built") + "installed"
	}
	if b.originals {
		text += " (Original modules exist)"
	}
	switch {
	case b.missing:
		text += " (Built modules are missing in the kernel modules folder)"
	case b.differs && b.installed && !b.gone:
		text += " (Differences between built and installed modules)"
	}
	return text
}

// dkmsStatus are the lines of `dkms status`: scripts take them apart, so they are those of DKMS 3.4 to the
// letter, in the order of its shell patterns. broken are the modules whose source is gone.
func dkmsStatus(modules []dkmsModule, c dkmsCall) (lines, broken []string) {
	slices.SortFunc(modules, func(a, b dkmsModule) int { return cmp.Compare(a.name+"/"+a.version, b.name+"/"+b.version) })
	c.all = false // it asks for all kernels, which is what no -k does
	for _, t := range c.targets("", "") {
		for _, m := range modules {
			if !fits(c.module, m.name) || !fits(c.version, m.version) {
				continue
			}
			if m.broken {
				lines, broken = append(lines, m.name+"/"+m.version+": broken"), append(broken, m.name+"/"+m.version)
				continue
			}
			known := len(lines)
			slices.SortFunc(m.builds, func(a, b dkmsBuild) int { return cmp.Compare(a.release+"/"+a.arch, b.release+"/"+b.arch) })
			for _, b := range m.builds {
				if fits(t.release, b.release) && fits(t.arch, b.arch) {
					lines = append(lines, m.line(b))
				}
			}
			if len(lines) == known {
				lines = append(lines, m.name+"/"+m.version+": added")
			}
		}
	}
	return lines, broken
}

// fits reports whether a name is what was asked for: a shell pattern, or "" for all.
func fits(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return pattern == "" || pattern == name || ok && err == nil
}

// dkmsKnown are the modules that the registry has, each version that came with a dkms.conf.
func (e *env) dkmsKnown(reg *registry.Registry) ([]dkmsModule, error) {
	all, err := reg.Sources()
	if err != nil {
		return nil, err
	}
	var out []dkmsModule
	var names []string
	for _, src := range all {
		if hasConf(src) {
			out, names = append(out, dkmsModule{name: src.Name, version: src.Version}), append(names, src.Name)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	artifacts, err := reg.Artifacts(names...)
	if err != nil {
		return nil, err
	}
	installs, err := reg.Installs(names...)
	if err != nil {
		return nil, err
	}
	originals, err := reg.Originals()
	if err != nil {
		return nil, err
	}
	drift, err := registry.LookAt(e.root, installs, false)
	if err != nil {
		return nil, err
	}
	failures, err := reg.Failures(names...)
	if err != nil {
		return nil, err
	}
	for _, f := range failures {
		if i := slices.IndexFunc(out, func(m dkmsModule) bool { return m.name == f.Package && m.version == f.Version }); i >= 0 {
			out[i].failed = f.Log
		}
	}
	arch, err := e.archOf()
	if err != nil {
		return nil, err
	}
	placed := byTarget(installs)
	for _, a := range artifacts {
		i := slices.IndexFunc(out, func(m dkmsModule) bool { return m.name == a.Package && m.version == a.Version })
		if i < 0 {
			continue
		}
		b := dkmsBuild{dkmsTarget: dkmsTarget{a.Release, arch(a.Release)}, artifact: a}
		for _, row := range placed[target{a.Package, a.Release}] {
			if row.Version == a.Version {
				b.rows = append(b.rows, row)
			}
		}
		b.installed = len(b.rows) > 0
		b.originals = b.installed && slices.ContainsFunc(originals, func(o registry.Original) bool {
			return o.Release == a.Release && slices.ContainsFunc(b.rows, func(r registry.Install) bool { return r.Module == o.Module })
		})
		b.differs = len(b.rows) != len(a.Modules) || slices.ContainsFunc(b.rows, func(r registry.Install) bool {
			built := func(m registry.Module) bool {
				return m.Name == r.Module && (m.Digest == r.Digest || r.Artifact == a.Digest)
			}
			return !slices.ContainsFunc(a.Modules, built)
		}) || slices.ContainsFunc(drift, func(d registry.Drift) bool {
			return d.Package == a.Package && d.Release == a.Release
		})
		b.gone = b.installed && !slices.ContainsFunc(b.rows, func(r registry.Install) bool {
			return !slices.ContainsFunc(drift, func(d registry.Drift) bool { return d.Kind == registry.DriftMissing && d.Path == r.Path })
		})
		out[i].builds = append(out[i].builds, b)
	}
	return out, nil
}

// archOf returns what says of a kernel for which architecture it is, as DKMS calls it: uname -m.
func (e *env) archOf() (func(release string) string, error) {
	kernels, err := kernel.Find(e.root)
	if err != nil {
		return nil, err
	}
	machine, err := kernel.Machine()
	return func(release string) string {
		i := slices.IndexFunc(kernels, func(k kernel.Release) bool { return k.Name == release })
		if i < 0 || kernels[i].Arch == "" {
			return machine
		}
		return kernels[i].Arch
	}, err
}
