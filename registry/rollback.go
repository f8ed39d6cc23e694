package registry

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
)

// Previous is what a rollback puts back.
type Previous struct {
	Artifact Artifact
	From     Install // one of the rows that it takes the place of
	Damaged  []error // why later ones are passed over: their blobs are damaged or missing
}

// Previous finds the artifact that a package had on a release before the one that is
// installed there. Of all that were ever installed there, in the order of their first
// install, it is the last before the current one that is still here, whole, and not the very same modules of the same version: after
// a rollback the next one goes further back. The error is a *NoPreviousError when
// there is none.
func (r *Registry) Previous(ctx context.Context, pkg, release string) (Previous, error) {
	p, err := r.previous(ctx, pkg, release)
	if err != nil {
		return Previous{}, fmt.Errorf("roll back %s for %s: %w", pkg, release, err)
	}
	return p, nil
}

func (r *Registry) previous(ctx context.Context, pkg, release string) (p Previous, err error) {
	rows, err := installRows(r.db, release)
	if err != nil {
		return p, err
	}
	i := slices.IndexFunc(rows, func(i Install) bool { return i.Package == pkg })
	if i < 0 {
		return p, &NoPreviousError{Package: pkg, Release: release}
	}
	p.From = rows[i]
	past, err := readPast(r.db, `package = ? AND release = ?`, pkg, release)
	if err != nil {
		return p, err
	}
	current, _, err := r.ArtifactByDigest(p.From.Artifact)
	if err != nil {
		return p, err
	}
	for _, digest := range before(past[place{pkg, release}], p.From.Artifact) {
		a, known, err := r.ArtifactByDigest(digest)
		if err != nil {
			return p, err
		}
		if !known || a.Version == current.Version && slices.Equal(a.koBlobs(), current.koBlobs()) { // built again, and came out the same
			continue
		}
		if err := r.checkModules(ctx, a); err == nil {
			p.Artifact = a
			return p, nil
		} else if ctx.Err() != nil {
			return p, context.Cause(ctx)
		} else {
			p.Damaged = append(p.Damaged, fmt.Errorf("%s@%s built %s: %w", a.Package, a.Version, a.Built.Format("2006-01-02 15:04"), err))
		}
	}
	return p, &NoPreviousError{Package: pkg, Release: release, Version: p.From.Version, Damaged: p.Damaged}
}

func (r *Registry) checkModules(ctx context.Context, a Artifact) error {
	for _, m := range a.Modules {
		if err := r.checkBlob(ctx, m.Digest); err != nil {
			return fmt.Errorf("module %s: %w", m.Name, err)
		}
	}
	return nil
}

// Rollback installs an artifact that Previous chose, and sets the pins with it, in one
// step: without one, the next build would put the newer one back. It is as Install else.
func (r *Registry) Rollback(ctx context.Context, a Artifact, pins Pins) (Result, error) {
	return r.install(ctx, intent{Op: OpRollback, Release: a.Release, Pins: pins}, []Artifact{a})
}

// place is where a package can be installed.
type place struct{ pkg, release string }

// readPast returns, for each place, the digests of all artifacts that were installed
// there, by their first install.
func readPast(q queryer, where string, args ...any) (map[place][]string, error) {
	type row struct {
		place
		artifact string
	}
	rows, err := collect(q, func(rows *sql.Rows, r *row) error { return rows.Scan(&r.pkg, &r.release, &r.artifact) },
		`SELECT package, release, artifact FROM attempt
		WHERE `+where+` AND op IN ('install', 'upgrade', 'rollback') AND outcome = 'ok' AND artifact <> ''
		GROUP BY package, release, artifact ORDER BY min(id)`, args...)
	past := map[place][]string{}
	for _, r := range rows {
		past[r.place] = append(past[r.place], r.artifact)
	}
	return past, err
}

// before returns what came before the current one, the latest first; all of it when
// the history does not know the current one.
func before(past []string, current string) []string {
	if i := slices.Index(past, current); i >= 0 {
		past = past[:i]
	}
	past = slices.Clone(past)
	slices.Reverse(past)
	return past
}
