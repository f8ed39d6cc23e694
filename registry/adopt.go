package registry

import (
	"encoding/json"
	"maps"
	"path"
	"slices"
	"time"

	"kmodctl/internal/kernel"
)

// adoptAll makes rows of the modules in our folders that have none.
func (b *rebuilder) adoptAll() error {
	dirs, err := b.root.ReadDir("/lib/modules")
	if err != nil {
		return ignoreAbsent(err)
	}
	for _, d := range dirs {
		m, err := openModules(b.root, d.Name())
		if ofDisk(err) {
			return err
		} else if err != nil {
			continue
		}
		err = b.adopt(m)
		m.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// adopt makes rows of the modules of a release that have none. A file that is another
// artifact's than its row says is of a change that the rows know nothing of: an intent goes on
// with it, or takes it back.
func (b *rebuilder) adopt(m *modules) error {
	rows, err := installRows(b.tx, m.release)
	if err != nil {
		return err
	}
	names, err := b.filesOf(m)
	if err != nil {
		return err
	}
	here := map[string]Install{}     // by name; only Digest and Mtime
	strays := map[string][]Install{} // files that have no row which is right, by package
	for _, name := range names {
		digest, mtime, err := m.digest(name)
		if ofDisk(err) {
			return err
		} else if err != nil {
			continue
		}
		here[name] = Install{Digest: digest, Mtime: mtime}
		right := func(i Install) bool { return i.Path == m.path(name) && i.Digest == digest }
		if a, ok := owner(b.byAge, m.release, name, digest); ok && !slices.ContainsFunc(rows, right) {
			for _, i := range m.rowsOf(a, here) {
				if i.Path == m.path(name) {
					strays[a.Package] = append(strays[a.Package], i)
				}
			}
		}
	}
	in := intent{Release: m.release, Op: OpInstall}
	var adopted []Install
	for _, pkg := range slices.Sorted(maps.Keys(strays)) {
		had := slices.DeleteFunc(slices.Clone(rows), func(i Install) bool { return i.Package != pkg })
		target := m.rowsOf(b.standing(pkg, m.release, had, here), here)
		named := func(i Install) bool {
			same := func(t Install) bool { return t.Path == i.Path }
			return slices.ContainsFunc(slices.Concat(had, target), same)
		}
		had = append(had, slices.DeleteFunc(strays[pkg], named)...)
		adopted = append(adopted, target...)
		if len(had) > 0 {
			in.Packages, in.Before, in.Target = append(in.Packages, pkg), append(in.Before, had...), append(in.Target, target...)
			continue
		}
		for _, i := range target {
			if err := b.insert("install", "release, module, path, package, version, artifact, digest, size, at, mtime",
				i.Release, i.Module, i.Path, i.Package, i.Version, i.Artifact, i.Digest, i.Size, i.At.UnixNano(), i.Mtime); err != nil {
				return err
			}
		}
	}
	if in.Originals, err = m.findOriginals(adopted); err != nil {
		return err
	}
	for _, o := range in.Originals {
		if err := b.insert("original", "release, module, path, digest, size", o.Release, o.Module, o.Path, o.Digest, o.Size); err != nil {
			return err
		}
	}
	if len(in.Packages) == 0 {
		return nil
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return b.insert("intent", "release, done, body", in.Release, 0, string(body))
}

// filesOf lists, below the release's folder, what is in the folders that artifacts for it are installed in.
func (b *rebuilder) filesOf(m *modules) (names []string, err error) {
	var rows []Install
	for _, a := range b.byAge {
		if a.Release == m.release {
			rows = append(rows, m.rowsOf(a, nil)...)
		}
	}
	if err := m.use(rows); err != nil {
		return nil, err
	}
	for _, d := range m.places {
		files, err := readNames(m.tree, d)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			names = append(names, path.Join(d, file))
		}
	}
	slices.Sort(names)
	return names, nil
}

// rowsOf are the rows of an artifact whose files are those that are here, or missing.
func (m *modules) rowsOf(a Artifact, here map[string]Install) (rows []Install) {
	for _, mod := range a.Modules {
		i := Install{Release: m.release, Module: mod.Name, Path: m.path(mod.name()), Package: a.Package, Version: a.Version,
			Artifact: a.Digest, Digest: mod.Digest, Size: mod.Size, At: time.Now()}
		if file := here[mod.name()]; file.Digest == mod.Digest {
			i.Mtime = file.Mtime
		}
		rows = append(rows, i)
	}
	return rows
}

// standing is the artifact of a package that is installed: the one whose files are all here,
// of several the one with the most; else the one that rows name; else the newest that has a file here.
func (b *rebuilder) standing(pkg, release string, rows []Install, here map[string]Install) Artifact {
	var named, whole, part Artifact
	for _, a := range b.byAge {
		if a.Package != pkg || a.Release != release {
			continue
		}
		if slices.ContainsFunc(rows, func(i Install) bool { return i.Artifact == a.Digest }) {
			named = a
		}
		absent := func(m Module) bool { return here[m.name()].Digest != m.Digest }
		switch {
		case !slices.ContainsFunc(a.Modules, absent):
			if len(a.Modules) > len(whole.Modules) || len(a.Modules) == len(whole.Modules) && whole.Digest != named.Digest {
				whole = a
			}
		case slices.ContainsFunc(a.Modules, func(m Module) bool { return !absent(m) }):
			part = a
		}
	}
	switch {
	case whole.Digest != "":
		return whole
	case named.Digest != "":
		return named
	}
	return part
}

// owner finds the newest artifact for a release that has a file of that name, below the release's folder, and digest.
func owner(byAge []Artifact, release, name, digest string) (Artifact, bool) {
	for _, a := range slices.Backward(byAge) {
		of := func(m Module) bool { return m.name() == name && m.Digest == digest }
		if a.Release == release && slices.ContainsFunc(a.Modules, of) {
			return a, true
		}
	}
	return Artifact{}, false
}

// recognize tells a module whose row was lost from a file that is not ours.
// records are those among the blobs, oldest first.
func (r *Registry) recognize(root kernel.Root, d Drift, records func() ([]Artifact, error)) (Drift, error) {
	m, err := openModules(root, d.Release)
	if err != nil || moduleName(d.Path) == "" {
		return d, nil
	}
	defer m.Close()
	digest, _, err := m.digest(m.name(d.Path))
	if err != nil {
		return d, nil
	}
	all, err := records()
	if err != nil {
		return d, err
	}
	a, ok := owner(all, d.Release, m.name(d.Path), digest)
	if !ok {
		return d, nil
	}
	last, err := r.Attempts(a.Package, d.Release, 0)
	if err != nil {
		return d, err
	}
	i := slices.IndexFunc(last, func(l Attempt) bool { return l.Places() && l.Outcome == OutcomeOK })
	if i < 0 || last[i].Op != OpUninstall { // else it was put there since
		return Drift{Kind: DriftMissing, Object: ObjectDatabase, Release: d.Release, Path: d.Path, Package: a.Package, Version: a.Version,
			Why: "registry.db has lost the row of this module"}, nil
	}
	return d, nil
}
