package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
)

// Remedy is what the registry can do about a drift by itself.
type Remedy struct {
	What string       // in words, as in "copy it back from /lib/modules/..."
	Do   func() error // does it, durably
}

// Remedy finds out how a drift can be mended from what is still there, and changes
// nothing. There is none (nil) when a module must be installed or built anew, the database
// be made anew (Rebuild), or a person must look.
func (r *Registry) Remedy(ctx context.Context, root kernel.Root, d Drift) (*Remedy, error) {
	switch d.Object {
	case ObjectBlob:
		return r.blobRemedy(ctx, root, d)
	case ObjectKernel:
		switch d.Kind {
		case DriftGone:
			return &Remedy{"forget what was installed for " + d.Release, func() error { return r.forgetKernel(d.Release) }}, nil
		case DriftModified:
			return &Remedy{"record the new state of " + d.Release, func() error { return r.refresh(d.Release) }}, nil
		}
	case ObjectFile:
		return r.besideRemedy(root, d)
	case ObjectOriginal:
		return &Remedy{"record what " + d.Module + " shadows now", func() error { return r.refresh(d.Release) }}, nil
	case ObjectInstalled:
		if name := path.Base(d.Path); d.Kind == DriftForeign && strings.HasPrefix(name, tempName) {
			return &Remedy{"delete what a command left that was cut off", func() error { return r.sweepModules(d.Release) }}, nil
		}
	}
	return nil, nil
}

// blobRemedy looks for the content of a blob elsewhere.
func (r *Registry) blobRemedy(ctx context.Context, root kernel.Root, d Drift) (*Remedy, error) {
	if d.Kind == DriftForeign {
		return nil, nil
	}
	if d.Package != "" {
		for _, look := range []func(context.Context, kernel.Root, Drift) (*Remedy, error){r.fromRow, r.fromInstalled, r.fromOrigin, r.withoutLog} {
			if found, err := look(ctx, root, d); err != nil || found != nil {
				return found, err
			}
		}
		return nil, nil
	}
	needed, err := r.neededBlobs() // a build may have made it since
	if _, ok := needed[d.Digest]; ok || err != nil {
		return nil, err
	}
	return &Remedy{"delete it", func() error { return ignoreAbsent(r.tree.RemoveAll(filepath.Join(blobDir, d.Digest))) }}, nil
}

// restore stores what fill writes, which must have that digest.
func (r *Registry) restore(digest string, fill func(io.Writer) error) error {
	got, _, err := r.stageBlob(fill)
	if err == nil {
		err = syncDir(r.tree, blobDir)
	}
	if err == nil && got != digest {
		err = errors.Join(&CorruptError{Path: r.BlobPath(digest), Want: digest, Got: got}, r.dropBlobs([]string{got}))
	}
	return err
}

// fromRow has the text of a record.
func (r *Registry) fromRow(_ context.Context, _ kernel.Root, d Drift) (*Remedy, error) {
	rows, err := artifactRows(r.db, d.Digest)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	return &Remedy{"write it again from its row", func() error {
		return r.restore(d.Digest, func(w io.Writer) error {
			_, err := io.WriteString(w, rows[0].record)
			return err
		})
	}}, nil
}

// fromInstalled finds a module that is installed.
func (r *Registry) fromInstalled(ctx context.Context, root kernel.Root, d Drift) (*Remedy, error) {
	rows, err := readInstalls(r.db, " AND digest = ?", d.Digest)
	if err != nil {
		return nil, err
	}
	for _, i := range rows {
		m, err := openModules(root, i.Release)
		if err != nil {
			continue
		}
		got, _, err := m.digest(m.name(i.Path))
		m.Close()
		if err == nil && got == d.Digest {
			return &Remedy{"copy it back from " + i.Path, func() error {
				return r.restore(d.Digest, func(w io.Writer) error { return copyFile(ctx, w, root, i.Path) })
			}}, nil
		}
	}
	return nil, nil
}

// copyFile writes what a file inside the root holds.
func copyFile(ctx context.Context, w io.Writer, root kernel.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, contextReader{ctx, f})
	return err
}

// fromOrigin makes the archive of a source again when its folder is as it was.
func (r *Registry) fromOrigin(ctx context.Context, _ kernel.Root, d Drift) (*Remedy, error) {
	sources, err := r.sources(d.Package)
	if err != nil {
		return nil, err
	}
	for _, s := range sources {
		if s.Digest != d.Digest || s.Origin == "" {
			continue
		}
		got, _, err := Digest(ctx, s.Origin)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil && got == d.Digest {
			return &Remedy{"copy it again from " + s.Origin, func() error {
				return r.restore(d.Digest, func(w io.Writer) error {
					_, err := archive(ctx, s.Origin, w)
					return err
				})
			}}, nil
		}
	}
	return nil, nil
}

// withoutLog lets attempts do without a log that is lost.
func (r *Registry) withoutLog(_ context.Context, _ kernel.Root, d Drift) (*Remedy, error) {
	all, err := r.Attempts(d.Package, d.Release, 0)
	if err != nil || !slices.ContainsFunc(all, func(a Attempt) bool { return a.Log == d.Digest }) {
		return nil, err
	}
	return &Remedy{"forget the log", func() error {
		err := r.write(func(tx *sql.Tx) error {
			_, err := tx.Exec(`UPDATE attempt SET log = '' WHERE log = ?`, d.Digest)
			return err
		})
		return errors.Join(err, ignoreAbsent(r.tree.RemoveAll(filepath.Join(blobDir, d.Digest))))
	}}, nil
}

// forgetKernel removes what we left of a kernel that is gone: files, then rows. Its index
// is not made again.
func (r *Registry) forgetKernel(release string) error {
	rows, err := installRows(r.db, release)
	if err != nil {
		return err
	}
	if m, err := openModules(r.root, release); err == nil {
		defer m.Close()
		if err := m.use(rows); err != nil {
			return err
		}
		for _, i := range rows {
			if err := ignoreAbsent(m.tree.Remove(m.name(i.Path))); err != nil {
				return bare(err)
			}
		}
		if err := m.settle(); err != nil {
			return err
		}
		os.Remove(m.host) // fails, as it should, when it is not empty
	}
	return r.write(func(tx *sql.Tx) error {
		for _, table := range []string{"install", "original"} {
			if _, err := tx.Exec(`DELETE FROM `+table+` WHERE release = ?`, release); err != nil {
				return err
			}
		}
		return nil
	})
}

// refresh records a kernel as it is now, and what our modules shadow in it.
func (r *Registry) refresh(release string) error {
	rows, err := installRows(r.db, release)
	if err != nil {
		return err
	}
	m, err := openModules(r.root, release)
	if err != nil {
		return err
	}
	defer m.Close()
	found, err := m.findOriginals(rows)
	if err != nil {
		return err
	}
	return r.write(func(tx *sql.Tx) error {
		if _, err := tx.Exec(`DELETE FROM original WHERE release = ?`, release); err != nil {
			return err
		}
		if err := putOriginals(tx, intent{Originals: found}); err != nil {
			return err
		}
		return putKernel(tx, release, kernelStamp(m.tree))
	})
}

// findOriginals looks for other files of the modules of rows: of several, one in
// updates wins, as it does for depmod.
func (m *modules) findOriginals(rows []Install) ([]Original, error) {
	if len(rows) == 0 {
		return nil, nil
	}
	names, ours := map[string]bool{}, map[string]bool{}
	for _, i := range rows {
		names[i.Module], ours[m.name(i.Path)] = true, true
	}
	files := map[string]string{}
	err := fs.WalkDir(m.tree.FS(), ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if file == ourDir {
			return fs.SkipDir
		}
		name := moduleName(file)
		if names[name] && !ours[file] && !d.IsDir() && (files[name] == "" || strings.HasPrefix(file, path.Dir(ourDir)+"/")) {
			files[name] = file
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var found []Original
	for name, file := range files {
		o, err := m.original(name, file)
		if errors.Is(err, fs.ErrNotExist) { // a link that leads nowhere, as weak-updates are left
			continue
		} else if err != nil {
			return nil, err
		}
		found = append(found, o)
	}
	return found, nil
}

// sweepModules removes the temporary names of a command that was cut off.
func (r *Registry) sweepModules(release string) error {
	m, err := openModules(r.root, release)
	if err != nil {
		return err
	}
	defer m.Close()
	rows, err := installRows(r.db, release)
	if err == nil {
		err = m.use(rows)
	}
	if err != nil {
		return err
	}
	return m.settle()
}

// ForgetArtifact drops an artifact that is lost, and its blobs; a pin on it becomes one on its
// version. One that is installed cannot be forgotten.
func (r *Registry) ForgetArtifact(digest string) error {
	a, known, err := r.newest(`digest = ?`, digest)
	if err != nil || !known {
		return err
	}
	err = r.write(func(tx *sql.Tx) error {
		if _, err := tx.Exec(`UPDATE pin SET artifact = '' WHERE artifact = ?`, digest); err != nil {
			return err
		}
		_, err := tx.Exec(`DELETE FROM artifact WHERE digest = ?`, digest)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget artifact %s: %w", digest, err)
	}
	return r.dropBlobs(a.blobs())
}
