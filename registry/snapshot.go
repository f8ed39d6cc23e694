package registry

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"modernc.org/sqlite"
)

// needsRecovery reports whether the head of -shm is damaged and this reader may not
// make it anew (SQLITE_READONLY_RECOVERY). A writer that is killed while it changes
// the head leaves it so; one that just changes it can look so for a moment.
func needsRecovery(err error) bool {
	const readonlyRecovery = 8 | 1<<8
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code() == readonlyRecovery
}

// patiently repeats a read until the moment has passed in which a writer at work
// looks like one that was killed.
func patiently(read func() error) (err error) {
	for wait := time.Millisecond; ; wait *= 2 {
		if err = read(); !needsRecovery(err) || wait > 64*time.Millisecond {
			return err
		}
		time.Sleep(wait)
	}
}

// readerDB opens the database for reading, or a private copy where SQLite would refuse to.
func (r *Registry) readerDB(ctx context.Context) (*sql.DB, error) {
	if err := r.checkWhole(); err != nil {
		return nil, err
	}
	if r.logIsHeadOnly() {
		return r.openSnapshot(ctx)
	}
	db, err := openDB(ctx, filepath.Join(r.dir, dbFile), "ro")
	var old *SchemaError
	if needsRecovery(err) || errors.As(err, &old) && old.Older() {
		return r.openSnapshot(ctx)
	}
	return db, err
}

// logIsHeadOnly reports whether the log has a head and no frame, as a writer leaves it
// that is killed in its first commit. Who may not write -shm then tries for ten seconds
// and fails with SQLITE_PROTOCOL: walIndexRecover takes the salts from a longer log only,
// walBeginShmUnreliable compares them with those of the file (SQLite's wal.c).
func (r *Registry) logIsHeadOnly() bool {
	info, err := r.tree.Stat(dbFile + "-wal")
	return err == nil && info.Size() == logHead
}

const logHead = 32 // WAL_HDRSIZE

// checkWhole returns a *DamagedError when SQLite would open the database, and yet it lacks what
// was committed: its log has lost its head, or a rebuild was cut off.
func (r *Registry) checkWhole() error {
	if r.asideName() != "" {
		return &DamagedError{filepath.Join(r.dir, dbFile), errors.New("it was being made anew, which was cut off")}
	}
	// A writer that begins the log again may be met as it writes the head.
	for wait := time.Millisecond; !r.logHasHead(); wait *= 2 {
		if wait > 64*time.Millisecond {
			return &DamagedError{filepath.Join(r.dir, dbFile+"-wal"), errors.New("it does not begin as SQLite's logs do")}
		}
		time.Sleep(wait)
	}
	return nil
}

// logHasHead reports whether SQLite knows the log for one. It takes any other for an empty
// one, and what was committed is lost. A crash leaves no such log: the head is on the disk before
// the first frame is written.
func (r *Registry) logHasHead() bool {
	f, err := r.tree.Open(dbFile + "-wal")
	if err != nil {
		return true // SQLite says why
	}
	defer f.Close()
	head := make([]byte, logHead+1)
	if _, err := io.ReadFull(f, head); err != nil {
		return true // there is no frame in it
	}
	return isLogHead(head[:logHead])
}

// isLogHead compares the magic number and the checksum (walIndexRecover, walChecksumBytes in SQLite's wal.c).
func isLogHead(head []byte) bool {
	const magic = 0x377f0682 // the last bit says in which order the words were summed
	first := binary.BigEndian.Uint32(head)
	var order binary.ByteOrder = binary.LittleEndian
	if first&1 != 0 {
		order = binary.BigEndian
	}
	var s1, s2 uint32
	for i := 0; i < 24; i += 8 {
		s1 += order.Uint32(head[i:]) + s2
		s2 += order.Uint32(head[i+4:]) + s1
	}
	return first&^1 == magic && s1 == binary.BigEndian.Uint32(head[24:]) && s2 == binary.BigEndian.Uint32(head[28:])
}

// openSnapshot opens a copy of the database and its log, which every reader may
// recover and bring up to our schema, in a folder that Close removes.
func (r *Registry) openSnapshot(ctx context.Context) (*sql.DB, error) {
	var err error
	if r.snapshot, err = os.MkdirTemp("", "kmodctl-registry-"); err != nil {
		return nil, err
	}
	to := filepath.Join(r.snapshot, dbFile)
	for range 100 { // a writer that has come meanwhile may change what is copied
		before := r.stamp()
		if err := r.copyDB(dbFile, to); err != nil {
			return nil, err
		}
		if r.stamp() == before {
			db, err := openMigrated(ctx, to, "")
			if e := (*DamagedError)(nil); errors.As(err, &e) {
				e.Path = filepath.Join(r.dir, dbFile)
			}
			return db, err
		}
	}
	return nil, fmt.Errorf("copy %s: it changes all the time", filepath.Join(r.dir, dbFile))
}

// copyDB copies a database of the registry's folder and its log; -shm is what SQLite makes of them.
func (r *Registry) copyDB(from, to string) error {
	for _, suffix := range []string{"", "-wal"} {
		text, err := r.tree.ReadFile(from + suffix)
		if err != nil && !(suffix != "" && errors.Is(err, fs.ErrNotExist)) {
			return err
		}
		if err := os.WriteFile(to+suffix, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// stamp tells one content of the database and its log from the next.
func (r *Registry) stamp() (s string) {
	if r.tree == nil { // there is no registry
		return ""
	}
	for _, suffix := range []string{"", "-wal"} {
		if info, err := r.tree.Stat(dbFile + suffix); err == nil {
			s += fmt.Sprintln(info.Size(), info.ModTime().UnixNano())
		}
	}
	return s
}
