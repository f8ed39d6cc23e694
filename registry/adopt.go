package registry

import (
	"encoding/json"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
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
	here := map[string]modFile{}     // by their names without compression
	strays := map[string][]Install{} // files that have no row which is right, by package
	for _, name := range names {
		f, err := m.file(name)
		if ofDisk(err) {
			return err
		} else if err != nil {
			continue
		}
		right := slices.ContainsFunc(rows, func(i Install) bool { return i.Path == f.Path && i.Digest == f.Digest })
		if _, other := here[f.plain]; right || !other { // of a change that was cut off there may be two
			here[f.plain] = f
		}
		if a, mod, ok := b.owner(b.byAge, m.release, f); ok && !right {
			strays[a.Package] = append(strays[a.Package], f.row(a, mod))
		}
	}
	in := intent{Release: m.release, Op: OpInstall}
	var adopted []Install
	for _, pkg := range slices.Sorted(maps.Keys(strays)) {
		had := slices.DeleteFunc(slices.Clone(rows), func(i Install) bool { return i.Package != pkg })
		target := b.rowsOf(m, b.standing(pkg, m.release, had, here), had, here)
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
			if err := b.insert("install", installColumns, i.columns()...); err != nil {
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
			rows = append(rows, b.rowsOf(m, a, nil, nil)...)
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

// rowsOf are the rows of an artifact whose files are those that are here, or missing; of those had tells.
func (b *rebuilder) rowsOf(m *modules, a Artifact, had []Install, here map[string]modFile) (rows []Install) {
	for _, mod := range a.Modules {
		file := here[mod.name()]
		was := slices.IndexFunc(had, func(i Install) bool { return i.Artifact == a.Digest && i.Module == mod.Name })
		switch {
		case b.is(file, mod):
			rows = append(rows, file.row(a, mod))
		case was >= 0:
			rows = append(rows, had[was])
		default:
			missing := modFile{Install: Install{Release: m.release, Path: m.path(mod.name()), Digest: mod.Digest, Size: mod.Size}}
			rows = append(rows, missing.row(a, mod))
		}
	}
	return rows
}

// standing is the artifact of a package that is installed: the one whose files are all here,
// of several the one with the most; else the one that rows name; else the newest that has a file here.
func (b *rebuilder) standing(pkg, release string, rows []Install, here map[string]modFile) Artifact {
	var named, whole, part Artifact
	for _, a := range b.byAge {
		if a.Package != pkg || a.Release != release {
			continue
		}
		if slices.ContainsFunc(rows, func(i Install) bool { return i.Artifact == a.Digest }) {
			named = a
		}
		absent := func(m Module) bool { return !b.is(here[m.name()], m) }
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

// owner finds the newest artifact for a release that has a file of that name, compressed or not, and content.
func (r *Registry) owner(byAge []Artifact, release string, f modFile) (Artifact, Module, bool) {
	for _, a := range slices.Backward(byAge) {
		of := func(m Module) bool { return m.name() == f.plain && r.is(f, m) }
		if i := slices.IndexFunc(a.Modules, of); a.Release == release && i >= 0 {
			return a, a.Modules[i], true
		}
	}
	return Artifact{}, Module{}, false
}

// modFile is a file that may be a module of ours.
type modFile struct {
	Install        // its Release, Path, Digest, Size, Mtime and Signer, which can be no more than SignerUnknown
	plain   string // its name below the release's folder, without what compression adds
	image   string // SHA-256 in hex of the module without compression and signature
}

// file reads a file below the release's folder.
func (m *modules) file(name string) (f modFile, err error) {
	f.Release, f.Path = m.release, m.path(name)
	f.plain = strings.TrimSuffix(name, ko.Suffix(f.Compression()))
	if f.Digest, f.Mtime, err = m.digest(name); err != nil || checkDigest(f.Digest) != nil {
		return f, err
	}
	src, err := m.tree.Open(name)
	if err != nil {
		return f, err
	}
	defer src.Close()
	plain, err := plainFile(src)
	if err != nil {
		return f, err
	}
	data, err := io.ReadAll(plain)
	if err != nil {
		return f, err
	}
	f.Size = int64(len(data))
	if is, err := undress(data); err == nil {
		f.image = hexOf(is.image)
		if is.signed {
			f.Signer = SignerUnknown
		}
	}
	return f, nil
}

// is reports whether a file is a module, in whatever form it is installed.
func (r *Registry) is(f modFile, m Module) bool {
	if f.Digest == m.Digest || f.image == m.Digest {
		return f.Digest != ""
	}
	if f.Signer == "" && f.Compression() == "" { // as it was built, and that was another
		return false
	}
	own, err := r.undressed(m.Digest) // what was adopted may be signed itself
	return err == nil && f.image == hexOf(own.image)
}

// row is the install row of a file that is a module of an artifact.
func (f modFile) row(a Artifact, m Module) Install {
	i := f.Install
	i.Module, i.Package, i.Version, i.Artifact, i.At = m.Name, a.Package, a.Version, a.Digest, time.Now()
	return i
}

// recognize tells a module whose row was lost from a file that is not ours.
// records are those among the blobs, oldest first.
func (r *Registry) recognize(root kernel.Root, d Drift, records func() ([]Artifact, error)) (Drift, error) {
	m, err := openModules(root, d.Release)
	if err != nil || moduleName(d.Path) == "" {
		return d, nil
	}
	defer m.Close()
	f, err := m.file(m.name(d.Path))
	if err != nil {
		return d, nil
	}
	all, err := records()
	if err != nil {
		return d, err
	}
	a, _, ok := r.owner(all, d.Release, f)
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
