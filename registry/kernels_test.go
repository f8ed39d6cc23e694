package registry

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A kernel counts as gone from the first writer that does not find it, though our
// files and depmod's index are left there, and as here again when it comes back.
func TestKernelGone(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	mods := filepath.Join(string(root), modulesPath(release))
	r := writer(t, dir, root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1")}, nil)
	must(t, err)
	must(t, r.Close())
	gone := func() time.Time {
		t.Helper()
		must(t, writer(t, dir, root).Close())
		ks, err := reader(t, dir).Kernels()
		must(t, err)
		if len(ks) != 1 || ks[0].Release != release || ks[0].Stamp == "" {
			t.Fatalf("kernels: %+v", ks)
		}
		return ks[0].Gone
	}
	if g := gone(); !g.IsZero() {
		t.Errorf("gone since %v, though it is here", g)
	}
	for _, name := range kernelFiles { // as a package's removal leaves it
		must(t, os.RemoveAll(filepath.Join(mods, name)))
	}
	first := gone()
	if time.Since(first) > time.Minute || first.After(time.Now()) {
		t.Errorf("gone since %v", first)
	}
	if again := gone(); again != first {
		t.Errorf("gone since %v, and later since %v", first, again)
	}
	fillModules(t, mods)
	if g := gone(); !g.IsZero() {
		t.Errorf("gone since %v, though it is back", g)
	}

	// The clock was set back since the last command: for all it says, that was in a year.
	r = writer(t, dir, root)
	then := time.Now().Add(365 * 24 * time.Hour).UTC()
	_, err = r.BeginAttempt(Attempt{Op: OpBuild, Package: "net", Version: "1", Release: release, Started: then})
	must(t, err)
	must(t, r.Close())
	for _, name := range kernelFiles {
		must(t, os.RemoveAll(filepath.Join(mods, name)))
	}
	if g := gone(); g != then {
		t.Errorf("gone since %v, though something was begun at %v", g, then)
	}
}

// A removal over two kernels that is killed after the first, or before its rows go,
// is told and ended by the next writer.
func TestRemoveIsEnded(t *testing.T) {
	const second = "9.9.10"
	root, dir := newRoot(t), t.TempDir()
	fillModules(t, filepath.Join(string(root), modulesPath(second)))
	r := writer(t, dir, root)
	_, _, err := r.AddSource(t.Context(), tree(t, "kmod.toml="), "net", "1", "")
	must(t, err)
	a := mustPut(t, r, "net", "1", "net=1")
	_, err = r.Install(t.Context(), release, []Artifact{a}, nil)
	must(t, err)
	a.Release = second
	file := filepath.Join(t.TempDir(), "net.ko")
	must(t, os.WriteFile(file, mustObject(t, "1"), 0o644))
	b, err := r.PutArtifact(t.Context(), a, map[string]string{"net": file})
	must(t, err)
	_, err = r.Install(t.Context(), second, []Artifact{b}, nil)
	must(t, err)

	must(t, r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO removal VALUES ('net', '1')`)
		return err
	}))
	_, err = r.Uninstall(t.Context(), release, []string{"net"})
	must(t, err)
	must(t, r.Close()) // as after a kill
	what, _, err := reader(t, dir).Unfinished()
	must(t, err)
	equal(t, "unfinished", what, []string{"remove of net@1"})

	r = writer(t, dir, root)
	if got := r.Recovered(); !slices.Contains(got, "finished remove of net@1") {
		t.Errorf("recovered: %q", got)
	}
	var absent *NotFoundError
	if _, err := r.Source("net", ""); !errors.As(err, &absent) {
		t.Errorf("the source is left: %v", err)
	}
	names, err := readNames(r.tree, blobDir)
	must(t, err)
	if len(mustInstalls(t, r)) > 0 || len(names) > 0 {
		t.Errorf("left: %+v, blobs %q", mustInstalls(t, r), names)
	}
}

// What cannot be removed now is not removed behind one's back later.
func TestRemoveThatFails(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	_, _, err := r.AddSource(t.Context(), tree(t, "kmod.toml="), "net", "1", "")
	must(t, err)
	_, err = r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1")}, nil)
	must(t, err)
	fakeDepmod(t, "echo out of luck >&2; exit 1")
	if _, err := r.Remove(t.Context(), "net", "1"); err == nil || !strings.Contains(err.Error(), "out of luck") {
		t.Fatalf("error: %v", err)
	}
	depmodIn(t, "/usr/sbin")
	must(t, r.Close())
	r = writer(t, dir, root)
	equal(t, "installed", installed(t, r, root), []string{"net=1"})
	_, err = r.Remove(t.Context(), "net", "1")
	must(t, err)
	equal(t, "installed", installed(t, r, root), nil)
}

// A removal that was cut off and cannot be finished is withdrawn: it does not take later
// what was added or installed meanwhile.
func TestRemoveThatCannotBeEnded(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	_, _, err := r.AddSource(t.Context(), tree(t, "kmod.toml="), "net", "1", "")
	must(t, err)
	_, err = r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1")}, nil)
	must(t, err)
	must(t, r.writeRemovals(`INSERT INTO removal VALUES (?, ?)`, "net", []string{"1"}))
	must(t, r.Close()) // as after a kill
	updates := filepath.Join(string(root), modulesPath(release), "updates")
	must(t, os.Rename(updates, updates+"-away"))
	must(t, os.WriteFile(updates, nil, 0o644))
	r = writer(t, dir, root)
	if got := r.Recovered(); len(got) != 1 || !strings.Contains(got[0], "updates is not a folder") {
		t.Errorf("recovered: %q", got)
	}
	must(t, r.Close())
	must(t, os.Remove(updates))
	must(t, os.Rename(updates+"-away", updates))
	r = writer(t, dir, root)
	equal(t, "recovered", r.Recovered(), nil)
	equal(t, "installed", installed(t, r, root), []string{"net=1"})
}

// The kernel goes when a change is made and recorded, and only its intent is left: the
// history is right as it is.
func TestKernelGoesAfterTheChange(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "1", "net=1")}, nil)
	must(t, err)
	garble(t, r, `CREATE TRIGGER stay BEFORE DELETE ON intent BEGIN SELECT RAISE(ABORT, 'no'); END`)
	_, err = r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "2", "net=2")}, nil)
	must(t, err)
	garble(t, r, `DROP TRIGGER stay`)
	must(t, r.Close()) // as after a kill
	must(t, os.RemoveAll(filepath.Join(string(root), modulesPath(release))))
	r = writer(t, dir, root)
	as, err := r.Attempts("net", release, 1)
	must(t, err)
	what, _, err := r.Unfinished()
	must(t, err)
	if as[0].Version != "2" || as[0].Outcome != OutcomeOK || len(what) > 0 {
		t.Errorf("attempt %+v, unfinished %q", as[0], what)
	}
}
