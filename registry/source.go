package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/xrash/smetrics"
)

// Source is one package version as the registry keeps it: a copy of its folder.
type Source struct {
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	Digest   string    `json:"digest"` // SHA-256 in hex of the tar archive, which is a blob
	Origin   string    `json:"origin"` // the folder it was copied from; it may be gone; "" when it was imported
	Added    time.Time `json:"added"`
	Manifest string    `json:"manifest"` // text of its kmod.toml
	Files    []File    `json:"files"`    // sorted by path
}

// File is one file of a source.
type File struct {
	Path   string `json:"path"` // slash separated, below the source's folder
	Mode   uint32 `json:"mode"` // 0644 or 0755; 0777 for a symbolic link
	Size   int64  `json:"size"` // bytes; 0 for a symbolic link
	SHA256 string `json:"sha256,omitempty"`
	Link   string `json:"link,omitempty"` // target of a symbolic link
}

// AddSource copies dir into the registry as name and version, in place of a
// source that has both already; its artifacts, installs and history stay. changed
// is false when it was there just so, and whole, and then nothing is written.
//
// manifest is the text of a file at the top of dir, as the caller read it; when
// that file has another text now, the error says so.
//
// Left out are version control (.git, .svn, .hg), what kbuild makes, and symbolic links out of dir. A
// device, a socket, a pipe or a file above 1 GiB is an error.
func (r *Registry) AddSource(ctx context.Context, dir, name, version, manifest string) (src Source, changed bool, err error) {
	if src, changed, err = r.addSource(ctx, dir, name, version, manifest); err != nil {
		return Source{}, false, fmt.Errorf("add %s@%s: %w", name, version, err)
	}
	return src, changed, nil
}

func (r *Registry) addSource(ctx context.Context, dir, name, version, manifest string) (Source, bool, error) {
	if r.lock == nil {
		return Source{}, false, ErrReadOnly
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Source{}, false, err
	}
	old, err := r.Source(name, version)
	var absent *NotFoundError
	if err != nil && !errors.As(err, &absent) {
		return Source{}, false, err
	}
	// A first look without a copy: the common case is that nothing changed.
	digest, _, err := Digest(ctx, dir)
	if err != nil {
		return Source{}, false, err
	}
	if old.Digest == digest && old.Manifest == manifest && old.Origin == dir && r.checkBlob(ctx, digest) == nil {
		return old, false, nil
	}
	src := Source{Name: name, Version: version, Origin: dir, Added: time.Now().UTC(), Manifest: manifest}
	src.Digest, _, err = r.stageBlob(func(w io.Writer) error {
		if src.Files, err = archive(ctx, dir, w); err != nil {
			return err
		}
		return checkManifest(src.Files, manifest)
	})
	if err != nil {
		return Source{}, false, err
	}
	if err := syncDir(r.tree, blobDir); err != nil {
		return Source{}, false, err
	}
	if err := r.write(func(tx *sql.Tx) error { return insertSource(tx, src) }); err != nil {
		return Source{}, false, err
	}
	r.leave(r.dropBlobs([]string{old.Digest}))
	return src, true, nil
}

// insertSource writes the row of a source, in place of one of the same name and version.
func insertSource(tx *sql.Tx, src Source) error {
	files, err := json.Marshal(src.Files)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT OR REPLACE INTO source (name, version, digest, origin, added, manifest, files) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		src.Name, src.Version, src.Digest, src.Origin, src.Added.UnixNano(), src.Manifest, string(files))
	return err
}

// checkManifest makes sure that a file at the top of the archive holds the text
// that the caller read before; a link there may lead to it.
func checkManifest(files []File, manifest string) error {
	want := hexOf([]byte(manifest))
	for _, f := range files {
		if strings.Contains(f.Path, "/") {
			continue
		}
		name := f.Path
		if f.Link != "" {
			name = path.Clean(f.Link)
		}
		if slices.ContainsFunc(files, func(g File) bool { return g.Path == name && g.SHA256 == want }) {
			return nil
		}
	}
	return errors.New("the manifest changed while it was read")
}

// Sources returns all sources, by name, the versions of one name in ascending order.
func (r *Registry) Sources() ([]Source, error) {
	srcs, err := r.sources("")
	if err != nil {
		return nil, fmt.Errorf("read sources: %w", err)
	}
	return srcs, nil
}

// Source returns one source; its newest version when version is "". The error is
// a *NotFoundError when there is none.
func (r *Registry) Source(name, version string) (Source, error) {
	if name == "" { // an unset variable of some script: never the first that comes along
		return Source{}, &NotFoundError{Version: version}
	}
	srcs, err := r.sources(name)
	if err != nil {
		return Source{}, fmt.Errorf("read source %s: %w", name, err)
	}
	if len(srcs) == 0 {
		return Source{}, r.notFound(name)
	}
	if version == "" {
		return srcs[len(srcs)-1], nil
	}
	e := &NotFoundError{Name: name, Version: version}
	for _, s := range slices.Backward(srcs) {
		if s.Version == version {
			return s, nil
		}
		e.Near = append(e.Near, s.Version)
	}
	return Source{}, e
}

// sources reads the sources of one name, or all of them when it is "".
func (r *Registry) sources(name string) ([]Source, error) {
	which, args := "", []any{}
	if name != "" { // an OR would read all of them
		which, args = "WHERE name = ?", []any{name}
	}
	srcs, err := collect(r.db, func(rows *sql.Rows, s *Source) error {
		var added int64
		var files string
		if err := rows.Scan(&s.Name, &s.Version, &s.Digest, &s.Origin, &added, &s.Manifest, &files); err != nil {
			return err
		}
		s.Added = time.Unix(0, added).UTC()
		if err := json.Unmarshal([]byte(files), &s.Files); err != nil {
			return fmt.Errorf("files of %s@%s: %w", s.Name, s.Version, err)
		}
		return nil
	}, `SELECT name, version, digest, origin, added, manifest, files FROM source `+which, args...)
	slices.SortFunc(srcs, func(a, b Source) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return CompareVersions(a.Version, b.Version)
	})
	return srcs, err
}

// notFound names the sources whose name is nearest to what was asked for.
func (r *Registry) notFound(name string) error {
	names, err := collect(r.db, scanText,
		`SELECT DISTINCT name FROM source ORDER BY name`)
	if err != nil {
		return fmt.Errorf("read sources: %w", err)
	}
	near := slices.DeleteFunc(names, func(n string) bool {
		return distance(n, name) > 2 && !strings.Contains(n, name)
	})
	slices.SortStableFunc(near, func(a, b string) int { return distance(a, name) - distance(b, name) })
	return &NotFoundError{Name: name, Near: near}
}

func distance(a, b string) int { return smetrics.WagnerFischer(a, b, 1, 1, 1) }

// Extract writes the files of a source into dir, which must exist. After an
// error, what is in dir is not to be used: a *CorruptError for a damaged archive, a
// *DamagedError for one that holds other files than the database says.
func (r *Registry) Extract(src Source, dir string) error {
	blob, err := r.Blob(src.Digest)
	if err != nil {
		return fmt.Errorf("extract %s@%s: %w", src.Name, src.Version, err)
	}
	defer blob.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("extract %s@%s: %w", src.Name, src.Version, err)
	}
	defer root.Close()
	files, err := unpack(blob, root, src.Added)
	// Only the end of the blob tells whether it is whole; damage explains more
	// than what the archive's reader made of it.
	if _, end := io.Copy(io.Discard, blob); end != nil {
		err = end
	}
	if err == nil {
		err = src.agrees(files)
	}
	if err != nil {
		return fmt.Errorf("extract %s@%s: %w", src.Name, src.Version, err)
	}
	return nil
}

// agrees makes sure that a row tells of an archive's files and manifest.
func (s Source) agrees(files []File) error {
	if !slices.Equal(files, s.Files) || checkManifest(files, s.Manifest) != nil {
		return &DamagedError{dbFile, fmt.Errorf("files or manifest of %s@%s are not those of archive %s", s.Name, s.Version, s.Digest)}
	}
	return nil
}
