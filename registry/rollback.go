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
// installed there: the last of its past that is still here, whole, and not the very same
// modules of the same version. What a rollback took away is no past any more: the next
// one goes further back. The error is a *NoPreviousError when there is none.
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
	history, err := readPast(r.db, `package = ? AND release = ?`, pkg, release)
	if err != nil {
		return p, err
	}
	current, _, err := r.ArtifactByDigest(p.From.Artifact)
	if err != nil {
		return p, err
	}
	for _, digest := range history[place{pkg, release}].before(p.From.Artifact) {
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
func (r *Registry) Rollback(ctx context.Context, a Artifact, pins Pins, dress Dress) (Result, error) {
	return r.install(ctx, intent{Op: OpRollback, Release: a.Release, Pins: pins}, []Artifact{a}, dress)
}

// place is where a package can be installed.
type place struct{ pkg, release string }

// past is what was installed at a place and not taken away by a rollback since: the
// digests of artifacts, the latest last.
type past []string

// readPast replays, for each place, the installs, upgrades and rollbacks that went well.
func readPast(q queryer, where string, args ...any) (map[place]past, error) {
	type row struct {
		place
		op, artifact string
	}
	rows, err := collect(q, func(rows *sql.Rows, r *row) error { return rows.Scan(&r.pkg, &r.release, &r.op, &r.artifact) },
		`SELECT package, release, op, artifact FROM attempt
		WHERE `+where+` AND op IN ('install', 'upgrade', 'rollback') AND outcome = 'ok' AND artifact <> '' ORDER BY id`, args...)
	all := map[place]past{}
	for _, r := range rows {
		all[r.place] = all[r.place].after(r.op, r.artifact)
	}
	return all, err
}

// after is what a past becomes by an operation: a rollback drops what came after the artifact
// that it put back.
func (p past) after(op, artifact string) past {
	i := len(p) - 1
	if op == OpRollback {
		for i >= 0 && p[i] != artifact {
			i--
		}
	}
	if i >= 0 && p[i] == artifact {
		return p[:i+1]
	}
	return append(p[:len(p):len(p)], artifact)
}

// before is what came before the current one, the latest first; all of it when the
// current one is not what the history says.
func (p past) before(current string) []string {
	if n := len(p); n > 0 && p[n-1] == current {
		p = p[:n-1]
	}
	older := slices.Clone(p)
	slices.Reverse(older)
	return older
}
