package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
)

// Drift is one way in which a machine is not what its registry says.
type Drift struct {
	Kind    string `json:"kind"`   // missing, modified, foreign, stale, gone, loaded-older, or unindexed: modules.dep does not name it
	Object  string `json:"object"` // what drifted: database, blob, installed, original, kernel, artifact or readme
	Release string `json:"release,omitempty"`
	Path    string `json:"path,omitempty"` // inside the root
	Module  string `json:"module,omitempty"`
	Package string `json:"package,omitempty"` // "" for a foreign file
	Version string `json:"version,omitempty"`
	Digest  string `json:"digest,omitempty"` // of a blob or an artifact's record: what it should be
	Why     string `json:"why,omitempty"`
}

// Kinds and objects of a Drift.
const (
	DriftMissing   = "missing"
	DriftModified  = "modified"
	DriftForeign   = "foreign"
	DriftUnindexed = "unindexed"

	ObjectInstalled = "installed"
)

// Look compares what is installed under root with the rows. A file that has size and
// mtime of its row is taken for unmodified; every other one is read. It
// changes nothing.
func (r *Registry) Look(root kernel.Root) ([]Drift, error) {
	return r.compare(root, (*modules).unchanged)
}

// compare finds the drifts of installed files. same spares the reading of a row's file.
func (r *Registry) compare(root kernel.Root, same func(*modules, Install) bool) ([]Drift, error) {
	rows, err := r.Installs()
	if err != nil {
		return nil, err
	}
	mine := map[string][]Install{}
	for _, i := range rows {
		mine[i.Release] = append(mine[i.Release], i)
	}
	dirs, err := root.ReadDir("/lib/modules")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("verify installs: %w", err)
	}
	for _, d := range dirs {
		if d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
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
	if errors.Is(err, fs.ErrPermission) {
		return nil, err
	} else if err != nil {
		for _, i := range rows {
			add(DriftMissing, i, err.Error())
		}
		return drifts, nil
	}
	defer m.Close()
	names, err := readNames(m.tree, ourDir)
	if err != nil || len(names) == 0 && len(rows) == 0 {
		return nil, err
	}
	index, err := m.indexed()
	if err != nil {
		return nil, err
	}
	for _, i := range rows {
		file := path.Base(i.Path)
		names = slices.DeleteFunc(names, func(n string) bool { return n == file })
		kind, why := "", ""
		if !same(m, i) {
			kind, why = m.judge(i)
		}
		if kind != "" {
			add(kind, i, why)
		}
		if kind != DriftMissing && index[i.Module] != path.Join(ourDir, file) {
			add(DriftUnindexed, i, "modules.dep does not name it")
		}
	}
	slices.Sort(names)
	for _, name := range names {
		add(DriftForeign, Install{Path: m.path(name)}, "kmodctl did not put it there")
	}
	return drifts, nil
}

// unchanged reports whether size and mtime of a row's file are as they were when it was installed.
func (m *modules) unchanged(i Install) bool {
	info, err := m.tree.Lstat(path.Join(ourDir, path.Base(i.Path)))
	return err == nil && info.Mode().IsRegular() && i.Mtime != 0 && info.ModTime().UnixNano() == i.Mtime && info.Size() == i.Size
}

// judge reads a row's file: the kind of its drift, "" when it is as it was installed.
func (m *modules) judge(i Install) (kind, why string) {
	digest, _, err := m.digest(path.Base(i.Path))
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
