package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Limits of an archive, in bytes but for the count of its entries.
const (
	maxBlob    = 1 << 30
	maxSmall   = 16 << 20 // SHA256SUMS, package.json, and all records together: they are kept in memory
	maxArchive = int64(8) << 30
	maxPadding = 1 << 20 // zeros behind the end: a tape's block
	maxEntries = 20_000
)

// Judge is what Import asks of its caller, who knows manifests and modules.
type Judge struct {
	Manifests []string // names of files at the top of a source, of which the first that is there is its manifest
	// Source refuses a manifest, the text of file, that is not of this package.
	Source func(name, version, file, manifest string) error
	// Module refuses a .ko that is not what the artifact says of it; its content is m.Digest.
	Module func(a Artifact, m Module, file string) error
}

// Imported is what Import did, or would do in a dry run.
type Imported struct {
	Name      string             `json:"name"`
	Version   string             `json:"version"`
	Digest    string             `json:"digest"` // of the source's archive
	Action    string             `json:"action"` // import, or current: it was there
	Artifacts []ImportedArtifact `json:"artifacts"`
	Mended    int                `json:"mended"` // blobs of what was there that were damaged or gone
}

// ImportedArtifact is one artifact of an archive and what became of it.
type ImportedArtifact struct {
	Release string `json:"release"`
	Digest  string `json:"digest"` // of its record
	Action  string `json:"action"` // import, current, or skip: the one that is here stays
	Why     string `json:"why,omitempty"`
}

// Actions of Imported and ImportedArtifact.
const (
	ImportNew     = "import"
	ImportCurrent = "current"
	ImportSkip    = "skip"
)

// Import takes what Export wrote. It trusts nothing of it: all is read, checked and shown
// to judge before the registry changes, in one transaction. Of a dry run, and after an
// error, nothing is left.
//
// Typed errors: *ArchiveError for an archive that is not as Export writes it, with
// the entry; *ExistsError when another source has this name and version. For a
// release that has an artifact already, that one stays, unless it was imported too
// and is older.
func (r *Registry) Import(ctx context.Context, src io.Reader, judge Judge, dryRun bool) (Imported, error) {
	if r.lock == nil && !dryRun {
		return Imported{}, ErrReadOnly
	}
	dir, done, err := r.stageDir("import", dryRun)
	if err != nil {
		return Imported{}, err
	}
	defer done()
	stage, err := os.OpenRoot(dir)
	if err != nil {
		return Imported{}, err
	}
	defer stage.Close()
	in := &incoming{ctx: ctx, dir: dir, stage: stage, sums: map[string]string{}, small: map[string][]byte{}, sizes: map[string]int64{}}
	if err := in.receive(contextReader{ctx, src}); err != nil {
		return Imported{}, err
	}
	if err := in.check(judge); err != nil {
		return Imported{}, err
	}
	return r.admit(ctx, in, dryRun)
}

// stageDir makes the folder that an archive is received in: on the registry's
// filesystem, so that a rename takes over what is in it.
func (r *Registry) stageDir(label string, dryRun bool) (dir string, done func(), err error) {
	if !dryRun {
		return r.NewWork(label)
	}
	dir, err = os.MkdirTemp("", "kmodctl-"+label+"-")
	return dir, func() { os.RemoveAll(dir) }, err
}

// admit puts what is missing into the registry: blobs first, then all rows at once.
func (r *Registry) admit(ctx context.Context, in *incoming, dryRun bool) (Imported, error) {
	out, err := r.judgeImport(in)
	if err != nil {
		return out, err
	}
	take, check := in.wanted(out)
	for _, d := range check {
		if r.checkBlob(ctx, d) != nil {
			take = append(take, d)
			out.Mended++
		}
	}
	if ctx.Err() != nil {
		return out, context.Cause(ctx)
	}
	if dryRun || len(take) == 0 && out.Action == ImportCurrent {
		return out, nil
	}
	err = r.takeOver(in, take)
	if err == nil && out.changesRows() {
		err = r.write(func(tx *sql.Tx) error { return in.insert(tx, out) })
	}
	if err != nil {
		return out, errors.Join(err, r.dropBlobs(take))
	}
	return out, nil
}

// judgeImport compares the archive with what is here.
func (r *Registry) judgeImport(in *incoming) (Imported, error) {
	src := in.source
	out := Imported{Name: src.Name, Version: src.Version, Digest: src.Digest, Action: ImportNew, Artifacts: []ImportedArtifact{}}
	old, err := r.Source(src.Name, src.Version)
	var absent *NotFoundError
	switch {
	case errors.As(err, &absent):
	case err != nil:
		return out, err
	case old.Digest != src.Digest:
		return out, &ExistsError{Name: src.Name, Version: src.Version}
	default:
		out.Action = ImportCurrent
	}
	type row struct {
		Artifact
		imported bool
	}
	rows, err := collect(r.db, func(rows *sql.Rows, a *row) error {
		return rows.Scan(&a.Digest, &a.Release, &a.imported, timeText{&a.Built})
	},
		`SELECT digest, release, imported, record ->> 'built' FROM artifact WHERE package = ? AND version = ? ORDER BY id`, src.Name, src.Version)
	if err != nil {
		return out, fmt.Errorf("read artifacts: %w", err)
	}
	known, newest := map[string]bool{}, map[string]row{}
	for _, a := range rows {
		known[a.Digest], newest[a.Release] = true, a
	}
	for _, a := range in.artifacts {
		d := ImportedArtifact{Release: a.Release, Digest: a.Digest, Action: ImportNew}
		switch here, some := newest[a.Release]; {
		case known[a.Digest]:
			d.Action = ImportCurrent
		case some && !here.imported:
			d.Action, d.Why = ImportSkip, "one that was built here stays"
		case some && !a.Built.After(here.Built):
			d.Action, d.Why = ImportSkip, "the one that is here is not older"
		}
		out.Artifacts = append(out.Artifacts, d)
	}
	return out, nil
}

// timeText scans a time out of a record.
type timeText struct{ *time.Time }

// Scan implements sql.Scanner.
func (t timeText) Scan(v any) error {
	text, _ := v.(string)
	return t.UnmarshalText([]byte(text))
}

// wanted are the blobs of what is new, and those of what is here already.
func (in *incoming) wanted(out Imported) (take, check []string) {
	put := func(action, digest string) {
		if _, here := in.sizes[digest]; !here { // a log that was gone
			return
		}
		if action == ImportNew {
			take = append(take, digest)
		} else if action == ImportCurrent {
			check = append(check, digest)
		}
	}
	put(out.Action, in.source.Digest)
	for i, a := range in.artifacts { // in the same order
		for _, d := range a.blobs() {
			put(out.Artifacts[i].Action, d)
		}
	}
	slices.Sort(take)
	take = slices.Compact(take)
	slices.Sort(check)
	check = slices.Compact(check)
	return take, slices.DeleteFunc(check, func(d string) bool { return slices.Contains(take, d) })
}

// takeOver moves blobs from the stage, where they are durable, to their place. One
// that is there is replaced, which heals it.
func (r *Registry) takeOver(in *incoming, digests []string) error {
	for _, d := range digests {
		if err := r.tree.Rename(filepath.Join(workDir, filepath.Base(in.dir), d), filepath.Join(blobDir, d)); err != nil {
			return err
		}
	}
	return syncDir(r.tree, blobDir)
}

func (i Imported) changesRows() bool {
	return i.Action == ImportNew || slices.ContainsFunc(i.Artifacts, func(a ImportedArtifact) bool { return a.Action == ImportNew })
}

// insert writes the rows of what is new. A source without origin was imported.
func (in *incoming) insert(tx *sql.Tx, out Imported) error {
	if out.Action == ImportNew {
		if err := insertSource(tx, in.source); err != nil {
			return err
		}
	}
	for i, a := range in.artifacts {
		if out.Artifacts[i].Action != ImportNew {
			continue
		}
		if err := insertArtifact(tx, a, in.records[a.Digest], true); err != nil {
			return err
		}
	}
	return nil
}
