package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kmodctl/internal/kernel"
)

const (
	goneRelease = "8.8.8"
	month       = 30 * 24 * time.Hour
)

// keepOne keeps an artifact, which mark makes different, with a log and its attempt.
func keepOne(t *testing.T, r *Registry, pkg, version, release, mark string, headers ...string) Artifact {
	t.Helper()
	log, _, err := r.PutBlob(t.Context(), strings.NewReader("log of "+pkg+version+release+mark))
	must(t, err)
	file := filepath.Join(t.TempDir(), pkg+".ko")
	must(t, os.WriteFile(file, []byte(pkg+version+release+mark), 0o644))
	a, err := r.PutArtifact(t.Context(), Artifact{
		Package: pkg, Version: version, Release: release, InputHash: mark, Log: log, Built: time.Now(), Headers: headers,
		Modules: []Module{{Name: pkg, File: pkg + ".ko"}},
	}, map[string]string{pkg: file})
	must(t, err)
	at, err := r.BeginAttempt(Attempt{Op: OpBuild, Package: pkg, Version: version, Release: release, Log: log, Artifact: a.Digest})
	must(t, err)
	at.Outcome = OutcomeOK
	must(t, r.FinishAttempt(at))
	return a
}

func (gc GC) lines() (out []string) {
	for _, a := range gc.Artifacts {
		out = append(out, fmt.Sprintf("%s@%s %s: %s", a.Package, a.Version, a.Release, a.Why))
	}
	return out
}

// garden makes a registry with one artifact for each rule, and a kernel that is gone.
func garden(t *testing.T) (*Registry, kernel.Root) {
	t.Helper()
	root, dir := newRoot(t), t.TempDir()
	fillModules(t, filepath.Join(string(root), modulesPath(goneRelease)))
	r := writer(t, dir, root)
	for _, pkg := range []string{"net", "wifi", "disk", "pinned"} {
		for _, v := range []string{"1", "2"} {
			_, _, err := r.AddSource(t.Context(), tree(t, "kmod.toml="), pkg, v, "")
			must(t, err)
		}
	}
	install := func(a Artifact) {
		t.Helper()
		_, err := r.Install(t.Context(), a.Release, []Artifact{a}, nil)
		must(t, err)
	}
	// Here: what was superseded goes, but not what is, or was last, installed.
	keepOne(t, r, "net", "1", release, "old")
	keepOne(t, r, "net", "1", release, "newest of its version")
	install(keepOne(t, r, "net", "2", release, "first"))
	install(keepOne(t, r, "net", "2", release, "previous"))
	install(keepOne(t, r, "net", "2", release, "current"))
	keepOne(t, r, "net", "2", release, "newest, never installed")
	keepOne(t, r, "lost", "1", release, "its source was never here")
	// Pins.
	a := keepOne(t, r, "pinned", "1", release, "this very one")
	keepOne(t, r, "pinned", "1", release, "newest")
	must(t, r.SetPin(Pin{Package: "pinned", Release: release, Version: "1", Artifact: a.Digest}))
	keepOne(t, r, "pinned", "1", goneRelease, "superseded")
	keepOne(t, r, "pinned", "1", goneRelease, "newest")
	must(t, r.SetPin(Pin{Package: "pinned", Release: goneRelease, Version: "1"}))
	keepOne(t, r, "disk", "1", goneRelease, "for every kernel")
	must(t, r.SetPin(Pin{Package: "disk", Version: "1"}))
	// Imported.
	a = keepOne(t, r, "disk", "2", goneRelease, "imported")
	must(t, r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE artifact SET imported = 1 WHERE digest = ?`, a.Digest)
		return err
	}))
	// Built with headers that were given: the newest of its version.
	keepOne(t, r, "disk", "1", goneRelease, "superseded", "linux-headers.deb")
	keepOne(t, r, "disk", "1", goneRelease, "for a kernel to come", "linux-headers.deb")
	// Gone.
	keepOne(t, r, "net", "1", goneRelease, "old")
	keepOne(t, r, "net", "1", goneRelease, "newest")
	install(keepOne(t, r, "wifi", "1", goneRelease, "still installed"))
	must(t, r.Close())
	for _, name := range kernelFiles {
		must(t, os.RemoveAll(filepath.Join(string(root), modulesPath(goneRelease), name)))
	}
	return writer(t, dir, root), root
}

func TestGCRules(t *testing.T) {
	r, _ := garden(t)
	now := []string{
		"lost@1 9.9.9: the version is not registered any more",
		"net@1 9.9.9: superseded", "net@2 9.9.9: superseded",
	}
	later := []string{
		"disk@1 8.8.8: the kernel is gone", "disk@1 8.8.8: the kernel is gone", now[0],
		"net@1 8.8.8: the kernel is gone", "net@1 8.8.8: the kernel is gone",
		now[1], now[2], "pinned@1 8.8.8: the kernel is gone",
	}
	for _, tt := range []struct {
		name  string
		at    time.Duration
		grace time.Duration
		want  []string
	}{
		{"at once", 0, month, now},
		{"within the grace", month - time.Hour, month, now},
		{"after the grace", month + time.Hour, month, later},
		{"without grace", 0, 0, later},
		{"without grace, the clock was set back", -10 * 365 * 24 * time.Hour, 0, later},
		{"the clock was set back", -10 * 365 * 24 * time.Hour, month, now},
	} {
		gc, err := r.PlanGC(t.Context(), time.Now().Add(tt.at), tt.grace)
		must(t, err)
		got := gc.lines()
		slices.Sort(got)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
		}
		if held := len(gc.Held) == 1 && gc.Held[0].Package == "wifi"; held != (len(tt.want) > 3) {
			t.Errorf("%s: held: %+v", tt.name, gc.Held)
		}
	}
}

// What a collection frees is what it said, nothing that is needed is gone, and a
// second one finds nothing.
func TestCollectGarbage(t *testing.T) {
	r, root := garden(t)
	_, _, err := r.PutBlob(t.Context(), strings.NewReader("litter"))
	must(t, err)
	failed, _, err := r.PutBlob(t.Context(), strings.NewReader("log of a failure for the kernel that is gone"))
	must(t, err)
	at, err := r.BeginAttempt(Attempt{Op: OpBuild, Package: "net", Version: "2", Release: goneRelease, Log: failed})
	must(t, err)
	at.Outcome = OutcomeFailed
	must(t, r.FinishAttempt(at))
	history, err := r.Attempts("", "", 0)
	must(t, err)
	rows := mustInstalls(t, r)
	later := time.Now().Add(2 * month)
	before := total(t, r)
	plan, err := r.PlanGC(t.Context(), later, month)
	must(t, err)
	if b := plan.Blobs; len(b) != 2 || !slices.ContainsFunc(b, func(l Litter) bool { return l.Digest == failed && strings.HasPrefix(l.Why, "log of") }) {
		t.Errorf("blobs: %+v", b)
	}
	gc, err := r.CollectGarbage(t.Context(), later, month)
	must(t, err)
	if after := total(t, r); before-after != gc.Bytes || gc.Bytes != plan.Bytes || gc.Bytes == 0 || !slices.Equal(gc.lines(), plan.lines()) {
		t.Errorf("%d bytes became free, planned were %d, told %d", before-after, plan.Bytes, gc.Bytes)
	}
	if again, err := r.PlanGC(t.Context(), later, month); err != nil || len(again.Artifacts)+len(again.Blobs) > 0 || again.Bytes != 0 {
		t.Errorf("a second one: %+v %v", again, err)
	}
	if now, err := r.Attempts("", "", 0); err != nil || len(now) != len(history) {
		t.Errorf("%d attempts of %d are left, %v", len(now), len(history), err)
	} else {
		for _, a := range now { // a log that is named is there
			if a.Log != "" {
				must(t, r.checkBlob(t.Context(), a.Log))
			}
		}
	}
	for _, i := range rows {
		a, ok, err := r.ArtifactByDigest(i.Artifact)
		if err != nil || !ok || r.checkModules(t.Context(), a) != nil {
			t.Errorf("%s is installed, and gone: %v", i.Path, err)
		}
	}
	p, err := r.Previous(t.Context(), "net", release)
	if err != nil || p.Artifact.InputHash != "previous" {
		t.Errorf("a rollback would take %+v, %v", p.Artifact, err)
	}
	if drift, err := r.Look(root); err != nil || len(drift) > 0 {
		t.Errorf("drift: %+v %v", drift, err)
	}
}

// Cut off behind its rows, a collection is ended by the next one.
func TestGCCutOff(t *testing.T) {
	r, _ := garden(t)
	later := time.Now().Add(2 * month)
	plan, err := r.PlanGC(t.Context(), later, month)
	must(t, err)
	before := total(t, r)
	must(t, r.write(func(tx *sql.Tx) error { return dropRows(tx, plan, later.Add(-month)) }))
	if total(t, r) != before {
		t.Error("blobs went with the rows")
	}
	rest, err := r.CollectGarbage(t.Context(), later, month)
	must(t, err)
	if len(rest.Artifacts) != 0 || rest.Bytes != plan.Bytes || before-total(t, r) != plan.Bytes {
		t.Errorf("the rest was %d bytes, want %d: %v", rest.Bytes, plan.Bytes, rest.lines())
	}
}

// What an unfinished command would install, or put back, stays.
func TestGCKeepsIntents(t *testing.T) {
	r, _ := garden(t)
	plan, err := r.PlanGC(t.Context(), time.Now(), month)
	must(t, err)
	at := Install{Release: release, Package: "net", Artifact: plan.Artifacts[0].Digest}
	must(t, r.write(func(tx *sql.Tx) error {
		body, err := json.Marshal(intent{Op: OpInstall, Release: release, Target: []Install{at}})
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO intent (release, done, body) VALUES (?, 0, ?)`, release, string(body))
		return err
	}))
	next, err := r.PlanGC(t.Context(), time.Now(), month)
	must(t, err)
	if len(next.Artifacts) != len(plan.Artifacts)-1 || next.Artifacts[0].Digest == at.Artifact {
		t.Errorf("with an intent: %v, without: %v", next.lines(), plan.lines())
	}
}

// What an unfinished rollback leaves to go back to stays, though something else was installed later.
func TestGCKeepsThePastOfIntents(t *testing.T) {
	r := writer(t, t.TempDir(), newRoot(t))
	var as []Artifact
	for _, v := range []string{"1", "2", "3", "4"} {
		as = append(as, mustPut(t, r, "net", v, "net="+v))
		_, err := r.Install(t.Context(), release, as[len(as)-1:], nil)
		must(t, err)
	}
	body, err := json.Marshal(intent{Op: OpRollback, Release: release, Target: []Install{{Release: release, Package: "net", Artifact: as[1].Digest}}})
	must(t, err)
	must(t, r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO intent (release, done, body) VALUES (?, 0, ?)`, release, string(body))
		return err
	}))
	plan, err := r.PlanGC(t.Context(), time.Now(), month)
	must(t, err)
	equal(t, "garbage", plan.lines(), nil)
}

// What a rollback would pass over, for it is damaged, holds no place of what it would take.
func TestGCKeepsWhatRollbackTakes(t *testing.T) {
	r := writer(t, t.TempDir(), newRoot(t))
	var as []Artifact
	for _, v := range []string{"1", "2", "3"} {
		as = append(as, mustPut(t, r, "net", v, "net="+v))
		_, err := r.Install(t.Context(), release, as[len(as)-1:], nil)
		must(t, err)
	}
	for _, want := range []string{"1", "2"} { // that goes
		if want == "2" {
			flipBit(t, r.BlobPath(as[1].Modules[0].Digest))
		}
		plan, err := r.PlanGC(t.Context(), time.Now(), month)
		must(t, err)
		equal(t, "garbage", plan.lines(), []string{"net@" + want + " " + release + ": the version is not registered any more"})
	}
	_, err := r.CollectGarbage(t.Context(), time.Now(), month)
	must(t, err)
	if p, err := r.Previous(t.Context(), "net", release); err != nil || p.Artifact.Version != "1" {
		t.Errorf("a rollback would take %+v, %v", p.Artifact, err)
	}
}

func TestCollectGarbageCancelled(t *testing.T) {
	r, _ := garden(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := total(t, r)
	if _, err := r.PlanGC(ctx, time.Now(), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := r.CollectGarbage(ctx, time.Now(), 0); !errors.Is(err, context.Canceled) || total(t, r) != before {
		t.Errorf("cancelled: %v, %d bytes of %d are left", err, total(t, r), before)
	}
}

// total is the size of all blobs.
func total(t *testing.T, r *Registry) (n int64) {
	t.Helper()
	sizes, err := r.blobSizes()
	must(t, err)
	for _, size := range sizes {
		n += size
	}
	return n
}
