package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kmodctl/internal/headers"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// givenHeaders are what build --headers names: packages, which are unpacked together, and folders.
type givenHeaders struct {
	packages headers.Packages
	folders  []string // absolute
	names    []string // of all, as an artifact keeps them
}

// String names what was given.
func (g givenHeaders) String() string { return strings.Join(g.names, ", ") }

func openHeaders(paths []string) (given givenHeaders, err error) {
	var files []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return given, fmt.Errorf("read headers: %w", err)
		}
		if path, err = filepath.Abs(path); err != nil {
			return given, err
		}
		if info.IsDir() {
			given.folders = append(given.folders, path)
		} else {
			files = append(files, path)
		}
		given.names = append(given.names, filepath.Base(path))
	}
	slices.Sort(given.names)
	given.packages, err = headers.Open(files)
	return given, err
}

// kernels are those that the headers are for, as the machine has them: where it has a modules folder
// of one, modules are installed. done must be called after the last build.
func (g givenHeaders) kernels(ctx context.Context, e *env, reg *registry.Registry, releases []string) (all []kernel.Release, done func(), err error) {
	done = func() {}
	folders := g.folders
	if len(g.packages) > 0 {
		var dir string
		dir, done, err = reg.Headers(g.packages.Digest(), func(dir string) error { return g.unpack(ctx, e, dir) })
		if err != nil {
			return nil, nil, err
		}
		folders = append(slices.Clone(folders), dir)
	}
	if all, err = e.kernelsIn(folders); err == nil {
		all, err = only(all, releases)
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	return all, done, nil
}

// unpack unpacks the packages, which must be all that the headers of their kernels consist of.
func (g givenHeaders) unpack(ctx context.Context, e *env, dir string) error {
	e.say("unpacking %s", g)
	if err := g.packages.Unpack(ctx, dir); err != nil {
		return err
	}
	all, err := kernel.Find(kernel.Root(dir))
	if err == nil {
		_, _, err = fit(g, all, true)
	}
	return err
}

// kernelsIn are the kernels that folders have headers for: each the root of a machine, or a build tree.
func (e *env) kernelsIn(folders []string) (all []kernel.Release, err error) {
	for _, folder := range folders {
		var found []kernel.Release
		if _, treeErr := os.Stat(filepath.Join(folder, "Makefile")); treeErr == nil {
			found = make([]kernel.Release, 1)
			found[0], err = kernel.At("/", folder)
		} else {
			found, err = kernel.Find(kernel.Root(folder))
		}
		if err != nil {
			return nil, err
		}
		for _, k := range found {
			if slices.ContainsFunc(all, func(other kernel.Release) bool { return other.Name == k.Name }) {
				return nil, usagef("build: headers for %s are given twice", k.Name)
			}
			here, err := kernel.Get(e.root, k.Name)
			if absent := (*kernel.NotFoundError)(nil); err != nil && !errors.As(err, &absent) {
				return nil, err
			}
			k.Modules, k.Image, k.Running, k.Err = here.Modules, here.Image, here.Running, cmp.Or(k.Err, here.Err)
			all = append(all, k)
		}
	}
	slices.SortFunc(all, func(a, b kernel.Release) int { return kernel.Compare(a.Name, b.Name) })
	return all, nil
}

// only are the kernels that are named, or all when none is.
func only(all []kernel.Release, releases []string) (named []kernel.Release, err error) {
	if len(releases) == 0 {
		return all, nil
	}
	var names []string
	for _, k := range all {
		names = append(names, k.Name)
		if slices.Contains(releases, k.Name) {
			named = append(named, k)
		}
	}
	for _, release := range releases {
		if !slices.Contains(names, release) {
			return nil, &kernel.NotFoundError{Name: release, Near: names}
		}
	}
	return named, nil
}
