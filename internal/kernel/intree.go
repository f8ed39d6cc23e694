package kernel

import (
	"errors"
	"io/fs"
	"path"
	"strings"
)

// OwnModule is a module that came with the kernel, as named inside the root, "" when there is none: as its file
// is compressed, so are all of them (CONFIG_MODULE_COMPRESS).
func (r Release) OwnModule() (string, error) {
	if r.Modules == "" {
		return "", nil
	}
	return firstModule(r.Root, path.Join(r.Modules, "kernel"))
}

// firstModule looks for a .ko, whatever follows that, in a folder and then in those below it.
func firstModule(root Root, dir string) (string, error) {
	entries, err := root.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	for _, e := range entries {
		if stem, _, ok := strings.Cut(e.Name(), ".ko"); ok && stem != "" && e.Type().IsRegular() {
			return path.Join(dir, e.Name()), nil
		}
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if found, err := firstModule(root, path.Join(dir, e.Name())); found != "" || err != nil {
			return found, err
		}
	}
	return "", nil
}
