package registry

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrNoDepmod says that no depmod(8) is in /sbin, /bin, their like in /usr, or
// /usr/local/sbin.
var ErrNoDepmod = errors.New("depmod is not on this machine")

// ErrReadOnly says that the registry was opened for reading.
var ErrReadOnly = errors.New("the registry is open for reading only")

// NotFoundError says that no source has this name, or none this version.
type NotFoundError struct {
	Name, Version string
	Near          []string // names, or versions when Version is set, that do exist; best first
}

func (e *NotFoundError) Error() string {
	if e.Version != "" {
		return fmt.Sprintf("%s@%s is not in the registry", e.Name, e.Version)
	}
	return e.Name + " is not in the registry"
}

// InUseError says that a source cannot be removed while it is installed.
type InUseError struct {
	Name, Version string
	Releases      []string // kernel releases it is installed for
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s@%s is installed for %s", e.Name, e.Version, strings.Join(e.Releases, ", "))
}

// PackageError is Install's refusal when only one of the packages is to blame and
// nothing was changed: the others can be installed without it.
type PackageError struct {
	Package string
	Err     error
}

func (e *PackageError) Error() string { return e.Package + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *PackageError) Unwrap() error { return e.Err }

// OwnedError says that another package has installed a module of this name.
type OwnedError struct{ Module, Owner string }

func (e *OwnedError) Error() string {
	return fmt.Sprintf("module %s belongs to package %s", e.Module, e.Owner)
}

// ForeignError says that a file which no install row names is in the way.
type ForeignError struct {
	Path  string
	Owner string // the package that put it there; "" when none of ours did
}

func (e *ForeignError) Error() string {
	if e.Owner != "" {
		return e.Path + " belongs to package " + e.Owner
	}
	return e.Path + " was not put there by kmodctl"
}

// NoModulesError says that a kernel release has no folder of modules here.
type NoModulesError struct{ Release, Path string }

func (e *NoModulesError) Error() string { return e.Path + " does not exist" }

// LinkError says that a path under a root leads out of it, or elsewhere in it,
// for a program that does not know of the root.
type LinkError struct{ Path, Leads, Want string }

func (e *LinkError) Error() string {
	leads := e.Leads
	if leads == "" {
		leads = "nothing"
	}
	return fmt.Sprintf("depmod, outside the root, would find %s at %s, not at %s", e.Path, leads, e.Want)
}

// CorruptError says that a blob's content is not what its name promises.
type CorruptError struct{ Path, Want, Got string }

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is damaged: its sha256 is %s", e.Path, e.Got)
}

// NoPreviousError says that a release has no earlier artifact of a package to go back to.
type NoPreviousError struct {
	Package, Release string
	Version          string  // the one that is installed; "" when none is
	Damaged          []error // the earlier ones that cannot be used, and why
}

func (e *NoPreviousError) Error() string {
	switch {
	case e.Version == "":
		return e.Package + " is not installed"
	case len(e.Damaged) > 0:
		return fmt.Sprintf("nothing whole was installed before %s: %v", e.Version, e.Damaged[0])
	}
	return "nothing was installed before " + e.Version
}

// ArchiveError says that an archive is not one that Export writes, or not whole.
type ArchiveError struct {
	Entry string // name of the entry to blame, or where the archive breaks off
	Err   error
}

func (e *ArchiveError) Error() string { return printable(e.Entry) + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *ArchiveError) Unwrap() error { return e.Err }

// ExistsError says that another source has this name and version.
type ExistsError struct{ Name, Version string }

func (e *ExistsError) Error() string {
	return fmt.Sprintf("%s@%s is registered with another source", e.Name, e.Version)
}

// SchemaError says that the database is of another kmodctl's making.
type SchemaError struct{ Path, Schema, WrittenBy string }

func (e *SchemaError) Error() string {
	by := e.WrittenBy
	if by == "" {
		by = "an unknown kmodctl"
	}
	return fmt.Sprintf("%s has schema %q, written by %s; this kmodctl knows schema %s", e.Path, e.Schema, by, schemaVersion)
}

// Older reports whether this kmodctl can bring the database up to its own schema.
func (e *SchemaError) Older() bool {
	_, ok := migrations[e.Schema]
	return ok
}

// DamagedError says that the database file cannot be read as one. Repair makes it anew.
type DamagedError struct {
	Path string
	Err  error // SQLite's word
}

func (e *DamagedError) Error() string { return fmt.Sprintf("%s is damaged: %v", e.Path, e.Err) }

// Unwrap returns the cause.
func (e *DamagedError) Unwrap() error { return e.Err }

// BusyError says that another writer held the lock for as long as the caller would wait.
type BusyError struct {
	Holder string        // as in "pid 123 (kmodctl build) since 2026-01-02T03:04:05Z"
	Waited time.Duration // 0 when the caller would not wait at all
}

func (e *BusyError) Error() string {
	if e.Waited == 0 {
		return "busy: " + e.Holder
	}
	return fmt.Sprintf("busy: waited %v for %s", e.Waited, e.Holder)
}
