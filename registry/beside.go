package registry

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

// Beside is a file that is installed beside the modules of a package, for all kernels: firmware, rules, configuration.
type Beside struct {
	Path    string // absolute, inside the root
	Package string
	Version string
	Digest  string // SHA-256 in hex
	File    string // in the source; "" of one that is made
	Text    string // what is in one that is made
}

// besideRow is what the registry knows of a file that it has put somewhere, or is about to.
type besideRow struct {
	Beside
	was string // digest of what the file held before; "" when it was not there
}

// firmwareDir is where empty folders are taken away again.
const firmwareDir = "lib/firmware/updates"

// PutBeside makes the files beside modules those of want: new ones come, and what the registry has put there and is no longer
// wanted goes. A file that somebody has changed stays as it is, and one that was there before is a *ForeignError in a
// *PackageError; the others are put all the same. The row is committed before the file arrives, by rename, and goes after it: whatever is cut off,
// the next call completes.
func (r *Registry) PutBeside(want []Beside) (came, went []Beside, err error) {
	rows, err := r.besideRows()
	if err != nil {
		return nil, nil, err
	}
	if len(rows)+len(want) == 0 {
		return nil, nil, nil
	}
	tree, err := os.OpenRoot(string(r.root) + "/")
	if err != nil {
		return nil, nil, err
	}
	defer tree.Close()
	known := map[string]besideRow{}
	for _, row := range rows {
		known[row.Path] = row
	}
	var ends []func()
	defer func() {
		for _, end := range ends {
			end()
		}
	}()
	sources := map[string]string{} // of a package, unpacked when one of its files is first due
	unpacked := func(b Beside) (dir string, err error) {
		if dir, ok := sources[b.Package]; ok {
			return dir, nil
		}
		dir, done, err := r.unpackSource(b.Package, b.Version)
		if err == nil {
			sources[b.Package] = dir
			ends = append(ends, done)
		}
		return dir, err
	}
	var errs []error
	for _, b := range want {
		row, ok := known[b.Path]
		if ok && row.Package != b.Package && slices.ContainsFunc(want, func(o Beside) bool { return o.Path == b.Path && o.Package == row.Package }) {
			errs = append(errs, &PackageError{b.Package, &ForeignError{b.Path, row.Package}})
			continue
		}
		delete(known, b.Path)
		placed, err := r.putFile(tree, b, row, unpacked)
		if err != nil {
			errs = append(errs, &PackageError{b.Package, err})
		} else if placed {
			came = append(came, b)
		}
	}
	for _, row := range rows {
		if _, left := known[row.Path]; left && !slices.ContainsFunc(want, func(b Beside) bool { return b.Path == row.Path }) {
			if err := r.dropFile(tree, row); err != nil {
				errs = append(errs, &PackageError{row.Package, err})
			} else {
				went = append(went, row.Beside)
			}
		}
	}
	return came, went, errors.Join(errs...)
}

func (r *Registry) besideRows() ([]besideRow, error) {
	rows, err := collect(r.db, func(rows *sql.Rows, b *besideRow) error {
		return rows.Scan(&b.Path, &b.Package, &b.Version, &b.Digest, &b.was)
	}, `SELECT path, package, version, digest, was FROM beside ORDER BY path`)
	if err != nil {
		return nil, fmt.Errorf("read files beside modules: %w", err)
	}
	return rows, nil
}

// LookBeside tells which files beside modules are not as they were installed. It changes nothing.
func (r *Registry) LookBeside(root kernel.Root) (drifts []Drift, err error) {
	rows, err := r.besideRows()
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	tree, err := os.OpenRoot(string(root) + "/")
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	for _, row := range rows {
		d := Drift{Kind: DriftModified, Object: ObjectFile, Path: row.Path, Package: row.Package, Version: row.Version, Digest: row.Digest}
		switch now, err := besideDigest(tree, row.Path); {
		case err != nil:
			d.Why = err.Error()
		case now == row.Digest:
			continue
		case now == "":
			d.Kind = DriftMissing
		case now == row.was:
			d.Why = "what was to replace it has not come"
		case strings.HasPrefix(row.Path, "/etc/"):
			d.Kind, d.Why = DriftEdited, "it stays so"
		default:
			d.Why = "its sha256 is " + now
		}
		drifts = append(drifts, d)
	}
	return drifts, nil
}

func (r *Registry) verifyBeside(_ context.Context, root kernel.Root) ([]Drift, error) {
	return r.LookBeside(root)
}

// besideRemedy has a copy in the source.
func (r *Registry) besideRemedy(root kernel.Root, d Drift) (*Remedy, error) {
	if d.Kind == DriftEdited {
		return nil, nil
	}
	src, err := r.Source(d.Package, d.Version)
	if errors.As(err, new(*NotFoundError)) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(src.Files, func(f File) bool { return f.SHA256 == d.Digest && f.Link == "" })
	if at < 0 {
		return nil, nil
	}
	return &Remedy{"copy it from the source of " + d.Package + " " + d.Version, func() error {
		dir, done, err := r.unpackSource(d.Package, d.Version)
		if err != nil {
			return err
		}
		defer done()
		text, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(src.Files[at].Path)))
		if err != nil {
			return err
		}
		tree, err := os.OpenRoot(string(root) + "/")
		if err != nil {
			return err
		}
		defer tree.Close()
		return replaceFile(tree, inTree(d.Path), text)
	}}, nil
}

// unpackSource unpacks a source into a work folder, which done takes away.
func (r *Registry) unpackSource(pkg, version string) (dir string, done func(), err error) {
	src, err := r.Source(pkg, version)
	if err != nil {
		return "", nil, err
	}
	work, done, err := r.NewWork("beside")
	if err != nil {
		return "", nil, err
	}
	dir = filepath.Join(work, "source")
	if err = os.Mkdir(dir, 0o700); err == nil {
		err = r.Extract(src, dir)
	}
	if err != nil {
		done()
	}
	return dir, done, err
}

// inTree is a path inside the root as os.Root wants it.
func inTree(name string) string { return strings.TrimPrefix(name, "/") }

// besideDigest is that of a file of tree, "" when there is none.
func besideDigest(tree *os.Root, name string) (string, error) {
	info, err := tree.Lstat(inTree(name))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return "", nil
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "no regular file", nil
	}
	return digestFile(tree, inTree(name))
}

// putFile puts b where it belongs, unless it is there, or somebody has changed what is.
func (r *Registry) putFile(tree *os.Root, b Beside, row besideRow, unpacked func(Beside) (string, error)) (placed bool, err error) {
	now, err := besideDigest(tree, b.Path)
	if err != nil {
		return false, err
	}
	ours := now == "" || now == b.Digest || now == row.Digest || row.was != "" && now == row.was
	switch {
	case row.Path == "" && now != "" && now != b.Digest:
		return false, &ForeignError{Path: b.Path}
	case !ours:
		return false, nil
	case now == b.Digest && row.Digest == b.Digest && row.Version == b.Version && row.Package == b.Package:
		return false, nil
	}
	err = r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT OR REPLACE INTO beside VALUES (?, ?, ?, ?, ?)`, b.Path, b.Package, b.Version, b.Digest, now)
		return err
	})
	if err != nil || now == b.Digest {
		return false, err
	}
	text := []byte(b.Text)
	if b.File != "" {
		dir, err := unpacked(b)
		if err != nil {
			return false, err
		}
		if text, err = os.ReadFile(filepath.Join(dir, filepath.FromSlash(b.File))); err != nil {
			return false, err
		}
	}
	return true, replaceFile(tree, inTree(b.Path), text)
}

// replaceFile writes a file of tree, whole and durable or not at all.
func replaceFile(tree *os.Root, name string, text []byte) error {
	if err := tree.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	temp := path.Join(path.Dir(name), tempName+path.Base(name)) // no suffix that anybody reads, but that of its name: the dot hides it
	if err := ignoreAbsent(tree.Remove(temp)); err != nil {
		return err
	}
	err := writeNew(tree, temp, bytes.NewReader(text))
	if err == nil {
		err = tree.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, ignoreAbsent(tree.Remove(temp)))
	}
	return syncDir(tree, path.Dir(name))
}

// dropFile takes a file away that nobody has changed, and its row.
func (r *Registry) dropFile(tree *os.Root, row besideRow) error {
	now, err := besideDigest(tree, row.Path)
	if err != nil {
		return err
	}
	if now != "" && (now == row.Digest || now == row.was) {
		if err := tree.Remove(inTree(row.Path)); err != nil {
			return err
		}
		for dir := path.Dir(inTree(row.Path)); strings.HasPrefix(dir, firmwareDir); dir = path.Dir(dir) {
			if tree.Remove(dir) != nil { // it is not empty
				break
			}
		}
	}
	return r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM beside WHERE path = ?`, row.Path)
		return err
	})
}
