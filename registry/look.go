package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// Look compares what is installed under root with the rows. A file that has size and
// mtime of its row is taken for unmodified; every other one is read. It
// changes nothing.
func (r *Registry) Look(root kernel.Root) ([]Drift, error) {
	rows, err := r.Installs()
	if err != nil {
		return nil, err
	}
	return LookAt(root, rows, true)
}

// LookAt is Look at the files of some rows of Installs. When they are all that there are,
// it can tell of foreign files too.
func LookAt(root kernel.Root, rows []Install, all bool) ([]Drift, error) {
	return compare(root, rows, all, (*modules).unchanged)
}

// ReadAt is LookAt that reads every file.
func ReadAt(root kernel.Root, rows []Install) ([]Drift, error) {
	return compare(root, rows, false, unread)
}

// unread knows nothing of a file that has not been read.
func unread(*modules, Install) bool { return false }

// compare finds the drifts of installed files. same spares the reading of a row's file.
func compare(root kernel.Root, rows []Install, all bool, same func(*modules, Install) bool) ([]Drift, error) {
	mine := map[string][]Install{}
	for len(rows) > 0 { // they are sorted by release
		n := slices.IndexFunc(rows, func(i Install) bool { return i.Release != rows[0].Release })
		if n < 0 {
			n = len(rows)
		}
		mine[rows[0].Release], rows = rows[:n], rows[n:]
	}
	dirs, err := root.ReadDir("/lib/modules")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("verify installs: %w", err)
	}
	for _, d := range dirs {
		if all && d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
			mine[d.Name()] = slices.Clip(mine[d.Name()]) // a release without rows may have foreign files
		}
	}
	var drifts []Drift
	for _, release := range sortedReleases(mine) {
		found, err := compareRelease(root, release, mine[release], same)
		if err != nil {
			return nil, fmt.Errorf("verify installs for %s: %w", release, err)
		}
		drifts = append(drifts, found...)
	}
	if !all {
		drifts = slices.DeleteFunc(drifts, func(d Drift) bool { return d.Kind == DriftForeign })
	}
	return drifts, nil
}

func sortedReleases[T any](byRelease map[string]T) []string {
	return slices.SortedFunc(maps.Keys(byRelease), kernel.Compare)
}

func compareRelease(root kernel.Root, release string, rows []Install, same func(*modules, Install) bool) ([]Drift, error) {
	var drifts []Drift
	add := func(kind string, i Install, why string) {
		drifts = append(drifts, Drift{Kind: kind, Object: ObjectInstalled, Release: release, Path: i.Path, Module: i.Module, Package: i.Package, Version: i.Version, Why: why})
	}
	m, err := openModules(root, release)
	if err == nil {
		defer m.Close()
		err = m.use(rows)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, err
	} else if err != nil {
		for _, i := range rows {
			add(DriftMissing, i, err.Error())
		}
		return drifts, nil
	}
	names, err := m.names()
	if err != nil || len(names) == 0 && len(rows) == 0 {
		return nil, err
	}
	index, err := m.indexed()
	if err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	for _, i := range rows {
		ours[m.name(i.Path)] = true
		kind, why := "", ""
		if !same(m, i) {
			kind, why = m.judge(i)
		}
		if kind != "" {
			add(kind, i, why)
		}
		if kind != DriftMissing && index[i.Module] != m.name(i.Path) {
			add(DriftUnindexed, i, "modules.dep does not name it")
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if !ours[name] {
			add(DriftForeign, Install{Path: m.path(name)}, "kmodctl did not put it there")
		}
	}
	return drifts, nil
}

// names lists what is ours by its name, below the release's folder: all in our folder, and temporary names
// in the others.
func (m *modules) names() (all []string, err error) {
	for _, d := range m.places {
		names, err := readNames(m.tree, d)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if d == ourDir || strings.HasPrefix(name, tempName) {
				all = append(all, path.Join(d, name))
			}
		}
	}
	return all, nil
}

// unchanged reports whether size and mtime of a row's file are as they were when it was installed.
func (m *modules) unchanged(i Install) bool {
	if m.dir == nil {
		var err error
		if m.dir, err = m.tree.Open("."); err != nil {
			return false
		}
	}
	var st unix.Stat_t // os.Root's own would make ten thousand objects
	err := unix.Fstatat(int(m.dir.Fd()), m.name(i.Path), &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && i.Mtime != 0 && st.Mtim.Nano() == i.Mtime && st.Size == i.Size
}

// judge reads a row's file: the kind of its drift, "" when it is as it was installed.
func (m *modules) judge(i Install) (kind, why string) {
	digest, _, err := m.digest(m.name(i.Path))
	switch {
	case err != nil:
		return DriftModified, err.Error()
	case digest == "":
		return DriftMissing, ""
	case digest != i.Digest:
		return DriftModified, "its sha256 is " + digest
	}
	return "", ""
}
