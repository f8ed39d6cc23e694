package registry

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Artifact is what one build of a package for one kernel release made. Its
// record, which is this as JSON, is a blob; Digest names it.
type Artifact struct {
	Digest    string    `json:"digest,omitempty"` // SHA-256 in hex of the JSON record
	Package   string    `json:"package"`
	Version   string    `json:"version"`
	Release   string    `json:"release"`    // kernel release it was built for
	InputHash string    `json:"input_hash"` // over Inputs
	Inputs    []Input   `json:"inputs,omitempty"`
	Modules   []Module  `json:"modules"`
	Log       string    `json:"log,omitempty"` // digest of the build log's blob
	Compiler  string    `json:"compiler,omitempty"`
	Isolation string    `json:"isolation,omitempty"` // a level of docs/sandbox.md; "" where it was not recorded yet
	Headers   []string  `json:"headers,omitempty"`   // names of the packages or folders that the headers were given by; none when they were in their place
	Built     time.Time `json:"built"`
	Seconds   float64   `json:"seconds"` // how long the build took
}

// Input is one thing that a build depends on; status names the one that changed.
type Input struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Module is one .ko of an artifact.
type Module struct {
	Name       string   `json:"name"`            // the kernel's form, with _
	File       string   `json:"file"`            // hello-world.ko; no folder
	Place      string   `json:"place,omitempty"` // folder below /lib/modules/R that it is installed in; "" is ours
	Digest     string   `json:"digest"`          // SHA-256 in hex of the file, which is a blob
	Size       int64    `json:"size"`            // bytes
	BuildID    string   `json:"build_id,omitempty"`
	Vermagic   string   `json:"vermagic,omitempty"`
	SrcVersion string   `json:"srcversion,omitempty"`
	Version    string   `json:"version,omitempty"` // MODULE_VERSION
	Depends    []string `json:"depends,omitempty"` // modules it needs, by name
}

// BuiltFor is the kernel release that the modules were built for, by their vermagic: another than Release where a build is reused.
func (a Artifact) BuiltFor() string {
	if len(a.Modules) == 0 {
		return a.Release
	}
	release, _, _ := strings.Cut(a.Modules[0].Vermagic, " ")
	return cmp.Or(release, a.Release)
}

// recordSchema is the version of the JSON record's form.
const recordSchema = 1

// record is what the blob of an artifact's record holds.
type record struct {
	Schema int `json:"schema"`
	Artifact
}

// blobs names every blob of an artifact.
func (a Artifact) blobs() []string { return append([]string{a.Digest, a.Log}, a.koBlobs()...) }

// koBlobs names those of its modules.
func (a Artifact) koBlobs() (names []string) {
	for _, m := range a.Modules {
		names = append(names, m.Digest)
	}
	return names
}

// PutArtifact keeps a build's result. files leads from the name of each module to
// its .ko, which is read once. The modules come back with Digest and Size, the artifact with the
// Digest of its record.
//
// The .ko files are durable before the record that names them, and the record
// before the rows.
func (r *Registry) PutArtifact(ctx context.Context, a Artifact, files map[string]string) (Artifact, error) {
	stored, err := r.putArtifact(ctx, a, files)
	if err != nil {
		return Artifact{}, fmt.Errorf("store artifact of %s@%s for %s: %w", a.Package, a.Version, a.Release, err)
	}
	return stored, nil
}

func (r *Registry) putArtifact(ctx context.Context, a Artifact, files map[string]string) (Artifact, error) {
	a.Modules = slices.Clone(a.Modules)
	for i := range a.Modules {
		m := &a.Modules[i]
		if err := m.check(); err != nil {
			return a, err
		}
		if err := r.stageModule(ctx, m, files[m.Name]); err != nil {
			return a, fmt.Errorf("module %s: %w", m.Name, err)
		}
	}
	if err := syncDir(r.tree, blobDir); err != nil {
		return a, err
	}
	a.Digest, a.Built = "", a.Built.UTC().Round(0)
	text, err := json.Marshal(record{recordSchema, a})
	if err != nil {
		return a, err
	}
	if a.Digest, _, err = r.PutBlob(ctx, bytes.NewReader(text)); err != nil {
		return a, err
	}
	return a, r.write(func(tx *sql.Tx) error { return insertArtifact(tx, a, string(text), false) })
}

// insertArtifact adds the row of an artifact whose blobs are durable; record is its text.
func insertArtifact(tx *sql.Tx, a Artifact, record string, imported bool) error {
	if err := putKernel(tx, a.Release, ""); err != nil {
		return err
	}
	_, err := tx.Exec(`INSERT INTO artifact (digest, package, version, release, input_hash, record, imported)
		VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING`,
		a.Digest, a.Package, a.Version, a.Release, a.InputHash, record, imported)
	return err
}

// name is where it is installed, below /lib/modules/R.
func (m Module) name() string { return path.Join(cmp.Or(m.Place, ourDir), m.File) }

// check makes sure that File is a plain file name from which the kernel and
// depmod derive Name, and Place a folder below that of a release.
func (m Module) check() error {
	stem, ok := strings.CutSuffix(m.File, ".ko")
	if !ok || stem == "" || strings.ContainsAny(m.File, "/\x00") || strings.HasPrefix(m.File, ".") {
		return fmt.Errorf("module %s: %q is not the name of a .ko file", m.Name, m.File)
	}
	if strings.ReplaceAll(stem, "-", "_") != m.Name {
		return fmt.Errorf("module %s: file %s is of a module of another name", m.Name, m.File)
	}
	if m.Place != "" && (m.Place == "." || !filepath.IsLocal(m.Place) || path.Clean(m.Place) != m.Place || strings.ContainsRune(m.Place, 0)) {
		return fmt.Errorf("module %s: %q is not a folder to install in", m.Name, m.Place)
	}
	return nil
}

func (r *Registry) stageModule(ctx context.Context, m *Module, file string) error {
	if file == "" {
		return errors.New("no file was given")
	}
	f, err := os.OpenFile(file, openPlain, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	src, err := plainFile(f)
	if err != nil {
		return err
	}
	want := m.Digest
	m.Digest, m.Size, err = r.stageBlob(func(w io.Writer) error {
		_, err := io.Copy(w, contextReader{ctx, src})
		return err
	})
	if err == nil && want != "" && want != m.Digest {
		err = &CorruptError{Path: file, Want: want, Got: m.Digest}
	}
	return err
}

// Artifact returns the newest artifact of a package version for a kernel release.
func (r *Registry) Artifact(pkg, version, release string) (Artifact, bool, error) {
	return r.newest(`package = ? AND version = ? AND release = ?`, pkg, version, release)
}

// ArtifactByDigest returns the artifact with that record.
func (r *Registry) ArtifactByDigest(digest string) (Artifact, bool, error) {
	return r.newest(`digest = ?`, digest)
}

func (r *Registry) newest(where string, args ...any) (Artifact, bool, error) {
	as, err := collect(r.db, scanArtifact, `SELECT digest, record FROM artifact WHERE `+where+` ORDER BY id DESC LIMIT 1`, args...)
	if err != nil {
		return Artifact{}, false, fmt.Errorf("read artifact: %w", err)
	}
	if len(as) == 0 {
		return Artifact{}, false, nil
	}
	return as[0], true, nil
}

// Artifacts returns the newest artifact of each package version for each kernel
// release: of some packages, or of all when none is named.
func (r *Registry) Artifacts(packages ...string) ([]Artifact, error) {
	of, args := ofPackages(packages)
	as, err := collect(r.db, scanArtifact, `SELECT digest, record FROM artifact
		WHERE id IN (SELECT max(id) FROM artifact WHERE true`+of+` GROUP BY package, version, release) ORDER BY package, version, release`, args...)
	if err != nil {
		return nil, fmt.Errorf("read artifacts: %w", err)
	}
	return as, nil
}

// BuildOf finds the module with a build-id among all that was ever built for a release, not the newest
// builds alone; false if there is none.
func (r *Registry) BuildOf(release, buildID string) (Module, bool, error) {
	as, err := collect(r.db, scanArtifact, `SELECT digest, record FROM artifact WHERE release = ? ORDER BY id DESC`, release)
	if err != nil {
		return Module{}, false, fmt.Errorf("read artifacts: %w", err)
	}
	for _, a := range as {
		for _, m := range a.Modules {
			if m.BuildID == buildID {
				return m, true, nil
			}
		}
	}
	return Module{}, false, nil
}

// Newest is Artifacts for a look at many: of each only Digest, Package, Version, Release, InputHash and Modules, as far as
// parseModules tells. It takes the rows at their word; Install does not.
func (r *Registry) Newest(packages ...string) ([]Artifact, error) {
	of, args := ofPackages(packages)
	// The index has all of it: the records are four fifths of the database. A BLOB is copied once less on its way.
	as, err := collect(r.db, scanNewest, `SELECT digest, package, version, release, input_hash, CAST(record ->> '$.modules' AS BLOB)
		FROM artifact INDEXED BY artifact_newest WHERE true`+of+` ORDER BY package, version, release, id`, args...)
	if err != nil {
		return nil, fmt.Errorf("read artifacts: %w", err)
	}
	newest := as[:0]
	for i, a := range as {
		if i+1 == len(as) || a.Package != as[i+1].Package || a.Version != as[i+1].Version || a.Release != as[i+1].Release {
			newest = append(newest, a)
		}
	}
	return newest, nil
}

// ofPackages is a condition of a query for the rows of some packages, or for all.
func ofPackages(packages []string) (clause string, args []any) {
	if len(packages) == 0 {
		return "", nil
	}
	text, _ := json.Marshal(packages) // strings can always be
	return ` AND package IN (SELECT value FROM json_each(?))`, []any{string(text)}
}

func scanNewest(rows *sql.Rows, a *Artifact) error {
	var text sql.RawBytes
	if err := rows.Scan(&a.Digest, &a.Package, &a.Version, &a.Release, &a.InputHash, &text); err != nil {
		return err
	}
	var err error
	if a.Modules, err = parseModules(text); err != nil {
		return &DamagedError{dbFile, fmt.Errorf("record %s: %w", a.Digest, err)}
	}
	return nil
}

// parseModules reads Name, File, Digest, BuildID, Vermagic and Version of a record's modules. To take
// 20,000 lists apart as JSON costs more than all else that status does.
func parseModules(text []byte) (modules []Module, err error) {
	if bytes.IndexByte(text, '\\') >= 0 { // a string may hold a quote
		return modules, json.Unmarshal(text, &modules)
	}
	_, rest, more := strings.Cut(string(text), beginName)
	for more {
		var object string
		object, rest, more = strings.Cut(rest, beginName)
		value := func(key string) string {
			_, after, _ := strings.Cut(object, key)
			text, _, _ := strings.Cut(after, `"`)
			return text
		}
		name, _, _ := strings.Cut(object, `"`)
		modules = append(modules, Module{Name: name, File: value(`"file":"`), Digest: value(`"digest":"`), BuildID: value(`"build_id":"`), Vermagic: value(`"vermagic":"`), Version: value(`"version":"`)})
	}
	return modules, nil
}

// beginName is how a module begins in a record.
const beginName = `{"name":"`

func scanArtifact(rows *sql.Rows, a *Artifact) error {
	var digest, text string
	if err := rows.Scan(&digest, &text); err != nil {
		return err
	}
	var rec record
	if err := json.Unmarshal([]byte(text), &rec); err != nil {
		return fmt.Errorf("record %s: %w", digest, err)
	}
	*a = rec.Artifact
	a.Digest = digest
	return nil
}

// artifactRow is a row as it is stored.
type artifactRow struct{ digest, pkg, version, release, hash, record string }

// artifactRows reads the row of one artifact, or all of them when digest is "".
func artifactRows(q queryer, digest string) ([]artifactRow, error) {
	which, args := "", []any{}
	if digest != "" { // an OR would read all of them
		which, args = "WHERE digest = ?", []any{digest}
	}
	return collect(q, func(rows *sql.Rows, a *artifactRow) error {
		return rows.Scan(&a.digest, &a.pkg, &a.version, &a.release, &a.hash, &a.record)
	}, `SELECT digest, package, version, release, input_hash, record FROM artifact `+which+` ORDER BY id`, args...)
}

// artifact is what a row tells of, once every part of it was checked; the error is a
// *DamagedError.
func (row artifactRow) artifact() (Artifact, error) {
	a, err := readRecord(row.digest, []byte(row.record))
	if err == nil && (a.Package != row.pkg || a.Version != row.version || a.Release != row.release || a.InputHash != row.hash) {
		err = fmt.Errorf("its row says %s@%s for %s", row.pkg, row.version, row.release)
	}
	if err != nil {
		return a, &DamagedError{dbFile, fmt.Errorf("record %s: %w", row.digest, err)}
	}
	return a, nil
}

// readRecord checks the text of a record's blob and returns the artifact.
func readRecord(digest string, text []byte) (Artifact, error) {
	var rec record
	if got := hexOf(text); got != digest {
		return Artifact{}, fmt.Errorf("its sha256 is %s", got)
	}
	if err := json.Unmarshal(text, &rec); err != nil {
		return Artifact{}, err
	}
	if rec.Schema != recordSchema || rec.Package == "" || rec.Release == "" {
		return Artifact{}, fmt.Errorf("it is no record of schema %d", recordSchema)
	}
	for _, m := range rec.Modules {
		if err := errors.Join(m.check(), checkDigest(m.Digest)); err != nil {
			return Artifact{}, err
		}
	}
	rec.Artifact.Digest = digest
	return rec.Artifact, nil
}
