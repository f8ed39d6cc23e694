package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// CheckSource reads the manifest of the source in dir and checks that the rest of
// it can be copied and built: kbuild's Makefile or Kbuild is there, the patches
// are, no link leads out of the source, nothing is a device, socket or pipe. The
// error names the file; for the manifest it is a *ManifestError.
func CheckSource(dir string) (*Manifest, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("check source %s: %w", dir, cause(err))
	}
	defer root.Close()
	file := filepath.Join(dir, ManifestFile)
	// A manifest that is a pipe would block: look before it is opened.
	if info, err := root.Stat(ManifestFile); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, cause(err))
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file", file)
	}
	data, err := root.ReadFile(ManifestFile)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, cause(err))
	}
	m, err := ParseManifest(file, data)
	if err != nil {
		return nil, err
	}
	if err := checkFiles(root); err != nil {
		return nil, err
	}
	// A prepare step may write the Makefile (./configure does).
	if len(m.Build.Prepare) == 0 && !isFile(root, "Kbuild") && !isFile(root, "Makefile") {
		return nil, fmt.Errorf("check source %s: neither a Makefile nor a Kbuild file, and kbuild needs one", dir)
	}
	for _, p := range m.Build.Patches {
		if !isFile(root, p.File) {
			return nil, fmt.Errorf("check source %s: the patch %s of %s is not a file", dir, p.File, ManifestFile)
		}
	}
	for _, f := range m.Beside() {
		if f.File != "" && !isFile(root, f.File) {
			return nil, fmt.Errorf("check source %s: %s of %s is not a file", dir, f.File, ManifestFile)
		}
	}
	return m, nil
}

// checkFiles looks at every file without opening one.
func checkFiles(root *os.Root) error {
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		path := filepath.Join(root.Name(), name)
		switch {
		case err != nil:
			return fmt.Errorf("check source %s: %w", path, cause(err))
		case d.IsDir() && slices.Contains([]string{".git", ".hg", ".svn"}, d.Name()):
			return fs.SkipDir // no part of the source, and may hold a daemon's socket
		case d.Type().IsRegular() || d.IsDir():
			return nil
		case d.Type() != fs.ModeSymlink:
			return fmt.Errorf("check source %s: neither a file, a folder nor a link", path)
		}
		// A link to nothing inside the source is harmless: a prepare step may make its target.
		if _, err := root.Stat(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			to, _ := root.Readlink(name)
			return fmt.Errorf("check source %s: the link to %s leads out of the source", path, to)
		}
		return nil
	})
}

func isFile(root *os.Root, name string) bool {
	info, err := root.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

// cause is err without the operation and path that the message already names.
func cause(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}
