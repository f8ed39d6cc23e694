package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	"kmodctl/internal/ko"
)

// Install is one file of ours under /lib/modules.
type Install struct {
	Release  string    `json:"release"`
	Module   string    `json:"module"`
	Path     string    `json:"path"` // inside the root: /lib/modules/R/updates/kmodctl/hello.ko
	Package  string    `json:"package"`
	Version  string    `json:"version"`
	Artifact string    `json:"artifact"` // digest of the artifact's record
	Digest   string    `json:"digest"`   // SHA-256 in hex of the installed file
	Size     int64     `json:"size"`     // bytes
	Signer   string    `json:"signer"`   // SHA-256 in hex of the certificate that its signature is of, "" when it has none, SignerUnknown
	At       time.Time `json:"at"`
	Mtime    int64     `json:"mtime"` // of the installed file, ns since 1970: with Size it tells a quick look that nothing was changed
}

// Compression is that of the installed file: "", gzip, xz or zstd. Its name tells.
func (i Install) Compression() string {
	compression, _ := ko.CompressionOf(i.Path)
	return compression
}

// Result says what Install or Uninstall changed. No Changes and no Depmod:
// nothing was to be done.
type Result struct {
	Release string   `json:"release"`
	Changes []Change `json:"changes"`
	Depmod  bool     `json:"depmod"` // the module index was made anew
}

// Change is one file or row that came, changed or went.
type Change struct {
	Action  string `json:"action"` // install, replace, remove, or record: the file was right, its row was not
	Package string `json:"package"`
	Version string `json:"version"`
	Module  string `json:"module"`
	Path    string `json:"path"` // inside the root
	// Original is another file's module of this name, inside the root: the one that an installed
	// module shadows, or the one that is found again when it was removed. "" when there is none.
	Original string `json:"original,omitempty"`
}

// Actions of a Change.
const (
	actInstall = "install"
	actReplace = "replace"
	actRemove  = "remove"
	actRecord  = "record"
)

// step is one Change and the row it is about: the new one, or the old one of a
// file that goes.
type step struct {
	action string
	row    Install
}

func (s step) places() bool { return s.action == actInstall || s.action == actReplace }

// Installs returns what is installed, by kernel release and module: of some packages,
// or of all when none is named.
func (r *Registry) Installs(packages ...string) ([]Install, error) {
	of, args := ofPackages(packages)
	rows, err := readInstalls(r.db, of, args...)
	if err != nil {
		return nil, fmt.Errorf("read installs: %w", err)
	}
	return rows, nil
}

// installRows reads the rows of one release, or all of them when it is "".
func installRows(q queryer, release string) ([]Install, error) {
	if release == "" {
		return readInstalls(q, "")
	}
	return readInstalls(q, " AND release = ?", release)
}

func readInstalls(q queryer, which string, args ...any) ([]Install, error) {
	return collect(q, func(rows *sql.Rows, i *Install) error {
		var at int64
		err := rows.Scan(&i.Release, &i.Module, &i.Path, &i.Package, &i.Version, &i.Artifact, &i.Digest, &i.Size, &at, &i.Mtime, &i.Signer)
		i.At = time.Unix(0, at).UTC()
		return err
	}, `SELECT `+installColumns+` FROM install WHERE true`+which+` ORDER BY release, module`, args...)
}

// Install places the modules of artifacts under /lib/modules/RELEASE and indexes
// them with one run of depmod, each as dress has it. It replaces what these packages had installed
// there: a module that the new artifact lacks goes. A file that is right already
// is left alone, and if all are, nothing is written.
//
// ctx counts until the first visible step; from there on the change is carried
// through. After an error all is as before; if not even that can be recorded, an
// intent is left, which the next writer finishes. Typed errors: *NoModulesError,
// *LinkError, ErrNoDepmod; and *PackageError, when a call without that package
// may go through: around an *OwnedError, a *ForeignError, a *CorruptError or others.
func (r *Registry) Install(ctx context.Context, release string, as []Artifact, dress Dress) (Result, error) {
	return r.install(ctx, intent{Op: OpInstall, Release: release}, as, dress)
}

// install fills in what an intent places, and carries it out.
func (r *Registry) install(ctx context.Context, in intent, as []Artifact, dress Dress) (Result, error) {
	release := in.Release
	now := time.Now().UTC()
	for _, a := range as {
		if slices.Contains(in.Packages, a.Package) {
			return Result{}, fmt.Errorf("%s for %s: package %s was given twice", in.Op, release, a.Package)
		}
		in.Packages = append(in.Packages, a.Package)
		a, err := r.checkArtifact(a, release)
		if err != nil {
			return Result{}, fmt.Errorf("%s for %s: %w", in.Op, release, err)
		}
		for _, m := range a.Modules {
			d := dress.of(m)
			in.Target = append(in.Target, Install{
				Release: release, Module: m.Name, Path: path.Join(modulesPath(release), m.name()+ko.Suffix(d.Compression)),
				Package: a.Package, Version: a.Version, Artifact: a.Digest, Digest: d.Digest, Size: d.Size, Signer: d.Signer, At: now,
			})
		}
	}
	res, err := r.change(ctx, in)
	if err != nil {
		return Result{}, fmt.Errorf("%s for %s: %w", in.Op, release, err)
	}
	return res, nil
}

// checkArtifact returns an artifact as its record says. It refuses one that is for
// another release, is not in the registry, or whose row is not what was written.
func (r *Registry) checkArtifact(a Artifact, release string) (Artifact, error) {
	if a.Release != release {
		return a, &PackageError{a.Package, fmt.Errorf("artifact %s is for %s", a.Digest, a.Release)}
	}
	rows, err := artifactRows(r.db, a.Digest)
	if err != nil {
		return a, err
	}
	if len(rows) == 0 {
		return a, &PackageError{a.Package, fmt.Errorf("artifact %q is not in the registry", a.Digest)}
	}
	known, err := rows[0].artifact()
	if err == nil && (known.Package != a.Package || known.Release != release) {
		err = fmt.Errorf("artifact %s is of %s for %s", a.Digest, known.Package, known.Release)
	}
	if err != nil {
		return a, &PackageError{a.Package, err}
	}
	return known, nil
}

// Uninstall removes every module of packages from /lib/modules/RELEASE, our
// folders when they are empty then, and runs depmod once. When the release has no
// folder any more, the rows go. ctx, errors and no-ops are as for Install.
func (r *Registry) Uninstall(ctx context.Context, release string, pkgs []string) (Result, error) {
	res, err := r.change(ctx, intent{Op: OpUninstall, Release: release, Packages: pkgs})
	if err != nil {
		return Result{}, fmt.Errorf("uninstall from %s: %w", release, err)
	}
	return res, nil
}

// change carries an intent out, or does nothing when there is nothing to do.
func (r *Registry) change(ctx context.Context, in intent) (Result, error) {
	if r.lock == nil {
		return Result{}, ErrReadOnly
	}
	if err := r.resume(in.Release); err != nil {
		return Result{}, err
	}
	rows, err := installRows(r.db, in.Release)
	if err != nil {
		return Result{}, err
	}
	if err := checkOwners(rows, in); err != nil {
		return Result{}, err
	}
	in.Before = slices.DeleteFunc(rows, func(i Install) bool { return !slices.Contains(in.Packages, i.Package) })
	if len(in.Before) == 0 && len(in.Target) == 0 {
		return Result{Release: in.Release}, nil
	}
	m, err := openModules(r.root, in.Release)
	var gone *NoModulesError
	if errors.As(err, &gone) && len(in.Target) == 0 {
		return r.forget(in)
	} else if err != nil {
		return Result{}, err
	}
	defer m.Close()
	if err := m.use(slices.Concat(in.Before, in.Target)); err != nil {
		return Result{}, err
	}
	steps, err := m.plan(in.Before, in.Target)
	if err != nil {
		return Result{}, err
	}
	if err := checkForeign(steps, in.Before); err != nil {
		return Result{}, err
	}
	if err := r.checkBlobs(ctx, steps); err != nil {
		return Result{}, err
	}
	index, err := m.indexed()
	if err != nil {
		return Result{}, err
	}
	if in.Originals, err = r.originals(m, in.Target, index); err != nil {
		return Result{}, err
	}
	visible := slices.ContainsFunc(steps, func(s step) bool { return s.action != actRecord })
	visible = visible || !m.covers(index, in.Target)
	if len(steps) == 0 && !visible {
		return Result{Release: in.Release}, nil
	}
	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	return r.carryOut(m, in, steps, visible)
}

// checkOwners refuses a module that another package has. Of two packages of the
// intent the one that has it installed is its owner, else the first.
func checkOwners(rows []Install, in intent) error {
	owners := map[string]string{}
	for _, i := range rows {
		keeps := func(t Install) bool { return t.Package == i.Package && t.Module == i.Module }
		if !slices.Contains(in.Packages, i.Package) || slices.ContainsFunc(in.Target, keeps) {
			owners[i.Module] = i.Package
		}
	}
	for _, t := range in.Target {
		if owner, ok := owners[t.Module]; ok && owner != t.Package {
			return &PackageError{t.Package, &OwnedError{Module: t.Module, Owner: owner}}
		}
		owners[t.Module] = t.Package
	}
	return nil
}

// plan compares the disk with the target: which files come, change and go. had
// are the rows whose files are ours to remove.
func (m *modules) plan(had, target []Install) ([]step, error) {
	var steps []step
	byPath := map[string]Install{}
	for _, i := range had {
		byPath[i.Path] = i
	}
	for _, t := range target {
		digest, mtime, err := m.digest(m.name(t.Path))
		if err != nil {
			return nil, err
		}
		old := byPath[t.Path]
		delete(byPath, t.Path)
		s := step{row: t}
		switch {
		case digest == "":
			s.action = actInstall
		case digest != t.Digest:
			s.action = actReplace
		case old.Artifact != t.Artifact || old.Package != t.Package || old.Module != t.Module || old.Signer != t.Signer || old.Mtime != mtime:
			s.action = actRecord
		default:
			continue
		}
		steps = append(steps, s)
	}
	for _, i := range had {
		if _, left := byPath[i.Path]; left {
			steps = append(steps, step{actRemove, i})
		}
	}
	return steps, nil
}

// checkForeign refuses to replace a file that has no row.
func checkForeign(steps []step, rows []Install) error {
	for _, s := range steps {
		ours := func(i Install) bool { return i.Path == s.row.Path }
		if s.action == actReplace && !slices.ContainsFunc(rows, ours) {
			return &PackageError{s.row.Package, &ForeignError{Path: s.row.Path}}
		}
	}
	return nil
}

// checkBlobs reads what will be placed: a damaged blob must show before anything
// is changed for the packages beside it.
func (r *Registry) checkBlobs(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if !s.places() {
			continue
		}
		err := r.checkBlob(ctx, s.row.Digest)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return &PackageError{s.row.Package, fmt.Errorf("module %s: %w", s.row.Module, err)}
		}
	}
	return nil
}

func (r *Registry) checkBlob(ctx context.Context, digest string) error {
	blob, err := r.Blob(digest)
	if err != nil {
		return err
	}
	defer blob.Close()
	_, err = io.Copy(io.Discard, contextReader{ctx, blob})
	return err
}

// covers reports whether the index names the file of every row.
func (m *modules) covers(index map[string]string, rows []Install) bool {
	return !slices.ContainsFunc(rows, func(i Install) bool { return index[i.Module] != m.name(i.Path) })
}

// result lists what steps changed; originals are the other files' modules, by name.
func result(release string, steps []step, depmod bool, originals map[string]string) Result {
	res := Result{Release: release, Depmod: depmod}
	for _, s := range steps {
		res.Changes = append(res.Changes, Change{s.action, s.row.Package, s.row.Version, s.row.Module, s.row.Path, originals[s.row.Module]})
	}
	return res
}
