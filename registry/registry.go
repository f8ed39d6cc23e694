// Package registry keeps what kmodctl knows: sources, artifacts per kernel
// release, what is installed where, and the history of attempts; and it places
// modules under /lib/modules and brings the module index up to date.
//
// Open is for readers, OpenWriter for the one writer. Everything immutable is a
// file named by its SHA-256 in blobs/sha256, everything mutable is a row of
// registry.db. docs/registry-format.md describes both.
//
// It promises: a row names only content that is already durable. A command that
// is killed leaves the state before it or an intent that the next writer
// finishes. No file outside updates/kmodctl is touched under /lib/modules, but
// for the index that depmod makes. Readers are never blocked, need no rights
// beyond reading, and write nothing that lasts.
//
// A Registry may be used by several goroutines, with two exceptions: RemoveSource
// must not run while another one stores something, and only one may install or
// uninstall for the same kernel release.
package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"kmodctl/internal/kernel"
)

// Registry is an open registry. Close it.
type Registry struct {
	dir  string      // absolute and free of links
	tree *os.Root    // dir; nil when a reader found none
	db   *sql.DB     // of an absent registry: an empty one in memory
	lock *os.File    // held by the writer; nil for a reader
	root kernel.Root // where the writer installs

	snapshot string // folder of a reader's private copy of the database; nearly always ""

	mu        sync.Mutex
	recovered []string
	resumed   []int64                 // attempts of intents that were cut off, whatever became of them
	left      []error                 // why work folders and blobs that nobody needs are still there
	facts     map[fileFact]fileAnswer // once read
}

// WriterOptions are what OpenWriter wants to know of its caller.
type WriterOptions struct {
	Command string              // our own words for those who wait: "kmodctl build"
	Version string              // of kmodctl; kept in a registry that it creates
	Waiting func(holder string) // called once when another writer holds the lock; may be nil
	Timeout time.Duration       // how long to wait for the lock: 0 without limit, below 0 not at all
}

// Open opens the registry in dir for reading. One that does not exist is empty.
func Open(ctx context.Context, dir string) (*Registry, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	r := &Registry{dir: dir}
	if r.tree, err = os.OpenRoot(dir); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open registry: %w", err)
		}
		r.tree = nil
	}
	_, err = os.Stat(filepath.Join(dir, dbFile))
	switch {
	case err == nil:
		r.db, err = r.readerDB(ctx)
	case errors.Is(err, fs.ErrNotExist):
		if err = r.checkLost(); err == nil {
			r.db, err = openDB(ctx, "", "memory")
		}
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("open registry: %w", err)
	}
	return r, nil
}

// OpenWriter opens the registry in dir for writing and creates it when there is
// none. It waits, as long as ctx and the options allow, until no other writer and no
// depmod of a killed one is at work (else the error is a *BusyError), and then finishes
// or undoes what was cut off: see Recovered. root is where modules are installed; a registry belongs to one root.
//
// Every file that this process has open is marked close-on-exec: what it starts
// inherits none but those it is given.
func OpenWriter(ctx context.Context, dir string, root kernel.Root, o WriterOptions) (*Registry, error) {
	r, err := openWriter(ctx, dir, root, o)
	if err != nil {
		return nil, fmt.Errorf("open registry %s: %w", dir, err)
	}
	return r, nil
}

func openWriter(ctx context.Context, dir string, root kernel.Root, o WriterOptions) (*Registry, error) {
	r, err := claim(ctx, dir, root, o)
	if err != nil {
		return nil, err
	}
	if r.db, err = r.writerDB(ctx, o.Version); err != nil {
		r.Close()
		return nil, err
	}
	if err := r.recover(); err != nil {
		r.Close()
		return nil, fmt.Errorf("recover: %w", err)
	}
	return r, nil
}

// claim takes the writer's lock and lays out all but the database.
func claim(ctx context.Context, dir string, root kernel.Root, o WriterOptions) (*Registry, error) {
	keepToOurselves()
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	r := &Registry{dir: dir, root: root}
	if r.tree, err = os.OpenRoot(dir); err != nil {
		return nil, err
	}
	if r.lock, err = acquire(ctx, r.tree, o); err != nil {
		r.Close()
		return nil, err
	}
	if err := r.layOut(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Recovered tells what OpenWriter finished, undid or could not finish of commands
// that were cut off: one line for each thing.
func (r *Registry) Recovered() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.recovered)
}

// Resumed returns the attempts to install, roll back or uninstall a package that had been
// cut off and that OpenWriter carried through, by ID.
func (r *Registry) Resumed(pkg string) ([]Attempt, error) {
	if len(r.resumed) == 0 {
		return nil, nil
	}
	as, err := r.Attempts(pkg, "", 0)
	slices.Reverse(as)
	return slices.DeleteFunc(as, func(a Attempt) bool { return a.Outcome != OutcomeOK || !slices.Contains(r.resumed, a.ID) }), err
}

func (r *Registry) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recovered = append(r.recovered, fmt.Sprintf(format, args...))
}

// leave keeps for Close why something that nobody needs could not be removed.
func (r *Registry) leave(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = append(r.left, err)
}

// Close gives the lock back. Its error tells of work folders and blobs that are left, too.
func (r *Registry) Close() error {
	r.mu.Lock()
	errs := r.left
	r.left = nil
	r.mu.Unlock()
	if r.db != nil {
		errs = append(errs, r.db.Close())
	}
	if r.lock != nil {
		errs = append(errs, ignoreAbsent(r.tree.Remove(writerFile)), r.lock.Close())
	}
	if r.tree != nil {
		errs = append(errs, r.tree.Close())
	}
	if r.snapshot != "" {
		errs = append(errs, os.RemoveAll(r.snapshot))
	}
	return errors.Join(errs...)
}

const readmeFile = "README"

const readme = `This folder is the registry of kmodctl (kernel modules built out of tree).

registry.db          SQLite: sources, artifacts, installs, history. Its -wal and
                     -shm files belong to it: copy all three, or none.
blobs/sha256/DIGEST  files that never change, named by their SHA-256: source
                     archives (tar), .ko files, build logs, artifact records (JSON)
work/                folders of running builds
headers/             unpacked header packages of kernels that are not installed
lock                 held by the command that is writing
writer               which one that is

Check a blob with sha256sum. Look, do not touch: sqlite3 -readonly registry.db
`

// layOut creates what a registry consists of, but for the database.
func (r *Registry) layOut() error {
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"blobs", 0o755}, {blobDir, 0o755}, {workDir, 0o711}} {
		if err := r.tree.Mkdir(d.name, d.mode); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := r.tree.Chmod(d.name, d.mode); err != nil { // whatever the umask is
			return err
		}
	}
	text, err := r.tree.ReadFile(readmeFile)
	if err == nil && string(text) == readme {
		return nil
	} else if err == nil {
		r.note("wrote %s anew", readmeFile)
	}
	return errors.Join(r.tree.WriteFile(readmeFile, []byte(readme), 0o644), r.tree.Chmod(readmeFile, 0o644))
}

// makeDir creates dir and its parents, each readable by everyone when new.
func makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		return nil
	} else if errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		return makeDir(dir)
	} else if err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// syncDir makes the names in a folder of tree durable.
func syncDir(tree *os.Root, name string) error {
	d, err := tree.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
