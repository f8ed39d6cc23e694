package registry

import (
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
)

// Original is another file's module, the kernel's own or another package's, that
// an installed module of the same name shadows. It is never moved, and is what
// loads again once ours is uninstalled.
type Original struct {
	Release string `json:"release"`
	Module  string `json:"module"`
	Path    string `json:"path"`   // inside the root: /lib/modules/R/kernel/drivers/net/dummy.ko
	Digest  string `json:"digest"` // SHA-256 in hex of the file, compressed as it may be
	Size    int64  `json:"size"`   // bytes
}

// Originals returns what the installed modules shadow, by kernel release and module.
func (r *Registry) Originals() ([]Original, error) {
	all, err := readOriginals(r.db, "")
	if err != nil {
		return nil, fmt.Errorf("read originals: %w", err)
	}
	return all, nil
}

// Shadows returns what modules of these names, once installed for a release under root, would
// shadow. The error is a *NoModulesError when the release has no folder.
func (r *Registry) Shadows(root kernel.Root, release string, names []string) ([]Original, error) {
	m, err := openModules(root, release)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	index, err := m.indexed()
	if err != nil {
		return nil, err
	}
	var target []Install
	for _, name := range names {
		target = append(target, Install{Release: release, Module: name})
	}
	return r.originals(m, target, index)
}

func readOriginals(q queryer, release string) ([]Original, error) {
	return collect(q, func(rows *sql.Rows, o *Original) error {
		return rows.Scan(&o.Release, &o.Module, &o.Path, &o.Digest, &o.Size)
	}, `SELECT release, module, path, digest, size FROM original WHERE ?1 = '' OR release = ?1 ORDER BY release, module`, release)
}

// originals finds what target shadows: the file that the index names for a module.
// Where that is ours already, it is what was found before us.
func (r *Registry) originals(m *modules, target []Install, index map[string]string) ([]Original, error) {
	if len(target) == 0 {
		return nil, nil
	}
	known, err := readOriginals(r.db, m.release)
	if err != nil {
		return nil, err
	}
	rows, err := installRows(r.db, m.release)
	if err != nil {
		return nil, err
	}
	if index == nil { // depmod knows its own rules best
		if index, err = m.wouldIndex(m.root); err != nil {
			return nil, err
		}
	}
	var out []Original
	for _, t := range target {
		file := index[t.Module]
		same := func(i Install) bool { return i.Path == m.path(file) }
		if strings.HasPrefix(file, ourDir+"/") || same(t) || slices.ContainsFunc(rows, same) {
			i := slices.IndexFunc(known, func(o Original) bool { return o.Module == t.Module })
			if i < 0 {
				continue
			}
			file = m.name(known[i].Path) // it may have been upgraded since
		}
		if file == "" {
			continue
		}
		o, err := m.original(t.Module, file)
		if errors.Is(err, fs.ErrNotExist) { // the index is older than the tree
			continue
		} else if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// original describes a module's file, given below the release's folder. It may be a
// link to another release's (weak-updates): it is read as modprobe would.
func (m *modules) original(module, file string) (Original, error) {
	o := Original{Release: m.release, Module: module, Path: m.path(file)}
	f, err := m.root.Open(o.Path)
	if err != nil {
		return o, err
	}
	defer f.Close()
	src, err := plainFile(f)
	if err != nil {
		return o, err
	}
	sum := sha256.New()
	o.Size, err = io.Copy(sum, src)
	o.Digest = hexSum(sum)
	return o, err
}

// shadowed leads from the name of each module of an intent to the file that it shadows.
func (in *intent) shadowed() map[string]string {
	paths := map[string]string{}
	for _, o := range in.Originals {
		paths[o.Module] = o.Path
	}
	return paths
}

// foundAgain leads from the name of each indexed module to its file inside the root.
func (m *modules) foundAgain() map[string]string {
	index, err := m.indexed()
	if err != nil {
		return nil // it is for people only
	}
	for name, file := range index {
		index[name] = m.path(file)
	}
	return index
}

// putOriginals replaces the originals of an intent's modules.
func putOriginals(tx *sql.Tx, in intent) error {
	for _, i := range in.Before {
		if _, err := tx.Exec(`DELETE FROM original WHERE release = ? AND module = ?`, i.Release, i.Module); err != nil {
			return err
		}
	}
	for _, o := range in.Originals {
		if _, err := tx.Exec(`INSERT OR REPLACE INTO original VALUES (?, ?, ?, ?, ?)`, o.Release, o.Module, o.Path, o.Digest, o.Size); err != nil {
			return err
		}
	}
	return nil
}
