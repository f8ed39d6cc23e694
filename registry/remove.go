package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
)

// Remove uninstalls a source from every kernel release and forgets it. What is begun
// is finished by the next writer when this one is killed; after an error, the
// releases that the results name are uninstalled and the source is kept.
func (r *Registry) Remove(ctx context.Context, name, version string) ([]Result, error) {
	if _, err := r.Source(name, version); err != nil {
		return nil, fmt.Errorf("remove %s@%s: %w", name, version, err)
	}
	err := r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT OR IGNORE INTO removal VALUES (?, ?)`, name, version)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("remove %s@%s: %w", name, version, err)
	}
	results, err := r.finishRemoval(ctx, name, version)
	if err != nil {
		err = errors.Join(err, r.write(func(tx *sql.Tx) error { return deleteRemoval(tx, name, version) }))
	}
	return results, err
}

// finishRemoval does what a row of the table removal says.
func (r *Registry) finishRemoval(ctx context.Context, name, version string) (results []Result, err error) {
	rows, err := r.Installs()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, i := range rows {
		if i.Package != name || i.Version != version || seen[i.Release] {
			continue
		}
		seen[i.Release] = true
		res, err := r.Uninstall(ctx, i.Release, []string{name})
		if err != nil {
			return results, err
		}
		results = append(results, res)
	}
	return results, r.RemoveSource(name, version)
}

// resumeRemovals finishes the removals that were cut off; what cannot be finished
// now is reported and waits.
func (r *Registry) resumeRemovals() error {
	cut, err := readRemovals(r.db)
	if err != nil {
		return err
	}
	for _, s := range cut {
		if _, err := r.finishRemoval(context.Background(), s.Name, s.Version); err != nil {
			r.note("finish remove that was cut off: %v", err)
			continue
		}
		r.note("finished remove of %s@%s", s.Name, s.Version)
	}
	return nil
}

// readRemovals returns name and version of the sources whose removal has begun.
func readRemovals(q queryer) ([]Source, error) {
	return collect(q, func(rows *sql.Rows, s *Source) error { return rows.Scan(&s.Name, &s.Version) },
		`SELECT name, version FROM removal ORDER BY name, version`)
}

func deleteRemoval(tx *sql.Tx, name, version string) error {
	_, err := tx.Exec(`DELETE FROM removal WHERE name = ? AND version = ?`, name, version)
	return err
}

// RemoveSource forgets a source, its pins and its artifacts and deletes the blobs that
// nothing names any more. The history stays, and the logs it names. The error is
// an *InUseError while modules of it are installed.
func (r *Registry) RemoveSource(name, version string) error {
	if err := r.removeSource(name, version); err != nil {
		return fmt.Errorf("remove %s@%s: %w", name, version, err)
	}
	return nil
}

func (r *Registry) removeSource(name, version string) error {
	src, err := r.Source(name, version)
	if err != nil {
		return err
	}
	if version == "" {
		return errors.New("no version was given")
	}
	blobs := []string{src.Digest}
	err = r.write(func(tx *sql.Tx) error {
		if err := checkUnused(tx, name, version); err != nil {
			return err
		}
		as, err := collect(tx, scanArtifact, `SELECT digest, record FROM artifact WHERE package = ? AND version = ?`, name, version)
		if err != nil {
			return err
		}
		for _, a := range as {
			blobs = append(blobs, a.blobs()...)
		}
		if _, err := tx.Exec(`DELETE FROM artifact WHERE package = ? AND version = ?`, name, version); err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM pin WHERE package = ? AND version = ?`, name, version); err != nil {
			return err
		}
		if err := deleteRemoval(tx, name, version); err != nil {
			return err
		}
		_, err = tx.Exec(`DELETE FROM source WHERE name = ? AND version = ?`, name, version)
		return err
	})
	if err != nil {
		return err
	}
	return r.dropBlobs(blobs)
}

// checkUnused looks at what is installed and at what a cut off command that
// could not be finished yet would install.
func checkUnused(tx *sql.Tx, name, version string) error {
	e := &InUseError{Name: name, Version: version}
	rows, err := installRows(tx, "")
	if err != nil {
		return err
	}
	intents, err := readIntents(tx, "")
	if err != nil {
		return err
	}
	for _, in := range intents {
		rows = append(rows, in.Target...)
	}
	for _, i := range rows {
		if i.Package == name && i.Version == version && !slices.Contains(e.Releases, i.Release) {
			e.Releases = append(e.Releases, i.Release)
		}
	}
	if e.Releases != nil {
		return e
	}
	return nil
}

// dropBlobs deletes those of the blobs that no row names. A crash before it is
// done leaves blobs that nobody misses.
func (r *Registry) dropBlobs(digests []string) error {
	refs, err := blobRefs(r.db)
	if err != nil {
		return err
	}
	named := map[string]bool{"": true}
	for _, ref := range refs {
		named[ref.blob] = true
	}
	for _, d := range digests {
		if named[d] {
			continue
		}
		if err := r.tree.Remove(filepath.Join(blobDir, d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// blobRef is a row that names a blob.
type blobRef struct {
	blob     string
	artifact string // digest of the artifact whose row it is, "" for other rows
	logFor   string // kernel release of the attempt whose row it is, "" for other rows
}

// blobRefs returns every row's every mention of a blob; some name the blob "".
func blobRefs(q queryer) ([]blobRef, error) {
	refs, err := collect(q, func(rows *sql.Rows, b *blobRef) error { return rows.Scan(&b.blob, &b.logFor) }, `
		SELECT digest, '' FROM source UNION ALL SELECT digest, '' FROM install
		UNION ALL SELECT log, release FROM attempt WHERE log <> ''
		UNION ALL SELECT t.value ->> 'digest', '' FROM intent, json_each(intent.body, '$.target') t
			WHERE t.type = 'object'`) // the target of an uninstall is null
	if err != nil {
		return nil, err
	}
	as, err := collect(q, func(rows *sql.Rows, a *Artifact) error {
		var text []byte
		if err := rows.Scan(&a.Digest, &text); err != nil {
			return err
		}
		var named struct { // the rest is long
			Log     string
			Modules []Module
		}
		err := json.Unmarshal(text, &named)
		a.Log, a.Modules = named.Log, named.Modules
		return err
	}, `SELECT digest, record FROM artifact`)
	for _, a := range as {
		for _, blob := range a.blobs() {
			refs = append(refs, blobRef{blob: blob, artifact: a.Digest})
		}
	}
	return refs, err
}
