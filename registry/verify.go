package registry

import (
	"archive/tar"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"kmodctl/internal/kernel"
)

// Drift is one way in which a machine is not what its registry says.
type Drift struct {
	Kind    string `json:"kind"`   // missing, modified, edited, foreign, stale, gone, loaded-older, or unindexed: modules.dep does not name it
	Object  string `json:"object"` // what drifted: database, blob, installed, file, original, kernel, readme, artifact (stale) or module (loaded-older)
	Release string `json:"release,omitempty"`
	Path    string `json:"path,omitempty"` // inside the root
	Module  string `json:"module,omitempty"`
	Package string `json:"package,omitempty"` // "" for a foreign file
	Version string `json:"version,omitempty"`
	Digest  string `json:"digest,omitempty"` // that a blob should have
	Needed  string `json:"needed,omitempty"` // of a .ko blob: the digest of the artifact that needs it
	Why     string `json:"why,omitempty"`
}

// Kinds and objects of a Drift that this package finds.
const (
	DriftMissing   = "missing"
	DriftModified  = "modified"
	DriftEdited    = "edited" // configuration beside modules, which somebody has changed and which stays so
	DriftForeign   = "foreign"
	DriftUnindexed = "unindexed"
	DriftGone      = "gone" // a kernel that modules are installed for

	ObjectDatabase  = "database"
	ObjectReadme    = "readme"
	ObjectBlob      = "blob"
	ObjectKernel    = "kernel"
	ObjectInstalled = "installed"
	ObjectFile      = "file" // beside modules
	ObjectOriginal  = "original"
)

// Verify reads all that the registry consists of and all that is installed under root,
// and tells what differs. When the database itself is damaged, it tells nothing
// else: what its rows say counts for nothing then. It changes nothing.
func (r *Registry) Verify(ctx context.Context, root kernel.Root) ([]Drift, error) {
	for try := 0; ; try++ {
		before := r.stamp()
		drifts, err := r.verify(ctx, root)
		var damaged *DamagedError
		if errors.As(err, &damaged) {
			return []Drift{r.damagedDB(root, damaged.Err)}, nil
		}
		// What a writer has changed meanwhile is no drift.
		if err != nil || len(drifts) == 0 || r.stamp() == before || try == 3 {
			return drifts, err
		}
	}
}

func (r *Registry) verify(ctx context.Context, root kernel.Root) (drifts []Drift, err error) {
	if r.tree == nil {
		return r.Look(root)
	}
	if drifts, err = r.verifyDatabase(root); err != nil || len(drifts) > 0 {
		return drifts, err
	}
	for _, look := range []func(context.Context, kernel.Root) ([]Drift, error){r.verifyReadme, r.verifyBlobs, r.verifySources, r.verifyModules, r.verifyBeside} {
		found, err := look(ctx, root)
		if err != nil {
			return nil, err
		}
		drifts = append(drifts, found...)
	}
	return drifts, nil
}

// DamagedDatabase is how Verify tells of a database that cannot even be opened.
func DamagedDatabase(e *DamagedError) Drift {
	return Drift{Kind: DriftModified, Object: ObjectDatabase, Path: e.Path, Why: e.Err.Error()}
}

func (r *Registry) damagedDB(root kernel.Root, why error) Drift {
	return DamagedDatabase(&DamagedError{r.inside(root, dbFile), why})
}

// inside is the path of a file of the registry inside the root.
func (r *Registry) inside(root kernel.Root, name string) string {
	return root.Inside(filepath.Join(r.dir, name))
}

// verifyDatabase asks SQLite, then reads every row and compares the rows with each other.
func (r *Registry) verifyDatabase(root kernel.Root) (drifts []Drift, err error) {
	const first = 3
	lines, err := collect(r.db, scanText, fmt.Sprintf(`PRAGMA integrity_check(%d)`, first))
	if err != nil {
		return nil, err
	}
	if !slices.Equal(lines, []string{"ok"}) {
		return []Drift{r.damagedDB(root, errors.New(strings.Join(lines, "; ")))}, nil
	}
	if lines, err = collect(r.db, scanText, `SELECT format('a row of table %s names a row of %s that is not there', "table", parent) FROM pragma_foreign_key_check`); err != nil {
		return nil, err
	}
	for _, line := range lines[:min(first, len(lines))] {
		drifts = append(drifts, r.damagedDB(root, errors.New(line)))
	}
	return drifts, r.readRows()
}

// readRows reads every row; the error is a *DamagedError when one is not as it was written.
func (r *Registry) readRows() error {
	rows, err := artifactRows(r.db, "")
	if err != nil {
		return err
	}
	known := map[string]Artifact{}
	for _, row := range rows {
		if known[row.digest], err = row.artifact(); err != nil {
			return err
		}
	}
	installs, err := r.Installs()
	if err != nil {
		return err
	}
	for _, i := range installs {
		if err := i.agrees(known[i.Artifact]); err != nil {
			return err
		}
	}
	_, err1 := r.Sources()
	_, err2 := r.Attempts("", "", 0)
	_, err3 := r.Pins()
	_, err4 := r.Originals()
	_, err5 := r.Kernels()
	_, err6 := readIntents(r.db, "")
	_, err7 := readRemovals(r.db)
	_, err8 := collect(r.db, func(rows *sql.Rows, in *[]Input) error {
		var text []byte
		return errors.Join(rows.Scan(&text), json.Unmarshal(text, in))
	}, `SELECT inputs FROM inputs`)
	return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8)
}

// agrees makes sure that a row is about a module of its artifact.
func (i Install) agrees(a Artifact) error {
	of := func(m Module) bool {
		ending, same := strings.CutPrefix(i.Path, path.Join(modulesPath(i.Release), m.name()))
		return m.Name == i.Module && same && (ending == "" || moduleName(i.Path) == m.Name) // it may have been taken over compressed
	}
	if a.Package != i.Package || a.Version != i.Version || a.Release != i.Release || !slices.ContainsFunc(a.Modules, of) {
		return &DamagedError{dbFile, fmt.Errorf("install row of %s for %s: artifact %s has no such module", i.Module, i.Release, i.Artifact)}
	}
	return nil
}

func (r *Registry) verifyReadme(_ context.Context, root kernel.Root) ([]Drift, error) {
	text, err := r.tree.ReadFile(readmeFile)
	d := Drift{Kind: DriftModified, Object: ObjectReadme, Path: r.inside(root, readmeFile)}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.Kind = DriftMissing
	case err != nil:
		d.Why = err.Error()
	case string(text) == readme:
		return nil, nil
	}
	return []Drift{d}, nil
}

// verifyBlobs reads every blob and looks for those that rows name.
func (r *Registry) verifyBlobs(ctx context.Context, root kernel.Root) ([]Drift, error) {
	needed, err := r.neededBlobs()
	if err != nil {
		return nil, err
	}
	names, err := readNames(r.tree, blobDir)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var drifts []Drift
	here := map[string]bool{}
	for _, name := range names {
		here[name] = true
		d, ok := needed[name]
		if !ok {
			d = Drift{Digest: name, Why: "nothing needs it"}
		}
		d.Object, d.Path = ObjectBlob, root.Inside(r.BlobPath(name))
		switch why, err := r.judgeBlob(ctx, name); {
		case err != nil:
			return nil, err
		case strings.HasPrefix(name, blobTemp): // a writer's at work, or the next one's to remove
		case checkDigest(name) != nil:
			d.Kind, d.Digest, d.Why = DriftForeign, "", "its name is no sha256"
			drifts = append(drifts, d)
		case why != "":
			d.Kind, d.Why = DriftModified, d.Why+"; "+why
			drifts = append(drifts, d)
		}
	}
	for _, digest := range slices.Sorted(maps.Keys(needed)) {
		if d := needed[digest]; !here[digest] {
			d.Kind, d.Object, d.Path = DriftMissing, ObjectBlob, root.Inside(r.BlobPath(digest))
			drifts = append(drifts, d)
		}
	}
	return drifts, nil
}

// judgeBlob reads a blob and returns what is wrong with it.
func (r *Registry) judgeBlob(ctx context.Context, name string) (why string, err error) {
	if checkDigest(name) != nil {
		return "", nil
	}
	info, err := r.tree.Lstat(filepath.Join(blobDir, name))
	if err == nil && !info.Mode().IsRegular() {
		return "it is no regular file", nil
	}
	if err == nil {
		err = r.checkBlob(ctx, name)
	}
	var corrupt *CorruptError
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case errors.As(err, &corrupt):
		return "its sha256 is " + corrupt.Got, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist): // removed since
		return err.Error(), nil
	}
	return "", nil
}

// neededBlobs tells what each blob that a row promises is good for. The log that a record
// names may be gone: only an attempt promises its own.
func (r *Registry) neededBlobs() (map[string]Drift, error) {
	needed := map[string]Drift{}
	sources, err := r.Sources()
	if err != nil {
		return nil, err
	}
	for _, s := range sources {
		needed[s.Digest] = Drift{Digest: s.Digest, Package: s.Name, Version: s.Version, Why: fmt.Sprintf("source of %s %s", s.Name, s.Version)}
	}
	attempts, err := r.Attempts("", "", 0)
	if err != nil {
		return nil, err
	}
	for _, a := range attempts {
		if a.Log != "" {
			needed[a.Log] = Drift{Digest: a.Log, Package: a.Package, Version: a.Version, Release: a.Release, Why: fmt.Sprintf("log of %s %d, of %s %s for %s", a.Op, a.ID, a.Package, a.Version, a.Release)}
		}
	}
	rows, err := artifactRows(r.db, "")
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		a, err := row.artifact()
		if err != nil {
			return nil, err
		}
		d := Drift{Digest: a.Digest, Package: a.Package, Version: a.Version, Release: a.Release}
		d.Why = fmt.Sprintf("record of %s %s for %s", a.Package, a.Version, a.Release)
		needed[a.Digest] = d
		for _, m := range a.Modules {
			d.Digest, d.Module, d.Needed = m.Digest, m.Name, a.Digest
			d.Why = fmt.Sprintf("%s of %s %s for %s", m.File, a.Package, a.Version, a.Release)
			needed[m.Digest] = d
		}
	}
	installs, err := r.Installs()
	for _, i := range installs {
		if _, ok := needed[i.Digest]; !ok { // signed, compressed or both
			needed[i.Digest] = Drift{Digest: i.Digest, Package: i.Package, Version: i.Version, Release: i.Release, Module: i.Module, Why: "installed as " + i.Path}
		}
	}
	return needed, err
}

// verifySources compares the rows of sources with their archives. What is wrong with an archive
// itself, verifyBlobs tells.
func (r *Registry) verifySources(context.Context, kernel.Root) ([]Drift, error) {
	sources, err := r.Sources()
	if err != nil {
		return nil, err
	}
	for _, s := range sources {
		files, _, err := r.readSource(s.Digest)
		if err != nil {
			continue
		}
		if err := s.agrees(files); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// readSource lists the files of an archive, and returns the texts of those at its top that
// may be a manifest, links followed, by name.
func (r *Registry) readSource(digest string) (files []File, top map[string]string, err error) {
	const longest = 1 << 20 // bytes of a manifest
	blob, err := r.Blob(digest)
	if err != nil {
		return nil, nil, err
	}
	defer blob.Close()
	top = map[string]string{}
	files, err = eachFile(blob, func(h *tar.Header, body io.Reader) error {
		var text strings.Builder
		_, err := io.CopyN(&text, body, longest)
		if err == io.EOF && h.Typeflag == tar.TypeReg && !strings.Contains(h.Name, "/") {
			top[h.Name] = text.String()
		}
		_, err = io.Copy(io.Discard, body)
		return err
	})
	if _, end := io.Copy(io.Discard, blob); end != nil {
		err = end
	}
	for _, f := range files {
		if text, ok := top[path.Clean(f.Link)]; ok && !strings.Contains(f.Path, "/") {
			top[f.Path] = text
		}
	}
	return files, top, err
}

// verifyModules compares /lib/modules with the rows: kernels, files, and what they shadow.
func (r *Registry) verifyModules(ctx context.Context, root kernel.Root) ([]Drift, error) {
	drifts, err := r.verifyKernels(root)
	if err != nil {
		return nil, err
	}
	// What is told of the kernel is not told of its files again; what is being changed is unfinished.
	gone, busy := map[string]bool{}, map[string]bool{}
	for _, d := range drifts {
		gone[d.Release] = d.Kind == DriftGone
	}
	ins, err := readIntents(r.db, "")
	if err != nil {
		return nil, err
	}
	for _, in := range ins {
		busy[in.Release] = true
	}
	rows, err := r.Installs()
	if err != nil {
		return nil, err
	}
	files, err := compare(root, rows, true, unread)
	if err != nil {
		return nil, err
	}
	originals, err := r.verifyOriginals(root)
	if err != nil {
		return nil, err
	}
	records := sync.OnceValues(func() ([]Artifact, error) { return r.keptRecords(ctx) })
	for _, d := range slices.Concat(files, originals) {
		if busy[d.Release] || gone[d.Release] && d.Kind != DriftForeign {
			continue
		}
		if d.Kind == DriftForeign {
			if d, err = r.recognize(root, d, records); err != nil {
				return nil, err
			}
		}
		drifts = append(drifts, d)
	}
	return drifts, nil
}

// verifyKernels looks at the kernels that something is installed for.
func (r *Registry) verifyKernels(root kernel.Root) (drifts []Drift, err error) {
	rows, err := r.Installs()
	if err != nil {
		return nil, err
	}
	count := map[string]int{}
	for _, i := range rows {
		count[i.Release]++
	}
	known, err := r.Kernels()
	if err != nil {
		return nil, err
	}
	for _, k := range known {
		if count[k.Release] == 0 {
			continue
		}
		d := Drift{Object: ObjectKernel, Release: k.Release, Path: modulesPath(k.Release)}
		stamp, here := stampOf(root, k.Release)
		switch {
		case !here:
			d.Kind, d.Why = DriftGone, fmt.Sprintf("removed with %d modules of ours installed", count[k.Release])
		case k.Stamp != "" && k.Stamp != stamp:
			d.Kind, d.Why = DriftModified, "upgraded or replaced since something was installed for it"
		default:
			continue
		}
		drifts = append(drifts, d)
	}
	return drifts, nil
}

// stampOf is the kernelStamp of a release. A kernel without modules folder, or with
// nothing in it but what we and depmod made, is not here.
func stampOf(root kernel.Root, release string) (stamp string, here bool) {
	m, err := openModules(root, release)
	if err != nil {
		return "", !errors.As(err, new(*NoModulesError))
	}
	defer m.Close()
	return kernelStamp(m.tree), kernelHere(root, release)
}

// verifyOriginals looks for what is shadowed.
func (r *Registry) verifyOriginals(root kernel.Root) (drifts []Drift, err error) {
	all, err := r.Originals()
	if err != nil {
		return nil, err
	}
	for _, o := range all {
		d := Drift{Object: ObjectOriginal, Release: o.Release, Path: o.Path, Module: o.Module}
		if d.Kind, d.Why = o.judge(root); d.Kind != "" {
			drifts = append(drifts, d)
		}
	}
	return drifts, nil
}

// judge is what became of an original: the kind of its drift, "" when it is as it was.
func (o Original) judge(root kernel.Root) (kind, why string) {
	m, err := openModules(root, o.Release)
	if err != nil {
		return DriftMissing, err.Error()
	}
	defer m.Close()
	now, err := m.original(o.Module, strings.TrimPrefix(o.Path, m.inside+"/"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return DriftMissing, ""
	case err != nil:
		return DriftModified, err.Error()
	case now != o:
		return DriftModified, "its sha256 is " + now.Digest
	}
	return "", ""
}
