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
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
)

const (
	dbFile        = "registry.db"
	schemaVersion = "6"
)

// dbSuffixes name the three files of a database, in the order in which they take their place.
var dbSuffixes = []string{"-wal", "-shm", ""}

// schema of version 6. Times are nanoseconds since 1970, digests SHA-256 in hex.
const schema = `
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE source (
	name TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL, origin TEXT NOT NULL,
	added INTEGER NOT NULL, manifest TEXT NOT NULL, files TEXT NOT NULL,
	PRIMARY KEY (name, version)) STRICT;
CREATE TABLE artifact (
	id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE,
	package TEXT NOT NULL, version TEXT NOT NULL, release TEXT NOT NULL,
	input_hash TEXT NOT NULL, record TEXT NOT NULL, imported INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX artifact_input ON artifact (input_hash);
CREATE TABLE attempt (
	id INTEGER PRIMARY KEY, op TEXT NOT NULL,
	package TEXT NOT NULL, version TEXT NOT NULL, release TEXT NOT NULL,
	outcome TEXT NOT NULL, error TEXT NOT NULL, started INTEGER NOT NULL,
	seconds REAL NOT NULL, log TEXT NOT NULL, input_hash TEXT NOT NULL, artifact TEXT NOT NULL DEFAULT '',
	class TEXT NOT NULL DEFAULT '') STRICT;
CREATE INDEX attempt_package ON attempt (package, id);
CREATE INDEX attempt_unfinished ON attempt (id) WHERE outcome = '';
CREATE TABLE install (
	release TEXT NOT NULL, module TEXT NOT NULL, path TEXT NOT NULL,
	package TEXT NOT NULL, version TEXT NOT NULL,
	artifact TEXT NOT NULL REFERENCES artifact (digest),
	digest TEXT NOT NULL, size INTEGER NOT NULL, at INTEGER NOT NULL, mtime INTEGER NOT NULL DEFAULT 0,
	signer TEXT NOT NULL DEFAULT '',
	PRIMARY KEY (release, module)) STRICT;
CREATE TABLE intent (release TEXT PRIMARY KEY, done INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
` + schema2 + schema3 + schema5

// schema2 is what version 2 has and version 1 had not, but for columns.
const schema2 = `
CREATE TABLE inputs (hash TEXT PRIMARY KEY, inputs TEXT NOT NULL) STRICT;
CREATE TABLE original (
	release TEXT NOT NULL, module TEXT NOT NULL, path TEXT NOT NULL,
	digest TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (release, module)) STRICT;
CREATE TABLE pin (
	package TEXT NOT NULL, release TEXT NOT NULL, version TEXT NOT NULL,
	artifact TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (package, release)) STRICT;
CREATE TABLE removal (name TEXT NOT NULL, version TEXT NOT NULL, PRIMARY KEY (name, version)) STRICT;
CREATE TABLE kernel (release TEXT PRIMARY KEY, stamp TEXT NOT NULL, gone INTEGER NOT NULL) STRICT;
CREATE INDEX artifact_newest ON artifact (package, version, release, id, digest, input_hash, record ->> '$.modules');
CREATE INDEX attempt_build ON attempt (package, version, release, id, outcome) WHERE op = 'build' AND outcome IN ('ok', 'failed');
CREATE INDEX install_package ON install (package);
CREATE INDEX install_artifact ON install (artifact);
`

// schema3 is what version 3 has and version 2 had not.
const schema3 = `
CREATE TABLE file (
	path TEXT NOT NULL, what TEXT NOT NULL, dev INTEGER NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL,
	mtime INTEGER NOT NULL, ctime INTEGER NOT NULL, answer TEXT NOT NULL, PRIMARY KEY (path, what)) STRICT;
CREATE INDEX install_digest ON install (digest);
`

// schema5 is what version 5 has and version 4 had not.
const schema5 = `
CREATE TABLE beside (
	path TEXT PRIMARY KEY, package TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL, was TEXT NOT NULL) STRICT;
`

// migrations lead from the schema of that version to the next one. A writer runs
// them in one transaction, a reader on a copy of his own.
var migrations = map[string]struct{ next, sql string }{
	"1": {"2", schema2 + `
DROP INDEX artifact_target;
ALTER TABLE artifact ADD COLUMN imported INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempt ADD COLUMN artifact TEXT NOT NULL DEFAULT '';
ALTER TABLE install ADD COLUMN mtime INTEGER NOT NULL DEFAULT 0;
INSERT OR IGNORE INTO inputs SELECT input_hash, coalesce(record ->> 'inputs', '[]') FROM artifact;
INSERT INTO kernel SELECT DISTINCT release, '', 0 FROM artifact;
UPDATE attempt SET artifact = coalesce((SELECT digest FROM artifact a WHERE a.package = attempt.package
	AND a.version = attempt.version AND a.release = attempt.release AND a.input_hash = attempt.input_hash LIMIT 1), '')
	WHERE op = 'build' AND outcome = 'ok';
UPDATE attempt SET artifact = i.artifact FROM install i WHERE attempt.id = (SELECT max(id) FROM attempt l
	WHERE l.package = i.package AND l.version = i.version AND l.release = i.release AND l.op = 'install' AND l.outcome = 'ok');
`},
	"2": {"3", schema3 + `DROP TABLE tool;`},
	"3": {"4", `ALTER TABLE attempt ADD COLUMN class TEXT NOT NULL DEFAULT '';`},
	"4": {"5", schema5},
	// What was adopted is as another program has made it.
	"5": {"6", `
ALTER TABLE install ADD COLUMN signer TEXT NOT NULL DEFAULT '';
UPDATE install SET signer = 'unknown' WHERE digest NOT IN (SELECT m.value ->> 'digest'
	FROM artifact a, json_each(a.record, '$.modules') m WHERE a.digest = install.artifact);`},
}

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
	db.SetMaxOpenConns(1) // of a writer: one transaction at a time
	if mode == "ro" {
		db.SetMaxOpenConns(3) // status asks for as many things at once
	}
	return db
}

// openDB connects and checks the schema's version; the error is a *SchemaError
// when it is not ours. Mode memory is an empty registry.
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
		return nil, damage(file, err)
	}
	return db, nil
}

func checkSchema(ctx context.Context, db *sql.DB, file string) error {
	e := &SchemaError{Path: file}
	meta, err := collectOnce(db, func(rows *sql.Rows, m *[2]string) error { return rows.Scan(&m[0], &m[1]) }, `SELECT key, value FROM meta`)
	if err != nil {
		return err
	}
	for _, m := range meta {
		switch m[0] {
		case "schema":
			e.Schema = m[1]
		case "kmodctl":
			e.WrittenBy = m[1]
		}
	}
	if _, err := strconv.ParseUint(e.Schema, 10, 32); err != nil {
		return &DamagedError{file, fmt.Errorf("its schema is %q", e.Schema)}
	}
	if e.Schema != schemaVersion {
		return e
	}
	return nil
}

// openMigrated is openDB for writing, and brings an older schema up to ours.
// version is that of the kmodctl which does it.
func openMigrated(ctx context.Context, file, version string) (*sql.DB, error) {
	db, err := openDB(ctx, file, "rw")
	var old *SchemaError
	if !errors.As(err, &old) || !old.Older() {
		return db, err
	}
	db = connect(file, "rw")
	if err := transact(db, func(tx *sql.Tx) error { return migrate(tx, old.Schema, version) }); err != nil {
		db.Close()
		return nil, fmt.Errorf("bring %s from schema %s to %s: %w", file, old.Schema, schemaVersion, damage(file, err))
	}
	return db, nil
}

func migrate(tx *sql.Tx, from, version string) error {
	for from != schemaVersion {
		step := migrations[from]
		if _, err := tx.Exec(step.sql); err != nil {
			return err
		}
		from = step.next
	}
	_, err := tx.Exec(`UPDATE meta SET value = CASE key WHEN 'schema' THEN ? ELSE ? END WHERE key IN ('schema', 'kmodctl')`, schemaVersion, version)
	return err
}

// damage makes a *DamagedError of what SQLite says of a file that is no database,
// or is not whole.
func damage(file string, err error) error {
	const generic, corrupt, notADB = 1, 11, 26 // generic: a table is not there
	var e *sqlite.Error
	if errors.As(err, &e) && slices.Contains([]int{generic, corrupt, notADB}, e.Code()&0xff) {
		return &DamagedError{Path: file, Err: err}
	}
	return inFile(file, err)
}

// inFile says where it was that SQLite failed, and makes ENOSPC of its words for a full disk.
func inFile(file string, err error) error {
	const full, shmSize = 13, 10 | 19<<8
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	var disk unix.Statfs_t
	switch {
	case e.Code()&0xff == full:
		err = unix.ENOSPC
	// It does not say why -shm cannot grow.
	case e.Code() == shmSize && unix.Statfs(filepath.Dir(file), &disk) == nil && disk.Bavail == 0:
		err = unix.ENOSPC
	}
	return fmt.Errorf("%s: %w", file, err)
}

// writerDB opens the database for writing. A new one is made in a work folder and
// its three files are renamed here, registry.db last, so that no reader ever
// meets one without schema, -wal or -shm.
func (r *Registry) writerDB(ctx context.Context, version string) (*sql.DB, error) {
	file := filepath.Join(r.dir, dbFile)
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		if err := r.checkLost(); err != nil {
			return nil, err
		}
		if err := r.createDB(ctx, version); err != nil {
			return nil, fmt.Errorf("create %s: %w", file, err)
		}
	} else if err != nil {
		return nil, err
	} else if err := r.checkWhole(); err != nil {
		return nil, err
	}
	return openMigrated(ctx, file, version)
}

// checkLost returns a *DamagedError when there are blobs: they come after the database.
func (r *Registry) checkLost() error {
	if r.tree == nil {
		return nil
	}
	names, err := readNames(r.tree, blobDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if checkDigest(name) == nil {
			return &DamagedError{filepath.Join(r.dir, dbFile), errors.New("it is gone, and blobs are here")}
		}
	}
	return nil
}

func (r *Registry) createDB(ctx context.Context, version string) error {
	dir, done, err := r.NewWork("new")
	if err != nil {
		return err
	}
	defer done()
	if err := makeDB(ctx, dir, version); err != nil {
		return err
	}
	return r.placeDB(dir)
}

// makeDB makes an empty database in dir.
func makeDB(ctx context.Context, dir, version string) error {
	file := filepath.Join(dir, dbFile)
	// SQLite gives -wal and -shm the mode of the database file.
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		return err
	}
	if err := os.Chmod(file, 0o644); err != nil {
		return err
	}
	db := connect(file, "rw")
	_, err := db.ExecContext(ctx, "BEGIN;"+schema+`INSERT INTO meta VALUES ('schema', ?), ('kmodctl', ?); COMMIT`, schemaVersion, version)
	return inFile(file, errors.Join(err, db.Close()))
}

// placeDB gives the three files of a database that was made in dir their place.
func (r *Registry) placeDB(dir string) error {
	for _, suffix := range dbSuffixes {
		if err := os.Rename(filepath.Join(dir, dbFile+suffix), filepath.Join(r.dir, dbFile+suffix)); err != nil {
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
	err := transact(r.db, f)
	if e := (*sqlite.Error)(nil); errors.As(err, &e) { // it does not say where
		return damage(filepath.Join(r.dir, dbFile), err)
	}
	return err
}

func transact(db *sql.DB, f func(*sql.Tx) error) error {
	tx, err := db.Begin()
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

// scanText scans a row of one text.
func scanText(rows *sql.Rows, s *string) error { return rows.Scan(s) }

// collect runs a query and scans every row. It reads all of them before it
// returns, for there is one connection only.
func collect[T any](q queryer, scan func(*sql.Rows, *T) error, query string, args ...any) (all []T, err error) {
	err = patiently(func() error {
		all, err = collectOnce(q, scan, query, args...)
		return err
	})
	return all, damage(dbFile, err)
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
		if err := scan(rows, &v); err != nil { // no such row was ever written
			return nil, &DamagedError{dbFile, err}
		}
		if len(all) == cap(all) {
			all = slices.Grow(all, len(all)+8) // append's own way copies 20,000 rows four times more
		}
		all = append(all, v)
	}
	return all, rows.Err()
}
