package registry

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Newest says of each artifact what its record says.
func TestNewest(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	mustPut(t, r, "other", "1", "other=1")
	mustPut(t, r, "net", "1", "net=old")
	mustPut(t, r, "net", "1", "net=1", "net_core=2")
	for _, version := range []string{"", "1.0", `"quoted", "digest":"x`} {
		a := mustPut(t, r, "net", "2", "net=3"+version, "net_core=4")
		// As a build has it, with all that stands before and after the modules.
		a.Inputs = []Input{{"name", "digest"}, {"flags", "file"}}
		a.Modules[0].Version, a.Modules[0].BuildID, a.Modules[1].Depends = version, "abcd", []string{"version", "net"}
		a.Log, a.Compiler = a.Modules[0].Digest, "gcc {12}"
		files := map[string]string{"net": r.BlobPath(a.Modules[0].Digest), "net_core": r.BlobPath(a.Modules[1].Digest)}
		a, err := r.PutArtifact(t.Context(), a, files)
		must(t, err)
		as, err := r.Newest("net")
		must(t, err)
		if len(as) != 2 {
			t.Fatalf("%+v", as)
		}
		for _, got := range as {
			want, _, err := r.Artifact("net", got.Version, release)
			must(t, err)
			same := func(a, b Module) bool {
				return a.Name == b.Name && a.File == b.File && a.Digest == b.Digest && a.BuildID == b.BuildID && a.Version == b.Version
			}
			if got.Digest != want.Digest || got.InputHash != want.InputHash || !slices.EqualFunc(got.Modules, want.Modules, same) {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
		}
	}
	if as, err := r.Newest(); err != nil || len(as) != 3 {
		t.Errorf("%+v, %v", as, err)
	}
}

// Of each version the last build counts, and not those that were cut off.
func TestFailures(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	for _, try := range []string{"a 1 failed", "a 1 ok", "a 2 ok", "a 2 failed", "b 1 failed", "b 1 interrupted", "c 1 ok"} {
		f := strings.Fields(try)
		a, err := r.BeginAttempt(Attempt{Op: OpBuild, Package: f[0], Version: f[1], Release: release, InputHash: "x"})
		must(t, err)
		a.Outcome, a.Error, a.Class = f[2], "no", "api"
		must(t, r.FinishAttempt(a))
	}
	list := func(packages ...string) (out []string) {
		as, err := r.Failures(packages...)
		must(t, err)
		for _, a := range as {
			out = append(out, a.Package+a.Version+a.InputHash+a.Error+a.Class)
		}
		slices.Sort(out)
		return out
	}
	equal(t, "all", list(), []string{"a2xnoapi", "b1xnoapi"})
	equal(t, "of b and c", list("b", "c"), []string{"b1xnoapi"})
}

// What one package's status asks for is found by an index, however big the store is.
func TestOnePackageIsFound(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	for _, query := range []string{
		`SELECT digest, record ->> '$.modules' FROM artifact WHERE true AND package IN (SELECT value FROM json_each(?)) ORDER BY package, version, release, id`,
		`SELECT max(id) AS id, outcome FROM attempt WHERE op = 'build' AND outcome IN ('ok', 'failed') AND package IN (SELECT value FROM json_each(?)) GROUP BY package, version, release`,
		`SELECT release FROM install WHERE true AND package IN (SELECT value FROM json_each(?))`,
	} {
		rows, err := r.db.Query("EXPLAIN QUERY PLAN "+query, `["net"]`)
		must(t, err)
		for rows.Next() {
			var id, parent, x int
			var detail string
			must(t, rows.Scan(&id, &parent, &x, &detail))
			for _, table := range []string{"artifact", "attempt", "install"} {
				if strings.HasPrefix(detail, "SCAN "+table) {
					t.Errorf("%s: %s", detail, query)
				}
			}
		}
		must(t, rows.Close())
	}
}

// Whatever is done to a folder after it was added shows, also when sizes and times are
// made to look old.
func TestUntouched(t *testing.T) {
	old := time.Now().Add(-time.Hour)
	for name, change := range map[string]func(dir string) error{
		"":        func(string) error { return nil },
		"content": func(dir string) error { return os.WriteFile(filepath.Join(dir, "a.c"), []byte("B"), 0o644) },
		"new":     func(dir string) error { return os.WriteFile(filepath.Join(dir, "sub/new.c"), nil, 0o644) },
		"gone":    func(dir string) error { return os.Remove(filepath.Join(dir, "sub/b.c")) },
		"mode":    func(dir string) error { return os.Chmod(filepath.Join(dir, "a.c"), 0o755) },
		"all":     os.RemoveAll,
	} {
		dir := t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
		for _, f := range []string{"kmod.toml", "a.c", "sub/b.c"} {
			must(t, os.WriteFile(filepath.Join(dir, f), []byte("A"), 0o644))
		}
		_, files, err := Digest(context.Background(), dir)
		must(t, err)
		src := Source{Origin: dir, Files: files, Added: time.Now().Add(20 * time.Millisecond)}
		time.Sleep(time.Until(src.Added))
		must(t, change(dir))
		if name != "" {
			os.Chtimes(filepath.Join(dir, "a.c"), old, old)
		}
		if got := src.Untouched(); got != (name == "") {
			t.Errorf("%q: untouched is %v", name, got)
		}
	}
}
