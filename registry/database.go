package registry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"modernc.org/sqlite"
)

const (
	dbFile        = "registry.db"
	schemaVersion = "1"
)

// schema of version 1. Times are nanoseconds since 1970, digests SHA-256 in hex.
const schema = `
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE source (
	name TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL, origin TEXT NOT NULL,
	added INTEGER NOT NULL, manifest TEXT NOT NULL, files TEXT NOT NULL,
	PRIMARY KEY (name, version)) STRICT;
CREATE TABLE artifact (
	id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE,
	package TEXT NOT NULL, version TEXT NOT NULL, release TEXT NOT NULL,
	input_hash TEXT NOT NULL, record TEXT NOT NULL) STRICT;
CREATE INDEX artifact_target ON artifact (package, version, release, id);
CREATE INDEX artifact_input ON artifact (input_hash);
CREATE TABLE attempt (
	id INTEGER PRIMARY KEY, op TEXT NOT NULL,
	package TEXT NOT NULL, version TEXT NOT NULL, release TEXT NOT NULL,
	outcome TEXT NOT NULL, error TEXT NOT NULL, started INTEGER NOT NULL,
	seconds REAL NOT NULL, log TEXT NOT NULL, input_hash TEXT NOT NULL) STRICT;
CREATE INDEX attempt_package ON attempt (package, id);
CREATE INDEX attempt_unfinished ON attempt (id) WHERE outcome = '';
CREATE TABLE install (
	release TEXT NOT NULL, module TEXT NOT NULL, path TEXT NOT NULL,
	package TEXT NOT NULL, version TEXT NOT NULL,
	artifact TEXT NOT NULL REFERENCES artifact (digest),
	digest TEXT NOT NULL, size INTEGER NOT NULL, at INTEGER NOT NULL,
	PRIMARY KEY (release, module)) STRICT;
CREATE TABLE intent (release TEXT PRIMARY KEY, done INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TABLE tool (
	path TEXT PRIMARY KEY, resolved TEXT NOT NULL, size INTEGER NOT NULL,
	mtime INTEGER NOT NULL, inode INTEGER NOT NULL, identity TEXT NOT NULL) STRICT;
`

// connector opens connections that leave the -wal and -shm files where they are
// when they close: without them, a user who may not write to the folder could
// not read a database in WAL mode (SQLITE_FCNTL_PERSIST_WAL, sqlite3.h).
type connector struct {
	dsn     string
	persist bool
}

func (c connector) Driver() driver.Driver { return &sqlite.Driver{} }

func (c connector) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.Driver().Open(c.dsn)
	if err != nil || !c.persist {
		return conn, err
	}
	if _, err := conn.(sqlite.FileControl).FileControlPersistWAL("main", 1); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// connect opens the database file with one of SQLite's URI modes: ro, rw or
// memory. A reader may map -shm for writing when its rights allow it: with
// readonly_shm, a writer of the same process could not write either.
func connect(file, mode string) *sql.DB {
	q := url.Values{"mode": {mode}, "_txlock": {"immediate"}, "_pragma": {"busy_timeout(10000)"}}
	if mode == "rw" {
		q.Add("_pragma", "foreign_keys(1)")
		q.Add("_pragma", "journal_mode(wal)")
		q.Add("_pragma", "synchronous(full)")
		q.Add("_pragma", "journal_size_limit(0)") // -wal is empty after a clean close
	}
	u := url.URL{Scheme: "file", Path: file, OmitHost: true, RawQuery: q.Encode()}
	db := sql.OpenDB(connector{u.String(), mode == "rw"})
	db.SetMaxOpenConns(1) // one mapping, one set of locks
	return db
}

// openDB connects and checks the schema's version. Mode memory is an empty registry.
func openDB(ctx context.Context, file, mode string) (*sql.DB, error) {
	db := connect(file, mode)
	var err error
	if mode == "memory" {
		_, err = db.ExecContext(ctx, schema)
	} else {
		err = patiently(func() error { return checkSchema(ctx, db, file) })
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

func checkSchema(ctx context.Context, db *sql.DB, file string) error {
	e := &SchemaError{Path: file}
	rows, err := db.QueryContext(ctx, `SELECT key, value FROM meta`)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	defer rows.Close()
	for rows.Next() {
		var key, value string
		if err := rows.Scan(&key, &value); err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		switch key {
		case "schema":
			e.Schema = value
		case "kmodctl":
			e.WrittenBy = value
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if e.Schema != schemaVersion {
		return e
	}
	return nil
}

// writerDB opens the database for writing. A new one is made in a work folder and
// its three files are renamed here, registry.db last, so that no reader ever
// meets one without schema, -wal or -shm.
func (r *Registry) writerDB(ctx context.Context, version string) (*sql.DB, error) {
	file := filepath.Join(r.dir, dbFile)
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		if err := r.createDB(ctx, version); err != nil {
			return nil, fmt.Errorf("create %s: %w", file, err)
		}
	} else if err != nil {
		return nil, err
	}
	return openDB(ctx, file, "rw")
}

func (r *Registry) createDB(ctx context.Context, version string) error {
	dir, done, err := r.NewWork("new")
	if err != nil {
		return err
	}
	defer done()
	file := filepath.Join(dir, dbFile)
	// SQLite gives -wal and -shm the mode of the database file.
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		return err
	}
	if err := os.Chmod(file, 0o644); err != nil {
		return err
	}
	db := connect(file, "rw")
	_, err = db.ExecContext(ctx, "BEGIN;"+schema+`INSERT INTO meta VALUES ('schema', ?), ('kmodctl', ?); COMMIT`, schemaVersion, version)
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	for _, suffix := range []string{"-wal", "-shm", ""} {
		if err := os.Rename(file+suffix, filepath.Join(r.dir, dbFile+suffix)); err != nil {
			return err
		}
	}
	return syncDir(r.tree, ".")
}

// write runs f in one durable transaction.
func (r *Registry) write(f func(*sql.Tx) error) error {
	if r.lock == nil {
		return ErrReadOnly
	}
	err := r.transact(f)
	if e := (*sqlite.Error)(nil); errors.As(err, &e) { // it does not say where
		return fmt.Errorf("write %s: %w", filepath.Join(r.dir, dbFile), err)
	}
	return err
}

func (r *Registry) transact(f func(*sql.Tx) error) error {
	tx, err := r.db.Begin()
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// queryer is what *sql.DB and *sql.Tx have in common.
type queryer interface {
	Query(query string, args ...any) (*sql.Rows, error)
}

// collect runs a query and scans every row. It reads all of them before it
// returns, for there is one connection only.
func collect[T any](q queryer, scan func(*sql.Rows, *T) error, query string, args ...any) (all []T, err error) {
	err = patiently(func() error {
		all, err = collectOnce(q, scan, query, args...)
		return err
	})
	return all, err
}

func collectOnce[T any](q queryer, scan func(*sql.Rows, *T) error, query string, args ...any) ([]T, error) {
	rows, err := q.Query(query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		var v T
		if err := scan(rows, &v); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}
