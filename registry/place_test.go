package registry

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// putAt is mustPut of one module that is installed in a folder of its own.
func putAt(t *testing.T, r *Registry, version, place, mark string) Artifact {
	t.Helper()
	file := filepath.Join(t.TempDir(), "net.ko")
	must(t, os.WriteFile(file, mustObject(t, mark), 0o600))
	a, err := r.PutArtifact(t.Context(), Artifact{Package: "net", Version: version, Release: release, InputHash: version, Built: time.Now(),
		Modules: []Module{{Name: "net", File: "net.ko", Place: place}}}, map[string]string{"net": file})
	must(t, err)
	return a
}

// A module that has a place of its own is kept there as one in our folder would be, beside files of others; a
// new version may have another place.
func TestInstallAtAPlace(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	base := filepath.Join(string(root), modulesPath(release))
	must(t, os.MkdirAll(filepath.Join(base, "updates/dkms"), 0o755))
	must(t, os.WriteFile(filepath.Join(base, "updates/dkms/other.ko"), mustObject(t, "other"), 0o644))
	must(t, os.WriteFile(filepath.Join(base, "kernel/net.ko"), mustObject(t, "original"), 0o644))
	r := writer(t, dir, root)
	find := func(want ...string) {
		t.Helper()
		drifts, err := r.Look(root)
		must(t, err)
		found, err := filepath.Glob(filepath.Join(base, "updates/*/*"))
		must(t, err)
		for i, f := range found {
			found[i] = f[len(base)+1:]
		}
		equal(t, "files", found, want)
		if len(drifts) > 0 {
			t.Errorf("drifts: %+v", drifts)
		}
	}
	for _, step := range []struct{ version, place, file string }{
		{"1", "updates/dkms", "updates/dkms/net.ko"}, {"2", "", "updates/kmodctl/net.ko"}, {"3", "updates/dkms", "updates/dkms/net.ko"},
	} {
		_, err := r.Install(t.Context(), release, []Artifact{putAt(t, r, step.version, step.place, step.version)}, nil)
		must(t, err)
		find(slices.Sorted(maps.Keys(map[string]bool{"updates/dkms/other.ko": true, step.file: true}))...)
		originals, err := r.Originals()
		must(t, err)
		if len(originals) != 1 || originals[0].Path != modulesPath(release)+"/kernel/net.ko" {
			t.Errorf("version %s shadows %+v", step.version, originals)
		}
	}
	// Its row is made again from the files, if the database is lost.
	must(t, r.Close())
	must(t, os.WriteFile(filepath.Join(dir, "registry.db"), []byte("nothing"), 0o644))
	_, err := Rebuild(t.Context(), dir, root, WriterOptions{Command: "kmodctl test", Version: "0.0-test"},
		func(map[string]string) (string, string, string, error) { return "", "", "", errors.New("no manifest") })
	must(t, err)
	r = writer(t, dir, root)
	find("updates/dkms/net.ko", "updates/dkms/other.ko")
	if rows, err := r.Installs(); err != nil || len(rows) != 1 || rows[0].Version != "3" {
		t.Errorf("rows made again: %+v, %v", rows, err)
	}
	_, err = r.Uninstall(t.Context(), release, []string{"net"})
	must(t, err)
	find("updates/dkms/other.ko")
}

// What a killed command left in a place is cleared away, and goes on.
func TestResumeAtAPlace(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	a := putAt(t, r, "1", "extra", "1")
	in := intent{Op: OpInstall, Release: release, Packages: []string{"net"}, Target: []Install{{Release: release, Module: "net",
		Path: modulesPath(release) + "/extra/net.ko", Package: "net", Version: "1", Artifact: a.Digest, Digest: a.Modules[0].Digest, Size: a.Modules[0].Size}}}
	must(t, r.begin(&in, nil))
	extra := filepath.Join(string(root), modulesPath(release), "extra")
	must(t, os.Mkdir(extra, 0o755))
	must(t, os.WriteFile(filepath.Join(extra, tempName+"net.ko-new"), []byte("half"), 0o644))
	must(t, r.Close())
	r = writer(t, dir, root)
	drifts, err := r.Look(root)
	if err != nil || len(drifts) > 0 || len(mustInstalls(t, r)) != 1 {
		t.Errorf("drifts %+v, rows %+v, %v", drifts, mustInstalls(t, r), err)
	}
	entries, err := os.ReadDir(extra)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != "net.ko" {
		t.Errorf("in the place: %v", entries)
	}
}

func TestPlaceOutside(t *testing.T) {
	for place, fine := range map[string]bool{"": true, "extra": true, "updates/dkms": true, ".": false, "..": false, "/etc": false, "a/../../b": false, "a/": false} {
		if err := (Module{Name: "net", File: "net.ko", Place: place}).check(); (err == nil) != fine {
			t.Errorf("%q: %v", place, err)
		}
	}
}
