package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// ownFolder is where the administrator has his own patches and scripts for a package with a dkms.conf (DKMS 3.4).
func ownFolder(name string) string { return path.Join("/etc/dkms", name) }

// ownFiles are those of the files that a dkms.conf names which the administrator has put into ownFolder: SHA-256 by name.
func ownFiles(root kernel.Root, m *build.Manifest) (own map[string]string, err error) {
	var names []string
	for _, p := range m.Build.Patches {
		names = append(names, p.File)
	}
	for _, text := range []string{m.DKMS.PreBuild, m.DKMS.PostBuild} {
		if words := strings.Fields(text); len(words) > 0 && filepath.IsLocal(words[0]) {
			names = append(names, path.Clean(words[0]))
		}
	}
	for _, name := range names {
		file, err := root.Path(path.Join(ownFolder(m.Name), name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		sum, err := build.DigestFile(file)
		if err != nil {
			return nil, err
		}
		if own == nil {
			own = map[string]string{}
		}
		own[name] = sum
	}
	return own, nil
}

// extract unpacks a source to be built, and puts the administrator's own files into it.
func extract(reg *registry.Registry, src registry.Source, root kernel.Root, m *build.Manifest, dir string) error {
	if err := errors.Join(os.Mkdir(dir, 0o755), reg.Extract(src, dir)); err != nil || m.DKMS == nil {
		return err
	}
	in, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer in.Close()
	for name, sum := range m.DKMS.Own {
		if err := putOwn(in, name, root, path.Join(ownFolder(m.Name), name), sum); err != nil {
			return err
		}
	}
	return nil
}

// putOwn copies a file below root to name, in the place of what is there, if it is still the one of that sum.
func putOwn(in *os.Root, name string, root kernel.Root, file, sum string) error {
	from, err := root.Open(file)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := in.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := in.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	to, err := in.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644|info.Mode()&0o111)
	if err != nil {
		return err
	}
	digest := sha256.New()
	_, err = io.Copy(io.MultiWriter(to, digest), from)
	if err := errors.Join(err, to.Close()); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", digest.Sum(nil)); got != sum {
		return fmt.Errorf("copy %s: it has changed since it was looked at", file)
	}
	return nil
}
