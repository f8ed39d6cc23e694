package registry

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
)

// headersDir has the unpacked header packages of kernels that are not here, each set of packages
// in a folder named by a digest. All of it can be unpacked again.
const headersDir = "headers"

// Headers returns the folder that unpack has filled for a digest of its packages: now, or in an
// earlier command. The folder has its name only once unpack is done, so it must leave all on the disk.
// A reader, who may not keep it, fills a temporary one. An error of unpack comes back as it is. done must be called after the last look.
func (r *Registry) Headers(digest string, unpack func(dir string) error) (dir string, done func(), err error) {
	if err := checkDigest(digest); err != nil {
		return "", nil, err
	}
	name := filepath.Join(headersDir, digest)
	if r.tree != nil { // there is a registry
		_, err := r.tree.Stat(name)
		if err == nil && r.lock != nil {
			now := time.Now()
			err = r.tree.Chtimes(name, now, now) // gc counts from here
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return filepath.Join(r.dir, name), func() {}, err
		}
	}
	dir, done, err = r.stageDir(headersDir, r.lock == nil)
	if err != nil {
		return "", nil, err
	}
	if err := unpack(dir); err != nil {
		done()
		return "", nil, err
	}
	if r.lock == nil {
		return dir, done, nil
	}
	defer done()
	return filepath.Join(r.dir, name), func() {}, r.keepHeaders(filepath.Base(dir), digest)
}

// keepHeaders gives a work folder that is whole its name.
func (r *Registry) keepHeaders(work, digest string) error {
	if err := makeDir(filepath.Join(r.dir, headersDir)); err != nil {
		return err
	}
	if err := r.tree.Rename(filepath.Join(workDir, work), filepath.Join(headersDir, digest)); err != nil {
		return err
	}
	return syncDir(r.tree, headersDir)
}

// unusedHeaders are the unpacked packages that no build has used since then.
func (r *Registry) unusedHeaders(then time.Time) (unused []Litter, err error) {
	names, err := readNames(r.tree, headersDir)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		if checkDigest(name) != nil {
			continue
		}
		path := filepath.Join(headersDir, name)
		info, err := r.tree.Lstat(path)
		if err != nil {
			return nil, err
		}
		if info.ModTime().After(then) {
			continue
		}
		l := Litter{Digest: name, Why: "no build has used these headers since " + info.ModTime().Format(time.DateOnly)}
		err = fs.WalkDir(r.tree.FS(), path, func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err == nil {
				l.Bytes += info.Size()
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		unused = append(unused, l)
	}
	return unused, nil
}

// dropHeaders removes unpacked packages. Each loses its name first: half of one must never be
// taken for the whole.
func (r *Registry) dropHeaders(unused []Litter) error {
	for _, l := range unused {
		dir, done, err := r.NewWork(headersDir)
		if err != nil {
			return err
		}
		err = r.tree.Rename(filepath.Join(headersDir, l.Digest), filepath.Join(workDir, filepath.Base(dir), l.Digest))
		done()
		if err != nil {
			return err
		}
	}
	return nil
}
