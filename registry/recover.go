package registry

import (
	"database/sql"
	"fmt"
)

// recover cleans up after writers that are gone. It finishes their
// intents and calls their running attempts interrupted. What cannot be finished now, such as on a read-only
// /lib/modules, is reported and waits: it must not keep other kernels from work.
func (r *Registry) recover() error {
	r.sweepWork()
	if err := r.sweepBlobs(); err != nil {
		return err
	}
	waiting, err := r.Resume()
	if err != nil {
		return err
	}
	for _, why := range waiting {
		r.note("%v", why)
	}
	if err := r.resumeRemovals(); err != nil {
		return err
	}
	if err := r.noteKernels(); err != nil {
		return err
	}
	const unfinished = `outcome = '' AND id NOT IN (SELECT a.value ->> 'id' FROM intent, json_each(intent.body, '$.attempts') a)`
	as, err := collect(r.db, func(rows *sql.Rows, a *Attempt) error {
		return rows.Scan(&a.Op, &a.Package, &a.Version, &a.Release)
	}, `SELECT op, package, version, release FROM attempt WHERE `+unfinished)
	if err != nil || len(as) == 0 {
		return err
	}
	for _, a := range as {
		r.note("%s of %s@%s for %s was interrupted", a.Op, a.Package, a.Version, a.Release)
	}
	return r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE attempt SET outcome = 'interrupted' WHERE ` + unfinished)
		return err
	})
}

// Resume finishes intents that were cut off. waiting tells, one error for each, of those that cannot be
// finished now: OpenWriter has tried, but what was in the way may be mended since.
func (r *Registry) Resume() (waiting []error, err error) {
	ins, err := readIntents(r.db, "")
	for _, in := range ins {
		if err := r.resume(in.Release); err != nil {
			waiting = append(waiting, fmt.Errorf("%s: %w", in.Release, err))
		}
		for _, a := range in.Attempts {
			r.resumed = append(r.resumed, a.ID)
		}
	}
	return waiting, err
}

// Unfinished tells, one line for each thing, what has been begun and not ended.
// holder is the writer at work, as in "pid 123 (kmodctl build)". When it is "",
// what is unfinished was cut off, and the next OpenWriter takes care of it.
func (r *Registry) Unfinished() (what []string, holder string, err error) {
	if r.tree == nil {
		return nil, "", nil
	}
	// The holder first: what a writer ends in between is not listed as cut off.
	words, live, err := lockWords(r.tree)
	if err != nil {
		return nil, "", fmt.Errorf("read lock: %w", err)
	}
	if live {
		holder = words
	}
	ins, err := readIntents(r.db, "")
	if err != nil {
		return nil, "", fmt.Errorf("read intents: %w", err)
	}
	for _, in := range ins {
		what = append(what, fmt.Sprintf("%s for %s", in.Op, in.Release))
	}
	cut, err := readRemovals(r.db)
	if err != nil {
		return nil, "", fmt.Errorf("read removals: %w", err)
	}
	for _, s := range cut {
		what = append(what, fmt.Sprintf("remove of %s@%s", s.Name, s.Version))
	}
	as, err := collect(r.db, func(rows *sql.Rows, a *Attempt) error {
		return rows.Scan(&a.Op, &a.Package, &a.Version, &a.Release)
	}, `SELECT op, package, version, release FROM attempt WHERE outcome = '' AND op = 'build' ORDER BY id`)
	if err != nil {
		return nil, "", fmt.Errorf("read attempts: %w", err)
	}
	for _, a := range as {
		what = append(what, fmt.Sprintf("%s of %s@%s for %s", a.Op, a.Package, a.Version, a.Release))
	}
	return what, holder, nil
}
