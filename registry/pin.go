package registry

import (
	"database/sql"
	"fmt"
	"time"
)

// Pin holds a package at a version, for one kernel release or for all: build, install
// and load take it instead of the newest, and GC keeps it.
type Pin struct {
	Package  string    `json:"package"`
	Release  string    `json:"release,omitempty"` // "" for every kernel that has no pin of its own
	Version  string    `json:"version"`
	Artifact string    `json:"artifact,omitempty"` // digest of the one artifact, as rollback chose it; "" for the newest of the version
	At       time.Time `json:"at"`
}

// Pins are by package and release.
type Pins []Pin

// For returns the pin that holds a package on a kernel release: the one for that
// release, else the one for every kernel.
func (ps Pins) For(pkg, release string) (pin Pin, ok bool) {
	for _, p := range ps {
		if p.Package == pkg && (p.Release == release || p.Release == "" && !ok) {
			pin, ok = p, true
		}
	}
	return pin, ok
}

// Pins returns all pins.
func (r *Registry) Pins() (Pins, error) {
	pins, err := readPins(r.db)
	if err != nil {
		return nil, fmt.Errorf("read pins: %w", err)
	}
	return pins, nil
}

func readPins(q queryer) (Pins, error) {
	return collect(q, func(rows *sql.Rows, p *Pin) error {
		var at int64
		err := rows.Scan(&p.Package, &p.Release, &p.Version, &p.Artifact, &at)
		p.At = time.Unix(0, at).UTC()
		return err
	}, `SELECT package, release, version, artifact, at FROM pin ORDER BY package, release`)
}

// SetPin pins a package, in place of its pin for the same release. The version must
// be registered: the error is a *NotFoundError else.
func (r *Registry) SetPin(p Pin) error {
	if _, err := r.Source(p.Package, p.Version); err != nil {
		return fmt.Errorf("pin %s: %w", p.Package, err)
	}
	if err := r.write(func(tx *sql.Tx) error { return putPin(tx, p) }); err != nil {
		return fmt.Errorf("pin %s: %w", p.Package, err)
	}
	return nil
}

// Unpin removes a package's pin for a release, whatever its version.
func (r *Registry) Unpin(p Pin) error {
	err := r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM pin WHERE package = ? AND release = ?`, p.Package, p.Release)
		return err
	})
	if err != nil {
		return fmt.Errorf("unpin %s: %w", p.Package, err)
	}
	return nil
}

func putPin(tx *sql.Tx, p Pin) error {
	if p.At.IsZero() {
		p.At = time.Now()
	}
	_, err := tx.Exec(`INSERT OR REPLACE INTO pin VALUES (?, ?, ?, ?, ?)`, p.Package, p.Release, p.Version, p.Artifact, p.At.UnixNano())
	return err
}
