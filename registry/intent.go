package registry

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"slices"
	"time"
)

// intent is what a command is about to do to /lib/modules of one release. Its row
// is committed before the first visible step and deleted after the last one, so
// that whoever finds it can finish the work.
type intent struct {
	Release  string    `json:"release"`
	Op       string    `json:"op"` // install, rollback or uninstall
	Packages []string  `json:"packages"`
	Before   []Install `json:"before"`   // rows of Packages as they were
	Target   []Install `json:"target"`   // rows of Packages as they shall be
	Attempts []Attempt `json:"attempts"` // one for each package, begun with the intent

	Originals []Original `json:"originals,omitempty"` // what Target shadows
	Pins      []Pin      `json:"pins,omitempty"`      // to be set with Target

	done bool // files, index and rows are right: only temporary names are left
}

// carryOut does what an intent and its steps say, or leaves all as it was.
//
// The order is: intent; new files under temporary names; their names; depmod;
// rows; temporary names away; intent away.
// Without visible steps only rows change.
func (r *Registry) carryOut(m *modules, in intent, steps []step, visible bool) (Result, error) {
	depmod, err := depmodCommand(r.root, m)
	if err != nil {
		return Result{}, err
	}
	if err := r.begin(&in, steps); err != nil {
		return Result{}, err
	}
	if visible {
		err = r.converge(m, in.Target, steps, depmod)
	}
	if err == nil {
		err = r.commit(m, in, in.Target, OutcomeOK, "")
	}
	if err != nil {
		if undo := m.rollBack(); undo != nil {
			return Result{}, fmt.Errorf("%w; undo: %w", err, undo)
		}
		return Result{}, errors.Join(err, r.abandon(in, err))
	}
	found := in.shadowed()
	if visible && len(in.Target) == 0 {
		found = m.foundAgain()
	}
	// The change is made and recorded. If only temporary names or the intent cannot be
	// deleted, the next writer does that.
	r.conclude(m, in)
	return result(in.Release, steps, visible, found), nil
}

// converge brings files and index to the target and checks the index.
func (r *Registry) converge(m *modules, target []Install, steps []step, depmod *exec.Cmd) error {
	if err := m.apply(steps, r.Blob); err != nil {
		return err
	}
	if err := m.reindex(depmod, r.lock); err != nil {
		return err
	}
	index, err := m.indexed()
	if err != nil {
		return err
	}
	for _, i := range target {
		if index[i.Module] != m.name(i.Path) {
			why := "another file of that name wins by depmod.d, or it is excluded"
			if c := i.Compression(); c != "" {
				why += ", or depmod was built without " + c
			}
			return &PackageError{i.Package, fmt.Errorf("depmod left %s out of modules.dep: %s", i.Path, why)}
		}
	}
	return nil
}

// resume finishes what was cut off on a release: forward when that can be done,
// back when a blob is damaged or depmod leaves a module out. An error leaves the intent for another time.
func (r *Registry) resume(release string) error {
	ins, err := readIntents(r.db, release)
	if err != nil || len(ins) == 0 {
		return err
	}
	in := ins[0]
	if err := r.finish(in); err != nil {
		return fmt.Errorf("finish %s that was cut off: %w", in.Op, err)
	}
	return nil
}

func (r *Registry) finish(in intent) error {
	m, err := openModules(r.root, in.Release)
	var gone *NoModulesError
	if errors.As(err, &gone) && in.done { // the rows are right
		return r.end(in)
	} else if errors.As(err, &gone) { // the kernel was removed since
		if _, err := r.forget(in); err != nil {
			return err
		}
		r.note("forgot %s for %s: the kernel is gone", in.Op, in.Release)
		return nil
	} else if err != nil {
		return err
	}
	defer m.Close()
	if err := m.use(slices.Concat(in.Before, in.Target)); err != nil {
		return err
	}
	if in.done {
		return r.conclude(m, in)
	}
	err = r.goTo(m, in, in.Target, OutcomeOK, "")
	word := "finished"
	var damaged *CorruptError
	var blamed *PackageError // depmod leaves its module out
	if errors.As(err, &damaged) || errors.Is(err, fs.ErrNotExist) || errors.As(err, &blamed) {
		word = "undid"
		err = r.goTo(m, in, in.Before, OutcomeFailed, err.Error())
	}
	if err == nil {
		r.note("%s %s for %s", word, in.Op, in.Release)
	}
	return err
}

// goTo makes files, index and rows those of target, whatever a crash left.
func (r *Registry) goTo(m *modules, in intent, target []Install, outcome, reason string) error {
	depmod, err := depmodCommand(r.root, m)
	if err != nil {
		return err
	}
	steps, err := m.plan(slices.Concat(in.Before, in.Target), target)
	if err != nil {
		return err
	}
	err = r.converge(m, target, steps, depmod)
	if blamed := (*PackageError)(nil); errors.As(err, &blamed) && outcome != OutcomeOK {
		err = nil // the state before: that its index is another by now is the machine's doing, and verify's to tell
	}
	if err != nil {
		return errors.Join(err, m.rollBack())
	}
	if err := r.commit(m, in, target, outcome, reason); err != nil {
		return err
	}
	return r.conclude(m, in)
}

// conclude ends an intent that is done: its temporary names go first.
func (r *Registry) conclude(m *modules, in intent) error {
	if err := m.settle(); err != nil {
		return err
	}
	return r.end(in)
}

// end deletes an intent that is done, and what was installed before it and is no artifact's.
func (r *Registry) end(in intent) error {
	err := r.write(func(tx *sql.Tx) error { return deleteIntent(tx, in.Release) })
	if err == nil {
		r.leave(r.dropBlobs(in.dressed()))
	}
	return err
}

// dressed are the blobs of the signed or compressed files that were installed before; what is named still stays.
func (in *intent) dressed() (blobs []string) {
	for _, i := range in.Before {
		if i.Signer != "" || i.Compression() != "" {
			blobs = append(blobs, i.Digest)
		}
	}
	return blobs
}

// begin commits the intent and one running attempt for each package that a step
// is about, or for all of them when only the index is at stake.
func (r *Registry) begin(in *intent, steps []step) error {
	return r.write(func(tx *sql.Tx) error {
		all := slices.Concat(in.Target, in.Before)
		for _, pkg := range in.Packages {
			i := slices.IndexFunc(all, func(i Install) bool { return i.Package == pkg })
			idle := len(steps) > 0 && !slices.ContainsFunc(steps, func(s step) bool { return s.row.Package == pkg })
			if i < 0 || idle {
				continue
			}
			a, err := beginAttempt(tx, Attempt{Op: in.opOf(pkg), Package: pkg, Version: all[i].Version, Release: in.Release, Artifact: all[i].Artifact})
			if err != nil {
				return err
			}
			in.Attempts = append(in.Attempts, a)
		}
		body, err := json.Marshal(in)
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO intent (release, done, body) VALUES (?, 0, ?)`, in.Release, string(body))
		return err
	})
}

// opOf is what an intent does to one of its packages.
func (in *intent) opOf(pkg string) string {
	of := func(i Install) bool { return i.Package == pkg }
	old, new := slices.IndexFunc(in.Before, of), slices.IndexFunc(in.Target, of)
	if in.Op == OpInstall && old >= 0 && new >= 0 && in.Before[old].Version != in.Target[new].Version {
		return OpUpgrade
	}
	return in.Op
}

// commit writes the rows that are true now and marks the intent as done. What an
// intent wants to be kept beside them is kept when its target is reached.
func (r *Registry) commit(m *modules, in intent, target []Install, outcome, reason string) error {
	if err := m.stamp(target); err != nil {
		return err
	}
	stamp := kernelStamp(m.tree)
	return r.write(func(tx *sql.Tx) error {
		if err := putKernel(tx, in.Release, stamp); err != nil {
			return err
		}
		if outcome == OutcomeOK {
			if err := putOriginals(tx, in); err != nil {
				return err
			}
			for _, p := range in.Pins {
				if err := putPin(tx, p); err != nil {
					return err
				}
			}
		}
		for _, pkg := range in.Packages {
			if _, err := tx.Exec(`DELETE FROM install WHERE release = ? AND package = ?`, in.Release, pkg); err != nil {
				return err
			}
		}
		for _, i := range target {
			if err := insertInstall(tx, i); err != nil {
				return err
			}
		}
		if err := endAttempts(tx, in, outcome, reason); err != nil {
			return err
		}
		_, err := tx.Exec(`UPDATE intent SET done = 1 WHERE release = ?`, in.Release)
		return err
	})
}

func insertInstall(tx *sql.Tx, i Install) error {
	_, err := tx.Exec(`INSERT INTO install (`+installColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, i.columns()...)
	return err
}

// installColumns are those of an install row, as columns has them.
const installColumns = "release, module, path, package, version, artifact, digest, size, at, mtime, signer"

func (i Install) columns() []any {
	return []any{i.Release, i.Module, i.Path, i.Package, i.Version, i.Artifact, i.Digest, i.Size, i.At.UnixNano(), i.Mtime, i.Signer}
}

// abandon records that an intent failed and was undone.
func (r *Registry) abandon(in intent, cause error) error {
	return r.write(func(tx *sql.Tx) error {
		if err := endAttempts(tx, in, OutcomeFailed, cause.Error()); err != nil {
			return err
		}
		return deleteIntent(tx, in.Release)
	})
}

// forget drops the rows of an intent's packages when the release's folder is gone.
func (r *Registry) forget(in intent) (Result, error) {
	var steps []step
	for _, i := range in.Before {
		steps = append(steps, step{actRemove, i})
	}
	err := r.write(func(tx *sql.Tx) error {
		for _, i := range in.Before {
			for _, table := range []string{"install", "original"} {
				if _, err := tx.Exec(`DELETE FROM `+table+` WHERE release = ? AND module = ?`, i.Release, i.Module); err != nil {
					return err
				}
			}
		}
		if err := endAttempts(tx, in, OutcomeFailed, "the kernel is gone"); err != nil {
			return err
		}
		return deleteIntent(tx, in.Release)
	})
	if err == nil {
		r.leave(r.dropBlobs(in.dressed()))
	}
	return result(in.Release, steps, false, nil), err
}

func endAttempts(tx *sql.Tx, in intent, outcome, reason string) error {
	for _, a := range in.Attempts {
		if _, err := tx.Exec(`UPDATE attempt SET outcome = ?, error = ?, seconds = ? WHERE id = ?`,
			outcome, reason, time.Since(a.Started).Seconds(), a.ID); err != nil {
			return err
		}
	}
	return nil
}

func deleteIntent(tx *sql.Tx, release string) error {
	_, err := tx.Exec(`DELETE FROM intent WHERE release = ?`, release)
	return err
}

// readIntents reads the intent of one release, or all of them when it is "".
func readIntents(q queryer, release string) ([]intent, error) {
	return collect(q, func(rows *sql.Rows, in *intent) error {
		var body string
		if err := rows.Scan(&in.done, &body); err != nil {
			return err
		}
		return json.Unmarshal([]byte(body), in)
	}, `SELECT done, body FROM intent WHERE ?1 = '' OR release = ?1 ORDER BY release`, release)
}
