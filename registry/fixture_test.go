package registry

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/internal/kernel"
)

// builtFor are the two releases that testdata/make-store has built for: those that its machine had then.
func builtFor(t *testing.T, root kernel.Root) (older, newer string) {
	t.Helper()
	names, err := readNames(openTree(t, root), "lib/modules")
	must(t, err)
	slices.SortFunc(names, kernel.Compare)
	if len(names) != 2 {
		t.Fatalf("releases of the fixture: %q", names)
	}
	return names[0], names[1]
}

func openTree(t *testing.T, root kernel.Root) *os.Root {
	t.Helper()
	tree, err := os.OpenRoot(string(root))
	must(t, err)
	t.Cleanup(func() { tree.Close() })
	return tree
}

// fixture unpacks a store that an earlier kmodctl left, and the machine around it.
func fixture(t *testing.T, archive string) (dir string, root kernel.Root) {
	t.Helper()
	top := t.TempDir()
	openDirs(t, top)
	if out, err := exec.Command("tar", "-xpzf", archive, "-C", top).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return filepath.Join(top, "var/lib/kmodctl"), kernel.Root(top)
}

// everything is all that a registry can be asked, as text.
func everything(r *Registry) (string, error) {
	var b strings.Builder
	show := func(what string, v any, err error) error {
		fmt.Fprintf(&b, "%s: %+v\n", what, v)
		return err
	}
	srcs, err := r.Sources()
	if err := show("sources", srcs, err); err != nil {
		return "", err
	}
	arts, err := r.Artifacts()
	if err := show("artifacts", arts, err); err != nil {
		return "", err
	}
	attempts, err := r.Attempts("", "", 0)
	if err := show("attempts", attempts, err); err != nil {
		return "", err
	}
	installs, err := r.Installs()
	if err := show("installs", installs, err); err != nil {
		return "", err
	}
	pins, err := r.Pins()
	if err := show("pins", pins, err); err != nil {
		return "", err
	}
	originals, err := r.Originals()
	if err := show("originals", originals, err); err != nil {
		return "", err
	}
	digests := []string{}
	for _, s := range srcs {
		digests = append(digests, s.Digest)
	}
	for _, a := range arts {
		digests = append(digests, a.blobs()...)
		inputs, err := r.Inputs(a.InputHash)
		if err := show("inputs of "+a.InputHash, inputs, err); err != nil {
			return "", err
		}
	}
	for _, a := range attempts {
		if a.Log != "" {
			digests = append(digests, a.Log)
		}
	}
	for _, d := range digests {
		if err := r.checkBlob(context.Background(), d); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

func init() {
	// Reads all that there is and prints it.
	helpers["everything"] = func(args []string) error {
		r, err := Open(context.Background(), args[0])
		if err != nil {
			return err
		}
		defer r.Close()
		text, err := everything(r)
		fmt.Print(text)
		return err
	}
	// Is killed when all of a migration but its commit is done, and part of it is
	// in -wal: the page cache takes one page.
	helpers["migrate"] = func(args []string) error {
		db := connect(filepath.Join(args[0], dbFile), "rw")
		if _, err := db.Exec(`PRAGMA cache_size = 1`); err != nil {
			return err
		}
		return transact(db, func(tx *sql.Tx) error {
			if err := migrate(tx, args[1], "9.9"); err != nil {
				return err
			}
			if _, err := tx.Exec(`CREATE TABLE ballast AS SELECT zeroblob(1 << 16)`); err != nil { // a small migration has room there
				return err
			}
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		})
	}
}

// What every kmodctl has left on a disk is read, brought up to date and worked with
// by this one. testdata/make-store makes the archives.
func TestFixtures(t *testing.T) {
	archives, err := filepath.Glob("testdata/schema-*.tar.gz")
	must(t, err)
	if latest := "testdata/schema-" + schemaVersion + ".tar.gz"; !slices.Contains(archives, latest) {
		t.Errorf("%s is missing: testdata/make-store makes it", latest)
	}
	for _, archive := range archives {
		from := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(archive), "schema-"), ".tar.gz")
		t.Run(from, func(t *testing.T) {
			t.Run("read", func(t *testing.T) { fixtureIsRead(t, archive) })
			t.Run("written", func(t *testing.T) { fixtureIsUsed(t, archive) })
			if from != schemaVersion {
				t.Run("killed", func(t *testing.T) { fixtureMigrationIsKilled(t, archive, from) })
			}
		})
	}
}

// A user reads an old store though he may not migrate it, and finds what a writer finds.
func fixtureIsRead(t *testing.T, archive string) {
	dir, root := fixture(t, archive)
	own := t.TempDir() // for the copy of a store that he may not migrate
	openDirs(t, own)
	must(t, os.Chown(own, 65534, 65534))
	before := snapshot(t, dir)
	cmd := helper("everything", dir)
	cmd.Env = append(cmd.Env, "TMPDIR="+own)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	got, err := cmd.Output()
	must(t, err)
	if snapshot(t, dir) != before {
		t.Error("a reader changed the store")
	}
	if left, err := os.ReadDir(own); err != nil || len(left) > 0 {
		t.Errorf("a reader left %v %v", left, err)
	}
	want, err := everything(writer(t, dir, root))
	must(t, err)
	if string(got) != want {
		t.Errorf("a user reads\n%s\na writer\n%s", got, want)
	}
}

func fixtureIsUsed(t *testing.T, archive string) {
	dir, root := fixture(t, archive)
	r := writer(t, dir, root)
	older := "wrote " + readmeFile + " anew" // its text is that of a kmodctl before this
	if got := r.Recovered(); len(got) > 0 && !slices.Equal(got, []string{older}) {
		t.Errorf("recovered: %q", got)
	}
	if diff := cmp.Diff(schemaOf(t, r), schemaOf(t, writer(t, t.TempDir(), root))); diff != "" {
		t.Errorf("not the schema of a new store (-has +new):\n%s", diff)
	}
	oldKernel, newKernel := builtFor(t, root)
	equal(t, "installed", rowsOf(t, r), []string{"crc7=2.0 " + oldKernel, "hello=1.1.0 " + oldKernel,
		"crc7=2.0 " + newKernel, "hello=1.0.0 " + newKernel, "spare=1.0 " + newKernel})
	isClean(t, r, root)
	fixtureHistory(t, r, oldKernel)

	// Out with all of it, and in again with what is in the store.
	for _, release := range []string{oldKernel, newKernel} {
		res, err := r.Uninstall(t.Context(), release, []string{"crc7", "hello", "spare"})
		must(t, err)
		if got := res.Changes[0]; got.Module != "crc7" || !strings.Contains(got.Original, "/kernel/lib/crc7.ko") {
			t.Errorf("uninstalled: %+v", got)
		}
	}
	isClean(t, r, root)
	for _, release := range []string{oldKernel, newKernel} {
		var due []Artifact
		for _, pkg := range []string{"crc7@2.0", "hello@1.0.0", "spare@1.0"} {
			name, version, _ := strings.Cut(pkg, "@")
			a, ok, err := r.Artifact(name, version, release)
			must(t, err)
			if !ok {
				t.Fatalf("no artifact of %s for %s", pkg, release)
			}
			due = append(due, a)
		}
		_, err := r.Install(t.Context(), release, due, nil)
		must(t, err)
	}
	isClean(t, r, root)
	if got := len(rowsOf(t, r)); got != 6 {
		t.Errorf("%d rows", got)
	}
}

// fixtureHistory looks at the build that failed, the upgrade and the uninstall.
func fixtureHistory(t *testing.T, r *Registry, oldKernel string) {
	t.Helper()
	failed, err := r.Attempts("broken", "", 1)
	must(t, err)
	log, err := r.Blob(failed[0].Log)
	must(t, err)
	defer log.Close()
	text, err := io.ReadAll(log)
	if a := failed[0]; err != nil || a.Outcome != OutcomeFailed || !strings.Contains(a.Error, "no_such_name") || !strings.Contains(string(text), "broken.c:") {
		t.Errorf("attempt %+v, %v, log:\n%s", a, err, text)
	}
	upgrade, err := r.Attempts("hello", oldKernel, 1)
	must(t, err)
	a, ok, err := r.Artifact("hello", "1.1.0", oldKernel)
	if u := upgrade[0]; err != nil || !ok || u.Outcome != OutcomeOK || u.Version != "1.1.0" || u.Artifact != a.Digest {
		t.Errorf("attempt %+v, artifact %s, %v", u, a.Digest, err)
	}
	gone, err := r.Attempts("spare", oldKernel, 1)
	if err != nil || gone[0].Op != OpUninstall || gone[0].Outcome != OutcomeOK {
		t.Errorf("attempts %+v, %v", gone, err)
	}
}

func fixtureMigrationIsKilled(t *testing.T, archive, from string) {
	dir, root := fixture(t, archive)
	before, err := everything(reader(t, dir))
	must(t, err)
	helper("migrate", dir, from).Run()
	if info, err := os.Stat(filepath.Join(dir, dbFile+"-wal")); err != nil || info.Size() == 0 {
		t.Fatalf("the migration was killed before it wrote: %v", err)
	}
	db := connect(filepath.Join(dir, dbFile), "ro")
	defer db.Close()
	version, err := collect(db, scanText, `SELECT value FROM meta WHERE key = 'schema'`)
	must(t, err)
	equal(t, "schema after the kill", version, []string{from})
	after, err := everything(writer(t, dir, root))
	must(t, err)
	if after != before {
		t.Errorf("before the kill\n%s\nafter it\n%s", before, after)
	}
}

// schemaOf is what SQLite knows of each table, each of its columns and indexes.
func schemaOf(t *testing.T, r *Registry) []string {
	t.Helper()
	lines, err := collect(r.db, scanText, `
		SELECT concat_ws(' ', 'table', l.name, l.strict, l.wr) FROM pragma_table_list l WHERE l.schema = 'main' UNION ALL
		SELECT concat_ws(' ', 'column', m.name, c.cid, c.name, c.type, c."notnull", c.dflt_value, c.pk) FROM sqlite_schema m, pragma_table_info(m.name) c UNION ALL
		SELECT concat_ws(' ', 'index', m.name, i.name, i."unique", i.origin, i.partial, c.seqno, c.name) FROM sqlite_schema m, pragma_index_list(m.name) i, pragma_index_info(i.name) c UNION ALL
		SELECT concat_ws(' ', 'key', m.name, f."table", f."from", f."to") FROM sqlite_schema m, pragma_foreign_key_list(m.name) f ORDER BY 1`)
	must(t, err)
	if len(lines) < 80 {
		t.Fatalf("schema: %q", lines)
	}
	return lines
}

// rowsOf lists what is installed, as "module=version release".
func rowsOf(t *testing.T, r *Registry) (list []string) {
	t.Helper()
	rows, err := r.Installs()
	must(t, err)
	slices.SortStableFunc(rows, func(a, b Install) int { return kernel.Compare(a.Release, b.Release) })
	for _, i := range rows {
		list = append(list, i.Module+"="+i.Version+" "+i.Release)
	}
	return list
}

func isClean(t *testing.T, r *Registry, root kernel.Root) {
	t.Helper()
	if drifts, err := r.Verify(t.Context(), root); err != nil || len(drifts) > 0 {
		t.Errorf("verify: %+v, %v", drifts, err)
	}
}

// An old store with a garbled row is damaged, not merely impossible to bring up to date.
func TestFixtureIsDamaged(t *testing.T) {
	dir, root := fixture(t, "testdata/schema-1.tar.gz")
	db := connect(filepath.Join(dir, dbFile), "rw")
	_, err := db.Exec(`UPDATE artifact SET record = 'x' WHERE id = 1`)
	must(t, err)
	must(t, db.Close())
	if _, err := OpenWriter(t.Context(), dir, root, WriterOptions{}); !isDamaged(err) {
		t.Errorf("a writer: %v", err)
	}
	if _, err := Open(t.Context(), dir); !isDamaged(err) {
		t.Errorf("a reader: %v", err)
	}
}
