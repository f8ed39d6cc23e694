package build

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// prepareCopy gives the copy to the build user and removes .ko files that came
// with the source: what is found after make must be make's.
func prepareCopy(dir string, w wall) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() && filepath.Ext(path) == ".ko" {
			return os.Remove(path)
		}
		if w.Caller {
			return nil
		}
		return os.Lchown(path, w.UID, w.GID)
	})
}

// collect finds the .ko of every module of the manifest, - and _ being the same.
func (r *run) collect() ([]Built, error) {
	root, err := os.OpenRoot(r.Source)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var built []Built
	var absent []string
	for _, m := range r.Manifest.Modules {
		file, ok := findModule(root, m)
		if !ok {
			absent = append(absent, path.Join(m.Dir, m.Name)+".ko")
			continue
		}
		as := path.Base(file)
		if m.As != "" {
			as = m.As + ".ko"
		}
		built = append(built, Built{Name: moduleName(strings.TrimSuffix(as, ".ko")), File: file, As: as, Place: m.Place, whole: m.Whole})
	}
	if len(absent) == 0 {
		return built, nil
	}
	made := "nor any other module"
	if all := modulesIn(root); len(all) > 0 {
		made = "only " + strings.Join(all, ", ")
	}
	err = fmt.Errorf("kbuild did not produce %s, %s", strings.Join(absent, ", "), made)
	fmt.Fprintln(r.Log, err)
	return nil, r.failed("collect", err)
}

// found turns the names of built into paths, all of them files: a link of that
// name would let the source choose what a caller with more rights reads.
func (r *run) found(built []Built) ([]Built, error) {
	root, err := os.OpenRoot(r.Source)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for i, b := range built {
		info, err := root.Lstat(b.File)
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a regular file", b.File)
		}
		if err != nil {
			return nil, r.failed("collect", err)
		}
		built[i].File = filepath.Join(r.Source, b.File)
	}
	return built, nil
}

func findModule(root *os.Root, m Module) (file string, ok bool) {
	files, err := fs.ReadDir(root.FS(), path.Join(".", m.Dir))
	if err != nil {
		return "", false
	}
	for _, f := range files {
		if name, ko := strings.CutSuffix(f.Name(), ".ko"); ko && f.Type().IsRegular() && moduleName(name) == moduleName(m.Name) {
			return path.Join(m.Dir, f.Name()), true
		}
	}
	return "", false
}

func modulesIn(root *os.Root) (files []string) {
	fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && path.Ext(name) == ".ko" {
			files = append(files, name)
		}
		return nil // what cannot be read is not listed
	})
	return files
}

// clearSetID takes the set-user-ID and set-group-ID bits from the files of a copy, which may be
// kept: they would make anybody the build user.
func clearSetID(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // a folder that the build closed to us is closed to others
		}
		info, err := d.Info()
		if err != nil || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) == 0 {
			return err
		}
		return root.Chmod(name, info.Mode().Perm())
	})
}
