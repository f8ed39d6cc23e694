package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"

	"kmodctl/internal/kernel"
)

// ManifestReader finds the manifest among the files at the top of a source, given by name
// with their texts, and reads the package's name and version from it: the registry
// does not know how a manifest is written.
type ManifestReader func(top map[string]string) (text, name, version string, err error)

// Rebuild makes the database of dir anew: from the blobs, from the modules that are
// installed under root, and from all rows of the damaged database that can be read and
// agree with those. The damaged files are kept; told says where, and what was found.
// When it is cut off, the next one does the same again. A database of a newer
// kmodctl is refused with its *SchemaError.
func Rebuild(ctx context.Context, dir string, root kernel.Root, o WriterOptions, manifest ManifestReader) (told []string, err error) {
	r, err := claim(ctx, dir, root, o)
	if err != nil {
		return nil, fmt.Errorf("rebuild registry %s: %w", dir, err)
	}
	told, err = r.rebuild(ctx, o.Version, manifest)
	if err := errors.Join(err, r.Close()); err != nil {
		return told, fmt.Errorf("rebuild registry %s: %w", dir, err)
	}
	return told, nil
}

func (r *Registry) rebuild(ctx context.Context, version string, manifest ManifestReader) (told []string, err error) {
	if err := r.refuseNewer(ctx); err != nil {
		return nil, err
	}
	dir, done, err := r.NewWork("rebuild")
	if err != nil {
		return nil, err
	}
	defer done()
	b := &rebuilder{Registry: r, manifest: manifest, artifacts: map[string]Artifact{}, sources: map[string]bool{}, count: map[string]int{}}
	if b.old, err = r.openDamaged(ctx, dir); err != nil {
		return nil, err
	}
	defer b.old.Close()
	if err := makeDB(ctx, dir, version); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, dbFile)
	fresh := connect(file, "rw")
	err = transact(fresh, func(tx *sql.Tx) error { b.tx = tx; return b.fill(ctx) })
	if err := errors.Join(err, fresh.Close()); err != nil {
		return nil, inFile(file, err)
	}
	if told, err = r.setAside(); err != nil {
		return nil, err
	}
	return append(told, "made "+dbFile+" anew: "+b.summary()), r.placeDB(dir)
}

// refuseNewer returns the *SchemaError of a database that a newer kmodctl wrote.
func (r *Registry) refuseNewer(ctx context.Context) error {
	file := filepath.Join(r.dir, dbFile)
	if _, err := os.Lstat(file); err != nil {
		return ignoreAbsent(err)
	}
	db, err := openDB(ctx, file, "ro")
	if err == nil {
		return db.Close()
	}
	var newer *SchemaError
	if errors.As(err, &newer) && !newer.Older() {
		return newer
	}
	return nil
}

// setAside gives the files of the damaged database second names, registry.db last, unless
// a rebuild that was cut off has done so.
func (r *Registry) setAside() (told []string, err error) {
	name := r.asideName()
	if name == "" {
		name = dbFile + ".damaged-" + time.Now().UTC().Format("20060102T150405.000Z")
		for _, suffix := range dbSuffixes {
			err := r.tree.Link(dbFile+suffix, name+suffix)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	if _, err := r.tree.Lstat(name); err == nil { // there was a database
		told = []string{"kept the damaged database as " + filepath.Join(r.dir, name)}
	}
	return told, syncDir(r.tree, ".")
}

// asideName is where a rebuild that was cut off has kept registry.db, "" when there was none.
func (r *Registry) asideName() string {
	damaged, err := r.tree.Lstat(dbFile)
	if err != nil {
		return ""
	}
	names, _ := readNames(r.tree, ".")
	for _, name := range names {
		if !strings.HasPrefix(name, dbFile+".damaged-") {
			continue
		}
		if info, err := r.tree.Lstat(name); err == nil && os.SameFile(info, damaged) {
			return name
		}
	}
	return ""
}

// openDamaged opens a copy of the damaged database and its log, below dir. Queries
// show what is left of it.
func (r *Registry) openDamaged(ctx context.Context, dir string) (*sql.DB, error) {
	from := r.asideName()
	if from == "" {
		from = dbFile
	}
	to := filepath.Join(dir, "damaged.db")
	err := r.copyDB(from, to)
	if errors.Is(err, fs.ErrNotExist) { // a database without a table
		err = os.WriteFile(to, nil, 0o600)
	}
	if err != nil {
		return nil, err
	}
	db := connect(to, "rw")
	var old *SchemaError
	err = checkSchema(ctx, db, to)
	if errors.As(err, &old) && old.Older() {
		err = transact(db, func(tx *sql.Tx) error { return migrate(tx, old.Schema, "") }) // what it cannot do is not read then
	}
	if ofDisk(err) {
		return nil, errors.Join(inFile(to, err), db.Close())
	}
	return db, nil
}

// ofDisk tells an error of the disk, after which nobody knows what could have been read, from one
// of what was read: a rebuild must not take the one for the other.
func ofDisk(err error) bool {
	const ioErr, full, cantOpen, shortRead = 10, 13, 14, 10 | 2<<8 // shortRead: of a file that was cut
	var e *sqlite.Error
	if errors.As(err, &e) {
		return slices.Contains([]int{ioErr, full, cantOpen}, e.Code()&0xff) && e.Code() != shortRead
	}
	var errno syscall.Errno
	another := []syscall.Errno{unix.ENOENT, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENXIO, unix.EXDEV} // no file, or one of another kind
	return errors.As(err, &errno) && !slices.Contains(another, errno)
}

// rebuilder fills a new database, in one transaction.
type rebuilder struct {
	*Registry
	old       *sql.DB // may fail at any row
	tx        *sql.Tx
	manifest  ManifestReader
	artifacts map[string]Artifact // known by now, by digest
	byAge     []Artifact          // the same, oldest first
	sources   map[string]bool     // known by now, NAME@VERSION
	count     map[string]int      // rows, by table
	unread    error               // of the disk, which a row was compared with
}

func (b *rebuilder) fill(ctx context.Context) error {
	found, err := b.findBlobs(ctx)
	if err := errors.Join(err, found.unread); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return b.putRecords(found.records) },
		func() error { return b.salvageSources(false) },
		func() error { return b.putSources(found.sources) },
		func() error { return b.salvageSources(true) },
		func() error { return b.salvage("kernel", "release, stamp, gone", isRelease) },
		func() error { return b.salvage("inputs", "hash, inputs", saneInputs) },
		func() error {
			return b.salvage("attempt", "id, op, package, version, release, outcome, error, started, seconds, log, input_hash, artifact, class", saneAttempt)
		},
		func() error {
			return b.salvage("pin", "package, release, version, artifact, at", func(v []any) bool { return b.sources[text(v, 0)+"@"+text(v, 2)] })
		},
		func() error { // one of a lost artifact would hold back every other for good
			_, err := b.tx.Exec(`UPDATE pin SET artifact = '' WHERE artifact NOT IN (SELECT digest FROM artifact)`)
			return err
		},
		func() error { return b.salvage("original", "release, module, path, digest, size", saneOriginal) },
		func() error {
			return b.salvage("install", installColumns, b.saneInstall)
		},
		func() error { return b.salvage("beside", "path, package, version, digest, was", b.saneBeside) },
		func() error { return b.salvage("intent", "release, done, body", b.saneIntent) },
		func() error {
			return b.salvage("removal", "name, version", func(v []any) bool { return b.sources[text(v, 0)+"@"+text(v, 1)] })
		},
		b.adoptAll,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (b *rebuilder) summary() string {
	var parts []string
	for _, table := range []string{"source", "artifact", "install", "attempt", "pin"} {
		parts = append(parts, fmt.Sprintf("%d of table %s", b.count[table], table))
	}
	return strings.Join(parts, ", ")
}

// salvage takes over the rows of a table that can be read and are sane: from its
// beginning to where the damage is, then from its end.
func (b *rebuilder) salvage(table, columns string, sane func(row []any) bool) error {
	n := strings.Count(columns, ",") + 1
	for _, order := range []string{"", " DESC"} {
		rows, err := b.old.Query("SELECT " + columns + " FROM " + table + " NOT INDEXED ORDER BY rowid" + order)
		if ofDisk(err) {
			return err
		} else if err != nil {
			return nil // nothing can be read
		}
		defer rows.Close()
		for rows.Next() {
			row, to := make([]any, n), make([]any, n)
			for i := range row {
				to[i] = &row[i]
			}
			if rows.Scan(to...) != nil || !sane(row) {
				continue
			}
			if err := b.insert(table, columns, row...); err != nil {
				return err
			}
		}
		switch err := rows.Err(); {
		case b.unread != nil:
			return b.unread
		case err == nil:
			return nil
		case ofDisk(err):
			return err
		}
		rows.Close()
	}
	return nil
}

// insert adds a row unless one with its key is there, or a type is not its column's.
func (b *rebuilder) insert(table, columns string, row ...any) error {
	const constraint = 19
	res, err := b.tx.Exec("INSERT OR IGNORE INTO "+table+" ("+columns+") VALUES (?"+strings.Repeat(", ?", len(row)-1)+")", row...)
	if e := (*sqlite.Error)(nil); errors.As(err, &e) && e.Code()&0xff == constraint {
		return nil
	} else if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	b.count[table] += int(n)
	return err
}

// text is a column that should be a text.
func text(row []any, i int) string {
	s, _ := row[i].(string)
	return s
}

func isRelease(row []any) bool { return kernelName(text(row, 0)) }

func saneInputs(row []any) bool {
	return checkDigest(text(row, 0)) == nil && json.Unmarshal([]byte(text(row, 1)), new([]Input)) == nil
}

func saneAttempt(row []any) bool {
	ops := []string{OpBuild, OpReuse, OpInstall, OpUpgrade, OpRollback, OpUninstall, OpPostAdd, OpPreInstall, OpPostInstall, OpPostRemove}
	outcomes := []string{"", OutcomeOK, OutcomeFailed, OutcomeInterrupted}
	log := text(row, 9)
	return slices.Contains(ops, text(row, 1)) && slices.Contains(outcomes, text(row, 5)) && (log == "" || checkDigest(log) == nil)
}

func saneOriginal(row []any) bool {
	return isRelease(row) && moduleName(text(row, 2)) == text(row, 1) && checkDigest(text(row, 3)) == nil &&
		strings.HasPrefix(text(row, 2), modulesPath(text(row, 0))+"/")
}

func (b *rebuilder) saneInstall(row []any) bool {
	i := Install{Release: text(row, 0), Module: text(row, 1), Path: text(row, 2), Package: text(row, 3), Version: text(row, 4), Artifact: text(row, 5)}
	return checkDigest(text(row, 6)) == nil && i.agrees(b.artifacts[i.Artifact]) == nil
}

// saneBeside: a row that is lost is made again of a file that is as its source has it; of any other nobody knows whose it is.
func (b *rebuilder) saneBeside(row []any) bool {
	name := text(row, 0)
	return path.IsAbs(name) && path.Clean(name) == name && checkDigest(text(row, 3)) == nil && b.sources[text(row, 1)+"@"+text(row, 2)]
}

func (b *rebuilder) saneIntent(row []any) bool {
	var in intent
	if json.Unmarshal([]byte(text(row, 2)), &in) != nil || in.Release != text(row, 0) || !kernelName(in.Release) {
		return false
	}
	bad := func(i Install) bool { return i.Release != in.Release || i.agrees(b.artifacts[i.Artifact]) != nil }
	return !slices.ContainsFunc(slices.Concat(in.Before, in.Target), bad)
}

// salvageSources takes over the rows of sources whose archives are whole, or of those that are lost.
func (b *rebuilder) salvageSources(lost bool) error {
	return b.salvage("source", "name, version, digest, origin, added, manifest, files", func(row []any) bool { return b.saneSource(row, lost) })
}

// saneSource compares a row with its archive, or with itself when that is lost too.
func (b *rebuilder) saneSource(row []any, lost bool) bool {
	s := Source{Name: text(row, 0), Version: text(row, 1), Digest: text(row, 2), Manifest: text(row, 5)}
	if checkDigest(s.Digest) != nil || json.Unmarshal([]byte(text(row, 6)), &s.Files) != nil {
		return false
	}
	files, top, err := b.readSource(s.Digest)
	if ofDisk(err) {
		b.unread = err
	}
	if (err != nil) != lost {
		return false
	}
	if lost {
		files, top = s.Files, map[string]string{}
		for _, f := range files { // which of them is the manifest tells its sha256
			if checkManifest([]File{f}, s.Manifest) == nil {
				top[f.Path] = s.Manifest
			}
		}
	}
	if s.agrees(files) != nil {
		return false
	}
	manifest, name, version, err := b.manifest(top)
	ok := err == nil && manifest == s.Manifest && name == s.Name && version == s.Version
	b.sources[name+"@"+version] = b.sources[name+"@"+version] || ok
	return ok
}

// foundBlobs are those that the rows can be made of again.
type foundBlobs struct {
	records []foundRecord // oldest first
	sources []string      // digests of what may be an archive
	unread  error         // why some could not be looked at
}

type foundRecord struct {
	Artifact
	text string
}

// findBlobs looks for records and archives among the blobs.
func (r *Registry) findBlobs(ctx context.Context) (found foundBlobs, err error) {
	names, err := readNames(r.tree, blobDir)
	if err != nil {
		return found, err
	}
	slices.Sort(names)
	for _, name := range names {
		if ctx.Err() != nil {
			return found, context.Cause(ctx)
		}
		if checkDigest(name) != nil {
			continue
		}
		text, kind, err := r.sniff(name)
		switch {
		case err != nil:
			found.unread = errors.Join(found.unread, err)
		case kind == "source":
			found.sources = append(found.sources, name)
		case kind == "record":
			if a, err := readRecord(name, text); err == nil {
				found.records = append(found.records, foundRecord{a, string(text)})
			}
		}
	}
	slices.SortStableFunc(found.records, func(a, b foundRecord) int { return a.Built.Compare(b.Built) })
	return found, nil
}

// keptRecords are the artifacts whose records are among the blobs, oldest first.
func (r *Registry) keptRecords(ctx context.Context) (all []Artifact, err error) {
	found, err := r.findBlobs(ctx)
	for _, f := range found.records {
		all = append(all, f.Artifact)
	}
	return all, err
}

// sniff tells what a blob may be, and the text of a record: neither a .ko file nor a
// log begins as a record does, for a log's first word is the name of a package.
func (r *Registry) sniff(digest string) (record []byte, kind string, err error) {
	const longest = 16 << 20 // bytes of a record
	name := filepath.Join(blobDir, digest)
	info, err := r.tree.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return nil, "", ignoreAbsent(err)
	}
	f, err := r.tree.Open(name)
	if err != nil {
		return nil, "", ignoreAbsent(err)
	}
	defer f.Close()
	head, err := io.ReadAll(io.LimitReader(f, 512))
	switch {
	case err != nil:
		return nil, "", err
	case len(head) == 512 && string(head[257:262]) == "ustar":
		return nil, "source", nil
	case strings.HasPrefix(string(head), `{"schema":`):
		rest, err := io.ReadAll(io.LimitReader(f, longest))
		return append(head, rest...), "record", err
	}
	return nil, "", nil
}

func (b *rebuilder) putRecords(found []foundRecord) error {
	imported := map[string]bool{}
	digests, err := collectOnce(b.old, scanText, `SELECT digest FROM artifact WHERE imported = 1`)
	if ofDisk(err) {
		return err
	}
	for _, d := range digests {
		imported[d] = true
	}
	for _, f := range found {
		b.artifacts[f.Digest] = f.Artifact
		b.byAge = append(b.byAge, f.Artifact)
		if err := putKernel(b.tx, f.Release, ""); err != nil {
			return err
		}
		from := 0
		if imported[f.Digest] {
			from = 1
		}
		if err := b.insert("artifact", "digest, package, version, release, input_hash, record, imported",
			f.Digest, f.Package, f.Version, f.Release, f.InputHash, f.text, from); err != nil {
			return err
		}
		inputs, err := json.Marshal(f.Inputs)
		if err != nil {
			return err
		}
		if err := b.insert("inputs", "hash, inputs", f.InputHash, string(inputs)); err != nil {
			return err
		}
	}
	return nil
}

// putSources makes rows of archives that none was found for. Of several of one version
// it takes the one that was built last.
func (b *rebuilder) putSources(digests []string) error {
	built := map[string]int{} // order of the last build
	for n, a := range b.byAge {
		for _, in := range a.Inputs {
			built[in.Value] = n + 1
		}
	}
	slices.SortStableFunc(digests, func(x, y string) int { return built[y] - built[x] })
	for _, digest := range digests {
		files, top, err := b.readSource(digest)
		if ofDisk(err) {
			return err
		} else if err != nil {
			continue
		}
		manifest, name, version, err := b.manifest(top)
		if err != nil || b.sources[name+"@"+version] {
			continue
		}
		info, err := b.tree.Stat(filepath.Join(blobDir, digest))
		if err != nil {
			return err
		}
		list, err := json.Marshal(files)
		if err != nil {
			return err
		}
		b.sources[name+"@"+version] = true
		if err := b.insert("source", "name, version, digest, origin, added, manifest, files",
			name, version, digest, "", info.ModTime().UnixNano(), manifest, string(list)); err != nil {
			return err
		}
	}
	return nil
}
