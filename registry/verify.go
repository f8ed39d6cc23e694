package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
)

// Drift is one way in which /lib/modules is not what the install rows say.
type Drift struct {
	Kind    string `json:"kind"` // missing, modified, foreign, or unindexed: modules.dep does not name it
	Release string `json:"release"`
	Path    string `json:"path"` // inside the root
	Module  string `json:"module,omitempty"`
	Package string `json:"package,omitempty"` // "" for a foreign file
	Version string `json:"version,omitempty"`
}

// Verify reads what is installed under root and compares it with the rows, file
// by file. It changes nothing.
func (r *Registry) Verify(root kernel.Root) ([]Drift, error) {
	rows, err := r.Installs()
	if err != nil {
		return nil, err
	}
	var releases []string
	for _, i := range rows {
		releases = append(releases, i.Release)
	}
	dirs, err := root.ReadDir("/lib/modules")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("verify installs: %w", err)
	}
	for _, d := range dirs {
		if d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
			releases = append(releases, d.Name())
		}
	}
	slices.Sort(releases)
	releases = slices.Compact(releases)
	slices.SortStableFunc(releases, kernel.Compare)
	var drifts []Drift
	for _, release := range releases {
		mine := slices.DeleteFunc(slices.Clone(rows), func(i Install) bool { return i.Release != release })
		found, err := verifyRelease(root, release, mine)
		if err != nil {
			return nil, fmt.Errorf("verify installs for %s: %w", release, err)
		}
		drifts = append(drifts, found...)
	}
	return drifts, nil
}

func verifyRelease(root kernel.Root, release string, rows []Install) ([]Drift, error) {
	var drifts []Drift
	add := func(kind string, i Install) {
		drifts = append(drifts, Drift{kind, release, i.Path, i.Module, i.Package, i.Version})
	}
	m, err := openModules(root, release)
	var gone *NoModulesError
	if errors.As(err, &gone) {
		for _, i := range rows {
			add("missing", i)
		}
		return drifts, nil
	} else if err != nil {
		return nil, err
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
		digest, _, err := m.digest(file)
		switch {
		case err != nil:
			return nil, err
		case digest == "":
			add("missing", i)
		case digest != i.Digest:
			add("modified", i)
		}
		if digest != "" && index[i.Module] != path.Join(ourDir, file) {
			add("unindexed", i)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		add("foreign", Install{Path: m.path(name)})
	}
	return drifts, nil
}
