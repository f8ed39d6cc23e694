package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// Remove uninstalls versions of a source from every kernel release and then forgets
// all of them at once. What is begun is finished by the next writer when this one is
// killed; after an error, the releases that the results name are uninstalled and the
// sources are kept.
func (r *Registry) Remove(ctx context.Context, name string, versions ...string) ([]Result, error) {
	for _, v := range versions {
		if _, err := r.Source(name, v); err != nil {
			return nil, fmt.Errorf("remove %s@%s: %w", name, v, err)
		}
	}
	err := r.writeRemovals(`INSERT OR IGNORE INTO removal VALUES (?, ?)`, name, versions)
	if err != nil {
		return nil, fmt.Errorf("remove %s: %w", name, err)
	}
	results, err := r.finishRemoval(ctx, name, versions)
	if err != nil {
		err = errors.Join(err, r.writeRemovals(deleteRemoval, name, versions))
	}
	return results, err
}

// finishRemoval does what rows of the table removal say.
func (r *Registry) finishRemoval(ctx context.Context, name string, versions []string) (results []Result, err error) {
	rows, err := r.Installs()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, i := range rows {
		if i.Package != name || !slices.Contains(versions, i.Version) || seen[i.Release] {
			continue
		}
		seen[i.Release] = true
		res, err := r.Uninstall(ctx, i.Release, []string{name})
		if err != nil {
			return results, err
		}
		if len(res.Changes) > 0 { // a command that was cut off may have done it, and was finished now
			results = append(results, res)
		}
	}
	return results, r.RemoveSource(name, versions...)
}

// resumeRemovals finishes the removals that were cut off. One that cannot be finished
// now is reported and withdrawn, as Remove does: it must not take what is added or
// installed from here on.
func (r *Registry) resumeRemovals() error {
	cut, err := readRemovals(r.db)
	if err != nil {
		return err
	}
	versions := map[string][]string{}
	for _, s := range cut {
		versions[s.Name] = append(versions[s.Name], s.Version)
	}
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		what := name + "@" + strings.Join(versions[name], ", "+name+"@")
		if _, err := r.finishRemoval(context.Background(), name, versions[name]); err != nil {
			r.note("could not finish remove of %s that was cut off, what is left is kept: %v", what, err)
			if err := r.writeRemovals(deleteRemoval, name, versions[name]); err != nil {
				return err
			}
			continue
		}
		r.note("finished remove of %s", what)
	}
	return nil
}

const deleteRemoval = `DELETE FROM removal WHERE name = ? AND version = ?`

func (r *Registry) writeRemovals(statement, name string, versions []string) error {
	return r.write(func(tx *sql.Tx) error {
		for _, v := range versions {
			if _, err := tx.Exec(statement, name, v); err != nil {
				return err
			}
		}
		return nil
	})
}

// readRemovals returns name and version of the sources whose removal has begun.
func readRemovals(q queryer) ([]Source, error) {
	return collect(q, func(rows *sql.Rows, s *Source) error { return rows.Scan(&s.Name, &s.Version) },
		`SELECT name, version FROM removal ORDER BY name, version`)
}

// RemoveSource forgets versions of a source, their pins and their artifacts and deletes
// the blobs that nothing names any more. The history stays, and the logs it names. The
// error is an *InUseError while modules of them are installed.
func (r *Registry) RemoveSource(name string, versions ...string) error {
	var blobs []string
	for _, v := range versions {
		if v == "" {
			return fmt.Errorf("remove %s: no version was given", name)
		}
		src, err := r.Source(name, v)
		if err != nil {
			return fmt.Errorf("remove %s@%s: %w", name, v, err)
		}
		blobs = append(blobs, src.Digest)
	}
	err := r.write(func(tx *sql.Tx) error {
		for _, v := range versions {
			freed, err := removeSource(tx, name, v)
			if err != nil {
				return fmt.Errorf("remove %s@%s: %w", name, v, err)
			}
			blobs = append(blobs, freed...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.leave(r.dropBlobs(blobs))
	return nil
}

// removeSource removes the rows of a source, and returns the blobs of its artifacts.
func removeSource(tx *sql.Tx, name, version string) (blobs []string, err error) {
	if err := checkUnused(tx, name, version, ""); err != nil {
		return nil, err
	}
	as, err := collect(tx, scanArtifact, `SELECT digest, record FROM artifact WHERE package = ? AND version = ?`, name, version)
	if err != nil {
		return nil, err
	}
	for _, a := range as {
		blobs = append(blobs, a.blobs()...)
	}
	for _, statement := range []string{
		`DELETE FROM artifact WHERE package = ? AND version = ?`,
		`DELETE FROM pin WHERE package = ? AND version = ?`,
		deleteRemoval,
		`DELETE FROM source WHERE name = ? AND version = ?`,
		`DELETE FROM file WHERE instr(what, 'conf ' || ? || '@' || ? || ' ') = 1`, // ConfFact's
	} {
		if _, err := tx.Exec(statement, name, version); err != nil {
			return nil, err
		}
	}
	return blobs, nil
}

// checkUnused looks at what is installed, for one release or for any (""), and at what a cut off
// command that could not be finished yet would install.
func checkUnused(tx *sql.Tx, name, version, release string) error {
	e := &InUseError{Name: name, Version: version}
	rows, err := installRows(tx, release)
	if err != nil {
		return err
	}
	intents, err := readIntents(tx, release)
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

// RemoveArtifacts forgets what was built of a package version for a release, and the pins of it. The error
// is an *InUseError while modules of it are installed there.
func (r *Registry) RemoveArtifacts(name, version, release string) error {
	var blobs []string
	err := r.write(func(tx *sql.Tx) error {
		if err := checkUnused(tx, name, version, release); err != nil {
			return err
		}
		as, err := collect(tx, scanArtifact, `SELECT digest, record FROM artifact WHERE package = ? AND version = ? AND release = ?`, name, version, release)
		if err != nil {
			return err
		}
		for _, a := range as {
			blobs = append(blobs, a.blobs()...)
		}
		for _, statement := range []string{
			`DELETE FROM artifact WHERE package = ? AND version = ? AND release = ?`,
			`DELETE FROM pin WHERE package = ? AND version = ? AND release = ?`,
		} {
			if _, err := tx.Exec(statement, name, version, release); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget the artifacts of %s@%s for %s: %w", name, version, release, err)
	}
	r.leave(r.dropBlobs(blobs))
	return nil
}

// dropBlobs deletes those of the blobs that no row names. A crash before it is
// done leaves blobs that nobody misses.
func (r *Registry) dropBlobs(digests []string) error {
	if !slices.ContainsFunc(digests, func(d string) bool { return d != "" }) {
		return nil
	}
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
	module   bool   // the blob is a .ko of that artifact
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
		var modules []byte
		if err := rows.Scan(&a.Digest, &a.Log, &modules); err != nil {
			return err
		}
		return json.Unmarshal(modules, &a.Modules)
	}, `SELECT digest, coalesce(record ->> 'log', ''), coalesce(record -> 'modules', '[]') FROM artifact`) // not the inputs, which are long
	for _, a := range as {
		refs = append(refs, blobRef{blob: a.Digest, artifact: a.Digest}, blobRef{blob: a.Log, artifact: a.Digest})
		for _, m := range a.Modules {
			refs = append(refs, blobRef{blob: m.Digest, artifact: a.Digest, module: true})
		}
	}
	return refs, err
}
