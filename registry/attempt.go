package registry

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// What an Attempt tries, and how it ended; "" while it runs.
const (
	OpBuild     = "build"
	OpReuse     = "reuse" // a build for another kernel is taken
	OpInstall   = "install"
	OpUpgrade   = "upgrade" // an install in place of another version
	OpRollback  = "rollback"
	OpUninstall = "uninstall"

	// Scripts of a dkms.conf that change the machine. The first is about no kernel.
	OpPostAdd     = "post_add"
	OpPreInstall  = "pre_install"
	OpPostInstall = "post_install"
	OpPostRemove  = "post_remove"

	OutcomeOK          = "ok"
	OutcomeFailed      = "failed"
	OutcomeInterrupted = "interrupted"
)

// Attempt is one try to build, install or uninstall a package, or to run a script of it, kept until Forget.
// The log may be gone: GC drops those of kernels that are.
type Attempt struct {
	ID        int64     `json:"id"`
	Op        string    `json:"op"` // build, reuse, install, upgrade, rollback, uninstall, or a script's
	Package   string    `json:"package"`
	Version   string    `json:"version"`
	Release   string    `json:"release"`
	Outcome   string    `json:"outcome"` // ok, failed or interrupted; "" while it runs
	Error     string    `json:"error,omitempty"`
	Class     string    `json:"class,omitempty"` // of a failed build: the kind of cause, in the builder's word
	Started   time.Time `json:"started"`
	Seconds   float64   `json:"seconds"`
	Log       string    `json:"log,omitempty"` // digest of the log's blob
	InputHash string    `json:"input_hash,omitempty"`
	Inputs    []Input   `json:"inputs,omitempty"`   // of a build; kept once for each InputHash, and not read back by Attempts
	Artifact  string    `json:"artifact,omitempty"` // digest of the record: what was built, or is to be installed
}

// Places tells attempts that change what is installed from those that bring an artifact into the registry, and from scripts.
func (a Attempt) Places() bool {
	return a.Op == OpInstall || a.Op == OpUpgrade || a.Op == OpRollback || a.Op == OpUninstall
}

// BeginAttempt adds an attempt that runs and returns it with ID and Started. If
// nobody finishes it, the next writer calls it interrupted.
func (r *Registry) BeginAttempt(a Attempt) (Attempt, error) {
	err := r.write(func(tx *sql.Tx) error {
		var err error
		a, err = beginAttempt(tx, a)
		return err
	})
	if err != nil {
		return a, fmt.Errorf("record %s of %s: %w", a.Op, a.Package, err)
	}
	return a, nil
}

func beginAttempt(tx *sql.Tx, a Attempt) (Attempt, error) {
	if a.Started.IsZero() {
		a.Started = time.Now()
	}
	a.Outcome = ""
	if a.Inputs != nil {
		text, err := json.Marshal(a.Inputs)
		if err != nil {
			return a, err
		}
		if _, err := tx.Exec(`INSERT OR IGNORE INTO inputs VALUES (?, ?)`, a.InputHash, string(text)); err != nil {
			return a, err
		}
	}
	res, err := tx.Exec(`INSERT INTO attempt (op, package, version, release, outcome, error, started, seconds, log, input_hash, artifact)
		VALUES (?, ?, ?, ?, '', '', ?, 0, ?, ?, ?)`,
		a.Op, a.Package, a.Version, a.Release, a.Started.UnixNano(), a.Log, a.InputHash, a.Artifact)
	if err != nil {
		return a, err
	}
	a.ID, err = res.LastInsertId()
	return a, err
}

// FinishAttempt records Outcome, Error, Class, Log, InputHash and Artifact of an attempt that
// BeginAttempt returned. Seconds is the time since Started when it is 0.
func (r *Registry) FinishAttempt(a Attempt) error {
	if a.Seconds == 0 {
		a.Seconds = time.Since(a.Started).Seconds()
	}
	err := r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE attempt SET outcome = ?, error = ?, class = ?, seconds = ?, log = ?, input_hash = ?, artifact = ? WHERE id = ?`,
			a.Outcome, a.Error, a.Class, a.Seconds, a.Log, a.InputHash, a.Artifact, a.ID)
		return err
	})
	if err != nil {
		return fmt.Errorf("record %s of %s: %w", a.Op, a.Package, err)
	}
	return nil
}

// Attempts returns the last n attempts, newest first: of one package or of all
// (""), for one kernel release or for all (""). All of them when n is not above 0.
func (r *Registry) Attempts(pkg, release string, n int) ([]Attempt, error) {
	if n <= 0 {
		n = -1
	}
	of := "1"
	if pkg != "" { // said so, the index attempt_package serves it
		of = "package = ?1"
	}
	as, err := collect(r.db, func(rows *sql.Rows, a *Attempt) error {
		var started int64
		err := rows.Scan(&a.ID, &a.Op, &a.Package, &a.Version, &a.Release, &a.Outcome, &a.Error, &started, &a.Seconds, &a.Log, &a.InputHash, &a.Artifact, &a.Class)
		a.Started = time.Unix(0, started).UTC()
		return err
	}, `SELECT id, op, package, version, release, outcome, error, started, seconds, log, input_hash, artifact, class FROM attempt
		WHERE `+of+` AND (?2 = '' OR release = ?2) ORDER BY id DESC LIMIT ?3`, pkg, release, n)
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	return as, nil
}

// Failures returns, of some packages or of all when none is named, the last build of each
// version for each kernel release where that failed: Package, Version, Release,
// InputHash, Error, Class and Log.
func (r *Registry) Failures(packages ...string) ([]Attempt, error) {
	of, args := ofPackages(packages)
	as, err := collect(r.db, func(rows *sql.Rows, a *Attempt) error {
		return rows.Scan(&a.Package, &a.Version, &a.Release, &a.InputHash, &a.Error, &a.Class, &a.Log)
	}, `SELECT package, version, release, input_hash, error, class, log FROM attempt WHERE id IN (
		SELECT id FROM (SELECT max(id) AS id, outcome FROM attempt
			WHERE op = 'build' AND outcome IN ('ok', 'failed')`+of+` GROUP BY package, version, release)
		WHERE outcome = 'failed')`, args...)
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	return as, nil
}

// Builds returns, of some packages or of all when none is named, the last build of each version
// for each kernel release that went well, oldest first: Package, Version, Release and Seconds.
func (r *Registry) Builds(packages ...string) ([]Attempt, error) {
	of, args := ofPackages(packages)
	as, err := collect(r.db, func(rows *sql.Rows, a *Attempt) error {
		return rows.Scan(&a.Package, &a.Version, &a.Release, &a.Seconds)
	}, `SELECT package, version, release, seconds FROM attempt WHERE id IN (
		SELECT max(id) FROM attempt WHERE op = 'build' AND outcome IN ('ok', 'failed') AND outcome = 'ok'`+of+`
		GROUP BY package, version, release) ORDER BY id`, args...)
	if err != nil {
		return nil, fmt.Errorf("read attempts: %w", err)
	}
	return as, nil
}

// Inputs returns what a build attempt's InputHash stands for; none when it is not known.
func (r *Registry) Inputs(hash string) ([]Input, error) {
	texts, err := collect(r.db, scanText, `SELECT inputs FROM inputs WHERE hash = ?`, hash)
	if err != nil || len(texts) == 0 {
		return nil, err
	}
	var in []Input
	if err := json.Unmarshal([]byte(texts[0]), &in); err != nil {
		return nil, fmt.Errorf("read inputs %s: %w", hash, err)
	}
	return in, nil
}

// Forget removes the attempts of a version of a package, or of all its versions (""), with the logs and the inputs
// that nothing else names, and returns how many there were. What is registered has its history: that is an error.
func (r *Registry) Forget(name, version string) (n int64, err error) {
	const of = `package = ?1 AND (?2 = '' OR version = ?2)`
	var logs []string
	err = r.write(func(tx *sql.Tx) error {
		kept, err := collect(tx, scanText, `SELECT version FROM source WHERE name = ?1 AND (?2 = '' OR version = ?2)`, name, version)
		if err != nil {
			return err
		}
		if len(kept) > 0 {
			return errors.New("it is registered")
		}
		if logs, err = collect(tx, scanText, `SELECT DISTINCT log FROM attempt WHERE `+of, name, version); err != nil {
			return err
		}
		res, err := tx.Exec(`DELETE FROM attempt WHERE `+of, name, version)
		if err != nil {
			return err
		}
		if n, err = res.RowsAffected(); err != nil {
			return err
		}
		_, err = tx.Exec(`DELETE FROM inputs WHERE hash NOT IN (SELECT input_hash FROM attempt UNION SELECT input_hash FROM artifact)`)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("forget the history of %s: %w", name, err)
	}
	r.leave(r.dropBlobs(logs))
	return n, nil
}
